// Products and gates in one kernel: the schedules that need no cuBLAS.
//
// Block (x, y, z) owns `units` hidden units of direction z with all of their gates, and `rows` rows of the batch. Its
// thread e owns row e / units and unit e % units: after its step's product it computes the rest of the step, and its state
// never leaves its registers. The schedules differ in how a step's operand, h_{t-1} or the gate gradients of step t + 1,
// gets to every block that multiplies it:
//
//   launch   one launch for each product: the end of a launch is the barrier. Each launch reads the weights again, from
//            the L2 cache. begin_forward writes the first operand before the first launch.
//   block    one block has all hidden units, so the operand stays in shared memory. Weights stay in shared memory, and
//            if `held` the first columns of the first rows in registers, see Held.
//   grid     the blocks of one direction and the same rows exchange it through global memory, by publish() and
//            read_published(), with a barrier of their own. Weights stay in shared memory.
//
// A pass has the cell's phases of all steps; the backward pass has one more, which ends the first step. A launch computes
// the phases `first` ... `last` - 1. Unless the exchange is launch, these are whole steps, and all of them where no watchdog
// ends a launch. If blocks of a launch do not meet, what it computes from then on is NaN.
//
// A block has at most `threads` threads; with more, a thread would have too few registers for its share of a product.
#include "recurrence/product.cuh"
#include "recurrence/steps.cuh"

enum class Exchange { launch, block, grid };

// K numbers, in whole packets.
template <typename Storage>
__device__ constexpr int padded(int K) {
    return (K + Packet<Storage>::size - 1) / Packet<Storage>::size * Packet<Storage>::size;
}

// Where the columns of each phase begin in a row of shared memory, which has H of them for each gate of the phase, in whole
// packets; of all phases, its length.
template <class Cell, typename Storage>
__device__ constexpr int phase_begin(int phase, int H) {
    int begin = 0;
    for (int k = 0; k < phase; ++k) begin += padded<Storage>((Cell::first_gate(k + 1) - Cell::first_gate(k)) * H);
    return begin;
}

// The part of the work that a block does, and its dynamic shared memory: weights and operand, of type Storage, and sums,
// of type Real.
template <typename Storage, typename Real, Exchange exchange, int columns, bool held>
struct Share {
    static constexpr bool resident = exchange != Exchange::launch;
    static_assert(exchange == Exchange::block || !held, "only under block a warp has the same rows at every step");
    static constexpr int size = Packet<Storage>::size;
    using Registers = Held<Real, Storage, columns, held>;

    int B, d, j0, units, rows, chunk, parts;
    int row, unit;  // of this thread
    Storage *weights, *operand;
    Real* sums;

    // `weight_rows` rows of `length` numbers are resident, `chunk` numbers of each operand row in shared memory at once.
    __device__ Share(
        Storage* memory, int B, int H, int most_units, int rows, int chunk, int parts, int weight_rows, int length)
        : B(B), d(blockIdx.z), j0(blockIdx.x * most_units), units(min(most_units, H - int(blockIdx.x) * most_units)),
          rows(rows), chunk(chunk), parts(parts), row(threadIdx.x / units), unit(threadIdx.x % units), weights(memory),
          operand(memory + (resident ? weight_rows * length - shortened(weight_rows) * held_of(length) : 0)),
          sums(reinterpret_cast<Real*>(operand + rows * chunk)) {
        if constexpr (sizeof(Storage) < sizeof(Real)) {  // the next aligned address
            sums = reinterpret_cast<Real*>((reinterpret_cast<size_t>(sums) + sizeof(Real) - 1) / sizeof(Real) * sizeof(Real));
        }
    }

    // The first columns of the first rows are in registers: held_of(length) columns of shortened(N) rows.
    __device__ static int shortened(int weight_rows) {
        return held ? min(weight_rows, int(blockDim.x) / tile_lanes<columns> * tile_rows) : 0;
    }
    __device__ static int held_of(int length) { return held ? min(length, tile_width<columns, Storage>) : 0; }

    // Copies K columns of N rows in global memory to shared memory, from column `begin` on, and zeros up to a whole packet.
    // What is in registers is left out.
    __device__ void load(const WeightRows<Storage, false>& from, int N, int K, int length, int begin) const {
        const auto to = resident_rows(N, length);
        for (int n = threadIdx.x / 32; n < N; n += blockDim.x / 32) {
            const Storage* const source = from.row(n);
            Storage* const target = weights + (to.row(n) - weights) + begin;
            for (int k = (n < to.shortened ? to.held : 0) + threadIdx.x % 32; k < padded<Storage>(K); k += 32) {
                target[k] = k < K ? __ldg(source + k) : Storage(0);
            }
        }
    }

    // N rows, one after another in shared memory.
    __device__ WeightRows<Storage, true> resident_rows(int N, int length) const {
        return {weights, length, 1, 1, true, shortened(N), held_of(length)};
    }

    __device__ int first_row() const { return int(blockIdx.y) * rows; }
    __device__ int rows_of_batch() const { return max(0, min(rows, B - first_row())); }
    __device__ bool owns() const { return row < rows_of_batch(); }
    __device__ int group() const { return blockIdx.z * gridDim.y + blockIdx.y; }

    // Copies columns [begin, end) of the block's rows to shared memory, and zeros up to a whole packet. The first row of
    // `source` is the block's first.
    __device__ void stage(const Storage* source, long long stride, int begin, int end) const {
        const bool whole = begins_packet(source) && stride % size == 0 && end % size == 0;
        for (int r = threadIdx.x / 32; r < rows_of_batch(); r += blockDim.x / 32) {
            const Storage* const from = source + r * stride;
            Storage* const to = operand + r * chunk - begin;
            int k = begin + threadIdx.x % 32 * size;
            if (whole) {
#pragma unroll 4
                for (; k < end; k += 32 * size) {
                    store_packet(to + k, exchange == Exchange::grid ? read_published_packet(from + k) : load_packet(from + k));
                }
            }
#pragma unroll 1
            for (; k < end; k += 32 * size) {
                Packet<Storage> packet;
#pragma unroll
                for (int e = 0; e < size; ++e) packet.at[e] = k + e < end ? number(from + k + e) : Storage(0);
                store_packet(to + k, packet);
            }
        }
    }

    __device__ static Storage number(const Storage* address) {
        return exchange == Exchange::grid ? read_published(address) : *address;
    }

    // sums = operand times the rows of `w`, for N rows of length K. `source` is the operand in global memory; under
    // Exchange::block it is in shared memory already, K columns of each row at `in_shared`. All threads call it, and
    // afterwards all may read the sums.
    template <class Rows>
    __device__ void multiply_rows(
        const Storage* source, long long stride, int K, Rows w, const Registers& registers, int N,
        const Storage* in_shared) const {
        const int R = rows_of_batch();
        if constexpr (exchange == Exchange::block) {
            multiply<columns>(in_shared, chunk, K, R, w, registers, N, sums, parts, false);
            __syncthreads();
            return;
        }
        for (int begin = 0; begin < K; begin += chunk) {
            const int end = min(K, begin + chunk);
            stage(source, stride, begin, end);
            __syncthreads();
            Rows part = w;
            part.first += begin;
            multiply<columns>(operand, chunk, end - begin, R, part, registers, N, sums, parts, begin > 0);
            __syncthreads();
        }
    }

    // Of this thread's row and unit, for `count` gates of N weight rows.
    template <int count>
    __device__ void products(int N, Real (&totals)[count]) const {
        add_parts(sums + row * N + unit, units, rows_of_batch() * N, parts, totals);
    }
};

template <typename Real>
__device__ __forceinline__ Real not_a_number() {
    return Real(__int_as_float(0x7fc00000));
}

// Writes `value` for the blocks that read `address`, in this launch under Exchange::grid, else in a later one.
template <Exchange exchange, typename Storage>
__device__ __forceinline__ void hand_over(Storage* address, Storage value) {
    if (exchange == Exchange::grid) {
        publish(address, value);
    } else {
        *address = value;
    }
}

// w (D, G, H, H) is w_hh. Shared memory, in numbers: units * G rows of weights, each of H numbers in whole packets, except
// those in registers (none under Exchange::launch); rows * chunk of operands (under Exchange::block a row has the operands of
// all phases, each in whole packets); parts * rows * units * G of sums. `arrived` (gridDim.z * gridDim.y) is zero, and used
// under Exchange::grid only.
template <class Cell, typename Storage, int threads, Exchange exchange, int columns, bool held>
__global__ void __launch_bounds__(threads, 1) forward(
    const Storage* w, const Storage* xw, const Storage* b_ih, const Storage* b_hh, const int* lengths, const Marks* marks,
    const Storage* mask, typename Cell::Real* h, typename Cell::Real* c, Storage* y, Storage* operands, Storage* saved,
    unsigned* arrived, int T, int B, int H, int slots, int first, int last, int units, int rows, int chunk, int parts,
    Cell cell) {
    using Real = typename Cell::Real;
    constexpr int G = Cell::gates, phases = Cell::phases, last_gate = Cell::first_gate(phases - 1);
    using Part = Share<Storage, Real, exchange, columns, held>;
    using Layer = Forward<Cell, Storage>;
    static_assert(!held || phases == 1, "registers hold the rows of one phase");
    DYNAMIC_SHARED(Storage, memory);
    const int D = gridDim.z, length = padded<Storage>(H);
    const Part share(memory, B, H, units, rows, exchange == Exchange::block ? phases * length : chunk, parts, G * units, length);
    const int d = share.d, own = share.units;
    const bool owns = share.owns();
    const Layer layer(
        cell, Unit({T, B, slots, lengths, marks}, H, D, d, share.first_row() + share.row, share.j0 + share.unit, owns), owns,
        xw, b_ih, b_hh, mask, y, operands, saved);
    const Unit& unit = layer.unit;
    w += (long long)d * G * H * H;

    const WeightRows<Storage, false> global{w + (long long)share.j0 * H, H, own, H, begins_packet(w) && H % Part::size == 0};
    const typename Part::Registers registers(global, G * own, H);
    if constexpr (Part::resident) share.load(global, G * own, H, length, 0);
    // Weight rows from gate g on: those of a block are together in shared memory, and apart in w_hh.
    const auto rows_from = [&](int g) {
        if constexpr (Part::resident) {
            auto rows = share.resident_rows(G * own, length);
            rows.first += g * own * length;
            return rows;
        } else {
            auto rows = global;
            rows.first += (long long)g * H * H;
            return rows;
        }
    };
    // The operand of a phase of position s, from the thread that owns the unit.
    const auto enter = [&](int phase, int s, Real value) {
        const Storage rounded(value);
        if (exchange == Exchange::block) share.operand[share.row * share.chunk + phase * length + unit.j] = rounded;
        if (exchange != Exchange::block || slots == T) hand_over<exchange>(operands + unit.operand(phase, s), rounded);
    };

    GridBarrier barrier;
    if (exchange == Exchange::grid) barrier = GridBarrier(arrived + share.group(), gridDim.x);
    if (exchange == Exchange::block) {  // what fills the last packets is finite
        for (int k = threadIdx.x; k < rows * share.chunk; k += blockDim.x) share.operand[k] = Storage(0);
        __syncthreads();
    }
    Real state = 0, cell_state = 0;
    const int first_position = first / phases;
    typename Layer::Inputs inputs;
    Unit::Entry next{};
    if (owns) {
        state = h[unit.index()];
        if (Cell::has_c) cell_state = c[unit.index()];
        inputs.entry = unit.entry(first_position);
        if (first_position + 1 < T) next = unit.entry(first_position + 1);
        if (exchange != Exchange::launch) enter(0, first_position, layer.entering(inputs.entry, state));
        if (exchange == Exchange::launch) {
            const int phase = first % phases;
            layer.load(first_position, Cell::first_gate(phase), Cell::first_gate(phase + 1), inputs);
        } else {
            layer.load(first_position, 0, G, inputs);
        }
    }
    if (exchange == Exchange::grid) barrier.arrive();
    __syncthreads();

    for (int n = first; n < last; ++n) {
        const int s = n / phases, phase = n % phases;
        const int g = Cell::first_gate(phase), N = (Cell::first_gate(phase + 1) - g) * own;
        const bool met = exchange != Exchange::grid || barrier.wait();
        share.multiply_rows(
            operands + layer.unit.operand(phase, s) - ((long long)share.row * H + unit.j), H, H, rows_from(g), registers, N,
            share.operand + phase * length);
        typename Layer::Values values;
        if (owns && phase == phases - 1) {
            Real products[G - last_gate];
            share.products(N, products);
            layer.finish(s, inputs, products, state, cell_state, values);
            if (!met) state = cell_state = not_a_number<Real>();
            if (s + 1 < T) enter(0, s + 1, layer.entering(next, state));
        }
        if constexpr (phases > 1) {
            if (owns && phase == 0) {
                Real products[Cell::first_gate(1)];
                share.products(N, products);
                enter(1, s, layer.operand(inputs, products, state, values));
            }
        }
        if (exchange == Exchange::grid) {
            barrier.arrive();
        } else {
            __syncthreads();
        }
        // While the other blocks arrive.
        if (owns && phase == phases - 1) {
            layer.save(s, inputs, values, state);
            inputs.entry = next;
            if (exchange != Exchange::launch && s + 1 < T) {
                layer.load(s + 1, 0, G, inputs);
                if (s + 2 < T) next = unit.entry(s + 2);
            }
        }
        if constexpr (phases > 1) {
            if (owns && phase == 0) layer.save_operand(s, inputs, values);
        }
    }

    if (owns) {
        h[unit.index()] = state;
        if (Cell::has_c) c[unit.index()] = cell_state;
    }
}

// w (D, H, G, H) is w_hh transposed. Shared memory as in forward, but `units` rows of weights, which like the rows of
// operands under Exchange::block have the columns of all gates, those of each phase in whole packets; parts * rows * units of
// sums. dh and dc (D, B, H) are the gradients of the state, updated in place; direct and through (D, B, H) carry their parts
// from launch to launch.
template <class Cell, typename Storage, int threads, Exchange exchange, int columns, bool held>
__global__ void __launch_bounds__(threads, 1) backward(
    const Storage* w, const Storage* saved, const Storage* operands, const int* lengths, const Marks* marks,
    const Storage* mask, const Storage* dy, typename Cell::Real* dh, typename Cell::Real* dc, typename Cell::Real* direct,
    typename Cell::Real* through, Storage* dx, Storage* dp, unsigned* arrived, int T, int B, int H, int first, int last,
    int units, int rows, int chunk, int parts, Cell cell) {
    using Real = typename Cell::Real;
    constexpr int G = Cell::gates, phases = Cell::phases;
    using Part = Share<Storage, Real, exchange, columns, held>;
    using Layer = Backward<Cell, Storage>;
    static_assert(!held || phases == 1, "registers hold the rows of one phase");
    DYNAMIC_SHARED(Storage, memory);
    const int D = gridDim.z, length = phase_begin<Cell, Storage>(phases, H);
    const Part share(memory, B, H, units, rows, exchange == Exchange::block ? length : chunk, parts, units, length);
    const int d = share.d, own = share.units;
    const bool owns = share.owns();
    const Layer layer(
        cell, Unit({T, B, T, lengths, marks}, H, D, d, share.first_row() + share.row, share.j0 + share.unit, owns), owns,
        saved, operands, mask, dy, dx);
    const Unit& unit = layer.unit;
    w += ((long long)d * H + share.j0) * G * H;

    const WeightRows<Storage, false> global{w, G * H, 1, 1, begins_packet(w) && H % Part::size == 0};
    const typename Part::Registers registers(global, own, G * H);
    if constexpr (Part::resident) {
        for (int phase = 0; phase < phases; ++phase) {
            auto columns_of = global;
            columns_of.first += Cell::first_gate(phase) * H;
            share.load(
                columns_of, own, (Cell::first_gate(phase + 1) - Cell::first_gate(phase)) * H, length,
                phase_begin<Cell, Storage>(phase, H));
        }
    }
    // The columns of the weights of a phase.
    const auto columns_of = [&](int phase) {
        if constexpr (Part::resident) {
            auto rows = share.resident_rows(own, length);
            rows.first += phase_begin<Cell, Storage>(phase, H);
            return rows;
        } else {
            auto rows = global;
            rows.first += Cell::first_gate(phase) * H;
            return rows;
        }
    };

    GridBarrier barrier;
    if (exchange == Exchange::grid) barrier = GridBarrier(arrived + share.group(), gridDim.x);
    if (exchange == Exchange::block) {  // what fills the last packets is finite
        for (int k = threadIdx.x; k < rows * share.chunk; k += blockDim.x) share.operand[k] = Storage(0);
        __syncthreads();
    }
    Carried<Real> carried{};
    typename Layer::Inputs inputs;
    Unit::Entry before{};  // of the position that the next product of phase 0 ends
    if (owns) {
        carried.dh = dh[unit.index()];
        if (Cell::has_c) carried.dc = dc[unit.index()];
        if (first > 0) {
            carried.direct = direct[unit.index()];
            if (phases > 1) carried.through = through[unit.index()];
        }
        const int s = T - 1 - first / phases;
        if (exchange == Exchange::block && first > 0) {  // what the launch before has left
            for (int gate = 0; gate < Cell::first_gate(1); ++gate) {
                share.operand[share.row * share.chunk + gate * H + unit.j] = dp[unit.gate(s + 1, G, gate)];
            }
        }
        if (s + 1 < T) before = unit.entry(s + 1);
        if (s >= 0) {
            inputs.entry = unit.entry(s);
            layer.load(s, inputs);
        }
    }
    __syncthreads();

    for (int n = first; n < last; ++n) {
        // Ends position s + 1 with the transpose of phase 0, or computes that of a later phase of position s.
        const int s = T - 1 - n / phases, phase = (phases - n % phases) % phases;
        const int g = Cell::first_gate(phase), K = (Cell::first_gate(phase + 1) - g) * H;
        bool met = true;
        if (n > 0) {
            if (exchange == Exchange::grid) met = barrier.wait();
            share.multiply_rows(
                dp + unit.gate(phase ? s : s + 1, G, g) - ((long long)share.row * G * H + unit.j), G * H, K,
                columns_of(phase), registers, own, share.operand + phase_begin<Cell, Storage>(phase, H));
        }
        typename Layer::Gradients gradients;
        if (owns) {
            const auto enter = [&](int gate) {
                const Storage rounded(gradients.of_product(gate));
                if (exchange == Exchange::block) {
                    const int of = phases > 1 && gate >= Cell::first_gate(1) ? 1 : 0;
                    const int column = phase_begin<Cell, Storage>(of, H) + (gate - Cell::first_gate(of)) * H + unit.j;
                    share.operand[share.row * share.chunk + column] = rounded;
                }
                hand_over<exchange>(dp + unit.gate(s, G, gate), rounded);
            };
            Real product[1] = {0};
            if (n > 0) share.products(own, product);
            if (!met) product[0] = not_a_number<Real>();
            if (phase == 0) {
                if (n > 0) layer.finish(before, product[0], carried);
                if (s >= 0) {
                    layer.begin(inputs, carried, gradients);
                    for (int gate = Cell::waiting; gate < G; ++gate) enter(gate);
                }
            } else if constexpr (phases > 1) {
                layer.operand_backward(s, inputs, product[0], carried, gradients);
                for (int gate = 0; gate < Cell::waiting; ++gate) enter(gate);
            }
        }
        if (exchange == Exchange::grid) {
            barrier.arrive();
        } else {
            __syncthreads();
        }
        // While the other blocks arrive.
        if (!owns || s < 0) continue;
        if (phase == 0) layer.save(s, gradients);
        if (exchange != Exchange::launch && (n + 1) % phases == 0) {
            before = inputs.entry;
            if (s > 0) {
                inputs.entry = unit.entry(s - 1);
                layer.load(s - 1, inputs);
            }
        }
    }

    if (owns) {
        dh[unit.index()] = carried.dh;
        if (Cell::has_c) dc[unit.index()] = carried.dc;
        direct[unit.index()] = carried.direct;
        if (phases > 1) through[unit.index()] = carried.through;
    }
}
