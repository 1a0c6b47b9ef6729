// Masks of inverted dropout.
#include "philox.cuh"

template <typename Storage>
struct alignas(4 * sizeof(Storage) < 16 ? 4 * sizeof(Storage) : 16) Four {
    Storage of[4];
};

// Entry n is `scale` if word n mod 4 of counter n div 4 is at least `threshold`, else 0. The mask has pieces of `size`
// entries, which begin at first, first + stride, and so on; `counters` of each cover a piece. A thread computes the four
// entries of one counter, and stores them at once where they lie together. The mask is aligned to 16 bytes.
template <typename Storage, typename Real>
__global__ void dropout_mask(
    Storage* mask, long long pieces, long long size, unsigned long long stride, long long counters,
    unsigned long long threshold, unsigned long long seed, unsigned long long first, Real scale) {
    const long long thread = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    const long long piece = thread / counters, number = thread % counters;
    if (piece >= pieces) return;
    const unsigned long long begin = first + piece * stride;
    const long long at = 4 * number - (long long)(begin % 4);  // the place of the first of the four in the piece
    unsigned words[4];
    philox4x32(begin / 4 + number, seed, words);
    Four<Storage> four;
#pragma unroll
    for (int k = 0; k < 4; ++k) four.of[k] = words[k] >= threshold ? Storage(scale) : Storage(0);
    Storage* const to = mask + piece * size + at;
    if (at >= 0 && at + 4 <= size && (piece * size + at) % 4 == 0) {
        *reinterpret_cast<Four<Storage>*>(to) = four;
    } else {
        // Unrolled, so that the four stay in registers.
#pragma unroll
        for (int k = 0; k < 4; ++k) {
            if (at + k >= 0 && at + k < size) to[k] = four.of[k];
        }
    }
}
