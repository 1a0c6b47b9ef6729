// The types that kernels compute with.
//
// A kernel template takes two of them, which kernels/dtypes.py pairs: arrays hold numbers of type Storage, sums and
// functions are computed in Real. A load converts, `Real x = array[i]`, and a store rounds, `array[i] = Storage(x)`.
// Arrays that only kernels read, and what one thread passes to itself from launch to launch, are of type Real.
#pragma once

// As `condition ? yes : no`, which a number of several lanes (native/simd.h) does not have.
template <typename Real>
__device__ __forceinline__ Real select(bool condition, Real yes, Real no) { return condition ? yes : no; }

// The limits of a type to compute in. Under NVRTC there is no <limits>.
template <typename Real>
struct Limits;

template <>
struct Limits<float> {
    static constexpr float largest = 3.402823466e38f, smallest_normal = 0x1p-126f, epsilon = 0x1p-23f;
};

template <>
struct Limits<double> {
    static constexpr double largest = 1.7976931348623157e308, smallest_normal = 0x1p-1022, epsilon = 0x1p-52;
};
