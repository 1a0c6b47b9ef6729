// The states of the minimal GRU and LSTM (Feng et al. 2024), h_t = kept h_{t-1} + z n_t, from the arguments of their
// gates, and the gradients of these.
//
// The gates of a step follow from their arguments alone. So they, and what the state makes of them, are one pass over
// memory. Neither share is 1 minus the other, and n is positive: no digit is lost to a difference.
#include "native/elementary.h"
#include "native/threads.h"
#include "recurrence/clock.cuh"

#define EXPORTED extern "C" __attribute__((visibility("default")))

namespace {

// z and the share of h_{t-1}, and their gradients with respect to the arguments of the gates, where dz - dkept is d.
template <typename T>
struct GruShares {
    using Real = Vector<T>;
    static constexpr int gates = 1;
    Real z, kept;

    explicit ALWAYS_INLINE GruShares(const Real (&a)[gates]) {
        const auto negative = a[0] < 0;
        const Real e = exp(select(negative, a[0], -a[0])), larger = 1 / (1 + e), smaller = e * larger;
        z = select(negative, smaller, larger);
        kept = select(negative, larger, smaller);
    }
    ALWAYS_INLINE void backward(Real d, Real (&da)[gates]) const { da[0] = d * z * kept; }
};

// i / (i + f) = (1 + exp(-a_f)) / (2 + exp(-a_i) + exp(-a_f)), and f / (i + f). All exponentials are divided by the
// largest of them and of 1, which none then exceeds.
template <typename T>
struct LstmShares {
    using Real = Vector<T>;
    static constexpr int gates = 2;
    Real z, kept, of_i, of_f;

    explicit ALWAYS_INLINE LstmShares(const Real (&a)[gates]) {
        const Real i = -a[0], f = -a[1], either = select(i < f, f, i), largest = select(either < 0, Real(0), either);
        const Real one = exp(-largest), e_i = exp(i - largest), e_f = exp(f - largest);
        const Real both = one + e_i + (one + e_f);
        z = (one + e_f) / both;
        kept = (one + e_i) / both;
        of_i = e_i / both;
        of_f = e_f / both;
    }
    ALWAYS_INLINE void backward(Real d, Real (&da)[gates]) const {
        da[0] = d * z * of_i;
        da[1] = -d * kept * of_f;
    }
};

// g(p) = p + 1/2, or sigma(p) where p < 0.
template <typename Real>
ALWAYS_INLINE Real candidate(Real p) {
    const auto below = p < 0;
    const Real e = exp(select(below, p, Real(0)));
    return select(below, e / (1 + e), p + Real(0.5));
}

// a (T, B, (gates + 1) H), h and dh (T, B, H), h0 (B, H), marks (T, B) or null.
template <typename T, template <typename> class Shares>
struct Minimal {
    using Real = Vector<T>;
    static constexpr int lanes = Real::lanes, gates = Shares<T>::gates, width = gates + 1;

    int64_t steps, B, H;
    const T* a;
    const Marks* marks;

    bool is_marked(int64_t t, int64_t b, Marks mark) const { return marks && (marks[t * B + b] & mark); }

    // The registers of a row's units that belong to a thread: `function(b, j, count)`.
    template <class Function>
    ALWAYS_INLINE void each(int64_t first, int64_t last, const Function& function) const {
        const int64_t groups = (H + lanes - 1) / lanes;
        int64_t b = first / groups, group = first % groups;
        for (int64_t i = first; i < last; ++i) {
            const int64_t j = group * lanes;
            function(b, j, H - j);
            if (++group == groups) group = 0, ++b;
        }
    }
    ALWAYS_INLINE const T* arguments(int64_t t, int64_t b, int64_t j) const { return a + (t * B + b) * width * H + j; }
    ALWAYS_INLINE Shares<T> shares(const T* from, int64_t count) const {
        Real own[gates];
        for (int g = 0; g < gates; ++g) own[g] = get(from + g * H, count);
        return Shares<T>(own);
    }

    // `kept` is another place for the states, or null.
    void forward(int64_t first, int64_t last, const T* h0, T* h, T* kept) const {
        for (int64_t t = 0; t < steps; ++t) {
            const T* const before = t ? h + (t - 1) * B * H : h0;
            each(first, last, [&](int64_t b, int64_t j, int64_t count) {
                const int64_t unit = b * H + j, at = t * B * H + unit;
                Real state = is_marked(t, b, reset_mark) ? Real(0) : get(before + unit, count);
                if (!is_marked(t, b, hole_mark)) {
                    const T* const from = arguments(t, b, j);
                    const Shares<T> own = shares(from, count);
                    state = fma(own.kept, state, own.z * candidate(get(from + gates * H, count)));
                }
                put(state, h + at, count);
                if (kept) put(state, kept + at, count);
            });
        }
    }

    // `dh0` carries the gradient of the state from step to step.
    void backward(int64_t first, int64_t last, const T* h0, const T* h, const T* dh, T* da, T* dh0) const {
        each(first, last, [&](int64_t b, int64_t j, int64_t count) { put(Real(0), dh0 + b * H + j, count); });
        for (int64_t t = steps - 1; t >= 0; --t) {
            const T* const before = t ? h + (t - 1) * B * H : h0;
            each(first, last, [&](int64_t b, int64_t j, int64_t count) {
                const int64_t unit = b * H + j;
                const bool cut = is_marked(t, b, reset_mark);
                T* const to = da + (t * B + b) * width * H + j;
                Real d = get(dh + t * B * H + unit, count) + get(dh0 + unit, count);
                if (is_marked(t, b, hole_mark)) {
                    for (int g = 0; g < width; ++g) put(Real(0), to + g * H, count);
                } else {
                    const T* const from = arguments(t, b, j);
                    const Shares<T> own = shares(from, count);
                    const Real p = get(from + gates * H, count), n = candidate(p);
                    const Real of_kept = cut ? Real(0) : d * get(before + unit, count);
                    Real of_gates[gates];
                    own.backward(d * n - of_kept, of_gates);
                    for (int g = 0; g < gates; ++g) put(of_gates[g], to + g * H, count);
                    put(d * own.z * select(p < 0, n * (1 - n), Real(1)), to + gates * H, count);
                    d *= own.kept;
                }
                put(cut ? Real(0) : d, dh0 + unit, count);
            });
        }
    }

    template <class Pass>
    void share(const Team& team, const Pass& pass) const {
        const int64_t all = B * ((H + lanes - 1) / lanes);
        team.share(double(steps) * all * lanes * width / 500, [&](int index, int count) {
            const SubnormalsAreZero within;
            pass(all * index / count, all * (index + 1) / count);
        });
    }
};

}  // namespace

#define MINIMAL(cell, name, T, Shares)                                                                                 \
    EXPORTED void gpurnn_##cell##_##name(                                                                              \
        const Team* team, int64_t steps, int64_t B, int64_t H, const T* a, const T* h0, const Marks* marks, T* h,      \
        T* kept) {                                                                                                     \
        const Minimal<T, Shares> layer{steps, B, H, a, marks};                                                         \
        layer.share(*team, [&](int64_t first, int64_t last) { layer.forward(first, last, h0, h, kept); });             \
    }                                                                                                                  \
    EXPORTED void gpurnn_##cell##_backward_##name(                                                                     \
        const Team* team, int64_t steps, int64_t B, int64_t H, const T* a, const T* h0, const Marks* marks,            \
        const T* h, const T* dh, T* da, T* dh0) {                                                                      \
        const Minimal<T, Shares> layer{steps, B, H, a, marks};                                                         \
        layer.share(*team, [&](int64_t first, int64_t last) { layer.backward(first, last, h0, h, dh, da, dh0); });     \
    }

MINIMAL(mingru, float32, float, GruShares)
MINIMAL(mingru, float64, double, GruShares)
MINIMAL(minlstm, float32, float, LstmShares)
MINIMAL(minlstm, float64, double, LstmShares)
