// The LSTM cell: c_t = f c_{t-1} + i g, h_t = o tanh(c_t).
#pragma once

#include "cells/activations.cuh"

template <typename Real_>
struct Lstm {
    using Real = Real_;
    enum { I, F, G, O, gates };
    enum { C_PREV = gates, num_saved };  // behind the gates; of I, F and O what `Gate` holds
    static constexpr int phases = 1;
    static constexpr bool has_c = true, hidden_apart = false;
    static constexpr int waiting = 0;
    static constexpr int first_gate(int phase) { return phase * gates; }

    __device__ void forward(const Real (&x)[4], const Real (&p)[4], Real& h, Real& c, Real (&saved)[5]) const {
        const Gate<Real> i = Gate<Real>::of(x[I] + p[I]), f = Gate<Real>::of(x[F] + p[F]);
        const Gate<Real> o = Gate<Real>::of(x[O] + p[O]);
        const Real g = tanh(x[G] + p[G]);
        saved[I] = i.held, saved[F] = f.held, saved[G] = g, saved[O] = o.held, saved[C_PREV] = c;
        c = f.value() * c + i.value() * g;
        h = o.value() * tanh(c);
    }

    __device__ void backward(const Real (&saved)[5], Real dh, Real& dc, Real (&da)[4], Real (&)[4], Real& dh_prev) const {
        const Gate<Real> i{saved[I]}, f{saved[F]}, o{saved[O]};
        const Real g = saved[G], c_prev = saved[C_PREV];
        const Real tanh_c = tanh(f.value() * c_prev + i.value() * g);
        dc += dh * o.value() * (1 - tanh_c * tanh_c);
        da[I] = dc * g * i.slope();
        da[F] = dc * c_prev * f.slope();
        da[G] = dc * i.value() * (1 - g * g);
        da[O] = dh * tanh_c * o.slope();
        dc *= f.value();
        dh_prev = 0;
    }
};
