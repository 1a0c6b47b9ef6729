// All steps of one direction, backward, of a cell with sums over hidden units, and the gradients of its weights.
//
// The gradients of the weights run over the rows of a chunk as those of backward.h do.
#pragma once

#include "native/gradients.h"
#include "native/sums_layer.h"

template <class Cell>
class SumsBackward : Sums<Cell> {
    using Base = Sums<Cell>;
    using typename Base::Real, typename Base::T, typename Base::Rows;
    using Base::lanes, Base::last_phase, Base::G, Base::sums, Base::layer, Base::cell, Base::clock, Base::B,
        Base::I, Base::H, Base::P, Base::kept, Base::back, Base::meetings, Base::each, Base::operand_at,
        Base::saved_at, Base::kept_at;
    using Gradient = RowGradient<T>;

public:
    SumsBackward(const SumsLayer<T>& sums, const Cell& cell) : Base(sums, cell) {
        T* at = layer.workspace;
        const auto room = [&](int64_t size) {
            T* const begin = at;
            at += size;
            return begin;
        };
        const int64_t of_units = filled(H > P ? H : P), of_inputs = filled(I), gates = layer.chunk * B * G * H;
        zeros = room(of_units > of_inputs ? of_units : of_inputs);
        products = room(B * of_units);
        through = room(Cell::phases > 1 ? B * P : 0);
        direct = room(B * P);
        da = room(gates);
        da_hidden = Cell::hidden_apart ? room(gates) : da;
        dinput = sums.norm_ih ? room(gates) : da;
        dhidden = sums.norm_ih ? room(gates) : da_hidden;
        doutput = room(sums.norm_c ? layer.chunk * B * H : 0);
        dprojection = room(sums.w_hr ? layer.chunk * B * P : 0);
        packed_panels = room(layer.team.most * Gradient::panel_size);
        packed_strips = room(layer.team.most * Gradient::strips_size(G * H, layer.team.most));
        size = at - layer.workspace;
    }

    // The numbers of the workspace.
    int64_t workspace() const { return size; }

    void run() {
        const double weights = double(G) * H * (I + P) + double(sums.w_hr ? P * H : 0);
        layer.team.share(time_alone<T>(2.0 * layer.steps * B * weights, weights), work, this);
    }

private:
    // Columns of a product, with those of a last panel that is not full.
    static int64_t filled(int64_t columns) { return Panels<T>::count(columns, plain_width) * plain_width * lanes; }

    static void work(void* self, int index, int count) { static_cast<SumsBackward*>(self)->work(index, count); }

    void work(int index, int count) {
        const SubnormalsAreZero within;
        if (index == 0) {
            for (T* at = zeros; at < products; ++at) *at = 0;
        }
        const int64_t bytes = int64_t(sizeof(T)) * G * H * P;
        const Part part(index, count, B, bytes, back.hidden(0).count(), layer.team);
        const Rows own(part);
        Barrier& team = meetings[1 + part.team];
        std::vector<int> active, mine, rows;
        for (int64_t end = clock.T; end > 0;) {
            const int64_t s0 = (end - 1) / layer.chunk * layer.chunk;
            meetings[0].meet(count);  // the gradients of the chunk before are done with the gates
            for (int64_t s = end - 1; s >= s0; --s) {
                this->list_active(s, part.first_row, part.last_row, active);
                this->list_active(s, own.first, own.last, mine);
                step(part, own, s, s - s0, active, mine, team);
            }
            meetings[0].meet(count);
            list_rows(s0, end, rows);
            gradients(index, count, s0, rows, layer.continues || end < clock.T);
            end = s0;
        }
    }

    // The transpose of the step at position s, which is the one at `at` of its chunk: `active` rows of the team, and
    // those of them that are this thread's.
    void step(
        const Part& part, const Rows& own, int64_t s, int64_t at, const std::vector<int>& active,
        const std::vector<int>& mine, Barrier& team) const {
        idle(own, s);
        for (int b : mine) begin(s, at, b);
        if (sums.w_hr) {
            team.meet(part.shares);
            multiply(part, s, back.projection(), active, [&](int b) { return dprojection + (at * B + b) * P; });
            team.meet(part.shares);
            for (int b : mine) of_cell(s, at, b, [&](auto full, int64_t j, int64_t count) {
                return get<decltype(full)::value>(products + b * products_row() + j, count);
            });
        }
        team.meet(part.shares);
        phases<last_phase>(part, s, at, active, mine, team);
        const int t = clock.time(layer.backwards, s);
        for (int b : mine) {
            const bool cut = clock.cut(layer.backwards, t, b);
            each(P, [&](auto full, int64_t j, int64_t count) {
                constexpr bool is_full = decltype(full)::value;
                Real product = get<is_full>(products + b * products_row() + j, count);
                if (Cell::phases > 1) product += get<is_full>(through + b * P + j, count);
                if (layer.mask) product *= get<is_full>(layer.mask + b * P + j, count);
                const Real dh = product + get<is_full>(direct + b * P + j, count);
                put<is_full>(cut ? Real(0) : dh, layer.dh + b * P + j, count);
            });
            for (int64_t j = 0; j < H && cut && Cell::has_c; ++j) layer.dc[b * H + j] = 0;
        }
    }

    // The products of position s from this phase down to the first, with what the cell computes between them.
    template <int phase>
    void phases(
        const Part& part, int64_t s, int64_t at, const std::vector<int>& active, const std::vector<int>& mine,
        Barrier& team) const {
        multiply(part, s, back.hidden(phase), active, [&](int b) {
            return dhidden + gates_at(at, b) + Cell::first_gate(phase) * H;
        });
        team.meet(part.shares);
        if constexpr (phase > 0) {
            for (int b : mine) {
                T* const to = da + gates_at(at, b);
                each(H, [&](auto full, int64_t j, int64_t count) {
                    constexpr bool is_full = decltype(full)::value;
                    Real values[Cell::num_saved], gates[G];
                    for (Real& gate : gates) gate = 0;
                    this->template load<is_full>(saved_at(s, b) + j, count, values);
                    const Real entered = get<is_full>(layer.operands + operand_at(0, s, b) + j, count);
                    const Real product = get<is_full>(products + b * products_row() + j, count);
                    put<is_full>(cell.operand_backward(values, entered, product, gates), through + b * P + j, count);
                    for (int g = 0; g < Cell::waiting; ++g) put<is_full>(gates[g], to + g * H + j, count);
                });
                norm_back<phase - 1>(s, at, b);
            }
            team.meet(part.shares);
            phases<phase - 1>(part, s, at, active, mine, team);
        }
    }

    int64_t products_row() const { return filled(H > P ? H : P); }

    // To `products`: a part's columns of the products with a(b) of `active` rows.
    template <class A>
    void multiply(const Part& part, int64_t s, const Panels<T>& panels, const std::vector<int>& active, A a) const {
        ::multiply<plain_width>(
            panels, part.first(panels.count()), part.last(panels.count()), s % 2, int64_t(active.size()),
            [&](int64_t i) { return a(active[i]); }, [&](int64_t) { return zeros; },
            [&](int64_t i, int, int64_t p, int) { return products + active[i] * products_row() + p * plain_width * lanes; },
            [](int64_t, int, int64_t, int) {});
    }

    // Rows that do not exist at position s: their output may be h, and their state may be cut.
    void idle(const Rows& own, int64_t s) const {
        const int t = clock.time(layer.backwards, s);
        for (int64_t b = own.first; b < own.last && clock.marks; ++b) {
            if (!clock.past(t, b)) continue;
            if (layer.dy && clock.repeats(t, b)) {
                for (int64_t j = 0; j < P; ++j) layer.dh[b * P + j] += layer.dy[(int64_t(t) * B + b) * layer.row + j];
            }
            if (!clock.cut(layer.backwards, t, b)) continue;
            for (int64_t j = 0; j < P; ++j) layer.dh[b * P + j] = 0;
            for (int64_t j = 0; j < H && Cell::has_c; ++j) layer.dc[b * H + j] = 0;
        }
    }

    // From the gradient of h after position s to that of the cell's own, and of h before it where it stayed.
    void begin(int64_t s, int64_t at, int64_t b) const {
        const int t = clock.time(layer.backwards, s);
        const auto of_new = [&](auto full, int64_t j, int64_t count) {
            constexpr bool is_full = decltype(full)::value;
            Real dh = get<is_full>(layer.dh + b * P + j, count);
            if (layer.dy) dh += get<is_full>(layer.dy + (int64_t(t) * B + b) * layer.row + j, count);
            if (!this->zones_h()) {
                put<is_full>(Real(0), direct + b * P + j, count);
                return dh;
            }
            const Real stay = staying<is_full>(sums.zoneout_h, sums.rate_h, this->in_masks(t, b, j), count);
            put<is_full>(stay * dh, direct + b * P + j, count);
            return (1 - stay) * dh;
        };
        if (sums.w_hr) {
            each(P, [&](auto full, int64_t j, int64_t count) {
                put<decltype(full)::value>(of_new(full, j, count), dprojection + (at * B + b) * P + j, count);
            });
        } else {
            of_cell(s, at, b, of_new);
        }
    }

    // From dh(full, j, count), the gradients of the cell's own h, to those of its gates and of c before the step.
    template <class Dh>
    ALWAYS_INLINE void of_cell(int64_t s, int64_t at, int64_t b, const Dh& dh) const {
        const int t = clock.time(layer.backwards, s);
        const T* const saved = saved_at(s, b);
        if constexpr (Cell::has_c) {
            if (sums.norm_c) {
                const T* const value = kept_at(s, b) + kept.c;
                T* const to = doutput + (at * B + b) * H;
                each(H, [&](auto full, int64_t j, int64_t count) {
                    constexpr bool is_full = decltype(full)::value;
                    const Real c = get<is_full>(sums.norm_c + j, count) * get<is_full>(value + j, count) +
                                   get<is_full>(sums.bias_c + j, count);
                    Real values[Cell::num_saved];
                    this->template load<is_full>(saved + j, count, values);
                    put<is_full>(of_output<is_full>(at, b, j, count, dh(full, j, count), values, c), to + j, count);
                });
                // What goes on to c is stored in its place, from which `of_gates` reads it.
                const T inverse = kept_at(s, b)[kept.inverse + 2 * Kept<Cell>::most_norms];
                T* const through_norm = products + b * products_row();
                normalise_back(to, sums.norm_c, value, inverse, H, through_norm);
                each(H, [&](auto full, int64_t j, int64_t count) {
                    constexpr bool is_full = decltype(full)::value;
                    Real values[Cell::num_saved];
                    this->template load<is_full>(saved + j, count, values);
                    of_gates<is_full>(t, at, b, j, count, values, get<is_full>(through_norm + j, count));
                });
            } else {
                each(H, [&](auto full, int64_t j, int64_t count) {
                    constexpr bool is_full = decltype(full)::value;
                    Real values[Cell::num_saved];
                    this->template load<is_full>(saved + j, count, values);
                    const Real c = cell.bounded(cell.unbounded(values, values[Cell::C_PREV]));
                    const Real d = of_output<is_full>(at, b, j, count, dh(full, j, count), values, c);
                    of_gates<is_full>(t, at, b, j, count, values, d);
                });
            }
        } else {
            each(H, [&](auto full, int64_t j, int64_t count) {
                constexpr bool is_full = decltype(full)::value;
                Real values[Cell::num_saved], gates[G], hidden_gates[G], past, no_c = 0;
                this->template load<is_full>(saved + j, count, values);
                const Real of_new = dh(full, j, count);
                cell.backward(values, of_new, no_c, gates, hidden_gates, past);
                put<is_full>(past + get<is_full>(direct + b * P + j, count), direct + b * P + j, count);
                for (int g = Cell::waiting; g < G; ++g) {
                    put<is_full>(gates[g], da + gates_at(at, b) + g * H + j, count);
                    if (Cell::hidden_apart) put<is_full>(hidden_gates[g], da_hidden + gates_at(at, b) + g * H + j, count);
                }
            });
        }
        norm_back<last_phase>(s, at, b);
    }

    // From the gradient of o f(c) to that of c, and to that of the gate o.
    template <bool full>
    ALWAYS_INLINE Real of_output(
        int64_t at, int64_t b, int64_t j, int64_t count, Real dh, const Real (&values)[Cell::num_saved], Real c) const {
        const Real output = cell.kept_output(c);
        Real dc = 0;
        cell.output_backward(values, output, dh, dc);
        put<full>(cell.output_gate_backward(values, output, dh), da + gates_at(at, b) + Cell::O * H + j, count);
        return dc;
    }

    // From the gradient of c by the output to those of the other gates and of c before the step.
    template <bool full>
    ALWAYS_INLINE void of_gates(
        int t, int64_t at, int64_t b, int64_t j, int64_t count, const Real (&values)[Cell::num_saved], Real d) const {
        T* const to = da + gates_at(at, b) + j;
        const Cell own = with_members<Cell, full, false>(cell, layer, t, b, j, count);
        const Real of_o = get<full>(to + Cell::O * H, count), after = get<full>(layer.dc + b * H + j, count);
        const Real stay = this->zones_c() ? staying<full>(sums.zoneout_c, sums.rate_c, this->in_masks(t, b, j), count) : Real(0);
        Real dc = (this->zones_c() ? (1 - stay) * after : after) + d;
        Real gates[G];
        own.advance_backward(values, own.unbounded(values, values[Cell::C_PREV]), dc, gates, [&] { return of_o; });
        put<full>(this->zones_c() ? dc + stay * after : dc, layer.dc + b * H + j, count);
        for (int g = 0; g < G; ++g) put<full>(gates[g], to + g * H, count);
    }

    // Back through the layer norms of a phase's products.
    template <int phase>
    void norm_back(int64_t s, int64_t at, int64_t b) const {
        if (!sums.norm_ih) return;
        const T* const from = kept_at(s, b);
        this->each_norm(Cell::first_gate(phase), Cell::first_gate(phase + 1), [&](int first, int end) {
            const int64_t begin = gates_at(at, b) + first * H, of_gate = first * H, n = (end - first) * H;
            const T* const inverse = from + kept.inverse + Cell::norm_group(first);
            normalise_back(da + begin, sums.norm_ih + of_gate, from + of_gate, inverse[0], n, dinput + begin);
            normalise_back(
                da_hidden + begin, sums.norm_hh + of_gate, from + kept.hidden + of_gate, inverse[Kept<Cell>::most_norms], n,
                dhidden + begin);
        });
    }

    // ---- The gradients of the weights

    // The rows of a chunk that exist, in the order of the backward pass, as indices (s - s0, b).
    void list_rows(int64_t s0, int64_t end, std::vector<int>& rows) const {
        rows.clear();
        for (int64_t s = end - 1; s >= s0; --s) {
            const int t = clock.time(layer.backwards, s);
            for (int64_t b = 0; b < B; ++b) {
                if (!clock.past(t, b)) rows.push_back(int((s - s0) * B + b));
            }
        }
    }

    // A thread's part of dx and of the gradients of the weights, of a chunk's rows. `adds` as in RowGradient.
    void gradients(int index, int count, int64_t s0, const std::vector<int>& rows, bool adds) const {
        const int64_t all = int64_t(rows.size());
        // Where the row of a chunk is in x, and among what is saved.
        const auto in_x = [&](int64_t i) { return clock.time(layer.backwards, s0 + rows[i] / B) * B + rows[i] % B; };
        const auto row_of = [&](const T* from, int64_t width) {
            return [from, width, &rows](int64_t i) { return from + rows[i] * width; };
        };
        const auto of_steps = [&](const T* from, int64_t width) {
            return [from, width, in_x](int64_t i) { return from + in_x(i) * width; };
        };
        input_gradients(all * index / count, all * (index + 1) / count, row_of(dinput, G * H), in_x);

        const int64_t numbers = G * H, from = numbers * index / count, to = numbers * (index + 1) / count;
        T* const panel = packed_panels + index * Gradient::panel_size;
        const int64_t strips = Gradient::strips_size(numbers, layer.team.most);
        T* const packed = packed_strips + index * strips;
        const auto add = [&](auto a, int64_t first, int64_t last, T* total, auto product) {
            Gradient::of_rows(all, a, first, last, adds, total, panel, packed, strips, product);
        };
        const bool norm = sums.norm_ih;
        add(row_of(dinput, G * H), from, to, norm ? nullptr : layer.db_ih,
            Gradient::product(of_steps(layer.x, I), I, layer.dw_ih));
        for (int phase = 0; phase < Cell::phases; ++phase) {
            const int64_t begins = Cell::first_gate(phase) * H, ends = Cell::first_gate(phase + 1) * H;
            const T* const operands = layer.operands + int64_t(phase) * clock.slots * B * P;
            add(row_of(dhidden, G * H), from > begins ? from : begins, to < ends ? to : ends,
                Cell::hidden_apart && !norm ? layer.db_hh : nullptr,
                Gradient::product(of_steps(operands, P), P, layer.dw_hh));
        }
        if (norm) {
            add_columns(
                from, to, all, adds, row_of(da, G * H), of_steps(sums.kept, kept.size), layer.db_ih, sums.dnorm_ih);
            add_columns(
                from, to, all, adds, row_of(da_hidden, G * H), of_steps(sums.kept + kept.hidden, kept.size),
                Cell::hidden_apart ? layer.db_hh : nullptr, sums.dnorm_hh);
        }
        const int64_t first_unit = H * index / count, last_unit = H * (index + 1) / count;
        if (sums.norm_c) {
            add_columns(
                first_unit, last_unit, all, adds, row_of(doutput, H), of_steps(sums.kept + kept.c, kept.size), sums.dbias_c,
                sums.dnorm_c);
        }
        if (sums.w_hr) {
            add(row_of(dprojection, P), P * index / count, P * (index + 1) / count, static_cast<T*>(nullptr),
                Gradient::product(of_steps(sums.kept + kept.unprojected, kept.size), H, sums.dw_hr));
        }
        for (int k = 0; k < Cell::num_weights; ++k) {
            const int64_t gate = Cell::weight_gate(k) * H, reads = Cell::weight_reads(k) * H;
            add_columns(
                first_unit, last_unit, all, adds, row_of(da + gate, G * H),
                of_steps(layer.saved + reads, Cell::num_saved * H), static_cast<T*>(nullptr), layer.dweights + k * H);
        }
    }

    // dx of the rows first ... last - 1 of a chunk.
    template <class A, class InX>
    void input_gradients(int64_t first, int64_t last, A a, InX in_x) const {
        const Panels<T> own = back.input();
        alignas(64) T product[most_sums * lanes];
        ::multiply<plain_width>(
            own, 0, own.count(), false, last - first, [&](int64_t i) { return a(first + i); },
            [&](int64_t) { return zeros; },
            [&](int64_t, int r, int64_t, int beside) { return product + r * beside * plain_width * lanes; },
            [&](int64_t i, int tile_rows, int64_t p, int beside) {
                const T* at = product;
                for (int r = 0; r < tile_rows; ++r) {
                    T* const to = layer.dx + in_x(first + i + r) * I;
                    for (int v = 0; v < beside * plain_width; ++v, at += lanes) {
                        const int64_t column = (p * plain_width + v) * lanes, left = I - column;
                        if (left <= 0) continue;
                        const Real value = Real::load(at);
                        put(layer.adds ? get(to + column, left) + value : value, to + column, left);
                    }
                }
            });
    }

    // total[j] = sum of a(i)[j], unless it is null, and weighed[j] = sum of a(i)[j] b(i)[j], over the rows in order, or added to
    // what is there.
    template <class A, class Values>
    void add_columns(
        int64_t first, int64_t last, int64_t rows, bool adds, A a, Values b, T* total, T* weighed) const {
        for (int64_t j = first; j < last; j += lanes) {
            const int64_t count = last - j;
            Real sum = total && adds ? get(total + j, count) : Real(0);
            Real weighed_sum = adds ? get(weighed + j, count) : Real(0);
            for (int64_t i = 0; i < rows; ++i) {
                const Real value = get(a(i) + j, count);
                sum += value;
                weighed_sum += value * get(b(i) + j, count);
            }
            if (total) put(sum, total + j, count);
            put(weighed_sum, weighed + j, count);
        }
    }

    int64_t gates_at(int64_t position, int64_t b) const { return (position * B + b) * G * H; }

    int64_t size;
    T *zeros, *products, *through, *direct, *da, *da_hidden, *dinput, *dhidden, *doutput, *dprojection;
    T *packed_panels, *packed_strips;
};
