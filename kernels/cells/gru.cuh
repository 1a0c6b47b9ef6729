// The GRU cell, with the reset gate before or after the recurrent product, and z weighing the candidate or the state.
#pragma once

#include "cells/activations.cuh"

template <typename Real_, bool reset_after, bool weighs_candidate>
struct Gru {
    using Real = Real_;
    enum { R, Z, N, gates };
    enum { H_PREV = gates, U, num_saved = reset_after ? 5 : 4 };  // behind the gates; of R and Z what `Gate` holds
    // If the reset comes before the product, W_hn multiplies r h_{t-1}, which needs r of all hidden units.
    static constexpr int phases = reset_after ? 1 : 2;
    static constexpr bool has_c = false, hidden_apart = reset_after;
    static constexpr int waiting = reset_after ? 0 : 1;  // da[R] waits for the gradient of phase 1's operand
    static constexpr int first_gate(int phase) { return phase == 0 ? R : reset_after || phase == 2 ? gates : N; }

    // What h_{t-1} and the candidate weigh in h_t.
    __device__ static Real of_state(Gate<Real> z) { return weighs_candidate ? z.complement() : z.value(); }
    __device__ static Real of_candidate(Gate<Real> z) { return weighs_candidate ? z.value() : z.complement(); }

    // After phase 0 of two: u = r h_{t-1}, which phase 1 multiplies, with h_{t-1} as it entered phase 0.
    __device__ Real operand(const Real (&x)[3], const Real (&p)[3], Real entered, Real (&saved)[num_saved]) const {
        const Gate<Real> r = Gate<Real>::of(x[R] + p[R]), z = Gate<Real>::of(x[Z] + p[Z]);
        saved[R] = r.held, saved[Z] = z.held;
        return r.value() * entered;
    }

    __device__ void forward(const Real (&x)[3], const Real (&p)[3], Real& h, Real&, Real (&saved)[num_saved]) const {
        if constexpr (reset_after) {
            const Gate<Real> r = Gate<Real>::of(x[R] + p[R]), z = Gate<Real>::of(x[Z] + p[Z]);
            const Real u = p[N];
            saved[R] = r.held, saved[Z] = z.held, saved[U] = u;
            saved[N] = tanh(x[N] + r.value() * u);
        } else {
            saved[N] = tanh(x[N] + p[N]);
        }
        const Gate<Real> z{saved[Z]};
        const Real n = saved[N];
        saved[H_PREV] = h;
        h = of_state(z) * h + of_candidate(z) * n;
    }

    // Where the reset comes before the product, da[R] waits for du.
    __device__ void backward(
        const Real (&saved)[num_saved], Real dh, Real&, Real (&da)[3], Real (&da_hidden)[3], Real& dh_prev) const {
        const Gate<Real> z{saved[Z]};
        const Real n = saved[N], h_prev = saved[H_PREV];
        da[Z] = dh * (weighs_candidate ? n - h_prev : h_prev - n) * z.slope();
        da[N] = dh * of_candidate(z) * (1 - n * n);
        dh_prev = dh * of_state(z);
        if constexpr (reset_after) {
            const Gate<Real> r{saved[R]};
            da[R] = da[N] * saved[U] * r.slope();
            da_hidden[R] = da[R], da_hidden[Z] = da[Z], da_hidden[N] = da[N] * r.value();
        }
    }

    // After phase 1's transpose, from du: da[R], and the gradient of h_{t-1} as it entered phase 0.
    __device__ Real operand_backward(const Real (&saved)[num_saved], Real entered, Real du, Real (&da)[3]) const {
        const Gate<Real> r{saved[R]};
        da[R] = du * entered * r.slope();
        return du * r.value();
    }
};
