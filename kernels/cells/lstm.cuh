// The LSTM cell: c_t = f c_{t-1} + i g, h_t = o tanh(c_t).
#pragma once

#include "cells/activations.cuh"

template <typename Real_>
struct Lstm {
    using Real = Real_;
    enum { I, F, G, O, gates };
    enum { C = gates, num_saved };  // c_{t-1}, behind the gates
    static constexpr int phases = 1;
    static constexpr bool has_c = true, hidden_apart = false;
    static constexpr int waiting = 0;
    static constexpr int first_gate(int phase) { return phase * gates; }

    __device__ void forward(const Real (&x)[4], const Real (&p)[4], Real& h, Real& c, Real (&saved)[5]) const {
        const Real i = sigmoid(x[I] + p[I]), f = sigmoid(x[F] + p[F]), o = sigmoid(x[O] + p[O]);
        const Real g = tanh(x[G] + p[G]);
        saved[I] = i, saved[F] = f, saved[G] = g, saved[O] = o, saved[C] = c;
        c = f * c + i * g;
        h = o * tanh(c);
    }

    __device__ void backward(const Real (&saved)[5], Real dh, Real& dc, Real (&da)[4], Real (&)[4], Real& dh_prev) const {
        const Real i = saved[I], f = saved[F], g = saved[G], o = saved[O], c_prev = saved[C];
        const Real tanh_c = tanh(f * c_prev + i * g);
        dc += dh * o * (1 - tanh_c * tanh_c);
        da[I] = dc * g * i * (1 - i);
        da[F] = dc * c_prev * f * (1 - f);
        da[G] = dc * i * (1 - g * g);
        da[O] = dh * tanh_c * o * (1 - o);
        dc *= f;
        dh_prev = 0;
    }
};
