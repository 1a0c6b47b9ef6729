// The vanilla cell: h_t = f(W_ih x_t + W_hh h_{t-1} + b) + leak h_{t-1}.
#pragma once

#include "cells/options.cuh"

template <typename Real_, class Activation, int leak_at = 0, class... Options>
struct Vanilla : Members<Real_, Numbers<1>, Options...> {  // a later count of numbers is the one that holds
    using Real = Real_;
    enum { H, gates, num_saved = gates };
    static constexpr int phases = 1;
    static constexpr bool has_c = false, hidden_apart = false;
    static constexpr int waiting = 0;
    static constexpr int first_gate(int phase) { return phase * gates; }

    __device__ void forward(const Real (&x)[1], const Real (&p)[1], Real& h, Real&, Real (&saved)[1]) const {
        saved[H] = Activation::keep(x[H] + p[H], this->numbers());
        const Real value = Activation::value(saved[H], this->numbers()), leak = this->number[leak_at];
        h = select(leak == 0, value, value + leak * h);  // where h is infinite, the product with zero is NaN
    }

    __device__ void backward(const Real (&saved)[1], Real dh, Real&, Real (&da)[1], Real (&)[1], Real& dh_prev) const {
        da[H] = dh * Activation::slope(saved[H], this->numbers());
        const Real leak = this->number[leak_at];
        dh_prev = select(leak == 0, Real(0), leak * dh);
    }
};
