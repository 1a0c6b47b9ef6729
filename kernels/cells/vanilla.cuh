// The vanilla cell: h_t = f(W_ih x_t + W_hh h_{t-1} + b) + leak h_{t-1}.
#pragma once

#include "cells/activations.cuh"

template <typename Real_, class Activation>
struct Vanilla {
    using Real = Real_;
    enum { H, gates, num_saved = gates };
    static constexpr int phases = 1;
    static constexpr bool has_c = false, hidden_apart = false;
    static constexpr int waiting = 0;
    static constexpr int first_gate(int phase) { return phase * gates; }

    Real leak;

    __device__ void forward(const Real (&x)[1], const Real (&p)[1], Real& h, Real&, Real (&saved)[1]) const {
        saved[H] = Activation::keep(x[H] + p[H]);
        const Real value = Activation::value(saved[H]);
        h = select(leak == 0, value, value + leak * h);  // where h is infinite, the product with zero is NaN
    }

    __device__ void backward(const Real (&saved)[1], Real dh, Real&, Real (&da)[1], Real (&)[1], Real& dh_prev) const {
        da[H] = dh * Activation::slope(saved[H]);
        dh_prev = select(leak == 0, Real(0), leak * dh);
    }
};
