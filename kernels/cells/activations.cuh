// The activations of the cells, and their derivatives.
//
// An activation f has `keep`, from its argument to one number, and from that number `value` f and `slope` f'. All take the
// numbers of the cell too, `n`: an activation that has an alpha and a beta finds them there from index `at` on.
#pragma once

#include "numbers.cuh"

// sigma(a), stored as the smaller of it and its complement 1 - sigma(a) = sigma(-a), so that neither loses digits where it
// is small. The sign says which of the two is stored.
template <typename Real>
struct Gate {
    Real held;  // sigma(-|a|), negative if that is the complement

    __device__ __forceinline__ static Gate of(Real a) {
        const Real e = exp(select(a < 0, a, -a)), smaller = e / (1 + e);
        return {select(a < 0, smaller, -smaller)};
    }
    __device__ __forceinline__ auto holds_complement() const { return signbit(held); }
    __device__ __forceinline__ Real value() const { return select(holds_complement(), 1 + held, held); }
    __device__ __forceinline__ Real complement() const { return select(holds_complement(), -held, 1 - held); }
    __device__ __forceinline__ Real slope() const { return value() * complement(); }
};

struct Tanh {
    template <typename Real>
    __device__ static Real keep(Real a, const Real*) { return tanh(a); }
    template <typename Real>
    __device__ static Real value(Real f, const Real*) { return f; }
    template <typename Real>
    __device__ static Real slope(Real f, const Real*) { return 1 - f * f; }
};

struct Relu {
    template <typename Real>
    __device__ static Real keep(Real a, const Real*) { return select(a < 0, Real(0), a); }  // a NaN stays one
    template <typename Real>
    __device__ static Real value(Real f, const Real*) { return f; }
    template <typename Real>
    __device__ static Real slope(Real f, const Real*) { return select(f > 0, Real(1), Real(0)); }
};

struct Sigmoid {
    template <typename Real>
    __device__ static Real keep(Real a, const Real*) { return Gate<Real>::of(a).held; }
    template <typename Real>
    __device__ static Real value(Real held, const Real*) { return Gate<Real>{held}.value(); }
    template <typename Real>
    __device__ static Real slope(Real held, const Real*) { return Gate<Real>{held}.slope(); }
};

// Those that are kept as their argument.
struct OfArgument {
    template <typename Real>
    __device__ static Real keep(Real a, const Real*) { return a; }
};

struct Identity : OfArgument {
    template <typename Real>
    __device__ static Real value(Real a, const Real*) { return a; }
    template <typename Real>
    __device__ static Real slope(Real, const Real*) { return 1; }
};

template <int at>
struct Affine : OfArgument {
    template <typename Real>
    __device__ static Real value(Real a, const Real* n) { return n[at] * a + n[at + 1]; }
    template <typename Real>
    __device__ static Real slope(Real, const Real* n) { return n[at]; }
};

template <int at>
struct LeakyRelu : OfArgument {
    template <typename Real>
    __device__ static Real value(Real a, const Real* n) { return select(a < 0, n[at] * a, a); }
    template <typename Real>
    __device__ static Real slope(Real a, const Real* n) { return select(a < 0, n[at], Real(1)); }
};

template <int at>
struct ThresholdedRelu : OfArgument {
    template <typename Real>
    __device__ static Real value(Real a, const Real* n) { return select(a > n[at], a, 0 * a); }
    template <typename Real>
    __device__ static Real slope(Real a, const Real* n) { return select(a > n[at], Real(1), Real(0)); }
};

template <int at>
struct ScaledTanh {
    template <typename Real>
    __device__ static Real keep(Real a, const Real* n) { return tanh(n[at + 1] * a); }
    template <typename Real>
    __device__ static Real value(Real t, const Real* n) { return n[at] * t; }
    template <typename Real>
    __device__ static Real slope(Real t, const Real* n) { return n[at] * n[at + 1] * (1 - t * t); }
};

template <int at>
struct HardSigmoid : OfArgument {
    template <typename Real>
    __device__ static Real value(Real a, const Real* n) {
        const Real line = n[at] * a + n[at + 1];
        return select(line < 0, Real(0), select(line > 1, Real(1), line));
    }
    template <typename Real>
    __device__ static Real slope(Real a, const Real* n) {
        const Real line = n[at] * a + n[at + 1];
        return select(line > 0, select(line < 1, n[at], Real(0)), Real(0));
    }
};

template <int at>
struct Elu : OfArgument {
    template <typename Real>
    __device__ static Real value(Real a, const Real* n) {
        return select(a < 0, n[at] * expm1(select(a < 0, a, Real(0))), a);
    }
    template <typename Real>
    __device__ static Real slope(Real a, const Real* n) {
        return select(a < 0, n[at] * exp(select(a < 0, a, Real(0))), Real(1));
    }
};

struct Softsign : OfArgument {
    template <typename Real>
    __device__ static Real value(Real a, const Real*) { return a / (1 + select(a < 0, -a, a)); }
    template <typename Real>
    __device__ static Real slope(Real a, const Real*) {
        const Real divisor = 1 + select(a < 0, -a, a);
        return 1 / (divisor * divisor);
    }
};

struct Softplus : OfArgument {
    template <typename Real>
    __device__ static Real value(Real a, const Real*) {
        return select(a < 0, Real(0), a) + log1p(exp(select(a < 0, a, -a)));  // a NaN stays one
    }
    template <typename Real>
    __device__ static Real slope(Real a, const Real*) { return Gate<Real>::of(a).value(); }
};

// f of an argument that is taken from [-bound, bound], the cell's number `at`.
template <class F, int at>
struct Clipped : OfArgument {
    template <typename Real>
    __device__ static Real within(Real a, Real bound) { return select(a > bound, bound, select(a < -bound, -bound, a)); }
    template <typename Real>
    __device__ static Real inner(Real a, const Real* n) { return F::keep(within(a, n[at]), n); }
    template <typename Real>
    __device__ static Real value(Real a, const Real* n) { return F::value(inner(a, n), n); }
    template <typename Real>
    __device__ static Real slope(Real a, const Real* n) {
        return select(a > n[at], Real(0), select(a < -n[at], Real(0), F::slope(inner(a, n), n)));
    }
};

// 1 - f.
template <class F>
struct Complement {
    template <typename Real>
    __device__ static Real of(Real kept, const Real* n) { return 1 - F::value(kept, n); }
};
template <>
struct Complement<Sigmoid> {
    template <typename Real>
    __device__ static Real of(Real held, const Real*) { return Gate<Real>{held}.complement(); }
};
template <class F, int at>
struct Complement<Clipped<F, at>> {
    template <typename Real>
    __device__ static Real of(Real a, const Real* n) { return Complement<F>::of(Clipped<F, at>::inner(a, n), n); }
};
