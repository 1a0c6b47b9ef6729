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
#include "recurrence/share.cuh"
#include "recurrence/steps.cuh"

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
    int reciprocal, int at_once, Cell cell) {
    using Real = typename Cell::Real;
    using Shape = Tile<Storage, tile_rows, columns>;
    constexpr int G = Cell::gates, phases = Cell::phases, last_gate = Cell::first_gate(phases - 1);
    using Part = Share<Storage, Real, exchange, Shape, held>;
    using Layer = Forward<Cell, Storage>;
    static_assert(held == 0 || phases == 1, "registers hold the rows of one phase");
    DYNAMIC_SHARED(Storage, memory);
    const int D = gridDim.z, widths = Part::widths(H);
    const Part share(
        memory, B, H, units, rows, chunk, {parts, reciprocal}, at_once, 2 * G * units,
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
    const Portion<Shape> portion(G * joint, threads, share.parts);
    const typename Part::Registers registers(
        global, G * joint, columns_of_block, portion, share.piece(Shape::widths(columns_of_block)));
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
            phases == 1 ? portion : Portion<Shape>(N, threads, share.parts), in_shared(phase));
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
    int units, int rows, int chunk, int parts, int reciprocal, int at_once, Cell cell) {
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
    const Part share(
        memory, B, H, units, rows, chunk, {parts, reciprocal}, at_once, 0, Part::most_joint(units, H), widths_before(phases));
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
    const Portion<Shape> portion(joint, threads, share.parts);
    const int columns_of_block = share.columns(G * H).count;
    const typename Part::Registers registers(
        share.in_columns(global, G * H), joint, columns_of_block, portion, share.piece(Shape::widths(columns_of_block)));
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
