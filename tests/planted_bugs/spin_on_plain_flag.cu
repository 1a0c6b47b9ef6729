#include "intrinsics.cuh"

// Two blocks meet.
template <bool planted>
__global__ void meet(unsigned* arrived, float* out) {
    arrive(arrived, 2);
    if (planted) {
        while (*arrived < 2) {  // the planted bug: the compiler may read it once, and nothing lets the other block run
        }
    } else {
        await(arrived, 2);
    }
    out[blockIdx.x] = 1;
}

// The first block waits for the second.
template <bool planted>
__global__ void wait_for_two(unsigned* flag, float* out) {
    if (blockIdx.x == 0) {
        await(flag, planted ? 2 : 1);  // the planted bug: only one arrives
        *out = 1;
    } else {
        arrive(flag, 1);
    }
}
