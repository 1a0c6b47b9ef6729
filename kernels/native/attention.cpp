// Attention of decoder steps to encoder states: scores, softmax and context, a row of the batch at a time.
#include "native/elementary.h"
#include "native/threads.h"

#define EXPORTED extern "C" __attribute__((visibility("default")))

// The arrays of one call: query (T, B, A), keys (S, B, A), values (S, B, E), v (A) or null for dot products, lengths (B)
// or null, context (T, B, E), weights (T, B, S), dv (B, A) of each row of the batch, scratch (threads, S).
template <typename T>
struct Attention {
    int64_t steps, batch, positions, width, outputs;
    double scale;
    const T *query, *keys, *values, *v;
    const int64_t* lengths;
    T *context, *weights;

    const T *dcontext, *dweights;  // null for zero
    T *dquery, *dkeys, *dvalues, *dv;
    T* scratch;
};

namespace {

template <typename T>
struct Attend {
    using Real = Vector<T>;
    static constexpr int lanes = Real::lanes;

    const Attention<T>& call;
    const int64_t Q = call.steps, B = call.batch, S = call.positions, A = call.width, E = call.outputs;

    int64_t length(int64_t b) const { return call.lengths ? call.lengths[b] : S; }

    static T product(const T* x, const T* y, int64_t size) {
        Real total = 0;
        for (int64_t i = 0; i < size; i += lanes) total = fma(get(x + i, size - i), get(y + i, size - i), total);
        return sum(total);
    }
    // to += factor x
    static void add(T factor, const T* x, T* to, int64_t size) {
        for (int64_t i = 0; i < size; i += lanes) {
            put(fma(Real(factor), get(x + i, size - i), get(to + i, size - i)), to + i, size - i);
        }
    }
    static void clear(T* to, int64_t size) {
        for (int64_t i = 0; i < size; ++i) to[i] = 0;
    }

    T score(const T* query, const T* keys) const {
        if (!call.v) return product(query, keys, A) * T(call.scale);
        Real total = 0;
        for (int64_t i = 0; i < A; i += lanes) {
            const Real f = tanh(get(query + i, A - i) + get(keys + i, A - i));
            total = fma(f, get(call.v + i, A - i), total);
        }
        return sum(total);
    }

    void forward(int64_t b) const {
        const int64_t own = length(b);
        for (int64_t t = 0; t < Q; ++t) {
            T* const alpha = call.weights + (t * B + b) * S;
            T* const context = call.context + (t * B + b) * E;
            clear(context, E);
            clear(alpha + own, S - own);
            if (own == 0) continue;
            T highest = 0;
            for (int64_t s = 0; s < own; ++s) {
                alpha[s] = score(call.query + (t * B + b) * A, call.keys + (s * B + b) * A);
                highest = s == 0 || alpha[s] > highest ? alpha[s] : highest;
            }
            T total = 0;
            for (int64_t s = 0; s < own; s += lanes) put(exp(get(alpha + s, own - s) - highest), alpha + s, own - s);
            for (int64_t s = 0; s < own; ++s) total += alpha[s];
            for (int64_t s = 0; s < own; ++s) {
                alpha[s] /= total;
                add(alpha[s], call.values + (s * B + b) * E, context, E);
            }
        }
    }

    void backward(int64_t b, T* de) const {
        const int64_t own = length(b);
        for (int64_t s = 0; s < S; ++s) {
            clear(call.dkeys + (s * B + b) * A, A);
            clear(call.dvalues + (s * B + b) * E, E);
        }
        T* const dv = call.v ? call.dv + b * A : nullptr;
        if (dv) clear(dv, A);
        for (int64_t t = 0; t < Q; ++t) {
            const int64_t row = t * B + b;
            const T* const alpha = call.weights + row * S;
            T* const dquery = call.dquery + row * A;
            clear(dquery, A);
            T mean = 0;
            for (int64_t s = 0; s < own; ++s) {
                // Where there is no weight, what the gradients hold does not matter.
                de[s] = 0;
                if (alpha[s] == 0) continue;
                if (call.dweights) de[s] = call.dweights[row * S + s];
                if (call.dcontext) {
                    de[s] += product(call.dcontext + row * E, call.values + (s * B + b) * E, E);
                }
                mean += alpha[s] * de[s];
            }
            for (int64_t s = 0; s < own; ++s) {
                de[s] = alpha[s] * (de[s] - mean);
                if (call.dcontext) add(alpha[s], call.dcontext + row * E, call.dvalues + (s * B + b) * E, E);
                score_gradients(
                    de[s], call.query + row * A, call.keys + (s * B + b) * A, dquery, call.dkeys + (s * B + b) * A, dv);
            }
        }
    }

    void score_gradients(T de, const T* query, const T* keys, T* dquery, T* dkeys, T* dv) const {
        if (!call.v) {
            de *= T(call.scale);
            add(de, keys, dquery, A);
            add(de, query, dkeys, A);
            return;
        }
        for (int64_t i = 0; i < A; i += lanes) {
            const int64_t left = A - i;
            const Real f = tanh(get(query + i, left) + get(keys + i, left));
            const Real da = de * get(call.v + i, left) * (1 - f * f);
            put(get(dv + i, left) + de * f, dv + i, left);
            put(get(dquery + i, left) + da, dquery + i, left);
            put(get(dkeys + i, left) + da, dkeys + i, left);
        }
    }
};

template <typename T, class OfRow>
void each_row(const Team& team, const Attention<T>& call, double passes, OfRow of_row) {
    const double products = double(call.steps) * call.batch * call.positions * (call.width + call.outputs);
    team.share(products * passes * (call.v ? 4 : 1) / 1e4, [&](int index, int count) {
        for (int64_t b = call.batch * index / count; b < call.batch * (index + 1) / count; ++b) of_row(b, index);
    });
}

template <typename T>
void forward(const Team& team, const Attention<T>& call) {
    const Attend<T> attend{call};
    each_row(team, call, 1, [&](int64_t b, int) { attend.forward(b); });
}

template <typename T>
void backward(const Team& team, const Attention<T>& call) {
    const Attend<T> attend{call};
    each_row(team, call, 3, [&](int64_t b, int index) { attend.backward(b, call.scratch + index * call.positions); });
}

}  // namespace

#define ATTENTION(name, T)                                                                                           \
    EXPORTED void gpurnn_attention_##name(const Team* team, const Attention<T>* call) { forward(*team, *call); }     \
    EXPORTED void gpurnn_attention_backward_##name(const Team* team, const Attention<T>* call) {                     \
        backward(*team, *call);                                                                                      \
    }

ATTENTION(float32, float)
ATTENTION(float64, double)
