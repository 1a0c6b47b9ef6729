// The gradient of weights: a product whose sums run over the rows of many steps.
#pragma once

#include "native/product.h"

// w (M, N) += sum over the rows k of a[k] (M) and b[k] (N), and sums (M) += sum of a[k], in the order of the rows.
//
// The rows are packed, some at a time, into strips of a tile's rows and into panels (Goto & van de Geijn, "Anatomy of
// high-performance matrix multiplication", ACM TOMS 34, 2008).
template <typename T>
class RowGradient {
    using Real = Vector<T>;
    static constexpr int lanes = Real::lanes, width = 4, strip = Tiles<T, width, true>::most_rows;

public:
    static constexpr int64_t most = 512;  // rows at a time
    static constexpr int64_t panel_size = most * width * lanes;

    // The rows first ... last - 1 of w and of sums, which may be null. `panel` has room for panel_size numbers,
    // `strips` for `most` of each of these rows.
    template <class A, class B>
    static void add(
        int64_t rows, A a, B b, int64_t first, int64_t last, int64_t N, T* w, T* sums, T* panel, T* strips) {
        if (first >= last) return;
        for (int64_t k0 = 0; k0 < rows; k0 += most) {
            const int64_t K = rows - k0 < most ? rows - k0 : most;
            for (int64_t m = first; m < last; m += strip) {
                const int64_t own = last - m < strip ? last - m : strip;
                T* at = strips + (m - first) * most;
                for (int64_t k = 0; k < K; ++k) {
                    const T* const from = a(k0 + k) + m;
                    for (int64_t r = 0; r < own; ++r) *at++ = from[r];
                }
                if (sums) {
                    const T* read = strips + (m - first) * most;
                    for (int64_t k = 0; k < K; ++k) {
                        for (int64_t r = 0; r < own; ++r) sums[m + r] += *read++;
                    }
                }
            }
            for (int64_t n = 0; n < N; n += width * lanes) {
                const int64_t left = N - n;
                const int registers_used = left >= width * lanes ? width : int((left + lanes - 1) / lanes);
                for (int64_t k = 0; k < K; ++k) {
                    const T* const from = b(k0 + k) + n;
                    for (int v = 0; v < registers_used; ++v) {
                        get(from + v * lanes, left - v * lanes).store(panel + (k * registers_used + v) * lanes);
                    }
                }
                switch (registers_used) {
                    case 1: columns<1>(K, panel, strips, first, last, N, n, w); break;
                    case 2: columns<2>(K, panel, strips, first, last, N, n, w); break;
                    case 3: columns<3>(K, panel, strips, first, last, N, n, w); break;
                    default: columns<4>(K, panel, strips, first, last, N, n, w); break;
                }
            }
        }
    }

private:
    template <int used>
    static void columns(
        int64_t K, const T* panel, const T* strips, int64_t first, int64_t last, int64_t N, int64_t n, T* w) {
        const int64_t there = N - n < used * lanes ? N - n : used * lanes;
        alignas(64) T buffer[strip * used * lanes];
        T* to[strip];
        for (int64_t m = first; m < last; m += strip) {
            const int own = int(last - m < strip ? last - m : strip);
            const bool whole = there == used * lanes;
            for (int r = 0; r < own; ++r) {
                to[r] = whole ? w + (m + r) * N + n : buffer + r * used * lanes;
                if (!whole) {
                    for (int v = 0; v < used; ++v) {
                        get(w + (m + r) * N + n + v * lanes, there - v * lanes).store(to[r] + v * lanes);
                    }
                }
            }
            const T* const in[1] = {strips + (m - first) * most};
            tile_of_strip<used>(own)(in, K, panel, to, to, panel);
            if (!whole) {
                for (int r = 0; r < own; ++r) {
                    for (int v = 0; v < used; ++v) {
                        put(Real::load(to[r] + v * lanes), w + (m + r) * N + n + v * lanes, there - v * lanes);
                    }
                }
            }
        }
    }

    template <int used, int R = strip>
    static typename Tiles<T, width, true>::Tile tile_of_strip(int rows) {
        if constexpr (R > 1) {
            if (rows < R) return tile_of_strip<used, R - 1>(rows);
        }
        return tile<T, R, used, 1, true>;
    }
};
