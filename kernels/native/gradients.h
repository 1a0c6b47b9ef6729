// The gradient of weights: a product whose sums run over the rows of many steps.
#pragma once

#include <algorithm>

#include "native/product.h"

// w (M, N) = sum over the rows k of a[k] (M) and b[k] (N), and sums (M) = sum of a[k], in the order of the rows, or added to
// what w and sums hold. If that does not count, it is not read: reading a page of new memory before the first number is
// written to it costs more than the product, since the system first maps zeros there, and then replaces them.
//
// The rows are packed, some at a time, into strips of a tile's rows and into panels (Goto & van de Geijn, "Anatomy of
// high-performance matrix multiplication", ACM TOMS 34, 2008).
template <typename T>
class RowGradient {
    using Real = Vector<T>;
    // Where there are registers for it, a strip's rows are as many as one register copies.
    static constexpr int lanes = Real::lanes, width = registers == 32 ? 3 : part_of(4);
    static constexpr int strip = Tiles<T, width, true>::most_rows;
    // Of rows k and of strips at a time, which stay in the cache: a part of two registers in the first.
    static constexpr int64_t most = part_of(4) == 4 ? 512 : 256, most_strips = 32;
    static constexpr int64_t ahead = 32;  // rows of b that are fetched before they are packed: some come from the third cache

public:
    static constexpr int64_t panel_size = most * width * lanes;

    // The numbers that each of `count` threads needs for strips.
    static int64_t strips_size(int64_t M, int64_t count) { return most * block(M, count); }

    // One of the matrices b, and its w.
    template <class B>
    struct Product {
        B b;
        int64_t N;
        T* w;
    };
    template <class B>
    static Product<B> product(B b, int64_t N, T* w) {
        return {b, N, w};
    }

    // The rows first ... last - 1 of w, for each of the products, and of sums, which may be null; `adds` says whether they
    // are added to. `panel` has room for panel_size numbers, `strips` for `size` of them.
    template <class A, class... Products>
    static void of_rows(
        int64_t rows, A a, int64_t first, int64_t last, bool adds, T* sums, T* panel, T* strips, int64_t size,
        const Products&... products) {
        const int64_t block = size / most;
        if (rows == 0 && !adds) {
            for (int64_t m = first; m < last; ++m) {
                (std::fill_n(products.w + m * products.N, products.N, T(0)), ...);
                if (sums) sums[m] = 0;
            }
        }
        for (int64_t k0 = 0; k0 < rows; k0 += most, adds = true) {
            const int64_t K = rows - k0 < most ? rows - k0 : most;
            for (int64_t m = first; m < last; m += block) {
                const int64_t end = m + block < last ? m + block : last;
                pack(K, [&](int64_t k) { return a(k0 + k); }, m, end, adds, sums, strips);
                (multiply(k0, K, products, m, end, adds, panel, strips), ...);
            }
        }
    }

private:
    // Rows of w at a time: whole strips.
    static int64_t block(int64_t M, int64_t count) {
        const int64_t strips = (M / count + strip) / strip;
        return strip * (strips < most_strips ? strips : most_strips);
    }

    // Several strips side by side, so that a row is read in whole lines.
    template <class A>
    static void pack(int64_t K, A a, int64_t first, int64_t last, bool adds, T* sums, T* strips) {
        constexpr int beside = 8, most_columns = beside * strip, used = (most_columns + lanes - 1) / lanes;
        for (int64_t m = first; m < last; m += most_columns) {
            const int64_t columns = last - m < most_columns ? last - m : most_columns;
            T* const to = strips + (m - first) * most;
            Real totals[used];
            for (int v = 0; v < used; ++v) totals[v] = sums && adds ? get_some(sums + m, v, columns) : Real(0);
            for (int64_t k = 0; k < K; ++k) {
                const T* const from = a(k) + m;
                if (columns == most_columns) {
#pragma GCC unroll 8
                    for (int s = 0; s < beside; ++s) {
                        __builtin_memcpy(to + s * strip * most + k * strip, from + s * strip, sizeof(T) * strip);
                    }
                } else {
                    for (int64_t c = 0; c < columns; c += strip) {
                        const int64_t own = columns - c < strip ? columns - c : strip;
                        for (int64_t r = 0; r < own; ++r) to[c * most + k * own + r] = from[c + r];
                    }
                }
                for (int v = 0; v < used && sums; ++v) totals[v] += get_some(from, v, columns);
            }
            for (int v = 0; v < used && sums; ++v) {
                if (columns > v * lanes) put(totals[v], sums + m + v * lanes, columns - v * lanes);
            }
        }
    }
    static Real get_some(const T* from, int v, int64_t count) {
        return count > v * lanes ? get(from + v * lanes, count - v * lanes) : Real(0);
    }

    template <class B>
    static void multiply(
        int64_t k0, int64_t K, const Product<B>& product, int64_t first, int64_t last, bool adds, T* panel,
        const T* strips) {
        const int64_t N = product.N, all = (N + lanes - 1) / lanes, panels = (all + width - 1) / width;
        for (int64_t p = 0; p < panels; ++p) {  // of nearly equal width
            const int64_t begin = all * p / panels, n = begin * lanes, left = N - n;
            const int registers_used = int(all * (p + 1) / panels - begin);
            for (int64_t k = 0; k < K; ++k) {
                const T* const from = product.b(k0 + k) + n;
                const T* const later = product.b(k0 + (k + ahead < K ? k + ahead : k)) + n;
                for (int v = 0; v < registers_used; ++v) __builtin_prefetch(later + v * lanes);
                for (int v = 0; v < registers_used; ++v) {
                    get(from + v * lanes, left - v * lanes).store(panel + (k * registers_used + v) * lanes);
                }
            }
            switch (registers_used) {
                case 1: columns<1>(K, panel, strips, first, last, N, n, adds, product.w); break;
                case 2: columns<2>(K, panel, strips, first, last, N, n, adds, product.w); break;
                case 3: columns<width < 3 ? width : 3>(K, panel, strips, first, last, N, n, adds, product.w); break;
                default: columns<width>(K, panel, strips, first, last, N, n, adds, product.w); break;
            }
        }
    }

    template <int used>
    static void columns(
        int64_t K, const T* panel, const T* strips, int64_t first, int64_t last, int64_t N, int64_t n, bool adds, T* w) {
        const int64_t there = N - n < used * lanes ? N - n : used * lanes;
        alignas(64) T buffer[strip * used * lanes];
        alignas(64) static constexpr T zeros[used * lanes] = {};
        const T* from[strip];
        T* to[strip];
        for (int64_t m = first; m < last; m += strip) {
            const int own = int(last - m < strip ? last - m : strip);
            const bool whole = there == used * lanes;
            for (int r = 0; r < own; ++r) {
                to[r] = whole ? w + (m + r) * N + n : buffer + r * used * lanes;
                from[r] = adds ? to[r] : zeros;
                if (adds && !whole) {
                    for (int v = 0; v < used; ++v) {
                        get(w + (m + r) * N + n + v * lanes, there - v * lanes).store(to[r] + v * lanes);
                    }
                }
            }
            const T* const in[1] = {strips + (m - first) * most};
            const Stretch<T> all = {in, K, panel, panel, 0};
            tile_of_strip<used>(own)(&all, 1, from, to);
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
