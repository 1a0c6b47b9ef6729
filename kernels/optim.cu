// Norms and optimizer updates over many arrays in one launch.
//
// The arrays of a list are cut into chunks. A block takes one chunk, the same one of each list.

// The chunk of this block. `table` has an entry for each of the `arrays` in each of its rows. The rows are: the number of
// an array's first chunk, counted over all arrays; its elements; its shrink, as the bits of a double; and for each list
// its address, 0 where the list does not exist. A chunk has `size` elements, and the last one of an array has those that
// are left. An array without elements has no chunk.
template <typename Real>
struct Chunk {
    const long long* table;
    int arrays, k;
    long long begin, end;

    __device__ Chunk(const long long* table, int arrays, int size) : table(table), arrays(arrays), k(0) {
        // The last array whose first chunk is not past this one.
        for (int above = arrays; above - k > 1;) {
            const int middle = (k + above) / 2;
            if (table[middle] <= (long long)blockIdx.x) {
                k = middle;
            } else {
                above = middle;
            }
        }
        const long long elements = table[arrays + k];
        begin = (blockIdx.x - table[k]) * size;
        end = begin + size < elements ? begin + size : elements;
    }
    __device__ Real shrink() const { return Real(__longlong_as_double(table[2LL * arrays + k])); }
    __device__ Real* list(int l) const { return reinterpret_cast<Real*>(table[(3LL + l) * arrays + k]); }
};

// The sum over a block of its threads' values, for thread 0: over each warp by halves, then warp after warp.
__device__ inline double block_sum(double sum) {
    __shared__ double of_warps[32];
    for (int step = 16; step; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
    if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x == 0) {
        for (int warp = 1; warp < int(blockDim.x) / 32; ++warp) sum += of_warps[warp];
    }
    return sum;
}

// Sums of squares in double. Doubles whose squares might overflow or underflow are scaled, and have sums of their own
// (Blue, "A portable Fortran program to find the Euclidean norm of a vector", 1978).
struct Squares {
    double middle, large, small;

    template <typename Real>
    __device__ void add(Real x) {
        if (sizeof(Real) == 8 && fabs(x) > 0x1p480) {
            const double scaled = x * 0x1p-600;
            large += scaled * scaled;
        } else if (sizeof(Real) == 8 && fabs(x) < 0x1p-480) {
            const double scaled = x * 0x1p600;
            small += scaled * scaled;
        } else {
            middle += double(x) * x;
        }
    }
    // The sums of all threads of the block, for thread 0.
    template <typename Real>
    __device__ void combine() {
        middle = block_sum(middle);
        if (sizeof(Real) == 4) return;
        __syncthreads();
        large = block_sum(large);
        __syncthreads();
        small = block_sum(small);
    }
    __device__ double root() const {
        if (large > 0) return sqrt(large + middle * 0x1p-600 * 0x1p-600) * 0x1p600;
        return middle > 0 ? sqrt(middle + small * 0x1p-600 * 0x1p-600) : sqrt(small) * 0x1p-600 + middle;  // or NaN
    }
};

// The sums of squares of each chunk: sums (3, chunks).
template <typename Real>
__global__ void square_sums(const long long* table, int arrays, int size, double* sums) {
    const Chunk<Real> chunk(table, arrays, size);
    const Real* const values = chunk.list(0);
    Squares squares{0, 0, 0};
    for (long long i = chunk.begin + threadIdx.x; i < chunk.end; i += blockDim.x) squares.add(values[i]);
    squares.combine<Real>();
    if (threadIdx.x == 0) {
        sums[blockIdx.x] = squares.middle;
        sums[gridDim.x + blockIdx.x] = squares.large;
        sums[2LL * gridDim.x + blockIdx.x] = squares.small;
    }
}

// The square root of all sums (3, count). One block.
template <typename Real>
__global__ void root_of_sum(const double* sums, double* norm, long long count) {
    Squares squares{0, 0, 0};
    for (long long i = threadIdx.x; i < count; i += blockDim.x) {
        squares.middle += sums[i];
        squares.large += sums[count + i];
        squares.small += sums[2 * count + i];
    }
    squares.combine<Real>();
    if (threadIdx.x == 0) *norm = squares.root();
}

// List 1 = factor times list 0.
template <typename Real>
__global__ void scaled(const long long* table, int arrays, int size, const double* factor) {
    const Chunk<Real> chunk(table, arrays, size);
    const double by = *factor;
    const bool tiny = by < 0x1p-100;  // a float cannot hold the factor, so it multiplies in double
    const Real* const values = chunk.list(0);
    Real* const products = chunk.list(1);
    for (long long i = chunk.begin + threadIdx.x; i < chunk.end; i += blockDim.x) {
        products[i] = tiny ? Real(values[i] * by) : values[i] * Real(by);
    }
}

// ---- Updates --------------------------------------------------------------------------------------------------------

// The elements of an optimizer's slots at one position of a parameter.
template <typename Real, int count>
struct Slots {
    Real* arrays[count];  // null where the optimizer's options do without the slot
    long long i;

    __device__ bool has(int slot) const { return arrays[slot] != nullptr; }
    __device__ Real& operator[](int slot) const { return arrays[slot][i]; }
};

// The gradient with decay. Without decay p does not count, so inf or NaN in it cannot reach the slots.
template <typename Real>
__device__ Real decayed(Real gradient, Real weight_decay, Real p) {
    return weight_decay != 0 ? gradient + weight_decay * p : gradient;
}

// Forms g = gradient + weight_decay p, and replaces p by shrink p - step(g). Lists: p, gradient and the slots.
//
// A rule is a struct of the step's scalars. It has a number for each slot, `count` slots, and `step`, which changes the
// slots. Its names are those of the optimizer's class in gpurnn/optimizers.py, whose order is proved when this compiles.
template <template <typename> class Rule, typename Real>
__global__ void update(const long long* table, int arrays, int size, Real weight_decay, Rule<Real> rule) {
    constexpr int count = Rule<Real>::count;
    const Chunk<Real> chunk(table, arrays, size);
    Real* const p = chunk.list(0);
    const Real *const gradient = chunk.list(1), shrink = chunk.shrink();
    Slots<Real, count> slots;
    for (int slot = 0; slot < count; ++slot) slots.arrays[slot] = chunk.list(2 + slot);
    for (long long i = chunk.begin + threadIdx.x; i < chunk.end; i += blockDim.x) {
        const Real g = decayed(gradient[i], weight_decay, p[i]);
        slots.i = i;
        p[i] = p[i] * shrink - rule.step(g, slots);
    }
}

// b = mu b + (1 - dampening) g, but b = g at the first step; the step is lr b. Nesterov's is lr (g + mu b).
template <typename Real>
struct Sgd {
    enum { momentum, count };
    Real lr, mu, undamped;
    bool nesterov, first;

    __device__ auto step(Real g, const Slots<Real, count>& slots) const {
        if (!slots.has(momentum)) return g * lr;
        const Real b = slots[momentum] = first ? g : slots[momentum] * mu + g * undamped;
        return (nesterov ? g + b * mu : b) * lr;
    }
};

// v = alpha v + (1 - alpha) g^2, b = mu b + g / (sqrt(v) + eps), the step is lr b. Centered: m = alpha m + (1 - alpha) g,
// and v - m^2 replaces v under the root.
template <typename Real>
struct Rmsprop {
    enum { square, mean, momentum, count };
    Real lr, alpha, one_minus_alpha, eps, mu;

    __device__ auto step(Real g, const Slots<Real, count>& slots) const {
        const Real part = g * one_minus_alpha;
        Real spread = slots[square] = slots[square] * alpha + part * g;
        if (slots.has(mean)) {
            const Real m = slots[mean] = slots[mean] * alpha + part;
            spread -= m * m;
            if (spread < 0) spread = 0;  // rounding may leave the variance of a constant gradient just below zero
        }
        Real step = g / (sqrt(spread) + eps);
        if (slots.has(momentum)) step = slots[momentum] = slots[momentum] * mu + step;
        return step * lr;
    }
};

// m = beta1 m + (1 - beta1) g, v = beta2 v + (1 - beta2) g^2, the step is rate m / (sqrt(v) + floor). AMSGrad: the
// largest v so far replaces v.
template <typename Real>
struct Adam {
    enum { mean, square, largest, count };
    Real rate, beta1, one_minus_beta1, beta2, one_minus_beta2, floor;

    __device__ auto step(Real g, const Slots<Real, count>& slots) const {
        const Real m = slots[mean] = slots[mean] * beta1 + g * one_minus_beta1;
        Real v = slots[square] = slots[square] * beta2 + g * g * one_minus_beta2;
        if (slots.has(largest)) {
            // NaN stays, in v and in the largest.
            if (v > slots[largest] || v != v) slots[largest] = v;
            v = slots[largest];
        }
        return m / (sqrt(v) + floor) * rate;
    }
};

// v = v + g^2, the step is lr g / (sqrt(v) + eps).
template <typename Real>
struct Adagrad {
    enum { sum, count };
    Real lr, eps;

    __device__ auto step(Real g, const Slots<Real, count>& slots) const {
        const Real v = slots[sum] = slots[sum] + g * g;
        return g / (sqrt(v) + eps) * lr;
    }
};

// v = rho v + (1 - rho) g^2, d = sqrt(u + eps) / sqrt(v + eps) g, the step is lr d, then u = rho u + (1 - rho) d^2.
template <typename Real>
struct Adadelta {
    enum { square, update, count };
    Real lr, rho, one_minus_rho, eps;

    __device__ auto step(Real g, const Slots<Real, count>& slots) const {
        const Real v = slots[square] = slots[square] * rho + g * g * one_minus_rho, u = slots[update];
        const Real d = g / sqrt(v + eps) * sqrt(u + eps);
        slots[update] = u * rho + d * d * one_minus_rho;
        return d * lr;
    }
};

// m and v as in Adam, the step is (of_mean m + of_gradient g) / (sqrt(v) + floor).
template <typename Real>
struct Nadam {
    enum { mean, square, count };
    Real of_mean, of_gradient, beta1, one_minus_beta1, beta2, one_minus_beta2, floor;

    __device__ auto step(Real g, const Slots<Real, count>& slots) const {
        const Real m = slots[mean] = slots[mean] * beta1 + g * one_minus_beta1;
        const Real v = slots[square] = slots[square] * beta2 + g * g * one_minus_beta2;
        return (g * of_gradient + m * of_mean) / (sqrt(v) + floor);
    }
};

// m = beta1 m + (1 - beta1) g, u = max(beta2 u, |g| + eps), the step is rate m / u.
template <typename Real>
struct Adamax {
    enum { mean, norm, count };
    Real rate, beta1, one_minus_beta1, beta2, eps;

    __device__ auto step(Real g, const Slots<Real, count>& slots) const {
        const Real m = slots[mean] = slots[mean] * beta1 + g * one_minus_beta1, before = slots[norm] * beta2;
        Real u = (g < 0 ? -g : g) + eps;
        if (before > u || before != before) u = before;  // NaN stays, in u and in g
        slots[norm] = u;
        return m / u * rate;
    }
};

// 1, -1 or 0, and NaN of NaN.
template <typename Real>
__device__ Real sign(Real x) {
    return x > 0 ? Real(1) : x < 0 ? Real(-1) : x;
}

// size = size eta_plus where g has the sign of the step before, and size eta_minus where it has the other one, between
// smallest and largest. Where it has the other one, g = 0 from here on. The step is size sign(g).
template <typename Real>
struct Rprop {
    enum { previous, size, count };
    Real eta_minus, eta_plus, smallest, largest;

    __device__ auto step(Real g, const Slots<Real, count>& slots) const {
        // The product of the signs, because that of the gradients may underflow.
        const Real turn = sign(g) * sign(slots[previous]);
        Real step = slots[size] * (turn > 0 ? eta_plus : turn < 0 ? eta_minus : Real(1));
        step = step < smallest ? smallest : step > largest ? largest : step;
        if (turn < 0) g = 0;
        slots[size] = step;
        slots[previous] = g;
        return sign(g) * step;
    }
};
