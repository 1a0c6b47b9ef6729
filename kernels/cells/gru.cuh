// The GRU cell, with the reset gate before or after the recurrent product, and z weighing the candidate or the state.
#pragma once

#include "cells/activations.cuh"

template <typename Real_, bool reset_after, bool weighs_candidate>
struct Gru {
    using Real = Real_;
    enum { R, Z, N, gates };
    enum { H = gates, U, num_saved = reset_after ? 5 : 4 };  // h_{t-1}, and where the reset comes after the product u
    // Where the reset comes before, W_hn multiplies r h_{t-1}, for which r must be known of all hidden units.
    static constexpr int phases = reset_after ? 1 : 2;
    static constexpr bool has_c = false, hidden_apart = reset_after;
    static constexpr int waiting = reset_after ? 0 : 1;  // da[R] waits for the gradient of phase 1's operand
    static constexpr int first_gate(int phase) { return phase == 0 ? R : reset_after || phase == 2 ? gates : N; }

    // After phase 0 of two: u = r h_{t-1}, which phase 1 multiplies, with h_{t-1} as it entered phase 0.
    __device__ Real operand(const Real (&x)[3], const Real (&p)[3], Real entered, Real (&saved)[num_saved]) const {
        const Real r = sigmoid(x[R] + p[R]), z = sigmoid(x[Z] + p[Z]);
        saved[R] = r, saved[Z] = z;
        return r * entered;
    }

    __device__ void forward(const Real (&x)[3], const Real (&p)[3], Real& h, Real&, Real (&saved)[num_saved]) const {
        if constexpr (reset_after) {
            const Real r = sigmoid(x[R] + p[R]), z = sigmoid(x[Z] + p[Z]), u = p[N];
            saved[R] = r, saved[Z] = z, saved[U] = u;
            saved[N] = tanh(x[N] + r * u);
        } else {
            saved[N] = tanh(x[N] + p[N]);
        }
        const Real z = saved[Z], n = saved[N];
        saved[H] = h;
        h = weighs_candidate ? h + z * (n - h) : n + z * (h - n);
    }

    // Where the reset comes before the product: but for da[R], which waits for du.
    __device__ void backward(
        const Real (&saved)[num_saved], Real dh, Real&, Real (&da)[3], Real (&da_hidden)[3], Real& dh_prev) const {
        const Real z = saved[Z], n = saved[N], h_prev = saved[H];
        const Real share = weighs_candidate ? z : 1 - z;  // of n in h
        da[Z] = dh * (weighs_candidate ? n - h_prev : h_prev - n) * z * (1 - z);
        da[N] = dh * share * (1 - n * n);
        dh_prev = dh * (1 - share);
        if constexpr (reset_after) {
            const Real r = saved[R], u = saved[U];
            da[R] = da[N] * u * r * (1 - r);
            da_hidden[R] = da[R], da_hidden[Z] = da[Z], da_hidden[N] = da[N] * r;
        }
    }

    // After phase 1's transpose, from du: da[R], and the gradient of h_{t-1} as it entered phase 0.
    __device__ Real operand_backward(const Real (&saved)[num_saved], Real entered, Real du, Real (&da)[3]) const {
        const Real r = saved[R];
        da[R] = du * entered * r * (1 - r);
        return du * r;
    }
};
