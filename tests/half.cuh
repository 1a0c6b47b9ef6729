// A number of 16 bits for tests of kernels, IEEE 754's binary16: stored, and converted to and from float.
#pragma once

struct Half {
    unsigned short bits;

    Half() = default;
    __device__ explicit Half(float x) {
        const unsigned word = __float_as_uint(x), sign = word >> 16 & 0x8000u, size = word & 0x7fffffffu;
        if (size > 0x7f800000u) {
            bits = sign | 0x7e00u;  // NaN
        } else if (size >= 0x477ff000u) {
            bits = sign | 0x7c00u;  // rounds to infinity
        } else if (size < 0x38800000u) {
            // Subnormal: beside 0.5 the float has its last bit where the half has it.
            bits = sign | (__float_as_uint(__uint_as_float(size) + 0.5f) - 0x3f000000u);
        } else {
            bits = sign | ((size - 0x38000000u + 0xfffu + (size >> 13 & 1u)) >> 13);  // to nearest, ties to even
        }
    }
    __device__ operator float() const {
        const unsigned sign = (bits & 0x8000u) << 16, size = (bits & 0x7fffu) << 13;
        const unsigned special = size >= 0x0f800000u ? 0x70000000u : 0u;  // infinity or NaN
        return __uint_as_float(sign | (special ? size + special : __float_as_uint(__uint_as_float(size) * 0x1p112f)));
    }
};

#if defined(__CUDACC__)
__device__ inline Half word_of(unsigned short bits) {
    Half half;
    half.bits = bits;
    return half;
}
__device__ inline Half __ldg(const Half* address) { return word_of(__ldg(&address->bits)); }
__device__ inline Half __ldcg(const Half* address) { return word_of(__ldcg(&address->bits)); }
__device__ inline void __stcg(Half* address, Half value) { __stcg(&address->bits, value.bits); }
#else
namespace std {
template <>
inline constexpr bool is_floating_point_v<Half> = true;  // so that the executor takes arrays of float16 for it
}
#endif
