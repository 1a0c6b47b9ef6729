// Masks of inverted dropout.
#include "philox.cuh"

template <typename Real>
struct alignas(16) Four {
    Real of[4];
};

// Element i is `kept` if word i mod 4 of counter offset + i div 4 is at least `threshold`, else 0. A thread a counter,
// whose four elements it stores at once; the mask is aligned to 16 bytes.
template <typename Real>
__global__ void dropout_mask(
    Real* mask, long long size, unsigned long long threshold, unsigned long long seed, unsigned long long offset, Real kept) {
    const long long counter = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    unsigned words[4];
    philox4x32(offset + counter, seed, words);
    Four<Real> four;
#pragma unroll
    for (int k = 0; k < 4; ++k) four.of[k] = words[k] >= threshold ? kept : Real(0);
    if (4 * counter + 4 <= size) {
        reinterpret_cast<Four<Real>*>(mask)[counter] = four;
    } else {
        // Unrolled, so that the four stay in registers.
#pragma unroll
        for (int k = 0; k < 4; ++k) {
            if (4 * counter + k < size) mask[4 * counter + k] = four.of[k];
        }
    }
}
