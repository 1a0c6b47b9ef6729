// The matrix products of a CPU: tiles of a few rows and a few registers of columns, whose sums stay in registers.
//
// Each sum is one chain, over k in order, from the number it starts with. It has the same bits in any tile, with any
// other rows, and if it is stored and continued later. So no result depends on how work is split.
#pragma once

#include "native/simd.h"
#include "native/transpose.h"

// A matrix (K, columns) in the order in which tiles read it: panels of `width` registers of columns, each (K, width).
// What is missing in the last panel is zero. `numbers` has them from panel `begin` on.
template <typename T>
struct Panels {
    static constexpr int lanes = Vector<T>::lanes;
    const T* numbers;
    int64_t K, columns;
    int width;
    int64_t begin = 0;

    static int64_t count(int64_t columns, int width) { return (columns + width * lanes - 1) / (width * lanes); }
    static int64_t size(int64_t K, int64_t columns, int width) { return count(columns, width) * K * width * lanes; }
    int64_t count() const { return count(columns, width); }
    const T* panel(int64_t p) const { return numbers + (p - begin) * K * width * lanes; }
};

// to[r][v] = from[r][v] + sum over k < K of a[r][k] * panel[k][v]; with `strip`, a[r][k] lies at a[0][k * R + r].
// The registers v are those of `side` panels, one after another, each of `width`. What lies at `ahead` is fetched to the
// second cache, a line at a time, as far apart as the panel's k.
template <typename T, int R, int width, int side, bool strip>
void tile(const T* const* a, int64_t K, const T* panel, const T* const* from, T* const* to, const T* ahead) {
    using Real = Vector<T>;
    constexpr int lanes = Real::lanes, V = width * side;
    const int64_t apart = K * width * lanes;
    const T* rows[R];
    Real sums[R][V];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
        rows[r] = strip ? a[0] + r : a[r];
#pragma GCC unroll 16
        for (int v = 0; v < V; ++v) sums[r][v] = Real::load(from[r] + v * lanes);
    }
    for (int64_t k = 0; k < K; ++k, panel += width * lanes, ahead += width * lanes) {
        Real b[V];
        if (!strip) __builtin_prefetch(ahead, 0, 2);
#pragma GCC unroll 16
        for (int v = 0; v < V; ++v) b[v] = Real::load(panel + v / width * apart + v % width * lanes);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
            Real x = rows[r][strip ? k * R : k];
#if defined(__AVX512F__)
            asm("" : "+v"(x.raw));  // in a register once, and not in memory at each of its products
#endif
#pragma GCC unroll 16
            for (int v = 0; v < V; ++v) sums[r][v] = fma(x, b[v], sums[r][v]);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 16
        for (int v = 0; v < V; ++v) sums[r][v].store(to[r] + v * lanes);
    }
}

// sums[r] += sum over k < K of a[r][k] * w[lane][k], in each lane: the chain of a tile, of weights that are not packed.
template <int R, typename T>
ALWAYS_INLINE void add_products(
    const T* const (&a)[R], int64_t K, const T* const (&w)[Vector<T>::lanes], Vector<T> (&sums)[R]) {
    using Real = Vector<T>;
    constexpr int lanes = Real::lanes;
    int64_t k = 0;
    for (; k + lanes <= K; k += lanes) {
        Real square[lanes];
#pragma GCC unroll 16
        for (int lane = 0; lane < lanes; ++lane) square[lane] = Real::load(w[lane] + k);
        transpose(square);
#pragma GCC unroll 16
        for (int i = 0; i < lanes; ++i) {
#pragma GCC unroll 4
            for (int r = 0; r < R; ++r) sums[r] = fma(Real(a[r][k + i]), square[i], sums[r]);
        }
    }
    if (k == K) return;
    Real square[lanes];
    for (int lane = 0; lane < lanes; ++lane) square[lane] = Real::load(w[lane] + k, K - k);
    transpose(square);
    for (int i = 0; i < K - k; ++i) {
        for (int r = 0; r < R; ++r) sums[r] = fma(Real(a[r][k + i]), square[i], sums[r]);
    }
}

// Registers of sums that a tile has at most.
constexpr int most_sums = 24;

// The tiles of one width: as many sums as registers are left beside those of a row and of the panel.
template <typename T, int width, bool strip>
struct Tiles {
    using Tile = void (*)(const T* const*, int64_t, const T*, const T* const*, T* const*, const T*);

    static constexpr int sums = registers == 32 ? 24 : register_bytes == 32 ? 12 : 8;
    static constexpr int limit = sums / width < 1 ? 1 : sums / width;
    static constexpr int most_rows = limit < 8 ? limit : 8;

    // Few rows take several panels side by side, since each sum waits for the product before it.
    static constexpr int side(int rows) {
        const int wanted = registers == 32 ? 16 : 8, found = wanted / (width * rows);
        return strip || found < 2 ? 1 : found < 4 ? 2 : 4;
    }

    template <int R, int s>
    static constexpr Tile of() {
        return tile<T, R, width, s, strip>;
    }
    template <int R>
    static Tile pick(int rows, bool sidewise) {
        if constexpr (R > 1) {
            if (rows < R) return pick<R - 1>(rows, sidewise);
        }
        return sidewise ? of<R, side(R)>() : of<R, 1>();
    }
    static Tile get(int rows, bool sidewise) { return pick<most_rows>(rows, sidewise); }
};

// A further matrix of panels, and a function that says where its operand of a row lies.
template <typename T, class A>
struct Term {
    Panels<T> panels;
    A a;
};
template <typename T, class A>
Term(Panels<T>, A) -> Term<T, A>;

// Calls `done(row, rows, panel, panels)` after each tile of the products of `count` rows and panels first ... last - 1.
//
// a(row) is where a row's operand lies, from(row) where its sums start, of which panel p's lie at p * width * lanes;
// to(row, r, p, panels) is where the sums of row r of the tile with so many panels from p on go. `backwards` walks the
// panels from the last one, so that those that the cache still has come first. Products of `earlier` terms with as many
// columns come first in each sum.
template <int width, typename T, class A, class From, class To, class Done, class... Earlier>
ALWAYS_INLINE void multiply(
    const Panels<T>& panels, int64_t first, int64_t last, bool backwards, int64_t count, A a, From from, To to,
    Done done, const Earlier&... earlier) {
    using Kernels = Tiles<T, width, false>;
    constexpr int most = Kernels::most_rows, panel_size = width * Vector<T>::lanes;
    constexpr int64_t line = 64 / sizeof(T), lines = panel_size / line;  // of each k
    if (count == 0) return;
    const int64_t tiles = (count + most - 1) / most;
    const int side = tiles == 1 ? Kernels::side(int(count)) : 1;
    for (int64_t walked = 0; walked < last - first;) {
        const int beside = last - first - walked >= side ? side : 1;
        const int64_t p = backwards ? last - walked - beside : first + walked;
        // The first tiles of a panel fetch the one after it, each a line of every k.
        const bool fetches = tiles > 1 && walked + 1 < last - first;
        for (int64_t i = 0; i < tiles; ++i) {
            const int64_t row = count * i / tiles;
            const int rows = int(count * (i + 1) / tiles - row);
            const T *in[most], *start[most];
            T* sums[most];
            for (int r = 0; r < rows; ++r) {
                start[r] = from(row + r) + p * panel_size;
                sums[r] = to(row + r, r, p, beside);
            }
            const auto kernel = Kernels::get(rows, beside > 1);
            const auto add = [&](const Panels<T>& own, const auto& a_of) {
                const T* const panel = own.panel(p);
                const T* const next = fetches && i < lines ? own.panel(backwards ? p - 1 : p + 1) + i * line : panel;
                for (int r = 0; r < rows; ++r) in[r] = a_of(row + r);
                kernel(in, own.K, panel, start, sums, next);
                for (int r = 0; r < rows; ++r) start[r] = sums[r];
            };
            (add(earlier.panels, earlier.a), ...);
            add(panels, a);
            done(row, rows, p, beside);
        }
        walked += beside;
    }
}
