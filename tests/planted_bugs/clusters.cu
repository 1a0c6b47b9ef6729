// Each block of a cluster has a part of a row in its shared memory, and adds up those of all blocks.
#include "intrinsics.cuh"

enum class Bug { none, unmet, absent, overwritten, left };

template <Bug bug>
__device__ void add_up(const float* x, float* out, int steps) {
    DYNAMIC_SHARED(float, part);
    const int i = threadIdx.x;
    for (int step = 0; step < steps; ++step) {
        const int at = (step * gridDim.x + blockIdx.x) * blockDim.x + i;
        part[i] = x[at];
        if (bug == Bug::absent && blockIdx.x % cluster_blocks == 1) return;
        if (bug == Bug::unmet) {
            __syncthreads();
        } else {
            cluster_sync();
        }
        float sum = 0;
        for (int rank = 0; rank < cluster_blocks; ++rank) sum += read_of_block(part + i, rank);
        out[at] = sum;
        const bool is_last = step + 1 == steps;
        if (!(bug == Bug::left && is_last) && !(bug == Bug::overwritten && !is_last)) cluster_sync();
    }
}

// The planted bug: the other blocks are not waited for.
template <bool planted>
__global__ void IN_CLUSTERS unmet(const float* x, float* out, int steps) {
    add_up<planted ? Bug::unmet : Bug::none>(x, out, steps);
}

// The planted bug: one block ends without coming to the barrier.
template <bool planted>
__global__ void IN_CLUSTERS absent(const float* x, float* out, int steps) {
    add_up<planted ? Bug::absent : Bug::none>(x, out, steps);
}

// The planted bug: the others may still read what a block writes over.
template <bool planted>
__global__ void IN_CLUSTERS overwritten(const float* x, float* out, int steps) {
    add_up<planted ? Bug::overwritten : Bug::none>(x, out, steps);
}

// The planted bug: the others may still read what goes with a block that ends.
template <bool planted>
__global__ void IN_CLUSTERS left(const float* x, float* out, int steps) {
    add_up<planted ? Bug::left : Bug::none>(x, out, steps);
}
