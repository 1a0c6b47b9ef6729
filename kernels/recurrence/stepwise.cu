// One step at a time: cuBLAS computes the products, and each kernel here the rest of a step, in both directions.
#include "recurrence/steps.cuh"

// The unit of a thread, one of n; whether there is one.
__device__ inline Unit unit_of(const Clock& clock, int H, int D, bool& exists) {
    const long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    exists = i < (long long)D * clock.B * H;
    const int row = int(i / H);  // of all directions
    return Unit(clock, H, D, row / clock.B, row % clock.B, int(i - (long long)row * H), exists);
}

// The biases (D, G, H) of a unit are H numbers apart from here on.
template <typename Storage>
__device__ const Storage* biases_of(const Storage* biases, const Unit& unit, int gates) {
    return biases + (long long)unit.d * gates * unit.H + unit.j;
}

// The operand of the first step.
template <class Cell, typename Storage>
__global__ void begin_forward(
    const int* lengths, const Marks* marks, const Storage* mask, const typename Cell::Real* h, Storage* operands, int T,
    int B, int H, int D, int slots) {
    bool exists;
    const Unit unit = unit_of({T, B, slots, lengths, marks}, H, D, exists);
    if (!exists) return;
    const Forward<Cell, Storage> layer({}, unit, true, nullptr, mask, nullptr, operands, nullptr);
    operands[unit.operand(0, 0)] = Storage(layer.entering(unit.entry(0), h[unit.index()]));
}

// After phase 0 of two, with products (D, B, gates of the phase, H) of position s.
template <class Cell, typename Storage>
__global__ void operand_of_step(
    const Storage* products, const Storage* xw, const Storage* b_ih, const Storage* b_hh, const int* lengths,
    const Marks* marks, const Storage* mask, const typename Cell::Real* h, Storage* operands, Storage* saved, int T, int B,
    int H, int D, int slots, int s, Cell cell) {
    using Layer = Forward<Cell, Storage>;
    constexpr int gates = Cell::first_gate(1);
    bool exists;
    const Unit unit = unit_of({T, B, slots, lengths, marks}, H, D, exists);
    if (!exists) return;
    const Layer layer(cell, unit, true, xw, mask, nullptr, operands, saved);
    typename Layer::Inputs inputs{unit.entry(s)};
    layer.load(s, 0, gates, inputs);
    typename Cell::Real p[gates];
    for (int g = 0; g < gates; ++g) p[g] = products[(((long long)unit.d * B + unit.b) * gates + g) * H + unit.j];
    if (b_ih) add_biases<0, gates, 0>(biases_of(b_ih, unit, Cell::gates), H, inputs.x);
    if (b_hh) add_biases<0, gates, 0>(biases_of(b_hh, unit, Cell::gates), H, p);
    typename Layer::Values values;
    operands[unit.operand(1, s)] = Storage(layer.operand(inputs, p, h[unit.index()], values));
    layer.save_operand(s, inputs, values);
}

// After the last phase, with products (D, B, gates of the phase, H) of position s.
template <class Cell, typename Storage>
__global__ void finish_step(
    const Storage* products, const Storage* xw, const Storage* b_ih, const Storage* b_hh, const int* lengths,
    const Marks* marks, const Storage* mask, typename Cell::Real* h, typename Cell::Real* c, Storage* y, Storage* operands,
    Storage* saved, int T, int B, int H, int D, int slots, int s, Cell cell) {
    using Real = typename Cell::Real;
    using Layer = Forward<Cell, Storage>;
    constexpr int gates = Cell::gates - Layer::last_gate;
    bool exists;
    const Unit unit = unit_of({T, B, slots, lengths, marks}, H, D, exists);
    if (!exists) return;
    const Layer layer(cell, unit, true, xw, mask, y, operands, saved);
    typename Layer::Inputs inputs{unit.entry(s)};
    layer.load(s, Layer::last_gate, Cell::gates, inputs);
    Real p[gates];
    for (int g = 0; g < gates; ++g) p[g] = products[(((long long)unit.d * B + unit.b) * gates + g) * H + unit.j];
    constexpr int last_gate = Layer::last_gate;
    if (b_ih) add_biases<last_gate, Cell::gates, 0>(biases_of(b_ih, unit, Cell::gates), H, inputs.x);
    if (b_hh) add_biases<last_gate, Cell::gates, last_gate>(biases_of(b_hh, unit, Cell::gates), H, p);
    const long long i = unit.index();
    Real state = h[i], cell_state = Cell::has_c ? c[i] : Real(0);
    typename Layer::Values values;
    layer.finish(s, inputs, p, state, cell_state, values);
    layer.save(s, inputs, values, state);
    h[i] = state;
    if (Cell::has_c) c[i] = cell_state;
    if (s + 1 < T) operands[unit.operand(0, s + 1)] = Storage(layer.entering(unit.entry(s + 1), state));
}

// Ends position s + 1, whose phase 0 has the transpose `product` (D, B, H), and begins position s. The first call has
// s = T - 1 and nothing to end, the last one s = -1 and nothing to begin.
template <class Cell, typename Storage>
__global__ void begin_step_backward(
    const Storage* product, const Storage* saved, const int* lengths, const Marks* marks, const Storage* mask,
    const Storage* dy, typename Cell::Real* dh, typename Cell::Real* dc, typename Cell::Real* direct,
    const typename Cell::Real* through, Storage* dx, Storage* dp, int T, int B, int H, int D, int s, Cell cell) {
    using Real = typename Cell::Real;
    using Layer = Backward<Cell, Storage>;
    bool exists;
    const Unit unit = unit_of({T, B, T, lengths, marks}, H, D, exists);
    if (!exists) return;
    const Layer layer(cell, unit, true, saved, nullptr, mask, dy, dx);
    const long long i = unit.index();
    Carried<Real> carried{dh[i], Cell::has_c ? dc[i] : Real(0), 0, 0};
    if (s + 1 < T) {
        carried.direct = direct[i];
        if (Cell::phases > 1) carried.through = through[i];
        layer.finish(unit.entry(s + 1), Real(product[i]), carried);
    }
    if (s >= 0) {
        typename Layer::Inputs inputs{unit.entry(s)};
        typename Layer::Gradients gradients;
        layer.load(s, inputs);
        layer.begin(inputs, carried, gradients);
        layer.save(s, gradients);
        for (int g = Cell::waiting; g < Cell::gates; ++g) dp[unit.gate(s, Cell::gates, g)] = Storage(gradients.of_product(g));
        direct[i] = carried.direct;
    }
    dh[i] = carried.dh;
    if (Cell::has_c) dc[i] = carried.dc;
}

// Between the transposes of phases 1 and 0 of position s, from the gradient of phase 1's operand (D, B, H).
template <class Cell, typename Storage>
__global__ void operand_of_step_backward(
    const Storage* doperand, const Storage* saved, const Storage* operands, const int* lengths, const Marks* marks,
    typename Cell::Real* through, Storage* dx, int T, int B, int H, int D, int s, Cell cell) {
    using Real = typename Cell::Real;
    using Layer = Backward<Cell, Storage>;
    bool exists;
    const Unit unit = unit_of({T, B, T, lengths, marks}, H, D, exists);
    if (!exists) return;
    const Layer layer(cell, unit, true, saved, operands, nullptr, nullptr, dx);
    typename Layer::Inputs inputs{unit.entry(s)};
    typename Layer::Gradients gradients;
    Carried<Real> carried{};
    layer.load(s, inputs);
    layer.operand_backward(s, inputs, Real(doperand[unit.index()]), carried, gradients);
    for (int g = 0; g < Cell::waiting; ++g) dx[unit.gate(s, Cell::gates, g)] = Storage(gradients.x[g]);
    through[unit.index()] = carried.through;
}
