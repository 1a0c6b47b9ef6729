// One step at a time: cuBLAS computes the products, and each kernel here all the rest of a step, in both directions.
#include "cells/gru.cuh"
#include "cells/lstm.cuh"
#include "cells/vanilla.cuh"
#include "recurrence/steps.cuh"

// The unit (d, b, j) of a thread, one of n.
struct Unit {
    long long i;
    int d, b, j;

    __device__ Unit(int B, int H) : i((long long)blockIdx.x * blockDim.x + threadIdx.x), d(i / H / B), b(i / H % B), j(i % H) {}
};

// What enters the first product of all.
template <class Cell>
__global__ void begin_forward(
    const int* lengths, const bool* resets, const typename Cell::Real* mask, const typename Cell::Real* h,
    typename Cell::Real* entered, int T, int B, int H, int D, int slots) {
    const Forward<Cell> layer{{}, {T, B, slots, lengths, resets}, H, D, nullptr, nullptr, nullptr, mask, nullptr, entered};
    const Unit unit(B, H);
    if (unit.i >= (long long)D * B * H) return;
    const long long i = unit.i;
    const int d = unit.d, b = unit.b, j = unit.j;
    entered[layer.at(d, layer.clock.slot(d, 0), b, j)] = layer.entering(d, 0, b, j, h[i]);
}

// After the first of two products (D, B, 2, H) of position s.
template <class Cell>
__global__ void open_step(
    const typename Cell::Real* products, const typename Cell::Real* xw, const typename Cell::Real* b_ih,
    const typename Cell::Real* b_hh, const int* lengths, const bool* resets, const typename Cell::Real* mask,
    const typename Cell::Real* h, typename Cell::Real* second, typename Cell::Real* kept, int T, int B, int H, int D,
    int slots, int s) {
    const Forward<Cell> layer{{}, {T, B, slots, lengths, resets}, H, D, xw, b_ih, b_hh, mask, nullptr, nullptr, second, kept};
    const Unit unit(B, H);
    if (unit.i >= (long long)D * B * H) return;
    const long long i = unit.i;
    const int d = unit.d, b = unit.b, j = unit.j;
    const typename Cell::Real* own = products + ((long long)d * B + b) * 2 * H + j;
    second[layer.at(d, layer.clock.slot(d, s), b, j)] = layer.open(d, s, b, j, own, H, h[i]);
}

// After the last product of position s: (D, B, G, H), or of two (D, B, 1, H).
template <class Cell>
__global__ void finish_step(
    const typename Cell::Real* products, const typename Cell::Real* xw, const typename Cell::Real* b_ih,
    const typename Cell::Real* b_hh, const int* lengths, const bool* resets, const typename Cell::Real* mask,
    typename Cell::Real* h, typename Cell::Real* c, typename Cell::Real* y, typename Cell::Real* entered,
    typename Cell::Real* kept, int T, int B, int H, int D, int slots, int s, typename Cell::Real leak) {
    using Real = typename Cell::Real;
    const Forward<Cell> layer{{leak}, {T, B, slots, lengths, resets}, H, D, xw, b_ih, b_hh, mask, y, entered, nullptr, kept};
    constexpr int gates = Cell::products == 2 ? 1 : Cell::gates;
    const Unit unit(B, H);
    if (unit.i >= (long long)D * B * H) return;
    const long long i = unit.i;
    const int d = unit.d, b = unit.b, j = unit.j;
    Real state = h[i], cell_state = Cell::has_c ? c[i] : Real(0);
    layer.finish(d, s, b, j, products + ((long long)d * B + b) * gates * H + j, H, state, cell_state);
    h[i] = state;
    if (Cell::has_c) c[i] = cell_state;
    if (s + 1 < T) entered[layer.at(d, layer.clock.slot(d, s + 1), b, j)] = layer.entering(d, s + 1, b, j, state);
}

// Ends position s + 1, whose last product's transpose is `product` (D, B, H), and begins position s. At the first call
// s = T - 1 and there is nothing to end, at the last s = -1 and nothing to begin.
template <class Cell>
__global__ void begin_step_backward(
    const typename Cell::Real* product, const typename Cell::Real* kept, const int* lengths, const bool* resets,
    const typename Cell::Real* mask, const typename Cell::Real* dy, typename Cell::Real* dh, typename Cell::Real* dc,
    typename Cell::Real* direct, const typename Cell::Real* through, typename Cell::Real* dx, typename Cell::Real* dp,
    int T, int B, int H, int D, int s, typename Cell::Real leak) {
    using Real = typename Cell::Real;
    const Backward<Cell> layer{{leak}, {T, B, T, lengths, resets}, H, D, kept, nullptr, mask, dy, dx, dp};
    const Unit unit(B, H);
    if (unit.i >= (long long)D * B * H) return;
    const long long i = unit.i;
    const int d = unit.d, b = unit.b, j = unit.j;
    Carried<Real> carried{dh[i], Cell::has_c ? dc[i] : Real(0), 0, 0};
    if (s + 1 < T) {
        carried.direct = direct[i];
        if (Cell::products == 2) carried.through = through[i];
        layer.finish(d, s + 1, b, j, product[i], carried);
    }
    if (s >= 0) {
        layer.begin(d, s, b, j, carried, [&](int g, Real da) { dp[layer.gate_at(d, layer.clock.time(d, s), b, g, j)] = da; });
        direct[i] = carried.direct;
    }
    dh[i] = carried.dh;
    if (Cell::has_c) dc[i] = carried.dc;
}

// Between the two products of position s, from du (D, B, H).
template <class Cell>
__global__ void close_step_backward(
    const typename Cell::Real* du, const typename Cell::Real* kept, const typename Cell::Real* entered, const int* lengths,
    typename Cell::Real* through, typename Cell::Real* dx, int T, int B, int H, int D, int s) {
    using Real = typename Cell::Real;
    const Backward<Cell> layer{{}, {T, B, T, lengths, nullptr}, H, D, kept, entered, nullptr, nullptr, dx, dx};
    const Unit unit(B, H);
    if (unit.i >= (long long)D * B * H) return;
    const long long i = unit.i;
    const int d = unit.d, b = unit.b, j = unit.j;
    Carried<Real> carried{};
    layer.close(d, s, b, j, du[i], carried, [&](int g, Real da) { dx[layer.gate_at(d, layer.clock.time(d, s), b, g, j)] = da; });
    through[i] = carried.through;
}
