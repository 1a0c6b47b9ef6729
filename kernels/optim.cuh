// The steps of the optimizers.
//
// A rule is a struct of the step's scalars. It has a number for each slot, `count` slots, and `step`, which changes the
// slots. Its names are those of the optimizer's class in gpurnn/optimizers.py, whose order is proved when this compiles.
// Scalars are numbers of type Real. A step computes with Reals, or with some side by side (native/simd.h). Its slots are
// where a wing has them: `slots.has(k)` says whether the optimizer's options need slot k, and `slots[k]` is its element.
#pragma once

#include "numbers.cuh"

// The gradient with decay. Without decay p does not count, so inf or NaN in it cannot reach the slots.
template <typename Number, typename Real>
__device__ Number decayed(Number gradient, Real weight_decay, Number p) {
    return weight_decay != 0 ? gradient + weight_decay * p : gradient;
}

// b = mu b + (1 - dampening) g, but b = g at the first step; the step is lr b. Nesterov's is lr (g + mu b).
template <typename Real>
struct Sgd {
    enum { momentum, count };
    Real lr, mu, undamped;
    bool nesterov, first;

    template <typename Number, class Slots>
    __device__ Number step(Number g, Slots& slots) const {
        if (!slots.has(momentum)) return g * lr;
        const Number b = slots[momentum] = first ? g : slots[momentum] * mu + g * undamped;
        return (nesterov ? g + b * mu : b) * lr;
    }
};

// v = alpha v + (1 - alpha) g^2, b = mu b + g / (sqrt(v) + eps), the step is lr b. Centered: m = alpha m + (1 - alpha) g,
// and v - m^2 replaces v under the root.
template <typename Real>
struct Rmsprop {
    enum { square, mean, momentum, count };
    Real lr, alpha, one_minus_alpha, eps, mu;

    template <typename Number, class Slots>
    __device__ Number step(Number g, Slots& slots) const {
        const Number part = g * one_minus_alpha;
        Number spread = slots[square] = slots[square] * alpha + part * g;
        if (slots.has(mean)) {
            const Number m = slots[mean] = slots[mean] * alpha + part;
            spread = spread - m * m;
            spread = select(spread < 0, Number(0), spread);  // rounding may leave that of a constant just below zero
        }
        Number step = g / (sqrt(spread) + eps);
        if (slots.has(momentum)) step = slots[momentum] = slots[momentum] * mu + step;
        return step * lr;
    }
};

// m = beta1 m + (1 - beta1) g, v = beta2 v + (1 - beta2) g^2, the step is rate m / (sqrt(v) + floor). AMSGrad: the
// largest v so far replaces v.
template <typename Real>
struct Adam {
    enum { mean, square, largest, count };
    Real rate, beta1, one_minus_beta1, beta2, one_minus_beta2, floor;

    template <typename Number, class Slots>
    __device__ Number step(Number g, Slots& slots) const {
        const Number m = slots[mean] = slots[mean] * beta1 + g * one_minus_beta1;
        Number v = slots[square] = slots[square] * beta2 + g * g * one_minus_beta2;
        if (slots.has(largest)) {
            // NaN stays, in v and in the largest.
            v = slots[largest] = select((v > slots[largest]) | (v != v), v, slots[largest]);
        }
        return m / (sqrt(v) + floor) * rate;
    }
};

// v = v + g^2, the step is lr g / (sqrt(v) + eps).
template <typename Real>
struct Adagrad {
    enum { sum, count };
    Real lr, eps;

    template <typename Number, class Slots>
    __device__ Number step(Number g, Slots& slots) const {
        const Number v = slots[sum] = slots[sum] + g * g;
        return g / (sqrt(v) + eps) * lr;
    }
};

// v = rho v + (1 - rho) g^2, d = sqrt(u + eps) / sqrt(v + eps) g, the step is lr d, then u = rho u + (1 - rho) d^2.
template <typename Real>
struct Adadelta {
    enum { square, update, count };
    Real lr, rho, one_minus_rho, eps;

    template <typename Number, class Slots>
    __device__ Number step(Number g, Slots& slots) const {
        const Number v = slots[square] = slots[square] * rho + g * g * one_minus_rho, u = slots[update];
        const Number d = g / sqrt(v + eps) * sqrt(u + eps);
        slots[update] = u * rho + d * d * one_minus_rho;
        return d * lr;
    }
};

// m and v as in Adam, the step is (of_mean m + of_gradient g) / (sqrt(v) + floor).
template <typename Real>
struct Nadam {
    enum { mean, square, count };
    Real of_mean, of_gradient, beta1, one_minus_beta1, beta2, one_minus_beta2, floor;

    template <typename Number, class Slots>
    __device__ Number step(Number g, Slots& slots) const {
        const Number m = slots[mean] = slots[mean] * beta1 + g * one_minus_beta1;
        const Number v = slots[square] = slots[square] * beta2 + g * g * one_minus_beta2;
        return (g * of_gradient + m * of_mean) / (sqrt(v) + floor);
    }
};

// m = beta1 m + (1 - beta1) g, u = max(beta2 u, |g| + eps), the step is rate m / u.
template <typename Real>
struct Adamax {
    enum { mean, norm, count };
    Real rate, beta1, one_minus_beta1, beta2, eps;

    template <typename Number, class Slots>
    __device__ Number step(Number g, Slots& slots) const {
        const Number m = slots[mean] = slots[mean] * beta1 + g * one_minus_beta1, before = slots[norm] * beta2;
        const Number own = select(g < 0, -g, g) + eps;
        const Number u = slots[norm] = select((before > own) | (before != before), before, own);  // NaN stays, in both
        return m / u * rate;
    }
};

// 1, -1 or 0, and NaN of NaN.
template <typename Number>
__device__ Number sign(Number x) {
    return select(x > 0, Number(1), select(x < 0, Number(-1), x));
}

// size = size eta_plus where g has the sign of the step before, and size eta_minus where it has the other one, between
// smallest and largest. Where it has the other one, g = 0 from here on. The step is size sign(g).
template <typename Real>
struct Rprop {
    enum { previous, size, count };
    Real eta_minus, eta_plus, smallest, largest;

    template <typename Number, class Slots>
    __device__ Number step(Number g, Slots& slots) const {
        // The product of the signs, because that of the gradients may underflow.
        const Number turn = sign(g) * sign(slots[previous]);
        Number step = slots[size] * select(turn > 0, Number(eta_plus), select(turn < 0, Number(eta_minus), Number(1)));
        step = select(step < smallest, Number(smallest), select(step > largest, Number(largest), step));
        g = select(turn < 0, Number(0), g);
        slots[size] = step;
        slots[previous] = g;
        return sign(g) * step;
    }
};
