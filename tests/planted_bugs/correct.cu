// Kernels without bugs: what they compute, and that nothing is reported, in every order and build.
#include "intrinsics.cuh"

template <typename T>
__global__ void add(const T* x, const T* y, T* out, int n) {
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) out[i] = x[i] + y[i];
}

// One sum a block, in a fixed order: within the warps by shuffles, then over the warps.
template <typename T>
__global__ void block_sums(const T* x, T* out, int n) {
    __shared__ T warp_sums[32];
    T sum = 0;
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) sum += x[i];
    for (int step = 16; step; step /= 2) sum += __shfl_down_sync(0xffffffffu, sum, step);
    if (threadIdx.x % 32 == 0) warp_sums[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x < 32) {
        sum = threadIdx.x < blockDim.x / 32 ? warp_sums[threadIdx.x] : T(0);
        for (int step = 16; step; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
        if (threadIdx.x == 0) out[blockIdx.x] = sum;
    }
}

__global__ void transpose(const double* __restrict__ x, double* __restrict__ out, int rows, int columns) {
    __shared__ double tile[16][17];
    const int column = blockIdx.x * 16 + threadIdx.x, row = blockIdx.y * 16 + threadIdx.y;
    if (row < rows && column < columns) tile[threadIdx.y][threadIdx.x] = x[row * columns + column];
    __syncthreads();
    const int out_column = blockIdx.y * 16 + threadIdx.x, out_row = blockIdx.x * 16 + threadIdx.y;
    if (out_row < columns && out_column < rows) out[out_row * rows + out_column] = tile[threadIdx.x][threadIdx.y];
}

// h_t = tanh(W h_{t-1} + x_t), a block `blockDim.x` rows of W, which stay in shared memory; h (2, n), x (steps, n).
__global__ void persistent_rnn(const float* w, const float* x, float* h, unsigned* arrived, int n, int steps) {
    DYNAMIC_SHARED(float, rows);  // (blockDim.x, n)
    __shared__ float state[256];
    GridBarrier barrier(arrived, gridDim.x);
    const int first = blockIdx.x * blockDim.x, i = first + threadIdx.x;
    for (int k = threadIdx.x; k < int(blockDim.x) * n; k += blockDim.x) rows[k] = w[first * n + k];
    for (int t = 0; t < steps; ++t) {
        for (int j = threadIdx.x; j < n; j += blockDim.x) state[j] = read_published(h + t % 2 * n + j);
        __syncthreads();
        float sum = x[t * n + i];
        for (int j = 0; j < n; ++j) sum += rows[threadIdx.x * n + j] * state[j];
        publish(h + (t + 1) % 2 * n + i, tanhf(sum));
        barrier.arrive();
        if (!barrier.wait()) return;
    }
}

__global__ void histogram(const int* values, unsigned* counts, int* largest, unsigned* claimed, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    atomicAdd(counts + values[i], 1u);
    atomicMax(largest, values[i]);
    if (atomicCAS(claimed, 0u, 1u) == 0u) atomicExch(claimed + 1, 7u);
}

// Each warp: votes and matches on x; each block: the forms of __syncthreads that return something.
__global__ void votes(const int* x, unsigned* out) {
    const int i = threadIdx.x;
    unsigned* row = out + i * 8;
    row[0] = __ballot_sync(0xffffffffu, x[i] > 1);
    row[1] = __any_sync(0xffffffffu, x[i] == 3);
    row[2] = __all_sync(0xffffffffu, x[i] < 4);
    row[3] = __match_any_sync(0xffffffffu, x[i]);
    row[4] = __syncthreads_count(x[i] == 2);
    row[5] = __syncthreads_and(x[i] >= 0);
    row[6] = __syncthreads_or(x[i] == 9);
    row[7] = __shfl_up_sync(0xffffffffu, x[i], 3, 8);
}

// Two rotations through shared memory with warps on their own.
__global__ void warps_alone(const float* x, float* out) {
    __shared__ float shared[64];
    const int warp = threadIdx.x / 32 * 32, lane = threadIdx.x % 32;
    shared[warp + lane] = x[warp + lane];
    __syncwarp();
    float value = shared[warp + (lane + 1) % 32];
    __syncwarp();
    shared[warp + lane] = value;
    __syncwarp();
    out[warp + lane] = shared[warp + (lane + 1) % 32];
}

// Says that it runs, and ends when it is told to.
__global__ void hold(volatile int* running, const volatile int* told) {
    *running = 1;
    while (!*told) {
    }
}
