// Masks of inverted dropout, of the words of philox.cuh.
#include <cstdint>

#include "native/threads.h"

static inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned(uint64_t(a) * b >> 32); }

#include "philox.cuh"

#define EXPORTED extern "C" __attribute__((visibility("default")))

// Element i is `scale` if word i mod 4 of counter offset + i div 4 is at least `threshold`, else 0.
template <typename T>
static void dropout_mask(
    const Team& team, int64_t size, uint64_t threshold, uint64_t seed, uint64_t offset, T scale, T* mask) {
    constexpr int together = 64;  // counters, side by side in the registers that the compiler makes of the inner loop
    const int64_t counters = (size + 3) / 4, blocks = (counters + together - 1) / together;
    team.share(double(size) / 1e3, [&](int index, int count) {
        for (int64_t block = blocks * index / count; block < blocks * (index + 1) / count; ++block) {
            unsigned words[4][together];
            const uint64_t first = offset + uint64_t(block) * together;
            for (int i = 0; i < together; ++i) {
                unsigned own[4];
                philox4x32(first + i, seed, own);
                for (int k = 0; k < 4; ++k) words[k][i] = own[k];
            }
            T* const to = mask + block * together * 4;
            const int64_t left = size - block * together * 4;
            if (left >= 4 * together) {
                for (int i = 0; i < together; ++i) {
                    for (int k = 0; k < 4; ++k) to[4 * i + k] = words[k][i] >= threshold ? scale : T(0);
                }
            } else {
                for (int64_t i = 0; i < left; ++i) to[i] = words[i % 4][i / 4] >= threshold ? scale : T(0);
            }
        }
    });
}

EXPORTED void gpurnn_dropout_float32(
    const Team* team, int64_t size, uint64_t threshold, uint64_t seed, uint64_t offset, double scale, float* mask) {
    dropout_mask(*team, size, threshold, seed, offset, float(scale), mask);
}
EXPORTED void gpurnn_dropout_float64(
    const Team* team, int64_t size, uint64_t threshold, uint64_t seed, uint64_t offset, double scale, double* mask) {
    dropout_mask(*team, size, threshold, seed, offset, scale, mask);
}
