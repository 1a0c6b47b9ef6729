// A block's share of a product: its rows of the batch, its weight rows and its columns, and the shared memory for them.
#pragma once

#include "recurrence/product.cuh"

// How the operand of a product gets to the blocks that multiply it: see fused.cu.
enum class Exchange { launch, block, grid, cluster };

// Whether the blocks of a launch exchange operands.
__device__ constexpr bool among_blocks(Exchange exchange) { return exchange == Exchange::grid || exchange == Exchange::cluster; }

// Of a block. With more, a thread would have too few registers for weights and for its share of a product.
constexpr int threads = 256;

// Weights in shared memory: those of a tile one width after another, as its lanes have them, without what is in registers.
template <class Tile, typename Storage>
struct Resident {
    Storage* first;
    int widths;
    int shortened, held;  // the first tiles are stored without their first widths

    // Where width 0 of a tile is, or would be.
    __device__ Storage* tile(int t) const {
        return first + (t * widths - min(t + 1, shortened) * held) * Tile::weights;
    }

    // Copies N rows of K columns. All threads call it.
    __device__ void load(const WeightRows<Storage>& from, int N, int K) const {
        const int lane = Tile::lane();
        for (int t = 0; t < Tile::tiles(N); ++t) {
            for (int x = threadIdx.x / Tile::lanes + (t < shortened ? held : 0) * Tile::rows; x < widths * Tile::rows;
                 x += threads / Tile::lanes) {
                const int n = t * Tile::rows + Tile::row(x % Tile::rows, lane);
                const int k = x / Tile::rows * Tile::width + lane * Tile::size;
                store_packet(
                    tile(t) + x * Tile::width + lane * Tile::size,
                    from.template packet<false>(from.row(min(n, N - 1)) + k, n < N ? K - k : 0));
            }
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
    static constexpr int blocks = exchange == Exchange::cluster ? cluster_blocks : 1;  // that share out a product's columns
    static_assert((exchange == Exchange::cluster) == (cluster_blocks > 1), "a kernel's clusters are those of its exchange");
    using Registers = Held<Tile, Storage, held>;
    using Weights = Resident<Tile, Storage>;

    int B, d, j0, own, rows, chunk, parts, at_once;
    int units, joint_j0, joint;  // of a block at most; the first hidden unit of all of those, and how many they have
    Real *biases, *sums;
    Storage *operand, *weights;

    // There are `most_biases` biases, `most_sums` weight rows have sums, and under Exchange::block `widths` widths of each
    // row of the batch are in shared memory; else `chunk` numbers of `at_once` tiles of rows of the batch.
    __device__ Share(
        Storage* memory, int B, int H, int units, int rows, int chunk, int parts, int at_once, int most_biases,
        int most_sums, int widths)
        : B(B), d(blockIdx.z), j0(blockIdx.x * units), own(min(units, H - int(blockIdx.x) * units)), rows(rows),
          chunk(chunk / Tile::width), parts(parts), at_once(at_once), units(units),
          joint_j0(j0 - rank() * units), joint(blocks == 1 ? own : min(blocks * units, H - joint_j0)),
          biases(reinterpret_cast<Real*>(memory)), sums(biases + (most_biases + 3) / 4 * 4) {
        const int of_parts = Portion<Tile>::sums(parts) * padded_rows() * Tile::tiles(most_sums) * Tile::rows;
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

    // Of weights whose first tile is at `first` in shared memory.
    __device__ Weights resident_weights(Storage* first, int K, const Portion<Tile>& portion) const {
        const int widths = Share::widths(K);
        return {first, widths, held ? portion.tiles : 0, min(held * parts, widths)};
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
        const int staged = exchange == Exchange::block ? widths : min(chunk, widths);
        const bool idle = threadIdx.x / 32 * (32 / Tile::lanes) >= portion.tiles * parts * at_once;  // the whole warp
        bool first = true;
        int packed = portion.packed;
        compute_late(packed);
        const int of_tiles = portion.tile(packed), part = portion.part(packed), column = portion.column(packed);
        for (int r0 = 0; r0 < R; r0 += at_once * Tile::columns) {
            for (int t0 = 0; t0 < tiles; t0 += portion.tiles) {
                const int tile = t0 + of_tiles, r = r0 + column * Tile::columns;
                const bool exists = column < at_once && tile < tiles && r < R;
                Real values[Tile::sums] = {};
                for (int begin = 0; begin < widths; begin += staged) {
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
                            values, in + lane * size, begin, min(begin + staged, widths), K, rows_of, registers, N, tile,
                            t0 == 0, part);
                    }
                }
                if (!idle) {
                    sum_over_lanes<Tile::sums, Tile::lanes / 2>(values);
                    if (Portion<Tile>::adds_up(parts)) {
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

    // The widths of a part from `begin` to before `end`, the first of which is at `in`.
    template <class Rows>
    __device__ __forceinline__ void multiply_widths(
        Real (&values)[Tile::sums], const Storage* in, int begin, int end, int K, const Rows& rows_of,
        const Registers& registers, int N, int tile, bool in_registers, int part) const {
        const int lane = Tile::lane(), step = parts * Tile::operands;
        const int last = min(end, Tile::widths(K - lane * size));
        const Storage* const first = in - begin * Tile::operands;  // of the operand's width 0
        int w = begin + part;
        if constexpr (held > 0) {
            if (in_registers) {
#pragma unroll
                for (int x = 0; x < held; ++x) {
                    const int of = part + x * parts;
                    if (of >= begin && of < last) {
                        add_products<Tile>(
                            values, first + of * Tile::operands, [&](int i) { return registers.packets[x][i]; });
                    }
                }
                w = max(w, part + held * parts);
            }
        }
        const Storage* const in_end = first + last * Tile::operands;
        in = first + w * Tile::operands;
        if constexpr (resident) {
            const Storage* weight = rows_of.tile(tile) + w * Tile::weights + lane * size;
#pragma unroll 1  // more would take too many registers
            for (; in < in_end; in += step, weight += parts * Tile::weights) {
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
#pragma unroll 1
                for (; in < in_end; in += step, k += parts * Tile::width) {
                    add_products<Tile>(values, in, [&](int i) {
                        const auto packet = rows_of.template packet<decltype(whole)::value>(weights_begin + row[i], K - k);
                        row[i] += parts * Tile::width;
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
        if (Portion<Tile>::adds_up(parts)) {
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
            add_parts(sums + row * length + unit, joint, apart, Portion<Tile>::sums(parts), totals);
        } else {
            const Real* const first = sums + row * length + rank() * units + unit;
            for (int part = 0; part < Portion<Tile>::sums(parts); ++part) {
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
