// Updates of parameters in one pass over memory, and sums of squares.
#pragma once

#include "native/simd.h"
#include "native/threads.h"
#include "optim.cuh"

#define EXPORTED extern "C" __attribute__((visibility("default")))

// The arrays of a list are cut into chunks, which threads take in order. `table` has a row of numbers for each array:
// its elements, its shrink as the bits of a double, and its address in each list, 0 where the list does not exist.
constexpr int64_t chunk_elements = 4096;

template <class OfChunk>
void over_chunks(const int64_t* table, int64_t arrays, int64_t columns, int index, int count, OfChunk of_chunk) {
    int64_t chunks = 0;
    for (int64_t k = 0; k < arrays; ++k) chunks += (table[k * columns] + chunk_elements - 1) / chunk_elements;
    const int64_t first = chunks * index / count, last = chunks * (index + 1) / count;
    int64_t before = 0;  // chunks of the arrays before
    for (int64_t k = 0; k < arrays && before < last; ++k) {
        const int64_t size = table[k * columns], own = (size + chunk_elements - 1) / chunk_elements;
        for (int64_t c = first > before ? first - before : 0; c < own && before + c < last; ++c) {
            const int64_t begin = c * chunk_elements, left = size - begin;
            of_chunk(table + k * columns, before + c, begin, left < chunk_elements ? left : chunk_elements);
        }
        before += own;
    }
}

// The elements of an optimizer's slots at one position of a parameter.
template <typename Number, int count>
struct Slots {
    Number values[count];
    bool exists[count];  // false where the optimizer's options do without the slot

    __device__ bool has(int slot) const { return exists[slot]; }
    __device__ Number& operator[](int slot) { return values[slot]; }
};

// p <- shrink p - step(gradient + weight_decay p). Lists: p, the gradient and the slots.
template <template <typename> class Rule, typename T>
void update(const Team& team, const int64_t* table, int64_t arrays, double weight_decay, const Rule<T>& rule) {
    using Real = Vector<T>;
    constexpr int count = Rule<T>::count;
    constexpr int64_t columns = 4 + count;
    const T decay = T(weight_decay);
    int64_t elements = 0;
    for (int64_t k = 0; k < arrays; ++k) elements += table[k * columns];
    team.share(double(elements) * sizeof(T) * (3 + 2 * count) / 1e4, [&](int index, int threads) {
        const auto update_chunk = [&](const int64_t* row, int64_t, int64_t begin, int64_t size) {
            double factor;
            __builtin_memcpy(&factor, row + 1, sizeof factor);
            const T shrink = T(factor);
            T* const p = reinterpret_cast<T*>(row[2]) + begin;
            const T* const gradient = reinterpret_cast<const T*>(row[3]) + begin;
            T* state[count];
            Slots<Real, count> slots;
            for (int slot = 0; slot < count; ++slot) {
                slots.exists[slot] = row[4 + slot] != 0;
                state[slot] = reinterpret_cast<T*>(row[4 + slot]) + (slots.exists[slot] ? begin : 0);
                slots.values[slot] = 0;
            }
            for (int64_t i = 0; i < size; i += Real::lanes) {
                const int64_t left = size - i;
                for (int slot = 0; slot < count; ++slot) {
                    if (slots.exists[slot]) slots.values[slot] = get(state[slot] + i, left);
                }
                const Real value = get(p + i, left), g = decayed(get(gradient + i, left), decay, value);
                put(value * shrink - rule.step(g, slots), p + i, left);
                for (int slot = 0; slot < count; ++slot) {
                    if (slots.exists[slot]) put(slots.values[slot], state[slot] + i, left);
                }
            }
        };
        over_chunks(table, arrays, columns, index, threads, update_chunk);
    });
}

// Numbers of type T as doubles, a register at a time.
ALWAYS_INLINE Vector<double> widened(const double* from) { return Vector<double>::load(from); }
ALWAYS_INLINE Vector<double> widened(const float* from) {
    typedef float Half __attribute__((vector_size(register_bytes / 2), aligned(sizeof(float)), may_alias));
    return {__builtin_convertvector(*reinterpret_cast<const Half*>(from), Registers<double>::Numbers)};
}

// The sum of the squares of `size` numbers times `scale`: by halves, so that its error does not grow with the size.
template <typename T>
double squares(const T* from, int64_t size, double scale) {
    constexpr int64_t lanes = Vector<double>::lanes, part = 16 * lanes;
    if (size > part) {
        const int64_t half = (size / part + 1) / 2 * part;
        return squares(from, half, scale) + squares(from + half, size - half, scale);
    }
    Vector<double> total = 0;
    int64_t i = 0;
    for (; i + lanes <= size; i += lanes) {
        const Vector<double> x = widened(from + i) * scale;
        total += x * x;
    }
    double rest = sum(total);
    for (; i < size; ++i) rest += from[i] * scale * (from[i] * scale);
    return rest;
}

// The sum of the squares of each chunk of the arrays of a list, to `sums`.
template <typename T>
void chunk_squares(const Team& team, const int64_t* table, int64_t arrays, double scale, double* sums) {
    constexpr int64_t columns = 3;
    int64_t elements = 0;
    for (int64_t k = 0; k < arrays; ++k) elements += table[k * columns];
    team.share(double(elements) * sizeof(T) / 1e4, [&](int index, int threads) {
        const auto sum_chunk = [&](const int64_t* row, int64_t chunk, int64_t begin, int64_t size) {
            sums[chunk] = squares(reinterpret_cast<const T*>(row[2]) + begin, size, scale);
        };
        over_chunks(table, arrays, columns, index, threads, sum_chunk);
    });
}

#define UPDATE(Rule, T)                                                                                              \
    EXPORTED void gpurnn_##Rule##_##T(                                                                               \
        const Team* team, const int64_t* table, int64_t arrays, double weight_decay, const Rule<T>* rule) {          \
        update<Rule, T>(*team, table, arrays, weight_decay, *rule);                                                  \
    }

EXPORTED void gpurnn_squares_float(
    const Team* team, const int64_t* table, int64_t arrays, double scale, double* sums) {
    chunk_squares<float>(*team, table, arrays, scale, sums);
}
EXPORTED void gpurnn_squares_double(
    const Team* team, const int64_t* table, int64_t arrays, double scale, double* sums) {
    chunk_squares<double>(*team, table, arrays, scale, sums);
}
