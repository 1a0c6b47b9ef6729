// Losses over rows: softmax cross-entropy and squared error.

// The running maximum of some numbers, and the sum of exp(x - maximum).
template <typename Real>
struct Softmax {
    Real maximum, sum;

    __device__ void add(Real x) {
        if (x > maximum) {
            sum = sum * exp(maximum - x) + 1;
            maximum = x;
        } else {
            sum += x == maximum ? Real(1) : exp(x - maximum);  // equal infinities have no difference
        }
    }
    __device__ void add(Softmax other) {
        if (other.maximum > maximum) {
            const Softmax self = *this;
            *this = other;
            other = self;
        }
        sum += other.maximum == maximum ? other.sum : other.sum * exp(other.maximum - maximum);
    }
};

template <typename Real>
__device__ Real of_lane(Real value, int mask) {
    return __shfl_xor_sync(0xffffffffu, value, mask);
}

// What the threads of a row have found together, for all of them: a warp each, or, with several warps, the block's one
// row. The order of the additions is fixed.
template <typename Real>
__device__ void combine(Softmax<Real>& softmax, Real& weighted, bool several_warps) {
    for (int step = 16; step; step /= 2) {
        softmax.add({of_lane(softmax.maximum, step), of_lane(softmax.sum, step)});
        weighted += of_lane(weighted, step);
    }
    if (!several_warps) return;
    __shared__ Softmax<Real> softmaxes[32];
    __shared__ Real sums[32];
    if (threadIdx.x % 32 == 0) {
        softmaxes[threadIdx.x / 32] = softmax;
        sums[threadIdx.x / 32] = weighted;
    }
    __syncthreads();
    softmax = softmaxes[0];
    weighted = sums[0];
    for (int warp = 1; warp < int(blockDim.x) / 32; ++warp) {
        softmax.add(softmaxes[warp]);
        weighted += sums[warp];
    }
}

// loss = weight (target (lse - x_y) + sum_c smooth_c (lse - x_c)) with target = (1 - eps) w_y, smooth_c = eps / V w_c.
// `threads` threads a row, 32 or the whole block. weights (N) and class_weights (V) may be null; probabilities (N, V),
// the softmax, is null where no gradient is wanted. A masked row is not read. A label that is no class gives NaN.
template <typename Real>
__global__ void cross_entropy_forward(
    const Real* logits, const long long* labels, const Real* weights, const Real* class_weights, Real* losses,
    Real* probabilities, int N, int V, Real eps, int threads) {
    const int lane = threadIdx.x % threads;
    const int row = (int)(((long long)blockIdx.x * blockDim.x + threadIdx.x) / threads);
    const bool masked = row >= N || (weights && weights[row] == 0);
    const Real* x = logits + (long long)(row < N ? row : 0) * V;
    const Real minus_infinity = __int_as_float(0xff800000), nan = __int_as_float(0x7fffffff);
    Softmax<Real> softmax{minus_infinity, 0};
    Real smooth = 0, class_weight_sum = 0;  // of smooth_c (x_c - x_0), so that large numbers don't cancel
    if (!masked) {
        for (int c = lane; c < V; c += threads) {
            softmax.add(x[c]);
            if (eps != 0) smooth += (class_weights ? class_weights[c] : Real(1)) * (x[c] - x[0]);
        }
    }
    combine(softmax, smooth, threads > 32);
    if (eps != 0 && class_weights) {
        if (threads > 32) __syncthreads();  // combine's shared memory is used again
        for (int c = lane; c < V; c += threads) class_weight_sum += class_weights[c];
        Softmax<Real> none{minus_infinity, 0};
        combine(none, class_weight_sum, threads > 32);
    } else {
        class_weight_sum = Real(V);
    }
    if (row >= N) return;
    if (lane == 0) {
        Real loss = 0;
        if (!masked) {
            const long long label = labels[row];
            const Real log_sum = log(softmax.sum);
            loss = nan;
            if (label >= 0 && label < V) {
                const Real target = (1 - eps) * (class_weights ? class_weights[label] : Real(1));
                loss = target * (log_sum + (softmax.maximum - x[label]));
                if (eps != 0) loss += eps / V * (class_weight_sum * (log_sum + (softmax.maximum - x[0])) - smooth);
                if (weights) loss *= weights[row];
            }
        }
        losses[row] = loss;
    }
    if (probabilities) {
        Real* const to = probabilities + (long long)row * V;
        for (int c = lane; c < V; c += threads) to[c] = masked ? Real(0) : exp(x[c] - softmax.maximum) / softmax.sum;
    }
}

// dx_c = dloss weight (softmax_c sum_k t_k - t_c), t_c the weight of lse - x_c in the loss. `total_smooth` is the sum of
// the smooth_c. A thread an element.
template <typename Real>
__global__ void cross_entropy_backward(
    const Real* probabilities, const long long* labels, const Real* weights, const Real* class_weights,
    const Real* total_smooth, const Real* dlosses, Real* dlogits, int N, int V, Real eps) {
    const long long k = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (k >= (long long)N * V) return;
    const int row = k / V, c = k % V;
    const Real weight = weights ? weights[row] : Real(1);
    Real dx = 0;
    if (weight != 0) {
        const long long label = labels[row];
        const bool known = label >= 0 && label < V;
        const Real w = class_weights ? (known ? class_weights[label] : Real(0)) : Real(1);
        const Real target = (1 - eps) * w, smooth = eps / V * (class_weights ? class_weights[c] : Real(1));
        const Real total = target + (class_weights ? *total_smooth : eps);
        dx = dlosses[row] * weight * (probabilities[k] * total - smooth - (c == label ? target : Real(0)));
        if (!known) dx = __int_as_float(0x7fffffff);
    }
    dlogits[k] = dx;
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
