// What the two passes of a cell with sums over hidden units have in common: layer norm (Ba, Kiros & Hinton 2016), of the
// products of a step and of the cell state, and a projection of the output (Sak, Senior & Beaufays 2014).
//
// The threads of a team share the columns of a product, as in recurrence.h. Behind it they meet, and each takes whole rows
// of the batch, whose sums over the units are then its own. Zoneout comes after the projection, and so it is here too.
#pragma once

#include <cmath>
#include <memory>
#include <type_traits>
#include <utility>
#include <vector>

#include "native/recurrence.h"

template <typename T>
struct SumsLayer {
    Layer<T> layer;  // its h, y, dh and operands have `width` columns, and w_hh is (G*H, width)
    int64_t width;   // of h: P with a projection, else H
    const T *norm_ih, *norm_hh;      // (G*H), or null without layer norm
    const T *norm_c, *bias_c;        // (H), or null
    const T* w_hr;                   // (P, H), or null without a projection
    double rate_h, rate_c;           // of zoneout
    const T *zoneout_h, *zoneout_c;  // (T, B, H): its masks, or null
    T* kept;                         // (slots, B, E): what backward reads besides the cell's values; null in inference

    T *dnorm_ih, *dnorm_hh, *dnorm_c, *dbias_c, *dw_hr;  // are added to
};

// The numbers that a call needs room for: `back` and `kept`, which is E, in training alone.
struct SumsSizes {
    int64_t workspace, workspace_backward, back, kept;
};

// The numbers of E, by where they begin: (x - mean) / deviation of W_ih x, of W_hh h and of c, then o f(c), which is
// projected, and 1 / deviation of each norm.
template <class Cell>
struct Kept {
    using T = typename Cell::Real::Number;
    static constexpr int most_norms = 2;  // of a product

    explicit Kept(const SumsLayer<T>& sums) {
        const int64_t H = sums.layer.hidden, G = Cell::gates;
        const bool norm = sums.norm_ih;
        hidden = norm ? G * H : 0;
        c = 2 * hidden;
        unprojected = c + (norm && Cell::has_c ? H : 0);
        inverse = unprojected + (sums.w_hr ? H : 0);
        size = inverse + (norm ? 2 * most_norms + 1 : 0);
    }
    int64_t hidden, c, unprojected, inverse, size;
};

// Layer norm in place, of n units that begin every `stride` numbers: (x - mean) / sqrt(variance + epsilon). Returns
// 1 / sqrt(variance + epsilon).
template <typename T>
T normalise(T* x, int rows, int64_t n, int64_t stride) {
    using Real = Vector<T>;
    constexpr int lanes = Real::lanes;
    const T all = T(rows) * T(n);
    const auto each = [&](const auto& function) {
        for (int row = 0; row < rows; ++row) {
            for (int64_t j = 0; j < n; j += lanes) function(x + row * stride + j, n - j);
        }
    };
    Real total = 0;
    each([&](T* at, int64_t left) { total += get(at, left); });
    const Real mean = sum(total) / all;
    total = 0;
    each([&](T* at, int64_t left) {
        put(get(at, left) - mean, at, left);
        const Real centred = get(at, left);
        total += centred * centred;
    });
    const T inverse = 1 / std::sqrt(sum(total) / all + T(1e-5));
    each([&](T* at, int64_t left) { put(get(at, left) * inverse, at, left); });
    return inverse;
}

// The gradient of what was normalised: d is that of gain * value, both of n numbers.
template <typename T>
void normalise_back(const T* d, const T* gain, const T* value, T inverse, int64_t n, T* to) {
    using Real = Vector<T>;
    Real total = 0, along = 0;
    for (int64_t i = 0; i < n; i += Real::lanes) {
        const Real product = get(d + i, n - i) * get(gain + i, n - i);
        total += product;
        along += product * get(value + i, n - i);
    }
    const Real mean = sum(total) / T(n), mean_along = sum(along) / T(n);
    for (int64_t i = 0; i < n; i += Real::lanes) {
        const Real product = get(d + i, n - i) * get(gain + i, n - i);
        put(inverse * (product - mean - get(value + i, n - i) * mean_along), to + i, n - i);
    }
}

// The weights (gates * units, K) of a forward product, whose sums are (gates, units), each gate filled up to a register.
template <typename T>
struct Factor {
    using Real = Vector<T>;
    static constexpr int lanes = Real::lanes, few_rows = 4;

    const T* w = nullptr;
    int64_t K = 0, gates = 0, units = 0;
    T* numbers = nullptr;  // of the panels; null to read the weights as they lie in memory, for few rows

    static int64_t filled(int64_t units) { return (units + lanes - 1) / lanes * lanes; }
    Panels<T> panels() const { return {numbers, K, gates * filled(units), plain_width}; }
    int64_t size() const { return Panels<T>::size(K, gates * filled(units), plain_width); }
    // Numbers of a row of sums, with those of a last panel that is not full.
    int64_t row() const { return panels().count() * plain_width * lanes; }

    // The rows of w, or of a vector of as many numbers if `length` is 1, that a register of the sums belongs to.
    InLanes<T> rows_of(const T* from, int64_t length, int64_t r) const {
        const int64_t of_gate = filled(units) / lanes, gate = r / of_gate, unit = r % of_gate * lanes;
        const int64_t left = gate < gates ? units - unit : 0;
        return {from + (gate * units + unit) * length, left < lanes ? left : lanes};
    }
    void arrange(const T* bias, T* to) const {
        for (int64_t r = 0; r < row() / lanes; ++r) {
            (bias ? rows_of(bias, 1, r).load() : Real(0)).store(to + r * lanes);
        }
    }
    void pack(int index, int count) const {
        if (!numbers) return;
        const int64_t all = panels().count(), first = all * index / count;
        pack_rows(
            K, gates * filled(units), plain_width, first, all * (index + 1) / count, const_cast<T*>(panels().panel(first)),
            [&](int64_t r) { return rows_of(w, K, r); });
    }

    // to(i) = start + the products with a(i) of `count` rows: a part's columns.
    template <class A, class To>
    void multiply(const Part& part, bool backwards, int64_t count, const T* start, A a, To to) const {
        const Panels<T> own = panels();
        const int64_t first = part.first(own.count()), last = part.last(own.count());
        if (numbers) {
            ::multiply<plain_width>(
                own, first, last, backwards, count, a, [&](int64_t) { return start; },
                [&](int64_t i, int, int64_t p, int) { return to(i) + p * plain_width * lanes; },
                [](int64_t, int, int64_t, int) {});
            return;
        }
        for (int64_t column = first * plain_width * lanes; column < last * plain_width * lanes; column += lanes) {
            const InLanes<T> rows = rows_of(w, K, column / lanes);
            if (rows.count <= 0) continue;  // what is behind the gates is not read
            switch (count) {
                case 1: few<1>(rows.first, column, start, a, to); break;
                case 2: few<2>(rows.first, column, start, a, to); break;
                case 3: few<3>(rows.first, column, start, a, to); break;
                case 4: few<4>(rows.first, column, start, a, to); break;
            }
        }
    }

private:
    template <int R, class A, class To>
    void few(const T* row, int64_t column, const T* start, A a, To to) const {
        static_assert(R <= few_rows, "cases of multiply");
        const T *in[R], *const rows[] = {row};
        Real sums[1][R];
        for (int r = 0; r < R; ++r) {
            in[r] = a(r);
            sums[0][r] = Real::load(start + column);
        }
        const int64_t left = units - column % filled(units);  // nor is what is behind a gate's units
        if (left >= lanes) {
            add_products<true>(in, K, rows, left, sums);
        } else {
            add_products<false>(in, K, rows, left, sums);
        }
        for (int r = 0; r < R; ++r) sums[0][r].store(to(r) + column);
    }
};

// The panels of the backward pass: W_hh of each phase, (gates * H, width), W_ih, (G*H, I), and W_hr, (P, H).
template <class Cell>
struct SumsPanels {
    using T = typename Cell::Real::Number;
    const SumsLayer<T>& sums;
    T* numbers;

    Panels<T> hidden(int phase) const { return at(phase); }
    Panels<T> input() const { return at(Cell::phases); }
    Panels<T> projection() const { return at(Cell::phases + 1); }
    int64_t size() const {
        int64_t size = 0;
        for (int k = 0; k < count(); ++k) size += Panels<T>::size(at(k).K, at(k).columns, plain_width);
        return size;
    }
    void pack(int index, int threads) const {
        const Layer<T>& layer = sums.layer;
        for (int k = 0; k < count(); ++k) {
            const T* w = k < Cell::phases ? layer.w_hh + Cell::first_gate(k) * layer.hidden * sums.width : layer.w_ih;
            if (k > Cell::phases) w = sums.w_hr;
            const Panels<T> panels = at(k);
            const int64_t all = panels.count(), first = all * index / threads;
            pack_columns(
                w, panels.K, panels.columns, plain_width, first, all * (index + 1) / threads,
                const_cast<T*>(panels.panel(first)));
        }
    }

private:
    int count() const { return Cell::phases + (sums.w_hr ? 2 : 1); }
    Panels<T> at(int k) const {
        const int64_t H = sums.layer.hidden, rows[] = {gates(0) * H, gates(1) * H};
        const T* from = numbers;
        for (int i = 0; i < k; ++i) from += Panels<T>::size(at(i).K, at(i).columns, plain_width);
        if (k < Cell::phases) return {from, rows[k], sums.width, plain_width};
        if (k == Cell::phases) return {from, Cell::gates * H, sums.layer.inputs, plain_width};
        return {from, sums.width, H, plain_width};
    }
    static int64_t gates(int phase) { return phase < Cell::phases ? Phase<Cell>::gates(phase) : 0; }
};

// The part of a state that stays as it was, from the place of its mask, if there are masks.
template <bool full, typename T>
ALWAYS_INLINE Vector<T> staying(const T* masks, double rate, int64_t at, int64_t count) {
    return masks ? get<full>(masks + at, count) : Vector<T>(rate);
}

// What both passes know of a step.
template <class Cell>
class Sums {
protected:
    using Real = typename Cell::Real;
    using T = typename Real::Number;
    static constexpr int lanes = Real::lanes, last_phase = Cell::phases - 1, G = Cell::gates;

    Sums(const SumsLayer<T>& sums, const Cell& cell)
        : sums(sums),
          layer(sums.layer),
          cell(cell),
          clock{int(layer.steps), int(layer.batch), int(layer.slots), layer.lengths, layer.marks},
          B(layer.batch),
          I(layer.inputs),
          H(layer.hidden),
          P(sums.width),
          kept(sums),
          back{sums, layer.back},
          meetings(new Barrier[layer.team.most + 1]) {}

    // Calls `function(whole, j, count)` for each register of n numbers, with whether all its lanes are there.
    template <class Function>
    static ALWAYS_INLINE void each(int64_t n, const Function& function) {
        int64_t j = 0;
        for (; j + lanes <= n; j += lanes) function(std::true_type(), j, int64_t(lanes));
        if (j < n) function(std::false_type(), j, n - j);
    }
    // Calls `function(first, end)` for the gates of each layer norm among the gates first ... end - 1.
    template <class Function>
    static void each_norm(int first, int end, const Function& function) {
        for (int next = first; first < end; first = next) {
            while (next < end && Cell::norm_group(next) == Cell::norm_group(first)) ++next;
            function(first, next);
        }
    }

    // The rows that a thread has to itself between the products of its team.
    struct Rows {
        int64_t first, last;
        explicit Rows(const Part& part) {
            const int64_t rows = part.last_row - part.first_row;
            first = part.first_row + rows * part.share / part.shares;
            last = part.first_row + rows * (part.share + 1) / part.shares;
        }
    };
    void list_active(int64_t s, int64_t first, int64_t last, std::vector<int>& active) const {
        active.clear();
        const int t = clock.time(layer.backwards, s);
        for (int64_t b = first; b < last; ++b) {
            if (!clock.past(t, b)) active.push_back(int(b));
        }
    }

    bool zones_h() const { return sums.zoneout_h || sums.rate_h != 0; }
    bool zones_c() const { return sums.zoneout_c || sums.rate_c != 0; }
    int64_t in_masks(int t, int64_t b, int64_t j) const { return (int64_t(t) * B + b) * H + j; }

    int64_t operand_at(int phase, int64_t s, int64_t b) const {
        return ((int64_t(phase) * clock.slots + clock.slot(layer.backwards, s)) * B + b) * P;
    }
    T* saved_at(int64_t s, int64_t b) const {
        return layer.saved + (clock.slot(layer.backwards, s) * B + b) * Cell::num_saved * H;
    }
    T* kept_at(int64_t s, int64_t b) const {
        return sums.kept ? sums.kept + (clock.slot(layer.backwards, s) * B + b) * kept.size : nullptr;
    }
    template <bool full, int count_of_values>
    void load(const T* from, int64_t count, Real (&values)[count_of_values]) const {
        for (int k = 0; k < count_of_values; ++k) values[k] = get<full>(from + k * H, count);
    }

    const SumsLayer<T>& sums;
    const Layer<T>& layer;
    const Cell cell;
    const Clock clock;
    const int64_t B, I, H, P;
    const Kept<Cell> kept;
    const SumsPanels<Cell> back;
    const std::unique_ptr<Barrier[]> meetings;
};
