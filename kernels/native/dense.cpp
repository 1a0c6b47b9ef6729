// A dense layer's products: y = x W^T + b and the gradients of x, W and b.
//
// A thread packs some panels of the weights at a time, and multiplies all of its rows by them. Threads share the panels,
// or where those are few the rows. Each number is one chain, whatever the share.
#include "native/gradients.h"
#include "native/packing.h"
#include "native/threads.h"

#define EXPORTED extern "C" __attribute__((visibility("default")))

namespace {

constexpr int most_width = 4, panels_at_once = 4;

// The width of panels for so many columns: no more registers than there are.
template <typename T>
int width_for(int64_t columns) {
    const int64_t needed = (columns + Vector<T>::lanes - 1) / Vector<T>::lanes;
    return needed < most_width ? int(needed) : most_width;
}

// The numbers of workspace that a thread needs for panels of a matrix (K, columns).
template <typename T>
int64_t panel_room(int64_t K) {
    return panels_at_once * most_width * Vector<T>::lanes * K;
}

// to (rows, columns) = start (columns), or zero if that is null, + a (rows, K) times a matrix (K, columns), of which
// pack(width, first, last, to) makes panels. `room` has panel_room(K) and then a row of panels of numbers.
template <int width, typename T, class Pack>
void product_of_width(
    int index, int count, int64_t rows, int64_t K, int64_t columns, const T* a, const T* start, T* to, T* room,
    Pack pack) {
    using Real = Vector<T>;
    constexpr int64_t panel_columns = width * Real::lanes;
    Panels<T> panels{room, K, columns, width};
    const int64_t all = panels.count();
    const bool by_rows = all < 2 * count;
    const int64_t first_row = by_rows ? rows * index / count : 0, end_row = by_rows ? rows * (index + 1) / count : rows;
    const int64_t first_panel = by_rows ? 0 : all * index / count, end_panel = by_rows ? all : all * (index + 1) / count;
    T* const starts = room + panel_room<T>(K);  // of the panels that are packed
    alignas(64) T products[most_sums * Real::lanes];
    for (int64_t first = first_panel; first < end_panel; first += panels_at_once) {
        const int64_t last = first + panels_at_once < end_panel ? first + panels_at_once : end_panel;
        pack(width, first, last, room);
        panels.begin = first;
        for (int64_t c = first * panel_columns; c < last * panel_columns; ++c) {
            starts[c - first * panel_columns] = start && c < columns ? start[c] : T(0);
        }
        multiply<width>(
            panels, first, last, false, end_row - first_row, [&](int64_t i) { return a + (first_row + i) * K; },
            [&](int64_t) { return starts - first * panel_columns; },
            [&](int64_t, int r, int64_t, int beside) { return products + r * beside * panel_columns; },
            [&](int64_t i, int tile_rows, int64_t p, int beside) {
                for (int r = 0; r < tile_rows; ++r) {
                    T* const row = to + (first_row + i + r) * columns;
                    for (int64_t c = 0; c < beside * panel_columns; c += Real::lanes) {
                        const int64_t column = p * panel_columns + c;
                        if (column >= columns) break;
                        put(Real::load(products + r * beside * panel_columns + c), row + column, columns - column);
                    }
                }
            });
    }
}

template <typename T, class Pack>
void product(
    int index, int count, int64_t rows, int64_t K, int64_t columns, const T* a, const T* start, T* to, T* room,
    Pack pack) {
    switch (width_for<T>(columns)) {
        case 1: product_of_width<1>(index, count, rows, K, columns, a, start, to, room, pack); break;
        case 2: product_of_width<2>(index, count, rows, K, columns, a, start, to, room, pack); break;
        case 3: product_of_width<3>(index, count, rows, K, columns, a, start, to, room, pack); break;
        default: product_of_width<4>(index, count, rows, K, columns, a, start, to, room, pack); break;
    }
}

template <typename T>
int64_t forward_room(int64_t K) {
    return panel_room<T>(K) + panels_at_once * most_width * Vector<T>::lanes;
}

// Of a thread; behind those of all threads are the strips of the gradients of the weights.
template <typename T>
int64_t backward_room(int64_t O) {
    const int64_t product = forward_room<T>(O);
    return product > RowGradient<T>::panel_size ? product : RowGradient<T>::panel_size;
}

// Roughly, in microseconds.
template <typename T>
double time_of(double products) {
    return products / (1600.0 * register_bytes / double(sizeof(T)) * 4);
}

template <typename T>
void forward(
    const Team& team, int64_t rows, int64_t I, int64_t O, const T* x, const T* weight, const T* bias, T* y, T* room) {
    team.share(time_of<T>(double(rows) * I * O), [&](int index, int count) {
        const SubnormalsAreZero within;
        const auto pack = [&](int width, int64_t first, int64_t last, T* to) {
            pack_rows(I, O, width, first, last, to, [&](int64_t r) {
                constexpr int64_t lanes = Vector<T>::lanes;
                const int64_t column = r * lanes, left = O - column;
                return InLanes<T>{weight + column * I, left < lanes ? left : lanes};
            });
        };
        product(index, count, rows, I, O, x, bias, y, room + index * forward_room<T>(I), pack);
    });
}

template <typename T>
void backward(
    const Team& team, int64_t rows, int64_t I, int64_t O, const T* x, const T* weight, const T* dy, T* dx, T* dweight,
    T* dbias, T* room) {
    team.share(time_of<T>(2.0 * rows * I * O), [&](int index, int count) {
        const SubnormalsAreZero within;
        T* const own = room + index * backward_room<T>(O);
        const auto pack = [&](int width, int64_t first, int64_t last, T* to) {
            pack_columns(weight, O, I, width, first, last, to);
        };
        product(index, count, rows, O, I, dy, static_cast<const T*>(nullptr), dx, own, pack);
        const int64_t first = O * index / count, last = O * (index + 1) / count;
        const int64_t size = RowGradient<T>::strips_size(O, team.most);
        T* const strips = room + team.most * backward_room<T>(O) + index * size;
        RowGradient<T>::of_rows(
            rows, [&](int64_t n) { return dy + n * O; }, first, last, false, dbias, own, strips, size,
            RowGradient<T>::product([&](int64_t n) { return x + n * I; }, I, dweight));
    });
}

}  // namespace

// The room of the two is in numbers of the dtype.
#define DENSE(name, T)                                                                                             \
    EXPORTED int64_t gpurnn_dense_room_##name(const Team* team, int64_t I) {                                       \
        return team->most * forward_room<T>(I);                                                                    \
    }                                                                                                              \
    EXPORTED int64_t gpurnn_dense_backward_room_##name(const Team* team, int64_t O) {                              \
        return team->most * (backward_room<T>(O) + RowGradient<T>::strips_size(O, team->most));                    \
    }                                                                                                              \
    EXPORTED void gpurnn_dense_##name(                                                                             \
        const Team* team, int64_t rows, int64_t I, int64_t O, const T* x, const T* weight, const T* bias, T* y,    \
        T* room) {                                                                                                 \
        forward(*team, rows, I, O, x, weight, bias, y, room);                                                      \
    }                                                                                                              \
    EXPORTED void gpurnn_dense_backward_##name(                                                                    \
        const Team* team, int64_t rows, int64_t I, int64_t O, const T* x, const T* weight, const T* dy, T* dx,     \
        T* dweight, T* dbias, T* room) {                                                                           \
        backward(*team, rows, I, O, x, weight, dy, dx, dweight, dbias, room);                                      \
    }

DENSE(float32, float)
DENSE(float64, double)
