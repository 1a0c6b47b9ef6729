// Optimizer updates over many arrays in one launch.
//
// The arrays of a list are cut into chunks; a block takes one chunk, the same one of each list. Each update forms
// g = gradient + weight_decay p and replaces p by shrink p - step.

// The chunk of this block. `table` has rows of one entry for each of the `arrays`: the first of its chunks, counted over
// all arrays; its elements; shrink, the bits of a double; and for each list its address. A chunk is of `size` elements,
// the last one of an array of what is left; an array without elements has none.
template <typename Real>
struct Chunk {
    const long long* table;
    int arrays, k;
    long long begin, end;

    __device__ Chunk(const long long* table, int arrays, int size) : table(table), arrays(arrays), k(0) {
        // The last array whose first chunk is not beyond this one.
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

// g; a parameter that is infinite, or no number, does not reach it where nothing decays.
template <typename Real>
__device__ Real decayed(Real gradient, Real weight_decay, Real p) {
    return weight_decay != 0 ? gradient + weight_decay * p : gradient;
}

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

// Sums of squares in double. Those of doubles that might overflow or underflow are summed apart, of multiples (Blue,
// "A portable Fortran program to find the Euclidean norm of a vector", 1978).
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

// Of each chunk the sums of squares, sums (3, chunks).
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
    const bool tiny = by < 0x1p-100;  // to multiply in double what a float cannot hold
    const Real* const values = chunk.list(0);
    Real* const products = chunk.list(1);
    for (long long i = chunk.begin + threadIdx.x; i < chunk.end; i += blockDim.x) {
        products[i] = tiny ? Real(values[i] * by) : values[i] * Real(by);
    }
}

// b = momentum b + scale g, at the first step b = g; the step is lr b, with Nesterov's form lr (g + momentum b).
// Lists: p, g and, with momentum, b.
template <typename Real>
__global__ void sgd(
    const long long* table, int arrays, int size, Real lr, Real weight_decay, Real momentum, Real scale,
    bool has_momenta, bool nesterov, bool first) {
    const Chunk<Real> chunk(table, arrays, size);
    Real *const p = chunk.list(0), *const b = has_momenta ? chunk.list(2) : nullptr;
    const Real *const gradient = chunk.list(1), shrink = chunk.shrink();
    for (long long i = chunk.begin + threadIdx.x; i < chunk.end; i += blockDim.x) {
        Real g = decayed(gradient[i], weight_decay, p[i]);
        if (b) {
            const Real mean = b[i] = first ? g : b[i] * momentum + g * scale;
            g = nesterov ? g + mean * momentum : mean;
        }
        p[i] = p[i] * shrink - g * lr;
    }
}

// v = alpha v + (1 - alpha) g^2, b = momentum b + g / (sqrt(v) + eps), the step is lr b; with means m, v - m^2 stands for
// v under the root. Lists: p, g, v and those of m and b that are there.
template <typename Real>
__global__ void rmsprop(
    const long long* table, int arrays, int size, Real lr, Real weight_decay, Real alpha, Real rest, Real eps,
    Real momentum, bool has_means, bool has_momenta) {
    const Chunk<Real> chunk(table, arrays, size);
    Real *const p = chunk.list(0), *const v = chunk.list(2), *const m = has_means ? chunk.list(3) : nullptr;
    Real* const b = has_momenta ? chunk.list(has_means ? 4 : 3) : nullptr;
    const Real *const gradient = chunk.list(1), shrink = chunk.shrink();
    for (long long i = chunk.begin + threadIdx.x; i < chunk.end; i += blockDim.x) {
        const Real g = decayed(gradient[i], weight_decay, p[i]), part = g * rest;
        Real square = v[i] = v[i] * alpha + part * g;
        if (m) {
            const Real mean = m[i] = m[i] * alpha + part;
            square -= mean * mean;
            if (square < 0) square = 0;  // rounding may leave the variance of an even gradient just below zero
        }
        Real step = g / (sqrt(square) + eps);
        if (b) step = b[i] = b[i] * momentum + step;
        p[i] = p[i] * shrink - step * lr;
    }
}

// m = beta1 m + (1 - beta1) g, v = beta2 v + (1 - beta2) g^2, the step is rate m / (sqrt(v) + floor), the largest v so
// far standing for v where that list is there. Lists: p, g, m, v and the largest.
template <typename Real>
__global__ void adam(
    const long long* table, int arrays, int size, Real rate, Real weight_decay, Real beta1, Real rest1, Real beta2,
    Real rest2, Real floor, bool has_largest) {
    const Chunk<Real> chunk(table, arrays, size);
    Real *const p = chunk.list(0), *const m = chunk.list(2), *const v = chunk.list(3);
    Real* const largest = has_largest ? chunk.list(4) : nullptr;
    const Real *const gradient = chunk.list(1), shrink = chunk.shrink();
    for (long long i = chunk.begin + threadIdx.x; i < chunk.end; i += blockDim.x) {
        const Real g = decayed(gradient[i], weight_decay, p[i]);
        const Real mean = m[i] = m[i] * beta1 + g * rest1;
        Real square = v[i] = v[i] * beta2 + g * g * rest2;
        if (largest) {
            // A NaN stays one, wherever it came in.
            if (square > largest[i] || square != square) largest[i] = square;
            square = largest[i];
        }
        p[i] = p[i] * shrink - mean / (sqrt(square) + floor) * rate;
    }
}

// v = v + g^2, the step is lr g / (sqrt(v) + eps). Lists: p, g and v.
template <typename Real>
__global__ void adagrad(const long long* table, int arrays, int size, Real lr, Real weight_decay, Real eps) {
    const Chunk<Real> chunk(table, arrays, size);
    Real *const p = chunk.list(0), *const v = chunk.list(2);
    const Real *const gradient = chunk.list(1), shrink = chunk.shrink();
    for (long long i = chunk.begin + threadIdx.x; i < chunk.end; i += blockDim.x) {
        const Real g = decayed(gradient[i], weight_decay, p[i]), sum = v[i] = v[i] + g * g;
        p[i] = p[i] * shrink - g / (sqrt(sum) + eps) * lr;
    }
}

// v = rho v + (1 - rho) g^2, d = sqrt(u + eps) / sqrt(v + eps) g, the step is lr d, then u = rho u + (1 - rho) d^2.
// Lists: p, g, v and u.
template <typename Real>
__global__ void adadelta(
    const long long* table, int arrays, int size, Real lr, Real weight_decay, Real rho, Real rest, Real eps) {
    const Chunk<Real> chunk(table, arrays, size);
    Real *const p = chunk.list(0), *const v = chunk.list(2), *const u = chunk.list(3);
    const Real *const gradient = chunk.list(1), shrink = chunk.shrink();
    for (long long i = chunk.begin + threadIdx.x; i < chunk.end; i += blockDim.x) {
        const Real g = decayed(gradient[i], weight_decay, p[i]);
        const Real square = v[i] = v[i] * rho + g * g * rest;
        const Real d = g / sqrt(square + eps) * sqrt(u[i] + eps);
        u[i] = u[i] * rho + d * d * rest;
        p[i] = p[i] * shrink - d * lr;
    }
}

// m and v as Adam has them, the step is (of_mean m + of_gradient g) / (sqrt(v) + floor). Lists: p, g, m and v.
template <typename Real>
__global__ void nadam(
    const long long* table, int arrays, int size, Real weight_decay, Real beta1, Real rest1, Real beta2, Real rest2,
    Real of_mean, Real of_gradient, Real floor) {
    const Chunk<Real> chunk(table, arrays, size);
    Real *const p = chunk.list(0), *const m = chunk.list(2), *const v = chunk.list(3);
    const Real *const gradient = chunk.list(1), shrink = chunk.shrink();
    for (long long i = chunk.begin + threadIdx.x; i < chunk.end; i += blockDim.x) {
        const Real g = decayed(gradient[i], weight_decay, p[i]);
        const Real mean = m[i] = m[i] * beta1 + g * rest1, square = v[i] = v[i] * beta2 + g * g * rest2;
        p[i] = p[i] * shrink - (g * of_gradient + mean * of_mean) / (sqrt(square) + floor);
    }
}

// m = beta1 m + (1 - beta1) g, u = max(beta2 u, |g| + eps), the step is rate m / u. Lists: p, g, m and u.
template <typename Real>
__global__ void adamax(
    const long long* table, int arrays, int size, Real rate, Real weight_decay, Real beta1, Real rest1, Real beta2,
    Real eps) {
    const Chunk<Real> chunk(table, arrays, size);
    Real *const p = chunk.list(0), *const m = chunk.list(2), *const u = chunk.list(3);
    const Real *const gradient = chunk.list(1), shrink = chunk.shrink();
    for (long long i = chunk.begin + threadIdx.x; i < chunk.end; i += blockDim.x) {
        const Real g = decayed(gradient[i], weight_decay, p[i]), before = u[i] * beta2;
        const Real mean = m[i] = m[i] * beta1 + g * rest1;
        Real norm = (g < 0 ? -g : g) + eps;
        // A NaN stays one, wherever it came in.
        if (before > norm || before != before) norm = before;
        u[i] = norm;
        p[i] = p[i] * shrink - mean / norm * rate;
    }
}

// 1, -1 or 0; a NaN stays one.
template <typename Real>
__device__ Real sign(Real x) {
    return x > 0 ? Real(1) : x < 0 ? Real(-1) : x;
}

// The size of a step grows by eta_plus where the sign of g is that of the step before and shrinks by eta_minus where it
// has turned, between smallest and largest; g is 0 where it has turned; the step is size sign(g). Lists: p, g, the g of
// the step before and the sizes.
template <typename Real>
__global__ void rprop(
    const long long* table, int arrays, int size, Real weight_decay, Real eta_minus, Real eta_plus, Real smallest,
    Real largest) {
    const Chunk<Real> chunk(table, arrays, size);
    Real *const p = chunk.list(0), *const before = chunk.list(2), *const sizes = chunk.list(3);
    const Real *const gradient = chunk.list(1), shrink = chunk.shrink();
    for (long long i = chunk.begin + threadIdx.x; i < chunk.end; i += blockDim.x) {
        Real g = decayed(gradient[i], weight_decay, p[i]);
        // The product of the signs, since that of the gradients may underflow.
        const Real turn = sign(g) * sign(before[i]);
        Real step = sizes[i] * (turn > 0 ? eta_plus : turn < 0 ? eta_minus : Real(1));
        step = step < smallest ? smallest : step > largest ? largest : step;
        if (turn < 0) g = 0;
        sizes[i] = step;
        before[i] = g;
        p[i] = p[i] * shrink - sign(g) * step;
    }
}
