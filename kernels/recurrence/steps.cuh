// One hidden unit of one row at one step: the code that the schedules share.
//
// A schedule decides where the recurrent products are computed and how an operand gets from block to block. This file
// does the rest of a step, with one thread for each unit (d, b, j): direction, row, hidden unit. The arrays, for D
// directions, T steps, a batch of B, H hidden units and G gates:
//
//   xw (D, T, B, G, H)        W_ih x, without biases          h, c (D, B, H)            the state, updated in place
//   b_ih, b_hh (D, G, H)      or null                         y (T, B, D, H)
//   lengths (B), marks (T, B), mask (D, B, H)   or null
//   operands (P, D, slots, B, H)   the operand of each of P phases of a step; that of phase 0 is h_{t-1}, cut and masked
//   saved (D, slots, B, S, H)      S values of each step for the backward pass, see the cells
//
// The state and its gradient are of type Real, which their thread alone reads again, all others of type Storage.
//
// A step has a phase for each recurrent product that needs the result of the one before. Phase k multiplies its operand
// by the rows of W_hh of the gates first_gate(k) ... first_gate(k + 1) - 1. After each phase except the last, the cell
// computes the operand of the next one; after the last, the new state. The gates are saved first, in their order.
//
// Training keeps all steps: slots = T, and step t is in slot t. Otherwise slots = 2, used in turn, so that a step can
// write the operand of the next one while others still read its own.
//
// Steps are counted by position s = 0 ... T-1 in the order of their direction: t = s forward, t = T-1-s backward.
//
// What a step reads from memory does not depend on the step before it, and nothing waits for what it writes besides its
// operand. So both have functions of their own, which a schedule calls where it would have to wait anyway.
#pragma once

#include "intrinsics.cuh"
#include "numbers.cuh"
#include "recurrence/clock.cuh"

// A unit (d, b, j), and how its row goes through the steps.
struct Unit {
    Clock clock;
    int H, D, d, b, j;
    int length;  // of the row

    Unit() = default;
    __device__ Unit(const Clock& clock, int H, int D, int d, int b, int j, bool exists)
        : clock(clock), H(H), D(D), d(d), b(b), j(j), length(exists ? clock.length(b) : 0) {}

    // What a step does with the state that enters it.
    struct Entry {
        bool past : 1;     // the row has no such step: it stays
        bool cut : 1;      // it is replaced by zero, before that
        bool repeats : 1;  // there is no such step, and y is h
    };
    __device__ Entry entry(int s) const {
        const int t = clock.time(d, s);
        return {clock.past(t, b, length), clock.cut(d, t, b, length), clock.repeats(t, b, length)};
    }

    __device__ long long index() const { return ((long long)d * clock.B + b) * H + j; }
    __device__ long long output(int s) const { return (((long long)clock.time(d, s) * clock.B + b) * D + d) * H + j; }
    // Of gate g, in arrays (D, T, B, gates, H).
    __device__ long long gate(int s, int gates, int g) const {
        return ((((long long)d * clock.T + clock.time(d, s)) * clock.B + b) * gates + g) * H + j;
    }
    // Of mask k, in arrays (masks, D, T, B, H).
    __device__ long long mask(int s, int k) const {
        return ((((long long)k * D + d) * clock.T + clock.time(d, s)) * clock.B + b) * H + j;
    }
    __device__ long long operand(int phase, int s) const {
        return ((((long long)phase * D + d) * clock.slots + clock.slot(d, s)) * clock.B + b) * H + j;
    }
    __device__ long long history(int s, int num_saved) const {
        return (((long long)d * clock.slots + clock.slot(d, s)) * clock.B + b) * num_saved * H + j;
    }
};

// Gives a cell the weights that a unit has for itself.
template <class Cell>
__device__ void load_weights(Cell& cell, const Unit& unit) {
    for (int k = 0; k < Cell::num_weights; ++k) {
        cell.weight[k] = cell.all_weights[(unit.d * Cell::num_weights + k) * unit.H + unit.j];
    }
}

// Adds the biases of the gates from `first` to before `end`, `stride` numbers apart, to their values; values[0] is that of
// gate `base`.
template <int first, int end, int base, typename Real, typename Bias, int count>
__device__ __forceinline__ void add_biases(const Bias* biases, int stride, Real (&values)[count]) {
#pragma unroll
    for (int g = first; g < end; ++g) values[g - base] += Real(biases[g * stride]);
}

template <class Cell, typename Storage>
struct Forward {
    using Real = typename Cell::Real;
    static constexpr int gates = Cell::gates, last_gate = Cell::first_gate(Cell::phases - 1);

    Cell cell;
    Unit unit;
    const Storage* xw;
    Storage *y, *operands, *saved;
    Real mask;

    Forward() = default;
    __device__ Forward(
        const Cell& cell, const Unit& unit, bool exists, const Storage* xw, const Storage* mask_array, Storage* y,
        Storage* operands, Storage* saved)
        : cell(cell), unit(unit), xw(xw), y(y), operands(operands), saved(saved), mask(1) {
        if (exists && mask_array) mask = mask_array[unit.index()];
        if constexpr (Cell::num_weights > 0) {
            // They are not given where the first operand alone is computed.
            if (exists && cell.all_weights) load_weights(this->cell, unit);
        }
    }

    // W_ih x at a position, for the gates from `first` to before `end`, and the cell's masks. The schedule adds the biases
    // before these are used.
    struct Inputs {
        Unit::Entry entry;
        Real x[gates], masks[Cell::num_masks > 0 ? Cell::num_masks : 1];
    };
    __device__ void load(int s, int first, int end, Inputs& inputs) const {
        if (inputs.entry.past) return;
#pragma unroll
        for (int g = 0; g < gates; ++g) {
            if (g >= first && g < end) inputs.x[g] = xw[unit.gate(s, gates, g)];
        }
        if constexpr (Cell::num_masks > 0) {
            for (int k = 0; k < Cell::num_masks; ++k) inputs.masks[k] = cell.all_masks[unit.mask(s, k)];
        }
    }
    // The cell as it is at a position.
    __device__ Cell at_position(const Inputs& inputs) const {
        Cell own = cell;
        if constexpr (Cell::num_masks > 0) {
            for (int k = 0; k < Cell::num_masks; ++k) own.mask[k] = inputs.masks[k];
        }
        return own;
    }

    // The operand of phase 0 of a position, from h. Where there is no step it is zero: the sum that is the gradient of the
    // weights multiplies it by zero, which would not remove a NaN or an infinity.
    __device__ Real entering(const Unit::Entry& entry, Real h) const { return entry.past || entry.cut ? Real(0) : h * mask; }

    // The values that a step saves.
    struct Values {
        Real at[Cell::num_saved];
    };

    // Between phases 0 and 1 of a position: from the `products` of phase 0, with their biases, to phase 1's operand.
    template <int count>
    __device__ Real operand(const Inputs& inputs, const Real (&products)[count], Real h, Values& values) const {
        static_assert(Cell::phases == 2 && count == Cell::first_gate(1), "a cell of more phases has more operands");
        if (inputs.entry.past) return 0;
        Real p[gates];
        for (int g = 0; g < count; ++g) p[g] = products[g];
        return cell.operand(inputs.x, p, entering(inputs.entry, h), values.at);
    }
    __device__ void save_operand(int s, const Inputs& inputs, const Values& values) const {
        if (inputs.entry.past) return;
        Storage* const to = saved + unit.history(s, Cell::num_saved);
        for (int g = 0; g < Cell::first_gate(1); ++g) to[(long long)g * unit.H] = Storage(values.at[g]);
    }

    // The end of a position: from the `products` of the last phase, with their biases, to h and c.
    template <int count>
    __device__ void finish(
        int s, const Inputs& inputs, const Real (&products)[count], Real& h, Real& c, Values& values) const {
        static_assert(count == gates - last_gate, "one product for each gate of the last phase");
        if (inputs.entry.cut) h = c = 0;
        if (inputs.entry.past) return;
        Real p[gates];
        for (int g = last_gate; g < gates; ++g) p[g] = products[g - last_gate];
        for (int k = 0; k < last_gate; ++k) values.at[k] = Real(saved[unit.history(s, Cell::num_saved) + (long long)k * unit.H]);
        at_position(inputs).forward(inputs.x, p, h, c, values.at);
    }
    __device__ void save(int s, const Inputs& inputs, const Values& values, Real h) const {
        if (saved && !inputs.entry.past) {
            Storage* const to = saved + unit.history(s, Cell::num_saved);
            for (int k = last_gate; k < Cell::num_saved; ++k) to[(long long)k * unit.H] = Storage(values.at[k]);
        }
        y[unit.output(s)] = Storage(inputs.entry.past && !inputs.entry.repeats ? Real(0) : h);
    }
};

// The gradients of one unit that the backward pass carries from step to step.
template <typename Real>
struct Carried {
    Real dh, dc;
    Real direct;   // the part of dh_{t-1} that skips the products and the mask
    Real through;  // the part that skips phase 0 alone: through phase 1's operand
};

// Further arrays are dx, dp (D, T, B, G, H), the gradients of W_ih x and of W_hh h, one array if they are the same, and
// dy (T, B, D, H) or null. slots = T.
template <class Cell, typename Storage>
struct Backward {
    using Real = typename Cell::Real;
    static constexpr int gates = Cell::gates;

    Cell cell;
    Unit unit;
    const Storage *saved, *operands, *dy;
    Storage* dx;
    Real mask;

    Backward() = default;
    __device__ Backward(
        const Cell& cell, const Unit& unit, bool exists, const Storage* saved, const Storage* operands,
        const Storage* mask_array, const Storage* dy, Storage* dx)
        : cell(cell), unit(unit), saved(saved), operands(operands), dy(dy), dx(dx), mask(1) {
        if (exists && mask_array) mask = mask_array[unit.index()];
        if constexpr (Cell::num_weights > 0) {
            if (exists) load_weights(this->cell, unit);
        }
    }

    // The values that a position saved, and the gradient of its output.
    struct Inputs {
        Unit::Entry entry;
        Real dy;
        Real values[Cell::num_saved];
    };
    __device__ void load(int s, Inputs& inputs) const {
        inputs.dy = dy && (!inputs.entry.past || inputs.entry.repeats) ? Real(dy[unit.output(s)]) : Real(0);
        if (inputs.entry.past) return;
        const Storage* const from = saved + unit.history(s, Cell::num_saved);
#pragma unroll
        for (int k = 0; k < Cell::num_saved; ++k) inputs.values[k] = Real(from[(long long)k * unit.H]);
    }

    // The gradients of the gates of a position: of W_ih x, and of W_hh h.
    struct Gradients {
        Real x[gates], hidden[gates];
        __device__ Real of_product(int g) const { return Cell::hidden_apart ? hidden[g] : x[g]; }
    };

    // The beginning of a position in the backward pass, up to the transpose of the last phase: from the gradients of the
    // state after it to those of the gates, except the first `waiting` ones.
    __device__ void begin(const Inputs& inputs, Carried<Real>& carried, Gradients& gradients) const {
        for (int g = 0; g < gates; ++g) gradients.x[g] = gradients.hidden[g] = 0;
        carried.dh += inputs.dy;
        if (inputs.entry.past) return;
        cell.backward(inputs.values, carried.dh, carried.dc, gradients.x, gradients.hidden, carried.direct);
    }
    // Those of W_hh h are stored by the schedule, as operands of the next product.
    __device__ void save(int s, const Gradients& gradients) const {
        if (!Cell::hidden_apart) return;
        for (int g = Cell::waiting; g < gates; ++g) dx[unit.gate(s, gates, g)] = Storage(gradients.x[g]);
    }

    // Between the transposes of phases 1 and 0 of a position: from the gradient of phase 1's operand to the gates that
    // waited for it.
    __device__ void operand_backward(
        int s, const Inputs& inputs, Real doperand, Carried<Real>& carried, Gradients& gradients) const {
        for (int g = 0; g < gates; ++g) gradients.x[g] = gradients.hidden[g] = 0;
        carried.through = 0;
        if (inputs.entry.past) return;
        const Real entered(operands[unit.operand(0, s)]);
        carried.through = cell.operand_backward(inputs.values, entered, doperand, gradients.x);
    }

    // The end of a position: from the transpose of phase 0 to the gradient of the state before it.
    __device__ void finish(const Unit::Entry& entry, Real product, Carried<Real>& carried) const {
        if (!entry.past) {
            if (Cell::phases > 1) product += carried.through;
            carried.dh = product * mask + carried.direct;
        }
        if (entry.cut) carried.dh = carried.dc = 0;
    }
};
