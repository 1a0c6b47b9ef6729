#include "intrinsics.cuh"

// Sums of pairs with zeros past the end.
template <bool planted>
__global__ void pair_sums(const float* x, float* out, int n) {
    __shared__ float fixed[64];
    DYNAMIC_SHARED(float, dynamic);
    const int i = threadIdx.x;
    if (i < n) fixed[i] = dynamic[i] = x[i];
    if (!planted && i >= n) fixed[i] = dynamic[i] = 0;  // the planted bug: the padding is not set
    __syncthreads();
    if (i < 63) out[2 * i] = fixed[i] + fixed[i + 1], out[2 * i + 1] = dynamic[i] + dynamic[i + 1];
}
