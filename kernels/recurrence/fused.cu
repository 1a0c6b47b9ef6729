// Products and gates in one kernel: the schedules that need no cuBLAS.
//
// Block (x, y, z) owns `units` hidden units of direction z with all of their gates, and `tiles` tiles of `rows` rows of
// the batch. Its thread e owns row e / units and unit e % units of each tile: after its step's product it computes the
// rest of the step, and its state never leaves its registers. The schedules differ in how a step's operand, h_{t-1} or
// the gate gradients of step t + 1, gets to every block that multiplies it:
//
//   launch   one launch for each product: the end of a launch is the barrier. Each launch reads the weights again, from
//            the L2 cache. begin_forward writes the first operand before the first launch.
//   block    one block has all hidden units, so the operand stays in shared memory. Weights stay in shared memory, and
//            the first 32 * chunks columns of the first rows in registers, see Held.
//   grid     the blocks of one direction and the same rows exchange it through global memory, by publish() and
//            read_published(), with a barrier of their own for each tile. Weights stay in shared memory. While one tile
//            waits at its barrier, the product of the other is computed.
//
// A pass has the cell's phases of all steps; the backward pass has one more, which ends the first step. A launch computes
// the phases `first` ... `last` - 1, which are all of them unless the exchange is launch.
//
// A block has at most `threads` threads; with more, a thread would have too few registers for its share of a product.
#include "recurrence/product.cuh"
#include "recurrence/steps.cuh"

enum class Exchange { launch, block, grid };

// The part of the work that a block does, and its dynamic shared memory: weights and operand, of type Storage, and sums,
// of type Real.
template <typename Storage, typename Real, Exchange exchange, int tiles, int chunks>
struct Share {
    static constexpr bool resident = exchange != Exchange::launch;
    static_assert(exchange != Exchange::block || tiles == 1, "the operand of one tile is in shared memory");
    static_assert(exchange == Exchange::block || chunks == 0, "only under block a warp has the same rows at every step");

    int B, d, j0, units, rows, chunk;
    int row, unit;  // of this thread
    Storage *weights, *operand;
    Real* sums;

    // `weight_rows` of K columns are resident, `chunk` columns of each operand row in shared memory at once.
    __device__ Share(Storage* memory, int B, int H, int most_units, int rows, int chunk, int weight_rows, int K)
        : B(B), d(blockIdx.z), j0(blockIdx.x * most_units), units(min(most_units, H - int(blockIdx.x) * most_units)),
          rows(rows), chunk(chunk), row(threadIdx.x / units), unit(threadIdx.x % units), weights(memory),
          operand(memory + (resident ? weight_rows * K - shortened(weight_rows) * held(K) : 0)),
          sums(reinterpret_cast<Real*>(operand + rows * chunk)) {
        if constexpr (sizeof(Storage) < sizeof(Real)) {  // the next aligned address
            sums = reinterpret_cast<Real*>((reinterpret_cast<size_t>(sums) + sizeof(Real) - 1) / sizeof(Real) * sizeof(Real));
        }
    }

    // The first columns of the first rows are in registers: held(K) columns of shortened(N) rows.
    __device__ static int shortened(int weight_rows) {
        return chunks ? min(weight_rows, int(blockDim.x) / 32 * tile_rows) : 0;
    }
    __device__ static int held(int K) { return min(K, 32 * chunks); }

    // Copies N rows of K columns to shared memory, except the part that is in registers.
    template <bool in_shared>
    __device__ void load(WeightRows<Storage, in_shared> from, int N, int K) const {
        const auto to = resident_rows(N, N, K);
        for (int n = threadIdx.x / 32; n < N; n += blockDim.x / 32) {
            const int skipped = n < to.shortened ? to.held : 0;
            for (int k = skipped + threadIdx.x % 32; k < K; k += 32) weights[to.offset(n) + k] = from[from.offset(n) + k];
        }
    }

    // N rows, one after another in shared memory.
    __device__ WeightRows<Storage, true> resident_rows(int units, int N, int K) const {
        return {weights, units, units, K, shortened(N), held(K)};
    }

    __device__ int first_row(int tile) const { return (int(blockIdx.y) * tiles + tile) * rows; }
    __device__ int rows_of(int tile) const { return max(0, min(rows, B - first_row(tile))); }
    __device__ bool owns(int tile) const { return row < rows_of(tile); }
    __device__ int group(int tile) const { return (blockIdx.z * gridDim.y + blockIdx.y) * tiles + tile; }

    // Copies columns [begin, end) of the tile's rows to shared memory. The first row of `source` is the tile's first.
    __device__ void stage(const Storage* source, long long stride, int tile, int begin, int end) const {
        for (int r = threadIdx.x / 32; r < rows_of(tile); r += blockDim.x / 32) {
            for (int k = begin + threadIdx.x % 32; k < end; k += 32) {
                const Storage* from = source + r * stride + k;
                operand[r * chunk + k - begin] = exchange == Exchange::grid ? read_published(from) : *from;
            }
        }
    }

    // sums = operand times the rows of `w`, for N rows of length K. `source` is the operand in global memory; under
    // Exchange::block it is in shared memory already, K columns of each row at `in_shared`. All threads call it, and
    // afterwards all may read the sums.
    template <int columns, class Rows>
    __device__ void multiply_tile(
        const Storage* source, long long stride, int tile, int K, Rows w, const Held<Real, chunks>& held_rows, int N,
        const Storage* in_shared, int shared_stride) const {
        if constexpr (exchange == Exchange::block) {
            multiply<columns>(in_shared, shared_stride, K, rows_of(tile), w, held_rows, N, sums, false);
            __syncthreads();
            return;
        }
        for (int begin = 0; begin < K; begin += chunk) {
            const int end = min(K, begin + chunk);
            stage(source, stride, tile, begin, end);
            __syncthreads();
            Rows part = w;
            part.first += begin;
            multiply<columns>(operand, chunk, end - begin, rows_of(tile), part, held_rows, N, sums, begin > 0);
            __syncthreads();
        }
    }
};

// Writes `value` for the blocks that read `address`, in this launch under Exchange::grid, else in a later one.
template <Exchange exchange, typename Storage>
__device__ __forceinline__ void hand_over(Storage* address, Storage value) {
    if (exchange == Exchange::grid) {
        publish(address, value);
    } else {
        *address = value;
    }
}

// w (D, G, H, H) is w_hh. Shared memory, in numbers: units * G * H of weights except those in registers (none under
// Exchange::launch), rows * chunk of operands (under Exchange::block rows * phases * H), rows * units * G of sums.
// `arrived` (gridDim.z * gridDim.y * tiles) is zero, and used under Exchange::grid only.
template <class Cell, typename Storage, int threads, Exchange exchange, int tiles, int columns, int chunks>
__global__ void __launch_bounds__(threads, 1) forward(
    const Storage* w, const Storage* xw, const Storage* b_ih, const Storage* b_hh, const int* lengths, const bool* resets,
    const Storage* mask, typename Cell::Real* h, typename Cell::Real* c, Storage* y, Storage* operands, Storage* saved,
    unsigned* arrived, int T, int B, int H, int slots, int first, int last, int units, int rows, int chunk, Cell cell) {
    using Real = typename Cell::Real;
    constexpr int G = Cell::gates, phases = Cell::phases;
    using Part = Share<Storage, Real, exchange, tiles, chunks>;
    static_assert(chunks == 0 || phases == 1, "registers hold the rows of one phase");
    DYNAMIC_SHARED(Storage, memory);
    const int D = gridDim.z;
    const Forward<Cell, Storage> layer{
        cell, {T, B, slots, lengths, resets}, H, D, xw, b_ih, b_hh, mask, y, operands, saved};
    const Part share(memory, B, H, units, rows, exchange == Exchange::block ? phases * H : chunk, G * units, H);
    const int d = share.d, j = share.j0 + share.unit, own = share.units;
    w += (long long)d * G * H * H;

    const WeightRows<Storage, false> global{w + (long long)share.j0 * H, own, H, H};
    const Held<Real, chunks> held(global, G * own, H);
    if constexpr (Part::resident) share.load(global, G * own, H);
    // Weight rows from gate g on: those of a block are together in shared memory, and apart in w_hh.
    const auto rows_from = [&](int g) {
        if constexpr (Part::resident) {
            auto rows = share.resident_rows(own, G * own, H);
            rows.first += g * own * H;
            return rows;
        } else {
            auto rows = global;
            rows.first += (long long)g * H * H;
            return rows;
        }
    };
    // The operand of a phase of position s, from the thread that owns the unit.
    const auto enter = [&](int phase, int s, int b, Real value) {
        const Storage rounded(value);
        if (exchange == Exchange::block) share.operand[share.row * share.chunk + phase * H + j] = rounded;
        if (exchange != Exchange::block || slots == T) {
            hand_over<exchange>(operands + layer.operand_at(phase, d, s, b, j), rounded);
        }
    };

    Real state[tiles] = {}, cell_state[tiles] = {};
    GridBarrier barrier[tiles];
#pragma unroll
    for (int q = 0; q < tiles; ++q) {
        if (exchange == Exchange::grid) barrier[q] = GridBarrier(arrived + share.group(q), gridDim.x);
        if (share.owns(q)) {
            const int b = share.first_row(q) + share.row;
            const long long i = ((long long)d * B + b) * H + j;
            state[q] = h[i];
            if (Cell::has_c) cell_state[q] = c[i];
            if (exchange != Exchange::launch) enter(0, 0, b, layer.entering(d, 0, b, j, state[q]));
        }
        if (exchange == Exchange::grid && share.rows_of(q)) barrier[q].arrive();
    }
    __syncthreads();

    for (int n = first; n < last; ++n) {
        const int s = n / phases, phase = n % phases;
        const int g = Cell::first_gate(phase), N = (Cell::first_gate(phase + 1) - g) * own;
#pragma unroll
        for (int q = 0; q < tiles; ++q) {
            if (share.rows_of(q) == 0) continue;
            const int b = share.first_row(q) + share.row;
            if (exchange == Exchange::grid) barrier[q].wait();
            share.template multiply_tile<columns>(
                operands + layer.operand_at(phase, d, s, share.first_row(q), 0), H, q, H, rows_from(g), held, N,
                share.operand + phase * H, share.chunk);
            if (share.owns(q)) {
                const Real* const products = share.sums + share.row * N + share.unit;
                if (phase == phases - 1) {
                    layer.finish(d, s, b, j, products, own, state[q], cell_state[q]);
                    if (s + 1 < T) enter(0, s + 1, b, layer.entering(d, s + 1, b, j, state[q]));
                } else if constexpr (phases > 1) {
                    enter(1, s, b, layer.operand(d, s, b, j, products, own, state[q]));
                }
            }
            if (exchange == Exchange::grid) {
                barrier[q].arrive();
            } else {
                __syncthreads();
            }
        }
    }

#pragma unroll
    for (int q = 0; q < tiles; ++q) {
        if (!share.owns(q)) continue;
        const long long i = ((long long)d * B + share.first_row(q) + share.row) * H + j;
        h[i] = state[q];
        if (Cell::has_c) c[i] = cell_state[q];
    }
}

// w (D, H, G, H) is w_hh transposed. Shared memory as in forward, but units * G * H of weights, rows * chunk of operands
// (under Exchange::block rows * G * H), rows * units of sums. dh and dc (D, B, H) are the gradients of the state, updated
// in place; direct and through (D, B, H) carry their parts from launch to launch and are used under Exchange::launch only.
template <class Cell, typename Storage, int threads, Exchange exchange, int tiles, int columns, int chunks>
__global__ void __launch_bounds__(threads, 1) backward(
    const Storage* w, const Storage* saved, const Storage* operands, const int* lengths, const bool* resets,
    const Storage* mask, const Storage* dy, typename Cell::Real* dh, typename Cell::Real* dc, typename Cell::Real* direct,
    typename Cell::Real* through, Storage* dx, Storage* dp, unsigned* arrived, int T, int B, int H, int first, int last,
    int units, int rows, int chunk, Cell cell) {
    using Real = typename Cell::Real;
    constexpr int G = Cell::gates, phases = Cell::phases;
    using Part = Share<Storage, Real, exchange, tiles, chunks>;
    static_assert(chunks == 0 || phases == 1, "registers hold the rows of one phase");
    DYNAMIC_SHARED(Storage, memory);
    const int D = gridDim.z;
    const Backward<Cell, Storage> layer{cell, {T, B, T, lengths, resets}, H, D, saved, operands, mask, dy, dx, dp};
    const Part share(memory, B, H, units, rows, exchange == Exchange::block ? G * H : chunk, units, G * H);
    const int d = share.d, j = share.j0 + share.unit, own = share.units, length = G * H;
    w += ((long long)d * H + share.j0) * length;

    const WeightRows<Storage, false> global{w, own, own, length};
    const Held<Real, chunks> held(global, own, length);
    if constexpr (Part::resident) share.load(global, own, length);
    // The columns of the weights from gate g on.
    const auto columns_from = [&](int g) {
        if constexpr (Part::resident) {
            auto rows = share.resident_rows(own, own, length);
            rows.first += g * H;
            return rows;
        } else {
            auto rows = global;
            rows.first += g * H;
            return rows;
        }
    };

    Carried<Real> carried[tiles] = {};
    GridBarrier barrier[tiles];
#pragma unroll
    for (int q = 0; q < tiles; ++q) {
        if (exchange == Exchange::grid) barrier[q] = GridBarrier(arrived + share.group(q), gridDim.x);
        if (!share.owns(q)) continue;
        const long long i = ((long long)d * B + share.first_row(q) + share.row) * H + j;
        carried[q].dh = dh[i];
        if (Cell::has_c) carried[q].dc = dc[i];
        if (exchange == Exchange::launch && first > 0) {
            carried[q].direct = direct[i];
            if (phases > 1) carried[q].through = through[i];
        }
    }
    __syncthreads();

    for (int n = first; n < last; ++n) {
        // Ends position s + 1 with the transpose of phase 0, or computes that of a later phase of position s.
        const int s = T - 1 - n / phases, phase = (phases - n % phases) % phases;
        const int t_operand = layer.clock.time(d, phase ? s : s + 1), g = Cell::first_gate(phase);
        const int K = (Cell::first_gate(phase + 1) - g) * H;
#pragma unroll
        for (int q = 0; q < tiles; ++q) {
            if (share.rows_of(q) == 0) continue;
            const int b = share.first_row(q) + share.row;
            if (n > 0) {
                if (exchange == Exchange::grid) barrier[q].wait();
                share.template multiply_tile<columns>(
                    dp + layer.gate_at(d, t_operand, share.first_row(q), g, 0), length, q, K, columns_from(g), held, own,
                    share.operand + g * H, share.chunk);
            }
            if (share.owns(q)) {
                const auto enter = [&](int gate, Real da) {
                    const Storage rounded(da);
                    if (exchange == Exchange::block) share.operand[share.row * share.chunk + gate * H + j] = rounded;
                    hand_over<exchange>(dp + layer.gate_at(d, layer.clock.time(d, s), b, gate, j), rounded);
                };
                const Real* const product = share.sums + share.row * own + share.unit;
                if (phase == 0) {
                    if (n > 0) layer.finish(d, s + 1, b, j, *product, carried[q]);
                    if (s >= 0) layer.begin(d, s, b, j, carried[q], enter);
                } else if constexpr (phases > 1) {
                    layer.operand_backward(d, s, b, j, *product, carried[q], enter);
                }
            }
            if (exchange == Exchange::grid) {
                barrier[q].arrive();
            } else {
                __syncthreads();
            }
        }
    }

#pragma unroll
    for (int q = 0; q < tiles; ++q) {
        if (!share.owns(q)) continue;
        const long long i = ((long long)d * B + share.first_row(q) + share.row) * H + j;
        dh[i] = carried[q].dh;
        if (Cell::has_c) dc[i] = carried[q].dc;
        if (exchange == Exchange::launch) {
            direct[i] = carried[q].direct;
            if (phases > 1) through[i] = carried[q].through;
        }
    }
}
