// The first block hands a row to the second.
#include "intrinsics.cuh"

template <bool planted>
__global__ void hand_over(const float* x, float* row, float* out, unsigned* ready) {
    const int i = threadIdx.x;
    if (blockIdx.x == 0) {
        publish(row + i, 2 * x[i]);
        __syncthreads();
        if (i == 0) {
            if (planted) {
                atomicAdd(ready, 1u);  // the planted bug: nothing orders the row before the flag
            } else {
                arrive(ready, 1);
            }
        }
    } else {
        if (i == 0) {
            if (planted) {
                while (atomicAdd(ready, 0u) == 0) spin_pause();
            } else {
                await(ready, 1);
            }
        }
        __syncthreads();
        out[i] = read_published(row + i);
    }
}
