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

// How many parts the columns of a product have, and 2^30 divided by that, rounded up. A division takes a hundred clocks.
struct Parts {
    int count, reciprocal;

    __device__ int divide(int n) const { return __umulhi(4u * n, reciprocal); }  // n < 2^30 / count
};

// Widths of a product from `first` to before `end`.
struct Span {
    int first, end;

    // One part of these widths. The first parts have one width more where they cannot all have equally many.
    __device__ Span part(int index, Parts parts) const {
        const int n = end - first, each = parts.divide(n), more = n - each * parts.count;
        const int begin = first + index * each + min(index, more);
        return {begin, begin + each + (index < more)};
    }
};

// Which part of a product a thread computes with its lanes: at a time `tiles` tiles of weight rows, `parts` parts of the
// columns, and some tiles of the batch. If a warp then has parts of one tile alone, its lanes add them up, and each counts as
// one of `sums` parts. The order of additions depends on `parts`, on the tile's lanes and on the operand's pieces: what of it
// is in shared memory at once.
template <class Tile>
struct Portion {
    int tiles;
    Parts parts;
    int packed;  // a part, a tile and a tile of the batch, of 8 bits each, in one register
    static constexpr int of_warp = 32 / Tile::lanes;

    __device__ Portion(int N, int threads, Parts parts)
        : tiles(min(Tile::tiles(N), threads / Tile::lanes / parts.count)), parts(parts) {
        const int index = threadIdx.x / Tile::lanes, others = index / parts.count;
        packed = index % parts.count | others % tiles << 8 | others / tiles << 16;
    }
    __device__ static bool adds_up(int parts) { return parts % of_warp == 0; }
    __device__ static int sums(int parts) { return adds_up(parts) ? parts / of_warp : parts; }
    __device__ static int part(int packed) { return packed & 255; }
    __device__ static int tile(int packed) { return packed >> 8 & 255; }
    __device__ static int column(int packed) { return packed >> 16; }

    // The n-th width of the part, if `widths` widths are multiplied in pieces of `piece`. There may be none: then `widths`.
    __device__ int width(int n, int widths, int piece) const {
        for (int begin = 0; begin < widths; begin += piece) {
            const Span own = Span{begin, min(begin + piece, widths)}.part(part(packed), parts);
            if (n < own.end - own.first) return own.first + n;
            n -= own.end - own.first;
        }
        return widths;
    }
};

// The part of the weights that a thread keeps in registers: its packets of the first `widths` widths of its part, of the
// tile of weight rows that it computes first.
template <class Tile, typename Storage, int widths>
struct Held {
    Packet<Storage> packets[widths][Tile::rows];

    // N rows of K columns, and the operand in pieces of `piece` widths.
    __device__ Held(const WeightRows<Storage>& weights, int N, int K, const Portion<Tile>& portion, int piece) {
        const int lane = Tile::lane();
        int k[widths];
#pragma unroll
        for (int w = 0; w < widths; ++w) k[w] = portion.width(w, Tile::widths(K), piece) * Tile::width + lane * Tile::size;
#pragma unroll
        for (int i = 0; i < Tile::rows; ++i) {
            const int n = portion.tile(portion.packed) * Tile::rows + Tile::row(i, lane);
            const Storage* const row = weights.row(min(n, N - 1));
#pragma unroll
            for (int w = 0; w < widths; ++w) packets[w][i] = weights.template packet<false>(row + k[w], K - k[w]);
        }
    }
};

template <class Tile, typename Storage>
struct Held<Tile, Storage, 0> {
    __device__ Held(const WeightRows<Storage>&, int, int, const Portion<Tile>&, int) {}
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
