// The linear recurrence h_t = a_t h_{t-1} + b_t of columns side by side, and its gradients.
//
// A step waits for the one before it, but columns do not wait for each other. The states of a few registers of columns
// stay there over all steps. Of more columns, a row is computed from the row before it, some columns at a time. Time is
// never cut, so that no result depends on how. A complex number is two columns: its parts.
#include <utility>

#include "native/simd.h"
#include "native/threads.h"

#define EXPORTED extern "C" __attribute__((visibility("default")))

namespace {

// The lanes (lane & kept) ^ flipped.
template <int kept, int flipped, typename T, int... lane>
ALWAYS_INLINE Vector<T> rearranged(Vector<T> a, std::integer_sequence<int, lane...>) {
#if defined(__clang__)
    return {__builtin_shufflevector(a.raw, a.raw, ((lane & kept) ^ flipped)...)};
#else
    return {__builtin_shuffle(a.raw, typename Vector<T>::Integers{((lane & kept) ^ flipped)...})};
#endif
}

// A register of factors, real or complex.
template <typename T, bool is_complex>
struct Factor {
    using Real = Vector<T>;
    using Lanes = std::make_integer_sequence<int, Real::lanes>;
    Real real, imaginary;  // in both places of a complex number, the second with its sign in a product there

    Factor() = default;
    explicit ALWAYS_INLINE Factor(Real a) : real(a) {
        if constexpr (is_complex) {
            real = rearranged<~1, 0>(a, Lanes());
            imaginary = rearranged<~1, 1>(a, Lanes()) * signs(Lanes());
        }
    }
    // Of the conjugates of the factors.
    static ALWAYS_INLINE Factor conjugate(Real a) {
        Factor factor(a);
        if constexpr (is_complex) factor.imaginary = -factor.imaginary;
        return factor;
    }
    ALWAYS_INLINE Real operator*(Real h) const {
        if constexpr (is_complex) return real * h + imaginary * rearranged<~0, 1>(h, Lanes());
        return real * h;
    }
    // The product, and b.
    ALWAYS_INLINE Real times_plus(Real h, Real b) const {
        if constexpr (is_complex) b = fma(imaginary, rearranged<~0, 1>(h, Lanes()), b);
        return fma(real, h, b);
    }

private:
    template <int... lane>
    static ALWAYS_INLINE Real signs(std::integer_sequence<int, lane...>) {
        return {typename Real::Raw{T(lane % 2 ? 1 : -1)...}};
    }
};

constexpr int64_t steps_of_a_sum = 256;  // a sum over time is one of the sums over so many steps
constexpr int64_t columns_at_a_time = 1024;

// A step of few columns is a line of each array, which arrives in time if it is asked for so many steps before.
constexpr int64_t steps_ahead = 32;
template <class... Arrays>
ALWAYS_INLINE void fetch(int64_t at, const Arrays*... arrays) {
    (__builtin_prefetch(arrays + at), ...);
}
template <class... Arrays>
ALWAYS_INLINE void fetch_to_write(int64_t at, const Arrays*... arrays) {
    (__builtin_prefetch(arrays + at, 1), ...);
}

template <typename T, bool is_complex, bool constant>
struct Scan {
    using Real = Vector<T>;
    using Own = Factor<T, is_complex>;
    static constexpr int lanes = Real::lanes;

    int64_t steps, columns;
    const T* a;  // (T, columns), or (columns) if it is constant

    // The factors of step t in the columns from c on.
    template <bool whole = false>
    ALWAYS_INLINE Real factors(int64_t t, int64_t c, int64_t left) const {
        return get<whole>(a + (constant ? 0 : t * columns) + c, left);
    }

    // ---- Forward: `kept` is another place for the states, or null

    template <int V>
    void in_registers(int64_t c, int64_t end, const T* b, const T* h0, T* h, T* kept) const {
        Real state[V];
        Own own[V];
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) {
            const int64_t at = c + v * lanes;
            state[v] = get<(V > 1)>(h0 + at, end - at);
            if (constant) own[v] = Own(factors<(V > 1)>(0, at, end - at));
        }
        for (int64_t t = 0; t < steps; ++t) {
            const bool fetches = t + steps_ahead < steps;
#pragma GCC unroll 8
            for (int v = 0; v < V; ++v) {
                const int64_t at = c + v * lanes, left = end - at;
                if (fetches) {
                    const int64_t later = (t + steps_ahead) * columns + at;
                    if (!constant) fetch(later, a);
                    fetch(later, b);
                    fetch_to_write(later, h);
                    if (kept) fetch_to_write(later, kept);
                }
                if (!constant) own[v] = Own(factors<(V > 1)>(t, at, left));
                state[v] = own[v].times_plus(state[v], get<(V > 1)>(b + t * columns + at, left));
                put<(V > 1)>(state[v], h + t * columns + at, left);
                if (kept) put<(V > 1)>(state[v], kept + t * columns + at, left);
            }
        }
    }

    void in_rows(int64_t c, int64_t end, const T* b, const T* h0, T* h, T* kept) const {
        const T* before = h0;
        for (int64_t t = 0; t < steps; ++t) {
            for (int64_t at = c; at < end; at += lanes) {
                const int64_t left = end - at;
                const Own own(factors(t, at, left));
                const Real state = own.times_plus(get(before + at, left), get(b + t * columns + at, left));
                put(state, h + t * columns + at, left);
                if (kept) put(state, kept + t * columns + at, left);
            }
            before = h + t * columns;
        }
    }

    // ---- Backward: db_t = dh_t + conj(a_{t+1}) db_{t+1} and da_t = db_t conj(h_{t-1}); of constant factors, its sum

    template <int V>
    void in_registers(
        int64_t c, int64_t end, const T* dh, const T* h, const T* h0, T* da, T* db, T* dh0) const {
        Real d[V], sums[V], totals[V];
        Own own[V];  // of the step after
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) {
            sums[v] = totals[v] = 0;
            if (constant) own[v] = Own::conjugate(factors<(V > 1)>(0, c + v * lanes, end - c - v * lanes));
        }
        for (int64_t t = steps - 1; t >= 0; --t) {
            const T* const before = t ? h + (t - 1) * columns : h0;
            const bool fetches = t >= steps_ahead;
#pragma GCC unroll 8
            for (int v = 0; v < V; ++v) {
                const int64_t at = c + v * lanes, left = end - at;
                if (fetches) {
                    const int64_t later = (t - steps_ahead) * columns + at;
                    if (!constant) fetch(later, a);
                    fetch(later, dh, h);
                    if (!constant) fetch_to_write(later, da);
                    fetch_to_write(later, db);
                }
                const Real given = get<(V > 1)>(dh + t * columns + at, left);
                d[v] = t == steps - 1 ? given : own[v].times_plus(d[v], given);
                put<(V > 1)>(d[v], db + t * columns + at, left);
                const Own entered = Own::conjugate(get<(V > 1)>(before + at, left));
                if (constant) {
                    sums[v] = entered.times_plus(d[v], sums[v]);
                    if (t % steps_of_a_sum == 0) {
                        totals[v] += sums[v];
                        sums[v] = 0;
                    }
                } else {
                    put<(V > 1)>(entered * d[v], da + t * columns + at, left);
                    own[v] = Own::conjugate(factors<(V > 1)>(t, at, left));
                }
            }
        }
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) {
            const int64_t at = c + v * lanes;
            put<(V > 1)>(own[v] * d[v], dh0 + at, end - at);
            if (constant) put<(V > 1)>(totals[v], da + at, end - at);
        }
    }

    // At most columns_at_a_time.
    void in_rows(int64_t c, int64_t end, const T* dh, const T* h, const T* h0, T* da, T* db, T* dh0) const {
        alignas(64) T sums[columns_at_a_time] = {};
        for (int64_t at = c; constant && at < end; at += lanes) put(Real(0), da + at, end - at);
        for (int64_t t = steps - 1; t >= 0; --t) {
            const T* const before = t ? h + (t - 1) * columns : h0;
            for (int64_t at = c; at < end; at += lanes) {
                const int64_t left = end - at;
                Real d = get(dh + t * columns + at, left);
                if (t < steps - 1) {
                    d = Own::conjugate(factors(t + 1, at, left)).times_plus(get(db + (t + 1) * columns + at, left), d);
                }
                put(d, db + t * columns + at, left);
                const Own entered = Own::conjugate(get(before + at, left));
                if (constant) {
                    T* const sum = sums + (at - c);
                    const Real total = entered.times_plus(d, Real::load(sum));
                    if (t % steps_of_a_sum == 0) put(get(da + at, left) + total, da + at, left);
                    (t % steps_of_a_sum == 0 ? Real(0) : total).store(sum);
                } else {
                    put(entered * d, da + t * columns + at, left);
                }
            }
        }
        for (int64_t at = c; at < end; at += lanes) {
            const int64_t left = end - at;
            put(Own::conjugate(factors(0, at, left)) * get(db + at, left), dh0 + at, left);
        }
    }

    // ---- The columns of a thread

    template <class... Arrays>
    void columns_of(int64_t c, int64_t end, Arrays... arrays) const {
        constexpr int most = registers == 32 ? 8 : 4;
        if (end - c <= most * lanes) {
            // The last register alone may be cut short.
            while (c < end) {
                const int64_t whole = (end - c) / lanes;
                const int V = whole >= most ? most : whole >= 4 ? 4 : whole >= 2 ? 2 : 1;
                const int64_t next = end - c < lanes ? end : c + V * lanes;
                V == most ? in_registers<most>(c, next, arrays...)
                : V == 4  ? in_registers<4>(c, next, arrays...)
                : V == 2  ? in_registers<2>(c, next, arrays...)
                          : in_registers<1>(c, next, arrays...);
                c = next;
            }
        } else {
            for (; c < end; c += columns_at_a_time) {
                in_rows(c, end - c < columns_at_a_time ? end : c + columns_at_a_time, arrays...);
            }
        }
    }

    // Threads have whole registers of columns to themselves.
    template <class... Arrays>
    void run(const Team& team, Arrays... arrays) const {
        const double bytes = double(steps) * columns * sizeof(T) * sizeof...(arrays);
        team.share(bytes / 1e4, [&](int index, int count) {
            const SubnormalsAreZero within;
            const int64_t all = (columns + lanes - 1) / lanes, last = all * (index + 1) / count * lanes;
            columns_of(all * index / count * lanes, last < columns ? last : columns, arrays...);
        });
    }
};

}  // namespace

// a is (T, columns), or (columns) if it is constant.
#define SCAN(name, T, is_complex)                                                                                     \
    EXPORTED void gpurnn_scan_##name(                                                                                 \
        const Team* team, int64_t steps, int64_t columns, int64_t constant, const T* a, const T* b, const T* h0, T* h, \
        T* kept) {                                                                                                    \
        if (constant) {                                                                                               \
            Scan<T, is_complex, true>{steps, columns, a}.run(*team, b, h0, h, kept);                                  \
        } else {                                                                                                      \
            Scan<T, is_complex, false>{steps, columns, a}.run(*team, b, h0, h, kept);                                 \
        }                                                                                                             \
    }                                                                                                                 \
    EXPORTED void gpurnn_scan_backward_##name(                                                                        \
        const Team* team, int64_t steps, int64_t columns, int64_t constant, const T* a, const T* dh, const T* h,      \
        const T* h0, T* da, T* db, T* dh0) {                                                                          \
        if (constant) {                                                                                               \
            Scan<T, is_complex, true>{steps, columns, a}.run(*team, dh, h, h0, da, db, dh0);                          \
        } else {                                                                                                      \
            Scan<T, is_complex, false>{steps, columns, a}.run(*team, dh, h, h0, da, db, dh0);                         \
        }                                                                                                             \
    }

SCAN(float32, float, false)
SCAN(float64, double, false)
SCAN(complex64, float, true)
SCAN(complex128, double, true)
