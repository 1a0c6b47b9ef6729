// A block's share of a product: its rows of the batch, its weight rows and its columns, and the shared memory for them.
#pragma once

#include "recurrence/product.cuh"

// How the operand of a product gets to the blocks that multiply it: see fused.cu.
enum class Exchange { launch, block, grid, cluster };

// Whether the blocks of a launch exchange operands.
__device__ constexpr bool among_blocks(Exchange exchange) { return exchange == Exchange::grid || exchange == Exchange::cluster; }

// Of a block. With more, a thread would have too few registers for weights and for its share of a product.
constexpr int threads = 256;

// Whether the product's loop may be unrolled beside weights in registers, or beside the addresses of weights in global memory:
// since compute capability 10.0, the compiler needs more registers for that than there are.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
constexpr bool unrolls_beside_weights = false;
#else
constexpr bool unrolls_beside_weights = true;
#endif

// Weights in shared memory: those of a tile one width after another, as its lanes have them. Of the first `shortened` tiles,
// those are left out that are in registers: `held` widths of each of `parts` parts of pieces of `piece` widths.
template <class Tile, typename Storage>
struct Resident {
    Storage* first;
    int widths, piece, shortened, held;
    Parts parts;

    // Where width 0 of tile t is, or would be, for a part of a piece that has `before` widths of earlier pieces.
    __device__ Storage* tile(int t, int part, int before) const {
        const int of_tiles = min(t, shortened) * min(held * parts.count, widths);
        const int left_out = t < shortened ? min(held, before) * parts.count + max(held - before, 0) * (part + 1) : 0;
        return first + (t * widths - of_tiles - left_out) * Tile::weights;
    }

    // Copies N rows of K columns. All threads call it.
    __device__ void load(const WeightRows<Storage>& from, int N, int K) const {
        const int end = Tile::widths(K);
        for (int t = 0; t < Tile::tiles(N); ++t) {
            if (t >= shortened) {
                load(from, N, K, t, {0, end}, tile(t, 0, 0));
                continue;
            }
            for (int begin = 0, before = 0; begin < end; begin += piece, before += parts.divide(piece)) {
                for (int p = 0; p < parts.count; ++p) {
                    const Span part = Span{begin, min(begin + piece, end)}.part(p, parts);
                    load(from, N, K, t, {part.first + max(held - before, 0), part.end}, tile(t, p, before));
                }
            }
        }
    }
    // Copies those of some widths of tile t, which begins at `to`.
    __device__ void load(const WeightRows<Storage>& from, int N, int K, int t, const Span& span, Storage* to) const {
        const int lane = Tile::lane();
        for (int x = span.first * Tile::rows + threadIdx.x / Tile::lanes; x < span.end * Tile::rows; x += threads / Tile::lanes) {
            const int n = t * Tile::rows + Tile::row(x % Tile::rows, lane);
            const int k = x / Tile::rows * Tile::width + lane * Tile::size;
            store_packet(
                to + x * Tile::width + lane * Tile::size,
                from.template packet<false>(from.row(min(n, N - 1)) + k, n < N ? K - k : 0));
        }
    }
};

// The part of the work that a block does, and its dynamic shared memory: biases and sums, of type Real, operand and weights,
// of type Storage.
template <typename Storage, typename Real, Exchange exchange, class Tile, int held>
struct Share {
    static constexpr bool resident = exchange != Exchange::launch;
    static_assert(resident || held == 0, "the registers of a launch do not last");
    static constexpr int size = Packet<Storage>::size;
    static constexpr int left = Tile::columns == 1 ? 1 : Tile::rows / 2;  // sums that a lane has in the end
    // Widths of a round of the product's loop: one where there are no registers for more. Packets of 16-bit numbers hold more.
    static constexpr bool has_registers = held > 0 ? unrolls_beside_weights && exchange != Exchange::cluster
                                                   : exchange != Exchange::launch || unrolls_beside_weights && sizeof(Real) == 4;
    static constexpr int unrolled = !has_registers ? 1 : (Tile::columns == 1 ? 128 : 64) / (Tile::rows * (size > 4 ? size : 4));
    static constexpr int blocks = exchange == Exchange::cluster ? cluster_blocks : 1;  // that share out a product's columns
    static_assert((exchange == Exchange::cluster) == (cluster_blocks > 1), "a kernel's clusters are those of its exchange");
    using Registers = Held<Tile, Storage, held>;
    using Weights = Resident<Tile, Storage>;

    int B, d, j0, own, rows, chunk, at_once;
    Parts parts;
    int units, joint_j0, joint;  // of a block at most; the first hidden unit of all of those, and how many they have
    Real *biases, *sums;
    Storage *operand, *weights;

    // There are `most_biases` biases, `most_sums` weight rows have sums, and under Exchange::block `widths` widths of each
    // row of the batch are in shared memory; else `chunk` numbers of `at_once` tiles of rows of the batch.
    __device__ Share(
        Storage* memory, int B, int H, int units, int rows, int chunk, Parts parts, int at_once, int most_biases,
        int most_sums, int widths)
        : B(B), d(blockIdx.z), j0(blockIdx.x * units), own(min(units, H - int(blockIdx.x) * units)), rows(rows),
          chunk(chunk / Tile::width), at_once(at_once), parts(parts), units(units),
          joint_j0(j0 - rank() * units), joint(blocks == 1 ? own : min(blocks * units, H - joint_j0)),
          biases(reinterpret_cast<Real*>(memory)), sums(biases + (most_biases + 3) / 4 * 4) {
        const int of_parts = Portion<Tile>::sums(parts.count) * padded_rows() * Tile::tiles(most_sums) * Tile::rows;
        operand = reinterpret_cast<Storage*>(sums + (of_parts + 3) / 4 * 4);  // packets begin there
        const int in_operand = exchange == Exchange::block ? padded_rows() * widths : at_once * Tile::columns * this->chunk;
        weights = operand + in_operand * Tile::width;
    }

    __device__ int padded_rows() const { return (rows + Tile::columns - 1) / Tile::columns * Tile::columns; }
    __device__ int first_row() const { return int(blockIdx.y) * rows; }
    __device__ int end_row() const { return min(B, first_row() + rows); }
    __device__ int rows_of_batch() const { return max(0, end_row() - first_row()); }
    // Of the counters of the barriers, that of the blocks that share rows of the batch.
    __device__ unsigned* counter(unsigned* arrived) const {
        int group = blockIdx.z * gridDim.y + blockIdx.y;
        compute_late(group);
        return arrived + group;
    }

    // Hidden units of all of those, in the first cluster.
    __device__ static int most_joint(int units, int H) { return blocks == 1 ? units : min(blocks * units, H); }
    // Of the block among those.
    __device__ static int rank() {
        if constexpr (blocks == 1) return 0;
        int block = blockIdx.x;
        compute_late(block);
        return block % blocks;
    }
    // Of K columns, the widths that a block multiplies, if not the last one.
    __device__ static int widths(int K) { return (Tile::widths(K) + blocks - 1) / blocks; }
    // Of K columns, those that this block multiplies: from `begin` on.
    struct Columns {
        int begin, count;
    };
    __device__ Columns columns(int K) const {
        if constexpr (blocks == 1) return {0, K};
        const int each = widths(K) * Tile::width, begin = min(rank() * each, K);
        return {begin, min(each, K - begin)};
    }
    // Rows of weights of K columns, from the first of these on.
    __device__ WeightRows<Storage> in_columns(WeightRows<Storage> weights, int K) const {
        weights.first += columns(K).begin;
        return weights;
    }

    // Of the widths of a row of the operand, those in shared memory at once.
    __device__ int piece(int widths) const { return exchange == Exchange::block ? widths : min(chunk, widths); }
    // Of weights whose first tile is at `first` in shared memory.
    __device__ Weights resident_weights(Storage* first, int K, const Portion<Tile>& portion) const {
        const int widths = Share::widths(K);
        return {first, widths, piece(widths), held ? portion.tiles : 0, held, parts};
    }

    // Under Exchange::block: where number k of row r of an operand of K numbers is.
    __device__ static Storage* place(Storage* operand, int r, int k, int K) {
        const int w = r / Tile::columns * Tile::widths(K) + k / Tile::width;
        const int c = Tile::column(r % Tile::columns, k % Tile::width / Tile::size);
        return operand + w * Tile::operands + c * Tile::width + k % Tile::width;
    }

    // Copies two arrays (D, G, H) of biases, zeros for a null.
    template <int G>
    __device__ void load_biases(const Storage* ih, const Storage* hh, int H) const {
        for (int x = threadIdx.x; x < G * own; x += threads) {
            const long long from = ((long long)d * G + x / own) * H + j0 + x % own;
            biases[x] = ih ? Real(ih[from]) : Real(0);
            biases[G * own + x] = hh ? Real(hh[from]) : Real(0);
        }
    }
    // Copies columns [begin, end) of R rows to shared memory, tiles of `widths` widths, and zeros up to a whole packet.
    __device__ void stage(const Storage* source, long long stride, int R, int begin, int end, int widths) const {
        constexpr int of_row = threads / Tile::columns, step = of_row * size;
        const bool whole = begins_packet(source) && stride % size == 0 && end % size == 0;
        int thread = threadIdx.x;
        compute_late(thread);
        const int lane = thread % Tile::lanes, c = thread / of_row, first = begin + thread % of_row * size;
        for (int r = c; r < R; r += Tile::columns) {
            const Storage* const from = source + r * stride;
            Storage* to = operand + (r / Tile::columns * widths + (first - begin) / Tile::width) * Tile::operands +
                          Tile::column(c, lane) * Tile::width + lane * size;
            int k = first;
            if (whole) {
#pragma unroll 4
                for (; k < end; k += step, to += step * Tile::columns) {
                    store_packet(to, among_blocks(exchange) ? read_published_packet(from + k) : load_packet(from + k));
                }
            }
#pragma unroll 1
            for (; k < end; k += step, to += step * Tile::columns) {
                Packet<Storage> packet;
#pragma unroll
                for (int e = 0; e < size; ++e) packet.at[e] = k + e < end ? number(from + k + e) : Storage(0);
                store_packet(to, packet);
            }
        }
    }

    __device__ static Storage number(const Storage* address) {
        return among_blocks(exchange) ? read_published(address) : *address;
    }

    // sums = operand times N rows of weights of length K, in the block's columns. `source` is the block's first row of the
    // operand in global memory; under Exchange::block it is in shared memory already, at `in_shared`. All threads call it,
    // and all may read the sums after meet().
    template <class Rows>
    __device__ void multiply(
        const Storage* source, long long stride, int K, const Rows& rows_of, const Registers& registers, int N,
        const Portion<Tile>& portion, const Storage* in_shared) const {
        source += columns(K).begin;
        K = columns(K).count;
        const int R = rows_of_batch(), tiles = Tile::tiles(N), widths = Tile::widths(K), lane = Tile::lane();
        const int staged = piece(widths);
        const bool idle = threadIdx.x / 32 * (32 / Tile::lanes) >= portion.tiles * parts.count * at_once;  // the whole warp
        bool first = true;
        int packed = portion.packed;
        compute_late(packed);
        const int of_tiles = portion.tile(packed), part = portion.part(packed), column = portion.column(packed);
        for (int r0 = 0; r0 < R; r0 += at_once * Tile::columns) {
            for (int t0 = 0; t0 < tiles; t0 += portion.tiles) {
                const int tile = t0 + of_tiles, r = r0 + column * Tile::columns;
                const bool exists = column < at_once && tile < tiles && r < R;
                Real values[Tile::sums] = {};
                for (int begin = 0, before = 0; begin < widths; begin += staged, before += parts.divide(staged)) {
                    if (exchange != Exchange::block && (t0 == 0 || staged < widths)) {
                        if (!first) __syncthreads();
                        first = false;
                        stage(
                            source + r0 * stride, stride, min(R - r0, at_once * Tile::columns), begin * Tile::width,
                            min((begin + staged) * Tile::width, K), staged);
                        __syncthreads();
                    }
                    if (exists) {
                        const Storage* const in =
                            exchange == Exchange::block ? in_shared + r / Tile::columns * widths * Tile::operands
                                                        : operand + column * staged * Tile::operands;
                        multiply_widths(
                            values, in + lane * size, begin, min(begin + staged, widths), before, K, rows_of, registers, N,
                            tile, t0 == 0, part);
                    }
                }
                if (!idle) {
                    sum_over_lanes<Tile::sums, Tile::lanes / 2>(values);
                    if (Portion<Tile>::adds_up(parts.count)) {
#pragma unroll
                        for (int half = Tile::lanes; half < 32; half *= 2) {
#pragma unroll
                            for (int i = 0; i < left; ++i) values[i] += __shfl_xor_sync(0xffffffffu, values[i], half);
                        }
                    }
                    if (exists) store(values, part, r, tile, tiles * Tile::rows);
                }
            }
        }
    }

    // A part of the piece from width `begin` to before `end`, the first of which is at `in`. The part has `before` widths of
    // earlier pieces.
    template <class Rows>
    __device__ __forceinline__ void multiply_widths(
        Real (&values)[Tile::sums], const Storage* in, int begin, int end, int before, int K, const Rows& rows_of,
        const Registers& registers, int N, int tile, bool in_registers, int part) const {
        const int lane = Tile::lane();
        const Span of_part = Span{begin, end}.part(part, parts);
        int w = of_part.first, count = min(of_part.end, Tile::widths(K - lane * size)) - w;
        in += (w - begin) * Tile::operands;
        if constexpr (held > 0) {
            if (in_registers) {
#pragma unroll
                for (int x = 0; x < held; ++x) {
                    if (x >= before && x - before < count) {
                        add_products<Tile>(
                            values, in + (x - before) * Tile::operands, [&](int i) { return registers.packets[x][i]; });
                    }
                }
                const int passed = max(held - before, 0);
                w += passed, count -= passed, in += passed * Tile::operands;
            }
        }
        if constexpr (resident) {
            const Storage* weight = rows_of.tile(tile, part, before) + w * Tile::weights + lane * size;
#pragma unroll (unrolled)
            for (int x = 0; x < count; ++x, in += Tile::operands, weight += Tile::weights) {
                add_products<Tile>(values, in, [&](int i) { return load_packet(weight + i * Tile::width); });
            }
        } else {
            const auto from_global = [&](auto whole) {
                const Storage* weights_begin = rows_of.first;
                compute_late(weights_begin);
                int row[Tile::rows];  // offsets, which take half the registers of addresses
                int k = w * Tile::width + lane * size;
                // A tile that reaches over the edge multiplies the last row again; nothing reads those sums.
#pragma unroll
                for (int i = 0; i < Tile::rows; ++i) {
                    row[i] = rows_of.begin(min(tile * Tile::rows + Tile::row(i, lane), N - 1)) + k;
                }
#pragma unroll (decltype(whole)::value ? unrolled : 1)
                for (int x = 0; x < count; ++x, in += Tile::operands, k += Tile::width) {
                    add_products<Tile>(values, in, [&](int i) {
                        const auto packet = rows_of.template packet<decltype(whole)::value>(weights_begin + row[i], K - k);
                        row[i] += Tile::width;
                        return packet;
                    });
                }
            };
            if (rows_of.whole) {
                from_global(Constant<true>());
            } else {
                from_global(Constant<false>());
            }
        }
    }

    // What a lane has of the sums of a tile, after sum_over_lanes: of row r of the batch on, in rows of `length`.
    __device__ __forceinline__ void store(const Real (&values)[Tile::sums], int part, int r, int tile, int length) const {
        int lane = Tile::lane();
        compute_late(lane);
        if (Portion<Tile>::adds_up(parts.count)) {
            part /= Portion<Tile>::of_warp;
            if (threadIdx.x % 32 >= Tile::lanes) return;
        }
        if (lane % Tile::same != 0) return;
        const int n = tile * Tile::rows + Tile::row(0, lane);
        Real* const to = sums + (part * padded_rows() + r + Tile::column(0, lane)) * length + n;
#pragma unroll
        for (int i = 0; i < left; ++i) to[i] = values[i];
    }

    // Waits until the sums of a product are written.
    __device__ static void meet() {
        if constexpr (blocks > 1) {
            cluster_sync();
        } else {
            __syncthreads();
        }
    }

    // Of a row and a unit, for `count` gates of N weight rows.
    template <int count>
    __device__ void products(int row, int unit, int N, Real (&totals)[count]) const {
        const int length = Tile::tiles(N) * Tile::rows, apart = padded_rows() * length;
        if constexpr (blocks == 1) {
            add_parts(sums + row * length + unit, joint, apart, Portion<Tile>::sums(parts.count), totals);
        } else {
            const Real* const first = sums + row * length + rank() * units + unit;
            for (int part = 0; part < Portion<Tile>::sums(parts.count); ++part) {
                Real values[blocks][count];
#pragma unroll
                for (int block = 0; block < blocks; ++block) {
#pragma unroll
                    for (int g = 0; g < count; ++g) values[block][g] = read_of_block(first + part * apart + g * joint, block);
                }
#pragma unroll
                for (int block = 0; block < blocks; ++block) {
#pragma unroll
                    for (int g = 0; g < count; ++g) totals[g] = part + block > 0 ? totals[g] + values[block][g] : values[block][g];
                }
            }
        }
    }
    // Before the block ends: others may still read its sums.
    __device__ static void leave() {
        if constexpr (blocks > 1) cluster_sync();
    }
};
