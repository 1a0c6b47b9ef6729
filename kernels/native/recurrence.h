// What the two passes of a recurrence have in common: the panels of its weights, and which thread computes what.
#pragma once

#if defined(__linux__)
#include <unistd.h>
#endif

#include "native/interface.h"
#include "native/packing.h"
#include "recurrence/clock.cuh"

// The products of a step, by phase. The sums of a row are (groups, gates, lanes), a group being the hidden units of one
// register, so that the gates of a unit lie side by side: a tile holds all that the cell needs of its units.
template <class Cell>
struct Phase {
    using T = typename Cell::Real::Number;
    static constexpr int lanes = Cell::Real::lanes;

    static constexpr int gates(int phase) { return Cell::first_gate(phase + 1) - Cell::first_gate(phase); }
    // Registers of a panel: those of whole groups.
    static constexpr int width(int phase) { return 4 % gates(phase) == 0 ? 4 : gates(phase); }

    static int64_t groups(int64_t hidden) { return (hidden + lanes - 1) / lanes; }
    static int64_t columns(int phase, int64_t hidden) { return groups(hidden) * gates(phase) * lanes; }
    static int64_t panels(int phase, int64_t hidden) { return Panels<T>::count(columns(phase, hidden), width(phase)); }
    // Numbers of a row of sums of all phases, and those before this one's.
    static int64_t before(int phase, int64_t hidden) {
        int64_t numbers = 0;
        for (int k = 0; k < phase; ++k) numbers += panels(k, hidden) * width(k) * lanes;
        return numbers;
    }
    static int64_t row(int64_t hidden) { return before(Cell::phases, hidden); }

    // The weights (G*H, K) of a phase as panels, whose columns are its gates' rows: panels first ... last - 1, to `to`.
    static void pack(int phase, const T* w, int64_t K, int64_t hidden, int64_t first, int64_t last, T* to) {
        pack_rows(K, columns(phase, hidden), width(phase), first, last, to, [&](int64_t r) {
            return rows_of(phase, w, K, hidden, r);
        });
    }

    // A row of biases or of zeros, in the order of the sums of all phases.
    static void arrange(const T* a, const T* b, int64_t hidden, T* to) {
        for (int phase = 0; phase < Cell::phases; ++phase) {
            const int64_t count = panels(phase, hidden) * width(phase);
            for (int64_t r = 0; r < count; ++r, to += lanes) {
                const auto numbers = [&](const T* of) {
                    return of ? rows_of(phase, of, 1, hidden, r).load() : Vector<T>(0);
                };
                (numbers(a) + numbers(b)).store(to);
            }
        }
    }

private:
    // The rows of w (G*H, K) that a register of a phase's sums is the product with.
    static InLanes<T> rows_of(int phase, const T* w, int64_t K, int64_t hidden, int64_t r) {
        const int64_t unit = r / gates(phase) * lanes, left = hidden - unit;
        const int64_t gate = Cell::first_gate(phase) + r % gates(phase);
        return {w + (gate * hidden + unit) * K, left < lanes ? left : lanes};
    }
};

// The registers of a panel of weights that are not arranged by gates.
constexpr int plain_width = 4;

// The panels of the backward pass: W_hh of each phase, (gates * H, H), and W_ih, (G*H, I).
template <class Cell>
struct BackwardPanels {
    using T = typename Cell::Real::Number;
    int64_t hidden, inputs;
    T* numbers;

    Panels<T> hidden_panels(int phase) const {
        return {numbers + before(phase), int64_t(Phase<Cell>::gates(phase)) * hidden, hidden, plain_width};
    }
    Panels<T> input_panels() const {
        const int64_t registers_needed = (inputs + Panels<T>::lanes - 1) / Panels<T>::lanes;
        const int width = registers_needed < plain_width ? int(registers_needed) : plain_width;
        return {numbers + before(Cell::phases), int64_t(Cell::gates) * hidden, inputs, width};
    }
    int64_t size() const {
        const Panels<T> last = input_panels();
        return before(Cell::phases) + Panels<T>::size(last.K, inputs, last.width);
    }
    // A thread's share of the packing.
    void pack(const T* w_ih, const T* w_hh, int index, int count) const {
        for (int phase = 0; phase < Cell::phases; ++phase) {
            const Panels<T> panels = hidden_panels(phase);
            const T* const rows = w_hh + Cell::first_gate(phase) * hidden * hidden;
            share(panels, rows, index, count);
        }
        share(input_panels(), w_ih, index, count);
    }

private:
    int64_t before(int phase) const {
        int64_t size = 0;
        for (int k = 0; k < phase; ++k) {
            size += Panels<T>::size(int64_t(Phase<Cell>::gates(k)) * hidden, hidden, plain_width);
        }
        return size;
    }
    static void share(const Panels<T>& panels, const T* w, int index, int count) {
        const int64_t all = panels.count(), first = all * index / count;
        pack_columns(
            w, panels.K, panels.columns, panels.width, first, all * (index + 1) / count,
            const_cast<T*>(panels.panel(first)));
    }
};

// The cell with what the units of a register have for themselves: their weights, and in row b at step t their masks,
// which the backward pass finds among the saved values.
template <class Cell, bool whole, bool masks = true>
ALWAYS_INLINE Cell with_members(
    Cell cell, const Layer<typename Cell::Real::Number>& layer, int64_t t, int64_t b, int64_t j, int64_t count) {
    const int64_t H = layer.hidden;
    if constexpr (Cell::num_weights > 0) {
        for (int k = 0; k < Cell::num_weights; ++k) cell.weight[k] = get<whole>(layer.weights + k * H + j, count);
    }
    if constexpr (masks && Cell::num_masks > 0) {
        for (int k = 0; k < Cell::num_masks; ++k) {
            cell.mask[k] = get<whole>(layer.masks + ((k * layer.steps + t) * layer.batch + b) * H + j, count);
        }
    }
    return cell;
}

// Bytes of weights that stay in a core's second cache beside what else a step reads: three quarters of two megabytes, or of
// what this processor has.
constexpr int64_t usually_stays = 3 << 19;
inline int64_t stays_here() {
#if defined(_SC_LEVEL2_CACHE_SIZE)
    static const int64_t size = sysconf(_SC_LEVEL2_CACHE_SIZE);
    if (size > 0) return size / 4 * 3;
#endif
    return usually_stays;
}

// Whether a thread that multiplies some rows reads the weights from the third cache as fast as from the second one. That
// was measured where the second one has at most a megabyte (AMD Zen 3 and 4). Where it has more, the third is farther.
inline bool reads_weights_fast() { return stays_here() <= 3 << 18; }

// A thread's part of the recurrent products. It belongs to a team that has rows of the batch to itself, and shares the
// columns with the others of the team, who meet after each product.
struct Part {
    int team, share, shares;
    int64_t first_row, last_row;

    // Each thread gets rows of its own if they are enough to keep a tile busy, and if the weights, which it then reads
    // all, stay in its cache. A share of the columns is to be worth the meetings, unless the call must have its threads.
    // Where it is not, a single row is enough.
    Part(
        int index, int count, int64_t batch, int64_t weight_bytes, int64_t panels, const Team& call,
        int64_t cache = usually_stays) {
        constexpr int64_t worth_a_share = 1 << 18;
        int64_t most_shares = call.patience < 0 ? 1 + weight_bytes / worth_a_share : count;
        if (most_shares > count) most_shares = count;
        if (most_shares > panels) most_shares = panels;
        const int64_t wanted = (weight_bytes + cache - 1) / cache, most_teams = most_shares > 1 ? batch / 4 : batch;
        shares = int(wanted < 1 ? 1 : wanted < most_shares ? wanted : most_shares);
        int teams = count / shares;
        if (teams > most_teams) {
            teams = most_teams < 1 ? 1 : int(most_teams);
            shares = int(count / teams < most_shares ? count / teams : most_shares);
        }
        team = index / shares;
        share = index % shares;
        if (team >= teams) {  // with nothing to do here
            first_row = last_row = 0;
            shares = 1;
            share = 0;
        } else {
            first_row = batch * team / teams;
            last_row = batch * (team + 1) / teams;
        }
    }

    int64_t first(int64_t panels) const { return panels * share / shares; }
    int64_t last(int64_t panels) const { return panels * (share + 1) / shares; }
};

// Microseconds that one thread takes for so many products with so many weights, roughly: of few steps most of the time is
// that of the weights' way from memory.
template <typename T>
double time_alone(double products, double weights) {
    return products / (1600.0 * register_bytes / double(sizeof(T)) * 4) + weights * sizeof(T) / 1e4;
}
