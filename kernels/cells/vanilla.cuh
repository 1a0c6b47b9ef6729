// The vanilla cell: h_t = f(W_ih x_t + W_hh h_{t-1} + b) + leak h_{t-1}.
#pragma once

#include "cells/activations.cuh"

template <typename Real_, class Activation>
struct Vanilla {
    using Real = Real_;
    static constexpr int gates = 1, products = 1, saved = 1;
    static constexpr bool has_c = false;
    static constexpr bool hidden_apart = false;

    Real leak;

    __device__ void forward(const Real (&x)[1], const Real (&p)[1], Real& h, Real&, Real (&kept)[1]) const {
        kept[0] = Activation::value(x[0] + p[0]);
        h = kept[0] + leak * h;
    }

    __device__ void backward(const Real (&kept)[1], Real dh, Real&, Real (&dx)[1], Real (&)[1], Real& direct) const {
        dx[0] = dh * Activation::slope(kept[0]);
        direct = leak * dh;
    }
};
