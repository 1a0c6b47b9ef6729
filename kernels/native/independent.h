// The recurrence of units that do not read each other's states: h_t = f(a_t + u h_{t-1}) + leak h_{t-1}.
//
// A step waits for the one before it, but columns (row of the batch and unit) do not wait for each other. The states of
// some registers of a row's units stay there over all steps. The unit that includes this has chosen the cell, a struct of
// cells/ with one gate, whose recurrent product is u h: `using Chosen = ...`.
#pragma once

#include <type_traits>

#include "native/threads.h"
#include "recurrence/clock.cuh"

#define EXPORTED extern "C" __attribute__((visibility("default")))

using Real = Chosen::Real;
using Number = Real::Number;

namespace {

// a, h, dh, da (T, B, H), u, h0, du, dh0 (B, H), marks (T, B) or null, kept (T, B, H): the cell's saved value.
struct Independent {
    static constexpr int lanes = Real::lanes;

    int64_t T, B, H;
    const Marks* marks;
    Chosen cell;

    bool is_marked(int64_t t, int64_t b, Marks mark) const { return marks && (marks[t * B + b] & mark); }

    // V registers of units of row b, from j on; a single one may be cut short. `copy` is another place for h, or null.
    template <int V>
    void forward(
        int64_t b, int64_t j, const Number* a, const Number* u, const Number* h0, Number* h, Number* copy,
        Number* kept) const {
        Real state[V], weight[V], no_c = 0;
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) {
            const int64_t at = j + v * lanes;
            state[v] = get<(V > 1)>(h0 + b * H + at, H - at);
            weight[v] = get<(V > 1)>(u + b * H + at, H - at);
        }
        for (int64_t t = 0; t < T; ++t) {
            const bool cut = is_marked(t, b, reset_mark), hole = is_marked(t, b, hole_mark);
#pragma GCC unroll 4
            for (int v = 0; v < V; ++v) {
                const int64_t at = (t * B + b) * H + j + v * lanes, left = H - j - v * lanes;
                if (cut) state[v] = 0;
                if (!hole) {
                    const Real x[1] = {get<(V > 1)>(a + at, left)}, product[1] = {weight[v] * state[v]};
                    Real saved[1];
                    cell.forward(x, product, state[v], no_c, saved);
                    if (kept) put<(V > 1)>(saved[0], kept + at, left);
                }
                put<(V > 1)>(state[v], h + at, left);
                if (copy) put<(V > 1)>(state[v], copy + at, left);
            }
        }
    }

    template <int V>
    void backward(
        int64_t b, int64_t j, const Number* dh, const Number* h, const Number* h0, const Number* u, const Number* kept,
        Number* da, Number* du, Number* dh0) const {
        Real carried[V], sum[V], weight[V], no_c = 0;
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) {
            const int64_t at = j + v * lanes;
            carried[v] = sum[v] = 0;
            weight[v] = get<(V > 1)>(u + b * H + at, H - at);
        }
        for (int64_t t = T - 1; t >= 0; --t) {
            const bool cut = is_marked(t, b, reset_mark), hole = is_marked(t, b, hole_mark);
            const Number* const before = t ? h + (t - 1) * B * H : h0;
#pragma GCC unroll 4
            for (int v = 0; v < V; ++v) {
                const int64_t unit = b * H + j + v * lanes, at = t * B * H + unit, left = H - j - v * lanes;
                const Real d = get<(V > 1)>(dh + at, left) + carried[v];
                Real of_gate[1] = {0}, of_product[1];
                carried[v] = d;
                if (!hole) {
                    const Real saved[1] = {get<(V > 1)>(kept + at, left)};
                    cell.backward(saved, d, no_c, of_gate, of_product, carried[v]);
                    carried[v] += weight[v] * of_gate[0];
                    if (!cut) sum[v] += of_gate[0] * get<(V > 1)>(before + unit, left);
                }
                if (cut) carried[v] = 0;
                put<(V > 1)>(of_gate[0], da + at, left);
            }
        }
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) {
            const int64_t at = b * H + j + v * lanes, left = H - j - v * lanes;
            put<(V > 1)>(sum[v], du + at, left);
            put<(V > 1)>(carried[v], dh0 + at, left);
        }
    }

    // Threads have groups of a row's units to themselves. `work(registers, b, j)` takes all steps of some.
    template <class Work>
    void share(const Team& team, const Work& work) const {
        constexpr int most = 4;
        const int64_t width = most * lanes, groups = (H + width - 1) / width;
        team.share(double(T) * B * H / 1e3, [&](int index, int count) {
            const SubnormalsAreZero within;
            for (int64_t group = B * groups * index / count; group < B * groups * (index + 1) / count; ++group) {
                const int64_t b = group / groups, first = group % groups * width;
                if (H - first >= width) {
                    work(std::integral_constant<int, most>(), b, first);
                } else {
                    for (int64_t j = first; j < H; j += lanes) work(std::integral_constant<int, 1>(), b, j);
                }
            }
        });
    }
};

Independent of(int64_t T, int64_t B, int64_t H, const Marks* marks, const double* numbers) {
    Independent made{T, B, H, marks, {}};
    if constexpr (Chosen::num_numbers > 0) {
        for (int i = 0; i < Chosen::num_numbers; ++i) made.cell.number[i] = Number(numbers[i]);
    }
    return made;
}

}  // namespace

EXPORTED void gpurnn_independent_forward(
    const Team* team, int64_t T, int64_t B, int64_t H, const double* numbers, const Number* a, const Number* u,
    const Number* h0, const Marks* marks, Number* h, Number* copy, Number* kept) {
    const Independent layer = of(T, B, H, marks, numbers);
    layer.share(*team, [&](auto registers, int64_t b, int64_t j) {
        layer.forward<decltype(registers)::value>(b, j, a, u, h0, h, copy, kept);
    });
}

EXPORTED void gpurnn_independent_backward(
    const Team* team, int64_t T, int64_t B, int64_t H, const double* numbers, const Number* dh, const Number* h,
    const Number* h0, const Number* u, const Number* kept, const Marks* marks, Number* da, Number* du, Number* dh0) {
    const Independent layer = of(T, B, H, marks, numbers);
    layer.share(*team, [&](auto registers, int64_t b, int64_t j) {
        layer.backward<decltype(registers)::value>(b, j, dh, h, h0, u, kept, da, du, dh0);
    });
}
