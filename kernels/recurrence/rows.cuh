// A step of all hidden units of a row: what the schedules share for cells with sums over units.
//
// A layer norm needs the mean and the variance of a row amid its step, and a projection, h = W_hr u with u = o f(c), is one
// more product. So a step is not split up by hidden units, as steps.cuh does it, but by rows: 1, 2, 4 or 8 warps of a block
// have a row to themselves, and the norms of a step are sums over its threads. Where products are spread over blocks, the
// blocks exchange twice for each: the operand, and the product. Without a norm a unit may be by itself, see Row.
//
// The arrays are those of steps.cuh, with h, y, mask and the operand of phase 0 of P numbers for a row, which is H unless
// there is a projection; and
//
//   products (D, B, N)          of W_hh h, or W_hr u, of the phase
//   inner (D, slots, B, H)      the operand of a phase behind the first: the cell's, or u
//   normal (D, slots, B, G + 1, H)   the normalised products, and behind them the normalised c_t of a cell that has a c
//   inverses (D, slots, B, groups + 1)   1 / sqrt(variance + epsilon) of each
//   norm (D, G, H), norm_c (D, 2, H)   the weights of the norms, with the bias of c_t behind its weight
//
// Where there is no step, all that a sum over steps multiplies is zero.
//
// Variances are sums of squares of what the mean has been subtracted from. All sums are added up in an order that depends on
// H alone.
#pragma once

#include "recurrence/steps.cuh"

// Of a block.
constexpr int row_threads = 256, row_warps = row_threads / 32;

// Of a row: so few that most threads have two units or more.
__device__ inline int warps_of_row(int H) { return H <= 64 ? 1 : H <= 128 ? 2 : H <= 256 ? 4 : 8; }

// The threads that have a row together.
template <typename Real>
struct Row {
    static constexpr int most_sums = 4, room = row_warps * most_sums;

    Real* shared;  // `room` numbers of the block
    int warps;
    int d, b;
    bool exists;
    int unit = -1;  // if this thread has that one alone, in a step without sums

    __device__ static int at_once(int warps) { return row_warps / warps; }
    // Its number among those that the block has at once.
    __device__ static int index(int warps) { return threadIdx.x / 32 / warps; }
    __device__ int threads() const { return 32 * warps; }
    __device__ int thread() const { return threadIdx.x % threads(); }
    // The units of a thread, of `width`: from first() on every step()th.
    __device__ int first(int width) const { return !exists ? width : unit >= 0 ? unit : thread(); }
    __device__ int step(int width) const { return unit >= 0 ? width : threads(); }

    // Values become their sums over the threads of the row. All threads of the block call it.
    template <int count>
    __device__ void sum(Real (&values)[count]) const {
        static_assert(count <= most_sums, "room for the sums of a block");
        for (int half = 16; half > 0; half /= 2) {
#pragma unroll
            for (int k = 0; k < count; ++k) values[k] += __shfl_xor_sync(0xffffffffu, values[k], half);
        }
        if (warps == 1) return;
        __syncthreads();  // the sums before these have been read
        const int warp = threadIdx.x / 32, first = warp / warps * warps;
        if (threadIdx.x % 32 == 0) {
#pragma unroll
            for (int k = 0; k < count; ++k) shared[warp * most_sums + k] = values[k];
        }
        __syncthreads();
#pragma unroll
        for (int k = 0; k < count; ++k) values[k] = shared[first * most_sums + k];
        for (int w = first + 1; w < first + warps; ++w) {
#pragma unroll
            for (int k = 0; k < count; ++k) values[k] += shared[w * most_sums + k];
        }
    }
};

// The layer norms of the products of the gates from `first` to before `end`.
template <class Cell, int first, int end>
struct NormsOfGates {
    static constexpr int gates = end - first, base = Cell::norm_group(first), count = Cell::norm_group(end - 1) - base + 1;
    // That of a gate, the gates counted from `first`.
    __device__ static constexpr int of(int gate) { return Cell::norm_group(first + gate) - base; }
    __device__ static constexpr int members(int norm) {
        int n = 0;
        for (int g = 0; g < gates; ++g) n += of(g) == norm;
        return n;
    }
};

// That of c_t.
struct NormOfState {
    static constexpr int gates = 1, count = 1;
    __device__ static constexpr int of(int) { return 0; }
    __device__ static constexpr int members(int) { return 1; }
};

// The means of value(g, j) over the units j and the gates g of each norm, and of their squares around it the inverse root.
template <class Norms, typename Real, class Value>
__device__ void moments(
    const Row<Real>& row, int H, bool any, const Value& value, Real (&mean)[Norms::count], Real (&inverse)[Norms::count]) {
    constexpr Real epsilon = Real(1e-5);
    for (int k = 0; k < Norms::count; ++k) mean[k] = inverse[k] = 0;
    for (int j = any ? row.first(H) : H; j < H; j += row.step(H)) {
#pragma unroll
        for (int g = 0; g < Norms::gates; ++g) mean[Norms::of(g)] += value(g, j);
    }
    row.sum(mean);
    for (int k = 0; k < Norms::count; ++k) mean[k] /= Real(Norms::members(k) * H);
    for (int j = any ? row.first(H) : H; j < H; j += row.step(H)) {
#pragma unroll
        for (int g = 0; g < Norms::gates; ++g) {
            const Real centred = value(g, j) - mean[Norms::of(g)];
            inverse[Norms::of(g)] += centred * centred;
        }
    }
    row.sum(inverse);
    for (int k = 0; k < Norms::count; ++k) inverse[k] = 1 / sqrt(inverse[k] / Real(Norms::members(k) * H) + epsilon);
}

// Of what was normalised, the gradient is inverse * (d - mean - value * along), with the gradient d of the value: from
// terms(g, j, d, value) the mean of d, and that of d * value.
template <class Norms, typename Real, class Terms>
__device__ void means_backward(
    const Row<Real>& row, int H, bool any, const Terms& terms, Real (&mean)[Norms::count], Real (&along)[Norms::count]) {
    Real sums[2 * Norms::count] = {};
    for (int j = any ? row.first(H) : H; j < H; j += row.step(H)) {
#pragma unroll
        for (int g = 0; g < Norms::gates; ++g) {
            Real d, value;
            terms(g, j, d, value);
            sums[2 * Norms::of(g)] += d;
            sums[2 * Norms::of(g) + 1] += d * value;
        }
    }
    row.sum(sums);
    for (int k = 0; k < Norms::count; ++k) {
        mean[k] = sums[2 * k] / Real(Norms::members(k) * H);
        along[k] = sums[2 * k + 1] / Real(Norms::members(k) * H);
    }
}

template <class Cell>
struct RowCell {
    // The norms of a step's products, and of c_t.
    static constexpr int norms = Cell::norm_group(Cell::gates - 1) + 1, of_state = norms;
    static constexpr int normals = Cell::gates + 1, inverses = norms + 1;
    // Whether a step has no sums besides its products, so that a unit can be by itself.
    static constexpr bool by_units = !Cell::normed;
    // Whether h follows from c_t by more than the unit itself.
    static constexpr bool splits = Cell::projected || (Cell::normed && Cell::has_c);
    static constexpr int phases = Cell::phases + Cell::projected;
};

// The products of a row, N of them in memory, where other blocks may have published them; NaN where these have not met.
template <typename Real, typename Storage>
struct Published {
    const Storage* of_row;
    int H;
    bool met;

    __device__ Published(const Storage* products, const Row<Real>& row, int B, int N, int H, bool met)
        : of_row(products + ((long long)row.d * B + row.b) * N), H(H), met(met) {}
    // Of gate `gate` of a phase.
    __device__ Real operator()(int gate, int j) const {
        return met ? Real(read_published(of_row + (long long)gate * H + j)) : Real(__int_as_float(0x7fc00000));
    }
};

// The mask of the product's operand and of its gradient.
template <typename Storage>
__device__ inline auto mask_of(const Storage* mask, const Unit& unit) {
    return mask ? mask[unit.index()] : Storage(1);
}

template <class Cell, typename Storage>
struct RowForward {
    using Real = typename Cell::Real;
    using Layer = Forward<Cell, Storage>;
    using Of = RowCell<Cell>;

    Cell cell;
    Clock clock;
    int H, P, D;
    const Storage *xw, *b_ih, *b_hh, *norm, *norm_c, *mask;
    Real *h, *c;
    Storage *y, *entering, *inner, *saved, *normal;
    Real* inverses;

    __device__ bool is_kept() const { return clock.slots == clock.T; }
    __device__ Unit unit_of(const Row<Real>& row, int width) const { return Unit(clock, width, D, row.d, row.b, 0, row.exists); }

    // The operand of phase 0 of a position that a state enters.
    __device__ void enter(const Unit& unit, int s, const Unit::Entry& entry, Real state) const {
        const Real value = entry.past || entry.cut ? Real(0) : state * Real(mask_of(mask, unit));
        publish(entering + unit.operand(0, s), Storage(value));
    }
    __device__ void begin(const Row<Real>& row, int s) const {
        if (!row.exists) return;
        Unit unit = unit_of(row, P);
        const Unit::Entry entry = unit.entry(s);
        for (unit.j = row.first(P); unit.j < P; unit.j += row.step(P)) enter(unit, s, entry, h[unit.index()]);
    }

    // The end of a position for a unit of h: what is h_t where there is such a step, and what enters the next one.
    __device__ void end(const Unit& unit, int s, const Unit::Entry& entry, const Unit::Entry& next, Real state) const {
        h[unit.index()] = state;
        y[unit.output(s)] = Storage(entry.past && !entry.repeats ? Real(0) : state);
        if (s + 1 < clock.T) enter(unit, s + 1, next, state);
    }

    // Phase `phase` of position s, of which product(gate, j) are the products, the gates counted from the first of the phase.
    template <int phase, class Product>
    __device__ void step(const Row<Real>& row, int s, const Product& product) const {
        if constexpr (phase == Cell::phases) {
            end_of_projection(row, s, product);
        } else {
            gates<phase>(row, s, product);
        }
    }
    // Their number.
    template <int phase>
    __device__ int products() const {
        return phase == Cell::phases ? P : (Cell::first_gate(phase + 1) - Cell::first_gate(phase)) * H;
    }

    template <int phase, class Product>
    __device__ void gates(const Row<Real>& row, int s, const Product& product) const {
        constexpr int first = Cell::first_gate(phase), end_gate = Cell::first_gate(phase + 1), count = end_gate - first;
        using Norms = NormsOfGates<Cell, first, end_gate>;
        Unit unit = unit_of(row, H);
        const Unit::Entry entry = row.exists ? unit.entry(s) : Unit::Entry{true, false, false};
        const Unit::Entry next = row.exists && s + 1 < clock.T ? unit.entry(s + 1) : entry;
        const bool there = !entry.past;
        Real mean[Norms::count], inverse[Norms::count];
        if constexpr (Cell::normed) {
            moments<Norms>(row, H, there, product, mean, inverse);
            if (there && row.thread() == 0) {
                for (int k = 0; k < Norms::count; ++k) inverse_of(unit, s, Norms::base + k) = inverse[k];
            }
        }
        for (unit.j = row.first(H); unit.j < H; unit.j += row.step(H)) {
            const Layer layer(cell, unit, true, xw, Of::splits ? nullptr : mask, y, nullptr, saved);
            typename Layer::Inputs inputs{entry};
            typename Layer::Values values;
            layer.load(s, first, end_gate, inputs);
            Real p[count];
#pragma unroll
            for (int g = 0; g < count; ++g) {
                p[g] = product(g, unit.j);
                if constexpr (Cell::normed) {
                    p[g] = (p[g] - mean[Norms::of(g)]) * inverse[Norms::of(g)];
                    if (is_kept()) normal_of(unit, s, first + g) = Storage(there ? p[g] : Real(0));
                    p[g] *= Real(norm[of_gate(unit, first + g)]);
                }
                if (b_ih) inputs.x[first + g] += Real(b_ih[of_gate(unit, first + g)]);
                if (b_hh) p[g] += Real(b_hh[of_gate(unit, first + g)]);
            }
            if constexpr (Of::splits) {
                Real state = entry.cut ? Real(0) : c[unit.index()];
                if (there) {
                    const Cell own = layer.at_position(inputs);
                    state = own.advance(inputs.x, p, state, reinterpret_cast<typename Cell::Inner&>(values.at));
                    if constexpr (Cell::keeps_h || Cell::keeps_c) own.save_masks(values.at);
                    Storage* const to = saved + unit.history(s, Cell::num_saved);
                    for (int k = 0; k < Cell::num_saved; ++k) to[(long long)k * H] = Storage(values.at[k]);
                }
                if constexpr (Cell::normed) {
                    if (there) {
                        normal_of(unit, s, Cell::gates) = Storage(state);
                    } else {
                        c[unit.index()] = state;
                    }
                } else {
                    advanced(unit, s, entry, next, values, state, state);
                }
            } else if constexpr (phase < Cell::phases - 1) {
                publish(inner + unit.operand(0, s), Storage(layer.operand(inputs, p, h[unit.index()], values)));
                layer.save_operand(s, inputs, values);
            } else {
                Real state = h[unit.index()], none = 0;
                layer.finish(s, inputs, p, state, none, values);
                if (saved && there) {
                    Storage* const to = saved + unit.history(s, Cell::num_saved);
                    for (int k = Layer::last_gate; k < Cell::num_saved; ++k) to[(long long)k * H] = Storage(values.at[k]);
                }
                end(unit, s, entry, next, state);
            }
        }
        if constexpr (Cell::normed && Cell::has_c) {
            const Unit any = unit_of(row, H);
            const auto state_at = [&](int, int j) { return Real((&normal_of(any, s, Cell::gates))[j]); };
            Real mean_c[1], inverse_c[1];
            moments<NormOfState>(row, H, there, state_at, mean_c, inverse_c);
            if (there && row.thread() == 0) inverse_of(any, s, Of::of_state) = inverse_c[0];
            for (unit.j = row.first(H); unit.j < H; unit.j += row.step(H)) {
                typename Layer::Values values;
                Real state = 0, normalised = 0;
                if (there) {
                    const Storage* const from = saved + unit.history(s, Cell::num_saved);
                    for (int k = 0; k < Cell::num_saved; ++k) values.at[k] = Real(from[(long long)k * H]);
                    state = Real(normal_of(unit, s, Cell::gates));
                    normalised = (state - mean_c[0]) * inverse_c[0];
                }
                normal_of(unit, s, Cell::gates) = Storage(normalised);
                const long long of_weight = (long long)row.d * 2 * H + unit.j;
                normalised = normalised * Real(norm_c[of_weight]) + Real(norm_c[of_weight + H]);
                advanced(unit, s, entry, next, values, state, normalised);
            }
        }
    }

    // The rest of a step of a unit with a c: from c_t, and what the output takes in its place.
    __device__ void advanced(
        const Unit& unit, int s, const Unit::Entry& entry, const Unit::Entry& next, typename Layer::Values& values, Real state,
        Real argument) const {
        Real output = 0;
        if (entry.past) {
            if (!Cell::normed) c[unit.index()] = state;
        } else {
            const auto& of_step = reinterpret_cast<const typename Cell::Inner&>(values.at);
            output = cell.output(of_step, argument);
            if constexpr (Cell::keeps_c) state = Cell::mixed(cell.kept_c(values.at), of_step[Cell::C_PREV], state);
            c[unit.index()] = state;
        }
        if constexpr (Cell::projected) {
            publish(inner + unit.operand(0, s), Storage(output));
        } else {
            end(unit, s, entry, next, advanced_h(unit, entry, output, values.at));
        }
    }
    // h after a step, from what the step makes of it.
    __device__ Real advanced_h(const Unit& unit, const Unit::Entry& entry, Real now, const Real* values) const {
        const Real before = entry.cut ? Real(0) : h[unit.index()];
        if (entry.past) return before;
        if constexpr (Cell::keeps_h) now = Cell::mixed(cell.kept_h(values), before, now);
        return now;
    }

    template <class Product>
    __device__ void end_of_projection(const Row<Real>& row, int s, const Product& product) const {
        if (!row.exists) return;
        Unit unit = unit_of(row, P);
        const Unit::Entry entry = unit.entry(s), next = s + 1 < clock.T ? unit.entry(s + 1) : entry;
        Unit of_state = unit_of(row, H);
        for (unit.j = row.first(P); unit.j < P; unit.j += row.step(P)) {
            typename Layer::Values values;
            if constexpr (Cell::keeps_h) {
                Cell own = cell;
                of_state.j = unit.j;
                if constexpr (Cell::num_masks > 0) {
                    for (int k = 0; k < Cell::num_masks; ++k) own.mask[k] = cell.all_masks[of_state.mask(s, k)];
                }
                own.save_masks(values.at);
            }
            end(unit, s, entry, next, advanced_h(unit, entry, product(0, unit.j), values.at));
        }
    }

    __device__ long long of_gate(const Unit& unit, int gate) const {
        return ((long long)unit.d * Cell::gates + gate) * H + unit.j;
    }
    __device__ Storage& normal_of(const Unit& unit, int s, int k) const {
        return normal[unit.history(s, Of::normals) + (long long)k * H];
    }
    __device__ Real& inverse_of(const Unit& unit, int s, int k) const {
        return inverses[(((long long)unit.d * clock.slots + clock.slot(unit.d, s)) * clock.B + unit.b) * Of::inverses + k];
    }
};

// Further arrays, of all steps: dx (D, T, B, G, H), the gradients of W_ih x; dp, those of the products, and d_hidden, those of
// the gates' recurrent terms, each dx if it is the same; dh_out (D, T, B, P), those of a projection; d_state (D, T, B, H),
// those of what the output takes in place of c_t. slots = T.
template <class Cell, typename Storage>
struct RowBackward {
    using Real = typename Cell::Real;
    using Layer = Backward<Cell, Storage>;
    using Of = RowCell<Cell>;

    Cell cell;
    Clock clock;
    int H, P, D;
    const Storage *saved, *entering, *normal, *norm, *norm_c, *mask, *dy;
    const Real* inverses;
    Real *dh, *dc, *direct, *through;
    Storage *dx, *dp, *d_hidden, *dh_out, *d_state;

    __device__ Unit unit_of(const Row<Real>& row, int width) const { return Unit(clock, width, D, row.d, row.b, 0, row.exists); }
    __device__ Unit::Entry entry_of(const Row<Real>& row, const Unit& unit, int s) const {
        return row.exists && s >= 0 && s < clock.T ? unit.entry(s) : Unit::Entry{true, false, false};
    }

    // Phase 0 ends position s + 1, with the P products product(0, j), unless that is T, and begins position s, unless that is
    // -1. Phase 1 goes on with position s, with H products.
    template <int phase, class Product>
    __device__ void step(const Row<Real>& row, int s, const Product& product) const {
        if constexpr (phase == 0) {
            begin(row, s, product);
        } else if constexpr (Cell::projected) {
            if (s >= 0) output(row, s, [&](const Unit& unit) { return product(0, unit.j); });
        } else {
            if (s >= 0) operand(row, s, product);
        }
    }
    template <int phase>
    __device__ int products() const { return phase == 0 ? P : H; }

    template <class Product>
    __device__ void begin(const Row<Real>& row, int s, const Product& product) const {
        Unit unit = unit_of(row, P);
        const Unit::Entry entry = entry_of(row, unit, s), after = entry_of(row, unit, s + 1);
        for (unit.j = row.first(P); unit.j < P; unit.j += row.step(P)) {
            const long long i = unit.index();
            Carried<Real> carried{dh[i], 0, 0, 0};
            if (s + 1 < clock.T) {
                if (!after.past) {
                    Real gradient = product(0, unit.j);
                    if constexpr (Cell::phases > 1) gradient += through[i];
                    carried.dh = gradient * Real(mask_of(mask, unit)) + direct[i];
                }
                if (after.cut) carried.dh = 0;
            }
            if (s >= 0) {
                if constexpr (Of::splits) {
                    if (dy && (!entry.past || entry.repeats)) carried.dh += Real(dy[unit.output(s)]);
                    const Real kept = entry.past ? Real(0) : kept_h(unit, s);
                    if (Cell::projected) {
                        publish(dh_out + position(unit, s, P), Storage(entry.past ? Real(0) : of_output(kept, carried.dh)));
                    }
                    direct[i] = Cell::keeps_h ? kept * carried.dh : Real(0);
                } else {
                    const Layer layer(cell, unit, true, saved, nullptr, nullptr, dy, nullptr);
                    typename Layer::Inputs inputs{entry};
                    typename Layer::Gradients gradients;
                    layer.load(s, inputs);
                    layer.begin(inputs, carried, gradients);
#pragma unroll
                    for (int g = Cell::waiting; g < Cell::gates; ++g) {
                        const long long at = unit.gate(s, Cell::gates, g);
                        if (Cell::hidden_apart) dx[at] = Storage(gradients.x[g]);
                        d_hidden[at] = Storage(gradients.of_product(g));
                    }
                    direct[i] = carried.direct;
                }
            }
            dh[i] = carried.dh;
        }
        if (s < 0) return;
        if constexpr (!Of::splits) {
            products_backward<Cell::phases - 1>(row, s, !entry.past);
        } else if constexpr (!Cell::projected) {
            output(row, s, [&](const Unit& of) { return of_output(kept_h(of, s), dh[of.index()]); });
        }
    }

    // The part of h that stays, and what of dh reaches the output of the step then.
    __device__ Real kept_h(const Unit& unit, int s) const {
        if constexpr (Cell::keeps_h) {
            Real values[Cell::num_saved];
            const Storage* const from = saved + (unit.history(s, 1) - unit.j) / unit.H * Cell::num_saved * H + unit.j;
            for (int k = Cell::MASK_H; k < Cell::num_saved; ++k) values[k] = Real(from[(long long)k * H]);
            return cell.kept_h(values);
        } else {
            return 0;
        }
    }
    __device__ static Real of_output(Real kept, Real d) { return Cell::keeps_h ? (1 - kept) * d : d; }

    // From the gradients of u, or of o f(c_t), to those of the gates.
    template <class Product>
    __device__ void output(const Row<Real>& row, int s, const Product& du) const {
        using Values = typename Layer::Inputs;
        Unit unit = unit_of(row, H);
        const Unit any = unit;
        const Unit::Entry entry = entry_of(row, unit, s);
        const bool there = !entry.past;
        const auto values_of = [&](Values& inputs) {
            const Storage* const from = saved + unit.history(s, Cell::num_saved);
            for (int k = 0; k < Cell::num_saved; ++k) inputs.values[k] = Real(from[(long long)k * H]);
        };
        Real mean_c[1] = {0}, along_c[1] = {0};
        if constexpr (Cell::normed) {
            for (unit.j = row.first(H); unit.j < H; unit.j += row.step(H)) {
                Real gradient = 0, da_o = 0;
                if (there) {
                    Values inputs;
                    values_of(inputs);
                    const long long of_weight = (long long)row.d * 2 * H + unit.j;
                    const Real argument =
                        Real(normal_of(unit, s, Cell::gates)) * Real(norm_c[of_weight]) + Real(norm_c[of_weight + H]);
                    const auto& of_step = reinterpret_cast<const typename Cell::Inner&>(inputs.values);
                    const Real d_output = du(unit);
                    const Real kept = cell.kept_output(argument);
                    cell.output_backward(of_step, kept, d_output, gradient);
                    da_o = cell.output_gate_backward(of_step, kept, d_output);
                }
                d_state[position(unit, s, H)] = Storage(gradient);
                dx[unit.gate(s, Cell::gates, Cell::O)] = Storage(da_o);
            }
            const auto terms = [&](int, int j, Real& d, Real& value) {
                d = Real(d_state[position(any, s, H) + j]) * Real(norm_c[(long long)row.d * 2 * H + j]);
                value = Real((&normal_of(any, s, Cell::gates))[j]);
            };
            means_backward<NormOfState>(row, H, there, terms, mean_c, along_c);
        }
        for (unit.j = row.first(H); unit.j < H; unit.j += row.step(H)) {
            Real da[Cell::gates] = {};
            if (there) {
                Values inputs;
                values_of(inputs);
                const Layer layer(cell, unit, true, saved, entering, nullptr, nullptr, nullptr);  // with the unit's weights
                const auto& of_step = reinterpret_cast<const typename Cell::Inner&>(inputs.values);
                const long long i = unit.index();
                const Real after = dc[i];
                const Real state = cell.unbounded(of_step, of_step[Cell::C_PREV]);
                Real d = after, da_o;
                if constexpr (Cell::keeps_c) d *= 1 - cell.kept_c(inputs.values);
                if constexpr (Cell::normed) {
                    da_o = Real(dx[unit.gate(s, Cell::gates, Cell::O)]);
                    const Real normalised = Real(normal_of(unit, s, Cell::gates));
                    const Real gradient =
                        Real(d_state[position(unit, s, H)]) * Real(norm_c[(long long)row.d * 2 * H + unit.j]);
                    d += inverse_of(unit, s, Of::of_state) * (gradient - mean_c[0] - normalised * along_c[0]);
                } else {
                    const Real kept = cell.kept_output(cell.bounded(state)), d_output = du(unit);
                    cell.output_backward(of_step, kept, d_output, d);
                    da_o = cell.output_gate_backward(of_step, kept, d_output);
                }
                layer.cell.advance_backward(of_step, state, d, da, [&] { return da_o; });
                if constexpr (Cell::keeps_c) d += cell.kept_c(inputs.values) * after;
                dc[i] = entry.cut ? Real(0) : d;
            } else if (entry.cut) {
                dc[unit.index()] = 0;
            }
#pragma unroll
            for (int g = 0; g < Cell::gates; ++g) {
                const long long at = unit.gate(s, Cell::gates, g);
                if constexpr (Cell::normed) {
                    d_hidden[at] = Storage(da[g]);
                } else {
                    publish(dp + at, Storage(da[g]));
                }
            }
        }
        if constexpr (Cell::normed) products_backward<0>(row, s, there);
    }

    // From the gradients of the operand of phase 1 to those of the gates that waited for it.
    template <class Product>
    __device__ void operand(const Row<Real>& row, int s, const Product& product) const {
        Unit unit = unit_of(row, H);
        const Unit::Entry entry = entry_of(row, unit, s);
        for (unit.j = row.first(H); unit.j < H; unit.j += row.step(H)) {
            const Layer layer(cell, unit, true, saved, entering, nullptr, nullptr, nullptr);
            typename Layer::Inputs inputs{entry};
            typename Layer::Gradients gradients;
            Carried<Real> carried{};
            layer.load(s, inputs);
            layer.operand_backward(s, inputs, product(0, unit.j), carried, gradients);
            for (int g = 0; g < Cell::waiting; ++g) d_hidden[unit.gate(s, Cell::gates, g)] = Storage(gradients.x[g]);
            through[unit.index()] = carried.through;
        }
        products_backward<0>(row, s, !entry.past);
    }

    // From the gradients of the gates' recurrent terms to those of a phase's products, which a norm is between.
    template <int phase>
    __device__ void products_backward(const Row<Real>& row, int s, bool there) const {
        constexpr int first = Cell::first_gate(phase), end = Cell::first_gate(phase + 1);
        using Norms = NormsOfGates<Cell, first, end>;
        Unit unit = unit_of(row, H);
        const Unit any = unit;
        Real mean[Norms::count], along[Norms::count];
        const auto terms = [&](int g, int j, Real& d, Real& value) {
            d = Real(d_hidden[any.gate(s, Cell::gates, first + g) + j]) * weight(any, first + g, j);
            value = Real((&normal_of(any, s, first + g))[j]);
        };
        means_backward<Norms>(row, H, there, terms, mean, along);
        for (unit.j = row.first(H); unit.j < H; unit.j += row.step(H)) {
#pragma unroll
            for (int g = 0; g < Norms::gates; ++g) {
                const int k = Norms::of(g);
                Real d, value;
                terms(g, unit.j, d, value);
                d = there ? inverse_of(unit, s, Norms::base + k) * (d - mean[k] - value * along[k]) : Real(0);
                publish(dp + unit.gate(s, Cell::gates, first + g), Storage(d));
            }
        }
    }

    __device__ Real weight(const Unit& unit, int gate, int j) const {
        return Real(norm[((long long)unit.d * Cell::gates + gate) * H + j]);
    }
    // Of a unit in arrays (D, T, B, width).
    __device__ long long position(const Unit& unit, int s, int width) const {
        return (((long long)unit.d * clock.T + clock.time(unit.d, s)) * clock.B + unit.b) * width + unit.j;
    }
    __device__ const Storage& normal_of(const Unit& unit, int s, int k) const {
        return normal[unit.history(s, Of::normals) + (long long)k * H];
    }
    __device__ Real inverse_of(const Unit& unit, int s, int k) const {
        return inverses[(((long long)unit.d * clock.slots + clock.slot(unit.d, s)) * clock.B + unit.b) * Of::inverses + k];
    }
};
