// Products and gates in one kernel: the schedules that need no cuBLAS.
//
// Block (x, y, z) owns `units` hidden units of direction z with all of their gates, and `rows` rows of the batch. Its
// thread i owns row e / units and unit e % units for e = i, i + threads, ..., `owned` of them at most: after its step's
// product it computes the rest of the step, and its state never leaves its registers. The schedules differ in how a step's
// operand, h_{t-1} or the gate gradients of step t + 1, gets to every block that multiplies it:
//
//   launch   one launch for each product: the end of a launch is the barrier. Each launch reads the weights again, from
//            the L2 cache. begin_forward writes the first operand before the first launch.
//   block    one block has all hidden units, so the operand stays in shared memory. Weights stay in registers, `held`
//            widths of a tile in each thread (see Held), and what is left in shared memory.
//   grid     the blocks of one direction and the same rows exchange it through global memory, by publish() and
//            read_published(), with a barrier of their own. Weights stay where those of `block` are.
//   cluster  as grid, but a cluster of neighbouring blocks shares out the columns of the product. Each block loads its part
//            of the operand alone, multiplies it by the weights of the units of all of them, and adds up its own units' sums
//            over all blocks, which it reads in their shared memory. A block keeps as many weights as under grid.
//
// A pass has the cell's phases of all steps; the backward pass has one more, which ends the first step. A launch computes
// the phases `first` ... `last` - 1. Unless the exchange is launch, these are whole steps, and all of them where no watchdog
// ends a launch. If blocks of a launch do not meet, what it computes from then on is NaN.
#include "recurrence/product.cuh"
#include "recurrence/steps.cuh"

enum class Exchange { launch, block, grid, cluster };

// Whether the blocks of a launch exchange operands.
__device__ constexpr bool among_blocks(Exchange exchange) { return exchange == Exchange::grid || exchange == Exchange::cluster; }

// Of a block. With more, a thread would have too few registers for weights and for its share of a product.
constexpr int threads = 256;

// The most gates of a phase.
template <class Cell>
__device__ constexpr int widest_phase() {
    int most = 0;
    for (int k = 0; k < Cell::phases; ++k) {
        const int gates = Cell::first_gate(k + 1) - Cell::first_gate(k);
        most = gates > most ? gates : most;
    }
    return most;
}

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
        operand = reinterpret_cast<Storage*>(sums + Portion<Tile>::sums(parts) * padded_rows() * Tile::tiles(most_sums) * Tile::rows);
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
        if (Tile::columns == 1 && lane % 4 != 0) return;
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

template <typename Real>
__device__ __forceinline__ Real not_a_number() {
    return Real(__int_as_float(0x7fc00000));
}

// Writes `value` for the blocks that read `address`, in this launch if blocks exchange operands, else in a later one.
template <Exchange exchange, typename Storage>
__device__ __forceinline__ void hand_over(Storage* address, Storage value) {
    if (among_blocks(exchange)) {
        publish(address, value);
    } else {
        *address = value;
    }
}

// w (D, G, H, H) is w_hh. Dynamic shared memory is that of Share, with the weight rows of all gates; under Exchange::block a
// row of the batch has the operands of all phases. `arrived` (gridDim.z * gridDim.y) is zero, and used if blocks
// exchange operands only.
template <class Cell, typename Storage, Exchange exchange, int columns, int tile_rows, int held, int owned>
__global__ void IN_CLUSTERS __launch_bounds__(threads, 1) forward(
    const Storage* w, const Storage* xw, const Storage* b_ih, const Storage* b_hh, const int* lengths, const Marks* marks,
    const Storage* mask, typename Cell::Real* h, typename Cell::Real* c, Storage* y, Storage* operands, Storage* saved,
    unsigned* arrived, int T, int B, int H, int slots, int first, int last, int units, int rows, int chunk, int parts,
    int at_once, Cell cell) {
    using Real = typename Cell::Real;
    using Shape = Tile<Storage, tile_rows, columns>;
    constexpr int G = Cell::gates, phases = Cell::phases, last_gate = Cell::first_gate(phases - 1);
    using Part = Share<Storage, Real, exchange, Shape, held>;
    using Layer = Forward<Cell, Storage>;
    static_assert(held == 0 || phases == 1, "registers hold the rows of one phase");
    DYNAMIC_SHARED(Storage, memory);
    const int D = gridDim.z, widths = Part::widths(H);
    const Part share(
        memory, B, H, units, rows, chunk, parts, at_once, 2 * G * units,
        Part::most_joint(units, H) * widest_phase<Cell>(), phases * widths);
    const int d = share.d, own = share.own, joint = share.joint;
    const Clock clock{T, B, slots, lengths, marks};
    // Of each unit of this thread: what it computes with, and its state.
    Layer layers[owned];
    typename Layer::Inputs inputs[owned];
    Unit::Entry next[owned];
    Real state[owned], cell_state[owned];
    const auto owns = [&](int e) { return layers[e].unit.b < share.end_row(); };
    const auto row = [&](int e) { return layers[e].unit.b - share.first_row(); };
#pragma unroll
    for (int e = 0; e < owned; ++e) {
        const int index = threadIdx.x + e * threads;
        const int b = share.first_row() + index / own;
        const Unit unit(clock, H, D, d, b, share.j0 + index % own, b < share.end_row());
        layers[e] = Layer(cell, unit, b < share.end_row(), xw, mask, y, operands, saved);
        state[e] = cell_state[e] = 0;
    }
    w += (long long)d * G * H * H;

    const auto global = share.in_columns(
        {w + (long long)share.joint_j0 * H, H, joint, H, begins_packet(w) && H % Part::size == 0}, H);
    const int columns_of_block = share.columns(H).count;
    const Portion<Shape> portion(G * joint, threads, parts);
    const typename Part::Registers registers(global, G * joint, columns_of_block, portion);
    // The weights of a phase: those of a block are together in shared memory, and apart in w_hh.
    const auto rows_from = [&](int phase) {
        auto rows = global;
        rows.first += (long long)Cell::first_gate(phase) * H * H;
        return rows;
    };
    const auto weights_of = [&](int phase) {
        if constexpr (Part::resident) {
            auto weights = share.resident_weights(share.weights, H, portion);
            if (phases > 1 && phase == 1) weights.first += Shape::tiles(Cell::first_gate(1) * joint) * widths * Shape::weights;
            return weights;
        } else {
            return rows_from(phase);
        }
    };
    const auto rows_of_phase = [&](int phase) { return (Cell::first_gate(phase + 1) - Cell::first_gate(phase)) * joint; };
    if constexpr (Part::resident) {
        for (int phase = 0; phase < phases; ++phase) weights_of(phase).load(rows_from(phase), rows_of_phase(phase), columns_of_block);
    }
    share.template load_biases<G>(b_ih, b_hh, H);
    const auto in_shared = [&](int phase) { return share.operand + phase * share.padded_rows() * widths * Shape::width; };
    // The operand of a phase of position s, from the thread that owns the unit.
    const auto enter = [&](int e, int phase, int s, Real value) {
        const Storage rounded(value);
        if (exchange == Exchange::block) *Part::place(in_shared(phase), row(e), layers[e].unit.j, H) = rounded;
        if (exchange != Exchange::block || slots == T) {
            hand_over<exchange>(operands + layers[e].unit.operand(phase, s), rounded);
        }
    };

    GridBarrier barrier;
    if (among_blocks(exchange)) barrier = GridBarrier(share.counter(arrived), gridDim.x);
    if (exchange == Exchange::block) {  // what fills the last packets is finite
        const int numbers = phases * share.padded_rows() * widths * Shape::width;
        for (int k = threadIdx.x; k < numbers; k += threads) share.operand[k] = Storage(0);
        __syncthreads();
    }
    const int first_position = first / phases;
#pragma unroll
    for (int e = 0; e < owned; ++e) {
        if (!owns(e)) continue;
        const Unit& unit = layers[e].unit;
        state[e] = h[unit.index()];
        if (Cell::has_c) cell_state[e] = c[unit.index()];
        inputs[e].entry = unit.entry(first_position);
        if (first_position + 1 < T) next[e] = unit.entry(first_position + 1);
        if (exchange != Exchange::launch) enter(e, 0, first_position, layers[e].entering(inputs[e].entry, state[e]));
    }
    if (among_blocks(exchange)) barrier.arrive();
#pragma unroll
    for (int e = 0; e < owned; ++e) {
        if (!owns(e)) continue;
        if (exchange == Exchange::launch) {
            const int phase = first % phases;
            layers[e].load(first_position, Cell::first_gate(phase), Cell::first_gate(phase + 1), inputs[e]);
        } else {
            layers[e].load(first_position, 0, G, inputs[e]);
        }
    }
    __syncthreads();

#pragma unroll 1
    for (int n = first; n < last; ++n) {
        const int s = n / phases, phase = n % phases, N = rows_of_phase(phase);
        if (among_blocks(exchange)) barrier.arrived = share.counter(arrived);
        const bool met = !among_blocks(exchange) || barrier.wait();
        const long long slot = ((long long)phase * D + d) * slots + clock.slot(d, s);
        share.multiply(
            operands + (slot * B + share.first_row()) * H, H, H, weights_of(phase), registers, N,
            phases == 1 ? portion : Portion<Shape>(N, threads, parts), in_shared(phase));
        Part::meet();
        typename Layer::Values values[owned];
#pragma unroll
        for (int e = 0; e < owned; ++e) compute_late(layers[e].unit.b), compute_late(layers[e].unit.j);
#pragma unroll
        for (int e = 0; e < owned; ++e) {
            if (!owns(e)) continue;
            const int unit = layers[e].unit.j - share.j0;
            if (phase == phases - 1) {
                Real products[G - last_gate];
                share.products(row(e), unit, N, products);
                add_biases<last_gate, G, last_gate>(share.biases + G * own + unit, own, products);
                add_biases<last_gate, G, 0>(share.biases + unit, own, inputs[e].x);
                layers[e].finish(s, inputs[e], products, state[e], cell_state[e], values[e]);
                if (!met) state[e] = cell_state[e] = not_a_number<Real>();
                if (s + 1 < T) enter(e, 0, s + 1, layers[e].entering(next[e], state[e]));
            }
            if constexpr (phases > 1) {
                if (phase == 0) {
                    Real products[Cell::first_gate(1)];
                    share.products(row(e), unit, N, products);
                    add_biases<0, Cell::first_gate(1), 0>(share.biases + G * own + unit, own, products);
                    add_biases<0, Cell::first_gate(1), 0>(share.biases + unit, own, inputs[e].x);
                    enter(e, 1, s, layers[e].operand(inputs[e], products, state[e], values[e]));
                }
            }
        }
        if (among_blocks(exchange)) {
            barrier.arrived = share.counter(arrived);
            barrier.arrive();
        } else {
            __syncthreads();
        }
        // While the other blocks arrive.
#pragma unroll
        for (int e = 0; e < owned; ++e) {
            if (!owns(e)) continue;
            if (phase == phases - 1) {
                layers[e].save(s, inputs[e], values[e], state[e]);
                inputs[e].entry = next[e];
                if (exchange != Exchange::launch && s + 1 < T) {
                    layers[e].load(s + 1, 0, G, inputs[e]);
                    if (s + 2 < T) next[e] = layers[e].unit.entry(s + 2);
                }
            }
            if constexpr (phases > 1) {
                if (phase == 0) layers[e].save_operand(s, inputs[e], values[e]);
            }
        }
    }

#pragma unroll
    for (int e = 0; e < owned; ++e) {
        if (!owns(e)) continue;
        h[layers[e].unit.index()] = state[e];
        if (Cell::has_c) c[layers[e].unit.index()] = cell_state[e];
    }
    Part::leave();
}

// w (D, H, G, H) is w_hh transposed. Shared memory as in forward, but `units` rows of weights, which like the rows of
// operands under Exchange::block have the columns of all gates. dh and dc (D, B, H) are the gradients of the state, updated
// in place; direct and through (D, B, H) carry their parts from launch to launch.
template <class Cell, typename Storage, Exchange exchange, int columns, int tile_rows, int held, int owned>
__global__ void IN_CLUSTERS __launch_bounds__(threads, 1) backward(
    const Storage* w, const Storage* saved, const Storage* operands, const int* lengths, const Marks* marks,
    const Storage* mask, const Storage* dy, typename Cell::Real* dh, typename Cell::Real* dc, typename Cell::Real* direct,
    typename Cell::Real* through, Storage* dx, Storage* dp, unsigned* arrived, int T, int B, int H, int first, int last,
    int units, int rows, int chunk, int parts, int at_once, Cell cell) {
    using Real = typename Cell::Real;
    using Shape = Tile<Storage, tile_rows, columns>;
    constexpr int G = Cell::gates, phases = Cell::phases;
    using Part = Share<Storage, Real, exchange, Shape, held>;
    using Layer = Backward<Cell, Storage>;
    static_assert(held == 0 || phases == 1, "registers hold the rows of one phase");
    DYNAMIC_SHARED(Storage, memory);
    // Columns of a phase, and the widths of the phases before it.
    const auto length = [&](int phase) { return (Cell::first_gate(phase + 1) - Cell::first_gate(phase)) * H; };
    const auto widths_before = [&](int phase) {
        int widths = 0;
        for (int k = 0; k < phase; ++k) widths += Part::widths(length(k));
        return widths;
    };
    const int D = gridDim.z;
    const Part share(memory, B, H, units, rows, chunk, parts, at_once, 0, Part::most_joint(units, H), widths_before(phases));
    const int d = share.d, own = share.own, joint = share.joint;
    const Clock clock{T, B, T, lengths, marks};
    // Of each unit of this thread, as in forward.
    Layer layers[owned];
    typename Layer::Inputs inputs[owned];
    Unit::Entry before[owned];  // of the position that the next product of phase 0 ends
    Carried<Real> carried[owned];
    const auto owns = [&](int e) { return layers[e].unit.b < share.end_row(); };
    const auto row = [&](int e) { return layers[e].unit.b - share.first_row(); };
#pragma unroll
    for (int e = 0; e < owned; ++e) {
        const int index = threadIdx.x + e * threads;
        const int b = share.first_row() + index / own;
        const Unit unit(clock, H, D, d, b, share.j0 + index % own, b < share.end_row());
        layers[e] = Layer(cell, unit, b < share.end_row(), saved, operands, mask, dy, dx);
        carried[e] = {};
    }
    w += ((long long)d * H + share.joint_j0) * G * H;

    const WeightRows<Storage> global{w, G * H, 1, 1, begins_packet(w) && H % Part::size == 0};
    const Portion<Shape> portion(joint, threads, parts);
    const typename Part::Registers registers(share.in_columns(global, G * H), joint, share.columns(G * H).count, portion);
    // The columns of the weights of a phase.
    const auto columns_from = [&](int phase) {
        auto rows = global;
        rows.first += Cell::first_gate(phase) * H;
        return share.in_columns(rows, length(phase));
    };
    const auto weights_of = [&](int phase) {
        if constexpr (Part::resident) {
            return share.resident_weights(
                share.weights + Shape::tiles(joint) * widths_before(phase) * Shape::weights, length(phase), portion);
        } else {
            return columns_from(phase);
        }
    };
    if constexpr (Part::resident) {
        for (int phase = 0; phase < phases; ++phase) {
            weights_of(phase).load(columns_from(phase), joint, share.columns(length(phase)).count);
        }
    }
    const auto in_shared = [&](int phase) {
        return share.operand + share.padded_rows() * widths_before(phase) * Shape::width;
    };

    GridBarrier barrier;
    if (among_blocks(exchange)) barrier = GridBarrier(share.counter(arrived), gridDim.x);
    if (exchange == Exchange::block) {  // what fills the last packets is finite
        const int numbers = share.padded_rows() * widths_before(phases) * Shape::width;
        for (int k = threadIdx.x; k < numbers; k += threads) share.operand[k] = Storage(0);
        __syncthreads();
    }
#pragma unroll
    for (int e = 0; e < owned; ++e) {
        if (!owns(e)) continue;
        const Unit& unit = layers[e].unit;
        carried[e].dh = dh[unit.index()];
        if (Cell::has_c) carried[e].dc = dc[unit.index()];
        if (first > 0) {
            carried[e].direct = direct[unit.index()];
            if (phases > 1) carried[e].through = through[unit.index()];
        }
        const int s = T - 1 - first / phases;
        if (exchange == Exchange::block && first > 0) {  // what the launch before has left
            for (int gate = 0; gate < Cell::first_gate(1); ++gate) {
                *Part::place(in_shared(0), row(e), gate * H + unit.j, length(0)) = dp[unit.gate(s + 1, G, gate)];
            }
        }
        if (s + 1 < T) before[e] = unit.entry(s + 1);
        if (s >= 0) {
            inputs[e].entry = unit.entry(s);
            layers[e].load(s, inputs[e]);
        }
    }
    __syncthreads();

#pragma unroll 1
    for (int n = first; n < last; ++n) {
        // Ends position s + 1 with the transpose of phase 0, or computes that of a later phase of position s.
        const int s = T - 1 - n / phases, phase = (phases - n % phases) % phases;
        bool met = true;
        if (n > 0) {
            if (among_blocks(exchange)) {
                barrier.arrived = share.counter(arrived);
                met = barrier.wait();
            }
            const long long position = ((long long)d * T + clock.time(d, phase ? s : s + 1)) * B + share.first_row();
            share.multiply(
                dp + (position * G + Cell::first_gate(phase)) * H, G * H, length(phase), weights_of(phase), registers, joint,
                portion, in_shared(phase));
            Part::meet();
        }
        typename Layer::Gradients gradients[owned];
#pragma unroll
        for (int e = 0; e < owned; ++e) compute_late(layers[e].unit.b), compute_late(layers[e].unit.j);
#pragma unroll
        for (int e = 0; e < owned; ++e) {
            if (!owns(e)) continue;
            const Unit& unit = layers[e].unit;
            const auto enter = [&](int gate) {
                const Storage rounded(gradients[e].of_product(gate));
                if (exchange == Exchange::block) {
                    const int of = phases > 1 && gate >= Cell::first_gate(1) ? 1 : 0;
                    *Part::place(in_shared(of), row(e), (gate - Cell::first_gate(of)) * H + unit.j, length(of)) = rounded;
                }
                hand_over<exchange>(dp + unit.gate(s, G, gate), rounded);
            };
            Real product[1] = {0};
            if (n > 0) share.products(row(e), unit.j - share.j0, joint, product);
            if (!met) product[0] = not_a_number<Real>();
            if (phase == 0) {
                if (n > 0) layers[e].finish(before[e], product[0], carried[e]);
                if (s >= 0) {
                    layers[e].begin(inputs[e], carried[e], gradients[e]);
                    for (int gate = Cell::waiting; gate < G; ++gate) enter(gate);
                }
            } else if constexpr (phases > 1) {
                layers[e].operand_backward(s, inputs[e], product[0], carried[e], gradients[e]);
                for (int gate = 0; gate < Cell::waiting; ++gate) enter(gate);
            }
        }
        if (among_blocks(exchange)) {
            barrier.arrived = share.counter(arrived);
            barrier.arrive();
        } else {
            __syncthreads();
        }
        if (s < 0) continue;
        // While the other blocks arrive.
#pragma unroll
        for (int e = 0; e < owned; ++e) {
            if (!owns(e)) continue;
            if (phase == 0) layers[e].save(s, gradients[e]);
            if (exchange != Exchange::launch && (n + 1) % phases == 0) {
                before[e] = inputs[e].entry;
                if (s > 0) {
                    inputs[e].entry = layers[e].unit.entry(s - 1);
                    layers[e].load(s - 1, inputs[e]);
                }
            }
        }
    }

#pragma unroll
    for (int e = 0; e < owned; ++e) {
        if (!owns(e)) continue;
        const long long index = layers[e].unit.index();
        dh[index] = carried[e].dh;
        if (Cell::has_c) dc[index] = carried[e].dc;
        direct[index] = carried[e].direct;
        if (phases > 1) through[index] = carried[e].through;
    }
    Part::leave();
}
