// Optimizer updates over many arrays in one launch.
//
// `table` holds the addresses of lists of arrays, list after list: array k of list l at table[l * arrays + k]. Block
// (x, k) takes array k, of sizes[k] elements, together with the other blocks of that k. Each update forms
// g = gradient + weight_decay p and replaces p by shrink[k] p - step.

template <typename Real>
struct Lists {
    const unsigned long long* table;
    const long long* sizes;
    const Real* shrink;

    __device__ Real* array(int list) const { return reinterpret_cast<Real*>(table[list * gridDim.y + blockIdx.y]); }
    __device__ long long begin() const { return (long long)blockIdx.x * blockDim.x + threadIdx.x; }
    __device__ long long stride() const { return (long long)gridDim.x * blockDim.x; }
    __device__ long long size() const { return sizes[blockIdx.y]; }
};

// The sum of the squares that each block meets, to partial[k * gridDim.x + x], accumulated in double.
template <typename Real>
__global__ void square_sums(const unsigned long long* table, const long long* sizes, double* partial) {
    __shared__ double sums[32];
    const Lists<Real> lists{table, sizes, nullptr};
    const Real* const values = lists.array(0);
    double sum = 0;
    for (long long i = lists.begin(); i < lists.size(); i += lists.stride()) sum += double(values[i]) * values[i];
    for (int step = 16; step; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x == 0) {
        for (int warp = 1; warp < int(blockDim.x) / 32; ++warp) sum += sums[warp];
        partial[(long long)blockIdx.y * gridDim.x + blockIdx.x] = sum;
    }
}

// The square root of the sum of `count` partial sums. One block.
template <typename Real>
__global__ void root_of_sum(const double* partial, double* norm, long long count) {
    __shared__ double sums[32];
    double sum = 0;
    for (long long i = threadIdx.x; i < count; i += blockDim.x) sum += partial[i];
    for (int step = 16; step; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x == 0) {
        for (int warp = 1; warp < int(blockDim.x) / 32; ++warp) sum += sums[warp];
        *norm = sqrt(sum);
    }
}

// b = momentum b + scale g, at the first step b = g; the step is lr b, with Nesterov's form lr (g + momentum b).
// Lists: p, g and, with momentum, b.
template <typename Real>
__global__ void sgd(
    const unsigned long long* table, const long long* sizes, const Real* shrink, Real lr, Real weight_decay, Real momentum,
    Real scale, bool has_momenta, bool nesterov, bool first) {
    const Lists<Real> lists{table, sizes, shrink};
    Real *const p = lists.array(0), *const b = has_momenta ? lists.array(2) : nullptr;
    const Real *const gradient = lists.array(1), factor = shrink[blockIdx.y];
    for (long long i = lists.begin(); i < lists.size(); i += lists.stride()) {
        Real g = gradient[i] + weight_decay * p[i];
        if (b) {
            b[i] = first ? g : b[i] * momentum + g * scale;
            g = nesterov ? g + b[i] * momentum : b[i];
        }
        p[i] = p[i] * factor - g * lr;
    }
}

// v = alpha v + (1 - alpha) g^2, b = momentum b + g / (sqrt(v) + eps), the step is lr b; with means m, v - m^2 stands for
// v under the root. Lists: p, g, v and those of m and b that are there.
template <typename Real>
__global__ void rmsprop(
    const unsigned long long* table, const long long* sizes, const Real* shrink, Real lr, Real weight_decay, Real alpha,
    Real rest, Real eps, Real momentum, bool has_means, bool has_momenta) {
    const Lists<Real> lists{table, sizes, shrink};
    Real *const p = lists.array(0), *const v = lists.array(2), *const m = has_means ? lists.array(3) : nullptr;
    Real* const b = has_momenta ? lists.array(has_means ? 4 : 3) : nullptr;
    const Real *const gradient = lists.array(1), factor = shrink[blockIdx.y];
    for (long long i = lists.begin(); i < lists.size(); i += lists.stride()) {
        const Real g = gradient[i] + weight_decay * p[i], part = g * rest;
        Real square = v[i] = v[i] * alpha + part * g;
        if (m) {
            const Real mean = m[i] = m[i] * alpha + part;
            square -= mean * mean;
            if (square < 0) square = 0;  // rounding may leave the variance of an even gradient just below zero
        }
        Real step = g / (sqrt(square) + eps);
        if (b) step = b[i] = b[i] * momentum + step;
        p[i] = p[i] * factor - step * lr;
    }
}

// m = beta1 m + (1 - beta1) g, v = beta2 v + (1 - beta2) g^2, the step is rate m / (sqrt(v) + floor), the largest v so
// far standing for v where that list is there. Lists: p, g, m, v and the largest.
template <typename Real>
__global__ void adam(
    const unsigned long long* table, const long long* sizes, const Real* shrink, Real rate, Real weight_decay, Real beta1,
    Real rest1, Real beta2, Real rest2, Real floor, bool has_largest) {
    const Lists<Real> lists{table, sizes, shrink};
    Real *const p = lists.array(0), *const m = lists.array(2), *const v = lists.array(3);
    Real* const largest = has_largest ? lists.array(4) : nullptr;
    const Real *const gradient = lists.array(1), factor = shrink[blockIdx.y];
    for (long long i = lists.begin(); i < lists.size(); i += lists.stride()) {
        const Real g = gradient[i] + weight_decay * p[i];
        const Real mean = m[i] = m[i] * beta1 + g * rest1;
        Real square = v[i] = v[i] * beta2 + g * g * rest2;
        if (largest) {
            // A NaN stays one, as it does in v.
            if (!(largest[i] >= square)) largest[i] = square;
            square = largest[i];
        }
        p[i] = p[i] * factor - mean / (sqrt(square) + floor) * rate;
    }
}
