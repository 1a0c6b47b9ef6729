// The transpose of a square of as many rows as a register has lanes.
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
