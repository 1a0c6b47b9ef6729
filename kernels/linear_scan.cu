// The linear recurrence h_t = m_t h_{t-1} + v_t, elementwise and over many columns (row of the batch and unit) at once.
//
// Time is cut into chunks of `length` steps. First each chunk is run through by itself, from zero: its last state, and
// the product of its m. From those the state that enters each chunk, one after another, which are few. Then each chunk
// is run through again, from the state that enters it. A thread runs one column through one chunk; neighbouring threads
// have neighbouring columns. Within a chunk this is the loop itself; only what enters a chunk has passed through a
// product of several m.
//
// Forward m = a, v = b. On the way back, from the last step to the first, m_t = conj(a_{t+1}), v = dh and the states are
// db. a is (T, columns), or (N) where `constant`.

template <typename R>
struct Complex {
    R re, im;
};

__device__ inline float conj(float x) { return x; }
__device__ inline double conj(double x) { return x; }
template <typename R>
__device__ Complex<R> conj(Complex<R> x) { return {x.re, -x.im}; }
// x y + z
__device__ inline float multiply_add(float x, float y, float z) { return x * y + z; }
__device__ inline double multiply_add(double x, double y, double z) { return x * y + z; }
template <typename R>
__device__ Complex<R> multiply_add(Complex<R> x, Complex<R> y, Complex<R> z) {
    return {x.re * y.re - x.im * y.im + z.re, x.re * y.im + x.im * y.re + z.im};
}
__device__ inline bool is_zero(float x) { return x == 0; }
__device__ inline bool is_zero(double x) { return x == 0; }
template <typename R>
__device__ bool is_zero(Complex<R> x) { return x.re == 0 && x.im == 0; }

template <typename R>
__device__ void set(R& x, R re) { x = re; }
template <typename R>
__device__ void set(Complex<R>& x, R re) { x = {re, 0}; }

// What the recurrence multiplies with and adds at its s-th step.
template <typename Value>
struct Steps {
    const Value *a, *v;
    int T, N;
    long long columns;
    bool constant, backward;

    __device__ int time(int s) const { return backward ? T - 1 - s : s; }
    __device__ Value multiplier(int s, long long column) const {
        Value none{};
        if (backward && s == 0) return none;  // no state comes from behind the last step
        const int t = backward ? T - s : s;
        const Value m = constant ? a[column % N] : a[t * columns + column];
        return backward ? conj(m) : m;
    }
    __device__ Value value(int s, long long column) const { return v[time(s) * columns + column]; }
};

template <typename Value, typename Real>
__device__ const Value* as(const Real* x) { return reinterpret_cast<const Value*>(x); }
template <typename Value, typename Real>
__device__ Value* as(Real* x) { return reinterpret_cast<Value*>(x); }

// Real is what the arrays hold, Value a number or a pair of them. Of each chunk (chunks, columns): its last state from
// zero, and the product of its multipliers.
template <typename Value, typename Real>
__global__ void run_chunks(
    const Real* a, const Real* v, Real* ends, Real* products, int T, int N, long long columns, int length, bool constant,
    bool backward) {
    const Steps<Value> steps{as<Value>(a), as<Value>(v), T, N, columns, constant, backward};
    const long long column = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (column >= columns) return;
    const int begin = blockIdx.y * length, end = min(T, begin + length);
    const Value zero{};
    Value state = zero, product = zero;
    set(product, Real(1));
    for (int s = begin; s < end; ++s) {
        const Value m = steps.multiplier(s, column);
        state = multiply_add(m, state, steps.value(s, column));
        product = multiply_add(m, product, zero);
    }
    as<Value>(ends)[blockIdx.y * columns + column] = state;
    as<Value>(products)[blockIdx.y * columns + column] = product;
}

// From `initial` (columns), or zero, and the chunks' last states to what enters each chunk, which takes their place.
template <typename Value, typename Real>
__global__ void enter_chunks(const Real* initial, Real* ends, const Real* products, int chunks, long long columns) {
    const long long column = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (column >= columns) return;
    Value state{};
    if (initial) state = as<Value>(initial)[column];
    for (int chunk = 0; chunk < chunks; ++chunk) {
        Value& end = as<Value>(ends)[chunk * columns + column];
        // The product of large numbers may be infinite; a state of zero stays zero all the same.
        const Value next = is_zero(state) ? end : multiply_add(as<Value>(products)[chunk * columns + column], state, end);
        end = state;
        state = next;
    }
}

// All states (T, columns), from those that enter the chunks. On the way back also da: h is what the forward pass gave,
// h0 what it began with, and da (T, columns), or, of a constant a, each chunk's part of the sum over its steps
// (chunks, columns). dh0 (columns) is written by the last chunk.
template <typename Value, typename Real>
__global__ void fill_chunks(
    const Real* a, const Real* v, const Real* enter, Real* states, const Real* h, const Real* h0, Real* da, Real* dh0,
    int T, int N, long long columns, int length, bool constant, bool backward) {
    const Steps<Value> steps{as<Value>(a), as<Value>(v), T, N, columns, constant, backward};
    const long long column = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (column >= columns) return;
    const int begin = blockIdx.y * length, end = min(T, begin + length);
    Value state = as<Value>(enter)[blockIdx.y * columns + column], sum{};
    const Value zero{};
    for (int s = begin; s < end; ++s) {
        const int t = steps.time(s);
        state = multiply_add(steps.multiplier(s, column), state, steps.value(s, column));
        as<Value>(states)[t * columns + column] = state;
        if (backward) {
            const Value before = t > 0 ? as<Value>(h)[(t - 1) * columns + column] : as<Value>(h0)[column];
            sum = multiply_add(state, conj(before), constant ? sum : zero);
            if (!constant) as<Value>(da)[t * columns + column] = sum;
        }
    }
    if (backward && constant) as<Value>(da)[blockIdx.y * columns + column] = sum;
    if (backward && end == T) {
        const Value first = constant ? as<Value>(a)[column % N] : as<Value>(a)[column];
        as<Value>(dh0)[column] = multiply_add(conj(first), state, zero);
    }
}
