// How matrices become panels.
#pragma once

#include "native/product.h"

// The rows of a matrix that are the lanes of a register: `count` rows one after another, from `first` on. Further lanes are
// zero.
template <typename T>
struct InLanes {
    const T* first;
    int64_t count;

    // Where a row is one number.
    Vector<T> load() const { return count > 0 ? get(first, count) : Vector<T>(0); }
};

// A matrix (K, columns), whose columns are rows of K numbers in memory, as panels of `width` registers. rows_of(register)
// has the rows of a register's columns. Writes panels first ... last - 1, to `to`.
template <typename T, class RowsOf>
void pack_rows(int64_t K, int64_t columns, int width, int64_t first, int64_t last, T* to, RowsOf rows_of) {
    using Real = Vector<T>;
    constexpr int lanes = Real::lanes;
    for (int64_t p = first; p < last; ++p) {
        for (int v = 0; v < width; ++v) {
            const int begin = v / part_of(width) * part_of(width);
            const int part = Panels<T>::of_part(columns, width, p * width + begin);
            if (v - begin >= part) break;
            T* const at = to + (((p - first) * width + begin) * K + v - begin) * lanes;
            const InLanes<T> rows = rows_of(p * width + v);
            for (int64_t k = 0; k < K; k += lanes) {
                Real square[lanes];
                for (int lane = 0; lane < lanes; ++lane) {
                    square[lane] = lane < rows.count ? get(rows.first + lane * K + k, K - k) : Real(0);
                }
                transpose(square);
                const int64_t there = K - k < lanes ? K - k : lanes;
                for (int i = 0; i < there; ++i) square[i].store(at + (k + i) * part * lanes);
            }
        }
    }
}

// A matrix (K, columns) as panels of `width` registers. Writes panels first ... last - 1, to `to`. Some rows are read for
// all panels before the next ones, as they lie in memory.
template <typename T>
void pack_columns(const T* w, int64_t K, int64_t columns, int width, int64_t first, int64_t last, T* to) {
    using Real = Vector<T>;
    constexpr int64_t rows = 32;
    const int most = part_of(width), parts = width / most;
    for (int64_t k0 = 0; k0 < K; k0 += rows) {
        const int64_t end = k0 + rows < K ? k0 + rows : K;
        for (int64_t p = first * parts; p < last * parts; ++p) {
            const int part = Panels<T>::of_part(columns, width, p * most);
            if (part <= 0) break;
            T* at = to + (p - first * parts) * K * most * Real::lanes + k0 * part * Real::lanes;
            for (int64_t k = k0; k < end; ++k) {
                for (int v = 0; v < part; ++v, at += Real::lanes) {
                    const int64_t column = (p * most + v) * Real::lanes, left = columns - column;
                    const T* const from = w + k * columns + column;
                    (left >= Real::lanes ? Real::load(from) : Real::load(from, left)).store(at);
                }
            }
        }
    }
}
