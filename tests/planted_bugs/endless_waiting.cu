#include "intrinsics.cuh"

// Doubles x in steps, with a barrier in each.
template <bool planted>
__global__ void double_by_steps(float* x, int steps) {
    for (int step = 0; step < steps;) {
        x[threadIdx.x] *= 2;
        __syncthreads();
        if (!planted) ++step;  // the planted bug: the loop never ends, though no thread ever waits in vain
    }
}

// As above, a warp at a time.
template <bool planted>
__global__ void double_by_warps(float* x, int steps) {
    for (int step = 0; step < steps;) {
        x[threadIdx.x] *= 2;
        __syncwarp();
        if (!planted) ++step;  // the planted bug
    }
}

// Each block adds one to the count, as often as it takes.
template <bool planted>
__global__ void count_to(unsigned* count, unsigned goal) {
    while (atomicAdd(count, planted ? 2u : 1u) != goal) spin_pause();  // the planted bug: an odd goal is never met
}
