// The recurrent product of one block: a few rows of the batch times the weight rows that the block owns.
#pragma once

// Sums each of V values over the lanes of a warp in V - 1 + log2(32 / V) shuffles, V a power of two up to 32: at each
// step two halves of the lanes trade halves of the values. Lane l gets the sum of value l / (32 / V). A recursion and no
// loop, since the compiler leaves an array in local memory whose indices it does not know.
template <int V, int half = 16, typename Real, int capacity>
__device__ __forceinline__ Real sum_over_lanes(Real (&values)[capacity], int lane) {
    if constexpr (half == 0) {
        return values[0];
    } else if constexpr (V == 1) {
        values[0] += __shfl_xor_sync(0xffffffffu, values[0], half);
        return sum_over_lanes<1, half / 2>(values, lane);
    } else {
        const bool upper = lane & half;
#pragma unroll
        for (int i = 0; i < V / 2; ++i) {
            const Real given = upper ? values[i] : values[i + V / 2];
            const Real kept = upper ? values[i + V / 2] : values[i];
            values[i] = kept + __shfl_xor_sync(0xffffffffu, given, half);
        }
        return sum_over_lanes<V / 2, half / 2>(values, lane);
    }
}

constexpr int tile_rows = 8;  // weight rows that a warp multiplies at once

// Weight rows in memory: row n begins at `first` + (n / units * apart + n % units) * length, so that the rows of a block's
// units of all gates count from 0 although other blocks' units are stored between them. The first `shortened` rows are
// stored without their first `held` columns; `shortened` is 0 unless the rows are stored one after another.
template <typename Storage, bool in_shared>
struct WeightRows {
    const Storage* first;
    int units, apart, length;
    int shortened = 0, held = 0;

    // From `first` to where column 0 of row n is, or would be.
    __device__ int offset(int n) const {
        if (n < shortened) return n * (length - held) - held;
        return (n / units * apart + n % units) * length - shortened * held;
    }
    __device__ Storage operator[](int offset) const { return in_shared ? first[offset] : __ldg(first + offset); }
};

// The part of the weights that a thread keeps in registers: a 32nd of the first 32 * chunks columns of the first
// tile_rows rows that its warp multiplies by.
template <typename Real, int chunks>
struct Held {
    Real values[tile_rows * chunks];

    // N rows of K columns in global memory.
    template <typename Storage, bool in_shared>
    __device__ Held(WeightRows<Storage, in_shared> weights, int N, int K) {
#pragma unroll
        for (int i = 0; i < tile_rows; ++i) {
            const int n = min(int(threadIdx.x) / 32 * tile_rows + i, N - 1);
#pragma unroll
            for (int chunk = 0; chunk < chunks; ++chunk) {
                const int k = chunk * 32 + threadIdx.x % 32;
                values[i * chunks + chunk] = k < K ? Real(weights[weights.offset(n) + k]) : Real(0);
            }
        }
    }
    __device__ Real at(int row, int chunk) const { return values[row * chunks + chunk]; }
};

template <typename Real>
struct Held<Real, 0> {
    template <typename Storage, bool in_shared>
    __device__ Held(WeightRows<Storage, in_shared>, int, int) {}
    __device__ Real at(int, int) const { return 0; }
};

// A tile of `multiply`, from weight row n0 and operand row r0 on.
template <int columns, int chunks, typename Storage, typename Real, bool in_shared>
__device__ __forceinline__ void multiply_one(
    const Storage* operand, int stride, int K, int R, const WeightRows<Storage, in_shared>& weights,
    const Held<Real, chunks>& held, int N, Real* sums, bool add, int n0, int r0) {
    constexpr int V = tile_rows * columns, replicas = 32 / V;
    const int lane = threadIdx.x % 32;
    int rows[tile_rows];
    const Storage* in[columns];
    // A tile that reaches over the edge multiplies the last row again and leaves it out in the end.
#pragma unroll
    for (int i = 0; i < tile_rows; ++i) rows[i] = weights.offset(min(n0 + i, N - 1));
#pragma unroll
    for (int c = 0; c < columns; ++c) in[c] = operand + min(r0 + c, R - 1) * stride;
    Real values[V] = {};
#pragma unroll
    for (int chunk = 0; chunk < chunks; ++chunk) {
        const int k = chunk * 32 + lane;
        if (k >= K) break;
#pragma unroll
        for (int c = 0; c < columns; ++c) {
            const Real x = in[c][k];
#pragma unroll
            for (int i = 0; i < tile_rows; ++i) values[i * columns + c] += held.at(i, chunk) * x;
        }
    }
    for (int k = chunks * 32 + lane; k < K; k += 32) {
        Real x[columns];
#pragma unroll
        for (int c = 0; c < columns; ++c) x[c] = in[c][k];
#pragma unroll
        for (int i = 0; i < tile_rows; ++i) {
            const Real w = weights[rows[i] + k];
#pragma unroll
            for (int c = 0; c < columns; ++c) values[i * columns + c] += w * x[c];
        }
    }
    const Real total = sum_over_lanes<V>(values, lane);
    const int value = lane / replicas, n = n0 + value / columns, r = r0 + value % columns;
    if (lane % replicas == 0 && n < N && r < R) {
        Real& sum = sums[r * N + n];
        sum = add ? sum + total : total;
    }
}

// sums[r * N + n] = (add ? sums[r * N + n] : 0) + sum over k < K of operand[r * stride + k] * weights[n][k], r < R.
//
// A warp computes tile_rows x `columns` of the sums at once, its lanes sharing out k: neighbouring lanes read
// neighbouring numbers (no bank conflicts, whole sectors), and each number read is used 8 or `columns` times.
// The order of the additions depends on K alone. `operand` and `sums` are in shared memory.
template <int columns, int chunks, typename Storage, typename Real, bool in_shared>
__device__ void multiply(
    const Storage* operand, int stride, int K, int R, const WeightRows<Storage, in_shared>& weights,
    const Held<Real, chunks>& held, int N, Real* sums, bool add) {
    const int warp = threadIdx.x / 32, warps = blockDim.x / 32;
    int row_tiles = (N + tile_rows - 1) / tile_rows, first_tile = 0;
    if constexpr (chunks > 0) {
        // The rows that a warp holds are its own at every step.
        if (warp < row_tiles) {
            for (int r0 = 0; r0 < R; r0 += columns) {
                multiply_one<columns>(operand, stride, K, R, weights, held, N, sums, add, warp * tile_rows, r0);
            }
        }
        first_tile = min(warps, row_tiles);
        row_tiles -= first_tile;
    }
    const Held<Real, 0> none(weights, N, K);
    const int tiles = row_tiles * ((R + columns - 1) / columns);
    for (int tile = warp; tile < tiles; tile += warps) {
        const int n0 = (first_tile + tile % row_tiles) * tile_rows, r0 = tile / row_tiles * columns;
        multiply_one<columns>(operand, stride, K, R, weights, none, N, sums, add, n0, r0);
    }
}
