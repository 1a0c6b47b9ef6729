// The LSTM cell: c_t = f c_{t-1} + i g, h_t = o tanh(c_t).
#pragma once

#include "cells/options.cuh"

template <typename Real_, class... Options>
struct Lstm : Members<Real_, Options...> {
    using Real = Real_;
    static constexpr bool coupled = has_option<Coupled, Options...>, peephole = has_option<Peephole, Options...>;
    static constexpr bool drops = has_option<DroppedCandidate, Options...>;
    static constexpr int bound_at = number_of<CellClip, Options...>(-1);
    enum { I, F, G = coupled ? 1 : 2, O, gates };  // without F if the gates are coupled
    // Behind the gates; of these what their activations keep.
    enum { C_PREV = gates, C, MASK_G = peephole ? C + 1 : C, num_saved = drops ? MASK_G + 1 : MASK_G };
    using Inner = Real[num_saved];
    static constexpr int phases = 1;
    static constexpr bool has_c = true, hidden_apart = false;
    static constexpr int waiting = 0;
    static constexpr int first_gate(int phase) { return phase * gates; }

    // The peepholes, those of i, f and o.
    enum { P_I, P_F, P_O = coupled ? 1 : 2 };
    __device__ static constexpr int weight_gate(int k) { return k == P_O ? O : k; }
    __device__ static constexpr int weight_reads(int k) { return k == P_O ? C : C_PREV; }

    using GateFunction = typename FunctionOf<Gates, Sigmoid, Options...>::type;
    using CandidateFunction = typename FunctionOf<Candidate, Tanh, Options...>::type;
    using OutputFunction = typename FunctionOf<Output, Tanh, Options...>::type;

    __device__ Real gate(Real kept) const { return GateFunction::value(kept, this->numbers()); }
    __device__ Real forget(const Real (&saved)[num_saved]) const {
        if constexpr (coupled) return Complement<GateFunction>::of(saved[I], this->numbers());
        else return gate(saved[F]);
    }
    __device__ Real candidate(const Real (&saved)[num_saved]) const {
        const Real g = CandidateFunction::value(saved[G], this->numbers());
        if constexpr (drops) return g * saved[MASK_G];
        else return g;
    }
    // c_t, before it is bounded.
    __device__ Real unbounded(const Real (&saved)[num_saved], Real c_prev) const {
        return forget(saved) * c_prev + gate(saved[I]) * candidate(saved);
    }
    __device__ Real bounded(Real c) const {
        if constexpr (bound_at >= 0) {
            const Real bound = this->number[bound_at];
            return select(c > bound, bound, select(c < -bound, -bound, c));
        } else {
            return c;
        }
    }

    // The argument of a gate that reads c, if there are peepholes.
    __device__ Real read(Real sum, int peephole_at, Real c) const {
        if constexpr (peephole) return sum + this->weight[peephole_at] * c;
        else return sum;
    }

    // c_t, from the arguments of the gates and c_{t-1}.
    __device__ Real advance(
        const Real (&x)[gates], const Real (&p)[gates], Real c, Real (&saved)[num_saved]) const {
        const Real* const n = this->numbers();
        saved[I] = GateFunction::keep(read(x[I] + p[I], P_I, c), n);
        if constexpr (!coupled) saved[F] = GateFunction::keep(read(x[F] + p[F], P_F, c), n);
        if constexpr (!peephole) saved[O] = GateFunction::keep(x[O] + p[O], n);
        saved[G] = CandidateFunction::keep(x[G] + p[G], n);
        saved[C_PREV] = c;
        if constexpr (drops) saved[MASK_G] = this->mask[0];
        c = bounded(unbounded(saved, c));
        if constexpr (peephole) {
            saved[C] = c;
            saved[O] = GateFunction::keep(read(x[O] + p[O], P_O, c), n);
        }
        return c;
    }
    // From c_t, or what a norm has made of it: what the output's activation keeps, and o f(c).
    __device__ Real kept_output(Real c) const { return OutputFunction::keep(c, this->numbers()); }
    __device__ Real output(const Real (&saved)[num_saved], Real c) const {
        return gate(saved[O]) * OutputFunction::value(kept_output(c), this->numbers());
    }
    __device__ void forward(
        const Real (&x)[gates], const Real (&p)[gates], Real& h, Real& c, Real (&saved)[num_saved]) const {
        c = advance(x, p, c, saved);
        h = output(saved, c);
    }

    // Of `output`, from what the activation keeps of c: adds to the gradient of c; and that of o's argument.
    __device__ void output_backward(const Real (&saved)[num_saved], Real kept, Real dh, Real& dc) const {
        dc += dh * gate(saved[O]) * OutputFunction::slope(kept, this->numbers());
    }
    __device__ Real output_gate_backward(const Real (&saved)[num_saved], Real kept, Real dh) const {
        return dh * OutputFunction::value(kept, this->numbers()) * GateFunction::slope(saved[O], this->numbers());
    }
    // Of `advance`, with c_t before it is bounded: from the gradient of c_t and that of o's argument, da_o(), to those of all
    // arguments and of c_{t-1}.
    template <class OfO>
    __device__ void advance_backward(
        const Real (&saved)[num_saved], Real c, Real& dc, Real (&da)[gates], const OfO& da_o) const {
        const Real* const n = this->numbers();
        const Real c_prev = saved[C_PREV];
        if constexpr (peephole) {
            da[O] = da_o();
            dc += this->weight[P_O] * da[O];
        }
        if constexpr (bound_at >= 0) {
            const Real bound = this->number[bound_at];
            dc = select(c > bound, Real(0), select(c < -bound, Real(0), dc));
        }
        if constexpr (coupled) {
            da[I] = dc * (candidate(saved) - c_prev) * GateFunction::slope(saved[I], n);
        } else {
            da[I] = dc * candidate(saved) * GateFunction::slope(saved[I], n);
            da[F] = dc * c_prev * GateFunction::slope(saved[F], n);
        }
        if constexpr (drops) {
            da[G] = dc * gate(saved[I]) * saved[MASK_G] * CandidateFunction::slope(saved[G], n);
        } else {
            da[G] = dc * gate(saved[I]) * CandidateFunction::slope(saved[G], n);
        }
        if constexpr (!peephole) da[O] = da_o();
        dc *= forget(saved);
        if constexpr (peephole) {
            dc += this->weight[P_I] * da[I];
            if constexpr (!coupled) dc += this->weight[P_F] * da[F];
        }
    }
    __device__ void backward(
        const Real (&saved)[num_saved], Real dh, Real& dc, Real (&da)[gates], Real (&)[gates], Real& dh_prev) const {
        const Real c = unbounded(saved, saved[C_PREV]), kept = kept_output(bounded(c));
        output_backward(saved, kept, dh, dc);
        advance_backward(saved, c, dc, da, [&] { return output_gate_backward(saved, kept, dh); });
        dh_prev = 0;
    }
};
