"""Functions keep their digits where saturating arguments make them small, on both wings."""

from __future__ import annotations

import numpy as np
import pytest
from tolerance import epsilon

import gpurnn
from gpurnn import losses
from gpurnn.analysis._transition import Transition
from gpurnn.analysis.activity import gate_values
from gpurnn.layers.attention import _gelu_vjp

pytestmark = pytest.mark.usefixtures("each_wing")

DTYPES = ("float32", "float64")
ROUNDINGS = 16
"""The roundings of a few elementary functions and products, each good to two or three units in the last place."""


def assert_digits(actual, exact, roundings=ROUNDINGS) -> None:
    """Compare with ``exact`` in long doubles, to ``roundings`` epsilons of each number down to underflow."""
    assert actual.shape == exact.shape
    limit = roundings * (epsilon(actual.dtype) * np.abs(exact) + np.finfo(actual.dtype).tiny)
    error = np.abs(actual - exact)
    worst = np.argmax(error / limit)
    assert (error <= limit).all(), f"{actual.flat[worst]!r}, expected {exact.flat[worst]!r}"


def wide(x):
    return np.asarray(x, np.longdouble)


def sigma(a):
    e = np.exp(-np.abs(wide(a)))
    return np.where(wide(a) < 0, e, 1) / (1 + e)


def arguments(dtype: str):
    """Arguments of sigma and similar functions, from the underflow of sigma to that of its complement, and beyond."""
    reach = 1.2 * np.log(np.finfo(dtype).max)
    a = np.concatenate([np.linspace(-reach, reach, 401), [0, 1e-30, -1e-30, 1e30, -1e30]])
    return a.astype(dtype)


def parts(dtype: str):
    """The arguments in parts, as the memory of a step grows with the square of the number of hidden units."""
    return np.array_split(arguments(dtype), 8)


def step(op, gates: int, which: int, a, state: float, **options):
    """A step and its pullback. Gate ``which`` has the arguments ``a``, one for each unit; the others have 0.7."""
    H, dtype = len(a), a.dtype
    bias = np.full((gates, H), 0.7, dtype)
    bias[which] = a
    x, w_ih, w_hh = np.zeros((1, 1, 1), dtype), np.zeros((gates * H, 1), dtype), np.zeros((gates * H, H), dtype)
    return op.vjp(x, w_ih, w_hh, bias.reshape(-1), None, state, **options)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("which", [0, 1, 3], ids=["i", "f", "o"])
def test_gates_of_the_lstm_keep_their_digits(which, dtype):
    for a in parts(dtype):
        h0, c0 = np.full((2, 1, len(a)), 0.9, dtype)
        (_, (h, c)), pull = step(gpurnn.lstm, 4, which, a, (h0, c0))
        args = [np.full(len(a), np.dtype(dtype).type(0.7)) for _ in range(4)]
        args[which] = a
        (i, f, _, o), (not_i, not_f, _, not_o) = ([sigma(s * x) for x in args] for s in (1, -1))
        g = np.tanh(wide(args[2]))
        exact_c = f * wide(c0[0]) + i * g
        assert_digits(c[0], exact_c)
        assert_digits(h[0], o * np.tanh(exact_c))
        (_, (_, dc0)), grads = pull((None, (np.ones_like(h), np.zeros_like(c))))
        d = o * (1 - np.tanh(exact_c) ** 2)
        assert_digits(dc0[0], d * f, 64)
        exact = [d * g * i * not_i, d * wide(c0[0]) * f * not_f, d * i * (1 - g * g), np.tanh(exact_c) * o * not_o]
        assert_digits(grads["bias_ih"].reshape(4, -1), np.stack(exact), 64)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reset_after", [False, True])
@pytest.mark.parametrize("update", ["candidate", "state"])
@pytest.mark.parametrize("which", [0, 1], ids=["r", "z"])
def test_gates_of_the_gru_keep_their_digits(which, update, reset_after, dtype):
    for a in parts(dtype):
        H, kind = len(a), np.dtype(dtype).type
        h0 = np.full((1, H), 0.25, dtype)
        x, w_ih = np.zeros((1, 1, 1), dtype), np.zeros((3 * H, 1), dtype)
        w_hh = np.zeros((3, H, H), dtype)
        w_hh[2] = np.eye(H)
        bias = np.full((3, H), 0.7, dtype)
        bias[which] = a
        (_, h), pull = gpurnn.gru.vjp(
            x, w_ih, w_hh.reshape(3 * H, H), bias.reshape(-1), None, h0, reset_after=reset_after, update=update
        )
        args = [np.full(H, kind(0.7)), np.full(H, kind(0.7))]
        args[which] = a
        (r, z), (not_r, not_z) = ([sigma(s * v) for v in args] for s in (1, -1))
        n = np.tanh(wide(kind(0.7)) + r * wide(h0[0]))
        of_n, of_h = (z, not_z) if update == "candidate" else (not_z, z)
        assert_digits(h[0], of_h * wide(h0[0]) + of_n * n)
        (_, dh0), grads = pull((None, np.ones_like(h)))
        da_n = of_n * (1 - n * n)
        sign = 1 if update == "candidate" else -1
        exact = [da_n * wide(h0[0]) * r * not_r, sign * (n - wide(h0[0])) * z * not_z, da_n]
        assert_digits(grads["bias_ih"].reshape(3, -1), np.stack(exact), 64)
        assert_digits(dh0[0], of_h + da_n * r, 64)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_vanilla_sigmoid_keeps_its_digits(dtype):
    for a in parts(dtype):
        (_, h), pull = step(gpurnn.rnn, 1, 0, a, np.zeros((1, len(a)), dtype), activation="sigmoid")
        assert_digits(h[0], sigma(a))
        assert_digits(pull((None, np.ones_like(h)))[1]["bias_ih"], sigma(a) * sigma(-a))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_sigmoid_of_dense_keeps_its_digits(dtype):
    a = arguments(dtype)
    y, pull = gpurnn.dense.vjp(a[:, None], np.ones((1, 1), dtype), activation="sigmoid")
    assert_digits(y[:, 0], sigma(a))
    assert_digits(pull(np.ones_like(y))[0][:, 0], sigma(a) * sigma(-a))


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_gate_activity_keeps_its_digits(cell):
    a = arguments("float64")
    H = len(a)
    layer = (gpurnn.LSTM if cell == "lstm" else gpurnn.GRU)(1, H, dtype="float64")
    for p in layer.params.values():
        p[...] = 0
    layer.params["bias_ih_l0"][:H] = a
    transition = Transition("test", layer)
    values = gate_values(transition, np.zeros((1, 1, 1)), np.zeros((2, 1, (2 if cell == "lstm" else 1) * H)))
    assert_digits(values["i" if cell == "lstm" else "r"][1][0, 0], sigma(a))


@pytest.mark.parametrize("dtype", DTYPES)
def test_gelu_keeps_its_digits(dtype):
    a = arguments(dtype)
    a = np.concatenate([a / 1000, a, [np.finfo(dtype).max, np.finfo(dtype).min]]).astype(dtype)
    y, pull = _gelu_vjp(np, a)
    w = np.clip(wide(a), -1000, 1000)
    twice = 2 * np.sqrt(2 / wide(np.pi)) * (w + wide("0.044715") * w**3)
    exact = sigma(twice)
    # exp amplifies the rounding of its argument.
    roundings = ROUNDINGS + 4 * np.minimum(np.abs(twice), 800)
    assert_digits(y, wide(a) * exact, roundings)
    terms = exact, w * sigma(twice) * sigma(-twice) * 2 * np.sqrt(2 / wide(np.pi)) * (1 + 3 * wide("0.044715") * w**2)
    limit = roundings * (epsilon(dtype) * (np.abs(terms[0]) + np.abs(terms[1])) + np.finfo(dtype).tiny)
    da, _ = pull(np.ones_like(a))
    assert (np.abs(da - sum(terms)) <= limit).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("classes", [2, 3, 40, 1100])
def test_cross_entropy_keeps_its_digits(classes, dtype):
    """The label is nearly certain or nearly impossible; the other logits differ little."""
    reach = 0.9 * np.log(np.finfo(dtype).max)
    margin = np.linspace(-reach, reach, 101).astype(dtype)
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(len(margin), classes)).astype(dtype)
    labels = rng.integers(classes, size=len(margin))
    logits[np.arange(len(margin)), labels] = margin
    loss, pull = losses.cross_entropy.vjp(logits, labels, reduction="none")
    x = wide(logits)
    below = np.exp(x - x[np.arange(len(margin)), labels][:, None])
    below[np.arange(len(margin)), labels] = 0
    rest = below.sum(axis=1)  # the sum of p_c / p_label
    roundings = ROUNDINGS + classes + 2 * np.abs(margin)
    assert_digits(loss, np.log1p(rest), roundings)
    exact = below / (1 + rest)[:, None]
    exact[np.arange(len(margin)), labels] = -rest / (1 + rest)
    assert_digits(pull(np.ones_like(loss))[0], exact, roundings[:, None])


@pytest.mark.parametrize("dtype", DTYPES)
def test_binary_cross_entropy_keeps_its_digits(dtype):
    x = arguments(dtype)
    for target in (0, 1):
        loss, pull = losses.binary_cross_entropy.vjp(x, np.full_like(x, target), reduction="none")
        sign = 1 - 2 * target
        a = sign * wide(x)
        assert_digits(loss, np.maximum(a, 0) + np.log1p(np.exp(-np.abs(a))))
        assert_digits(pull(np.ones_like(x))[0], sign * sigma(a))


@pytest.mark.parametrize("classes", [1, 2, 40, 1100, 3000])
def test_classes_that_tie_for_the_largest_logit(classes):
    logits = np.full((3, classes), -3.0)
    logits[1, ::7] = 2.0
    logits[2] = 100.0
    labels = np.array([0, 0, classes - 1])
    loss, pull = losses.cross_entropy.vjp(logits, labels, reduction="none")
    weights = np.exp(wide(logits) - wide(logits).max(axis=1, keepdims=True))
    exact = weights / weights.sum(axis=1, keepdims=True)
    assert_digits(loss, -np.log(exact[np.arange(3), labels]), ROUNDINGS + classes)
    exact[np.arange(3), labels] -= 1
    assert np.abs(pull(np.ones_like(loss))[0] - exact).max() <= 1e-15 * classes
