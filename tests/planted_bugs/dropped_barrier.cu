// out[i] = sum over tiles of x[tile, reversed i], through one tile of shared memory.
template <bool planted>
__global__ void reversed_sum(const float* x, float* out, int tiles) {
    __shared__ float tile[64];
    float sum = 0;
    for (int t = 0; t < tiles; ++t) {
        tile[threadIdx.x] = x[t * 64 + threadIdx.x];
        if (!planted) __syncthreads();  // the planted bug: read before all have loaded
        sum += tile[63 - threadIdx.x];
        __syncthreads();
    }
    out[threadIdx.x] = sum;
}
