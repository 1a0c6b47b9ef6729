// All steps of one direction, forward, of a cell with sums over hidden units.
#pragma once

#include "native/sums_layer.h"

template <class Cell>
class SumsForward : Sums<Cell> {
    using Base = Sums<Cell>;
    using typename Base::Real, typename Base::T, typename Base::Rows;
    using Base::lanes, Base::last_phase, Base::G, Base::sums, Base::layer, Base::cell, Base::clock, Base::B,
        Base::I, Base::H, Base::P, Base::kept, Base::back, Base::meetings, Base::each, Base::operand_at,
        Base::saved_at, Base::kept_at;
    static constexpr int64_t chunk_rows = 192;  // of inputs that are multiplied before the steps that read them

public:
    SumsForward(const SumsLayer<T>& sums, const Cell& cell) : Base(sums, cell) {
        const bool packs = layer.steps > 1 || B > Factor<T>::few_rows;
        T* at = layer.workspace;
        const auto room = [&](int64_t size) {
            T* const begin = at;
            at += size;
            return begin;
        };
        row = 0;
        for (int phase = 0; phase < Cell::phases; ++phase) {
            const int64_t gates = Phase<Cell>::gates(phase), first = Cell::first_gate(phase) * H;
            input[phase] = {layer.w_ih + first * I, I, gates, H};
            hidden[phase] = {layer.w_hh + first * P, P, gates, H};
            before[phase] = row;
            row += input[phase].row();
        }
        if (sums.w_hr) projection = {sums.w_hr, H, 1, P};
        for (Factor<T>* factor : factors()) {
            if (packs) factor->numbers = room(factor->size());
        }
        input_start = room(row);
        hidden_start = room(row);
        projection_start = room(projection.row());
        hidden_sums = room(B * row);
        unprojected = room(sums.w_hr ? B * H : 0);
        projected = room(B * projection.row());
        cell_states = room(layer.team.most * H);
        input_sums = room((B + layer.team.most * chunk_rows) * row);
        size = at - layer.workspace;
    }

    // The numbers of the workspace.
    int64_t workspace() const { return size; }

    void run() {
        const double weights = double(G) * H * (I + P) + double(sums.w_hr ? P * H : 0);
        layer.team.share(time_alone<T>(double(layer.steps) * B * weights, weights), work, this);
    }

private:
    std::vector<Factor<T>*> factors() {
        std::vector<Factor<T>*> all;
        for (Factor<T>& factor : input) all.push_back(&factor);
        for (Factor<T>& factor : hidden) all.push_back(&factor);
        if (sums.w_hr) all.push_back(&projection);
        return all;
    }

    static void work(void* self, int index, int count) { static_cast<SumsForward*>(self)->work(index, count); }

    void work(int index, int count) {
        const SubnormalsAreZero within;
        for (Factor<T>* factor : factors()) factor->pack(index, count);
        if (index == 0) {
            // A bias comes after the norm.
            for (int phase = 0; phase < Cell::phases; ++phase) {
                const int64_t first = Cell::first_gate(phase) * H;
                const bool adds = !sums.norm_ih;
                const T* const b_ih = adds && layer.b_ih ? layer.b_ih + first : nullptr;
                const T* const b_hh = adds && layer.b_hh ? layer.b_hh + first : nullptr;
                input[phase].arrange(b_ih, input_start + before[phase]);
                hidden[phase].arrange(b_hh, hidden_start + before[phase]);
            }
            projection.arrange(nullptr, projection_start);
        }
        if (layer.back) back.pack(index, count);
        meetings[0].meet(count);

        const int64_t bytes = int64_t(sizeof(T)) * G * H * (I + P);
        const Part part(index, count, B, bytes, hidden[0].panels().count(), layer.team);
        const int64_t rows = part.last_row - part.first_row;
        if (rows == 0) return;
        Barrier& team = meetings[1 + part.team];
        const Rows own(part);
        for (int64_t b = own.first; b < own.last; ++b) enter(0, b);
        team.meet(part.shares);
        const int64_t chunk = chunk_rows > rows ? chunk_rows / rows : 1;
        // Teams' rows of sums lie one after another, each with room for a chunk.
        T* const inputs = input_sums + (part.first_row + part.team * chunk_rows) * row;
        std::vector<int> active;
        for (int64_t s0 = 0; s0 < clock.T; s0 += chunk) {
            const int64_t end = s0 + chunk < clock.T ? s0 + chunk : clock.T;
            multiply_inputs(part, s0, end, inputs, team);
            for (int64_t s = s0; s < end; ++s) {
                this->list_active(s, part.first_row, part.last_row, active);
                idle(own, s);
                steps<0>(part, own, s, inputs + ((s - s0) * rows - part.first_row) * row, active, cell_states + index * H, team);
            }
        }
    }

    // W_ih x of some positions, normalised.
    void multiply_inputs(const Part& part, int64_t s0, int64_t end, T* inputs, Barrier& team) const {
        const int64_t rows = part.last_row - part.first_row;
        std::vector<std::pair<int64_t, int64_t>> there;  // position and row of the batch
        for (int64_t s = s0; s < end; ++s) {
            const int t = clock.time(layer.backwards, s);
            for (int64_t b = part.first_row; b < part.last_row; ++b) {
                if (!clock.past(t, b)) there.push_back({s, b});
            }
        }
        const int64_t all = int64_t(there.size());
        const auto sums_of = [&](int64_t i) {
            return inputs + ((there[i].first - s0) * rows + there[i].second - part.first_row) * row;
        };
        for (int phase = 0; phase < Cell::phases; ++phase) {
            input[phase].multiply(
                part, false, all, input_start + before[phase],
                [&](int64_t i) {
                    const auto [s, b] = there[i];
                    return layer.x + (int64_t(clock.time(layer.backwards, s)) * B + b) * I;
                },
                [&](int64_t i) { return sums_of(i) + before[phase]; });
        }
        team.meet(part.shares);
        if (!sums.norm_ih) return;
        for (int64_t i = all * part.share / part.shares; i < all * (part.share + 1) / part.shares; ++i) {
            for (int phase = 0; phase < Cell::phases; ++phase) {
                T* const to = kept_at(there[i].first, there[i].second);
                T* const inverse = to ? to + kept.inverse : nullptr;
                norm(phase, sums_of(i), sums.norm_ih, layer.b_ih, to, inverse);
            }
        }
    }

    // Layer norm of a row's sums of a phase, with the bias behind it; `to` is where backward finds what it reads.
    void norm(int phase, T* row_of_sums, const T* gain, const T* bias, T* to, T* inverse_to) const {
        const int64_t apart = Factor<T>::filled(H);
        this->each_norm(Cell::first_gate(phase), Cell::first_gate(phase + 1), [&](int first, int end) {
            T* const at = row_of_sums + before[phase] + (first - Cell::first_gate(phase)) * apart;
            const T inverse = normalise(at, end - first, H, apart);
            if (inverse_to) inverse_to[Cell::norm_group(first)] = inverse;
            for (int g = first; g < end; ++g) {
                each(H, [&](auto full, int64_t j, int64_t count) {
                    constexpr bool is_full = decltype(full)::value;
                    T* const own = at + (g - first) * apart + j;
                    const Real value = get<is_full>(own, count), weighed = value * get<is_full>(gain + g * H + j, count);
                    if (to) put<is_full>(value, to + g * H + j, count);
                    put<is_full>(bias ? weighed + get<is_full>(bias + g * H + j, count) : weighed, own, count);
                });
            }
        });
    }

    // The products of position s from this phase on, each with what the cell computes after it.
    template <int phase>
    void steps(
        const Part& part, const Rows& own, int64_t s, const T* inputs, const std::vector<int>& active, T* c_of_row,
        Barrier& team) const {
        hidden[phase].multiply(
            part, s % 2, int64_t(active.size()), hidden_start + before[phase],
            [&](int64_t i) { return layer.operands + operand_at(phase, s, active[i]); },
            [&](int64_t i) { return hidden_sums + active[i] * row + before[phase]; });
        team.meet(part.shares);
        for (int b : active) {
            if (b < own.first || b >= own.last) continue;
            if (sums.norm_hh) {
                T* const to = kept_at(s, b);
                T* const inverse = to ? to + kept.inverse + Kept<Cell>::most_norms : nullptr;
                norm(phase, hidden_sums + b * row, sums.norm_hh, layer.b_hh, to ? to + kept.hidden : nullptr, inverse);
            }
            after<phase>(s, b, inputs + b * row, c_of_row);
        }
        if constexpr (phase < last_phase) {
            team.meet(part.shares);
            steps<phase + 1>(part, own, s, inputs, active, c_of_row, team);
        } else {
            if (sums.w_hr) {
                team.meet(part.shares);
                project(part, own, s, active, team);
            }
            team.meet(part.shares);
        }
    }

    // What the cell makes of the sums of row b at position s after the product of a phase.
    template <int phase>
    void after(int64_t s, int64_t b, const T* input, T* c_of_row) const {
        constexpr int first = Cell::first_gate(phase), end = Cell::first_gate(phase + 1);
        const int64_t apart = Factor<T>::filled(H);
        const int t = clock.time(layer.backwards, s);
        const bool cut = clock.cut(layer.backwards, t, b);
        T* const saved = saved_at(s, b);
        each(H, [&](auto full, int64_t j, int64_t count) {
            constexpr bool is_full = decltype(full)::value;
            Real x[G], p[G], values[Cell::num_saved];
            for (int g = first; g < end; ++g) {
                const int64_t at = before[phase] + (g - first) * apart + j;
                x[g] = Real::load(input + at);
                p[g] = Real::load(hidden_sums + b * row + at);
            }
            if constexpr (phase < last_phase) {
                const Real h = get<is_full>(layer.h + b * P + j, count);
                const Real next = cell.operand(x, p, entering<is_full>(s, b, j, count, h), values);
                for (int k = first; k < end; ++k) put<is_full>(values[k], saved + k * H + j, count);
                put<is_full>(next, layer.operands + operand_at(phase + 1, s, b) + j, count);
            } else {
                for (int k = 0; k < first; ++k) values[k] = get<is_full>(saved + k * H + j, count);
                const Cell own = with_members<Cell, is_full>(cell, layer, t, b, j, count);
                if constexpr (Cell::has_c) {
                    const Real c_before = cut ? Real(0) : get<is_full>(layer.c + b * H + j, count);
                    Real c = own.advance(x, p, c_before, values);
                    for (int k = first; k < Cell::num_saved; ++k) put<is_full>(values[k], saved + k * H + j, count);
                    if (sums.norm_c) {
                        put<is_full>(c, c_of_row + j, count);
                    } else {
                        output<is_full>(s, b, j, count, values, c);
                    }
                    if (this->zones_c()) {
                        const Real stay = staying<is_full>(sums.zoneout_c, sums.rate_c, this->in_masks(t, b, j), count);
                        c = stay * c_before + (1 - stay) * c;
                    }
                    put<is_full>(c, layer.c + b * H + j, count);
                } else {
                    Real no_c = 0, h = cut ? Real(0) : get<is_full>(layer.h + b * P + j, count);
                    own.forward(x, p, h, no_c, values);
                    for (int k = first; k < Cell::num_saved; ++k) put<is_full>(values[k], saved + k * H + j, count);
                    finish<is_full>(s, b, j, count, h);
                }
            }
        });
        if constexpr (Cell::has_c) {
            if (!sums.norm_c) return;
            const T inverse = normalise(c_of_row, 1, H, H);
            T* const to = kept_at(s, b);
            if (to) to[kept.inverse + 2 * Kept<Cell>::most_norms] = inverse;
            each(H, [&](auto full, int64_t j, int64_t count) {
                constexpr bool is_full = decltype(full)::value;
                const Real value = get<is_full>(c_of_row + j, count);
                if (to) put<is_full>(value, to + kept.c + j, count);
                const Real c = get<is_full>(sums.norm_c + j, count) * value + get<is_full>(sums.bias_c + j, count);
                Real values[Cell::num_saved];
                this->template load<is_full>(saved + j, count, values);
                output<is_full>(s, b, j, count, values, c);
            });
        }
    }

    // h = o f(c), or what is projected to it.
    template <bool full>
    ALWAYS_INLINE void output(
        int64_t s, int64_t b, int64_t j, int64_t count, const Real (&values)[Cell::num_saved], Real c) const {
        const Real h = cell.output(values, c);
        if (!sums.w_hr) {
            finish<full>(s, b, j, count, h);
            return;
        }
        put<full>(h, unprojected + b * H + j, count);
        if (T* const to = kept_at(s, b)) put<full>(h, to + kept.unprojected + j, count);
    }

    void project(const Part& part, const Rows& own, int64_t s, const std::vector<int>& active, Barrier& team) const {
        projection.multiply(
            part, s % 2, int64_t(active.size()), projection_start,
            [&](int64_t i) { return unprojected + active[i] * H; },
            [&](int64_t i) { return projected + active[i] * projection.row(); });
        team.meet(part.shares);
        for (int b : active) {
            if (b < own.first || b >= own.last) continue;
            each(P, [&](auto full, int64_t j, int64_t count) {
                finish<decltype(full)::value>(s, b, j, count, Real::load(projected + b * projection.row() + j));
            });
        }
    }

    // The state and the output of row b at position s, for the units from j on, and what enters the next one.
    template <bool full>
    ALWAYS_INLINE void finish(int64_t s, int64_t b, int64_t j, int64_t count, Real h) const {
        const int t = clock.time(layer.backwards, s);
        if (this->zones_h()) {
            Real before = get<full>(layer.h + b * P + j, count);
            if (clock.cut(layer.backwards, t, b)) before = 0;
            const Real stay = staying<full>(sums.zoneout_h, sums.rate_h, this->in_masks(t, b, j), count);
            h = stay * before + (1 - stay) * h;
        }
        put<full>(h, layer.h + b * P + j, count);
        put<full>(h, layer.y + (int64_t(t) * B + b) * layer.row + j, count);
        if (s + 1 < clock.T) {
            const Real next = entering<full>(s + 1, b, j, count, h);
            put<full>(next, layer.operands + operand_at(0, s + 1, b) + j, count);
        }
    }

    // Rows that do not exist at position s: their state stays, unless it is cut there, and their output is zero or h.
    void idle(const Rows& own, int64_t s) const {
        const int t = clock.time(layer.backwards, s);
        for (int64_t b = own.first; b < own.last; ++b) {
            if (!clock.past(t, b)) continue;
            const bool repeats = clock.repeats(t, b);
            if (clock.cut(layer.backwards, t, b)) {
                for (int64_t j = 0; j < P; ++j) layer.h[b * P + j] = 0;
                for (int64_t j = 0; j < H && Cell::has_c; ++j) layer.c[b * H + j] = 0;
            }
            for (int64_t j = 0; j < P; ++j) {
                layer.y[(int64_t(t) * B + b) * layer.row + j] = repeats ? layer.h[b * P + j] : 0;
            }
            if (s + 1 < clock.T) enter(s + 1, b);
        }
    }

    // h as it enters phase 0 of position s.
    template <bool full>
    Real entering(int64_t s, int64_t b, int64_t j, int64_t count, Real h) const {
        if (clock.cut(layer.backwards, clock.time(layer.backwards, s), b)) h = 0;
        return layer.mask ? h * get<full>(layer.mask + b * P + j, count) : h;
    }
    void enter(int64_t s, int64_t b) const {
        each(P, [&](auto full, int64_t j, int64_t count) {
            constexpr bool is_full = decltype(full)::value;
            const Real h = get<is_full>(layer.h + b * P + j, count);
            put<is_full>(entering<is_full>(s, b, j, count, h), layer.operands + operand_at(0, s, b) + j, count);
        });
    }

    Factor<T> input[Cell::phases], hidden[Cell::phases], projection;
    int64_t before[Cell::phases], row, size;  // numbers of a row of sums before those of a phase, and of all
    T *input_start, *hidden_start, *projection_start;  // what the sums of a row start with
    T *input_sums, *hidden_sums, *unprojected, *projected, *cell_states;
};
