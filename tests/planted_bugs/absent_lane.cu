// Sum of the 20 threads of a block: its one warp has 20 lanes.
template <bool planted>
__global__ void sum_of_20(const float* x, float* out) {
    const unsigned lane = threadIdx.x;
    float sum = x[lane];
    for (int step = 16; step; step /= 2) {
        // the planted bug: the value of a lane that is not there is added
        const int source = planted || lane + step < 20 ? lane + step : lane;
        const float other = __shfl_sync(0x000fffffu, sum, source);
        if (planted || lane + step < 20) sum += other;
    }
    if (lane == 0) *out = sum;
}
