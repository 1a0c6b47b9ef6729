// Kernels whose counts can be worked out by hand: see test_counts.py.
#include "intrinsics.cuh"

// One warp, one load and one store of each lane.
template <typename T>
__global__ void strided(const T* x, T* y, int stride) {
    y[threadIdx.x] = x[threadIdx.x * stride];
}

__global__ void broadcast(const float* x, float* y) { y[threadIdx.x] = x[0]; }

__global__ void packets(const float* x, float* y) { store_packet(y + 4 * threadIdx.x, load_packet(x + 4 * threadIdx.x)); }

// Each lane reads a word of shared memory that is `stride` words from its neighbour's.
template <typename T>
__global__ void shared_strided(T* y, int stride) {
    DYNAMIC_SHARED(T, memory);
    for (int i = threadIdx.x; i < 32 * max(stride, 1); i += 32) memory[i] = T(i);
    __syncthreads();
    y[threadIdx.x] = memory[threadIdx.x * stride];
}

__global__ void shared_packets(float* y, int stride) {
    DYNAMIC_SHARED(float, memory);
    Packet<float> packet = {};
    store_packet(memory + stride * threadIdx.x, packet);
    packet = load_packet(memory + stride * threadIdx.x);
    y[threadIdx.x] = packet.at[0];
}

// A branch by lane is executed by both halves of a warp, one by warp is not.
__global__ void branches(float* y, float a, float b, int lanes) {
    const float x = float(int(threadIdx.x));
    if (int(threadIdx.x) % lanes < lanes / 2) {
        y[threadIdx.x] = a * x + b;
    } else {
        y[threadIdx.x] = exp(b * x + a);
    }
}

// Lane l goes through the loop l + 1 times, twice.
__global__ void loops(float* y, float a) {
    float sum = 0;
    for (int round = 0; round < 2; ++round) {
        for (int k = 0; k <= int(threadIdx.x); ++k) sum += a * a;
        __syncwarp();
    }
    y[threadIdx.x] = sum;
}

template <typename T>
__global__ void arithmetic(T* y, T a, T b) {
    const T x = y[threadIdx.x];
    const T product = x * a, difference = product - b;         // 2 by themselves
    const T two = a * b - x * difference, quotient = two / b;  // one product is part of a multiply-add; a division
    y[threadIdx.x] = tanh(quotient) + exp(-x);                 // 2 functions, a sum
}

__global__ void collectives(unsigned* y, int lanes) {
    const unsigned lane = threadIdx.x % 32, half = lane < 16 ? 0xffffu : 0xffff0000u;
    unsigned value = __shfl_xor_sync(0xffffffffu, lane, 1);
    value += __ballot_sync(0xffffffffu, value > 3);
    if (int(lane) < lanes) value += __shfl_xor_sync(half, value, 2);  // of each half by itself
    __syncwarp();
    __syncthreads();
    y[threadIdx.x] = value + __syncthreads_count(value > 0);
}

// Every thread publishes a number for the next block.
__global__ void exchange(unsigned* arrived, float* numbers, float* y) {
    GridBarrier barrier(arrived, gridDim.x);
    publish(numbers + blockIdx.x * blockDim.x + threadIdx.x, float(int(threadIdx.x)));
    barrier.sync();
    y[blockIdx.x * blockDim.x + threadIdx.x] =
        read_published(numbers + (blockIdx.x + 1) % gridDim.x * blockDim.x + threadIdx.x);
}

__global__ void read_only(const float* x, unsigned* total, float* y) {
    y[threadIdx.x] = __ldg(x + threadIdx.x % 2);
    atomicAdd(total, 1u);
}
