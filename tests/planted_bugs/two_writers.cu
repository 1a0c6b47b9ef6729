template <bool planted>
__global__ void last_of_block(const float* x, float* out) {
    // the planted bug: all blocks write one element
    if (threadIdx.x == 0) out[planted ? 0 : blockIdx.x] = x[blockIdx.x];
}

template <bool planted>
__global__ void count(unsigned* counter) {
    if (planted) {
        *counter = *counter + 1;  // the planted bug: not atomic
    } else {
        atomicAdd(counter, 1u);
    }
}
