// h_t = a_t h_{t-1} + b_t for many columns (row of the batch and unit) at once, by chunks of time.
//
// A chunk of steps maps the state that enters it to product * state + offset. There are three passes: chunk_maps computes
// the map of each chunk, chunk_states computes the state that enters each chunk, from one chunk to the next, and
// scan_forward or scan_backward runs the loop itself within each chunk, from that state. So a state has passed through
// one rounded map for each chunk before it, and through the loop.
//
// The backward pass takes the steps from the last to the first. Its state is the part of the gradient of h_{t-1} that
// comes from later steps, r_{t-1} = conj(a_t) db_t with db_t = dh_t + r_t; the last one is dh0.
//
// A thread computes `width` columns of one chunk, which it loads and stores as packets, and neighbouring threads
// neighbouring columns of the same chunk. All loads of some steps precede their stores, which the compiler could not
// move past one another. Where columns cannot be taken together, width is 1. Arrays are of real numbers, which are the numbers themselves (Number is Single) or the pairs of complex ones (Number is Complex).
// a is (T, columns), or (N) if it is the same at every step and in every row: then a_columns is N and a_stride is 0, else
// both are `columns`.
#include "complex.cuh"
#include "intrinsics.cuh"
#include "numbers.cuh"

template <typename Real>
using Single = Real;

template <template <typename> class Number, typename Real>
__device__ const Number<Real>* as(const Real* x) {
    return reinterpret_cast<const Number<Real>*>(x);
}
template <template <typename> class Number, typename Real>
__device__ Number<Real>* as(Real* x) {
    return reinterpret_cast<Number<Real>*>(x);
}

// Some columns of the factors a and of the values b or dh; step s counts in the order of the pass.
template <typename Value, typename Stored, bool backward, int width>
struct Columns {
    const Stored *a, *values;
    long long T, a_stride, stride;

    __device__ Columns(
        const Stored* a, const Stored* values, long long T, long long columns, long long a_columns, long long a_stride,
        long long column)
        : a(a + column % a_columns), values(values + column), T(T), a_stride(a_stride), stride(columns) {}

    __device__ long long time(long long s) const { return backward ? T - 1 - s : s; }
    __device__ Packet<Stored, width> load_factors(long long s) const { return load_packet<width>(a + time(s) * a_stride); }
    __device__ Packet<Stored, width> load_values(long long s) const { return load_packet<width>(values + time(s) * stride); }
    __device__ static Value factor(Stored stored) { return backward ? conj(Value(stored)) : Value(stored); }
    __device__ static Value next(Value factor, Value value, Value state) {
        return backward ? factor * (state + value) : factor * state + value;
    }
};

// Calls `steps(s, count)` for the steps from `begin` to `end`: for several at a time, and one by one for those left.
template <class Steps>
__device__ __forceinline__ void in_batches(long long begin, long long end, Steps steps) {
    constexpr int batch = 4;
    long long s = begin;
    for (; s + batch <= end; s += batch) steps(s, Constant<batch>());
#pragma unroll 1
    for (; s < end; ++s) steps(s, Constant<1>());
}

// Below this, a product may have lost digits: one part of a complex number underflows, or the GPU flushes it to zero.
template <typename Real>
constexpr Real product_floor = Limits<Real>::smallest_normal / Limits<Real>::epsilon;

// The maps (chunks - 1, columns) of all chunks except the last, which no chunk follows. Of the products from the first
// step of a chunk to each of its steps, peaks (chunks - 1, columns) has a bound of the largest. If one of them was below
// the floor, losses (chunks - 1, columns) has a bound of what the last of them lost, else 0.
template <template <typename> class Number, typename Storage, typename Real, bool backward, int width>
__global__ void chunk_maps(
    const Storage* __restrict__ a, const Storage* __restrict__ values, Real* __restrict__ products,
    Real* __restrict__ offsets, Real* __restrict__ peaks, Real* __restrict__ losses, long long T, long long columns,
    long long a_columns, long long a_stride, long long length, long long maps) {
    using Value = Number<Real>;
    using Stored = Number<Storage>;
    const long long k = ((long long)blockIdx.x * blockDim.x + threadIdx.x) * width, chunk = k / columns;
    if (chunk >= maps) return;
    const Columns<Value, Stored, backward, width> own(
        as<Number>(a), as<Number>(values), T, columns, a_columns, a_stride, k % columns);
    Packet<Value, width> product, offset;
    Packet<Real, width> bound, peak, loss;  // bound: of the product's modulus, and never below the floor
    bool fell[width];
#pragma unroll
    for (int i = 0; i < width; ++i) {
        product.at[i] = Value(1);
        offset.at[i] = Value(0);
        bound.at[i] = peak.at[i] = 1;
        fell[i] = false;
    }
    in_batches(chunk * length, (chunk + 1) * length, [&](long long s, auto count) {
        constexpr int n = count.value;
        Packet<Stored, width> loaded[n], added[n];
#pragma unroll
        for (int j = 0; j < n; ++j) {
            loaded[j] = own.load_factors(s + j);
            added[j] = own.load_values(s + j);
        }
#pragma unroll
        for (int j = 0; j < n; ++j) {
#pragma unroll
            for (int i = 0; i < width; ++i) {
                const Value factor = own.factor(loaded[j].at[i]);
                offset.at[i] = own.next(factor, Value(added[j].at[i]), offset.at[i]);
                product.at[i] = factor * product.at[i];
                bound.at[i] *= modulus(factor);
                if (!(bound.at[i] > product_floor<Real>)) {
                    bound.at[i] = product_floor<Real>;
                    fell[i] = true;
                }
                if (bound.at[i] > peak.at[i]) peak.at[i] = bound.at[i];
            }
        }
    });
#pragma unroll
    for (int i = 0; i < width; ++i) loss.at[i] = fell[i] ? bound.at[i] : Real(0);
    store_packet(as<Number>(products) + k, product);
    store_packet(as<Number>(offsets) + k, offset);
    store_packet(peaks + k, peak);
    store_packet(losses + k, loss);
}

// The maps applied one after another, from `initial` (columns), null for zero: the states (chunks - 1, columns) that
// enter the second chunk and those after it. A thread computes one column.
//
// A product may overflow or underflow although no state does, and a state may overflow although no product does. If that
// is possible, the chunk's own steps are taken instead, unless underflow lost less than a rounding of the state. So
// infinities and NaN arise only where the loop has them. A state that is NaN stays NaN without that.
template <template <typename> class Number, typename Storage, typename Real, bool backward>
__global__ void chunk_states(
    const Storage* __restrict__ a, const Storage* __restrict__ values, const Storage* __restrict__ initial,
    const Real* __restrict__ products, const Real* __restrict__ offsets, const Real* __restrict__ peaks,
    const Real* __restrict__ losses, Real* __restrict__ states, long long T, long long columns, long long a_columns,
    long long a_stride, long long length, long long maps) {
    using Value = Number<Real>;
    constexpr int batch = 4;  // maps loaded together, so that their loads overlap
    const long long k = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (k >= columns) return;
    const Columns<Value, Number<Storage>, backward, 1> column(
        as<Number>(a), as<Number>(values), T, columns, a_columns, a_stride, k);
    Value state(0);
    if (initial) state = Value(as<Number>(initial)[k]);
    for (long long first = 0; first < maps; first += batch) {
        Value product[batch], offset[batch];
        Real peak[batch], loss[batch];
#pragma unroll
        for (int i = 0; i < batch; ++i) {
            const long long map = first + i < maps ? first + i : maps - 1;
            product[i] = as<Number>(products)[map * columns + k];
            offset[i] = as<Number>(offsets)[map * columns + k];
            peak[i] = peaks[map * columns + k];
            loss[i] = losses[map * columns + k];
        }
#pragma unroll
        for (int i = 0; i < batch; ++i) {
            const long long chunk = first + i;
            if (chunk < maps) {
                Value next = product[i] * state + offset[i];
                const Real size = modulus(state), lost = loss[i] * size;
                const bool holds = is_finite(next) && size * peak[i] <= Limits<Real>::largest &&
                    (lost <= Limits<Real>::smallest_normal || lost <= Limits<Real>::epsilon * modulus(next));
                if (!holds && !is_nan(state)) {
                    next = state;
                    for (long long s = chunk * length; s < (chunk + 1) * length; ++s) {
                        const Value factor = column.factor(column.load_factors(s).at[0]);
                        next = column.next(factor, Value(column.load_values(s).at[0]), next);
                    }
                }
                state = next;
                as<Number>(states)[chunk * columns + k] = state;
            }
        }
    }
}

// h (T, columns) from h0 (columns), b and the states that enter the chunks. No pointer is __restrict__: the compiler would
// then move loads behind the stores of the steps before.
template <template <typename> class Number, typename Storage, typename Real, int width>
__global__ void scan_forward(
    const Storage* a, const Storage* b, const Storage* h0,
    const Real* states, Storage* h, long long T, long long columns, long long a_columns,
    long long a_stride, long long length) {
    using Value = Number<Real>;
    using Stored = Number<Storage>;
    const long long k = ((long long)blockIdx.x * blockDim.x + threadIdx.x) * width, begin = k / columns * length;
    if (begin >= T) return;
    const Columns<Value, Stored, false, width> own(
        as<Number>(a), as<Number>(b), T, columns, a_columns, a_stride, k % columns);
    Stored* const out = as<Number>(h) + k % columns;
    Packet<Value, width> state;
    if (k >= columns) {
        state = load_packet<width>(as<Number>(states) + k - columns);
    } else {
        const Packet<Stored, width> initial = load_packet<width>(as<Number>(h0) + k);
#pragma unroll
        for (int i = 0; i < width; ++i) state.at[i] = Value(initial.at[i]);
    }
    in_batches(begin, begin + length < T ? begin + length : T, [&](long long s, auto count) {
        constexpr int n = count.value;
        Packet<Stored, width> factors[n], values[n];
#pragma unroll
        for (int j = 0; j < n; ++j) {
            factors[j] = own.load_factors(s + j);
            values[j] = own.load_values(s + j);
        }
#pragma unroll
        for (int j = 0; j < n; ++j) {
#pragma unroll
            for (int i = 0; i < width; ++i) {
                state.at[i] = own.next(own.factor(factors[j].at[i]), Value(values[j].at[i]), state.at[i]);
                values[j].at[i] = Stored(state.at[i]);
            }
            store_packet(out + (s + j) * columns, values[j]);
        }
    });
}

// The gradients from dh, h, h0 and the states that enter the chunks: db (T, columns), dh0 (columns), and da (T, columns)
// or, if a_stride is 0, the sum of each chunk's part of it (chunks, columns).
template <template <typename> class Number, typename Storage, typename Real, int width>
__global__ void scan_backward(
    const Storage* a, const Storage* dh, const Storage* h,
    const Storage* h0, const Real* states, Real* da, Storage* db,
    Storage* dh0, long long T, long long columns, long long a_columns, long long a_stride,
    long long length) {
    using Value = Number<Real>;
    using Stored = Number<Storage>;
    const long long k = ((long long)blockIdx.x * blockDim.x + threadIdx.x) * width, begin = k / columns * length;
    if (begin >= T) return;
    const long long first = k % columns, end = begin + length < T ? begin + length : T;
    const Columns<Value, Stored, true, width> own(
        as<Number>(a), as<Number>(dh), T, columns, a_columns, a_stride, first);
    Packet<Value, width> state, sum;
#pragma unroll
    for (int i = 0; i < width; ++i) state.at[i] = sum.at[i] = Value(0);
    if (k >= columns) state = load_packet<width>(as<Number>(states) + k - columns);
    in_batches(begin, end, [&](long long s, auto count) {
        constexpr int n = count.value;
        Packet<Stored, width> factors[n], values[n], before[n];
#pragma unroll
        for (int j = 0; j < n; ++j) {
            const long long t = own.time(s + j);
            factors[j] = own.load_factors(s + j);
            values[j] = own.load_values(s + j);
            before[j] = load_packet<width>((t > 0 ? as<Number>(h) + (t - 1) * columns : as<Number>(h0)) + first);
        }
#pragma unroll
        for (int j = 0; j < n; ++j) {
            const long long here = own.time(s + j) * columns + first;
            Packet<Value, width> parts;
#pragma unroll
            for (int i = 0; i < width; ++i) {
                const Value g = state.at[i] + Value(values[j].at[i]);
                parts.at[i] = g * conj(Value(before[j].at[i]));
                sum.at[i] = sum.at[i] + parts.at[i];
                values[j].at[i] = Stored(g);
                state.at[i] = own.factor(factors[j].at[i]) * g;
            }
            store_packet(as<Number>(db) + here, values[j]);
            if (a_stride) store_packet(as<Number>(da) + here, parts);
        }
    });
    if (!a_stride) store_packet(as<Number>(da) + k, sum);
    if (end < T) return;
    Packet<Stored, width> last;
#pragma unroll
    for (int i = 0; i < width; ++i) last.at[i] = Stored(state.at[i]);
    store_packet(as<Number>(dh0) + first, last);
}
