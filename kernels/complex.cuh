// Complex numbers, stored as pairs like NumPy's, and the same few functions for real numbers.
#pragma once

// Aligned to its size, so that a GPU moves a number in one access.
template <typename Real>
struct alignas(2 * sizeof(Real)) Complex {
    Real re, im;

    Complex() = default;
    __device__ Complex(Real re, Real im = 0) : re(re), im(im) {}
    template <typename Other>
    __device__ explicit Complex(Complex<Other> x) : re(x.re), im(x.im) {}
};

template <typename Real>
__device__ Complex<Real> operator+(Complex<Real> x, Complex<Real> y) {
    return {x.re + y.re, x.im + y.im};
}
template <typename Real>
__device__ Complex<Real> operator*(Complex<Real> x, Complex<Real> y) {
    return {x.re * y.re - x.im * y.im, x.re * y.im + x.im * y.re};
}

__device__ inline float conj(float x) { return x; }
__device__ inline double conj(double x) { return x; }
template <typename Real>
__device__ Complex<Real> conj(Complex<Real> x) {
    return {x.re, -x.im};
}

__device__ inline float modulus(float x) { return fabsf(x); }
__device__ inline double modulus(double x) { return fabs(x); }
__device__ inline float modulus(Complex<float> x) { return hypotf(x.re, x.im); }
__device__ inline double modulus(Complex<double> x) { return hypot(x.re, x.im); }

template <typename Real>
__device__ bool is_nan(Real x) {
    return x != x;
}
template <typename Real>
__device__ bool is_nan(Complex<Real> x) {
    return is_nan(x.re) || is_nan(x.im);
}

// Infinity minus infinity is NaN.
template <typename Real>
__device__ bool is_finite(Real x) {
    return !is_nan(x - x);
}
template <typename Real>
__device__ bool is_finite(Complex<Real> x) {
    return is_finite(x.re) && is_finite(x.im);
}
