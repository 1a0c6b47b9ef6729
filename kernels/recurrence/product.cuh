// The recurrent product of one block: a few rows of the batch times the weight rows that the block owns.
#pragma once

#include "intrinsics.cuh"

// Sums each of V values over 2 * half neighbouring lanes: at each step two halves of the lanes trade halves of the values.
// Lane l of them gets the sums of the V / (2 * half) values from l * V / (2 * half) on; if that is less than one, the
// sum of value l * V / (2 * half). They are the first of `values`. A recursion and no loop, since the compiler leaves an
// array in local memory whose indices it does not know.
template <int V, int half, typename Real, int capacity>
__device__ __forceinline__ void sum_over_lanes(Real (&values)[capacity], int lane) {
    if constexpr (half > 0 && V == 1) {
        values[0] += __shfl_xor_sync(0xffffffffu, values[0], half);
        sum_over_lanes<1, half / 2>(values, lane);
    } else if constexpr (half > 0) {
        const bool upper = lane & half;
#pragma unroll
        for (int i = 0; i < V / 2; ++i) {
            const Real given = upper ? values[i] : values[i + V / 2];
            const Real kept = upper ? values[i + V / 2] : values[i];
            values[i] = kept + __shfl_xor_sync(0xffffffffu, given, half);
        }
        sum_over_lanes<V / 2, half / 2>(values, lane);
    }
}

// A tile of the product is tile_rows weight rows times `columns` rows of the batch. A warp computes 32 / tile_lanes tiles
// at once: the lanes of each share out the columns of its weights, a packet at a time. Fewer lanes have fewer sums to
// trade; with one row of the batch there are few tiles.
constexpr int tile_rows = 8;

template <int columns>
constexpr int tile_lanes = columns == 1 ? 32 : 8;

// The columns that the lanes of a tile multiply at once.
template <int columns, typename Storage>
constexpr int tile_width = tile_lanes<columns> * Packet<Storage>::size;

// Weight rows in memory, of `length` numbers.
//
// In global memory row n begins at `first` + (n / units * apart + n % units) * length, so that the rows of a block's units
// of all gates count from 0 although other blocks' units are stored between them. If `whole`, each begins at the address
// of a packet and ends with one; else packets are put together from numbers.
//
// In shared memory the rows are stored one after another, in whole packets that zeros fill. The first `shortened` rows are
// stored without their first `held` columns.
template <typename Storage, bool in_shared>
struct WeightRows {
    const Storage* first;
    int length;
    int units = 1, apart = 1;
    bool whole = true;
    int shortened = 0, held = 0;

    // Where column 0 of row n is, or would be.
    __device__ const Storage* row(int n) const {
        if constexpr (in_shared) return first + (n < shortened ? n * (length - held) - held : n * length - shortened * held);
        return first + (n / units * apart + n % units) * length;
    }

    // The packet at `address`, of which `exist` numbers are of the row.
    template <bool is_whole>
    __device__ static Packet<Storage> packet(const Storage* address, int exist) {
        if constexpr (in_shared) return load_packet(address);
        if constexpr (is_whole) return read_only_packet(address);
        Packet<Storage> packet;
#pragma unroll
        for (int e = 0; e < packet.size; ++e) packet.at[e] = e < exist ? __ldg(address + e) : Storage(0);
        return packet;
    }
};

// The part of the weights that a thread keeps in registers: its packet of the first tile_width columns of the rows of
// its tile, if there is one for each warp.
template <typename Real, typename Storage, int columns, bool held>
struct Held {
    static constexpr int size = Packet<Storage>::size;
    Real values[tile_rows * size];

    // N rows of K columns in global memory.
    __device__ Held(const WeightRows<Storage, false>& weights, int N, int K) {
        constexpr int lanes = tile_lanes<columns>;
        const int k = threadIdx.x % lanes * size;
#pragma unroll
        for (int i = 0; i < tile_rows; ++i) {
            const Storage* const row = weights.row(min(int(threadIdx.x) / lanes * tile_rows + i, N - 1));
#pragma unroll
            for (int e = 0; e < size; ++e) values[i * size + e] = k + e < K ? Real(__ldg(row + k + e)) : Real(0);
        }
    }
    __device__ Real at(int row, int e) const { return values[row * size + e]; }
};

template <typename Real, typename Storage, int columns>
struct Held<Real, Storage, columns, false> {
    __device__ Held(const WeightRows<Storage, false>&, int, int) {}
    __device__ Real at(int, int) const { return 0; }
};

// Columns [begin, end) of a tile, from weight row n0 and operand row r0 on; sums of tiles that do not `exist` are left out.
template <int columns, bool is_whole, bool held, typename Storage, typename Real, bool in_shared>
__device__ __forceinline__ void multiply_tile(
    const Storage* operand, int stride, int K, int R, const WeightRows<Storage, in_shared>& weights,
    const Held<Real, Storage, columns, held>& in_registers, int N, Real* sums, bool add, int n0, int r0, bool exist,
    int begin, int end) {
    constexpr int V = tile_rows * columns, lanes = tile_lanes<columns>, width = tile_width<columns, Storage>;
    constexpr int size = Packet<Storage>::size;
    const int lane = threadIdx.x % lanes;
    int k = begin + lane * size;
    const Storage *rows[tile_rows], *in[columns];
    // A tile that reaches over the edge multiplies the last row again and leaves it out in the end.
#pragma unroll
    for (int i = 0; i < tile_rows; ++i) rows[i] = weights.row(min(n0 + i, N - 1)) + k;
#pragma unroll
    for (int c = 0; c < columns; ++c) in[c] = operand + min(r0 + c, R - 1) * stride + k;
    Real values[V] = {};
    const auto add_products = [&](auto weight) {
        Packet<Storage> x[columns];
#pragma unroll
        for (int c = 0; c < columns; ++c) {
            x[c] = load_packet(in[c]);
            in[c] += width;
        }
#pragma unroll
        for (int i = 0; i < tile_rows; ++i) {
            weight(i, [&](auto w) {
#pragma unroll
                for (int e = 0; e < size; ++e) {
#pragma unroll
                    for (int c = 0; c < columns; ++c) values[i * columns + c] += Real(w(e)) * Real(x[c].at[e]);
                }
            });
            rows[i] += width;
        }
        k += width;
    };
    if constexpr (held) {
        if (k < end) {
            add_products([&](int i, auto use) { use([&](int e) { return in_registers.at(i, e); }); });
        }
    }
#pragma unroll 1  // more would take too many registers
    while (k < end) {
        add_products([&](int i, auto use) {
            const Packet<Storage> w = weights.template packet<is_whole>(rows[i], K - k);
            use([&](int e) { return w.at[e]; });
        });
    }
    sum_over_lanes<V, lanes / 2>(values, lane);
    constexpr int count = V < lanes ? 1 : V / lanes, replicas = V < lanes ? lanes / V : 1;
    if (!exist || lane % replicas) return;
#pragma unroll
    for (int i = 0; i < count; ++i) {
        const int value = lane / replicas * count + i, n = n0 + value / columns, r = r0 + value % columns;
        if (n < N && r < R) {
            Real& sum = sums[r * N + n];
            sum = add ? sum + values[i] : values[i];
        }
    }
}

// sums[(part * R + r) * N + n] = (add ? sums[(part * R + r) * N + n] : 0) + sum over a part of k < K of
// operand[r * stride + k] * weights[n][k], r < R. `operand` and `sums` are in shared memory, each row of the operand at
// the address of a packet, with numbers behind its end that are finite.
//
// The warps share out the tiles of each of the `parts` of the columns. The order of additions depends on K, `parts` and
// `columns` alone.
template <int columns, bool held, typename Storage, typename Real, bool in_shared>
__device__ void multiply(
    const Storage* operand, int stride, int K, int R, const WeightRows<Storage, in_shared>& weights,
    const Held<Real, Storage, columns, held>& in_registers, int N, Real* sums, int parts, bool add) {
    constexpr int lanes = tile_lanes<columns>, at_once = 32 / lanes, width = tile_width<columns, Storage>;
    const int warp = threadIdx.x / 32, warps = blockDim.x / 32, of_warp = threadIdx.x % 32 / lanes;
    int row_tiles = (N + tile_rows - 1) / tile_rows, first_tile = 0;
    if constexpr (held) {
        // The rows that a warp holds are its own at every step, and it multiplies all of their columns.
        if (warp * at_once < row_tiles) {
            const int tile = warp * at_once + of_warp;
            for (int r0 = 0; r0 < R; r0 += columns) {
                multiply_tile<columns, true>(
                    operand, stride, K, R, weights, in_registers, N, sums, add, tile * tile_rows, r0, true, 0, K);
            }
        }
        first_tile = min(warps * at_once, row_tiles);
        row_tiles -= first_tile;
    }
    const Held<Real, Storage, columns, false> none({}, N, K);
    const int tiles = row_tiles * ((R + columns - 1) / columns), groups = (tiles + at_once - 1) / at_once;
    const int widths = (K + width - 1) / width;
    for (int item = warp; item < groups * parts; item += warps) {
        const int part = item / groups, tile = item % groups * at_once + of_warp, last = min(tile, tiles - 1);
        const int n0 = (first_tile + last % row_tiles) * tile_rows, r0 = last / row_tiles * columns;
        const int begin = widths * part / parts * width, end = min(K, widths * (part + 1) / parts * width);
        const auto compute = [&](auto whole) {
            multiply_tile<columns, decltype(whole)::value>(
                operand, stride, K, R, weights, none, N, sums + part * R * N, add, n0, r0, tile < tiles, begin, end);
        };
        if (in_shared || weights.whole) {
            compute(Constant<true>());
        } else {
            compute(Constant<false>());
        }
    }
}

// The sums of a row and a unit over all parts, of `count` gates that are `stride` apart.
template <int count, typename Real>
__device__ __forceinline__ void add_parts(const Real* sums, int stride, int apart, int parts, Real (&totals)[count]) {
#pragma unroll
    for (int g = 0; g < count; ++g) totals[g] = sums[g * stride];
    for (int part = 1; part < parts; ++part) {
#pragma unroll
        for (int g = 0; g < count; ++g) totals[g] += sums[part * apart + g * stride];
    }
}
