"""Definitions of optimizers, losses and minimal cells, in the form of the papers. Tests check fast forms against them.

The step t of an optimizer, from 1, changes one parameter p and its slots in place: p <- shrink p - step. The optimizer
``o``, of `gpurnn.optimizers`, has the hyperparameters. Its slots come last; None is a slot that it does not need.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from gpurnn._contract import Array

if TYPE_CHECKING:
    from gpurnn.optimizers import SGD, Adadelta, Adagrad, Adam, Adamax, NAdam, RMSprop, Rprop


def sgd(o: SGD, t: int, p: Array, g: Array, shrink: float, b: Array | None) -> None:
    """Momentum: Polyak 1964; Nesterov's form as in Sutskever et al. 2013."""
    g = g + o.weight_decay * p
    if b is not None:
        b[...] = g if t == 1 else o.momentum * b + (1 - o.dampening) * g
        g = g + o.momentum * b if o.nesterov else b
    p[...] = shrink * p - o.lr * g


def rmsprop(o: RMSprop, t: int, p: Array, g: Array, shrink: float, v: Array, m: Array | None, b: Array | None) -> None:
    """Tieleman & Hinton 2012; with m, the spread is centered (Graves 2013)."""
    g = g + o.weight_decay * p
    v[...] = o.alpha * v + (1 - o.alpha) * g * g
    spread = v
    if m is not None:
        m[...] = o.alpha * m + (1 - o.alpha) * g
        spread = v - m * m
    step = g / (np.sqrt(spread) + o.eps)
    if b is not None:
        b[...] = o.momentum * b + step
        step = b
    p[...] = shrink * p - o.lr * step


def adam(o: Adam, t: int, p: Array, g: Array, shrink: float, m: Array, v: Array, largest: Array | None) -> None:
    """Kingma & Ba 2015; with ``largest``, AMSGrad (Reddi et al. 2018)."""
    beta1, beta2 = o.betas
    g = g + o.weight_decay * p
    m[...] = beta1 * m + (1 - beta1) * g
    v[...] = beta2 * v + (1 - beta2) * g * g
    second = v
    if largest is not None:
        largest[...] = np.maximum(largest, v)
        second = largest
    p[...] = shrink * p - o.lr * (m / (1 - beta1**t)) / (np.sqrt(second / (1 - beta2**t)) + o.eps)


def adagrad(o: Adagrad, t: int, p: Array, g: Array, shrink: float, v: Array) -> None:
    """Duchi et al. 2011; the learning rate falls as PyTorch's does."""
    g = g + o.weight_decay * p
    v[...] = v + g * g
    p[...] = shrink * p - o.lr / (1 + (t - 1) * o.lr_decay) * g / (np.sqrt(v) + o.eps)


def adadelta(o: Adadelta, t: int, p: Array, g: Array, shrink: float, v: Array, u: Array) -> None:
    """Zeiler 2012."""
    g = g + o.weight_decay * p
    v[...] = o.rho * v + (1 - o.rho) * g * g
    d = np.sqrt(u + o.eps) / np.sqrt(v + o.eps) * g
    u[...] = o.rho * u + (1 - o.rho) * d * d
    p[...] = shrink * p - o.lr * d


def nadam(o: NAdam, t: int, p: Array, g: Array, shrink: float, m: Array, v: Array) -> None:
    """Dozat 2016, with its schedule of momenta mu_t."""
    beta1, beta2 = o.betas
    *_, mu, following = momenta = [beta1 * (1 - 0.5 * 0.96 ** (s * o.momentum_decay)) for s in range(1, t + 2)]
    g = g + o.weight_decay * p
    m[...] = beta1 * m + (1 - beta1) * g
    v[...] = beta2 * v + (1 - beta2) * g * g
    ahead = following * m / (1 - math.prod(momenta)) + (1 - mu) * g / (1 - math.prod(momenta[:-1]))
    p[...] = shrink * p - o.lr * ahead / (np.sqrt(v / (1 - beta2**t)) + o.eps)


def adamax(o: Adamax, t: int, p: Array, g: Array, shrink: float, m: Array, u: Array) -> None:
    """Kingma & Ba 2015, section 7.1."""
    beta1, beta2 = o.betas
    g = g + o.weight_decay * p
    m[...] = beta1 * m + (1 - beta1) * g
    u[...] = np.maximum(beta2 * u, abs(g) + o.eps)
    p[...] = shrink * p - o.lr * (m / (1 - beta1**t)) / u


def rprop(o: Rprop, t: int, p: Array, g: Array, shrink: float, before: Array, size: Array) -> None:
    """Riedmiller & Braun 1993, without backtracking."""
    (eta_minus, eta_plus), (smallest, largest) = o.etas, o.step_sizes
    g = g + o.weight_decay * p
    turned = g * before < 0
    factor = np.where(turned, eta_minus, np.where(g * before > 0, eta_plus, 1.0))
    size[...] = np.clip(size * factor, smallest, largest)
    before[...] = np.where(turned, 0, g)
    p[...] = shrink * p - size * np.sign(before)


def cross_entropy(
    logits: Array, labels: Array, weights: Array, dlosses: Array, *, class_weights: Array, label_smoothing: float
) -> tuple[Array, Array]:
    """-sum_k q_k log softmax(logits)_k of each row (N,), and its gradient (N, V).

    q is the label's distribution, smoothed over all V classes (Szegedy et al. 2016), times ``class_weights`` (V,);
    ``weights`` (N,) are the weights of the rows.
    """
    N, V = logits.shape
    e = np.exp(logits - logits.max(axis=1, keepdims=True))
    nats = np.log(e.sum(axis=1, keepdims=True)) - (logits - logits.max(axis=1, keepdims=True))
    q = label_smoothing / V * class_weights + np.zeros_like(logits)
    q[np.arange(N), labels] += (1 - label_smoothing) * class_weights[labels]
    softmax = e / e.sum(axis=1, keepdims=True)
    dlogits = (dlosses * weights)[:, None] * (softmax * q.sum(axis=1, keepdims=True) - q)
    return weights * (q * nats).sum(axis=1), dlogits


def mse(y: Array, target: Array, d: Array) -> tuple[Array, Array]:
    """(y - target)^2, elementwise, and its gradient for the gradient d of the result."""
    return (y - target) ** 2, (y - target) * d * 2


def mingru(k: Array, p: Array, h0: Array) -> Array:
    """h (T, B, H) of a minimal GRU in log space, from the arguments k of its gate and p of its candidate.

    Feng et al. 2024, appendix B.
    """
    return _log_scan(-_softplus(k), -_softplus(-k) + _log_candidate(p), h0)


def minlstm(i: Array, f: Array, p: Array, h0: Array) -> Array:
    """h (T, B, H) of a minimal LSTM in log space, from the arguments i and f of its gates and p of its candidate."""
    difference = _softplus(-f) - _softplus(-i)
    return _log_scan(-_softplus(difference), -_softplus(-difference) + _log_candidate(p), h0)


def _softplus(a: Array) -> Array:
    softplus: Array = np.logaddexp(0, a)
    return softplus


def _log_candidate(p: Array) -> Array:
    """log(p + 1/2), or log(sigma(p)) where p < 0."""
    return np.where(p < 0, -_softplus(-p), np.log(np.maximum(p, 0) + 0.5))


def _log_scan(log_a: Array, log_b: Array, h0: Array) -> Array:
    """h_t = a_t h_{t-1} + b_t for non-negative numbers, from their logarithms (Heinsen 2023)."""
    total = np.cumsum(log_a, axis=0)
    with np.errstate(divide="ignore"):  # log of an initial state of zero
        terms = np.concatenate([np.log(h0)[None], log_b - total])
    h: Array = np.exp(total + np.logaddexp.accumulate(terms)[1:])
    return h
