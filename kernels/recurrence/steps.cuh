// One hidden unit of one row at one step: the code that the schedules share.
//
// A schedule decides where the recurrent products are computed and how an operand gets from block to block. This file
// does the rest of a step, with one thread for each unit (d, b, j): direction, row, hidden unit. The arrays, for D
// directions, T steps, a batch of B, H hidden units and G gates:
//
//   xw (D, T, B, G, H)        W_ih x, without biases          h, c (D, B, H)            the state, updated in place
//   b_ih, b_hh (D, G, H)      or null                         y (T, B, D, H)
//   lengths (B), resets (T, B), mask (D, B, H)   or null
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
#pragma once

#include "intrinsics.cuh"
#include "numbers.cuh"
#include "recurrence/clock.cuh"

template <class Cell, typename Storage>
struct Forward {
    using Real = typename Cell::Real;

    Cell cell;
    Clock clock;
    int H, D;
    const Storage *xw, *b_ih, *b_hh, *mask;
    Storage *y, *operands, *saved;

    __device__ long long operand_at(int phase, int d, int s, int b, int j) const {
        return ((((long long)phase * D + d) * clock.slots + clock.slot(d, s)) * clock.B + b) * H + j;
    }

    // The operand of phase 0 of position s, from h. Past a length it is zero: the sum that is the gradient of the weights
    // multiplies it by zero, which would not remove a NaN or an infinity.
    __device__ Real entering(int d, int s, int b, int j, Real h) const {
        const int t = clock.time(d, s);
        if (clock.past(t, b) || clock.cut(d, t, b)) h = 0;
        return mask ? h * Real(mask[((long long)d * clock.B + b) * H + j]) : h;
    }

    __device__ Real input(int d, int t, int b, int g, int j) const {
        const Real bias = b_ih ? Real(b_ih[(d * Cell::gates + g) * H + j]) : Real(0);
        return Real(xw[((((long long)d * clock.T + t) * clock.B + b) * Cell::gates + g) * H + j]) + bias;
    }

    __device__ Real hidden(int d, int g, int j, Real product) const {
        return b_hh ? product + Real(b_hh[(d * Cell::gates + g) * H + j]) : product;
    }

    __device__ Storage* saved_at(int d, int s, int b, int j) const {
        return saved + (((long long)d * clock.slots + clock.slot(d, s)) * clock.B + b) * Cell::num_saved * H + j;
    }

    // Between phases 0 and 1 of position s: from the `products` of phase 0 (gate g at g * stride) to phase 1's operand.
    template <typename Product>
    __device__ Real operand(int d, int s, int b, int j, const Product* products, int stride, Real h) const {
        static_assert(Cell::phases == 2, "a cell of more phases has an operand after each of them");
        constexpr int end = Cell::first_gate(1);
        const int t = clock.time(d, s);
        if (clock.past(t, b)) return 0;
        Real x[Cell::gates], p[Cell::gates], values[Cell::num_saved];
        for (int g = 0; g < end; ++g) {
            x[g] = input(d, t, b, g, j);
            p[g] = hidden(d, g, j, Real(products[g * stride]));
        }
        const Real next = cell.operand(x, p, entering(d, s, b, j, h), values);
        Storage* const to = saved_at(d, s, b, j);
        for (int g = 0; g < end; ++g) to[(long long)g * H] = Storage(values[g]);
        return next;
    }

    // The end of position s: from the `products` of the last phase to h, c and y.
    template <typename Product>
    __device__ void finish(int d, int s, int b, int j, const Product* products, int stride, Real& h, Real& c) const {
        const int t = clock.time(d, s);
        const bool past = clock.past(t, b);
        if (!past) {
            constexpr int first = Cell::first_gate(Cell::phases - 1);
            if (clock.cut(d, t, b)) h = c = 0;
            Real x[Cell::gates], p[Cell::gates], values[Cell::num_saved];
            Storage* const to = saved ? saved_at(d, s, b, j) : nullptr;
            for (int g = first; g < Cell::gates; ++g) {
                x[g] = input(d, t, b, g, j);
                p[g] = hidden(d, g, j, Real(products[(g - first) * stride]));
            }
            for (int k = 0; k < first; ++k) values[k] = Real(to[(long long)k * H]);
            cell.forward(x, p, h, c, values);
            if (to) {
                for (int k = first; k < Cell::num_saved; ++k) to[(long long)k * H] = Storage(values[k]);
            }
        }
        y[(((long long)t * clock.B + b) * D + d) * H + j] = Storage(past ? Real(0) : h);
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

    Cell cell;
    Clock clock;
    int H, D;
    const Storage *saved, *operands, *mask, *dy;
    Storage *dx, *dp;

    __device__ long long gate_at(int d, int t, int b, int g, int j) const {
        return ((((long long)d * clock.T + t) * clock.B + b) * Cell::gates + g) * H + j;
    }

    __device__ void load(int d, int t, int b, int j, Real (&values)[Cell::num_saved]) const {
        const Storage* from = saved + (((long long)d * clock.T + t) * clock.B + b) * Cell::num_saved * H + j;
        for (int k = 0; k < Cell::num_saved; ++k) values[k] = Real(from[(long long)k * H]);
    }

    // The beginning of position s in the backward pass, up to the transpose of the last phase: from the gradients of the
    // state after it to those of the gates, except the first `waiting` ones. `to_product` is called with each gate and its
    // operand of the transpose.
    template <class Store>
    __device__ void begin(int d, int s, int b, int j, Carried<Real>& carried, Store to_product) const {
        const int t = clock.time(d, s);
        Real da[Cell::gates], da_hidden[Cell::gates];
        for (int g = 0; g < Cell::gates; ++g) da[g] = da_hidden[g] = 0;
        if (!clock.past(t, b)) {
            if (dy) carried.dh += Real(dy[(((long long)t * clock.B + b) * D + d) * H + j]);
            Real values[Cell::num_saved];
            load(d, t, b, j, values);
            cell.backward(values, carried.dh, carried.dc, da, da_hidden, carried.direct);
        }
        for (int g = Cell::waiting; g < Cell::gates; ++g) {
            if (Cell::hidden_apart) dx[gate_at(d, t, b, g, j)] = Storage(da[g]);
            to_product(g, Cell::hidden_apart ? da_hidden[g] : da[g]);
        }
    }

    // Between the transposes of phases 1 and 0 of position s: from the gradient of phase 1's operand to the gates that
    // waited for it.
    template <class Store>
    __device__ void operand_backward(
        int d, int s, int b, int j, Real doperand, Carried<Real>& carried, Store to_product) const {
        const int t = clock.time(d, s);
        Real da[Cell::gates] = {};
        carried.through = 0;
        if (!clock.past(t, b)) {
            Real values[Cell::num_saved];
            load(d, t, b, j, values);
            const Real entered(operands[(((long long)d * clock.T + t) * clock.B + b) * H + j]);
            carried.through = cell.operand_backward(values, entered, doperand, da);
        }
        for (int g = 0; g < Cell::waiting; ++g) to_product(g, da[g]);
    }

    // The end of position s: from the transpose of phase 0 to the gradient of the state before it.
    __device__ void finish(int d, int s, int b, int j, Real product, Carried<Real>& carried) const {
        const int t = clock.time(d, s);
        if (clock.past(t, b)) return;
        if (Cell::phases > 1) product += carried.through;
        if (mask) product *= Real(mask[((long long)d * clock.B + b) * H + j]);
        carried.dh = product + carried.direct;
        if (clock.cut(d, t, b)) carried.dh = carried.dc = 0;
    }
};
