// Norms and optimizer updates over many arrays in one launch.
//
// The arrays of a list are cut into chunks. A block takes one chunk, the same one of each list. Parameters and gradients
// are of type Storage, an optimizer's slots of type Real.
#include "intrinsics.cuh"
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
        return global_pointer<Number>(table[(3LL + l) * arrays + k]);
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

// Calls `elements(i, end, count)` for ranges of the elements of a chunk: in packets of `n` as far as all lists have whole
// ones (`packed`), and one by one for what is left. A thread's elements begin at i, `count.value` at a time.
template <int n, class Elements>
__device__ void in_packets(const Chunk& chunk, bool packed, Elements elements) {
    const long long whole = packed ? chunk.end - (chunk.end - chunk.begin) % n : chunk.begin;
    elements(chunk.begin + threadIdx.x * n, whole, Constant<n>());
    elements(whole + threadIdx.x, chunk.end, Constant<1>());
}

// The packets that a thread loads before it stores the first one.
constexpr int batch = 2;

// List 1 = factor times list 0.
template <typename Storage, typename Real>
__global__ void scaled(const long long* table, int arrays, int size, const double* factor) {
    const Chunk chunk(table, arrays, size);
    const double by = *factor;
    const bool tiny = by < 0x1p-100;  // a float cannot hold the factor, so it multiplies in double
    const Storage* const values = chunk.list<Storage>(0);
    Storage* const products = chunk.list<Storage>(1);
    in_packets<Packet<Real>::size>(
        chunk, begins_packet(values) && begins_packet(products), [&](long long first, long long end, auto count) {
            constexpr int n = count.value;
            const int stride = blockDim.x * n;
#pragma unroll 1
            for (long long i = first; i < end; i += batch * stride) {
                Packet<Storage, n> packets[batch];
#pragma unroll
                for (int j = 0; j < batch; ++j) {
                    if (i + j * stride < end) packets[j] = load_packet<n>(values + i + j * stride);
                }
#pragma unroll
                for (int j = 0; j < batch; ++j) {
#pragma unroll
                    for (int k = 0; k < n; ++k) {
                        const Real value = packets[j].at[k];
                        packets[j].at[k] = Storage(tiny ? Real(value * by) : value * Real(by));
                    }
                    if (i + j * stride < end) store_packet(products + i + j * stride, packets[j]);
                }
            }
        });
}

// ---- Updates --------------------------------------------------------------------------------------------------------

// The elements of an optimizer's slots at one position of a parameter.
template <typename Real, int count>
struct Slots {
    Real values[count];
    bool exists[count];  // false where the optimizer's options do without the slot

    __device__ bool has(int slot) const { return exists[slot]; }
    __device__ Real& operator[](int slot) { return values[slot]; }
};

// Forms g = gradient + weight_decay p, and replaces p by shrink p - step(g). Lists: p, gradient and the slots.
template <template <typename> class Rule, typename Storage, typename Real>
__global__ void update(const long long* table, int arrays, int size, Real weight_decay, Rule<Real> rule) {
    constexpr int slots = Rule<Real>::count;
    const Chunk chunk(table, arrays, size);
    Storage* const p = chunk.list<Storage>(0);
    const Storage* const gradient = chunk.list<Storage>(1);
    const Real shrink(chunk.shrink());
    bool packed = begins_packet(p) && begins_packet(gradient);
    Real* state[slots];
#pragma unroll
    for (int slot = 0; slot < slots; ++slot) {
        state[slot] = chunk.list<Real>(2 + slot);
        packed = packed && begins_packet(state[slot]);
    }
    in_packets<Packet<Real>::size>(chunk, packed, [&](long long first, long long end, auto count) {
        constexpr int n = count.value;
        const int stride = blockDim.x * n;
#pragma unroll 1
        for (long long i = first; i < end; i += batch * stride) {
            Packet<Storage, n> values[batch], gradients[batch];
            Packet<Real, n> states[batch][slots];
#pragma unroll
            for (int j = 0; j < batch; ++j) {
                const long long at = i + j * stride;
                if (at >= end) continue;
                values[j] = load_packet<n>(p + at);
                gradients[j] = load_packet<n>(gradient + at);
#pragma unroll
                for (int slot = 0; slot < slots; ++slot) {
                    if (state[slot]) states[j][slot] = load_packet<n>(state[slot] + at);
                }
            }
#pragma unroll
            for (int j = 0; j < batch; ++j) {
                const long long at = i + j * stride;
                if (at >= end) continue;
#pragma unroll
                for (int k = 0; k < n; ++k) {
                    Slots<Real, slots> of;
#pragma unroll
                    for (int slot = 0; slot < slots; ++slot) {
                        of.exists[slot] = state[slot] != nullptr;
                        of.values[slot] = states[j][slot].at[k];
                    }
                    const Real value = values[j].at[k], g = decayed(Real(gradients[j].at[k]), weight_decay, value);
                    values[j].at[k] = Storage(value * shrink - rule.step(g, of));
#pragma unroll
                    for (int slot = 0; slot < slots; ++slot) states[j][slot].at[k] = of.values[slot];
                }
                store_packet(p + at, values[j]);
#pragma unroll
                for (int slot = 0; slot < slots; ++slot) {
                    if (state[slot]) store_packet(state[slot] + at, states[j][slot]);
                }
            }
        }
    });
}
