// Transposes of as many rows as a register has lanes: of a square of them, and of some columns.
#pragma once

#include <utility>

#include "native/simd.h"

// Exchanges the lanes of a with an odd multiple of `distance` and those of b with an even one.
template <int distance, typename T, int... lane>
ALWAYS_INLINE void exchange(Vector<T>& a, Vector<T>& b, std::integer_sequence<int, lane...>) {
    constexpr int lanes = Vector<T>::lanes;
#if defined(__clang__)
    const auto low = __builtin_shufflevector(a.raw, b.raw, (lane & distance ? lanes + lane - distance : lane)...);
    b.raw = __builtin_shufflevector(a.raw, b.raw, (lane & distance ? lanes + lane : lane + distance)...);
#else
    using Integers = typename Vector<T>::Integers;
    const auto low = __builtin_shuffle(a.raw, b.raw, Integers{(lane & distance ? lanes + lane - distance : lane)...});
    b.raw = __builtin_shuffle(a.raw, b.raw, Integers{(lane & distance ? lanes + lane : lane + distance)...});
#endif
    a.raw = low;
}

// One bit of the indices of rows and of lanes after the other changes places.
template <int distance = 1, typename T>
ALWAYS_INLINE void transpose(Vector<T> (&rows)[Vector<T>::lanes]) {
    constexpr int lanes = Vector<T>::lanes;
    if constexpr (distance < lanes) {
#pragma GCC unroll 16
        for (int i = 0; i < lanes; ++i) {
            if (!(i & distance)) {
                exchange<distance>(rows[i], rows[i + distance], std::make_integer_sequence<int, lanes>());
            }
        }
        transpose<2 * distance>(rows);
    }
}

// Numbers of a part of a register, which are 16 bytes.
template <typename T>
constexpr int of_a_part = 16 / sizeof(T);

// Of each part of two registers the lower or the higher half, `width` numbers of one and of the other in turn.
template <int width, bool higher, typename T, int... lane>
ALWAYS_INLINE Vector<T> interleaved(Vector<T> a, Vector<T> b, std::integer_sequence<int, lane...>) {
    constexpr int lanes = Vector<T>::lanes, part = of_a_part<T>;
#define SOURCE                                                                                        \
    (lane / width % 2 * lanes + lane / part * part + higher * part / 2 + lane % part / (2 * width) * width + \
     lane % width)
#if defined(__clang__)
    return {__builtin_shufflevector(a.raw, b.raw, SOURCE...)};
#else
    return {__builtin_shuffle(a.raw, b.raw, typename Vector<T>::Integers{SOURCE...})};
#endif
#undef SOURCE
}

// A register whose parts are `apart` from each other.
template <typename T>
ALWAYS_INLINE Vector<T> load_parts(const T* from, int64_t apart) {
#if defined(__AVX2__)
    using Raw = typename Vector<T>::Raw;
    const auto part = [&](int p) { return _mm_loadu_ps(reinterpret_cast<const float*>(from + p * apart)); };
#if defined(__AVX512F__)
    __m512 parts = _mm512_castps128_ps512(part(0));
    parts = _mm512_insertf32x4(parts, part(1), 1);
    parts = _mm512_insertf32x4(parts, part(2), 2);
    parts = _mm512_insertf32x4(parts, part(3), 3);
#else
    const __m256 parts = _mm256_insertf128_ps(_mm256_castps128_ps256(part(0)), part(1), 1);
#endif
    return {Raw(parts)};
#else
    (void)apart;
    return Vector<T>::load(from);
#endif
}

// columns[i] = number i of each of as many rows as a register has lanes, which are `apart` from each other.
template <typename T>
ALWAYS_INLINE void load_columns(const T* rows, int64_t apart, Vector<T> (&columns)[of_a_part<T>]) {
    constexpr int part = of_a_part<T>;
    constexpr auto lanes = std::make_integer_sequence<int, Vector<T>::lanes>();
    Vector<T> own[part];
#pragma GCC unroll 4
    for (int i = 0; i < part; ++i) own[i] = load_parts(rows + i * apart, part * apart);
    if constexpr (part == 2) {
        columns[0] = interleaved<1, false>(own[0], own[1], lanes);
        columns[1] = interleaved<1, true>(own[0], own[1], lanes);
    } else {
        const Vector<T> low[] = {interleaved<1, false>(own[0], own[1], lanes), interleaved<1, false>(own[2], own[3], lanes)};
        const Vector<T> high[] = {interleaved<1, true>(own[0], own[1], lanes), interleaved<1, true>(own[2], own[3], lanes)};
        columns[0] = interleaved<2, false>(low[0], low[1], lanes);
        columns[1] = interleaved<2, true>(low[0], low[1], lanes);
        columns[2] = interleaved<2, false>(high[0], high[1], lanes);
        columns[3] = interleaved<2, true>(high[0], high[1], lanes);
    }
}
