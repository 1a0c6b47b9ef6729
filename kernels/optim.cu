// Norms and optimizer updates over many arrays in one launch.
//
// The arrays of a list are cut into chunks. A block takes one chunk, the same one of each list. Parameters and gradients
// are of type Storage, an optimizer's slots of type Real.
#include "optim.cuh"

// The chunk of this block. `table` has an entry for each of the `arrays` in each of its rows. The rows are: the number of
// an array's first chunk, counted over all arrays; its elements; its shrink, as the bits of a double; and for each list
// its address, 0 where the list does not exist. A chunk has `size` elements, and the last one of an array has those that
// are left. An array without elements has no chunk.
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
    __device__ double shrink() const { return __longlong_as_double(table[2LL * arrays + k]); }
    template <typename Number>
    __device__ Number* list(int l) const {
        return reinterpret_cast<Number*>(table[(3LL + l) * arrays + k]);
    }
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
template <typename Storage>
struct Squares {
    static constexpr bool may_overflow = sizeof(Storage) == sizeof(double);

    double middle, large, small;

    __device__ void add(double x) {
        if (may_overflow && fabs(x) > 0x1p480) {
            const double scaled = x * 0x1p-600;
            large += scaled * scaled;
        } else if (may_overflow && fabs(x) < 0x1p-480) {
            const double scaled = x * 0x1p600;
            small += scaled * scaled;
        } else {
            middle += x * x;
        }
    }
    // The sums of all threads of the block, for thread 0.
    __device__ void combine() {
        middle = block_sum(middle);
        if (!may_overflow) return;
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
template <typename Storage>
__global__ void square_sums(const long long* table, int arrays, int size, double* sums) {
    const Chunk chunk(table, arrays, size);
    const Storage* const values = chunk.list<Storage>(0);
    Squares<Storage> squares{0, 0, 0};
    for (long long i = chunk.begin + threadIdx.x; i < chunk.end; i += blockDim.x) squares.add(double(values[i]));
    squares.combine();
    if (threadIdx.x == 0) {
        sums[blockIdx.x] = squares.middle;
        sums[gridDim.x + blockIdx.x] = squares.large;
        sums[2LL * gridDim.x + blockIdx.x] = squares.small;
    }
}

// The square root of all sums (3, count). One block.
template <typename Storage>
__global__ void root_of_sum(const double* sums, double* norm, long long count) {
    Squares<Storage> squares{0, 0, 0};
    for (long long i = threadIdx.x; i < count; i += blockDim.x) {
        squares.middle += sums[i];
        squares.large += sums[count + i];
        squares.small += sums[2 * count + i];
    }
    squares.combine();
    if (threadIdx.x == 0) *norm = squares.root();
}

// List 1 = factor times list 0.
template <typename Storage, typename Real>
__global__ void scaled(const long long* table, int arrays, int size, const double* factor) {
    const Chunk chunk(table, arrays, size);
    const double by = *factor;
    const bool tiny = by < 0x1p-100;  // a float cannot hold the factor, so it multiplies in double
    const Storage* const values = chunk.list<Storage>(0);
    Storage* const products = chunk.list<Storage>(1);
    for (long long i = chunk.begin + threadIdx.x; i < chunk.end; i += blockDim.x) {
        const Real value = values[i];
        products[i] = Storage(tiny ? Real(value * by) : value * Real(by));
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

// Forms g = gradient + weight_decay p, and replaces p by shrink p - step(g). Lists: p, gradient and the slots.
template <template <typename> class Rule, typename Storage, typename Real>
__global__ void update(const long long* table, int arrays, int size, Real weight_decay, Rule<Real> rule) {
    constexpr int count = Rule<Real>::count;
    const Chunk chunk(table, arrays, size);
    Storage* const p = chunk.list<Storage>(0);
    const Storage* const gradient = chunk.list<Storage>(1);
    const Real shrink(chunk.shrink());
    Slots<Real, count> slots;
    for (int slot = 0; slot < count; ++slot) slots.arrays[slot] = chunk.list<Real>(2 + slot);
    for (long long i = chunk.begin + threadIdx.x; i < chunk.end; i += blockDim.x) {
        const Real g = decayed(Real(gradient[i]), weight_decay, Real(p[i]));
        slots.i = i;
        p[i] = Storage(Real(p[i]) * shrink - rule.step(g, slots));
    }
}
