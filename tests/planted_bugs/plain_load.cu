// The first block hands a row to the second.
#include "intrinsics.cuh"

template <bool planted>
__global__ void hand_over(const float* x, float* row, float* out, unsigned* arrived) {
    GridBarrier barrier(arrived, gridDim.x);
    const int i = threadIdx.x;
    if (blockIdx.x == 0) publish(row + i, 2 * x[i]);
    barrier.sync();
    // the planted bug: the L1 cache may hold what was there before
    if (blockIdx.x == 1) out[i] = planted ? row[i] : read_published(row + i);
}

template <bool planted>
__global__ void read_only_load(const float* x, float* row, float* out) {
    const int i = threadIdx.x;
    row[i] = 2 * x[i];
    out[i] = planted ? __ldg(row + i) : row[i];  // the planted bug: __ldg of what this launch writes
}
