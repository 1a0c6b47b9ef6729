// Masks of inverted dropout.
#include "philox.cuh"

// Element i is `kept` if word i mod 4 of counter offset + i div 4 is at least `threshold`, else 0. A thread a counter.
template <typename Real>
__global__ void dropout_mask(
    Real* mask, long long size, unsigned long long threshold, unsigned long long seed, unsigned long long offset, Real kept) {
    const long long counter = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    unsigned words[4];
    philox4x32(offset + counter, seed, words);
    for (int k = 0; k < 4; ++k) {
        if (4 * counter + k < size) mask[4 * counter + k] = words[k] >= threshold ? kept : Real(0);
    }
}
