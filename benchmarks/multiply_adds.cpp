// The multiply-adds of a case's products, of numbers that stay in registers: no layer takes less time.
#include <cstdint>

#include "native/simd.h"
#include "native/threads.h"

// `count` of them, which all threads share. `to` has room for a register of each thread.
extern "C" __attribute__((visibility("default"))) void gpurnn_multiply_adds(
    const Team* team, int64_t count, float* to) {
    const volatile float half = 0.5f;  // so that the compiler cannot compute the sums itself
    using Real = Vector<float>;
    constexpr int sums = registers == 32 ? 24 : 12;  // enough that none waits for the one before
    const int64_t rounds = count / (sums * Real::lanes) + 1;
    team->share(double(count) / 1e5, [&](int index, int threads) {
        const Real factor = half;
        Real own[sums];
        for (int i = 0; i < sums; ++i) own[i] = Real(float(i));
        for (int64_t n = rounds * index / threads; n < rounds * (index + 1) / threads; ++n) {
#pragma GCC unroll 24
            for (int i = 0; i < sums; ++i) own[i] = fma(own[i], factor, factor);
        }
        for (int i = 1; i < sums; ++i) own[0] += own[i];
        own[0].store(to + index * Real::lanes);
    });
}
