// One step at a time: cuBLAS computes the products, and each kernel here the rest of a step, in both directions.
#include "recurrence/steps.cuh"

// The unit (d, b, j) of a thread, one of n.
struct Unit {
    long long i;
    int d, b, j;

    __device__ Unit(int B, int H) : i((long long)blockIdx.x * blockDim.x + threadIdx.x), d(i / H / B), b(i / H % B), j(i % H) {}
};

// The operand of the first step.
template <class Cell, typename Storage>
__global__ void begin_forward(
    const int* lengths, const bool* resets, const Storage* mask, const typename Cell::Real* h, Storage* operands, int T,
    int B, int H, int D, int slots) {
    const Forward<Cell, Storage> layer{{}, {T, B, slots, lengths, resets}, H, D, nullptr, nullptr, nullptr, mask, nullptr, operands};
    const Unit unit(B, H);
    if (unit.i >= (long long)D * B * H) return;
    const long long i = unit.i;
    const int d = unit.d, b = unit.b, j = unit.j;
    operands[layer.operand_at(0, d, 0, b, j)] = Storage(layer.entering(d, 0, b, j, h[i]));
}

// After phase 0 of two, with products (D, B, gates of the phase, H) of position s.
template <class Cell, typename Storage>
__global__ void operand_of_step(
    const Storage* products, const Storage* xw, const Storage* b_ih, const Storage* b_hh, const int* lengths,
    const bool* resets, const Storage* mask, const typename Cell::Real* h, Storage* operands, Storage* saved, int T, int B,
    int H, int D, int slots, int s, Cell cell) {
    const Forward<Cell, Storage> layer{cell, {T, B, slots, lengths, resets}, H, D, xw, b_ih, b_hh, mask, nullptr, operands, saved};
    const Unit unit(B, H);
    if (unit.i >= (long long)D * B * H) return;
    const long long i = unit.i;
    const int d = unit.d, b = unit.b, j = unit.j;
    const Storage* const first = products + ((long long)d * B + b) * Cell::first_gate(1) * H + j;
    operands[layer.operand_at(1, d, s, b, j)] = Storage(layer.operand(d, s, b, j, first, H, h[i]));
}

// After the last phase, with products (D, B, gates of the phase, H) of position s.
template <class Cell, typename Storage>
__global__ void finish_step(
    const Storage* products, const Storage* xw, const Storage* b_ih, const Storage* b_hh, const int* lengths,
    const bool* resets, const Storage* mask, typename Cell::Real* h, typename Cell::Real* c, Storage* y, Storage* operands,
    Storage* saved, int T, int B, int H, int D, int slots, int s, Cell cell) {
    using Real = typename Cell::Real;
    const Forward<Cell, Storage> layer{cell, {T, B, slots, lengths, resets}, H, D, xw, b_ih, b_hh, mask, y, operands, saved};
    constexpr int gates = Cell::gates - Cell::first_gate(Cell::phases - 1);
    const Unit unit(B, H);
    if (unit.i >= (long long)D * B * H) return;
    const long long i = unit.i;
    const int d = unit.d, b = unit.b, j = unit.j;
    Real state = h[i], cell_state = Cell::has_c ? c[i] : Real(0);
    layer.finish(d, s, b, j, products + ((long long)d * B + b) * gates * H + j, H, state, cell_state);
    h[i] = state;
    if (Cell::has_c) c[i] = cell_state;
    if (s + 1 < T) operands[layer.operand_at(0, d, s + 1, b, j)] = Storage(layer.entering(d, s + 1, b, j, state));
}

// Ends position s + 1, whose phase 0 has the transpose `product` (D, B, H), and begins position s. The first call has
// s = T - 1 and nothing to end, the last one s = -1 and nothing to begin.
template <class Cell, typename Storage>
__global__ void begin_step_backward(
    const Storage* product, const Storage* saved, const int* lengths, const bool* resets, const Storage* mask,
    const Storage* dy, typename Cell::Real* dh, typename Cell::Real* dc, typename Cell::Real* direct,
    const typename Cell::Real* through, Storage* dx, Storage* dp, int T, int B, int H, int D, int s, Cell cell) {
    using Real = typename Cell::Real;
    const Backward<Cell, Storage> layer{cell, {T, B, T, lengths, resets}, H, D, saved, nullptr, mask, dy, dx, dp};
    const Unit unit(B, H);
    if (unit.i >= (long long)D * B * H) return;
    const long long i = unit.i;
    const int d = unit.d, b = unit.b, j = unit.j;
    Carried<Real> carried{dh[i], Cell::has_c ? dc[i] : Real(0), 0, 0};
    if (s + 1 < T) {
        carried.direct = direct[i];
        if (Cell::phases > 1) carried.through = through[i];
        layer.finish(d, s + 1, b, j, Real(product[i]), carried);
    }
    if (s >= 0) {
        layer.begin(d, s, b, j, carried, [&](int g, Real da) {
            dp[layer.gate_at(d, layer.clock.time(d, s), b, g, j)] = Storage(da);
        });
        direct[i] = carried.direct;
    }
    dh[i] = carried.dh;
    if (Cell::has_c) dc[i] = carried.dc;
}

// Between the transposes of phases 1 and 0 of position s, from the gradient of phase 1's operand (D, B, H).
template <class Cell, typename Storage>
__global__ void operand_of_step_backward(
    const Storage* doperand, const Storage* saved, const Storage* operands, const int* lengths,
    typename Cell::Real* through, Storage* dx, int T, int B, int H, int D, int s, Cell cell) {
    using Real = typename Cell::Real;
    const Backward<Cell, Storage> layer{cell, {T, B, T, lengths, nullptr}, H, D, saved, operands, nullptr, nullptr, dx, dx};
    const Unit unit(B, H);
    if (unit.i >= (long long)D * B * H) return;
    const long long i = unit.i;
    const int d = unit.d, b = unit.b, j = unit.j;
    Carried<Real> carried{};
    layer.operand_backward(d, s, b, j, Real(doperand[i]), carried, [&](int g, Real da) {
        dx[layer.gate_at(d, layer.clock.time(d, s), b, g, j)] = Storage(da);
    });
    through[i] = carried.through;
}
