// h_t[i] = h_{t-1}[(i + 1) % n] / 2, one element a thread, h double-buffered.
#include "intrinsics.cuh"

template <bool planted>
__global__ void shift(float* h, unsigned* arrived, int n, int steps) {
    GridBarrier barrier(arrived, gridDim.x);
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    for (int t = 0; t < steps; ++t) {
        const float* before = h + t % 2 * n;
        float* after = h + (t + 1) % 2 * n;
        publish(after + i, read_published(before + (i + 1) % n) / 2);
        if (planted) {
            __syncthreads();  // the planted bug: other blocks are not waited for
        } else {
            barrier.sync();
        }
    }
}
