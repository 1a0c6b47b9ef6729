// All steps of one direction of a layer, forward.
//
// A thread takes the steps of its part of the batch one after another. It computes W_ih x with each step where its cache
// has room for both matrices or the next cache is fast, and otherwise for as many steps as stay there; the sums of W_hh h
// start with that. The cell makes the new state of the sums of a tile before they leave the first cache. This file does
// for a register of units what `steps.cuh` does for one.
//
// The weights are packed before the first step, or, if there is one step only, some panels at a time where they are
// read. A step of few rows, which programs take that feed their outputs back, reads them as they lie in memory, and its
// threads share it as they come.
#pragma once

#include <atomic>
#include <memory>
#include <thread>
#include <vector>

#include "native/recurrence.h"

// Whether a method is of the cell, and not inherited.
template <class Cell, class Method>
constexpr bool is_own = false;
template <class Cell, class Result, class... Arguments>
constexpr bool is_own<Cell, Result (Cell::*)(Arguments...) const> = true;

// Whether a cell's `forward` is `advance` and then `output`. All units of a tile do the one before any does the other: what
// waits for each other in one unit is then half as long, and the processor looks ahead to more units.
template <class Cell, class = void>
constexpr bool in_two_passes = false;
template <class Cell>
constexpr bool in_two_passes<Cell, std::void_t<decltype(&Cell::advance)>> = is_own<Cell, decltype(&Cell::advance)>;

template <class Cell>
class Forward {
    using Real = typename Cell::Real;
    using T = typename Real::Number;
    using Phases = Phase<Cell>;
    static constexpr int lanes = Real::lanes, last_phase = Cell::phases - 1;
    static constexpr int64_t chunk_rows = 192;  // of inputs that are multiplied at most before the steps that read them
    static constexpr int64_t most_together = 1 << 20;  // bytes of weights that stay in the cache beside a step's state
    static constexpr int64_t rows_worth_weights = 10;  // of a thread that reads all weights from the third cache

public:
    Forward(const Layer<T>& layer, const Cell& cell)
        : layer(layer),
          cell(cell),
          clock{int(layer.steps), int(layer.batch), int(layer.slots), layer.lengths, layer.marks},
          B(layer.batch),
          I(layer.inputs),
          H(layer.hidden),
          row(Phases::row(H)),
          fetches(layer.saved && layer.slots * B * Cell::num_saved * H / layer.team.most > stays_here() / 3 * 4 / int64_t(sizeof(T))),
          meetings(few_once(layer) ? nullptr : new Barrier[layer.team.most + 1]) {
        T* at = layer.workspace;
        packed_at_once = at;
        if (once(layer)) at += layer.team.most * at_once(layer);
        for (int phase = 0; phase < Cell::phases; ++phase) {
            const int width = Phases::width(phase);
            const int64_t columns = Phases::columns(phase, H);
            inputs[phase] = {at, I, columns, width};
            at += once(layer) ? 0 : Panels<T>::size(I, columns, width);
            hidden[phase] = {at, H, columns, width};
            at += once(layer) ? 0 : Panels<T>::size(H, columns, width);
        }
        input_start = at;
        hidden_start = at + row;
        sums = at + 2 * row;
    }

    static int64_t workspace(const Layer<T>& layer) {
        if (few_once(layer)) return 0;
        const int64_t H = layer.hidden;
        int64_t size = once(layer) ? layer.team.most * at_once(layer) : 0;
        for (int phase = 0; phase < Cell::phases && !once(layer); ++phase) {
            const int64_t columns = Phases::columns(phase, H);
            const int width = Phases::width(phase);
            size += Panels<T>::size(layer.inputs, columns, width) + Panels<T>::size(H, columns, width);
        }
        return size + (2 + layer.batch + layer.team.most * chunk_rows) * Phases::row(H);
    }

    void run() {
        const double weights = double(Cell::gates) * H * (I + H);
        if (few_once(layer)) {
            run_few(time_alone<T>(B * weights, weights));
        } else {
            layer.team.share(time_alone<T>(double(layer.steps) * B * weights, weights), work, this);
        }
    }

private:
    static bool once(const Layer<T>& layer) { return layer.steps == 1; }
    static constexpr int few_rows = 4;
    static bool few_once(const Layer<T>& layer) { return once(layer) && layer.batch <= few_rows; }

    // The panels that a tile may read side by side, and the numbers of as many of them as a thread has room for.
    static constexpr int64_t panels_at_once = 4;
    static int64_t at_once(const Layer<T>& layer) {
        int most = 0;
        for (int phase = 0; phase < Cell::phases; ++phase) {
            if (Phases::width(phase) > most) most = Phases::width(phase);
        }
        return panels_at_once * most * lanes * (layer.inputs > layer.hidden ? layer.inputs : layer.hidden);
    }

    static void work(void* self, int index, int count) { static_cast<Forward*>(self)->work(index, count); }

    void work(int index, int count) {
        const SubnormalsAreZero within;
        if (!once(layer)) pack<0>(index, count);
        if (index == 0) {
            // Where the cell adds W_ih x and W_hh h, one sum holds both, and both biases.
            Phases::arrange(layer.b_ih, Cell::hidden_apart ? nullptr : layer.b_hh, H, input_start);
            Phases::arrange(Cell::hidden_apart ? layer.b_hh : nullptr, nullptr, H, hidden_start);
        }
        if (layer.back) BackwardPanels<Cell>{H, I, layer.back}.pack(layer.w_ih, layer.w_hh, index, count);
        meetings[0].meet(count);

        const int64_t weight_bytes = int64_t(sizeof(T)) * Cell::gates * H * (I + H);
        const int64_t cache = reads_weights_fast() && B >= rows_worth_weights * count ? weight_bytes : stays_here();
        const Part part(index, count, B, weight_bytes, Phases::panels(0, H), layer.team, cache);
        const int64_t rows = part.last_row - part.first_row;
        if (rows == 0) return;
        Barrier& team = meetings[1 + part.team];
        const int64_t groups = Phases::groups(H);
        for (int64_t b = part.first_row; b < part.last_row; ++b) {
            for (int64_t group = part.first(groups); group < part.last(groups); ++group) {
                const int64_t j = group * lanes;
                enter(0, b, j, get(layer.h + b * H + j, H - j));
            }
        }
        team.meet(part.shares);
        const int64_t fitting = stays_here() / 2 / (int64_t(sizeof(T)) * row / part.shares);
        const int64_t wanted = fitting < chunk_rows ? fitting : chunk_rows, chunk = wanted > rows ? wanted / rows : 1;
        // Teams' rows of sums lie one after another, each with room for a chunk.
        T* const own = sums + (part.first_row + part.team * chunk_rows) * row;
        std::vector<int> active;
        const bool together = !Cell::hidden_apart && !once(layer) && rows >= few_rows &&
                              (reads_weights_fast() || weight_bytes / part.shares <= most_together);
        for (int64_t s0 = 0; s0 < clock.T; s0 += chunk) {
            const int64_t end = s0 + chunk < clock.T ? s0 + chunk : clock.T;
            if (!together) multiply_inputs<0>(index, part, s0, end, own, active);
            for (int64_t s = s0; s < end; ++s) {
                list_active(part, s, s, active);
                if (int64_t(active.size()) < rows) idle(part, s);
                steps<0>(index, part, s, together ? nullptr : own + (s - s0) * rows * row, active, team);
            }
        }
    }

    template <int phase>
    void pack(int index, int count) {
        for (const auto& [panels, w] : {std::pair{inputs[phase], layer.w_ih}, std::pair{hidden[phase], layer.w_hh}}) {
            const int64_t all = panels.count(), first = all * index / count;
            Phases::pack(
                phase, w, panels.K, H, first, all * (index + 1) / count, const_cast<T*>(panels.panel(first)));
        }
        if constexpr (phase < last_phase) pack<phase + 1>(index, count);
    }

    // Calls `multiply(panels, first, last)` for the panels of a part, all of them or as many as are packed at once.
    template <class Multiply>
    ALWAYS_INLINE void with_panels(
        int phase, Panels<T> panels, const T* w, int index, const Part& part, Multiply multiply) const {
        const int64_t all = panels.count(), last = part.last(all);
        if (!once(layer)) {
            multiply(panels, part.first(all), last);
            return;
        }
        T* const to = packed_at_once + index * at_once(layer);
        panels.numbers = to;
        for (int64_t first = part.first(all); first < last; first += panels_at_once) {
            const int64_t end = first + panels_at_once < last ? first + panels_at_once : last;
            Phases::pack(phase, w, panels.K, H, first, end, to);
            panels.begin = first;
            multiply(panels, first, end);
        }
    }

    // The part's rows that exist at the positions first ... last, as indices (s - first, b - first_row).
    void list_active(const Part& part, int64_t first, int64_t last, std::vector<int>& active) const {
        active.clear();
        const int64_t rows = part.last_row - part.first_row;
        for (int64_t s = first; s <= last; ++s) {
            const int t = clock.time(layer.backwards, s);
            for (int64_t b = part.first_row; b < part.last_row; ++b) {
                if (!clock.past(t, b)) active.push_back(int((s - first) * rows + b - part.first_row));
            }
        }
    }

    template <int phase>
    void multiply_inputs(int index, const Part& part, int64_t s0, int64_t end, T* own, std::vector<int>& active) const {
        const int64_t rows = part.last_row - part.first_row;
        const int64_t before = Phases::before(phase, H);
        if (phase == 0) list_active(part, s0, end - 1, active);
        const auto multiply_panels = [&](const Panels<T>& panels, int64_t first, int64_t last) {
            multiply<Phases::width(phase)>(
                panels, first, last, false, int64_t(active.size()),
                [&](int64_t i) {
                    const int t = clock.time(layer.backwards, s0 + active[i] / rows);
                    return layer.x + (int64_t(t) * B + part.first_row + active[i] % rows) * I;
                },
                [&](int64_t) { return input_start + before; },
                [&](int64_t i, int, int64_t p, int) {
                    return own + active[i] * row + before + p * Phases::width(phase) * lanes;
                },
                [](int64_t, int, int64_t, int) {});
        };
        with_panels(phase, inputs[phase], layer.w_ih, index, part, multiply_panels);
        if constexpr (phase < last_phase) multiply_inputs<phase + 1>(index, part, s0, end, own, active);
    }

    // The products of position s from this phase on, each with what the cell computes after it.
    template <int phase>
    void steps(
        int index, const Part& part, int64_t s, const T* own, const std::vector<int>& active, Barrier& team) const {
        constexpr int width = Phases::width(phase), gates = Phases::gates(phase);
        const int64_t before = Phases::before(phase, H), groups = Phases::groups(H);
        alignas(64) T products[most_sums * lanes];
        const Step of_step = step_at<phase>(s);
        const int64_t rows = int64_t(active.size());
        const auto operand = [&](int64_t i) { return layer.operands + operand_at(phase, s, part.first_row + active[i]); };
        const auto to = [&](int64_t i, int r, int64_t p, int beside) {
            const int64_t j = p * width / gates * lanes, units = beside * width / gates * lanes;
            if (fetches) fetch<phase>(of_step, part.first_row + active[i], j, units);
            return products + r * beside * width * lanes;
        };
        const auto done = [&](int64_t i, int rows, int64_t p, int beside) {
            const Step step = of_step;  // in registers, whatever is stored
            const int64_t first = p * width / gates, wanted = first + beside * width / gates;
            const int64_t last = wanted < groups ? wanted : groups;
            const auto each = [&](const auto& compute) {
                for (int r = 0; r < rows; ++r) {
                    const int64_t b = part.first_row + active[i + r];
                    T* product = products + r * beside * width * lanes;
                    const T* input = Cell::hidden_apart ? own + active[i + r] * row + before + first * gates * lanes : nullptr;
                    for (int64_t group = first; group < last; ++group) {
                        if (step.H - group * lanes >= lanes) {
                            compute(std::true_type(), b, group * lanes, input, product);
                        } else {
                            compute(std::false_type(), b, group * lanes, input, product);
                        }
                        product += gates * lanes;
                        if (Cell::hidden_apart) input += gates * lanes;
                    }
                }
            };
            if constexpr (phase == last_phase && in_two_passes<Cell>) {
                each([&](auto whole, int64_t b, int64_t j, const T*, T* product) {
                    advance<decltype(whole)::value>(step, b, j, product);
                });
                each([&](auto whole, int64_t b, int64_t j, const T*, const T* product) {
                    output<decltype(whole)::value>(step, b, j, product);
                });
            } else {
                each([&](auto whole, int64_t b, int64_t j, const T* input, const T* product) {
                    finish<phase, decltype(whole)::value>(step, b, j, input, product);
                });
            }
        };
        if (!Cell::hidden_apart && !own) {
            const int64_t all = hidden[phase].count();
            const T* const x = layer.x + (of_step.t * B + part.first_row) * I;
            multiply<width>(
                hidden[phase], part.first(all), part.last(all), s % 2, rows, operand,
                [&](int64_t) { return input_start + before; }, to, done,
                Term{inputs[phase], [&](int64_t i) { return x + active[i] * I; }});
        } else {
            with_panels(
                phase, hidden[phase], layer.w_hh, index, part,
                [&](const Panels<T>& panels, int64_t first, int64_t last) {
                    multiply<width>(
                        panels, first, last, s % 2, rows, operand,
                        [&](int64_t i) { return (Cell::hidden_apart ? hidden_start : own + active[i] * row) + before; },
                        to, done);
                });
        }
        team.meet(part.shares);
        if constexpr (phase < last_phase) steps<phase + 1>(index, part, s, own, active, team);
    }

    // ---- The only step, of few rows

    // Threads share it as they come. In each phase they take shares of the units one after another; who finds none left
    // waits until all are done, and goes on to the next phase.
    struct Shares {
        std::atomic<uint64_t> taken{0};  // a bit for each
        std::atomic<int> done{0};
    };
    static constexpr int most_shares = 64;

    void run_few(double alone) {
        const SubnormalsAreZero within;
        if (layer.back) BackwardPanels<Cell>{H, I, layer.back}.pack(layer.w_ih, layer.w_hh, 0, 1);
        const Part whole(0, 1, B, 0, 1, layer.team);
        for (int64_t b = 0; b < B; ++b) {
            for (int64_t j = 0; j < H; j += lanes) enter(0, b, j, get(layer.h + b * H + j, H - j));
        }
        list_active(whole, 0, 0, only);
        if (int64_t(only.size()) < B) idle(whole, 0);
        const auto take = [](void* self, int index, int count) { static_cast<Forward*>(self)->take_of_few(index, count); };
        layer.team.share_as_they_come(alone, take, this);
    }

    void take_of_few(int index, int count) {
        const SubnormalsAreZero within;
        switch (only.size()) {
            case 1: take_of<1>(index, count); break;
            case 2: take_of<2>(index, count); break;
            case 3: take_of<3>(index, count); break;
            case 4: take_of<4>(index, count); break;
        }
    }

    template <int R, int phase = 0>
    void take_of(int index, int count) {
        static_assert(few_rows == 4 && R <= few_rows, "cases of take_of_few");
        constexpr int together = groups_together(R, Phases::gates(phase));
        const int64_t blocks = (Phases::groups(H) + together - 1) / together;
        const int shares = count == 1 ? 1 : int(blocks < most_shares ? blocks : most_shares);
        Shares& own = of_phase[phase];
        // Each begins where it is likely to have begun in the step before, so that its cache may have the weights.
        for (int n = 0; n < shares; ++n) {
            const int share = int((int64_t(shares) * index / count + n) % shares);
            const uint64_t bit = uint64_t(1) << share;
            if (own.taken.load(std::memory_order_relaxed) & bit || own.taken.fetch_or(bit) & bit) continue;
            step_of<R, phase>(blocks * share / shares * together, blocks * (share + 1) / shares * together);
            own.done.fetch_add(1, std::memory_order_release);
        }
        if constexpr (phase < last_phase) {
            for (int spin = 0; own.done.load(std::memory_order_acquire) < shares; ++spin) {
                if (spin < 1000) pause_briefly();
                else std::this_thread::yield();
            }
            take_of<R, phase + 1>(index, count);
        }
    }

    // The sums that are computed side by side, and the groups of units that they belong to.
    static constexpr int chains(int rows) { return rows > 2 ? 1 : 2; }
    static constexpr int groups_together(int rows, int gates) { return gates % chains(rows) == 0 ? 1 : 2; }

    // The units of groups first ... last - 1, as far as there are so many.
    template <int R, int phase>
    void step_of(int64_t first_group, int64_t last_group) const {
        constexpr int gates = Phases::gates(phase), side = chains(R), together = groups_together(R, gates);
        constexpr int size = gates * lanes;
        const Step step = step_at<phase>(0);
        const T *x[R], *h[R];
        for (int r = 0; r < R; ++r) {
            const int64_t b = only[r];
            x[r] = layer.x + (step.t * B + b) * I;
            h[r] = layer.operands + operand_at(phase, 0, b);
        }
        alignas(64) T input[R][together * size], product[R][together * size];
        for (int64_t j = first_group * lanes; j < last_group * lanes && j < H; j += together * lanes) {
            if (H - j >= together * lanes) {
                for (int n = 0; n < together * gates; n += side) {
                    sums_of<true, R, side, phase>(x, h, j, n, input, product);
                }
            } else {
                for (int n = 0; n < together * gates && j + n / gates * lanes < H; ++n) {
                    sums_of<false, R, 1, phase>(x, h, j, n, input, product);
                }
            }
            for (int r = 0; r < R; ++r) {
                for (int group = 0; group < together && j + group * lanes < H; ++group) {
                    const int64_t unit = j + group * lanes, at = group * size;
                    if (H - unit >= lanes) {
                        finish<phase, true>(step, only[r], unit, input[r] + at, product[r] + at);
                    } else {
                        finish<phase, false>(step, only[r], unit, input[r] + at, product[r] + at);
                    }
                }
            }
        }
    }

    // The sums n ... n + side - 1 of the units from j on, of which each group has one for each gate.
    template <bool whole, int R, int side, int phase, int size>
    ALWAYS_INLINE void sums_of(
        const T* const (&x)[R], const T* const (&h)[R], int64_t j, int n, T (&input)[R][size], T (&product)[R][size]) const {
        constexpr int first = Cell::first_gate(phase), gates = Phases::gates(phase);
        const T *of_x[side], *of_h[side];
        Real sums[side][R], b_hh[side];
        int64_t left = lanes;
        for (int c = 0; c < side; ++c) {
            const int64_t unit = j + (n + c) / gates * lanes, at = (first + (n + c) % gates) * H + unit;
            if (!whole && H - unit < left) left = H - unit;
            of_x[c] = layer.w_ih + at * I;
            of_h[c] = layer.w_hh + at * H;
            b_hh[c] = bias(layer.b_hh, at, left);
            const Real b_ih = bias(layer.b_ih, at, left);
            for (Real& sum : sums[c]) sum = b_ih + (Cell::hidden_apart ? Real(0) : b_hh[c]);
        }
        add_products<whole>(x, I, of_x, left, sums);
        if (Cell::hidden_apart) {
            for (int c = 0; c < side; ++c) {
                for (int r = 0; r < R; ++r) {
                    sums[c][r].store(input[r] + (n + c) * lanes);
                    sums[c][r] = b_hh[c] + Real(0);
                }
            }
        }
        add_products<whole>(h, H, of_h, left, sums);
        for (int c = 0; c < side; ++c) {
            for (int r = 0; r < R; ++r) sums[c][r].store(product[r] + (n + c) * lanes);
        }
    }

    static Real bias(const T* from, int64_t at, int64_t count) { return from ? get(from + at, count) : Real(0); }

    // ---- What the cell makes of the sums

    // What the cell reads and writes at a position, from its first row on.
    struct Step {
        int64_t s, t, H;
        T *h, *c;    // (B, H): the state
        T* saved;    // (B, S, H), or null
        T* y;        // (B, H) of the rows
        T* next;     // (B, H): the operand of the next phase, or of the next position's first; null for none
        int64_t row;
        bool plain;  // the state enters every position as it left the one before
    };
    template <int phase>
    Step step_at(int64_t s) const {
        const int t = clock.time(layer.backwards, s);
        T* const next = phase < last_phase    ? layer.operands + operand_at(phase + 1, s, 0)
                        : s + 1 < clock.T ? layer.operands + operand_at(0, s + 1, 0)
                                          : nullptr;
        return {s, t, H, layer.h, layer.c, layer.saved ? layer.saved + saved_at(s, 0) : nullptr,
                layer.y + int64_t(t) * B * layer.row, next, layer.row, !layer.marks && !layer.mask};
    }

    // Fetches what `finish` will write of some units, while the product before it is computed: storing would wait for it.
    template <int phase>
    ALWAYS_INLINE void fetch(const Step& step, int64_t b, int64_t j, int64_t units) const {
        constexpr int64_t line = 64 / sizeof(T);
        constexpr int first = Cell::first_gate(phase), end = phase < last_phase ? Cell::first_gate(phase + 1) : Cell::num_saved;
        const int64_t last = j + units < step.H ? j + units : step.H;
        T* const to = step.saved + b * Cell::num_saved * step.H;
        for (; j < last; j += line) {
            for (int k = first; k < end; ++k) __builtin_prefetch(to + k * step.H + j, 0, 2);
            if (step.next) __builtin_prefetch(step.next + b * step.H + j, 0, 2);
            if (phase == last_phase) __builtin_prefetch(step.y + b * step.row + j, 0, 2);
        }
    }

    // After the product of a phase, for the units of row b from j on.
    template <int phase, bool whole>
    ALWAYS_INLINE void finish(const Step& step, int64_t b, int64_t j, const T* input, const T* product) const {
        constexpr int first = Cell::first_gate(phase), end = Cell::first_gate(phase + 1);
        const int64_t count = whole ? lanes : step.H - j, at = b * step.H + j;
        Real x[Cell::gates], p[Cell::gates], values[Cell::num_saved];
        load_sums<phase>(input, product, x, p);
        T* const to = step.saved + b * Cell::num_saved * step.H + j;
        Real h = get<whole>(step.h + at, count);
        if constexpr (phase < last_phase) {
            const Real next = cell.operand(x, p, step.plain ? h : entering(step.s, b, j, count, h), values);
            for (int k = first; k < end; ++k) put<whole>(values[k], to + k * step.H, count);
            put<whole>(next, step.next + at, count);
        } else {
            Real c = Cell::has_c ? get<whole>(step.c + at, count) : Real(0);
            if (!step.plain && clock.cut(layer.backwards, step.t, b)) h = c = 0;
            for (int k = 0; k < first; ++k) values[k] = get<whole>(to + k * step.H, count);
            with_members<Cell, whole>(cell, layer, step.t, b, j, count).forward(x, p, h, c, values);
            if (step.saved) {
                for (int k = first; k < Cell::num_saved; ++k) put<whole>(values[k], to + k * step.H, count);
            }
            if (Cell::has_c) put<whole>(c, step.c + at, count);
            put_state<whole>(step, b, j, h);
        }
    }

    // `finish` in two passes. The first leaves what the output gate keeps where its sum was.
    template <bool whole>
    ALWAYS_INLINE void advance(const Step& step, int64_t b, int64_t j, T* product) const {
        const int64_t count = whole ? lanes : step.H - j, at = b * step.H + j;
        Real x[Cell::gates], p[Cell::gates], values[Cell::num_saved];
        load_sums<last_phase>(nullptr, product, x, p);
        Real c = get<whole>(step.c + at, count);
        if (!step.plain && clock.cut(layer.backwards, step.t, b)) c = 0;
        c = with_members<Cell, whole>(cell, layer, step.t, b, j, count).advance(x, p, c, values);
        values[Cell::O].store(product + Cell::O * lanes);
        put<whole>(c, step.c + at, count);
        if (step.saved) {
            T* const to = step.saved + b * Cell::num_saved * step.H + j;
            for (int k = 0; k < Cell::num_saved; ++k) put<whole>(values[k], to + k * step.H, count);
        }
    }
    template <bool whole>
    ALWAYS_INLINE void output(const Step& step, int64_t b, int64_t j, const T* product) const {
        Real values[Cell::num_saved];
        values[Cell::O] = Real::load(product + Cell::O * lanes);
        put_state<whole>(step, b, j, cell.output(values, get<whole>(step.c + b * step.H + j, step.H - j)));
    }

    // The sums of a phase as the cell takes them, by gate.
    template <int phase>
    static ALWAYS_INLINE void load_sums(
        const T* input, const T* product, Real (&x)[Cell::gates], Real (&p)[Cell::gates]) {
        constexpr int first = Cell::first_gate(phase), end = Cell::first_gate(phase + 1);
        for (int g = first; g < end; ++g) {
            const Real sum = Real::load(product + (g - first) * lanes);
            x[g] = Cell::hidden_apart ? Real::load(input + (g - first) * lanes) : sum;
            p[g] = Cell::hidden_apart ? sum : Real(-T(0));  // nothing is added
        }
    }
    template <bool whole>
    ALWAYS_INLINE void put_state(const Step& step, int64_t b, int64_t j, Real h) const {
        const int64_t count = whole ? lanes : step.H - j, at = b * step.H + j;
        put<whole>(h, step.h + at, count);
        put<whole>(h, step.y + b * step.row + j, count);
        if (step.next) put<whole>(step.plain ? h : entering(step.s + 1, b, j, count, h), step.next + at, count);
    }

    // Rows that do not exist at position s: their state stays, unless it is cut there, and their output is zero or h.
    void idle(const Part& part, int64_t s) const {
        const int t = clock.time(layer.backwards, s);
        const int64_t groups = Phases::groups(H);
        for (int64_t b = part.first_row; b < part.last_row; ++b) {
            if (!clock.past(t, b)) continue;
            const bool cut = clock.cut(layer.backwards, t, b), repeats = clock.repeats(t, b);
            for (int64_t j = part.first(groups) * lanes; j < part.last(groups) * lanes; j += lanes) {
                if (cut) put(Real(0), layer.h + b * H + j, H - j);
                if (cut && Cell::has_c) put(Real(0), layer.c + b * H + j, H - j);
                const Real h = get(layer.h + b * H + j, H - j);
                put(repeats ? h : Real(0), layer.y + (int64_t(t) * B + b) * layer.row + j, H - j);
                if (s + 1 < clock.T) enter(s + 1, b, j, h);
            }
        }
    }

    // h as it enters phase 0 of position s.
    Real entering(int64_t s, int64_t b, int64_t j, int64_t count, Real h) const {
        if (clock.cut(layer.backwards, clock.time(layer.backwards, s), b)) h = 0;
        return layer.mask ? h * get(layer.mask + b * H + j, count) : h;
    }
    void enter(int64_t s, int64_t b, int64_t j, Real h) const {
        put(entering(s, b, j, H - j, h), layer.operands + operand_at(0, s, b) + j, H - j);
    }

    int64_t operand_at(int phase, int64_t s, int64_t b) const {
        return ((int64_t(phase) * clock.slots + clock.slot(layer.backwards, s)) * B + b) * H;
    }
    int64_t saved_at(int64_t s, int64_t b) const {
        return (clock.slot(layer.backwards, s) * B + b) * Cell::num_saved * H;
    }

    const Layer<T>& layer;
    const Cell cell;
    const Clock clock;
    const int64_t B, I, H, row;
    const bool fetches;  // what training saves is more than stays in the cache from one call to the next
    const std::unique_ptr<Barrier[]> meetings;
    std::vector<int> only;  // of the only step, the rows that exist
    Shares of_phase[Cell::phases];
    Panels<T> inputs[Cell::phases], hidden[Cell::phases];
    T* packed_at_once;  // of each thread, where there is one step
    T *input_start, *hidden_start;  // what the sums of a row start with
    T* sums;
};
