// The gradient of an embedding: sums of rows, in the order of their positions.
#include "native/simd.h"
#include "native/threads.h"

#define EXPORTED extern "C" __attribute__((visibility("default")))

// dweight (V, E), zero, += the rows of dy (N, E) at their indices. A thread has columns to itself.
template <typename T>
static void scatter(const Team& team, int64_t rows, int64_t E, const int64_t* indices, const T* dy, T* dweight) {
    constexpr int64_t lanes = Vector<T>::lanes;
    team.share(double(rows) * E * sizeof(T) * 3 / 1e4, [&](int index, int count) {
        const int64_t all = (E + lanes - 1) / lanes, first = all * index / count * lanes;
        const int64_t end = all * (index + 1) / count * lanes < E ? all * (index + 1) / count * lanes : E;
        for (int64_t n = 0; n < rows; ++n) {
            const T* const from = dy + n * E;
            T* const to = dweight + indices[n] * E;
            for (int64_t c = first; c < end; c += lanes) {
                put(get(to + c, end - c) + get(from + c, end - c), to + c, end - c);
            }
        }
    });
}

EXPORTED void gpurnn_scatter_float32(
    const Team* team, int64_t rows, int64_t E, const int64_t* indices, const float* dy, float* dweight) {
    scatter(*team, rows, E, indices, dy, dweight);
}
EXPORTED void gpurnn_scatter_float64(
    const Team* team, int64_t rows, int64_t E, const int64_t* indices, const double* dy, double* dweight) {
    scatter(*team, rows, E, indices, dy, dweight);
}
