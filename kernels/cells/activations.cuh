// The activations of the cells, and their derivatives.
//
// An activation f has `keep`, from its argument to one number, and from that number `value` f and `slope` f'.
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
    __device__ static Real keep(Real a) { return tanh(a); }
    template <typename Real>
    __device__ static Real value(Real f) { return f; }
    template <typename Real>
    __device__ static Real slope(Real f) { return 1 - f * f; }
};

struct Relu {
    template <typename Real>
    __device__ static Real keep(Real a) { return select(a < 0, Real(0), a); }  // a NaN stays one
    template <typename Real>
    __device__ static Real value(Real f) { return f; }
    template <typename Real>
    __device__ static Real slope(Real f) { return select(f > 0, Real(1), Real(0)); }
};

struct Sigmoid {
    template <typename Real>
    __device__ static Real keep(Real a) { return Gate<Real>::of(a).held; }
    template <typename Real>
    __device__ static Real value(Real held) { return Gate<Real>{held}.value(); }
    template <typename Real>
    __device__ static Real slope(Real held) { return Gate<Real>{held}.slope(); }
};

struct Identity {
    template <typename Real>
    __device__ static Real keep(Real a) { return a; }
    template <typename Real>
    __device__ static Real value(Real f) { return f; }
    template <typename Real>
    __device__ static Real slope(Real) { return 1; }
};
