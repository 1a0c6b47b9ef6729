// exp, tanh and their kin of a `Vector`, to a few units in the last place wherever the result is a normal number.
//
// x = n ln 2 + r with |r| <= ln(2) / 2, exp(r) by its series, and 2^n by the exponent's bits: Cody & Waite, "Software
// Manual for the Elementary Functions" (1980). n ln 2 is subtracted in two parts, of which the first has so few digits
// that its product with n is exact.
#pragma once

#include "cells/activations.cuh"
#include "native/simd.h"

template <typename T>
struct Elementary;

template <>
struct Elementary<float> {
    static constexpr int mantissa_bits = 23, terms = 7;
    static constexpr int32_t one = 127 << 23;
    static constexpr float to_integer = 12582912.0f;  // 1.5 * 2^23: what is added to it is rounded to an integer
    static constexpr float log2_e = 1.44269504088896341f, ln2_high = 0.693359375f, ln2_low = -2.12194440054690583e-4f;
    static constexpr float least = -104.0f, largest = 89.0f;  // beyond them exp is zero and infinite
    static constexpr float tanh_is_one = 10.0f;
};

template <>
struct Elementary<double> {
    static constexpr int mantissa_bits = 52, terms = 13;
    static constexpr int64_t one = int64_t(1023) << 52;
    static constexpr double to_integer = 6755399441055744.0;  // 1.5 * 2^52
    static constexpr double log2_e = 1.44269504088896340736;
    static constexpr double ln2_high = 6.93147180369123816490e-01, ln2_low = 1.90821492927058770002e-10;
    static constexpr double least = -746.0, largest = 710.0;
    static constexpr double tanh_is_one = 22.0;
};

// 2^(n + more), from n + to_integer for an integer n, where that is a normal number.
template <typename T, int more = 0>
ALWAYS_INLINE Vector<T> power_of_two(Vector<T> shifted) {
    using E = Elementary<T>;
    constexpr auto exponent = E::one + (decltype(E::one + 0)(more) << E::mantissa_bits);
    return Vector<T>::of_bits((shifted.bits() << E::mantissa_bits) + exponent);
}

#if !defined(__AVX512F__)
// a 2^n in two steps, since 2^n alone may overflow, or be subnormal.
template <typename T>
ALWAYS_INLINE Vector<T> scale(Vector<T> a, Vector<T> n) {
    const Vector<T> to_integer = Elementary<T>::to_integer, half = n * T(0.5) + to_integer;
    return a * power_of_two<T>(half) * power_of_two<T>(n - (half - to_integer) + to_integer);
}
#endif

// x = n ln 2 + r: exp(r) - 1 and n + to_integer.
template <typename T>
struct Reduced {
    Vector<T> expm1, shifted;

    explicit ALWAYS_INLINE Reduced(Vector<T> x) {
        using E = Elementary<T>;
        shifted = fma(x, Vector<T>(E::log2_e), Vector<T>(E::to_integer));
        const Vector<T> n = this->n();
        const Vector<T> r = fma(n, Vector<T>(-E::ln2_low), fma(n, Vector<T>(-E::ln2_high), x)), square = r * r;
        expm1 = fma(square, series<2>(r, square), r);
    }
    ALWAYS_INLINE Vector<T> n() const { return shifted - Vector<T>(Elementary<T>::to_integer); }

private:
    // 1/k! + r / (k+1)! + r^2 (1/(k+2)! + ...), in pairs of terms, since a pair waits for no other.
    template <int k>
    static ALWAYS_INLINE Vector<T> series(Vector<T> r, Vector<T> square) {
        constexpr T even = 1 / factorial(k), odd = 1 / factorial(k + 1);
        const Vector<T> pair = fma(Vector<T>(odd), r, Vector<T>(even));
        if constexpr (k + 1 >= Elementary<T>::terms) return pair;
        else return fma(series<k + 2>(r, square), square, pair);
    }
    static constexpr T factorial(int k) { return k < 2 ? T(1) : T(k) * factorial(k - 1); }
};

template <typename T>
ALWAYS_INLINE Vector<T> exp(Vector<T> x) {
    using E = Elementary<T>;
    const Reduced<T> reduced(min(Vector<T>(E::largest), max(Vector<T>(E::least), x)));
    return scale(reduced.expm1 + 1, reduced.n());
}

// e / (e + 2) with e = exp(2 |a|) - 1, and the sign of a.
template <typename T>
ALWAYS_INLINE Vector<T> tanh(Vector<T> a) {
    const typename Vector<T>::Integers sign = Vector<T>::sign();
    const Vector<T> absolute = Vector<T>::of_bits(a.bits() & ~sign);
    const Reduced<T> reduced(min(Vector<T>(2 * Elementary<T>::tanh_is_one), absolute + absolute));
    const Vector<T> power = power_of_two<T>(reduced.shifted);
    const Vector<T> e = fma(power, reduced.expm1, power - 1), value = e / (e + 2);
    return Vector<T>::of_bits(value.bits() | (a.bits() & sign));
}

// exp(x) - 1, of numbers that are not above zero.
template <typename T>
ALWAYS_INLINE Vector<T> expm1(Vector<T> x) {
    const Reduced<T> reduced(max(Vector<T>(T(-40)), x));  // there it is -1
    const Vector<T> power = power_of_two<T>(reduced.shifted);
    return fma(power, reduced.expm1, power - 1);
}

// log(1 + x), of numbers from zero to one: 2 (z + z^3 / 3 + z^5 / 5 + ...) with z = x / (2 + x).
template <typename T>
ALWAYS_INLINE Vector<T> log1p(Vector<T> x) {
    const Vector<T> z = x / (x + 2), square = z * z;
    constexpr int terms = sizeof(T) == 4 ? 8 : 17;
    Vector<T> series = T(1) / (2 * terms + 1);
#pragma GCC unroll 18
    for (int k = terms - 1; k >= 0; --k) series = fma(series, square, Vector<T>(T(1) / (2 * k + 1)));
    return 2 * z * series;
}

// The sigmoid as activations.cuh stores it, with the sign's bit in place of comparisons.
template <typename T>
struct Gate<Vector<T>> {
    using Real = Vector<T>;
    Real held;

    static ALWAYS_INLINE Gate of(Real a) {
        const Real below_zero = Real::of_bits(a.bits() | Real::sign());
#if defined(__AVX512F__)
        const Real e = exp(below_zero), smaller = e / (1 + e);
#else
        // Of 2^64 e and 2^64: e itself may be subnormal.
        constexpr T scaled = T(1ull << 32) * T(1ull << 32);
        const Reduced<T> reduced(max(Real(Elementary<T>::least), below_zero));
        const Real power = power_of_two<T, 64>(reduced.shifted);
        const Real e = fma(power, reduced.expm1, power), smaller = e / (scaled + e);
#endif
        return {Real::of_bits(smaller.bits() | (~a.bits() & Real::sign()))};
    }
    ALWAYS_INLINE auto holds_complement() const { return signbit(held); }
    ALWAYS_INLINE Real value() const { return select(holds_complement(), 1 + held, held); }
    ALWAYS_INLINE Real complement() const { return select(holds_complement(), -held, 1 - held); }
    ALWAYS_INLINE Real slope() const { return value() * complement(); }
};
