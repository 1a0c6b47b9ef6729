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
// A thread computes one column of one chunk, and neighbouring threads neighbouring columns of the same chunk. Arrays are
// of real numbers, which are the numbers themselves (Number is Single) or the pairs of complex ones (Number is Complex).
// a is (T, columns), or (N) if it is the same at every step and in every row: then a_columns is N and a_stride is 0, else
// both are `columns`.
#include "complex.cuh"
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

// One column of the factors a and of the values b or dh; step s counts in the order of the pass.
template <typename Value, typename Stored, bool backward>
struct Column {
    const Stored *a, *values;
    long long T, a_stride, stride;

    __device__ Column(
        const Stored* a, const Stored* values, long long T, long long columns, long long a_columns, long long a_stride,
        long long column)
        : a(a + column % a_columns), values(values + column), T(T), a_stride(a_stride), stride(columns) {}

    __device__ long long time(long long s) const { return backward ? T - 1 - s : s; }
    __device__ Value factor(long long s) const {
        const Value factor(a[time(s) * a_stride]);
        return backward ? conj(factor) : factor;
    }
    __device__ Value value(long long s) const { return Value(values[time(s) * stride]); }
    __device__ Value next(long long s, Value state) const {
        return backward ? factor(s) * (state + value(s)) : factor(s) * state + value(s);
    }
};

// Below this, a product may have lost digits: one part of a complex number underflows, or the GPU flushes it to zero.
template <typename Real>
constexpr Real product_floor = Limits<Real>::smallest_normal / Limits<Real>::epsilon;

// The maps (chunks - 1, columns) of all chunks except the last, which no chunk follows. Of the products from the first
// step of a chunk to each of its steps, peaks (chunks - 1, columns) has a bound of the largest. If one of them was below
// the floor, losses (chunks - 1, columns) has a bound of what the last of them lost, else 0.
template <template <typename> class Number, typename Storage, typename Real, bool backward>
__global__ void chunk_maps(
    const Storage* __restrict__ a, const Storage* __restrict__ values, Real* __restrict__ products,
    Real* __restrict__ offsets, Real* __restrict__ peaks, Real* __restrict__ losses, long long T, long long columns,
    long long a_columns, long long a_stride, long long length, long long maps) {
    using Value = Number<Real>;
    const long long k = (long long)blockIdx.x * blockDim.x + threadIdx.x, chunk = k / columns;
    if (chunk >= maps) return;
    const Column<Value, Number<Storage>, backward> column(
        as<Number>(a), as<Number>(values), T, columns, a_columns, a_stride, k % columns);
    Value product(1), offset(0);
    Real bound = 1, peak = 1;  // bound: of the product's modulus, and never below the floor
    bool fell = false;
#pragma unroll 4
    for (long long s = chunk * length; s < (chunk + 1) * length; ++s) {
        const Value factor = column.factor(s);
        offset = column.next(s, offset);
        product = factor * product;
        bound *= modulus(factor);
        if (!(bound > product_floor<Real>)) {
            bound = product_floor<Real>;
            fell = true;
        }
        if (bound > peak) peak = bound;
    }
    as<Number>(products)[k] = product;
    as<Number>(offsets)[k] = offset;
    peaks[k] = peak;
    losses[k] = fell ? bound : Real(0);
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
    const Column<Value, Number<Storage>, backward> column(
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
                    for (long long s = chunk * length; s < (chunk + 1) * length; ++s) next = column.next(s, next);
                }
                state = next;
                as<Number>(states)[chunk * columns + k] = state;
            }
        }
    }
}

// h (T, columns) from h0 (columns), b and the states that enter the chunks.
template <template <typename> class Number, typename Storage, typename Real>
__global__ void scan_forward(
    const Storage* __restrict__ a, const Storage* __restrict__ b, const Storage* __restrict__ h0,
    const Real* __restrict__ states, Storage* __restrict__ h, long long T, long long columns, long long a_columns,
    long long a_stride, long long length) {
    using Value = Number<Real>;
    const long long k = (long long)blockIdx.x * blockDim.x + threadIdx.x, begin = k / columns * length;
    if (begin >= T) return;
    const Column<Value, Number<Storage>, false> column(
        as<Number>(a), as<Number>(b), T, columns, a_columns, a_stride, k % columns);
    const long long end = begin + length < T ? begin + length : T;
    Value state = k < columns ? Value(as<Number>(h0)[k]) : as<Number>(states)[k - columns];
#pragma unroll 4
    for (long long s = begin; s < end; ++s) {
        state = column.next(s, state);
        as<Number>(h)[s * columns + k % columns] = Number<Storage>(state);
    }
}

// The gradients from dh, h, h0 and the states that enter the chunks: db (T, columns), dh0 (columns), and da (T, columns)
// or, if a_stride is 0, the sum of each chunk's part of it (chunks, columns).
template <template <typename> class Number, typename Storage, typename Real>
__global__ void scan_backward(
    const Storage* __restrict__ a, const Storage* __restrict__ dh, const Storage* __restrict__ h,
    const Storage* __restrict__ h0, const Real* __restrict__ states, Real* __restrict__ da, Storage* __restrict__ db,
    Storage* __restrict__ dh0, long long T, long long columns, long long a_columns, long long a_stride,
    long long length) {
    using Value = Number<Real>;
    const long long k = (long long)blockIdx.x * blockDim.x + threadIdx.x, begin = k / columns * length;
    if (begin >= T) return;
    const Column<Value, Number<Storage>, true> column(
        as<Number>(a), as<Number>(dh), T, columns, a_columns, a_stride, k % columns);
    const long long end = begin + length < T ? begin + length : T;
    Value state(0), sum(0);
    if (k >= columns) state = as<Number>(states)[k - columns];
#pragma unroll 4
    for (long long s = begin; s < end; ++s) {
        const long long t = column.time(s), here = t * columns + k % columns;
        const Value before(t > 0 ? as<Number>(h)[here - columns] : as<Number>(h0)[here]);
        const Value g = state + column.value(s), part = g * conj(before);
        as<Number>(db)[here] = Number<Storage>(g);
        if (a_stride) {
            as<Number>(da)[here] = part;
        } else {
            sum = sum + part;
        }
        state = column.factor(s) * g;
    }
    if (!a_stride) as<Number>(da)[k] = sum;
    if (end == T) as<Number>(dh0)[k % columns] = Number<Storage>(state);
}
