#include "intrinsics.cuh"

// Differences of neighbours, by way of shared memory with room for one more at the end.
template <bool planted>
__global__ void differences(const float* x, float* out) {
    __shared__ float with_end[33];
    __shared__ float without_end[32];
    float* shared = planted ? without_end : with_end;
    shared[threadIdx.x] = x[threadIdx.x];
    if (threadIdx.x == 31) {
        if (planted) {
            without_end[threadIdx.x + 1] = 0;  // the planted bug: one past the end
        } else {
            with_end[threadIdx.x + 1] = 0;
        }
    }
    __syncthreads();
    out[threadIdx.x] = shared[threadIdx.x + 1] - shared[threadIdx.x];
}

template <bool planted>
__global__ void dynamic_differences(const float* x, float* out) {
    DYNAMIC_SHARED(float, shared);
    shared[threadIdx.x] = x[threadIdx.x];
    if (threadIdx.x == blockDim.x - 1) shared[threadIdx.x + (planted ? 2 : 1)] = 0;  // room for blockDim.x + 1
    __syncthreads();
    if (planted && threadIdx.x == blockDim.x - 1) return;
    out[threadIdx.x] = shared[threadIdx.x + 1] - shared[threadIdx.x];
}
