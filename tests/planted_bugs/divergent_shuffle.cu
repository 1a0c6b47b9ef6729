template <bool planted>
__global__ void sum_of_halves(const float* x, float* out) {
    const int lane = threadIdx.x;
    float sum = x[lane];
    if (lane < 16) {
        // the planted bug: the mask names lanes that do not come here
        const unsigned mask = planted ? 0xffffffffu : 0x0000ffffu;
        for (int step = 8; step; step /= 2) sum += __shfl_xor_sync(mask, sum, step);
    } else {
        for (int step = 8; step; step /= 2) sum += __shfl_xor_sync(0xffff0000u, sum, step);
    }
    out[lane] = sum;
}

template <bool planted>
__global__ void sum_of_first_half(const float* x, float* out) {
    const int lane = threadIdx.x;
    float sum = x[lane];
    if (lane < 16) {
        const unsigned mask = planted ? 0xffffffffu : 0x0000ffffu;  // the planted bug again; the others are at the barrier
        for (int step = 8; step; step /= 2) sum += __shfl_xor_sync(mask, sum, step);
    }
    __syncthreads();
    if (lane == 0) *out = sum;
}
