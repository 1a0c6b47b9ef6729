"""The definitions of optimizers and losses, as a textbook has them: the fast forms are checked against these.

An update changes one parameter p and its state in place, from the gradient g: p <- shrink p - step. The fast forms
(`optim.py`, `losses.py`) take the same arguments, over whole lists of arrays.
"""

from __future__ import annotations

import numpy as np

from gpurnn._contract import Array


def sgd(
    p: Array, g: Array, b: Array | None, shrink: float, *,
    lr: float, weight_decay: float, momentum: float, dampening: float, nesterov: bool, step: int,
) -> None:  # fmt: skip
    """Momentum: Polyak 1964; Nesterov's as in Sutskever et al. 2013."""
    g = g + weight_decay * p
    if b is not None:
        b[...] = g if step == 1 else momentum * b + (1 - dampening) * g
        g = g + momentum * b if nesterov else b
    p[...] = shrink * p - lr * g


def rmsprop(
    p: Array, g: Array, v: Array, m: Array | None, b: Array | None, shrink: float, *,
    lr: float, weight_decay: float, alpha: float, eps: float, momentum: float,
) -> None:  # fmt: skip
    """Tieleman & Hinton 2012; with m, the spread is centred (Graves 2013)."""
    g = g + weight_decay * p
    v[...] = alpha * v + (1 - alpha) * g * g
    spread = v
    if m is not None:
        m[...] = alpha * m + (1 - alpha) * g
        spread = v - m * m
    step = g / (np.sqrt(spread) + eps)
    if b is not None:
        b[...] = momentum * b + step
        step = b
    p[...] = shrink * p - lr * step


def adam(
    p: Array, g: Array, m: Array, v: Array, largest: Array | None, shrink: float, *,
    lr: float, weight_decay: float, beta1: float, beta2: float, eps: float, step: int,
) -> None:  # fmt: skip
    """Kingma & Ba 2015; with ``largest``, AMSGrad (Reddi et al. 2018)."""
    g = g + weight_decay * p
    m[...] = beta1 * m + (1 - beta1) * g
    v[...] = beta2 * v + (1 - beta2) * g * g
    second = v
    if largest is not None:
        largest[...] = np.maximum(largest, v)
        second = largest
    p[...] = shrink * p - lr * (m / (1 - beta1**step)) / (np.sqrt(second / (1 - beta2**step)) + eps)


def adagrad(p: Array, g: Array, v: Array, shrink: float, *, lr: float, weight_decay: float, eps: float) -> None:
    """Duchi et al. 2011."""
    g = g + weight_decay * p
    v[...] = v + g * g
    p[...] = shrink * p - lr * g / (np.sqrt(v) + eps)


def adadelta(
    p: Array, g: Array, v: Array, u: Array, shrink: float, *, lr: float, weight_decay: float, rho: float, eps: float
) -> None:
    """Zeiler 2012."""
    g = g + weight_decay * p
    v[...] = rho * v + (1 - rho) * g * g
    d = np.sqrt(u + eps) / np.sqrt(v + eps) * g
    u[...] = rho * u + (1 - rho) * d * d
    p[...] = shrink * p - lr * d


def nadam(
    p: Array, g: Array, m: Array, v: Array, shrink: float, *,
    lr: float, weight_decay: float, beta1: float, beta2: float, eps: float,
    momentum: float, next_momentum: float, momentum_product: float, step: int,
) -> None:  # fmt: skip
    """Dozat 2016, with its schedule of momenta mu_t; ``momentum_product`` is mu_1 ... mu_t."""
    g = g + weight_decay * p
    m[...] = beta1 * m + (1 - beta1) * g
    v[...] = beta2 * v + (1 - beta2) * g * g
    ahead = next_momentum * m / (1 - next_momentum * momentum_product) + (1 - momentum) * g / (1 - momentum_product)
    p[...] = shrink * p - lr * ahead / (np.sqrt(v / (1 - beta2**step)) + eps)


def adamax(
    p: Array, g: Array, m: Array, u: Array, shrink: float, *,
    lr: float, weight_decay: float, beta1: float, beta2: float, eps: float, step: int,
) -> None:  # fmt: skip
    """Kingma & Ba 2015, section 7.1."""
    g = g + weight_decay * p
    m[...] = beta1 * m + (1 - beta1) * g
    u[...] = np.maximum(beta2 * u, abs(g) + eps)
    p[...] = shrink * p - lr * (m / (1 - beta1**step)) / u


def rprop(
    p: Array, g: Array, before: Array, size: Array, shrink: float, *,
    weight_decay: float, eta_minus: float, eta_plus: float, smallest: float, largest: float,
) -> None:  # fmt: skip
    """Riedmiller & Braun 1993, without backtracking."""
    g = g + weight_decay * p
    turned = g * before < 0
    factor = np.where(turned, eta_minus, np.where(g * before > 0, eta_plus, 1.0))
    size[...] = np.clip(size * factor, smallest, largest)
    before[...] = np.where(turned, 0, g)
    p[...] = shrink * p - size * np.sign(before)


def cross_entropy(
    logits: Array, labels: Array, weights: Array, dlosses: Array, *, class_weights: Array, label_smoothing: float
) -> tuple[Array, Array]:
    """-sum_k q_k log softmax(logits)_k of each row (N,), and its gradient (N, V).

    q is the label's distribution, smoothed over all V classes (Szegedy et al. 2016), times the weights of the classes
    (V,); ``weights`` (N,) are those of the rows.
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
