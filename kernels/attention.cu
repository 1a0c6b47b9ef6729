// Attention of decoder steps to encoder states.
//
//   query (T, B, A), keys (S, B, A), values (S, B, E), v (A) or null, lengths (B) or null, weights (T, B, S)
//
// Score e_ts = v . tanh(query_t + keys_s) where `additive`, else scale query_t . keys_s. Past a row's length nothing is
// read and all weights are zero.
//
// A block works on `tile` steps (or source positions) of one row b at once, so that whatever it loads of the other side
// serves all of them; the blocks of a row follow one another, so that they meet in the L2 cache. Grids have one
// dimension, since the others end at 65535. Every sum has one order, which the sizes alone decide.
#include "intrinsics.cuh"

constexpr int threads = 256, warps = threads / 32;  // no fewer warps than `tile`

template <typename Real>
__device__ __forceinline__ Real sum_over_warp(Real x) {
    for (int step = 16; step; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
    return x;
}

__device__ inline int positions(const int* lengths, int b, int S) {
    return lengths ? max(0, min(lengths[b], S)) : S;
}

// Calls take(i, j, x_i . y_j), or v . tanh(x_i + y_j) where `additive`, for i < tile and j < n; from `count` on, x_i is
// that of count - 1. x_i and y_j are `size` numbers, `stride` after the one before. A warp a j, its lanes sharing out
// those numbers, so that they read side by side; all of them call take, with the same sum.
template <bool additive, int tile, typename Real, typename Take>
__device__ __forceinline__ void products(
    const Real* x, int count, const Real* y, int n, const Real* v, long long stride, int size, Take take) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    for (int j = warp; j < n; j += warps) {
        Real sums[tile] = {};
        for (int a = lane; a < size; a += 32) {
            const Real y_j = y[j * stride + a];
#pragma unroll
            for (int i = 0; i < tile; ++i) {
                const Real x_i = x[min(i, count - 1) * stride + a];
                sums[i] += additive ? v[a] * tanh(x_i + y_j) : x_i * y_j;
            }
        }
#pragma unroll
        for (int i = 0; i < tile; ++i) take(i, j, sum_over_warp(sums[i]));
    }
}

// out_i = sum_j w_ij x_j over j < n, for i < count. Where `additive`, its transpose through the tanh instead:
// out_i = v * sum_j w_ij (1 - f_ij^2) with f_ij = tanh(x_j + y_i), and dv = sum_ij w_ij f_ij, if not null.
// From `count` to `rows` out is zero and y is not read. w_ij is at weights[i * from_i + j * from_j].
//
// A thread a column; where they are few, several threads share out the j of one and `parts`, shared memory of
// tile + additive numbers a thread, brings them together. The threads of a warp then share their j too, and so read
// neighbouring columns, and one weight for all.
template <bool additive, int tile, typename Real>
__device__ __forceinline__ void columns(
    const Real* weights, long long from_i, long long from_j, const Real* x, int n, const Real* y, int count,
    const Real* v, Real* out, int rows, Real* dv, long long stride, int size, Real* parts) {
    const int width = max(32, min(threads, (size + 31) / 32 * 32)), shares = threads / width;
    const int share = threadIdx.x / width, own = threadIdx.x % width;
    for (int first = 0; first < size; first += width) {
        const int c = first + own;
        const bool active = c < size && share < shares;
        Real sums[tile] = {}, part = 0;
        if (active) {
            Real y_i[tile];
#pragma unroll
            for (int i = 0; i < tile; ++i) y_i[i] = additive && i < count ? y[i * stride + c] : Real(0);
            for (int j = share; j < n; j += shares) {
                const Real x_j = x[j * stride + c];
#pragma unroll
                for (int i = 0; i < tile; ++i) {
                    if (i >= count) continue;
                    const Real w = weights[i * from_i + j * from_j];
                    if (additive) {
                        const Real f = tanh(x_j + y_i[i]);
                        sums[i] += w * (1 - f * f);
                        part += w * f;
                    } else {
                        sums[i] += w * x_j;
                    }
                }
            }
        }
        if (shares > 1) {  // and then all columns are in the first round
#pragma unroll
            for (int i = 0; i < tile; ++i) parts[i * threads + threadIdx.x] = sums[i];
            if (additive) parts[tile * threads + threadIdx.x] = part;
            __syncthreads();
            if (share == 0) {
                for (int k = 1; k < shares; ++k) {
#pragma unroll
                    for (int i = 0; i < tile; ++i) sums[i] += parts[i * threads + k * width + own];
                    if (additive) part += parts[tile * threads + k * width + own];
                }
            }
            __syncthreads();  // before another call writes parts
        }
        if (active && share == 0) {
#pragma unroll
            for (int i = 0; i < tile; ++i) {
                if (i < rows) out[i * stride + c] = additive ? v[c] * sums[i] : sums[i];
            }
            if (additive && dv) dv[c] = part;
        }
    }
}

// Scores, mask, softmax and context. The scores are in shared memory, tile * S numbers, if `in_shared`, else in
// `weights`, where the weights take their place.
template <typename Real, bool additive, int tile>
__global__ void attend(
    const Real* query, const Real* keys, const Real* values, const Real* v, const int* lengths, Real* context,
    Real* weights, int T, int B, int S, int A, int E, Real scale, bool in_shared) {
    DYNAMIC_SHARED(Real, memory);
    __shared__ Real parts[tile * threads];
    Real *const maxima = parts, *const totals = parts + tile * warps;
    const int tiles = (T - 1) / tile + 1, b = blockIdx.x / tiles, t0 = blockIdx.x % tiles * tile;
    const int steps = min(tile, T - t0), length = positions(lengths, b, S);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const long long row = (long long)t0 * B + b, next = (long long)B * S;
    Real *const out = weights + row * S, *const scores = in_shared ? memory : out;
    const long long next_score = in_shared ? S : next;

    // Lane i has step i's highest score of this warp's positions, and the sum of exp(score - highest), kept up to date so
    // that the scores need no pass of their own for it. It begins below all scores but -inf, which so has no weight.
    Real highest = sizeof(Real) == 4 ? -3.402823466e38 : -1.7976931348623157e308, sum_of_exps = 0;
    products<additive, tile>(
        query + row * A, steps, keys + (long long)b * A, length, v, (long long)B * A, A, [&](int i, int s, Real sum) {
            if (i != lane || i >= steps) return;
            const Real score = additive ? sum : scale * sum, above = score - highest;
            const Real ratio = exp(above > 0 ? -above : above);
            sum_of_exps = above > 0 ? sum_of_exps * ratio + 1 : sum_of_exps + ratio;
            highest = max(highest, score);
            scores[i * next_score + s] = score;
        });
    if (lane < tile) {
        maxima[lane * warps + warp] = highest;
        totals[lane * warps + warp] = sum_of_exps;
    }
    __syncthreads();

#pragma unroll
    for (int i = 0; i < tile; ++i) {
        Real total = 0;
        highest = maxima[i * warps];
        for (int k = 1; k < warps; ++k) highest = max(highest, maxima[i * warps + k]);
        for (int k = 0; k < warps; ++k) total += totals[i * warps + k] * exp(maxima[i * warps + k] - highest);
        for (int s = threadIdx.x; i < steps && s < S; s += threads) {
            Real weight = 0;
            if (s < length) weight = exp(scores[i * next_score + s] - highest) / total;
            if (in_shared) scores[i * next_score + s] = weight;
            out[i * next + s] = weight;
        }
    }
    __syncthreads();

    columns<false, tile>(
        scores, next_score, 1LL, values + (long long)b * E, length, (const Real*)nullptr, steps, (const Real*)nullptr,
        context + row * E, steps, (Real*)nullptr, (long long)B * E, E, parts);
}

// The gradients of the scores, to dscores (T, B, S), of the query, and each block's part of that of v, to dv
// (blocks, A). dcontext and dweights may be null. The gradients of the weights are in shared memory, tile * S numbers, if
// `in_shared`, else in `dscores`, where those of the scores take their place.
template <typename Real, bool additive, int tile>
__global__ void attend_backward(
    const Real* query, const Real* keys, const Real* values, const Real* v, const int* lengths, const Real* weights,
    const Real* dcontext, const Real* dweights, Real* dscores, Real* dquery, Real* dv, int T, int B, int S, int A,
    int E, Real scale, bool in_shared) {
    DYNAMIC_SHARED(Real, memory);
    __shared__ Real parts[(tile + additive) * threads];
    const int tiles = (T - 1) / tile + 1, b = blockIdx.x / tiles, t0 = blockIdx.x % tiles * tile;
    const int steps = min(tile, T - t0), length = positions(lengths, b, S);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const long long row = (long long)t0 * B + b, next = (long long)B * S;
    const Real *const alpha = weights + row * S, *const dalpha = dweights ? dweights + row * S : nullptr;
    Real *const out = dscores + row * S, *const de = in_shared ? memory : out;
    const long long next_de = in_shared ? S : next;

    // Lane i has the mean of step i's gradients under the weights: of this warp's positions, then of all. It is summed
    // from the gradients themselves and not as dcontext . context, so that it cancels where one weight is all but 1.
    Real mean = 0;
    products<false, tile>(
        dcontext ? dcontext + row * E : nullptr, steps, values + (long long)b * E, length, (const Real*)nullptr,
        (long long)B * E, dcontext ? E : 0, [&](int i, int s, Real d) {
            if (i != lane || i >= steps) return;
            const long long at = i * next + s;
            if (dalpha) d += dalpha[at];
            if (alpha[at] == 0) d = 0;  // whatever dweights holds there
            mean += alpha[at] * d;
            de[i * next_de + s] = d;
        });
    if (lane < tile) parts[lane * warps + warp] = mean;
    __syncthreads();
    for (int i = 0; i < steps; ++i) {
        mean = 0;
        for (int k = 0; k < warps; ++k) mean += parts[i * warps + k];
        for (int s = threadIdx.x; s < S; s += threads) {
            Real gradient = 0;
            if (s < length) gradient = (additive ? Real(1) : scale) * alpha[i * next + s] * (de[i * next_de + s] - mean);
            if (in_shared) de[i * next_de + s] = gradient;
            out[i * next + s] = gradient;
        }
    }
    __syncthreads();

    columns<additive, tile>(
        de, next_de, 1LL, keys + (long long)b * A, length, query + row * A, steps, v, dquery + row * A, steps,
        additive ? dv + (long long)blockIdx.x * A : nullptr, (long long)B * A, A, parts);
}

// The gradients of keys and values: sums over the steps. A block does a tile of source positions.
template <typename Real, bool additive, int tile>
__global__ void attend_backward_source(
    const Real* query, const Real* keys, const Real* v, const int* lengths, const Real* weights, const Real* dcontext,
    const Real* dscores, Real* dkeys, Real* dvalues, int T, int B, int S, int A, int E) {
    __shared__ Real parts[(tile + additive) * threads];
    const int tiles = (S - 1) / tile + 1, b = blockIdx.x / tiles, s0 = blockIdx.x % tiles * tile;
    const int rows = min(tile, S - s0), count = max(0, min(rows, positions(lengths, b, S) - s0));
    const long long source = (long long)s0 * B + b, pair = (long long)b * S + s0, next = (long long)B * S;
    columns<additive, tile>(
        dscores + pair, 1LL, next, query + (long long)b * A, count ? T : 0, keys + source * A, count, v,
        dkeys + source * A, rows, (Real*)nullptr, (long long)B * A, A, parts);
    columns<false, tile>(
        weights + pair, 1LL, next, dcontext ? dcontext + (long long)b * E : nullptr, count && dcontext ? T : 0,
        (const Real*)nullptr, count, (const Real*)nullptr, dvalues + source * E, rows, (Real*)nullptr,
        (long long)B * E, E, parts);
}
