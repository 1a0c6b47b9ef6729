// The options of the cells: how a struct's template arguments name them, and what it holds because of them.
//
// An option is a type behind the other template arguments of a struct, in any order. A cell without options holds nothing,
// and its kernels have no instruction for any.
#pragma once

#include "cells/activations.cuh"

template <class F> struct Gates {};      // the activation of the gates
template <class F> struct Candidate {};  // that of the candidate
template <class F> struct Output {};     // that of the cell state
template <int at> struct CellClip {};    // the cell state is taken from [-b, b], with b the number `at`
struct Peephole {};
struct Coupled {};
struct DroppedCandidate {};
struct LayerNorm {};                     // of the products with W_hh, and of the cell state
struct Projection {};                    // h is a product of o f(c)
template <int count> struct Numbers {};  // options that are numbers
template <int count> struct Weights {};  // weights of one number for each unit
template <int count> struct Masks {};    // numbers of each step, row and unit

template <class A, class B>
constexpr bool is_same = false;
template <class A>
constexpr bool is_same<A, A> = true;

template <class Wanted, class... Options>
constexpr bool has_option = (is_same<Wanted, Options> || ...);

// The number of an option, or `otherwise`.
template <template <int> class Wanted, class Option>
constexpr int number_in = -1;
template <template <int> class Wanted, int number>
constexpr int number_in<Wanted, Wanted<number>> = number;
template <template <int> class Wanted, class... Options>
constexpr int number_of(int otherwise) {
    int number = otherwise;
    ((number = number_in<Wanted, Options> >= 0 ? number_in<Wanted, Options> : number), ...);
    return number;
}

// The activation that an option says, or `Default`.
template <template <class> class Wanted, class Default, class... Options>
struct FunctionOf {
    using type = Default;
};
template <template <class> class Wanted, class Default, class F, class... Rest>
struct FunctionOf<Wanted, Default, Wanted<F>, Rest...> {
    using type = F;
};
template <template <class> class Wanted, class Default, class Other, class... Rest>
struct FunctionOf<Wanted, Default, Other, Rest...> : FunctionOf<Wanted, Default, Rest...> {};

// What a struct holds, in the order in which `struct.py` fills it.
template <typename Real, int count>
struct NumberMembers {
    Real number[count];
    __device__ const Real* numbers() const { return number; }
};
template <typename Real>
struct NumberMembers<Real, 0> {
    __device__ const Real* numbers() const { return nullptr; }
};
template <typename Real, int count>
struct WeightMembers {
    const Real* all_weights;  // (D, count, H)
    Real weight[count];       // of a thread's unit
};
template <typename Real>
struct WeightMembers<Real, 0> {};
template <typename Real, int count>
struct MaskMembers {
    const Real* all_masks;  // (count, D, T, B, H)
    Real mask[count];       // of a thread's unit at a step
};
template <typename Real>
struct MaskMembers<Real, 0> {};

template <typename Real, class... Options>
struct Members : NumberMembers<Real, number_of<Numbers, Options...>(0)>,
                 WeightMembers<Real, number_of<Weights, Options...>(0)>,
                 MaskMembers<Real, number_of<Masks, Options...>(0)> {
    static constexpr int num_numbers = number_of<Numbers, Options...>(0);
    static constexpr int num_weights = number_of<Weights, Options...>(0);
    static constexpr int num_masks = number_of<Masks, Options...>(0);
    static constexpr bool normed = has_option<LayerNorm, Options...>, projected = has_option<Projection, Options...>;
    // The layer norm that spans a gate's product, counted from 0 in the order of the gates.
    __device__ static constexpr int norm_group(int) { return 0; }
    // Whether a part of h, and of c, stays as it was.
    static constexpr bool keeps_h = false, keeps_c = false;
    // The weights of a unit: the gate to whose argument each adds, and the saved value that it multiplies.
    __device__ static constexpr int weight_gate(int) { return 0; }
    __device__ static constexpr int weight_reads(int) { return 0; }
};

// ---- Zoneout: a part of the state stays as it was (Krueger et al. 2016) -----------------------------------------------

struct Never {
    static constexpr int saved = 0;
};
template <int at>
struct ByRate {  // the cell's number `at`
    static constexpr int saved = 0;
};
template <int at>
struct ByMask {  // the cell's mask `at`
    static constexpr int saved = 1;
};

// A cell of whose states h and c a part stays. Masks are saved behind the cell's values.
template <class Cell, class KeepsH, class KeepsC = Never>
struct Zoned : Cell {
    using Real = typename Cell::Real;
    static constexpr int gates = Cell::gates;
    enum { MASK_H = Cell::num_saved, MASK_C = MASK_H + KeepsH::saved, num_saved = MASK_C + KeepsC::saved };

    // The part that stays: from the step, and from what it saved.
    __device__ Real keep(Never, const Real*, int) const { return 0; }
    template <int at>
    __device__ Real keep(ByRate<at>, const Real*, int) const { return this->number[at]; }
    template <int at>
    __device__ Real keep(ByMask<at>, const Real* saved, int index) const { return saved[index]; }
    __device__ void save(Never, Real*, int) const {}
    template <int at>
    __device__ void save(ByRate<at>, Real*, int) const {}
    template <int at>
    __device__ void save(ByMask<at>, Real* saved, int index) const { saved[index] = this->mask[at]; }

    static constexpr bool keeps_h = !is_same<KeepsH, Never>, keeps_c = !is_same<KeepsC, Never>;
    __device__ void save_masks(Real* saved) const {
        save(KeepsH(), saved, MASK_H);
        save(KeepsC(), saved, MASK_C);
    }
    __device__ Real kept_h(const Real* saved) const { return keep(KeepsH(), saved, MASK_H); }
    __device__ Real kept_c(const Real* saved) const { return keep(KeepsC(), saved, MASK_C); }
    __device__ static Real mixed(Real k, Real before, Real now) { return k * before + (1 - k) * now; }

    using Inner = Real[Cell::num_saved];

    __device__ Real operand(const Real (&x)[gates], const Real (&p)[gates], Real entered, Real (&saved)[num_saved]) const {
        return Cell::operand(x, p, entered, reinterpret_cast<Inner&>(saved));
    }
    __device__ void forward(
        const Real (&x)[gates], const Real (&p)[gates], Real& h, Real& c, Real (&saved)[num_saved]) const {
        const Real h_prev = h, c_prev = c;
        Cell::forward(x, p, h, c, reinterpret_cast<Inner&>(saved));
        save_masks(saved);
        if constexpr (keeps_h) h = mixed(kept_h(saved), h_prev, h);
        if constexpr (keeps_c) c = mixed(kept_c(saved), c_prev, c);
    }
    __device__ void backward(
        const Real (&saved)[num_saved], Real dh, Real& dc, Real (&da)[gates], Real (&da_hidden)[gates], Real& dh_prev) const {
        const Real k_h = kept_h(saved), k_c = kept_c(saved), dc_after = dc;
        if constexpr (keeps_c) dc *= 1 - k_c;
        Cell::backward(
            reinterpret_cast<const Inner&>(saved), keeps_h ? (1 - k_h) * dh : dh, dc, da, da_hidden, dh_prev);
        if constexpr (keeps_h) dh_prev += k_h * dh;
        if constexpr (keeps_c) dc += k_c * dc_after;
    }
    __device__ Real operand_backward(const Real (&saved)[num_saved], Real entered, Real du, Real (&da)[gates]) const {
        return Cell::operand_backward(reinterpret_cast<const Inner&>(saved), entered, du, da);
    }
};
