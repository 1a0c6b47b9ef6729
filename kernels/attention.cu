// Attention of decoder steps to encoder states.
//
//   query (T, B, A), keys (S, B, A), values (S, B, E), v (A) or null, lengths (B) or null, weights (T, B, S)
//
// The score is e_ts = v . tanh(query_t + keys_s) if `additive`, else scale query_t . keys_s. Nothing is read past a row's
// length, where all weights are zero.
//
// A block computes `tile` steps (or source positions) of one row b at once and loads the other side once for all of them.
// The blocks of a row follow one another, so that they share that side in the L2 cache. Grids have one dimension, because
// the other two are limited to 65535. The order of every sum depends on the sizes alone.
//
// The weights and the gradients of the scores are of type Real: what reads them are these kernels.
#include "intrinsics.cuh"
#include "numbers.cuh"

constexpr int threads = 256, warps = threads / 32;  // no fewer warps than `tile`

template <typename Real>
__device__ __forceinline__ Real sum_over_warp(Real x) {
    for (int step = 16; step; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
    return x;
}

__device__ inline int positions(const int* lengths, int b, int S) {
    return lengths ? max(0, min(lengths[b], S)) : S;
}

// Calls take(i, j, x_i . y_j), or v . tanh(x_i + y_j) if `additive`, for i < tile and j < n. For i >= count, x_i is
// x_(count - 1). Each x_i and y_j has `size` numbers and begins `stride` numbers after the one before. Each warp takes one
// j at a time. Its lanes read neighbouring numbers, and all of them call take with the same sum.
template <bool additive, int tile, typename Real, typename Storage, typename Take>
__device__ __forceinline__ void products(
    const Storage* x, int count, const Storage* y, int n, const Storage* v, long long stride, int size, Take take) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    for (int j = warp; j < n; j += warps) {
        Real sums[tile] = {};
        for (int a = lane; a < size; a += 32) {
            const Real y_j = y[j * stride + a];
#pragma unroll
            for (int i = 0; i < tile; ++i) {
                const Real x_i = x[min(i, count - 1) * stride + a];
                sums[i] += additive ? Real(v[a]) * tanh(x_i + y_j) : x_i * y_j;
            }
        }
#pragma unroll
        for (int i = 0; i < tile; ++i) take(i, j, sum_over_warp(sums[i]));
    }
}

// out_i = sum_j w_ij x_j over j < n, for i < count. If `additive`, the transpose through the tanh instead:
// out_i = v * sum_j w_ij (1 - f_ij^2) with f_ij = tanh(x_j + y_i), and dv = sum_ij w_ij f_ij, if dv is not null.
// For i from `count` to `rows`, out_i is zero and y_i is not read. w_ij is at weights[i * from_i + j * from_j].
//
// Each thread sums one column. If there are few columns, several threads divide the j of one column among them and add
// up their sums in `parts`, shared memory of tile + additive numbers for each thread. The threads of a warp have the same
// j, so they read neighbouring columns and a single weight.
template <bool additive, int tile, typename Real, typename Storage>
__device__ __forceinline__ void columns(
    const Real* weights, long long from_i, long long from_j, const Storage* x, int n, const Storage* y, int count,
    const Storage* v, Storage* out, int rows, Real* dv, long long stride, int size, Real* parts) {
    const int width = max(32, min(threads, (size + 31) / 32 * 32)), shares = threads / width;
    const int share = threadIdx.x / width, own = threadIdx.x % width;
    for (int first = 0; first < size; first += width) {
        const int c = first + own;
        const bool active = c < size && share < shares;
        Real sums[tile] = {}, part = 0;
        if (active) {
            Real y_i[tile];
#pragma unroll
            for (int i = 0; i < tile; ++i) y_i[i] = additive && i < count ? Real(y[i * stride + c]) : Real(0);
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
        if (shares > 1) {  // then there is one round, with all columns
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
                if (i < rows) out[i * stride + c] = Storage(additive ? Real(v[c]) * sums[i] : sums[i]);
            }
            if (additive && dv) dv[c] = part;
        }
    }
}

// Scores, mask, softmax and context. If `in_shared`, the scores are in shared memory, tile * S numbers. Otherwise they
// are in `weights`, and the weights replace them.
template <typename Storage, typename Real, bool additive, int tile>
__global__ void attend(
    const Storage* query, const Storage* keys, const Storage* values, const Storage* v, const int* lengths,
    Storage* context, Real* weights, int T, int B, int S, int A, int E, Real scale, bool in_shared) {
    DYNAMIC_SHARED(Real, memory);
    __shared__ Real parts[tile * threads];
    Real *const maxima = parts, *const totals = parts + tile * warps;
    const int tiles = (T - 1) / tile + 1, b = blockIdx.x / tiles, t0 = blockIdx.x % tiles * tile;
    const int steps = min(tile, T - t0), length = positions(lengths, b, S);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const long long row = (long long)t0 * B + b, next = (long long)B * S;
    Real *const out = weights + row * S, *const scores = in_shared ? memory : out;
    const long long next_score = in_shared ? S : next;

    // Lane i has the highest score of step i over this warp's positions, and the sum of exp(score - highest). Each new
    // score updates both, which saves a pass over the scores. The first value is below every score except -inf, whose
    // weight is therefore zero.
    Real highest = -Limits<Real>::largest, sum_of_exps = 0;
    products<additive, tile, Real>(
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
        scores, next_score, 1LL, values + (long long)b * E, length, (const Storage*)nullptr, steps, (const Storage*)nullptr,
        context + row * E, steps, (Real*)nullptr, (long long)B * E, E, parts);
}

// The gradients of the scores, dscores (T, B, S), and of the query, and each block's part of the gradient of v, dv
// (blocks, A). dcontext and dweights may be null. If `in_shared`, the gradients of the weights are in shared memory,
// tile * S numbers. Otherwise they are in `dscores`, and the gradients of the scores replace them.
template <typename Storage, typename Real, bool additive, int tile>
__global__ void attend_backward(
    const Storage* query, const Storage* keys, const Storage* values, const Storage* v, const int* lengths,
    const Real* weights, const Storage* dcontext, const Storage* dweights, Real* dscores, Storage* dquery, Real* dv,
    int T, int B, int S, int A, int E, Real scale, bool in_shared) {
    DYNAMIC_SHARED(Real, memory);
    __shared__ Real parts[(tile + additive) * threads];
    const int tiles = (T - 1) / tile + 1, b = blockIdx.x / tiles, t0 = blockIdx.x % tiles * tile;
    const int steps = min(tile, T - t0), length = positions(lengths, b, S);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const long long row = (long long)t0 * B + b, next = (long long)B * S;
    const Real* const alpha = weights + row * S;
    const Storage* const dalpha = dweights ? dweights + row * S : nullptr;
    Real *const out = dscores + row * S, *const de = in_shared ? memory : out;
    const long long next_de = in_shared ? S : next;

    // Lane i has the mean of step i's gradients under the weights: over this warp's positions, then over all. It is the
    // sum of the gradients themselves and not dcontext . context, so that it cancels where one weight is nearly 1.
    Real mean = 0;
    products<false, tile, Real>(
        dcontext ? dcontext + row * E : nullptr, steps, values + (long long)b * E, length, (const Storage*)nullptr,
        (long long)B * E, dcontext ? E : 0, [&](int i, int s, Real d) {
            if (i != lane || i >= steps) return;
            const long long at = i * next + s;
            if (dalpha) d += Real(dalpha[at]);
            if (alpha[at] == 0) d = 0;  // whatever dweights is there
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

// The gradients of keys and values: sums over the steps. Each block computes a tile of source positions.
template <typename Storage, typename Real, bool additive, int tile>
__global__ void attend_backward_source(
    const Storage* query, const Storage* keys, const Storage* v, const int* lengths, const Real* weights,
    const Storage* dcontext, const Real* dscores, Storage* dkeys, Storage* dvalues, int T, int B, int S, int A, int E) {
    __shared__ Real parts[(tile + additive) * threads];
    const int tiles = (S - 1) / tile + 1, b = blockIdx.x / tiles, s0 = blockIdx.x % tiles * tile;
    const int rows = min(tile, S - s0), count = max(0, min(rows, positions(lengths, b, S) - s0));
    const long long source = (long long)s0 * B + b, pair = (long long)b * S + s0, next = (long long)B * S;
    columns<additive, tile>(
        dscores + pair, 1LL, next, query + (long long)b * A, count ? T : 0, keys + source * A, count, v,
        dkeys + source * A, rows, (Real*)nullptr, (long long)B * A, A, parts);
    columns<false, tile>(
        weights + pair, 1LL, next, dcontext ? dcontext + (long long)b * E : nullptr, count && dcontext ? T : 0,
        (const Storage*)nullptr, count, (const Storage*)nullptr, dvalues + source * E, rows, (Real*)nullptr,
        (long long)B * E, E, parts);
}
