// Masks of inverted dropout, of the words of philox.cuh.
#include <cstdint>

#include "native/threads.h"

static inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned(uint64_t(a) * b >> 32); }

#include "philox.cuh"

#define EXPORTED extern "C" __attribute__((visibility("default")))

// Entry n is `scale` if word n mod 4 of counter n div 4 is at least `threshold`, else 0. The mask has `pieces` pieces of
// `size` entries, which begin at first, first + stride, and so on.
template <typename T>
static void dropout_mask(
    const Team& team, int64_t pieces, int64_t size, uint64_t stride, uint64_t threshold, uint64_t seed, uint64_t first,
    T scale, T* mask) {
    constexpr int together = 64;  // counters, side by side in the registers that the compiler makes of the inner loop
    constexpr int64_t entries = 4 * together;
    const int64_t blocks = (size + 3 + entries - 1) / entries;  // of a piece, which may begin with any word of a counter
    const int64_t all = pieces * blocks;
    team.share(double(pieces) * double(size) / 1e3, [&](int index, int count) {
        for (int64_t block = all * index / count; block < all * (index + 1) / count; ++block) {
            const int64_t piece = block / blocks;
            const uint64_t begin = first + uint64_t(piece) * stride, counter = begin / 4 + block % blocks * together;
            unsigned words[4][together];
            for (int i = 0; i < together; ++i) {
                unsigned own[4];
                philox4x32(counter + i, seed, own);
                for (int k = 0; k < 4; ++k) words[k][i] = own[k];
            }
            const int64_t at = block % blocks * entries - int64_t(begin % 4);  // the place of words[0][0] in the piece
            T* const to = mask + piece * size;
            if (at >= 0 && at + entries <= size) {
                for (int i = 0; i < together; ++i) {
                    for (int k = 0; k < 4; ++k) to[at + 4 * i + k] = words[k][i] >= threshold ? scale : T(0);
                }
            } else {
                for (int64_t i = at < 0 ? -at : 0; i < entries && at + i < size; ++i)
                    to[at + i] = words[i % 4][i / 4] >= threshold ? scale : T(0);
            }
        }
    });
}

EXPORTED void gpurnn_dropout_float32(
    const Team* team, int64_t pieces, int64_t size, uint64_t stride, uint64_t threshold, uint64_t seed, uint64_t first,
    double scale, float* mask) {
    dropout_mask(*team, pieces, size, stride, threshold, seed, first, float(scale), mask);
}
EXPORTED void gpurnn_dropout_float64(
    const Team* team, int64_t pieces, int64_t size, uint64_t stride, uint64_t threshold, uint64_t seed, uint64_t first,
    double scale, double* mask) {
    dropout_mask(*team, pieces, size, stride, threshold, seed, first, scale, mask);
}
