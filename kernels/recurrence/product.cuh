// The recurrent product of one block: a few rows of the batch times the weight rows that the block owns.
#pragma once

#include "intrinsics.cuh"

// A tile of the product is `rows` weight rows times `columns` rows of the batch. `lanes` threads of a warp compute it: they
// share out the columns of the weights, a packet at a time, and add up their sums in the end. A width is what they multiply
// at once. Fewer lanes have fewer sums to trade; with one row of the batch there are few tiles.
//
// When lanes trade sums, a lane keeps the first half of its sums, and another lane keeps the second half. So that both do
// the same, the second one has its sums in another order: its i-th row and its c-th column of a tile are row(i, lane) and
// column(c, lane).
template <typename Storage, int rows_, int columns_>
struct Tile {
    static constexpr int rows = rows_, columns = columns_, sums = rows * columns, size = Packet<Storage>::size;
    static constexpr int lanes = columns == 1 ? 32 : 8, width = lanes * size;
    // Numbers of a width of the tile.
    static constexpr int weights = rows * width, operands = columns * width;
    static_assert(columns == 1 ? 32 % rows == 0 : columns == 4 && rows % 2 == 0, "see row() and column()");
    static constexpr int same = columns == 1 ? lanes / rows : 1;  // neighbouring lanes that have the same sum in the end

    __device__ static int lane() { return threadIdx.x % lanes; }
    __device__ static int row(int i, int lane) {
        if (columns == 1) return i ^ lane / same;
        return lane % 2 == 0 ? i : i < rows / 2 ? i + rows / 2 : i - rows / 2;
    }
    __device__ static int column(int c, int lane) { return columns == 1 ? c : c ^ lane / 2; }

    __device__ static int widths(int K) { return (K + width - 1) / width; }
    __device__ static int tiles(int N) { return (N + rows - 1) / rows; }
};

// The first of V values becomes its sum over 2 * half neighbouring lanes. While there are several values, two halves of the
// lanes trade halves of them, so that each lane has the sums of its first values alone.
template <int V, int half, typename Real, int capacity>
__device__ __forceinline__ void sum_over_lanes(Real (&values)[capacity]) {
    if constexpr (half > 0) {
        constexpr int left = V == 1 ? 1 : V / 2;
#pragma unroll
        for (int i = 0; i < left; ++i) {
            values[i] += __shfl_xor_sync(0xffffffffu, values[V == 1 ? i : i + left], half);
        }
        sum_over_lanes<left, half / 2>(values);
    }
}

// Adds the products of a width to the sums of a tile, value c * rows + i that of its i-th row and c-th column. The operand
// is in shared memory, the columns of a tile one after another; weight(i) is the packet of row i.
template <class Tile, typename Real, typename Storage, class Weight>
__device__ __forceinline__ void add_products(Real (&values)[Tile::sums], const Storage* operand, const Weight& weight) {
    Packet<Storage> x[Tile::columns];
#pragma unroll
    for (int c = 0; c < Tile::columns; ++c) x[c] = load_packet(operand + c * Tile::width);
#pragma unroll
    for (int i = 0; i < Tile::rows; ++i) {
        const Packet<Storage> w = weight(i);
#pragma unroll
        for (int e = 0; e < Tile::size; ++e) {
#pragma unroll
            for (int c = 0; c < Tile::columns; ++c) values[c * Tile::rows + i] += Real(w.at[e]) * Real(x[c].at[e]);
        }
    }
}

// Weight rows in global memory, of `length` numbers. Row n begins at `first` + (n / units * apart + n % units) * length, so
// that the rows of a block's units of all gates count from 0 although other blocks' units are stored between them. If
// `whole`, each begins at the address of a packet and ends with one; else packets are put together from numbers.
template <typename Storage>
struct WeightRows {
    const Storage* first;
    int length, units, apart;
    bool whole;

    __device__ int begin(int n) const { return (n / units * apart + n % units) * length; }
    __device__ const Storage* row(int n) const { return first + begin(n); }

    // The packet at `address`, of which `exist` numbers are of the row.
    template <bool is_whole>
    __device__ static Packet<Storage> packet(const Storage* address, int exist) {
        if constexpr (is_whole) return read_only_packet(address);
        Packet<Storage> packet;
#pragma unroll
        for (int e = 0; e < packet.size; ++e) packet.at[e] = e < exist ? __ldg(address + e) : Storage(0);
        return packet;
    }
};

// Which part of a product a thread computes with its lanes: at a time `tiles` tiles of weight rows, `parts` parts of the
// columns, part p with widths p, p + parts, ..., and some tiles of the batch. If a warp then has parts of one tile alone, its
// lanes add them up, and each counts as one of `sums` parts. The order of additions depends on `parts` and the tile's lanes
// alone.
template <class Tile>
struct Portion {
    int tiles, parts;
    int packed;  // a part, a tile and a tile of the batch, of 8 bits each, in one register
    static constexpr int of_warp = 32 / Tile::lanes;

    __device__ Portion(int N, int threads, int parts)
        : tiles(min(Tile::tiles(N), threads / Tile::lanes / parts)), parts(parts) {
        const int index = threadIdx.x / Tile::lanes;
        packed = index % parts | index / parts % tiles << 8 | index / parts / tiles << 16;
    }
    __device__ static bool adds_up(int parts) { return parts % of_warp == 0; }
    __device__ static int sums(int parts) { return adds_up(parts) ? parts / of_warp : parts; }
    __device__ static int part(int packed) { return packed & 255; }
    __device__ static int tile(int packed) { return packed >> 8 & 255; }
    __device__ static int column(int packed) { return packed >> 16; }
};

// The part of the weights that a thread keeps in registers: its packets of the first `widths` widths of its part, of the
// tile of weight rows that it computes first.
template <class Tile, typename Storage, int widths>
struct Held {
    Packet<Storage> packets[widths][Tile::rows];

    // N rows of K columns.
    __device__ Held(const WeightRows<Storage>& weights, int N, int K, const Portion<Tile>& portion) {
        const int lane = Tile::lane();
#pragma unroll
        for (int i = 0; i < Tile::rows; ++i) {
            const int n = portion.tile(portion.packed) * Tile::rows + Tile::row(i, lane);
            const Storage* const row = weights.row(min(n, N - 1));
#pragma unroll
            for (int w = 0; w < widths; ++w) {
                const int k = (portion.part(portion.packed) + w * portion.parts) * Tile::width + lane * Tile::size;
                packets[w][i] = weights.template packet<false>(row + k, K - k);
            }
        }
    }
};

template <class Tile, typename Storage>
struct Held<Tile, Storage, 0> {
    __device__ Held(const WeightRows<Storage>&, int, int, const Portion<Tile>&) {}
};

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
