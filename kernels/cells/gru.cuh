// The GRU cell, gates in the order r z n, with the reset gate before or after the recurrent product.
#pragma once

#include "cells/activations.cuh"

// h_t = (1 - z) h_{t-1} + z n where z weighs the candidate, h_t = (1 - z) n + z h_{t-1} where it weighs the state.
template <typename Real, bool weighs_candidate>
struct Blend {
    __device__ static Real value(Real z, Real n, Real h) { return weighs_candidate ? h + z * (n - h) : n + z * (h - n); }

    // From dh_t to the gradients of the arguments of sigma and tanh, and of h_{t-1} on the way past the gates.
    __device__ static void transposed(Real z, Real n, Real h, Real dh, Real& da_z, Real& da_n, Real& direct) {
        const Real share = weighs_candidate ? z : 1 - z;  // of n
        da_z = dh * (weighs_candidate ? n - h : h - n) * z * (1 - z);
        da_n = dh * share * (1 - n * n);
        direct = dh * (1 - share);
    }
};

// n = tanh(W_in x + b_in + r u) with u = W_hn h_{t-1} + b_hn.
template <typename Real_, bool weighs_candidate>
struct GruResetAfter {
    using Real = Real_;
    static constexpr int gates = 3, products = 1, saved = 5;  // r z n u h_{t-1}
    static constexpr bool has_c = false;
    static constexpr bool hidden_apart = true;

    Real leak;  // of the vanilla cell

    __device__ void forward(const Real (&x)[3], const Real (&p)[3], Real& h, Real&, Real (&kept)[5]) const {
        const Real r = sigmoid(x[0] + p[0]), z = sigmoid(x[1] + p[1]);
        const Real n = tanh(x[2] + r * p[2]);
        kept[0] = r, kept[1] = z, kept[2] = n, kept[3] = p[2], kept[4] = h;
        h = Blend<Real, weighs_candidate>::value(z, n, h);
    }

    __device__ void backward(const Real (&kept)[5], Real dh, Real&, Real (&dx)[3], Real (&dp)[3], Real& direct) const {
        const Real r = kept[0], z = kept[1], n = kept[2], u = kept[3], h_prev = kept[4];
        Blend<Real, weighs_candidate>::transposed(z, n, h_prev, dh, dx[1], dx[2], direct);
        dx[0] = dx[2] * u * r * (1 - r);
        dp[0] = dx[0], dp[1] = dx[1], dp[2] = dx[2] * r;
    }
};

// n = tanh(W_in x + b_in + W_hn u + b_hn) with u = r h_{t-1}: a second product within the step, for which the gates of
// the first must be known of all hidden units.
template <typename Real_, bool weighs_candidate>
struct GruResetBefore {
    using Real = Real_;
    static constexpr int gates = 3, products = 2, saved = 4;  // r z n h_{t-1}
    static constexpr bool has_c = false;
    static constexpr bool hidden_apart = false;

    Real leak;  // of the vanilla cell

    // After the first product, p[0] and p[1]: u, from h_{t-1} as it entered that product.
    __device__ Real open(const Real (&x)[3], const Real (&p)[3], Real entered, Real (&kept)[4]) const {
        kept[0] = sigmoid(x[0] + p[0]);
        kept[1] = sigmoid(x[1] + p[1]);
        return kept[0] * entered;
    }

    // After the second, p[2].
    __device__ void forward(const Real (&x)[3], const Real (&p)[3], Real& h, Real&, Real (&kept)[4]) const {
        kept[2] = tanh(x[2] + p[2]);
        kept[3] = h;
        h = Blend<Real, weighs_candidate>::value(kept[1], kept[2], h);
    }

    // Before the second product's transpose: dx[1] and dx[2].
    __device__ void backward(const Real (&kept)[4], Real dh, Real&, Real (&dx)[3], Real (&)[3], Real& direct) const {
        Blend<Real, weighs_candidate>::transposed(kept[1], kept[2], kept[3], dh, dx[1], dx[2], direct);
    }

    // After it: from du to dx[0]; what it returns is the gradient of h_{t-1} as it entered.
    __device__ Real close(const Real (&kept)[4], Real entered, Real du, Real (&dx)[3]) const {
        dx[0] = du * entered * kept[0] * (1 - kept[0]);
        return du * kept[0];
    }
};
