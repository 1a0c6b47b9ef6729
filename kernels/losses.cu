// Losses over rows: softmax cross-entropy and squared error.
//
// Each row of logits is computed by `threads` threads: a warp, or a whole block if rows are long. Neighbouring threads
// read neighbouring classes.
#include "intrinsics.cuh"

// The result of one pass over some logits x of a row: the maximum, the sum of exp(x - maximum) over the others and, if
// labels are smoothed, the sums of the class weights w and of w (x - maximum). Relative to the maximum nothing overflows,
// and all terms of the last sum have one sign, so that large logits do not cancel. Without the 1 of the maximum itself,
// the sum of the others keeps its digits where it is small. The maximum of no logits is minus infinity.
template <typename Real>
struct Pass {
    Real maximum, others, weight, weighted;

    __device__ static Pass start() { return {Real(__int_as_float(0xff800000)), 0, 0, 0}; }  // minus infinity

    // Makes the sums relative to `larger`, a logit outside this pass, if it is larger than the maximum.
    __device__ void raise(Real larger) {
        if (larger > maximum) {
            others = (others + 1) * exp(maximum - larger);
            if (weight != 0) weighted += weight * (maximum - larger);
            maximum = larger;
        }
    }
    __device__ void add(Real x, Real w) {
        if (x > maximum) {
            raise(x);
        } else {
            const Real below = x == maximum ? Real(0) : x - maximum;  // inf - inf is NaN
            others += exp(below);
            if (w != 0) weighted += w * below;
        }
        weight += w;
    }
    __device__ void add(Pass other) {
        const Real tied = other.maximum == maximum;
        raise(other.maximum);
        other.raise(maximum);
        others += other.others + tied;
        weight += other.weight;
        weighted += other.weighted;
    }
};

template <typename Real>
__device__ Real warp_sum(Real value) {
    for (int step = 16; step; step /= 2) value += __shfl_xor_sync(0xffffffffu, value, step);
    return value;
}

// Combines the passes of all threads of a row, for each of them. The order of the additions is fixed.
template <typename Real>
__device__ void combine(Pass<Real>& pass, bool smoothed, int threads) {
    Real largest = pass.maximum;
    for (int step = 16; step; step /= 2) {
        const Real other = __shfl_xor_sync(0xffffffffu, largest, step);
        if (other > largest) largest = other;
    }
    const Real has_largest = pass.maximum == largest;
    pass.raise(largest);
    pass.others = warp_sum(pass.others) + (warp_sum(has_largest) - 1);
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

// The row that a thread computes, which may be past the last one.
__device__ inline long long row_of_thread(int threads) {
    return ((long long)blockIdx.x * blockDim.x + threadIdx.x) / threads;
}

// (1 - eps) w_y, NaN if y is no class.
template <typename Real, typename Storage>
__device__ Real weight_of_label(const Storage* class_weights, long long label, int V, Real eps) {
    if (label < 0 || label >= V) return __int_as_float(0x7fffffff);
    return (1 - eps) * (class_weights ? Real(class_weights[label]) : Real(1));
}

// loss = weight (target (lse - x_y) + sum_c smooth_c (lse - x_c)) with target = (1 - eps) w_y, smooth_c = eps / V w_c,
// lse = log sum_c exp(x_c). weights (N) and class_weights (V) may be null. statistics (3, N) is null if no gradient is
// wanted. Otherwise backward reads it: the maximum, the sum of exp(x - maximum) over the others, sum_c smooth_c. A masked
// row is not read. A label that is no class gives NaN.
template <typename Storage, typename Real>
__global__ void cross_entropy_forward(
    const Storage* logits, const long long* labels, const Storage* weights, const Storage* class_weights,
    Storage* losses, Real* statistics, int N, int V, Real eps, int threads) {
    const int lane = threadIdx.x % threads;
    const long long row = row_of_thread(threads);
    const bool masked = row >= N || (weights && Real(weights[row]) == 0), smoothed = eps != 0;
    const Storage* const x = logits + row * V;
    Pass<Real> pass = Pass<Real>::start();
    if (!masked) {
        for (int c = lane; c < V; c += threads) {
            pass.add(Real(x[c]), !smoothed ? Real(0) : class_weights ? Real(class_weights[c]) : Real(1));
        }
    }
    combine(pass, smoothed, threads);  // has barriers: no thread has left
    if (row >= N || lane != 0) return;
    Real loss = 0, smooth = 0;
    if (!masked) {
        const long long label = labels[row];
        const bool known = label >= 0 && label < V;
        const Real target = weight_of_label(class_weights, label, V, eps);
        pass.others += pass.maximum - pass.maximum;  // NaN if the maximum is infinite, when there is no softmax
        const Real log_sum = log1p(pass.others);
        const Real of_label = log_sum + (pass.maximum - Real(x[known ? label : 0]));
        loss = target == 0 && isinf(of_label) ? Real(0) : target * of_label;  // as in `Pass`, nothing without weight counts
        if (smoothed) loss += eps / V * (pass.weight * log_sum - pass.weighted);
        if (weights) loss *= Real(weights[row]);
        smooth = eps / V * pass.weight;
    }
    losses[row] = Storage(loss);
    if (statistics) {
        statistics[row] = pass.maximum;
        statistics[N + row] = pass.others;
        statistics[2LL * N + row] = smooth;
    }
}

// A row's gradient: dx_c = scale (softmax_c sum_k t_k - t_c), t_c the weight of lse - x_c in the loss. The label's own
// term adds -target (1 - softmax_y), computed without a difference.
template <typename Storage, typename Real>
struct RowGradient {
    const Storage* x;
    Storage* dx;
    const Storage* class_weights;
    Real maximum, others, smooth, target, scale, uniform;  // uniform: eps / V
    int label;    // -1 where it is no class
    bool masked;  // then x is not read, and the gradient is zero

    template <bool of_label>
    __device__ __forceinline__ Real of_class(Real logit, Real class_weight) const {
        const Real sum = 1 + others, e = exp(logit - maximum), softmax = e / sum;
        Real d;
        if (of_label) {
            d = smooth * softmax - target * ((logit == maximum ? others : sum - e) / sum);
        } else {
            d = (target + smooth) * softmax;
        }
        if (uniform != 0) d -= uniform * class_weight;
        return scale * d;
    }

    // For the classes from `first` to `end`, in packets of n, which lie `stride` apart. A thread loads two packets before
    // it stores the first one.
    template <int n>
    __device__ __forceinline__ void of_classes(int first, int end, int stride) const {
        constexpr int batch = 2;
#pragma unroll 1
        for (int c = first; c < end; c += batch * stride) {
            Packet<Storage, n> logits[batch], weights[batch];
#pragma unroll
            for (int j = 0; j < batch; ++j) {
                const int at = c + j * stride;
                if (at >= end) continue;
                if (!masked) logits[j] = load_packet<n>(x + at);
#pragma unroll
                for (int k = 0; k < n; ++k) weights[j].at[k] = class_weights ? class_weights[at + k] : Storage(1);
            }
#pragma unroll
            for (int j = 0; j < batch; ++j) {
                const int at = c + j * stride;
                if (at >= end) continue;
                Packet<Storage, n> gradients;
#pragma unroll
                for (int k = 0; k < n; ++k) {
                    gradients.at[k] =
                        Storage(masked ? Real(0) : of_class<false>(Real(logits[j].at[k]), Real(weights[j].at[k])));
                }
                if (label >= at && label < at + n && !masked) {
                    Real logit = 0, weight = 0;
#pragma unroll
                    for (int k = 0; k < n; ++k) {
                        if (at + k == label) logit = logits[j].at[k], weight = weights[j].at[k];
                    }
                    const Storage gradient(of_class<true>(logit, weight));
#pragma unroll
                    for (int k = 0; k < n; ++k) {
                        if (at + k == label) gradients.at[k] = gradient;
                    }
                }
                store_packet(dx + at, gradients);
            }
        }
    }
};

// The gradient of the logits. A masked row is not read.
template <typename Storage, typename Real>
__global__ void cross_entropy_backward(
    const Storage* __restrict__ logits, const long long* __restrict__ labels, const Storage* __restrict__ weights,
    const Storage* __restrict__ class_weights, const Real* __restrict__ statistics,
    const Storage* __restrict__ dlosses, Storage* __restrict__ dlogits, int N, int V, Real eps, int threads) {
    constexpr int n = Packet<Storage>::size;
    const int lane = threadIdx.x % threads;
    const long long row = row_of_thread(threads);
    if (row >= N) return;
    const long long label = labels[row];
    const Real weight = weights ? Real(weights[row]) : Real(1);
    const Storage* const x = logits + row * V;
    Storage* const dx = dlogits + row * V;
    const RowGradient<Storage, Real> gradient{
        x, dx, eps / V != 0 ? class_weights : nullptr, statistics[row], statistics[N + row], statistics[2LL * N + row],
        weight == 0 ? Real(0) : weight_of_label(class_weights, label, V, eps), Real(dlosses[row]) * weight, eps / V,
        label >= 0 && label < V ? int(label) : -1, weight == 0};
    // Classes before the first packet of both rows, in packets, and after the last one.
    int begin = V, end = V;
    const size_t past = reinterpret_cast<size_t>(x) % 16;
    if (past == reinterpret_cast<size_t>(dx) % 16) {
        begin = min(int((16 - past) % 16 / sizeof(Storage)), V);
        end = V - (V - begin) % n;
    }
    gradient.template of_classes<1>(lane, begin, threads);
    gradient.template of_classes<n>(begin + lane * n, end, threads * n);
    gradient.template of_classes<1>(end + lane, V, threads);
}

template <typename Storage, typename Real>
__global__ void mse_forward(
    const Storage* y, const Storage* target, Storage* errors, Storage* differences, long long n) {
    const long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    const Real difference = Real(y[i]) - Real(target[i]);
    errors[i] = Storage(difference * difference);
    if (differences) differences[i] = Storage(difference);
}

template <typename Storage, typename Real>
__global__ void mse_backward(const Storage* differences, const Storage* d, Storage* dy, long long n) {
    const long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) dy[i] = Storage(2 * (Real(differences[i]) * Real(d[i])));
}
