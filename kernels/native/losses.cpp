// Softmax cross-entropy of rows, and its gradient. The equations are those of reference/losses.py, in its order.
#include <cmath>

#include "native/elementary.h"
#include "native/threads.h"

#define EXPORTED extern "C" __attribute__((visibility("default")))

// The arrays of one call. `losses` and what follows are (N), except `exps` (N, V); those that only backward reads are
// null where it is not wanted, and `exps` then has a row for each thread.
template <typename T>
struct Rows {
    int64_t count, classes;
    const T* logits;
    const int64_t* labels;
    const T* weights;        // null for ones
    const T* class_weights;  // (V), null for ones
    double smoothing;
    T* losses;
    T* exps;
    T *sums, *others, *targets;
};

namespace {

template <typename T>
struct CrossEntropy {
    using Real = Vector<T>;
    static constexpr int lanes = Real::lanes;

    const Rows<T>& rows;
    const int64_t V = rows.classes;

    T weight_of(int64_t c) const { return rows.class_weights ? rows.class_weights[c] : T(1); }

    // The weight of the term of every class that label smoothing adds.
    T smooth_of(int64_t c) const { return T(rows.smoothing / double(V)) * weight_of(c); }

    // A weighted term; one of weight zero is zero, though it may be infinite.
    static T counted(T weight, T term) { return weight == 0 && std::isinf(term) ? T(0) : weight * term; }

    void forward(int64_t n, T* e) const {
        const T* const x = rows.logits + n * V;
        const int64_t label = rows.labels[n];
        if (rows.weights && rows.weights[n] == 0) {
            rows.losses[n] = 0;
            if (rows.sums) {
                for (int64_t c = 0; c < V; ++c) e[c] = 0;
                rows.sums[n] = 1, rows.others[n] = 0, rows.targets[n] = 0;
            }
            return;
        }
        int64_t highest;
        const T maximum = largest(x, highest);
        for (int64_t c = 0; c < V; c += lanes) put(exp(get(x + c, V - c) - maximum), e + c, V - c);
        // Without the largest term, which is 1, the sum of the others keeps its digits where it is small.
        const T e_label = e[label], e_highest = e[highest], below = x[label] - maximum;
        e[highest] = 0;
        const T rest = total(e) + (e_highest - 1), sum = rest + 1, log_sum = std::log1p(rest);
        e[highest] = e_highest;
        const T target = T(1 - rows.smoothing) * weight_of(label);
        T loss = counted(target, log_sum - below);
        if (rows.smoothing != 0) {
            T weight = 0, weighted = 0;
            for (int64_t c = 0; c < V; ++c) {
                const T smooth = smooth_of(c);
                weight += smooth;
                weighted += counted(smooth, x[c] - maximum);
            }
            loss += weight * log_sum - weighted;
        }
        rows.losses[n] = rows.weights ? loss * rows.weights[n] : loss;
        if (rows.sums) {
            rows.sums[n] = sum;
            rows.others[n] = label == highest ? rest : sum - e_label;
            rows.targets[n] = target;
        }
    }

    void backward(int64_t n, const T* dlosses, T* dlogits) const {
        const T* const e = rows.exps + n * V;
        T* const to = dlogits + n * V;
        const int64_t label = rows.labels[n];
        const T scale = rows.weights ? dlosses[n] * rows.weights[n] : dlosses[n];
        const T sum = rows.sums[n], target = rows.targets[n], of_label = -(scale * target * (rows.others[n] / sum));
        if (rows.smoothing == 0) {
            times(e, scale * target / sum, to);
            to[label] = of_label;
            return;
        }
        T spread = 0;
        for (int64_t c = 0; c < V; ++c) spread += smooth_of(c);
        times(e, scale * (target + spread) / sum, to);
        to[label] = of_label + scale * spread * (e[label] / sum);
        for (int64_t c = 0; c < V; ++c) to[c] -= scale * smooth_of(c);
    }

private:
    // The largest logit, and the first place of it. What is no number it may pass over: the sum then has it.
    T largest(const T* x, int64_t& place) const {
        T found = x[0];
        int64_t c = 0;
        if (V >= lanes) {
            Real most = Real::load(x);
            for (c = lanes; c + lanes <= V; c += lanes) most = max(Real::load(x + c), most);
            for (int lane = 0; lane < lanes; ++lane) found = most.raw[lane] > found ? most.raw[lane] : found;
        }
        for (; c < V; ++c) found = x[c] > found ? x[c] : found;
        for (place = 0; place < V - 1 && x[place] != found;) ++place;
        return found;
    }

    // The sum of a row, that of each lane in the order of the classes.
    T total(const T* e) const {
        Real sums = 0;
        for (int64_t c = 0; c < V; c += lanes) sums += get(e + c, V - c);
        return sum(sums);
    }

    void times(const T* e, T factor, T* to) const {
        for (int64_t c = 0; c < V; c += lanes) put(get(e + c, V - c) * factor, to + c, V - c);
    }
};

template <typename T>
void forward(const Team& team, const Rows<T>& rows) {
    const CrossEntropy<T> each{rows};
    team.share(double(rows.count) * rows.classes / 1e3, [&](int index, int count) {
        const int64_t last = rows.count * (index + 1) / count;
        for (int64_t n = rows.count * index / count; n < last; ++n) {
            each.forward(n, rows.exps + (rows.sums ? n : index) * rows.classes);
        }
    });
}

template <typename T>
void backward(const Team& team, const Rows<T>& rows, const T* dlosses, T* dlogits) {
    const CrossEntropy<T> each{rows};
    team.share(double(rows.count) * rows.classes * sizeof(T) * 3 / 1e4, [&](int index, int count) {
        const int64_t last = rows.count * (index + 1) / count;
        for (int64_t n = rows.count * index / count; n < last; ++n) each.backward(n, dlosses, dlogits);
    });
}

}  // namespace

#define CROSS_ENTROPY(name, T)                                                                                  \
    EXPORTED void gpurnn_cross_entropy_##name(const Team* team, const Rows<T>* rows) { forward(*team, *rows); } \
    EXPORTED void gpurnn_cross_entropy_backward_##name(                                                         \
        const Team* team, const Rows<T>* rows, const T* dlosses, T* dlogits) {                                  \
        backward(*team, *rows, dlosses, dlogits);                                                               \
    }

CROSS_ENTROPY(float32, float)
CROSS_ENTROPY(float64, double)
