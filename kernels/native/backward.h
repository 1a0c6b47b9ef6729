// All steps of one direction of a layer, backward, and the gradients of the weights.
//
// The steps of a chunk are computed as in forward.h, each thread those of its part. Then the threads meet, because the
// gradients of the weights are sums over all rows of the batch. These run over the rows in the order of the backward
// pass, one chain for each number, so that a sequence cut into parts gives the bits of the whole.
#pragma once

#include <memory>
#include <vector>

#include "native/gradients.h"
#include "native/recurrence.h"

template <class Cell>
class Backward {
    using Real = typename Cell::Real;
    using T = typename Real::Number;
    static constexpr int lanes = Real::lanes, last_phase = Cell::phases - 1, G = Cell::gates;

public:
    Backward(const Layer<T>& layer, const Cell& cell)
        : layer(layer),
          cell(cell),
          clock{int(layer.steps), int(layer.batch), int(layer.slots), layer.lengths, layer.marks},
          B(layer.batch),
          I(layer.inputs),
          H(layer.hidden),
          panels{H, I, layer.back},
          meetings(new Barrier[layer.team.most + 1]) {
        T* at = layer.workspace;
        zeros = at;
        at += zeros_size(layer);
        direct = at;
        at += B * H;
        through = at;
        at += Cell::phases > 1 ? B * H : 0;
        da = at;
        at += layer.chunk * B * G * H;
        da_hidden = Cell::hidden_apart ? at : da;
        at += Cell::hidden_apart ? layer.chunk * B * G * H : 0;
        packed_panels = at;
        packed_strips = at + layer.team.most * RowGradient<T>::panel_size;
    }

    static int64_t workspace(const Layer<T>& layer) {
        const int64_t B = layer.batch, H = layer.hidden, gates = layer.chunk * B * G * H;
        return zeros_size(layer) + B * H * (Cell::phases > 1 ? 2 : 1) + gates * (Cell::hidden_apart ? 2 : 1) +
               layer.team.most * (RowGradient<T>::panel_size + RowGradient<T>::strips_size(G * H, layer.team.most));
    }

    void run() {
        const double weights = double(G) * H * (I + H);
        layer.team.share(time_alone<T>(2.0 * layer.steps * B * weights, weights), work, this);
    }

private:
    static void work(void* self, int index, int count) { static_cast<Backward*>(self)->work(index, count); }

    // What a sum of every panel can start with.
    static int64_t zeros_size(const Layer<T>& layer) {
        const int64_t most = layer.hidden > layer.inputs ? layer.hidden : layer.inputs;
        return (most / (plain_width * lanes) + 1) * plain_width * lanes;
    }
    void work(int index, int count) {
        const SubnormalsAreZero within;
        if (index == 0) {
            for (int64_t i = 0; i < zeros_size(layer); ++i) zeros[i] = 0;
        }
        const Part part(index, count, B, int64_t(sizeof(T)) * G * H * H, panels.hidden_panels(0).count(), layer.team);
        Barrier& team = meetings[1 + part.team];
        std::vector<int> active, rows;
        for (int64_t end = clock.T; end > 0;) {
            const int64_t s0 = (end - 1) / layer.chunk * layer.chunk;
            const Step last = step_at(end - 1, s0);
            meetings[0].meet(count);  // the gradients of the chunk before are done with the gates
            for (int64_t b = part.first_row; b < part.last_row; ++b) {
                if (!clock.past(last.t, b)) begin_row(part, last, b);
            }
            team.meet(part.shares);
            for (int64_t s = end - 1; s >= s0; --s) {
                active.clear();
                const int t = clock.time(layer.backwards, s);
                for (int64_t b = part.first_row; b < part.last_row; ++b) {
                    if (!clock.past(t, b)) active.push_back(int(b));
                }
                steps<last_phase>(part, s, s0, active, team);
            }
            meetings[0].meet(count);
            list_rows(s0, end, rows);
            gradients(index, count, s0, rows, layer.continues || end < clock.T);
            end = s0;
        }
    }

    // What a position reads and writes, from the first row on.
    struct Step {
        int t;
        bool exists;  // among the positions of the chunk
        bool marked;  // rows may pause, end or restart
        int64_t H, row;
        const T *saved, *dy, *operand;   // (B, S, H), (B, row) or null, and (B, H): h as it entered
        T *dh, *dc, *direct;             // (B, H)
        T *da, *da_hidden;               // (B, G*H)
    };
    Step step_at(int64_t s, int64_t s0) const {
        const bool exists = s >= s0;
        if (!exists) s = s0;
        const int t = clock.time(layer.backwards, s);
        const int64_t slot = clock.slot(layer.backwards, s), gates = (s - s0) * B * G * H;
        return {t, exists, layer.lengths || layer.marks, H, layer.row, layer.saved + slot * B * Cell::num_saved * H,
                layer.dy ? layer.dy + int64_t(t) * B * layer.row : nullptr, layer.operands + slot * B * H,
                layer.dh, layer.dc, direct, da + gates, da_hidden + gates};
    }

    // The transposes of position s from this phase down to the first, each with what the cell computes after it.
    template <int phase>
    void steps(const Part& part, int64_t s, int64_t s0, const std::vector<int>& active, Barrier& team) const {
        const Panels<T> own = panels.hidden_panels(phase);
        const int64_t all = own.count();
        const int64_t first_number = int64_t(Cell::first_gate(phase)) * H;
        alignas(64) T products[most_sums * lanes];
        const Step of_step = step_at(s, s0), of_earlier = step_at(s - 1, s0);
        multiply<plain_width>(
            own, part.first(all), part.last(all), s % 2, int64_t(active.size()),
            [&](int64_t i) { return of_step.da_hidden + active[i] * G * H + first_number; },
            [&](int64_t) { return zeros; },
            [&](int64_t i, int r, int64_t p, int beside) {
                constexpr int64_t columns = plain_width * lanes;
                if (phase == 0 && of_earlier.exists) fetch(of_earlier, active[i], p * columns, beside * columns);
                return products + r * beside * columns;
            },
            [&](int64_t i, int rows, int64_t p, int beside) {
                const Step step = of_step, earlier = of_earlier;  // in registers, whatever is stored
                for (int r = 0; r < rows; ++r) {
                    const int64_t b = active[i + r];
                    const T* product = products + r * beside * plain_width * lanes;
                    for (int v = 0; v < beside * plain_width; ++v, product += lanes) {
                        const int64_t j = (p * plain_width + v) * lanes;
                        if (step.H - j >= lanes) {
                            finish<phase, true>(step, earlier, b, j, Real::load(product));
                        } else if (step.H > j) {
                            finish<phase, false>(step, earlier, b, j, Real::load(product));
                        }
                    }
                }
            });
        if (phase == 0) idle(part, s);
        if (phase == 0 && s > s0) begin_rows_that_end(part, s - 1, s0);
        team.meet(part.shares);
        if constexpr (phase > 0) steps<phase - 1>(part, s, s0, active, team);
    }

    // Fetches what `begin` will read of some columns at a position, while the product before it is computed.
    ALWAYS_INLINE void fetch(const Step& step, int64_t b, int64_t j, int64_t columns) const {
        constexpr int64_t line = 64 / sizeof(T);
        const int64_t end = j + columns < H ? j + columns : H;
        const T* const values = step.saved + b * Cell::num_saved * H;
        for (int64_t at = j; at < end; at += line) {
            for (int k = 0; k < Cell::num_saved; ++k) __builtin_prefetch(values + k * H + at);
            if (step.dy) __builtin_prefetch(step.dy + b * step.row + at);
        }
    }

    // Rows that do not exist at position s: their output may be h, and their state may be cut.
    void idle(const Part& part, int64_t s) const {
        const int t = clock.time(layer.backwards, s);
        const int64_t groups = (H + lanes - 1) / lanes;
        for (int64_t b = part.first_row; b < part.last_row && clock.marks; ++b) {
            if (!clock.past(t, b)) continue;
            const bool cut = clock.cut(layer.backwards, t, b), repeats = layer.dy && clock.repeats(t, b);
            if (!cut && !repeats) continue;
            for (int64_t j = part.first(groups) * lanes; j < part.last(groups) * lanes; j += lanes) {
                Real dh = get(layer.dh + b * H + j, H - j);
                if (repeats) dh += get(layer.dy + (int64_t(t) * B + b) * layer.row + j, H - j);
                put(cut ? Real(0) : dh, layer.dh + b * H + j, H - j);
                if (cut && Cell::has_c) put(Real(0), layer.dc + b * H + j, H - j);
            }
        }
    }

    // Those that exist at position s and not at the one after it in this direction: nothing came back from its products.
    void begin_rows_that_end(const Part& part, int64_t s, int64_t s0) const {
        const Step step = step_at(s, s0);
        const int later = clock.time(layer.backwards, s + 1);
        for (int64_t b = part.first_row; b < part.last_row; ++b) {
            if (!clock.past(step.t, b) && clock.past(later, b)) begin_row(part, step, b);
        }
    }

    // After the product of a phase, for the units of row b from j on. `earlier` is the position before.
    template <int phase, bool whole>
    ALWAYS_INLINE void finish(const Step& step, const Step& earlier, int64_t b, int64_t j, Real product) const {
        const int64_t H = step.H, count = whole ? lanes : H - j, at = b * H + j;
        if constexpr (phase > 0) {
            Real values[Cell::num_saved], gates[G];
            for (Real& gate : gates) gate = 0;
            load<whole>(step, b, j, count, values);
            const Real entered = get<whole>(step.operand + at, count);
            put<whole>(cell.operand_backward(values, entered, product, gates), through + at, count);
            T* const to = step.da + b * G * H + j;
            for (int g = 0; g < Cell::waiting; ++g) put<whole>(gates[g], to + g * H, count);
        } else {
            if (Cell::phases > 1) product += get<whole>(through + at, count);
            if (layer.mask) product *= get<whole>(layer.mask + at, count);
            Real dh = product + get<whole>(step.direct + at, count);
            if (step.marked && clock.cut(layer.backwards, step.t, b)) {
                dh = 0;
                if (Cell::has_c) put<whole>(Real(0), step.dc + at, count);
            }
            put<whole>(dh, step.dh + at, count);
            if (earlier.exists && !(step.marked && clock.past(earlier.t, b))) begin<whole>(earlier, b, j);
        }
    }

    // From the gradients of the state after a position to those of its gates, except those that wait for a later phase.
    template <bool whole>
    ALWAYS_INLINE void begin(const Step& step, int64_t b, int64_t j) const {
        const int64_t H = step.H, count = whole ? lanes : H - j, at = b * H + j;
        Real dh = get<whole>(step.dh + at, count);
        Real dc = Cell::has_c ? get<whole>(step.dc + at, count) : Real(0);
        if (step.dy) dh += get<whole>(step.dy + b * step.row + j, count);
        Real values[Cell::num_saved], gates[G], hidden_gates[G], past_products;
        load<whole>(step, b, j, count, values);
        with_members<Cell, whole, false>(cell, layer, step.t, b, j, count)
            .backward(values, dh, dc, gates, hidden_gates, past_products);
        put<whole>(past_products, step.direct + at, count);
        if (Cell::has_c) put<whole>(dc, step.dc + at, count);
        T* const to = step.da + b * G * H + j;
        T* const to_hidden = step.da_hidden + b * G * H + j;
        for (int g = Cell::waiting; g < G; ++g) {
            put<whole>(gates[g], to + g * H, count);
            if (Cell::hidden_apart) put<whole>(hidden_gates[g], to_hidden + g * H, count);
        }
    }

    template <bool whole>
    ALWAYS_INLINE void load(const Step& step, int64_t b, int64_t j, int64_t count, Real (&values)[Cell::num_saved]) const {
        const T* const from = step.saved + b * Cell::num_saved * step.H + j;
        for (int k = 0; k < Cell::num_saved; ++k) values[k] = get<whole>(from + k * step.H, count);
    }

    // `begin` for a part's units of a row.
    void begin_row(const Part& part, const Step& step, int64_t b) const {
        const int64_t groups = (H + lanes - 1) / lanes;
        for (int64_t j = part.first(groups) * lanes; j < part.last(groups) * lanes; j += lanes) {
            if (H - j >= lanes) begin<true>(step, b, j);
            else begin<false>(step, b, j);
        }
    }

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

    // Where in x the row of a chunk is.
    int64_t row_of_input(int64_t s0, int row) const { return clock.time(layer.backwards, s0 + row / B) * B + row % B; }

    // dx of the rows first ... last - 1 of a chunk.
    template <int width>
    void input_gradients(int64_t first, int64_t last, int64_t s0, const std::vector<int>& rows) const {
        const Panels<T> own = panels.input_panels();
        alignas(64) T products[most_sums * lanes];
        multiply<width>(
            own, 0, own.count(), false, last - first,
            [&](int64_t i) { return da + int64_t(rows[first + i]) * G * H; }, [&](int64_t) { return zeros; },
            [&](int64_t, int r, int64_t, int beside) { return products + r * beside * width * lanes; },
            [&](int64_t i, int tile_rows, int64_t p, int beside) {
                for (int r = 0; r < tile_rows; ++r) {
                    T* const to = layer.dx + row_of_input(s0, rows[first + i + r]) * I;
                    const T* product = products + r * beside * width * lanes;
                    for (int v = 0; v < beside * width; ++v, product += lanes) {
                        const int64_t column = (p * width + v) * lanes, left = I - column;
                        if (left <= 0) break;
                        const Real value = Real::load(product);
                        put(layer.adds ? get(to + column, left) + value : value, to + column, left);
                    }
                }
            });
    }

    // A thread's part of dx and of the gradients of the weights, of a chunk's rows. `adds` as in RowGradient.
    void gradients(int index, int count, int64_t s0, const std::vector<int>& rows, bool adds) const {
        const int64_t all = int64_t(rows.size());
        const int64_t first = all * index / count, last = all * (index + 1) / count;
        switch (panels.input_panels().width) {
            case 1: input_gradients<1>(first, last, s0, rows); break;
            case 2: input_gradients<2>(first, last, s0, rows); break;
            case 3: input_gradients<3>(first, last, s0, rows); break;
            default: input_gradients<4>(first, last, s0, rows); break;
        }

        const int64_t numbers = G * H, from = numbers * index / count, to = numbers * (index + 1) / count;
        T* const panel = packed_panels + index * RowGradient<T>::panel_size;
        const int64_t size = RowGradient<T>::strips_size(numbers, layer.team.most);
        T* const strips = packed_strips + index * size;
        using Gradient = RowGradient<T>;
        const auto gates = [&](int64_t i) { return da + int64_t(rows[i]) * G * H; };
        const auto of_inputs = Gradient::product(
            [&](int64_t i) { return layer.x + row_of_input(s0, rows[i]) * I; }, I, layer.dw_ih);
        const auto of_operands = [&](int phase) {
            const T* const operands = layer.operands + int64_t(phase) * clock.slots * B * H;
            return Gradient::product(
                [&, operands](int64_t i) { return operands + row_of_input(s0, rows[i]) * H; }, H, layer.dw_hh);
        };
        if constexpr (Cell::phases == 1 && !Cell::hidden_apart) {
            Gradient::of_rows(
                all, gates, from, to, adds, layer.db_ih, panel, strips, size, of_inputs, of_operands(0));
        } else {
            const auto hidden_gates = [&](int64_t i) { return da_hidden + int64_t(rows[i]) * G * H; };
            Gradient::of_rows(all, gates, from, to, adds, layer.db_ih, panel, strips, size, of_inputs);
            for (int phase = 0; phase < Cell::phases; ++phase) {
                const int64_t begins = Cell::first_gate(phase) * H, ends = Cell::first_gate(phase + 1) * H;
                Gradient::of_rows(
                    all, hidden_gates, from > begins ? from : begins, to < ends ? to : ends, adds,
                    Cell::hidden_apart ? layer.db_hh : nullptr, panel, strips, size, of_operands(phase));
            }
        }
        for (int k = 0; k < Cell::num_weights; ++k) {
            const int64_t gate = Cell::weight_gate(k) * H, reads = Cell::weight_reads(k) * H;
            for (int64_t j = H * index / count; j < H * (index + 1) / count; ++j) {
                T total = adds ? layer.dweights[k * H + j] : T(0);
                for (int row : rows) {
                    const T* const values = layer.saved + row_of_input(s0, row) * Cell::num_saved * H;
                    total += da[int64_t(row) * G * H + gate + j] * values[reads + j];
                }
                layer.dweights[k * H + j] = total;
            }
        }
    }

    const Layer<T>& layer;
    const Cell cell;
    const Clock clock;
    const int64_t B, I, H;
    const BackwardPanels<Cell> panels;
    const std::unique_ptr<Barrier[]> meetings;
    T *zeros, *direct, *through, *da, *da_hidden, *packed_panels, *packed_strips;
};
