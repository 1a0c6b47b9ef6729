// Losses over rows: softmax cross-entropy and squared error.
//
// A warp takes a row of logits, or a whole block where rows are long: `threads` threads, 32 or all of the block's.
// Neighbouring threads read neighbouring classes.

// What one pass over some logits x of a row leaves: the maximum, the sum of exp(x - maximum) and, where labels are
// smoothed, the sums of the class weights w and of w (x - maximum). Relative to the maximum nothing overflows, and all
// terms of the last sum have one sign, so that large logits don't cancel.
template <typename Real>
struct Pass {
    Real maximum, sum, weight, weighted;

    __device__ static Pass start() { return {Real(__int_as_float(0xff800000)), 0, 0, 0}; }  // minus infinity

    // Refers the sums to `larger`, if that is more than the maximum.
    __device__ void raise(Real larger) {
        if (larger > maximum) {
            sum *= exp(maximum - larger);
            if (weight != 0) weighted += weight * (maximum - larger);
            maximum = larger;
        }
    }
    __device__ void add(Real x, Real w) {
        raise(x);
        const Real below = x == maximum ? Real(0) : x - maximum;  // infinities have no difference
        sum += exp(below);
        weight += w;
        if (w != 0) weighted += w * below;
    }
    __device__ void add(Pass other) {
        raise(other.maximum);
        other.raise(maximum);
        sum += other.sum;
        weight += other.weight;
        weighted += other.weighted;
    }
};

template <typename Real>
__device__ Real warp_sum(Real value) {
    for (int step = 16; step; step /= 2) value += __shfl_xor_sync(0xffffffffu, value, step);
    return value;
}

// What the threads of a row have found together, for all of them. The order of the additions is fixed.
template <typename Real>
__device__ void combine(Pass<Real>& pass, bool smoothed, int threads) {
    Real largest = pass.maximum;
    for (int step = 16; step; step /= 2) {
        const Real other = __shfl_xor_sync(0xffffffffu, largest, step);
        if (other > largest) largest = other;
    }
    pass.raise(largest);
    pass.sum = warp_sum(pass.sum);
    if (smoothed) {
        pass.weight = warp_sum(pass.weight);
        pass.weighted = warp_sum(pass.weighted);
    }
    if (threads == 32) return;
    __shared__ Pass<Real> of_warps[32];
    if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = pass;
    __syncthreads();
    pass = of_warps[0];
    for (int warp = 1; warp < threads / 32; ++warp) pass.add(of_warps[warp]);
}

// The row that a thread works on, which may lie past the last.
__device__ inline long long row_of_thread(int threads) {
    return ((long long)blockIdx.x * blockDim.x + threadIdx.x) / threads;
}

// loss = weight (target (lse - x_y) + sum_c smooth_c (lse - x_c)) with target = (1 - eps) w_y, smooth_c = eps / V w_c,
// lse = log sum_c exp(x_c). weights (N) and class_weights (V) may be null. statistics (3, N), what backward needs beside
// the logits, is null where no gradient is wanted: the maximum, the sum of exp(x - maximum), target + sum_c smooth_c.
// A masked row is not read. A label that is no class gives NaN.
template <typename Real>
__global__ void cross_entropy_forward(
    const Real* logits, const long long* labels, const Real* weights, const Real* class_weights, Real* losses,
    Real* statistics, int N, int V, Real eps, int threads) {
    const int lane = threadIdx.x % threads;
    const long long row = row_of_thread(threads);
    const bool masked = row >= N || (weights && weights[row] == 0), smoothed = eps != 0;
    const Real* const x = logits + row * V;
    Pass<Real> pass = Pass<Real>::start();
    if (!masked) {
        for (int c = lane; c < V; c += threads) {
            pass.add(x[c], !smoothed ? Real(0) : class_weights ? class_weights[c] : Real(1));
        }
    }
    combine(pass, smoothed, threads);  // has barriers: no thread has left
    if (row >= N || lane != 0) return;
    Real loss = 0, total = 0;
    if (!masked) {
        const long long label = labels[row];
        const bool known = label >= 0 && label < V;
        const Real nan = __int_as_float(0x7fffffff);
        const Real target = known ? (1 - eps) * (class_weights ? class_weights[label] : Real(1)) : nan;
        pass.sum += pass.maximum - pass.maximum;  // NaN if the maximum is infinite: then there is no softmax
        const Real log_sum = log(pass.sum);
        loss = target * (log_sum + (pass.maximum - x[known ? label : 0]));
        if (smoothed) loss += eps / V * (pass.weight * log_sum - pass.weighted);
        if (weights) loss *= weights[row];
        total = target + eps / V * pass.weight;
    }
    losses[row] = loss;
    if (statistics) {
        statistics[row] = pass.maximum;
        statistics[N + row] = pass.sum;
        statistics[2LL * N + row] = total;
    }
}

// dx_c = dloss weight (softmax_c sum_k t_k - t_c), t_c the weight of lse - x_c in the loss. A masked row is not read.
template <typename Real>
__global__ void cross_entropy_backward(
    const Real* logits, const long long* labels, const Real* weights, const Real* class_weights,
    const Real* statistics, const Real* dlosses, Real* dlogits, int N, int V, Real eps, int threads) {
    const long long row = row_of_thread(threads);
    if (row >= N) return;
    const Real weight = weights ? weights[row] : Real(1);
    const Real *const x = logits + row * V, maximum = statistics[row];
    const Real scale = dlosses[row] * weight, part = scale * statistics[2LL * N + row] / statistics[N + row];
    const long long label = labels[row];
    Real* const dx = dlogits + row * V;
    for (int c = threadIdx.x % threads; c < V; c += threads) {
        if (weight == 0) {
            dx[c] = 0;
        } else {
            Real t = (c == label ? 1 - eps : Real(0)) + eps / V;
            if (class_weights && t != 0) t *= class_weights[c];  // the label's alone, unless labels are smoothed
            dx[c] = exp(x[c] - maximum) * part - scale * t;
        }
    }
}

template <typename Real>
__global__ void mse_forward(const Real* y, const Real* target, Real* errors, Real* differences, long long n) {
    const long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    const Real difference = y[i] - target[i];
    errors[i] = difference * difference;
    if (differences) differences[i] = difference;
}

template <typename Real>
__global__ void mse_backward(const Real* differences, const Real* d, Real* dy, long long n) {
    const long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) dy[i] = 2 * (differences[i] * d[i]);
}
