// What `python -m benchmarks device` measures of a GPU itself: a launch, a barrier of blocks, its clock and its memory.
#include "intrinsics.cuh"

__global__ void nothing(int step) { (void)step; }

// All blocks meet `count` times.
__global__ void barriers(unsigned* arrived, int count) {
    GridBarrier barrier(arrived, gridDim.x);
    for (int n = 0; n < count; ++n) {
        if (!barrier.sync()) return;
    }
}

__device__ inline long long cycle() {
#if defined(__CUDACC__)
    return clock64();
#else
    return 0;
#endif
}

// The cycles of `count` multiply-adds, each of which needs the one before.
__global__ void chain(float* x, long long* cycles, int count) {
    const long long begin = cycle();
    float value = x[0];
#pragma unroll 16
    for (int n = 0; n < count; ++n) value = value * 0.5f + 1.0f;
    x[0] = value;
    *cycles = cycle() - begin;
}

// Every number of x, of which there are n, a multiple of 4, again and again: past the caches of the multiprocessors.
__global__ void read(const float* x, float* sums, long long n, int repeats) {
    float sum = 0;
    const long long first = blockIdx.x * (long long)blockDim.x + threadIdx.x, all = gridDim.x * (long long)blockDim.x;
    for (int repeat = 0; repeat < repeats; ++repeat) {
#pragma unroll 4
        for (long long i = first; i < n / 4; i += all) {
            const Packet<float> packet = read_published_packet(x + 4 * i);
            for (int e = 0; e < 4; ++e) sum += packet.at[e];
        }
    }
    sums[first] = sum;
}
