// The LSTM cell, gates in the order i f g o: c_t = f c_{t-1} + i g, h_t = o tanh(c_t).
#pragma once

#include "cells/activations.cuh"

template <typename Real_>
struct Lstm {
    using Real = Real_;
    static constexpr int gates = 4, products = 1, saved = 5;  // i f g o c_{t-1}
    static constexpr bool has_c = true;
    static constexpr bool hidden_apart = false;

    Real leak;  // of the vanilla cell

    __device__ void forward(const Real (&x)[4], const Real (&p)[4], Real& h, Real& c, Real (&kept)[5]) const {
        const Real i = sigmoid(x[0] + p[0]), f = sigmoid(x[1] + p[1]);
        const Real g = tanh(x[2] + p[2]), o = sigmoid(x[3] + p[3]);
        kept[0] = i, kept[1] = f, kept[2] = g, kept[3] = o, kept[4] = c;
        c = f * c + i * g;
        h = o * tanh(c);
    }

    __device__ void backward(const Real (&kept)[5], Real dh, Real& dc, Real (&dx)[4], Real (&)[4], Real& direct) const {
        const Real i = kept[0], f = kept[1], g = kept[2], o = kept[3], c_prev = kept[4];
        const Real tanh_c = tanh(f * c_prev + i * g);
        dc += dh * o * (1 - tanh_c * tanh_c);
        dx[0] = dc * g * i * (1 - i);
        dx[1] = dc * c_prev * f * (1 - f);
        dx[2] = dc * i * (1 - g * g);
        dx[3] = dh * tanh_c * o * (1 - o);
        dc *= f;
        direct = 0;
    }
};
