// The recurrences of cells with sums over units, in all schedules: see rows.cuh.
//
//   stepwise     cuBLAS computes the products, and a kernel a phase of a step of all rows: forward_phase, backward_phase.
//   step-fused   as that, with `multiply` in cuBLAS' place.
//   block        one launch, `forward_rows` or `backward_rows`, with one block for its rows of the batch.
//   persistent   the same, with all blocks of a direction and the same rows: a block has a part of the rows of the weights,
//                and some rows of the batch to end their steps. Each product takes two barriers: until all blocks have their
//                part of the products, and until all have the next operand. Without a norm a block ends the steps of the
//                units whose products it has, and there is one barrier.
#include "recurrence/rows.cuh"
#include "recurrence/share.cuh"

static_assert(threads == row_threads, "a kernel's block does both");

// Row n of those that the blocks of this launch have at once.
template <typename Real>
__device__ inline Row<Real> row_of(Real* shared, int B, int H) {
    const int warps = warps_of_row(H), b = blockIdx.x * Row<Real>::at_once(warps) + Row<Real>::index(warps);
    return {shared, warps, int(blockIdx.z), b, b < B};
}

// The operand of the first step.
template <class Cell, typename Storage>
__global__ void __launch_bounds__(row_threads, 1) begin_rows(
    const int* lengths, const Marks* marks, const Storage* mask, typename Cell::Real* h, Storage* entering, int T, int B,
    int H, int P, int slots, Cell cell) {
    __shared__ typename Cell::Real shared[Row<typename Cell::Real>::room];
    const RowForward<Cell, Storage> forward{
        cell, {T, B, slots, lengths, marks}, H, P, int(gridDim.z), nullptr, nullptr, nullptr, nullptr, nullptr, mask, h,
        nullptr, nullptr, entering, nullptr, nullptr, nullptr, nullptr};
    forward.begin(row_of(shared, B, H), 0);
}

template <class Cell, typename Storage, int phase>
__global__ void __launch_bounds__(row_threads, 1) forward_phase(
    const Storage* products, const Storage* xw, const Storage* b_ih, const Storage* b_hh, const Storage* norm,
    const Storage* norm_c, const int* lengths, const Marks* marks, const Storage* mask, typename Cell::Real* h,
    typename Cell::Real* c, Storage* y, Storage* entering, Storage* inner, Storage* saved, Storage* normal,
    typename Cell::Real* inverses, int T, int B, int H, int P, int slots, int s, Cell cell) {
    __shared__ typename Cell::Real shared[Row<typename Cell::Real>::room];
    const RowForward<Cell, Storage> forward{
        cell, {T, B, slots, lengths, marks}, H, P, int(gridDim.z), xw, b_ih, b_hh, norm, norm_c, mask, h, c, y, entering, inner,
        saved, normal, inverses};
    const auto row = row_of(shared, B, H);
    forward.template step<phase>(row, s, Published(products, row, B, forward.template products<phase>(), H, true));
}

template <class Cell, typename Storage, int phase>
__global__ void __launch_bounds__(row_threads, 1) backward_phase(
    const Storage* products, const Storage* saved, const Storage* entering, const Storage* normal,
    const typename Cell::Real* inverses, const Storage* norm, const Storage* norm_c, const int* lengths, const Marks* marks,
    const Storage* mask, const Storage* dy, typename Cell::Real* dh, typename Cell::Real* dc, typename Cell::Real* direct,
    typename Cell::Real* through, Storage* dx, Storage* dp, Storage* d_hidden, Storage* dh_out, Storage* d_state, int T, int B,
    int H, int P, int s, Cell cell) {
    __shared__ typename Cell::Real shared[Row<typename Cell::Real>::room];
    const RowBackward<Cell, Storage> backward{
        cell, {T, B, T, lengths, marks}, H, P, int(gridDim.z), saved, entering, normal, norm, norm_c, mask, dy, inverses, dh, dc,
        direct, through, dx, dp, d_hidden, dh_out, d_state};
    const auto row = row_of(shared, B, H);
    backward.template step<phase>(row, s, Published(products, row, B, backward.template products<phase>(), H, true));
}

// values (D, R, G, H) of W_ih x become their layer norms times the weights. `normal`, the norms, and `inverses`
// (D, R, groups) are null where nobody asks for the gradient.
template <class Cell, typename Storage>
__global__ void __launch_bounds__(row_threads, 1) normalise(
    Storage* values, const Storage* norm, Storage* normal, typename Cell::Real* inverses, int R, int H, Cell) {
    using Real = typename Cell::Real;
    using Norms = NormsOfGates<Cell, 0, Cell::gates>;
    __shared__ Real shared[Row<Real>::room];
    const Row<Real> row = row_of(shared, R, H);
    const long long r = (long long)row.d * R + row.b, of_row = r * Cell::gates * H, of_weights = (long long)row.d * Cell::gates * H;
    Real mean[Norms::count], inverse[Norms::count];
    moments<Norms>(row, H, row.exists, [&](int g, int j) { return Real(values[of_row + (long long)g * H + j]); }, mean, inverse);
    if (!row.exists) return;
    if (inverses && row.thread() == 0) {
#pragma unroll
        for (int k = 0; k < Norms::count; ++k) inverses[r * Norms::count + k] = inverse[k];
    }
    for (int j = row.thread(); j < H; j += row.threads()) {
#pragma unroll
        for (int g = 0; g < Cell::gates; ++g) {
            const long long at = (long long)g * H + j;
            const Real value = (Real(values[of_row + at]) - mean[Norms::of(g)]) * inverse[Norms::of(g)];
            if (normal) normal[of_row + at] = Storage(value);
            values[of_row + at] = Storage(value * Real(norm[of_weights + at]));
        }
    }
}

// From the gradients d of what `normalise` made to those of W_ih x.
template <class Cell, typename Storage>
__global__ void __launch_bounds__(row_threads, 1) normalise_backward(
    const Storage* d, const Storage* norm, const Storage* normal, const typename Cell::Real* inverses, Storage* dvalues, int R,
    int H, Cell) {
    using Real = typename Cell::Real;
    using Norms = NormsOfGates<Cell, 0, Cell::gates>;
    __shared__ Real shared[Row<Real>::room];
    const Row<Real> row = row_of(shared, R, H);
    const long long r = (long long)row.d * R + row.b, of_row = r * Cell::gates * H, of_weights = (long long)row.d * Cell::gates * H;
    const auto terms = [&](int g, int j, Real& gradient, Real& value) {
        const long long at = (long long)g * H + j;
        gradient = Real(d[of_row + at]) * Real(norm[of_weights + at]);
        value = Real(normal[of_row + at]);
    };
    Real mean[Norms::count], along[Norms::count];
    means_backward<Norms>(row, H, row.exists, terms, mean, along);
    if (!row.exists) return;
    for (int j = row.thread(); j < H; j += row.threads()) {
#pragma unroll
        for (int g = 0; g < Cell::gates; ++g) {
            const int k = Norms::of(g);
            Real gradient, value;
            terms(g, j, gradient, value);
            dvalues[of_row + (long long)g * H + j] =
                Storage(inverses[r * Norms::count + k] * (gradient - mean[k] - value * along[k]));
        }
    }
}

// The part of a product that a block computes: of N rows of weights some; or of N units, with their rows of all gates.
struct PartOfProduct {
    int N, gates, first, own;

    __device__ PartOfProduct(int N, int gates = 1)
        : N(N), gates(gates), first(blockIdx.x * each()), own(max(0, min(each(), N - first))) {}
    // Of a block, at most.
    __device__ int each() const { return (N + int(gridDim.x) - 1) / int(gridDim.x); }
    __device__ int rows() const { return own * gates; }
    __device__ int most_rows() const { return each() * gates; }
};

// The blocks' parts of products with weights in global memory or in their own shared memory.
template <typename Storage, typename Real, Exchange exchange, int columns, int tile_rows>
struct Multiplier {
    using Shape = Tile<Storage, tile_rows, columns>;
    using Part = Share<Storage, Real, exchange, Shape, 0>;
    Part share;

    // `most` rows of weights of a product, at most.
    __device__ Multiplier(Storage* memory, int B, int rows, int chunk, Parts parts, int at_once, int most)
        : share(memory, B, 1, 1, rows, chunk, parts, at_once, Row<Real>::room, most, 0) {}

    // From (D, N, K), those of the block.
    __device__ WeightRows<Storage> in_memory(const Storage* w, const PartOfProduct& part, int K) const {
        w += ((long long)share.d * part.N * part.gates + part.first) * K;
        return {w, K, max(part.own, 1), part.N, begins_packet(w) && K % Part::size == 0};
    }
    __device__ static int size(const PartOfProduct& part, int K) {
        return Shape::tiles(part.rows()) * Shape::widths(K) * Shape::weights;
    }

    // Of the block's rows of the operand, `stride` apart from `operand` on. All threads call it, and may read the sums then.
    template <class Rows>
    __device__ void sums(
        const Storage* operand, long long stride, int K, const Rows& weights, const PartOfProduct& part) const {
        if (part.own == 0) return;
        const Portion<Shape> portion(part.rows(), threads, share.parts);
        const typename Part::Registers none({}, 0, 0, portion, 0);
        share.multiply(operand, stride, K, weights, none, part.rows(), portion, nullptr);
        __syncthreads();
    }
    // Stores products (D, B, N), which all may read after a barrier of the blocks.
    __device__ void publish_sums(const PartOfProduct& part, Storage* products) const {
        for (int x = threadIdx.x; x < share.rows_of_batch() * part.own; x += threads) {
            Real total[1];
            const int r = x / part.own, n = x % part.own;
            share.products(r, n, part.own, total);
            const long long row = (long long)share.d * share.B + share.first_row() + r;
            publish(products + row * part.N + part.first + n, Storage(total[0]));
        }
    }
};

// products (D, B, N) = operand times weights (D, N, K), the operand at position s of an array (D, slots, B, stride) from
// number `column` of each row on.
template <typename Storage, typename Real, int columns>
__global__ void __launch_bounds__(threads, 1) multiply(
    const Storage* w, const Storage* operand, Storage* products, int T, int B, int slots, int N, int K, int stride, int column,
    int s, int rows, int chunk, int parts, int reciprocal, int at_once) {
    DYNAMIC_SHARED(Storage, memory);
    const PartOfProduct part(N);
    const Multiplier<Storage, Real, Exchange::launch, columns, 8> multiply_part(
        memory, B, rows, chunk, {parts, reciprocal}, at_once, part.most_rows());
    const auto& share = multiply_part.share;
    const Clock clock{T, B, slots, nullptr, nullptr};
    const long long first = ((long long)share.d * slots + clock.slot(share.d, s)) * B + share.first_row();
    multiply_part.sums(operand + first * stride + column, stride, K, multiply_part.in_memory(w, part, K), part);
    multiply_part.publish_sums(part, products);
}

// What the product of a phase in a pass is of: (D, N * gates, K) weights.
struct Factor {
    int N, gates, K;
};

// A pass in one launch: the products of one phase or two, whose weights the blocks keep, and between them the steps.
template <typename Storage, typename Real, int columns, int tile_rows, bool by_units>
struct Pass {
    using Multiply = Multiplier<Storage, Real, Exchange::grid, columns, tile_rows>;
    using Weights = typename Multiply::Part::Weights;

    // The products of phase 0 and of the later one.
    PartOfProduct of_first, of_later;
    int K_first, K_later;
    Multiply multiply;
    GridBarrier barrier;
    bool met;

    // later.N is zero if there is one phase.
    __device__ Pass(
        Storage* memory, const Storage* w, const Factor& of, const Storage* w_later, const Factor& later, unsigned* arrived, int B,
        int rows, int chunk, Parts parts, int at_once)
        : of_first(of.N, of.gates), of_later(later.N, later.gates), K_first(of.K), K_later(later.K),
          multiply(memory, B, rows, chunk, parts, at_once, max(of_first.most_rows(), of_later.most_rows())),
          barrier(arrived ? multiply.share.counter(arrived) : nullptr, gridDim.x), met(true) {
        weights(0).load(multiply.in_memory(w, of_first, K_first), of_first.rows(), K_first);
        if (later.N) weights(1).load(multiply.in_memory(w_later, of_later, K_later), of_later.rows(), K_later);
    }
    __device__ PartOfProduct part(int phase) const { return phase == 0 ? of_first : of_later; }
    __device__ Weights weights(int phase) const {
        const int before = phase == 0 ? 0 : Multiply::size(of_first, K_first);
        return {multiply.share.weights + before, Multiply::Shape::widths(phase == 0 ? K_first : K_later), 1, 0, 0, multiply.share.parts};
    }

    // Of all blocks that share rows.
    __device__ void meet() {
        if (gridDim.x == 1) {
            __syncthreads();
        } else if (!barrier.sync()) {
            met = false;
        }
    }

    // Calls step(row) for what this block ends the steps of, all threads at the same time: for units of its own, or rows.
    template <class Step>
    __device__ void for_each(const PartOfProduct& units, int H, const Step& step) const {
        const auto& share = multiply.share;
        const int R = share.rows_of_batch();
        if constexpr (by_units) {
            for (int x = threadIdx.x; x < R * units.own; x += threads) {
                const int r = x / units.own;
                step(Row<Real>{share.biases, 1, share.d, share.first_row() + r, true, units.first + x % units.own});
            }
        } else {
            const int warps = warps_of_row(H), at_once = Row<Real>::at_once(warps);
            for (int first = blockIdx.x * at_once; first < R; first += gridDim.x * at_once) {
                const int r = first + Row<Real>::index(warps);
                step(Row<Real>{share.biases, warps, share.d, share.first_row() + r, r < R});
            }
        }
    }

    // The product of a phase, unless the operand is null, and then with it step(row, product). `count` are the numbers of a row
    // of the product.
    template <class Step>
    __device__ void phase(
        int phase, const Storage* operand, long long stride, Storage* products, int count, int H, const Step& step) {
        if (operand) multiply.sums(operand, stride, phase == 0 ? K_first : K_later, weights(phase), part(phase));
        if constexpr (by_units) {
            const PartOfProduct own = part(phase);
            for_each(own, H, [&](const Row<Real>& row) {
                step(row, [&](int gate, int j) {
                    Real total[1] = {__int_as_float(0x7fc00000)};
                    const int r = row.b - multiply.share.first_row(), n = gate * own.own + j - own.first;
                    if (met) multiply.share.products(r, n, own.rows(), total);
                    return total[0];
                });
            });
        } else {
            // Behind those of the other phase, for other groups of rows may be in it.
            if (phase > 0) products += (long long)gridDim.z * multiply.share.B * of_first.N;
            if (operand) {
                multiply.publish_sums(part(phase), products);
                meet();
            }
            for_each(part(phase), H, [&](const Row<Real>& row) {
                step(row, Published(products, row, multiply.share.B, count, H, met));
            });
        }
        meet();
    }
};

// w (D, N, K) are the rows of W_hh of phase 0, w_later those of the next one, or W_hr. `products` are not read if units are by
// themselves. `arrived` (gridDim.z * gridDim.y) is zero, and null if a block is alone with its rows.
template <class Cell, typename Storage, int columns, int tile_rows>
__global__ void __launch_bounds__(threads, 1) forward_rows(
    const Storage* w, const Storage* w_later, Storage* products, const Storage* xw, const Storage* b_ih, const Storage* b_hh,
    const Storage* norm, const Storage* norm_c, const int* lengths, const Marks* marks, const Storage* mask,
    typename Cell::Real* h, typename Cell::Real* c, Storage* y, Storage* entering, Storage* inner, Storage* saved, Storage* normal,
    typename Cell::Real* inverses, unsigned* arrived, int T, int B, int H, int P, int slots, int first, int last, int rows,
    int chunk, int parts, int reciprocal, int at_once, Cell cell) {
    using Real = typename Cell::Real;
    constexpr bool by_units = RowCell<Cell>::by_units;
    constexpr int phases = RowCell<Cell>::phases, of_first = Cell::first_gate(1), of_later = Cell::gates - of_first;
    DYNAMIC_SHARED(Storage, memory);
    const Factor factor = by_units ? Factor{H, of_first, P} : Factor{of_first * H, 1, P};
    const Factor later{Cell::projected ? P : of_later * H, 1, H};
    Pass<Storage, Real, columns, tile_rows, by_units> pass(
        memory, w, factor, w_later, later, arrived, B, rows, chunk, {parts, reciprocal}, at_once);
    const Clock clock{T, B, slots, lengths, marks};
    const int d = blockIdx.z, first_row = pass.multiply.share.first_row();
    const RowForward<Cell, Storage> forward{
        cell, clock, H, P, int(gridDim.z), xw, b_ih, b_hh, norm, norm_c, mask, h, c, y, entering, inner, saved, normal, inverses};
    if (first == 0) pass.for_each(pass.of_later, H, [&](const Row<Real>& row) { forward.begin(row, 0); });
    pass.meet();
#pragma unroll 1
    for (int n = first; n < last; ++n) {
        const int s = n / phases, phase = n % phases;
        const long long row = ((long long)d * slots + clock.slot(d, s)) * B + first_row;
        const Storage* const operand = phase ? inner + row * H : entering + row * P;
        const int count = phase ? forward.template products<phases - 1>() : forward.template products<0>();
        pass.phase(phase, operand, phase ? H : P, products, count, H, [&](const Row<Real>& row, const auto& product) {
            if (phase == 0) {
                forward.template step<0>(row, s, product);
            } else {
                forward.template step<phases - 1>(row, s, product);
            }
        });
    }
}

// w (D, K, N) and w_later are those of forward_rows, transposed.
template <class Cell, typename Storage, int columns, int tile_rows>
__global__ void __launch_bounds__(threads, 1) backward_rows(
    const Storage* w, const Storage* w_later, Storage* products, const Storage* saved, const Storage* entering,
    const Storage* normal, const typename Cell::Real* inverses, const Storage* norm, const Storage* norm_c, const int* lengths,
    const Marks* marks, const Storage* mask, const Storage* dy, typename Cell::Real* dh, typename Cell::Real* dc,
    typename Cell::Real* direct, typename Cell::Real* through, Storage* dx, Storage* dp, Storage* d_hidden, Storage* dh_out,
    Storage* d_state, unsigned* arrived, int T, int B, int H, int P, int first, int last, int rows, int chunk, int parts,
    int reciprocal, int at_once, Cell cell) {
    using Real = typename Cell::Real;
    constexpr bool by_units = RowCell<Cell>::by_units;
    constexpr int phases = RowCell<Cell>::phases, of_first = Cell::first_gate(1), G = Cell::gates;
    DYNAMIC_SHARED(Storage, memory);
    const Factor factor{P, 1, of_first * H}, later{phases > 1 ? H : 0, 1, Cell::projected ? P : (G - of_first) * H};
    Pass<Storage, Real, columns, tile_rows, by_units> pass(
        memory, w, factor, w_later, later, arrived, B, rows, chunk, {parts, reciprocal}, at_once);
    const Clock clock{T, B, T, lengths, marks};
    const int d = blockIdx.z, first_row = pass.multiply.share.first_row();
    const RowBackward<Cell, Storage> backward{
        cell, clock, H, P, int(gridDim.z), saved, entering, normal, norm, norm_c, mask, dy, inverses, dh, dc, direct, through, dx,
        dp, d_hidden, dh_out, d_state};
    __syncthreads();
#pragma unroll 1
    for (int n = first; n < last; ++n) {
        // Ends position s + 1 with the transpose of phase 0, or computes that of a later phase of position s.
        const int s = T - 1 - n / phases, phase = (phases - n % phases) % phases;
        const auto step = [&](const Row<Real>& row, const auto& product) {
            if (phase == 0) {
                backward.template step<0>(row, s, product);
            } else {
                backward.template step<phases - 1>(row, s, product);
            }
        };
        const bool of_output = Cell::projected && phase > 0;
        const Storage* operand = nullptr;
        if (n > 0) {
            const long long row = ((long long)d * T + clock.time(d, phase ? s : s + 1)) * B + first_row;
            operand = of_output ? dh_out + row * P : dp + (row * G + Cell::first_gate(phase)) * H;
        }
        pass.phase(phase, operand, of_output ? P : G * H, products, phase ? H : P, H, step);
    }
}
