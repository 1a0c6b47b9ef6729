// One hidden unit of one row at one step: what the schedules have in common.
//
// A schedule decides where the recurrent products are computed and how they get from block to block. Around a product
// stands what is done here, by one thread for each unit (d, b, j): direction, row, hidden unit. The arrays, for D
// directions, T steps, a batch of B, H hidden units and G gates:
//
//   xw (D, T, B, G, H)        W_ih x, without biases          h, c (D, B, H)            the state, updated in place
//   b_ih, b_hh (D, G, H)      or null                         y (T, B, D, H)
//   lengths (B), resets (T, B), mask (D, B, H)   or null
//   entered (D, slots, B, H)  what enters the product with W_hh at a step: h_{t-1}, cut and masked
//   second (D, slots, B, H)   what enters the second product of a step, where a cell has two: u = r h_{t-1}
//   kept (D, slots, B, S, H)  what a step keeps for the backward pass: S values, see the cells
//
// Training keeps all steps, slots = T, and step t lies in slot t. Otherwise slots = 2, used in turn, so that a step can
// write what enters the next one while others still read what entered this one.
//
// Steps are counted by position s = 0 ... T-1 in the order of their direction: t = s forward, t = T-1-s backward.
#pragma once

#include "intrinsics.cuh"

struct Clock {
    int T, B, slots;
    const int* lengths;
    const bool* resets;

    __device__ int time(int d, int s) const { return d == 0 ? s : T - 1 - s; }
    __device__ int slot(int d, int s) const { return slots == T ? time(d, s) : s % slots; }
    __device__ bool past(int t, int b) const { return lengths && t >= lengths[b]; }
    // No state enters step t from the step before it in its direction: a reset at t parts t - 1 from t.
    __device__ bool cut(int d, int t, int b) const {
        const int border = d == 0 ? t : t + 1;
        return resets && border < T && !past(border, b) && resets[(long long)border * B + b];
    }
};

template <class Cell>
struct Forward {
    using Real = typename Cell::Real;

    Cell cell;
    Clock clock;
    int H, D;
    const Real *xw, *b_ih, *b_hh, *mask;
    Real *y, *entered, *second, *kept;

    // Of an array (D, slots, B, H).
    __device__ long long at(int d, int slot, int b, int j) const {
        return (((long long)d * clock.slots + slot) * clock.B + b) * H + j;
    }

    // h as it enters the product of position s.
    __device__ Real entering(int d, int s, int b, int j, Real h) const {
        if (clock.cut(d, clock.time(d, s), b)) h = 0;
        return mask ? h * mask[((long long)d * clock.B + b) * H + j] : h;
    }

    __device__ Real input(int d, int t, int b, int g, int j) const {
        const Real bias = b_ih ? b_ih[(d * Cell::gates + g) * H + j] : Real(0);
        return xw[((((long long)d * clock.T + t) * clock.B + b) * Cell::gates + g) * H + j] + bias;
    }

    __device__ Real hidden(int d, int g, int j, Real product) const {
        return b_hh ? product + b_hh[(d * Cell::gates + g) * H + j] : product;
    }

    __device__ Real* kept_at(int d, int s, int b, int j) const {
        return kept + (((long long)d * clock.slots + clock.slot(d, s)) * clock.B + b) * Cell::saved * H + j;
    }

    // Between the two products of position s: from the first one's `products` (gate g at g * stride) to u.
    __device__ Real open(int d, int s, int b, int j, const Real* products, int stride, Real h) const {
        const int t = clock.time(d, s);
        if (clock.past(t, b)) return 0;
        Real x[Cell::gates], p[Cell::gates], values[Cell::saved];
        for (int g = 0; g < 2; ++g) {
            x[g] = input(d, t, b, g, j);
            p[g] = hidden(d, g, j, products[g * stride]);
        }
        const Real u = cell.open(x, p, entering(d, s, b, j, h), values);
        Real* const to = kept_at(d, s, b, j);
        to[0] = values[0];
        to[H] = values[1];
        return u;
    }

    // The end of position s: from the last product to h, c and y.
    __device__ void finish(int d, int s, int b, int j, const Real* products, int stride, Real& h, Real& c) const {
        const int t = clock.time(d, s);
        const bool past = clock.past(t, b);
        if (!past) {
            constexpr int first = Cell::products == 2 ? 2 : 0;
            if (clock.cut(d, t, b)) h = c = 0;
            Real x[Cell::gates], p[Cell::gates], values[Cell::saved];
            Real* const to = kept ? kept_at(d, s, b, j) : nullptr;
            for (int g = first; g < Cell::gates; ++g) {
                x[g] = input(d, t, b, g, j);
                p[g] = hidden(d, g, j, products[(g - first) * stride]);
            }
            for (int k = 0; k < first; ++k) values[k] = to[(long long)k * H];
            cell.forward(x, p, h, c, values);
            if (to) {
                for (int k = first; k < Cell::saved; ++k) to[(long long)k * H] = values[k];
            }
        }
        y[(((long long)t * clock.B + b) * D + d) * H + j] = past ? Real(0) : h;
    }
};

// What flows from step to step on the way back, of one unit.
template <typename Real>
struct Carried {
    Real dh, dc;
    Real direct;   // the part of dh_{t-1} that passes by the products
    Real through;  // the part that passes by the last product alone, and by the mask: through u
};

// Also dx, dp (D, T, B, G, H): gradients of W_ih x and of W_hh h, one array where they are the same; dy (T, B, D, H)
// or null. slots = T.
template <class Cell>
struct Backward {
    using Real = typename Cell::Real;

    Cell cell;
    Clock clock;
    int H, D;
    const Real *kept, *entered, *mask, *dy;
    Real *dx, *dp;

    __device__ long long gate_at(int d, int t, int b, int g, int j) const {
        return ((((long long)d * clock.T + t) * clock.B + b) * Cell::gates + g) * H + j;
    }

    __device__ void load(int d, int t, int b, int j, Real (&values)[Cell::saved]) const {
        const Real* from = kept + (((long long)d * clock.T + t) * clock.B + b) * Cell::saved * H + j;
        for (int k = 0; k < Cell::saved; ++k) values[k] = from[(long long)k * H];
    }

    // The beginning of position s on the way back, up to a product's transpose: from the gradients of the state after it
    // to those of the gates, but for the gates that have yet to wait for the second product's. `to_product` gets what
    // enters the transpose, gate g.
    template <class Store>
    __device__ void begin(int d, int s, int b, int j, Carried<Real>& carried, Store to_product) const {
        const int t = clock.time(d, s);
        constexpr int first = Cell::products == 2 ? 1 : 0;
        Real da[Cell::gates], da_hidden[Cell::gates];
        for (int g = 0; g < Cell::gates; ++g) da[g] = da_hidden[g] = 0;
        if (!clock.past(t, b)) {
            if (dy) carried.dh += dy[(((long long)t * clock.B + b) * D + d) * H + j];
            Real values[Cell::saved];
            load(d, t, b, j, values);
            cell.backward(values, carried.dh, carried.dc, da, da_hidden, carried.direct);
        }
        for (int g = first; g < Cell::gates; ++g) {
            if (Cell::hidden_apart) dx[gate_at(d, t, b, g, j)] = da[g];
            to_product(g, Cell::hidden_apart ? da_hidden[g] : da[g]);
        }
    }

    // Between the two products of position s: from du to the gate that waited.
    template <class Store>
    __device__ void close(int d, int s, int b, int j, Real du, Carried<Real>& carried, Store to_product) const {
        const int t = clock.time(d, s);
        Real da[Cell::gates] = {};
        carried.through = 0;
        if (!clock.past(t, b)) {
            Real values[Cell::saved];
            load(d, t, b, j, values);
            const Real h_in = entered[(((long long)d * clock.T + t) * clock.B + b) * H + j];
            carried.through = cell.close(values, h_in, du, da);
        }
        to_product(0, da[0]);
    }

    // The end of position s: from the last product's transpose to the gradient of the state before it.
    __device__ void finish(int d, int s, int b, int j, Real product, Carried<Real>& carried) const {
        const int t = clock.time(d, s);
        if (clock.past(t, b)) return;
        if (Cell::products == 2) product += carried.through;
        if (mask) product *= mask[((long long)d * clock.B + b) * H + j];
        carried.dh = product + carried.direct;
        if (clock.cut(d, t, b)) carried.dh = carried.dc = 0;
    }
};
