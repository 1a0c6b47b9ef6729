// Masks of inverted dropout.
#include "philox.cuh"

template <typename Storage>
struct alignas(4 * sizeof(Storage) < 16 ? 4 * sizeof(Storage) : 16) Four {
    Storage of[4];
};

// Element i is `scale` if word i mod 4 of counter offset + i div 4 is at least `threshold`, else 0. A thread computes the
// four elements of one counter and stores them at once. The mask is aligned to 16 bytes.
template <typename Storage, typename Real>
__global__ void dropout_mask(
    Storage* mask, long long size, unsigned long long threshold, unsigned long long seed, unsigned long long offset,
    Real scale) {
    const long long counter = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    unsigned words[4];
    philox4x32(offset + counter, seed, words);
    Four<Storage> four;
#pragma unroll
    for (int k = 0; k < 4; ++k) four.of[k] = words[k] >= threshold ? Storage(scale) : Storage(0);
    if (4 * counter + 4 <= size) {
        reinterpret_cast<Four<Storage>*>(mask)[counter] = four;
    } else {
        // Unrolled, so that the four stay in registers.
#pragma unroll
        for (int k = 0; k < 4; ++k) {
            if (4 * counter + k < size) mask[4 * counter + k] = four.of[k];
        }
    }
}
