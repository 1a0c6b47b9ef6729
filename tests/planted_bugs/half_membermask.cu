template <bool planted>
__global__ void rotate_in_warp(const float* x, float* out) {
    __shared__ float shared[32];
    const int lane = threadIdx.x;
    shared[lane] = x[lane];
    __syncwarp(planted ? 0x0000ffffu : 0xffffffffu);  // the planted bug: names half of the lanes that come here
    out[lane] = shared[(lane + 1) % 32];
}

template <bool planted>
__global__ void rotate_by_halves(const float* x, float* out) {
    __shared__ float shared[32];
    const int lane = threadIdx.x;
    shared[lane] = x[lane];
    if (planted) {
        __syncwarp(lane < 16 ? 0x0000ffffu : 0xffff0000u);  // the planted bug: each half waits for itself only
    } else {
        __syncwarp();
    }
    out[lane] = shared[(lane + 1) % 32];
}
