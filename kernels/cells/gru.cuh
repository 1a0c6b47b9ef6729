// The GRU cell, with the reset gate before or after the recurrent product, and z weighing the candidate or the state.
#pragma once

#include "cells/options.cuh"

template <typename Real_, bool reset_after, bool weighs_candidate, class... Options>
struct Gru : Members<Real_, Options...> {
    using Real = Real_;
    enum { R, Z, N, gates };
    enum { H_PREV = gates, U, num_saved = reset_after ? 5 : 4 };  // behind the gates; of these what their activations keep
    // If the reset comes before the product, W_hn multiplies r h_{t-1}, which needs r of all hidden units.
    static constexpr int phases = reset_after ? 1 : 2;
    static constexpr bool has_c = false, hidden_apart = reset_after;
    static constexpr int waiting = reset_after ? 0 : 1;  // da[R] waits for the gradient of phase 1's operand
    __device__ static constexpr int norm_group(int gate) { return gate == N; }
    static constexpr int first_gate(int phase) { return phase == 0 ? R : reset_after || phase == 2 ? gates : N; }

    using GateFunction = typename FunctionOf<Gates, Sigmoid, Options...>::type;
    using CandidateFunction = typename FunctionOf<Candidate, Tanh, Options...>::type;

    // What h_{t-1} and the candidate weigh in h_t.
    __device__ Real of_state(Real z) const { return weighs_candidate ? complement(z) : gate(z); }
    __device__ Real of_candidate(Real z) const { return weighs_candidate ? gate(z) : complement(z); }
    __device__ Real gate(Real kept) const { return GateFunction::value(kept, this->numbers()); }
    __device__ Real complement(Real kept) const { return Complement<GateFunction>::of(kept, this->numbers()); }

    // After phase 0 of two: u = r h_{t-1}, which phase 1 multiplies, with h_{t-1} as it entered phase 0.
    __device__ Real operand(const Real (&x)[3], const Real (&p)[3], Real entered, Real (&saved)[num_saved]) const {
        saved[R] = GateFunction::keep(x[R] + p[R], this->numbers());
        saved[Z] = GateFunction::keep(x[Z] + p[Z], this->numbers());
        return gate(saved[R]) * entered;
    }

    __device__ void forward(const Real (&x)[3], const Real (&p)[3], Real& h, Real&, Real (&saved)[num_saved]) const {
        const Real* const numbers = this->numbers();
        if constexpr (reset_after) {
            saved[R] = GateFunction::keep(x[R] + p[R], numbers), saved[Z] = GateFunction::keep(x[Z] + p[Z], numbers);
            const Real u = p[N];
            saved[U] = u;
            saved[N] = CandidateFunction::keep(x[N] + gate(saved[R]) * u, numbers);
        } else {
            saved[N] = CandidateFunction::keep(x[N] + p[N], numbers);
        }
        const Real n = CandidateFunction::value(saved[N], numbers);
        saved[H_PREV] = h;
        h = of_state(saved[Z]) * h + of_candidate(saved[Z]) * n;
    }

    // Where the reset comes before the product, da[R] waits for du.
    __device__ void backward(
        const Real (&saved)[num_saved], Real dh, Real&, Real (&da)[3], Real (&da_hidden)[3], Real& dh_prev) const {
        const Real* const numbers = this->numbers();
        const Real n = CandidateFunction::value(saved[N], numbers), h_prev = saved[H_PREV];
        da[Z] = dh * (weighs_candidate ? n - h_prev : h_prev - n) * GateFunction::slope(saved[Z], numbers);
        da[N] = dh * of_candidate(saved[Z]) * CandidateFunction::slope(saved[N], numbers);
        dh_prev = dh * of_state(saved[Z]);
        if constexpr (reset_after) {
            da[R] = da[N] * saved[U] * GateFunction::slope(saved[R], numbers);
            da_hidden[R] = da[R], da_hidden[Z] = da[Z], da_hidden[N] = da[N] * gate(saved[R]);
        }
    }

    // After phase 1's transpose, from du: da[R], and the gradient of h_{t-1} as it entered phase 0.
    __device__ Real operand_backward(const Real (&saved)[num_saved], Real entered, Real du, Real (&da)[3]) const {
        da[R] = du * entered * GateFunction::slope(saved[R], this->numbers());
        return du * gate(saved[R]);
    }
};
