// A number of as many lanes as a register of the processor holds: what the cells compute with on a CPU.
//
// `Vector<float>` and `Vector<double>` behave in an expression as a float or a double does, each lane for itself. So a
// struct of cells/*.cuh is written once for a GPU and for this. A comparison gives a `Mask`, and `select` reads it.
// The compiler must not fuse a product and a sum by itself (-ffp-contract=off): a result would then depend on the
// function that an expression was inlined into. `fma` fuses where the processor can.
#pragma once

#include <cstdint>
#include <type_traits>

#if defined(__SSE4_1__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define ALWAYS_INLINE inline __attribute__((always_inline))

#if defined(__AVX512F__)
constexpr int register_bytes = 64, registers = 32;
#elif defined(__AVX2__)
constexpr int register_bytes = 32, registers = 16;
#elif defined(__aarch64__)
constexpr int register_bytes = 16, registers = 32;
#else
constexpr int register_bytes = 16, registers = 16;
#endif

template <typename T>
struct Registers {
    using Bits = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;
    typedef T Numbers __attribute__((vector_size(register_bytes)));
    typedef Bits Integers __attribute__((vector_size(register_bytes)));
    typedef T Unaligned __attribute__((vector_size(register_bytes), aligned(sizeof(T)), may_alias));
};

template <typename T>
struct Mask {
    typename Registers<T>::Integers lanes;  // all bits of a lane, or none

    friend ALWAYS_INLINE Mask operator&(Mask a, Mask b) { return {a.lanes & b.lanes}; }
    friend ALWAYS_INLINE Mask operator|(Mask a, Mask b) { return {a.lanes | b.lanes}; }
};

template <typename T>
struct Vector {
    using Number = T;
    using Raw = typename Registers<T>::Numbers;
    using Integers = typename Registers<T>::Integers;
    static constexpr int lanes = register_bytes / sizeof(T);

    Raw raw;

    Vector() = default;
    ALWAYS_INLINE Vector(Raw raw) : raw(raw) {}
    // Less zero, and not more: -0 stays -0.
    template <typename Scalar, typename = std::enable_if_t<std::is_arithmetic_v<Scalar>>>
    ALWAYS_INLINE Vector(Scalar value) : raw(static_cast<T>(value) - Raw{}) {}

    static ALWAYS_INLINE Vector load(const T* from) {
        return {Raw(*reinterpret_cast<const typename Registers<T>::Unaligned*>(from))};
    }
    ALWAYS_INLINE void store(T* to) const { *reinterpret_cast<typename Registers<T>::Unaligned*>(to) = raw; }

    // The first `count` lanes, zero in the others. Memory behind them is not touched.
    static ALWAYS_INLINE Vector load(const T* from, int64_t count);
    ALWAYS_INLINE void store(T* to, int64_t count) const;

    ALWAYS_INLINE Integers bits() const { return Integers(raw); }
    static ALWAYS_INLINE Vector of_bits(Integers bits) { return {Raw(bits)}; }
    static ALWAYS_INLINE Integers sign() { return Vector(-T(0)).bits(); }

    ALWAYS_INLINE Vector& operator+=(Vector b) { return *this = *this + b; }
    ALWAYS_INLINE Vector& operator*=(Vector b) { return *this = *this * b; }

    friend ALWAYS_INLINE Vector operator-(Vector a) { return {-a.raw}; }
    friend ALWAYS_INLINE Vector operator+(Vector a, Vector b) { return {a.raw + b.raw}; }
    friend ALWAYS_INLINE Vector operator-(Vector a, Vector b) { return {a.raw - b.raw}; }
    friend ALWAYS_INLINE Vector operator*(Vector a, Vector b) { return {a.raw * b.raw}; }
    friend ALWAYS_INLINE Vector operator/(Vector a, Vector b) { return {a.raw / b.raw}; }
    friend ALWAYS_INLINE Mask<T> operator<(Vector a, Vector b) { return {a.raw < b.raw}; }
    friend ALWAYS_INLINE Mask<T> operator>(Vector a, Vector b) { return {a.raw > b.raw}; }
    friend ALWAYS_INLINE Mask<T> operator==(Vector a, Vector b) { return {a.raw == b.raw}; }
    friend ALWAYS_INLINE Mask<T> operator!=(Vector a, Vector b) { return {a.raw != b.raw}; }
    friend ALWAYS_INLINE Mask<T> signbit(Vector a) { return {a.bits() < 0}; }
    friend ALWAYS_INLINE Vector select(Mask<T> condition, Vector yes, Vector no) {
        return {condition.lanes ? yes.raw : no.raw};
    }
};

// ---- Instructions that the compiler does not find by itself ---------------------------------------------------------

#if defined(__AVX512F__)

ALWAYS_INLINE Vector<float> fma(Vector<float> a, Vector<float> b, Vector<float> c) {
    return {_mm512_fmadd_ps(a.raw, b.raw, c.raw)};
}
ALWAYS_INLINE Vector<double> fma(Vector<double> a, Vector<double> b, Vector<double> c) {
    return {_mm512_fmadd_pd(a.raw, b.raw, c.raw)};
}
// The second number where they are not ordered, and so a NaN that stands second, as all of min and max do.
ALWAYS_INLINE Vector<float> min(Vector<float> a, Vector<float> b) { return {_mm512_min_ps(a.raw, b.raw)}; }
ALWAYS_INLINE Vector<float> max(Vector<float> a, Vector<float> b) { return {_mm512_max_ps(a.raw, b.raw)}; }
ALWAYS_INLINE Vector<double> min(Vector<double> a, Vector<double> b) { return {_mm512_min_pd(a.raw, b.raw)}; }
ALWAYS_INLINE Vector<double> max(Vector<double> a, Vector<double> b) { return {_mm512_max_pd(a.raw, b.raw)}; }
ALWAYS_INLINE Vector<float> sqrt(Vector<float> a) { return {_mm512_sqrt_ps(a.raw)}; }
ALWAYS_INLINE Vector<double> sqrt(Vector<double> a) { return {_mm512_sqrt_pd(a.raw)}; }
// a 2^n, rounded once.
ALWAYS_INLINE Vector<float> scale(Vector<float> a, Vector<float> n) { return {_mm512_scalef_ps(a.raw, n.raw)}; }
ALWAYS_INLINE Vector<double> scale(Vector<double> a, Vector<double> n) { return {_mm512_scalef_pd(a.raw, n.raw)}; }

template <>
ALWAYS_INLINE Vector<float> Vector<float>::load(const float* from, int64_t count) {
    return {_mm512_maskz_loadu_ps((1u << count) - 1, from)};
}
template <>
ALWAYS_INLINE Vector<double> Vector<double>::load(const double* from, int64_t count) {
    return {_mm512_maskz_loadu_pd((1u << count) - 1, from)};
}
template <>
ALWAYS_INLINE void Vector<float>::store(float* to, int64_t count) const {
    _mm512_mask_storeu_ps(to, (1u << count) - 1, raw);
}
template <>
ALWAYS_INLINE void Vector<double>::store(double* to, int64_t count) const {
    _mm512_mask_storeu_pd(to, (1u << count) - 1, raw);
}

#else

#if defined(__FMA__)
ALWAYS_INLINE Vector<float> fma(Vector<float> a, Vector<float> b, Vector<float> c) {
    return {_mm256_fmadd_ps(a.raw, b.raw, c.raw)};
}
ALWAYS_INLINE Vector<double> fma(Vector<double> a, Vector<double> b, Vector<double> c) {
    return {_mm256_fmadd_pd(a.raw, b.raw, c.raw)};
}
#elif defined(__aarch64__)
ALWAYS_INLINE Vector<float> fma(Vector<float> a, Vector<float> b, Vector<float> c) {
    return {Registers<float>::Numbers(vfmaq_f32(c.raw, a.raw, b.raw))};
}
ALWAYS_INLINE Vector<double> fma(Vector<double> a, Vector<double> b, Vector<double> c) {
    return {Registers<double>::Numbers(vfmaq_f64(c.raw, a.raw, b.raw))};
}
#else
template <typename T>
ALWAYS_INLINE Vector<T> fma(Vector<T> a, Vector<T> b, Vector<T> c) {
    return a * b + c;
}
#endif

#if defined(__AVX2__)
ALWAYS_INLINE Vector<float> sqrt(Vector<float> a) { return {_mm256_sqrt_ps(a.raw)}; }
ALWAYS_INLINE Vector<double> sqrt(Vector<double> a) { return {_mm256_sqrt_pd(a.raw)}; }
ALWAYS_INLINE Vector<float> min(Vector<float> a, Vector<float> b) { return {_mm256_min_ps(a.raw, b.raw)}; }
ALWAYS_INLINE Vector<float> max(Vector<float> a, Vector<float> b) { return {_mm256_max_ps(a.raw, b.raw)}; }
ALWAYS_INLINE Vector<double> min(Vector<double> a, Vector<double> b) { return {_mm256_min_pd(a.raw, b.raw)}; }
ALWAYS_INLINE Vector<double> max(Vector<double> a, Vector<double> b) { return {_mm256_max_pd(a.raw, b.raw)}; }
#elif defined(__aarch64__)
ALWAYS_INLINE Vector<float> sqrt(Vector<float> a) { return {Registers<float>::Numbers(vsqrtq_f32(a.raw))}; }
ALWAYS_INLINE Vector<double> sqrt(Vector<double> a) { return {Registers<double>::Numbers(vsqrtq_f64(a.raw))}; }
#else
ALWAYS_INLINE Vector<float> sqrt(Vector<float> a) { return {_mm_sqrt_ps(a.raw)}; }
ALWAYS_INLINE Vector<double> sqrt(Vector<double> a) { return {_mm_sqrt_pd(a.raw)}; }
#endif

#if !defined(__AVX2__)
template <typename T>
ALWAYS_INLINE Vector<T> min(Vector<T> a, Vector<T> b) {
    return select(a < b, a, b);
}
template <typename T>
ALWAYS_INLINE Vector<T> max(Vector<T> a, Vector<T> b) {
    return select(a > b, a, b);
}
#endif

template <typename T>
ALWAYS_INLINE Vector<T> Vector<T>::load(const T* from, int64_t count) {
    Raw raw = {};
    for (int64_t i = 0; i < count; ++i) raw[i] = from[i];
    return {raw};
}
template <typename T>
ALWAYS_INLINE void Vector<T>::store(T* to, int64_t count) const {
    for (int64_t i = 0; i < count; ++i) to[i] = raw[i];
}

#endif

// Up to `count` lanes from memory and to memory; all of them where `whole` says so.
template <bool whole = false, typename T>
ALWAYS_INLINE Vector<T> get(const T* from, int64_t count) {
    return whole || count >= Vector<T>::lanes ? Vector<T>::load(from) : Vector<T>::load(from, count);
}
template <bool whole = false, typename T>
ALWAYS_INLINE void put(Vector<T> value, T* to, int64_t count) {
    whole || count >= Vector<T>::lanes ? value.store(to) : value.store(to, count);
}

// The sum of all lanes, in their order.
template <typename T>
ALWAYS_INLINE T sum(Vector<T> a) {
    T total = a.raw[0];
#pragma GCC unroll 16
    for (int lane = 1; lane < Vector<T>::lanes; ++lane) total += a.raw[lane];
    return total;
}
