template <bool planted>
__global__ void rotate(const float* x, float* out, int n) {
    __shared__ float shared[64];
    const int i = threadIdx.x;
    if (i < n) shared[i] = x[i];
    if (planted) {
        if (i < n) {
            __syncthreads();  // the planted bug: only some threads come here
            out[i] = shared[(i + 1) % n];
        }
    } else {
        __syncthreads();
        if (i < n) out[i] = shared[(i + 1) % n];
    }
}

template <bool planted>
__global__ void two_barriers(const float* x, float* out) {
    __shared__ float shared[64];
    const int i = threadIdx.x;
    shared[i] = x[i];
    if (planted && i < 32) {
        __syncthreads();  // the planted bug: each half waits at another one
    } else {
        __syncthreads();
    }
    out[i] = shared[63 - i];
}
