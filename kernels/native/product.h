// The matrix products of a CPU: tiles of a few rows and a few registers of columns, whose sums stay in registers.
//
// Each sum is one chain, over k in order, from the number it starts with. It has the same bits in any tile, with any
// other rows, and if it is stored and continued later. So no result depends on how work is split.
#pragma once

#include "native/simd.h"
#include "native/transpose.h"

// The registers of a panel's columns that lie side by side for each k. Of 16 registers a tile of six rows and two of
// columns reads fewest numbers for a product, so that what does not stay in the first cache comes in time.
constexpr int part_of(int width) { return registers == 16 && register_bytes == 32 && width == 4 ? 2 : width; }

// A matrix (K, columns) in the order in which tiles read it: panels of `width` registers of columns, whose parts are each
// (K, part_of(width)). The last part is as narrow as the registers that are left; what is missing in the last one of them
// is zero. `numbers` has the panels from `begin` on.
template <typename T>
struct Panels {
    static constexpr int lanes = Vector<T>::lanes;
    const T* numbers;
    int64_t K, columns;
    int width;
    int64_t begin = 0;

    static int64_t count(int64_t columns, int width) { return (columns + width * lanes - 1) / (width * lanes); }
    static int64_t size(int64_t K, int64_t columns, int width) { return count(columns, width) * K * width * lanes; }
    static int64_t in_registers(int64_t columns) { return (columns + lanes - 1) / lanes; }
    // The registers of the part that begins with one of them.
    static int of_part(int64_t columns, int width, int64_t first) {
        const int64_t left = in_registers(columns) - first;
        return left < part_of(width) ? int(left) : part_of(width);
    }
    int64_t count() const { return count(columns, width); }
    const T* panel(int64_t p) const { return numbers + (p - begin) * K * width * lanes; }
};

// Products with one matrix: a[r] is where row r's operand lies, and `panel` is the first part of the matrix's columns.
// With each k what lies at `ahead` is fetched to the second cache, and `pace` numbers on with the next.
template <typename T>
struct Stretch {
    const T* const* a;
    int64_t K;
    const T *panel, *ahead;
    int64_t pace;
};

// sums[r][v] += the number of row r at k * panel[v], which lies as `tile` says.
template <int width, bool strip, int R, int V, typename T>
ALWAYS_INLINE void add_product(
    const T* const (&rows)[R], int64_t k, const T* panel, int64_t apart, Vector<T> (&sums)[R][V]) {
    using Real = Vector<T>;
    constexpr int lanes = Real::lanes;
    Real b[V];
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

// to[r][v] = from[r][v] + sum over k of a[r][k] * panel[k][v], of each stretch after the other; with `strip`, a[r][k]
// lies at a[0][k * R + r]. The registers v are those of `side` parts, one after another, each of `width`.
template <typename T, int R, int width, int side, bool strip>
void tile(const Stretch<T>* stretches, int count, const T* const* from, T* const* to) {
    using Real = Vector<T>;
    constexpr int lanes = Real::lanes, V = width * side, step = width * lanes;
    constexpr int at_once = 2;  // numbers k: of the instructions for a single one a fifth would be the loop's own
    Real sums[R][V];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 16
        for (int v = 0; v < V; ++v) sums[r][v] = Real::load(from[r] + v * lanes);
    }
    for (int i = 0; i < count; ++i) {
        const int64_t K = stretches[i].K, apart = K * step, pace = stretches[i].pace;
        const T *panel = stretches[i].panel, *ahead = stretches[i].ahead;
        const T* rows[R];
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) rows[r] = strip ? stretches[i].a[0] + r : stretches[i].a[r];
        int64_t k = 0;
        for (; k + at_once <= K; k += at_once, panel += at_once * step, ahead += at_once * pace) {
#pragma GCC unroll 2
            for (int next = 0; next < at_once; ++next) {
                if (!strip) __builtin_prefetch(ahead + next * pace, 0, 2);
                add_product<width, strip>(rows, k + next, panel + next * step, apart, sums);
                asm volatile("" ::: "memory");  // mixed with the loads of the next k, the sums need too many registers
            }
        }
        for (; k < K; ++k, panel += step) add_product<width, strip>(rows, k, panel, apart, sums);
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 16
        for (int v = 0; v < V; ++v) sums[r][v].store(to[r] + v * lanes);
    }
}

// sums[c][r] += sum over k < K of a[r][k] * w[c][lane * K + k], in each lane: chains of a tile, of weights that are not
// packed. Where not `whole`, there are `left` rows of them, and the last one stands for the lanes behind it. Chains beside
// each other hide how long each waits for its own sums.
template <bool whole, int R, int C, typename T>
ALWAYS_INLINE void add_products(
    const T* const (&a)[R], int64_t K, const T* const (&w)[C], int64_t left, Vector<T> (&sums)[C][R]) {
    using Real = Vector<T>;
    constexpr int lanes = Real::lanes, part = of_a_part<T>;
    int64_t k = 0;
    for (; whole && k + part <= K; k += part) {
#pragma GCC unroll 4
        for (int c = 0; c < C; ++c) {
            Real columns[part];
            load_columns(w[c] + k, K, columns);
#pragma GCC unroll 4
            for (int i = 0; i < part; ++i) {
#pragma GCC unroll 4
                for (int r = 0; r < R; ++r) sums[c][r] = fma(Real(a[r][k + i]), columns[i], sums[c][r]);
            }
        }
    }
    for (; k < K; k += lanes) {
        const int64_t count = K - k < lanes ? K - k : lanes;
#pragma GCC unroll 4
        for (int c = 0; c < C; ++c) {
            Real square[lanes];
            for (int lane = 0; lane < lanes; ++lane) {
                square[lane] = get(w[c] + (whole || lane < left ? lane : left - 1) * K + k, count);
            }
            transpose(square);
            for (int i = 0; i < count; ++i) {
                for (int r = 0; r < R; ++r) sums[c][r] = fma(Real(a[r][k + i]), square[i], sums[c][r]);
            }
        }
    }
}

// Registers of sums that a tile has at most.
constexpr int most_sums = 24;

// The tiles of one part's width: as many sums as registers are left beside those of a row and of the part.
template <typename T, int width, bool strip>
struct Tiles {
    using Tile = void (*)(const Stretch<T>*, int, const T* const*, T* const*);

    static constexpr int sums = registers == 32 ? 24 : register_bytes == 32 ? 12 : 8;
    static constexpr int limit = sums / width < 1 ? 1 : sums / width;
    static constexpr int most_rows = limit < 8 ? limit : 8;

    // Few rows take several parts side by side, since each sum waits for the product before it.
    static constexpr int side(int rows) {
        const int wanted = registers == 32 ? 16 : sums, found = wanted / (width * rows);
        return strip || found < 2 ? 1 : found < 4 ? 2 : 4;
    }

    template <int R, int most_beside>
    static Tile of(int beside) {
        if constexpr (most_beside > 1) {
            if (beside < most_beside) return of<R, most_beside / 2>(beside);
        }
        return tile<T, R, width, most_beside, strip>;
    }
    template <int R>
    static Tile pick(int rows, int beside) {
        if constexpr (R > 1) {
            if (rows < R) return pick<R - 1>(rows, beside);
        }
        return of<R, side(R)>(beside);
    }
    // The tile of so many rows and parts side by side, which are 1, 2 or 4 and at most side(rows).
    static Tile get(int rows, int beside) { return pick<most_rows>(rows, beside); }
    // The tile of the last part, of so many rows and fewer registers.
    template <int R = most_rows, int own = width - 1>
    static Tile narrow(int rows, int registers) {
        static_assert(own > 0, "parts of a register are never narrow");
        if constexpr (own > 1) {
            if (registers < own) return narrow<R, own - 1>(rows, registers);
        }
        if constexpr (R > 1) {
            if (rows < R) return narrow<R - 1, own>(rows, registers);
        }
        return tile<T, R, own, 1, strip>;
    }
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
// to(row, r, p, panels), which is called before the products, is where the sums of row r of the tile with so many panels
// from p on go. `backwards` walks the panels from the last one, so that those that the cache still has come first.
// Products of `earlier` terms with as many columns come first in each sum.
template <int width, typename T, class A, class From, class To, class Done, class... Earlier>
ALWAYS_INLINE void multiply(
    const Panels<T>& panels, int64_t first, int64_t last, bool backwards, int64_t count, A a, From from, To to,
    Done done, const Earlier&... earlier) {
    constexpr int part = part_of(width), parts = width / part, lanes = Vector<T>::lanes;
    using Kernels = Tiles<T, part, false>;
    constexpr int most = Kernels::most_rows, panel_size = width * lanes, part_size = part * lanes;
    constexpr int64_t lines = part_size * sizeof(T) / 64;  // of each k
    constexpr int stretches = 1 + int(sizeof...(earlier));
    if (count == 0) return;
    const int64_t tiles = (count + most - 1) / most;
    const int wanted = tiles == 1 ? Kernels::side(int(count)) : 1, side = wanted > parts ? wanted / parts : 1;
    for (int64_t walked = 0; walked < last - first;) {
        const int beside = last - first - walked >= side ? side : 1;
        const int64_t p = backwards ? last - walked - beside : first + walked;
        // The tiles of a panel fetch the next one, each an equal share. Fetched in less time, it would come too late.
        const bool fetches = tiles > 1 && walked + 1 < last - first;
        int64_t shares = lines;
        while (2 * shares <= tiles && shares < 8 * lines) shares *= 2;
        const int64_t there = Panels<T>::in_registers(panels.columns) - p * width;
        const int used = there < beside * width ? int(there) : beside * width, whole = used / part, left = used % part;
        for (int64_t i = 0; i < tiles; ++i) {
            const int64_t row = count * i / tiles;
            const int rows = int(count * (i + 1) / tiles - row);
            const T *in[stretches][most], *start[most];
            T* sums[most];
            for (int r = 0; r < rows; ++r) {
                start[r] = from(row + r) + p * panel_size;
                sums[r] = to(row + r, r, p, beside);
            }
            int index = 0;
            const auto list = [&](const auto& a_of) {
                for (int r = 0; r < rows; ++r) in[index][r] = a_of(row + r);
                ++index;
            };
            (list(earlier.a), ...);
            list(a);
            const int most_sidewise = Kernels::side(rows);
            int sidewise = most_sidewise < beside * parts ? most_sidewise : beside * parts;
            auto kernel = Kernels::get(rows, sidewise);
            for (int q = 0; q * part < used; q += sidewise) {
                if (q + sidewise > whole) {
                    while (sidewise > 1 && q + sidewise > whole) sidewise /= 2;
                    kernel = Kernels::get(rows, sidewise);
                    if constexpr (part > 1) {
                        if (q == whole) kernel = Kernels::narrow(rows, left);
                    }
                }
                Stretch<T> all[stretches];
                index = 0;
                const auto add = [&](const Panels<T>& own) {
                    const T* const panel = own.panel(p) + q * own.K * part_size;
                    const int64_t pace = fetches && i < shares ? part_size / shares : 0;
                    const int64_t next = (backwards ? -own.K : own.K) * panel_size + i * own.K * pace;
                    all[index] = {in[index], own.K, panel, pace ? panel + next : panel, pace};
                    ++index;
                };
                (add(earlier.panels), ...);
                add(panels);
                kernel(all, stretches, start, sums);
                for (int r = 0; r < rows; ++r) {
                    start[r] += sidewise * part_size;
                    sums[r] += sidewise * part_size;
                }
            }
            done(row, rows, p, beside);
        }
        walked += beside;
    }
}
