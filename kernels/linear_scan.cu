// h_t = a_t h_{t-1} + b_t for many columns (row of the batch and unit) at once, by chunks of time.
//
// What a chunk of steps does to the state that enters it is a map, state -> product state + offset. Three passes:
// chunk_maps finds the map of each chunk, chunk_states goes from chunk to chunk and finds the state that enters each,
// and scan_forward or scan_backward runs the loop itself within each chunk, from that state. So a state has passed
// through as many rounded maps as there are chunks before it, and through the loop.
//
// On the way back the steps are taken from the last to the first. The state is what reaches h_{t-1} from later steps,
// r_{t-1} = conj(a_t) db_t with db_t = dh_t + r_t; it ends as dh0.
//
// A thread takes one column through one chunk, neighbouring threads neighbouring columns of the same chunk. Value is a
// number or a pair of the Real that arrays hold. a is (T, columns), or (N) where it is the same at every step and in
// every row: then a_columns is N and a_stride is 0, else both are `columns`.
#include "complex.cuh"

template <typename Value, typename Real>
__device__ const Value* as(const Real* x) {
    return reinterpret_cast<const Value*>(x);
}
template <typename Value, typename Real>
__device__ Value* as(Real* x) {
    return reinterpret_cast<Value*>(x);
}

// One column of the factors a and of the values b or dh, step s in the order in which they are taken.
template <typename Value, bool backward>
struct Column {
    const Value *a, *values;
    long long T, a_stride, stride;

    __device__ Column(
        const Value* a, const Value* values, long long T, long long columns, long long a_columns, long long a_stride,
        long long column)
        : a(a + column % a_columns), values(values + column), T(T), a_stride(a_stride), stride(columns) {}

    __device__ long long time(long long s) const { return backward ? T - 1 - s : s; }
    __device__ Value factor(long long s) const {
        const Value factor = a[time(s) * a_stride];
        return backward ? conj(factor) : factor;
    }
    __device__ Value value(long long s) const { return values[time(s) * stride]; }
    __device__ Value next(long long s, Value state) const {
        return backward ? factor(s) * (state + value(s)) : factor(s) * state + value(s);
    }
};

// Below this, a product may have lost digits to underflow: in one part of a complex number, or to a GPU's zeros.
template <typename Real>
constexpr Real product_floor = sizeof(Real) == 4 ? Real(0x1p-103) : Real(0x1p-970);
template <typename Real>
constexpr Real smallest_normal = sizeof(Real) == 4 ? Real(0x1p-126) : Real(0x1p-1022);
template <typename Real>
constexpr Real most = sizeof(Real) == 4 ? Real(3.402823466e38) : Real(1.7976931348623157e308);
template <typename Real>
constexpr Real epsilon = sizeof(Real) == 4 ? Real(0x1p-23) : Real(0x1p-52);

// The maps (chunks - 1, columns) of all chunks but the last, which nothing comes after. Of the products from the first
// step of a chunk to each of its steps, peaks (chunks - 1, columns) has a bound of the largest. Where one of them was
// below the floor, losses (chunks - 1, columns) has a bound of what the last of them lacks, else 0.
template <typename Value, typename Real, bool backward>
__global__ void chunk_maps(
    const Real* __restrict__ a, const Real* __restrict__ values, Real* __restrict__ products, Real* __restrict__ offsets,
    Real* __restrict__ peaks, Real* __restrict__ losses, long long T, long long columns, long long a_columns,
    long long a_stride, long long length, long long maps) {
    const long long k = (long long)blockIdx.x * blockDim.x + threadIdx.x, chunk = k / columns;
    if (chunk >= maps) return;
    const Column<Value, backward> column(as<Value>(a), as<Value>(values), T, columns, a_columns, a_stride, k % columns);
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
    as<Value>(products)[k] = product;
    as<Value>(offsets)[k] = offset;
    peaks[k] = peak;
    losses[k] = fell ? bound : Real(0);
}

// From `initial` (columns), null for zero, through the maps: the states (chunks - 1, columns) that enter the second
// chunk and those after it. A thread a column.
//
// A product may overflow or underflow where the states do not, because of the state that it multiplies, and the states
// may overflow where no product does. So where that is possible the chunk's own steps are taken instead, unless what
// underflow took is less than a rounding of the state. Infinities and NaN then come about only where the loop has them.
// A NaN stays one without that.
template <typename Value, typename Real, bool backward>
__global__ void chunk_states(
    const Real* __restrict__ a, const Real* __restrict__ values, const Real* __restrict__ initial,
    const Real* __restrict__ products, const Real* __restrict__ offsets, const Real* __restrict__ peaks,
    const Real* __restrict__ losses, Real* __restrict__ states, long long T, long long columns, long long a_columns,
    long long a_stride, long long length, long long maps) {
    constexpr int batch = 4;  // maps loaded together, so that their way from memory overlaps
    const long long k = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (k >= columns) return;
    const Column<Value, backward> column(as<Value>(a), as<Value>(values), T, columns, a_columns, a_stride, k);
    Value state(0);
    if (initial) state = as<Value>(initial)[k];
    for (long long first = 0; first < maps; first += batch) {
        Value product[batch], offset[batch];
        Real peak[batch], loss[batch];
#pragma unroll
        for (int i = 0; i < batch; ++i) {
            const long long map = first + i < maps ? first + i : maps - 1;
            product[i] = as<Value>(products)[map * columns + k];
            offset[i] = as<Value>(offsets)[map * columns + k];
            peak[i] = peaks[map * columns + k];
            loss[i] = losses[map * columns + k];
        }
#pragma unroll
        for (int i = 0; i < batch; ++i) {
            const long long chunk = first + i;
            if (chunk < maps) {
                Value next = product[i] * state + offset[i];
                const Real size = modulus(state), lost = loss[i] * size;
                const bool holds = is_finite(next) && size * peak[i] <= most<Real> &&
                    (lost <= smallest_normal<Real> || lost <= epsilon<Real> * modulus(next));
                if (!holds && !is_nan(state)) {
                    next = state;
                    for (long long s = chunk * length; s < (chunk + 1) * length; ++s) next = column.next(s, next);
                }
                state = next;
                as<Value>(states)[chunk * columns + k] = state;
            }
        }
    }
}

// h (T, columns) from h0 (columns), b and the states that enter the chunks.
template <typename Value, typename Real>
__global__ void scan_forward(
    const Real* __restrict__ a, const Real* __restrict__ b, const Real* __restrict__ h0, const Real* __restrict__ states,
    Real* __restrict__ h, long long T, long long columns, long long a_columns, long long a_stride, long long length) {
    const long long k = (long long)blockIdx.x * blockDim.x + threadIdx.x, begin = k / columns * length;
    if (begin >= T) return;
    const Column<Value, false> column(as<Value>(a), as<Value>(b), T, columns, a_columns, a_stride, k % columns);
    const long long end = begin + length < T ? begin + length : T;
    Value state = k < columns ? as<Value>(h0)[k] : as<Value>(states)[k - columns];
#pragma unroll 4
    for (long long s = begin; s < end; ++s) {
        state = column.next(s, state);
        as<Value>(h)[s * columns + k % columns] = state;
    }
}

// The gradients from dh, h, h0 and the states that enter the chunks: db (T, columns), dh0 (columns), and da (T, columns)
// or, where a_stride is 0, the sum of each chunk's part of it (chunks, columns).
template <typename Value, typename Real>
__global__ void scan_backward(
    const Real* __restrict__ a, const Real* __restrict__ dh, const Real* __restrict__ h, const Real* __restrict__ h0,
    const Real* __restrict__ states, Real* __restrict__ da, Real* __restrict__ db, Real* __restrict__ dh0, long long T,
    long long columns, long long a_columns, long long a_stride, long long length) {
    const long long k = (long long)blockIdx.x * blockDim.x + threadIdx.x, begin = k / columns * length;
    if (begin >= T) return;
    const Column<Value, true> column(as<Value>(a), as<Value>(dh), T, columns, a_columns, a_stride, k % columns);
    const long long end = begin + length < T ? begin + length : T;
    Value state(0), sum(0);
    if (k >= columns) state = as<Value>(states)[k - columns];
#pragma unroll 4
    for (long long s = begin; s < end; ++s) {
        const long long t = column.time(s), here = t * columns + k % columns;
        const Value before = t > 0 ? as<Value>(h)[here - columns] : as<Value>(h0)[here];
        const Value g = state + column.value(s), part = g * conj(before);
        as<Value>(db)[here] = g;
        if (a_stride) {
            as<Value>(da)[here] = part;
        } else {
            sum = sum + part;
        }
        state = column.factor(s) * g;
    }
    if (!a_stride) as<Value>(da)[k] = sum;
    if (end == T) as<Value>(dh0)[k % columns] = state;
}
