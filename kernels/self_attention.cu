// Attention of many steps to many positions, as of a sequence to itself, by tiles.
//
//   query (T, B, A), keys (S, B, A), values (S, B, E), context (T, B, E)
//   lengths (B) or null, excluded (B / heads, S) or null, mask (B / heads or 1, heads or 1, T, S) if `masked`
//
// The score is scale query_t . keys_s, plus the number of the mask, which may be minus infinity.
// A step sees the positions within the length that are not excluded. If `causal`, it sees none that is later than
// itself, the steps being the last T positions. Nothing is read past a row's length.
//
// A block computes 64 steps of one row b and goes through the positions, 64 at a time. It multiplies queries and keys,
// makes the softmax of what it has seen so far (Milakov and Gimelshein, "Online normalizer calculation for softmax",
// 2018) and adds up values. What is left of the softmax are two numbers for a step. The weights follow from them, and so
// the backward pass computes them anew (Dao et al., "FlashAttention", 2022). The order of every sum depends on the sizes
// alone.
//
// All threads of a block load packets of 128 bits from the arrays, store them to shared memory and multiply from there.
// A thread has 4 x 4 products, of rows that lie `side` apart.
#include "intrinsics.cuh"
#include "numbers.cuh"

constexpr int tile = 64, side = 16, threads = side * side, own = tile / side;

// Numbers of a row that are in shared memory at once. Rows there are an odd number of packets apart, so that packets of
// eight neighbouring rows are in different banks.
template <typename Real>
constexpr int depth = 128 / sizeof(Real);
template <typename Real>
constexpr int staged_row = depth<Real> + Packet<Real>::size;
template <typename Real>
constexpr int weights_row = tile + Packet<Real>::size;

// from_t and from_b: from the weights of a step to those of the next one, and of a row of the batch to the next.
// mask_b and mask_h: from the mask of `heads` rows to that of the next ones, and from that of a head to the next.
template <typename Real>
struct Sizes {
    long long from_t, from_b, mask_b, mask_h;
    int T, B, S, A, E, heads, causal;
    Real scale;
};

// The positions that the steps of one row see.
struct Seen {
    int length, shift;  // position t + shift is that of step t
    bool causal;
    const bool* excluded;

    template <typename Real>
    __device__ Seen(const Sizes<Real>& sizes, const int* lengths, const bool* excluded, int b)
        : length(lengths ? max(0, min(lengths[b], sizes.S)) : sizes.S),
          shift(sizes.S - sizes.T),
          causal(sizes.causal),
          excluded(excluded ? excluded + (long long)(b / sizes.heads) * sizes.S : nullptr) {}

    // The first step that sees position s, `nobody` if it does not exist.
    __device__ int first(int s) const {
        const bool exists = s < length && !(excluded && excluded[s]);
        return !exists ? nobody : causal ? s - shift : 0;
    }
    // Past the last position that steps before t see.
    __device__ int end(int t) const { return causal ? min(length, t + shift) : length; }
    static constexpr int nobody = 0x7fffffff;
};

// The rows of an array (rows, B, size) that belong to one row b of the batch.
template <typename Storage, typename Real>
struct Rows {
    static constexpr int n = Packet<Real>::size;
    Storage* first;
    long long stride;
    int size;
    bool whole;  // every n-th number begins a packet

    __device__ Rows(Storage* array, int B, int b, int size)
        : first(array + (long long)b * size),
          stride((long long)B * size),
          size(size),
          whole(begins_packet(array) && size % n == 0) {}

    // The numbers from column c on, zeros past the last one.
    __device__ __forceinline__ Packet<Real> load(int row, int c) const {
        Packet<Real> packet = {};
        const Storage* const from = first + row * stride + c;
        if (whole) {
            if (c >= size) return packet;
            const auto stored = load_packet<n>(from);
#pragma unroll
            for (int i = 0; i < n; ++i) packet.at[i] = Real(stored.at[i]);
        } else {
#pragma unroll
            for (int i = 0; i < n; ++i) {
                if (c + i < size) packet.at[i] = Real(from[i]);
            }
        }
        return packet;
    }
    __device__ __forceinline__ void store(int row, int c, const Packet<Real>& packet) const {
        Storage* const to = first + row * stride + c;
        if (whole) {
            if (c >= size) return;
            Packet<Storage, n> stored;
#pragma unroll
            for (int i = 0; i < n; ++i) stored.at[i] = Storage(packet.at[i]);
            store_packet(to, stored);
        } else {
#pragma unroll
            for (int i = 0; i < n; ++i) {
                if (c + i < size) to[i] = Storage(packet.at[i]);
            }
        }
    }
};

// Loads the packets of `width` numbers of `count` rows, from row `first` and column c on, and zeros for rows past them;
// then stores them to shared memory, where rows are `apart` numbers apart.
template <int rows, int width, typename Real>
struct Staged {
    static constexpr int n = Packet<Real>::size, of_row = width / n, parts = rows * of_row / threads;
    Packet<Real> packets[parts];

    template <typename Storage>
    __device__ __forceinline__ Staged(const Rows<Storage, Real>& from, int first, int count, int c) {
#pragma unroll
        for (int i = 0; i < parts; ++i) {
            const int slot = threadIdx.x + i * threads, row = slot / of_row;
            packets[i] = row < count ? from.load(first + row, c + slot % of_row * n) : Packet<Real>{};
        }
    }
    __device__ __forceinline__ void store(Real* shared, int apart) const {
#pragma unroll
        for (int i = 0; i < parts; ++i) {
            const int slot = threadIdx.x + i * threads;
            store_packet(shared + slot / of_row * apart + slot % of_row * n, packets[i]);
        }
    }
};

// sums[i][j] += x_(x0 + ty + side i) . y_(y0 + tx + side j), for xn rows of x and yn of y.
template <typename X, typename Y, typename Real>
__device__ __forceinline__ void contract(
    Real (&sums)[own][own], const Rows<X, Real>& x, int x0, int xn, const Rows<Y, Real>& y, int y0, int yn,
    Real* shared) {
    constexpr int n = Packet<Real>::size, row = staged_row<Real>;
    Real *const left = shared, *const right = shared + tile * row;
    const Real* const of_x = left + threadIdx.x / side * row;
    const Real* const of_y = right + threadIdx.x % side * row;
#pragma unroll 1
    for (int k = 0; k < x.size; k += depth<Real>) {
        const Staged<tile, depth<Real>, Real> a(x, x0, xn, k), b(y, y0, yn, k);
        __syncthreads();  // what was in shared memory has been read
        a.store(left, row);
        b.store(right, row);
        __syncthreads();
#pragma unroll 2
        for (int p = 0; p < depth<Real>; p += n) {
            Packet<Real> l[own], r[own];
#pragma unroll
            for (int i = 0; i < own; ++i) {
                l[i] = load_packet(of_x + side * i * row + p);
                r[i] = load_packet(of_y + side * i * row + p);
            }
#pragma unroll
            for (int q = 0; q < n; ++q) {
#pragma unroll
                for (int i = 0; i < own; ++i) {
#pragma unroll
                    for (int j = 0; j < own; ++j) sums[i][j] += l[i].at[q] * r[j].at[q];
                }
            }
        }
    }
}

// Sums over a tile of rows: `parts` times 64 columns. Sum [i][p].at[e] is of row ty + side i and of column
// column(p) + e.
template <int parts, typename Real>
struct Sums {
    static constexpr int n = Packet<Real>::size, packets = parts * own / n, width = parts * tile;
    Packet<Real> of[own][packets];

    __device__ __forceinline__ Sums() {
#pragma unroll
        for (int i = 0; i < own; ++i) {
#pragma unroll
            for (int p = 0; p < packets; ++p) of[i][p] = Packet<Real>{};
        }
    }
    static __device__ __forceinline__ int column(int p) { return (threadIdx.x % side + side * p) * n; }

    // Adds weights (64, 64) times the rows y0 ... y0 + yn - 1 of y, from column c on. [i][j] of the weights is of row
    // ty + side i and of y_(y0 + tx + side j).
    template <typename Storage>
    __device__ __forceinline__ void add(
        const Real (&weights)[own][own], const Rows<Storage, Real>& y, int y0, int yn, int c, Real* shared) {
        constexpr int rows = 2 * depth<Real> / parts, row = weights_row<Real>;
        Real* const of_tile = shared + 2 * tile * staged_row<Real>;
        const int ty = threadIdx.x / side, tx = threadIdx.x % side;
#pragma unroll
        for (int i = 0; i < own; ++i) {
#pragma unroll
            for (int j = 0; j < own; ++j) of_tile[(ty + side * i) * row + tx + side * j] = weights[i][j];
        }
#pragma unroll 1
        for (int first = 0; first < yn; first += rows) {
            const Staged<rows, width, Real> staged(y, y0 + first, yn - first, c);
            __syncthreads();  // the weights are there, and what was in the place of y has been read
            staged.store(shared, width);
            __syncthreads();
#pragma unroll 2
            for (int s = 0; s < rows; s += n) {
                Packet<Real> w[own];
#pragma unroll
                for (int i = 0; i < own; ++i) w[i] = load_packet(of_tile + (ty + side * i) * row + first + s);
#pragma unroll
                for (int q = 0; q < n; ++q) {
#pragma unroll
                    for (int p = 0; p < packets; ++p) {
                        const Packet<Real> number = load_packet(shared + (s + q) * width + column(p));
#pragma unroll
                        for (int i = 0; i < own; ++i) {
#pragma unroll
                            for (int e = 0; e < n; ++e) of[i][p].at[e] += w[i].at[q] * number.at[e];
                        }
                    }
                }
            }
        }
    }
    // Writes `count` rows from row y0 and column c on.
    template <typename Storage>
    __device__ __forceinline__ void store(const Rows<Storage, Real>& to, int y0, int count, int c) const {
#pragma unroll
        for (int i = 0; i < own; ++i) {
            const int row = threadIdx.x / side + side * i;
#pragma unroll
            for (int p = 0; p < packets; ++p) {
                if (row < count) to.store(y0 + row, c + column(p), of[i][p]);
            }
        }
    }
};

// Of the threads that have the same rows of a tile: lanes of half a warp.
template <typename Real>
__device__ __forceinline__ Real sum_of_row(Real x) {
    for (int step = side / 2; step; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
    return x;
}
template <typename Real>
__device__ __forceinline__ Real largest_of_row(Real x) {
    for (int step = side / 2; step; step /= 2) x = max(x, __shfl_xor_sync(0xffffffffu, x, step));
    return x;
}

// Blocks of a multiprocessor, for which the compiler limits the registers of a thread. Where it is not given 1, it may
// rather spill them.
template <typename Real, int parts, bool masked>
constexpr int resident = sizeof(Real) == sizeof(float) && parts == 1 && !masked ? 2 : 1;

// The scores of row b. Without a mask there is no instruction for one.
template <bool masked, typename Storage, typename Real>
struct Scores {
    const Storage* mask;
    int S;
    Real scale;

    __device__ Scores(const Storage* mask, const Sizes<Real>& sizes, int b)
        : mask(masked ? mask + b / sizes.heads * sizes.mask_b + b % sizes.heads * sizes.mask_h : nullptr),
          S(sizes.S),
          scale(sizes.scale) {}

    // That of a step and a position that exist, whose product is given.
    __device__ __forceinline__ Real operator()(Real product, int t, int s) const {
        if constexpr (masked) return scale * product + Real(mask[(long long)t * S + s]);
        return scale * product;
    }
};

// The softmax of a step: its highest score, and one over the sum of exp(score - highest).
template <typename Real>
struct Softmax {
    Real highest, inverse;

    // From `statistics` of attend_tiles.
    __device__ Softmax(const Real* statistics, const Sizes<Real>& sizes, int t, int b) {
        const long long at = (long long)min(t, sizes.T - 1) * sizes.B + b;
        highest = statistics[at];
        inverse = statistics[(long long)sizes.T * sizes.B + at];
    }
    __device__ Real weight(Real score) const { return exp(score - highest) * inverse; }
};

// The share of a block: a tile of `length` steps or positions of one row of the batch, and one of `parts` of the
// columns. The blocks of a row follow one another, so that they share what they read in the L2 cache.
struct Share {
    int first, b, part;

    __device__ Share(int length, int parts) {
        const int tiles = (length - 1) / tile + 1;
        part = blockIdx.x % parts;
        first = blockIdx.x / parts % tiles * tile;
        b = blockIdx.x / parts / tiles;
    }
};

// The context, `parts` times 64 columns of it a block, and statistics (2, T, B): the softmax of each step.
template <typename Storage, typename Real, int parts, bool masked = false>
__global__ void __launch_bounds__(threads, (resident<Real, parts, masked>)) attend_tiles(
    const Storage* query, const Storage* keys, const Storage* values, const int* lengths, const bool* excluded,
    const Storage* mask, Storage* context, Real* statistics, Sizes<Real> sizes) {
    DYNAMIC_SHARED(Real, shared);
    const Share share(sizes.T, max(1, (sizes.E - 1) / (parts * tile) + 1));
    const int b = share.b, t0 = share.first, count = min(tile, sizes.T - t0), c = share.part * parts * tile;
    const int ty = threadIdx.x / side, tx = threadIdx.x % side;
    const Seen seen(sizes, lengths, excluded, b);
    const Scores<masked, Storage, Real> scored(mask, sizes, b);
    const Rows<const Storage, Real> q(query, sizes.B, b, sizes.A), k(keys, sizes.B, b, sizes.A);
    const Rows<const Storage, Real> v(values, sizes.B, b, sizes.E);
    const Real none = Real(__int_as_float(0xff800000));  // minus infinity
    // The first highest score is below every score except minus infinity, whose weight is therefore zero.
    Real highest[own], total[own];
#pragma unroll
    for (int i = 0; i < own; ++i) highest[i] = -Limits<Real>::largest, total[i] = 0;
    Sums<parts, Real> sums;

#pragma unroll 1
    for (int s0 = 0, end = seen.end(t0 + count); s0 < end; s0 += tile) {
        Real scores[own][own] = {};
        contract(scores, q, t0, count, k, s0, min(tile, end - s0), shared);
        int first[own];
#pragma unroll
        for (int j = 0; j < own; ++j) first[j] = seen.first(s0 + tx + side * j);
#pragma unroll
        for (int i = 0; i < own; ++i) {
            Real above = highest[i], sum = 0;
#pragma unroll
            for (int j = 0; j < own; ++j) {
                const int t = t0 + ty + side * i, s = s0 + tx + side * j;
                scores[i][j] = t >= first[j] ? scored(scores[i][j], min(t, sizes.T - 1), s) : none;
                above = max(above, scores[i][j]);
            }
            above = largest_of_row(above);
#pragma unroll
            for (int j = 0; j < own; ++j) {
                scores[i][j] = exp(scores[i][j] - above);
                sum += scores[i][j];
            }
            const Real factor = exp(highest[i] - above);
            highest[i] = above;
            total[i] = total[i] * factor + sum_of_row(sum);
#pragma unroll
            for (int p = 0; p < sums.packets; ++p) {
#pragma unroll
                for (int e = 0; e < sums.n; ++e) sums.of[i][p].at[e] *= factor;
            }
        }
        sums.add(scores, v, s0, min(tile, end - s0), c, shared);
    }

#pragma unroll
    for (int i = 0; i < own; ++i) {
        // A step that sees nothing has weights of zero.
        const Real inverse = total[i] == 0 && (masked || excluded || seen.length == 0) ? Real(0) : 1 / total[i];
#pragma unroll
        for (int p = 0; p < sums.packets; ++p) {
#pragma unroll
            for (int e = 0; e < sums.n; ++e) sums.of[i][p].at[e] *= inverse;
        }
        const int row = ty + side * i;
        if (row < count && tx == 0 && share.part == 0) {
            const long long at = (long long)(t0 + row) * sizes.B + b;
            statistics[at] = highest[i];
            statistics[(long long)sizes.T * sizes.B + at] = inverse;
        }
    }
    sums.store(Rows<Storage, Real>(context, sizes.B, b, sizes.E), t0, count, c);
}

// The weights of all steps. A block writes 64 steps of 64 positions.
template <typename Storage, typename Real, bool masked = false>
__global__ void __launch_bounds__(threads, (resident<Real, 1, false>)) tile_weights(
    const Storage* query, const Storage* keys, const int* lengths, const bool* excluded, const Storage* mask,
    const Real* statistics, Storage* weights, Sizes<Real> sizes) {
    DYNAMIC_SHARED(Real, shared);
    const Share share(sizes.T, (sizes.S - 1) / tile + 1);
    const int b = share.b, t0 = share.first, s0 = share.part * tile, count = min(tile, sizes.T - t0);
    const Seen seen(sizes, lengths, excluded, b);
    const Scores<masked, Storage, Real> scored(mask, sizes, b);
    Real scores[own][own] = {};
    const int end = seen.end(t0 + count);
    if (s0 < end) {
        const Rows<const Storage, Real> q(query, sizes.B, b, sizes.A), k(keys, sizes.B, b, sizes.A);
        contract(scores, q, t0, count, k, s0, min(tile, end - s0), shared);
    }
#pragma unroll
    for (int j = 0; j < own; ++j) {
        const int s = s0 + threadIdx.x % side + side * j, first = seen.first(s);
#pragma unroll
        for (int i = 0; i < own; ++i) {
            const int t = t0 + threadIdx.x / side + side * i;
            if (t >= sizes.T || s >= sizes.S) continue;
            const Softmax<Real> softmax(statistics, sizes, t, b);
            const Real weight = t >= first ? softmax.weight(scored(scores[i][j], t, s)) : Real(0);
            weights[t * sizes.from_t + b * sizes.from_b + s] = Storage(weight);
        }
    }
}

// A tile of steps and positions as a thread of the backward pass sees it. Rows of the tile are steps, or positions if
// `of_source`; k counts the thread's rows or columns. dcontext and dweights may be null.
template <bool of_source, bool masked, typename Real>
struct Pairs {
    static constexpr int none = -0x7fffffff;  // a step that does not exist, and so sees nothing
    int steps[own], first[own];               // first: the first step that sees a position

    __device__ __forceinline__ Pairs(const Seen& seen, const Sizes<Real>& sizes, int t0, int s0) {
        const int ty = threadIdx.x / side, tx = threadIdx.x % side;
#pragma unroll
        for (int k = 0; k < own; ++k) {
            const int t = t0 + (of_source ? tx : ty) + side * k;
            steps[k] = t < sizes.T ? t : none;
            first[k] = seen.first(s0 + (of_source ? ty : tx) + side * k);
        }
    }
    __device__ bool seen(int i, int j) const { return steps[of_source ? j : i] >= first[of_source ? i : j]; }

    // The weights, and if `gradients` those of these weights.
    template <typename Storage>
    __device__ __forceinline__ void weights(
        Real (&alpha)[own][own], Real (&dalpha)[own][own], const Storage* query, const Storage* keys,
        const Storage* values, const Storage* dcontext, const Storage* dweights, const Real* statistics,
        const Scores<masked, Storage, Real>& scored, const Sizes<Real>& sizes, int b, int t0, int s0, int end,
        bool gradients, Real* shared) const {
        const int of_steps = min(tile, sizes.T - t0), of_positions = min(tile, end - s0);
        const int place = s0 + (of_source ? threadIdx.x / side : threadIdx.x % side);
        const auto products = [&](Real (&sums)[own][own], const Storage* left, const Storage* right, int size) {
            const Rows<const Storage, Real> x(left, sizes.B, b, size), y(right, sizes.B, b, size);
            if constexpr (of_source) {
                contract(sums, y, s0, of_positions, x, t0, of_steps, shared);
            } else {
                contract(sums, x, t0, of_steps, y, s0, of_positions, shared);
            }
        };
        products(alpha, query, keys, sizes.A);
        if (gradients && dcontext) products(dalpha, dcontext, values, sizes.E);
#pragma unroll
        for (int k = 0; k < own; ++k) {
            const Softmax<Real> softmax(statistics, sizes, max(steps[k], 0), b);
#pragma unroll
            for (int l = 0; l < own; ++l) {
                const int i = of_source ? l : k, j = of_source ? k : l;
                alpha[i][j] =
                    seen(i, j) ? softmax.weight(scored(alpha[i][j], steps[k], place + side * l)) : Real(0);
            }
        }
        if (!gradients) return;
        if (dweights) {
            const Storage* const given = dweights + b * sizes.from_b + s0;
#pragma unroll
            for (int k = 0; k < own; ++k) {
                const Storage* const of_step = given + max(steps[k], 0) * sizes.from_t;
#pragma unroll
                for (int l = 0; l < own; ++l) {
                    const int i = of_source ? l : k, j = of_source ? k : l;
                    const int s = (of_source ? threadIdx.x / side : threadIdx.x % side) + side * l;
                    if (alpha[i][j] != 0) dalpha[i][j] += Real(of_step[s]);
                }
            }
        }
#pragma unroll
        for (int i = 0; i < own; ++i) {
#pragma unroll
            for (int j = 0; j < own; ++j) {
                if (alpha[i][j] == 0) dalpha[i][j] = 0;  // whatever dweights is there
            }
        }
    }
    // Makes the gradients of the scores of the weights, from those of the weights and their mean (T, B).
    __device__ __forceinline__ void scores(
        Real (&alpha)[own][own], const Real (&dalpha)[own][own], const Real* means, const Sizes<Real>& sizes,
        int b) const {
#pragma unroll
        for (int k = 0; k < own; ++k) {
            const Real mean = means[(long long)max(steps[k], 0) * sizes.B + b];
#pragma unroll
            for (int l = 0; l < own; ++l) {
                const int i = of_source ? l : k, j = of_source ? k : l;
                const Real gradient = sizes.scale * alpha[i][j] * (dalpha[i][j] - mean);
                alpha[i][j] = seen(i, j) ? gradient : Real(0);
            }
        }
    }
};

// The mean (T, B) of the gradients of a step's weights under its weights. It is the sum of the gradients themselves and
// not dcontext . context, so that it cancels where one weight is nearly 1.
template <typename Storage, typename Real, bool masked = false>
__global__ void __launch_bounds__(threads, 1) tile_means(
    const Storage* query, const Storage* keys, const Storage* values, const int* lengths, const bool* excluded,
    const Storage* mask, const Storage* dcontext, const Storage* dweights, const Real* statistics, Real* means,
    Sizes<Real> sizes) {
    DYNAMIC_SHARED(Real, shared);
    const Share share(sizes.T, 1);
    const int b = share.b, t0 = share.first, count = min(tile, sizes.T - t0);
    const Seen seen(sizes, lengths, excluded, b);
    const Scores<masked, Storage, Real> scored(mask, sizes, b);
    Real mean[own] = {};
#pragma unroll 1
    for (int s0 = 0, end = seen.end(t0 + count); s0 < end; s0 += tile) {
        Real alpha[own][own] = {}, dalpha[own][own] = {};
        Pairs<false, masked, Real>(seen, sizes, t0, s0).weights(
            alpha, dalpha, query, keys, values, dcontext, dweights, statistics, scored, sizes, b, t0, s0, end, true,
            shared);
#pragma unroll
        for (int i = 0; i < own; ++i) {
#pragma unroll
            for (int j = 0; j < own; ++j) mean[i] += alpha[i][j] * dalpha[i][j];
        }
    }
#pragma unroll
    for (int i = 0; i < own; ++i) {
        const int row = threadIdx.x / side + side * i;
        const Real sum = sum_of_row(mean[i]);
        if (row < count && threadIdx.x % side == 0) means[(long long)(t0 + row) * sizes.B + b] = sum;
    }
}

// The gradient of the query, from the means of tile_means.
template <typename Storage, typename Real, int parts, bool masked = false>
__global__ void __launch_bounds__(threads, 1) tile_query_gradient(
    const Storage* query, const Storage* keys, const Storage* values, const int* lengths, const bool* excluded,
    const Storage* mask, const Storage* dcontext, const Storage* dweights, const Real* statistics, const Real* means,
    Storage* dquery, Sizes<Real> sizes) {
    DYNAMIC_SHARED(Real, shared);
    const Share share(sizes.T, (sizes.A - 1) / (parts * tile) + 1);
    const int b = share.b, t0 = share.first, count = min(tile, sizes.T - t0), c = share.part * parts * tile;
    const Seen seen(sizes, lengths, excluded, b);
    const Scores<masked, Storage, Real> scored(mask, sizes, b);
    const Rows<const Storage, Real> k(keys, sizes.B, b, sizes.A);
    Sums<parts, Real> sums;
#pragma unroll 1
    for (int s0 = 0, end = seen.end(t0 + count); s0 < end; s0 += tile) {
        Real alpha[own][own] = {}, dalpha[own][own] = {};
        const Pairs<false, masked, Real> pairs(seen, sizes, t0, s0);
        pairs.weights(
            alpha, dalpha, query, keys, values, dcontext, dweights, statistics, scored, sizes, b, t0, s0, end, true,
            shared);
        pairs.scores(alpha, dalpha, means, sizes, b);
        sums.add(alpha, k, s0, min(tile, end - s0), c, shared);
    }
    sums.store(Rows<Storage, Real>(dquery, sizes.B, b, sizes.A), t0, count, c);
}

// The gradients of values and keys. A block computes 64 positions, and `parts` times 64 columns of one of the two.
template <typename Storage, typename Real, int parts, bool masked = false>
__global__ void __launch_bounds__(threads, 1) tile_source_gradients(
    const Storage* query, const Storage* keys, const Storage* values, const int* lengths, const bool* excluded,
    const Storage* mask, const Storage* dcontext, const Storage* dweights, const Real* statistics, const Real* means,
    Storage* dkeys, Storage* dvalues, Sizes<Real> sizes) {
    DYNAMIC_SHARED(Real, shared);
    const int of_values = sizes.E ? (sizes.E - 1) / (parts * tile) + 1 : 0;
    const int of_keys = (sizes.A - 1) / (parts * tile) + 1;
    const Share share(sizes.S, of_values + of_keys);
    const bool keys_turn = share.part >= of_values;
    const int b = share.b, s0 = share.first, c = (share.part - (keys_turn ? of_values : 0)) * parts * tile;
    const Seen seen(sizes, lengths, excluded, b);
    const Scores<masked, Storage, Real> scored(mask, sizes, b);
    const Rows<const Storage, Real> multiplied(keys_turn ? query : dcontext, sizes.B, b, keys_turn ? sizes.A : sizes.E);
    Sums<parts, Real> sums;
    const int end = seen.length;
    int begin = seen.causal ? max(0, s0 - seen.shift) / tile * tile : 0;
    if (s0 >= end || !(keys_turn || dcontext)) begin = sizes.T;
#pragma unroll 1
    for (int t0 = begin; t0 < sizes.T; t0 += tile) {
        Real alpha[own][own] = {}, dalpha[own][own] = {};
        const int steps = min(tile, sizes.T - t0);
        const Pairs<true, masked, Real> pairs(seen, sizes, t0, s0);
        pairs.weights(
            alpha, dalpha, query, keys, values, dcontext, dweights, statistics, scored, sizes, b, t0, s0, end,
            keys_turn, shared);
        if (keys_turn) pairs.scores(alpha, dalpha, means, sizes, b);
        sums.add(alpha, multiplied, t0, steps, c, shared);
    }
    // Whatever the queries hold, what nobody sees has no gradient.
#pragma unroll
    for (int i = 0; i < own; ++i) {
        const int s = s0 + threadIdx.x / side + side * i;
        if (seen.first(s) != seen.nobody) continue;
#pragma unroll
        for (int p = 0; p < sums.packets; ++p) sums.of[i][p] = Packet<Real>{};
    }
    const int count = min(tile, sizes.S - s0);
    sums.store(
        Rows<Storage, Real>(keys_turn ? dkeys : dvalues, sizes.B, b, keys_turn ? sizes.A : sizes.E), s0, count, c);
}
