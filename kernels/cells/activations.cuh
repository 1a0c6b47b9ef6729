// The activations of the cells, and their derivatives in terms of their values.
#pragma once

template <typename Real>
__device__ __forceinline__ Real sigmoid(Real a) {
    return Real(0.5) + Real(0.5) * tanh(Real(0.5) * a);  // overflows nowhere
}

struct Tanh {
    template <typename Real>
    __device__ static Real value(Real a) { return tanh(a); }
    template <typename Real>
    __device__ static Real slope(Real f) { return 1 - f * f; }
};

struct Relu {
    template <typename Real>
    __device__ static Real value(Real a) { return a < 0 ? Real(0) : a; }  // a NaN stays one
    template <typename Real>
    __device__ static Real slope(Real f) { return f > 0 ? Real(1) : Real(0); }
};

struct Sigmoid {
    template <typename Real>
    __device__ static Real value(Real a) { return sigmoid(a); }
    template <typename Real>
    __device__ static Real slope(Real f) { return f * (1 - f); }
};

struct Identity {
    template <typename Real>
    __device__ static Real value(Real a) { return a; }
    template <typename Real>
    __device__ static Real slope(Real) { return 1; }
};
