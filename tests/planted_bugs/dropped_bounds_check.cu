template <bool planted>
__global__ void twice(const float* x, float* out, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (planted || i < n) out[i] = 2 * x[i];  // the planted bug: the last block runs past the end
}
