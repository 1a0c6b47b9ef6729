// h_t = (h_{t-1} + x_t) / 2, a block a slice of H; every block reads all of h_{t-1}. h (T + 1, H), h_0 given.
#include "intrinsics.cuh"

template <bool planted>
__global__ void mean_recurrence(const float* x, float* h, unsigned* arrived, int n, int steps) {
    GridBarrier barrier(arrived, gridDim.x);
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    for (int t = 0; t < steps; ++t) {
        const float* before = h + (planted ? t + 1 : t) * n;  // the planted bug: h_t is read, which this step writes
        float sum = 0;
        for (int j = 0; j < n; ++j) sum += read_published(before + j);
        publish(h + (t + 1) * n + i, (sum / n + x[t * n + i]) / 2);
        barrier.sync();
    }
}
