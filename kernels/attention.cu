// Attention of decoder steps to encoder states.
//
//   query (T, B, A), keys (S, B, A), values (S, B, E), v (A) or null, lengths (B) or null, weights (T, B, S)
//
// Score e_ts = v . tanh(query_t + keys_s) where `additive`, else scale query_t . keys_s. Past a row's length nothing is
// read and all weights are zero.
#include "intrinsics.cuh"

constexpr int threads = 256, warps = threads / 32;

template <typename Real>
__device__ __forceinline__ Real sum_over_warp(Real x) {
    for (int step = 16; step; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
    return x;
}

template <typename Real>
__device__ __forceinline__ Real max_over_warp(Real x) {
    for (int step = 16; step; step /= 2) x = max(x, __shfl_xor_sync(0xffffffffu, x, step));
    return x;
}

__device__ inline int positions(const int* lengths, int b, int S) {
    return lengths ? max(0, min(lengths[b], S)) : S;
}

// Scores, mask, softmax and context of `tile` steps of a row at once, so that each key and value is read once for all of
// them. Block (i, b). The scores are in shared memory, tile * S numbers, if `in_shared`, else in `weights`, where the
// weights take their place.
template <typename Real, bool additive, int tile>
__global__ void attend(
    const Real* query, const Real* keys, const Real* values, const Real* v, const int* lengths, Real* context,
    Real* weights, int T, int B, int S, int A, int E, Real scale, bool in_shared) {
    DYNAMIC_SHARED(Real, memory);
    __shared__ Real parts[tile * threads];
    const int t0 = blockIdx.x * tile, b = blockIdx.y, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int steps = min(tile, T - t0), length = positions(lengths, b, S);
    Real* const scores = in_shared ? memory : weights + ((long long)t0 * B + b) * S;
    const long long score_stride = in_shared ? S : (long long)B * S;  // from step to step

    // A warp a position, its lanes sharing out A.
    for (int s = warp; s < length; s += warps) {
        const Real* const key = keys + ((long long)s * B + b) * A;
        Real sums[tile] = {};
        for (int a = lane; a < A; a += 32) {
            const Real k = key[a];
#pragma unroll
            for (int i = 0; i < tile; ++i) {
                const Real q = query[((long long)(t0 + min(i, steps - 1)) * B + b) * A + a];
                sums[i] += additive ? v[a] * tanh(q + k) : q * k;
            }
        }
#pragma unroll
        for (int i = 0; i < tile; ++i) {
            const Real sum = sum_over_warp(sums[i]);
            if (lane == 0 && i < steps) scores[i * score_stride + s] = additive ? sum : scale * sum;
        }
    }
    __syncthreads();

    // A warp a step.
    if (warp < steps) {
        Real* const row = scores + warp * score_stride;
        Real* const out = weights + ((long long)(t0 + warp) * B + b) * S;
        Real highest = __int_as_float(0xff800000), sum = 0;
        for (int s = lane; s < length; s += 32) highest = max(highest, row[s]);
        highest = max_over_warp(highest);
        for (int s = lane; s < length; s += 32) sum += exp(row[s] - highest);
        sum = sum_over_warp(sum);
        for (int s = lane; s < length; s += 32) out[s] = row[s] = exp(row[s] - highest) / sum;
        for (int s = length + lane; s < S; s += 32) out[s] = 0;
    }
    __syncthreads();

    // A thread a column of the values; where they are few, several threads share out the positions of one.
    const int width = max(32, (E + 31) / 32 * 32), shares = width < threads ? threads / width : 1;
    const int share = width < threads ? threadIdx.x / width : 0, first = width < threads ? threadIdx.x % width : threadIdx.x;
    for (int e0 = 0; e0 < E; e0 += shares == 1 ? threads : width) {
        const int e = e0 + first;
        const bool active = e < E && share < shares;
        Real sums[tile] = {};
        if (active) {
            for (int s = share; s < length; s += shares) {
                const Real value = values[((long long)s * B + b) * E + e];
#pragma unroll
                for (int i = 0; i < tile; ++i) {
                    if (i < steps) sums[i] += scores[i * score_stride + s] * value;
                }
            }
        }
#pragma unroll
        for (int i = 0; i < tile; ++i) parts[i * threads + threadIdx.x] = sums[i];
        __syncthreads();
        if (active && share == 0) {
            for (int i = 0; i < steps; ++i) {
                Real sum = 0;
                for (int k = 0; k < shares; ++k) sum += parts[i * threads + k * width + first];
                context[((long long)(t0 + i) * B + b) * E + e] = sum;
            }
        }
        __syncthreads();
    }
}

// The gradients of the scores, to dscores (T, B, S), and of the query. dcontext and dweights may be null. Block (t, b).
template <typename Real, bool additive>
__global__ void attend_backward(
    const Real* query, const Real* keys, const Real* values, const Real* v, const int* lengths, const Real* weights,
    const Real* dcontext, const Real* dweights, Real* dscores, Real* dquery, int T, int B, int S, int A, int E,
    Real scale) {
    __shared__ Real sums[warps];
    const int t = blockIdx.x, b = blockIdx.y, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int length = positions(lengths, b, S);
    const long long row = (long long)t * B + b;
    const Real *const alpha = weights + row * S, *const d = dweights ? dweights + row * S : nullptr;
    Real* const de = dscores + row * S;

    Real mean = 0;  // of dalpha, under the weights: of this warp's positions
    for (int s = warp; s < length; s += warps) {
        Real dalpha = 0;
        if (dcontext) {
            const Real* const value = values + ((long long)s * B + b) * E;
            for (int e = lane; e < E; e += 32) dalpha += dcontext[row * E + e] * value[e];
            dalpha = sum_over_warp(dalpha);
        }
        if (d) dalpha += d[s];
        if (alpha[s] == 0) dalpha = 0;
        mean += alpha[s] * dalpha;
        if (lane == 0) de[s] = dalpha;
    }
    if (lane == 0) sums[warp] = mean;
    __syncthreads();
    mean = 0;
    for (int k = 0; k < warps; ++k) mean += sums[k];
    for (int s = threadIdx.x; s < S; s += threads) {
        de[s] = s < length ? (additive ? Real(1) : scale) * alpha[s] * (de[s] - mean) : Real(0);
    }
    __syncthreads();

    for (int a = threadIdx.x; a < A; a += threads) {
        const Real q = query[row * A + a];
        Real sum = 0;
        for (int s = 0; s < length; ++s) {
            const Real k = keys[((long long)s * B + b) * A + a];
            if (additive) {
                const Real f = tanh(q + k);
                sum += de[s] * v[a] * (1 - f * f);
            } else {
                sum += de[s] * k;
            }
        }
        dquery[row * A + a] = sum;
    }
}

// The gradients of keys and values, and dv (S, B, A), each position's part of that of v. Block (s, b).
template <typename Real, bool additive>
__global__ void attend_backward_source(
    const Real* query, const Real* keys, const Real* v, const int* lengths, const Real* weights, const Real* dcontext,
    const Real* dscores, Real* dkeys, Real* dvalues, Real* dv, int T, int B, int S, int A, int E) {
    const int s = blockIdx.x, b = blockIdx.y;
    const bool exists = s < positions(lengths, b, S);
    const long long source = (long long)s * B + b;
    for (int a = threadIdx.x; a < A; a += threads) {
        Real sum = 0, part = 0;
        if (exists) {
            const Real k = keys[source * A + a];
            for (int t = 0; t < T; ++t) {
                const long long row = (long long)t * B + b;
                const Real de = dscores[row * S + s], q = query[row * A + a];
                if (additive) {
                    const Real f = tanh(q + k);
                    sum += de * v[a] * (1 - f * f);
                    part += de * f;
                } else {
                    sum += de * q;
                }
            }
        }
        dkeys[source * A + a] = sum;
        if (additive) dv[source * A + a] = part;
    }
    for (int e = threadIdx.x; e < E; e += threads) {
        Real sum = 0;
        if (exists && dcontext) {
            for (int t = 0; t < T; ++t) {
                const long long row = (long long)t * B + b;
                sum += weights[row * S + s] * dcontext[row * E + e];
            }
        }
        dvalues[source * E + e] = sum;
    }
}
