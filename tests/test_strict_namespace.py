"""Shared code on arrays that are not NumPy's: it must give the same results with only the array API standard."""

from __future__ import annotations

import numpy as np
import pytest
from parity import assign
from problems import pairwise, pattern_of_lengths, pattern_of_resets
from strict_wing import DEVICE, Array, plain, strict
from tolerance import assert_same

import gpurnn
from gpurnn import gradients, losses, optimizers

pytestmark = pytest.mark.usefixtures("strict_namespace")


def normal(*shape: int, seed: int = 0, dtype: str = "float64") -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def assert_strict(nested) -> None:
    """Check that every leaf is None or an array on the device."""
    if isinstance(nested, (tuple, list)):
        for entry in nested:
            assert_strict(entry)
    elif isinstance(nested, dict):
        assert_strict(list(nested.values()))
    elif nested is not None:
        assert isinstance(nested, Array)
        assert nested.device == DEVICE


def check(function, *arguments, cotangents=None, **keywords) -> None:
    """Check that ``function``, its vjp and pullback give the same on strict arrays as on NumPy arrays."""
    expected, result = function(*arguments, **keywords), function(*strict(arguments), **strict(keywords))
    assert_strict(result)
    assert_same(plain(result), expected)
    if cotangents is not None:
        expected, pullback = function.vjp(*arguments, **keywords)
        result, strict_pullback = function.vjp(*strict(arguments), **strict(keywords))
        assert_strict(result)
        assert_same(plain(result), expected)
        gradients = strict_pullback(strict(cotangents))
        assert_strict(gradients)
        assert_same(plain(gradients), pullback(cotangents))


def test_a_numpy_habit_would_be_caught():
    array = strict(normal(3))
    for habit in (np.asarray, np.tanh, np.ascontiguousarray, lambda a: np.zeros(3) + a, lambda a: a.astype("float32")):
        with pytest.raises((RuntimeError, TypeError, AttributeError)):
            habit(array)
    with pytest.raises(TypeError, match="a ndarray among arrays"):
        plain((array, normal(3)))
    with pytest.raises(TypeError, match=r"an array on .* among arrays on"):
        plain(array.to_device(type(DEVICE)("CPU_DEVICE")))


def test_a_mixture_is_refused():
    with pytest.raises(TypeError, match="dense: weight is a array_api_strict array but x is a numpy array"):
        gpurnn.dense(normal(2, 3), strict(normal(4, 3)))


def test_without_a_wing_views_of_the_arrays_are_computed_with(monkeypatch):
    from gpurnn import _dispatch

    x, w = normal(2, 3), normal(4, 3)
    monkeypatch.delitem(_dispatch.WINGS, "array_api_strict")
    y, pullback = gpurnn.dense.vjp(strict(x), strict(w))
    results = y, pullback(strict(normal(2, 4)))
    assert_strict(results)
    expected, pullback = gpurnn.dense.vjp(x, w)
    assert_same(plain(results), (expected, pullback(normal(2, 4))))


T, B, I, H = 4, 3, 3, 3
FUNCTIONS = {
    "rnn": (gpurnn.rnn, 1, {"activation": "relu", "leak": 0.5}),
    "lstm": (gpurnn.lstm, 4, {}),
    "gru": (gpurnn.gru, 3, {"reset_after": True}),
}


@pytest.mark.parametrize("options", [False, True], ids=["plain", "all"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_recurrent_functions(name, options):
    function, G, keywords = FUNCTIONS[name]
    arguments = [normal(T, B, I), normal(G * H, I, seed=1), normal(G * H, H, seed=2)]
    state = (normal(B, H, seed=3), normal(B, H, seed=4)) if name == "lstm" else normal(B, H, seed=3)
    if options:
        arguments += [normal(G * H, seed=5), normal(G * H, seed=6), state]
        keywords = {
            **keywords,
            "lengths": pattern_of_lengths(T, B),
            "resets": pattern_of_resets(T, B),
            "mask": normal(T, B) > -1,
            "reverse": True,
            "dropout_h": 2.0 * (normal(B, H) > 0),
        }
    check(function, *arguments, cotangents=(normal(T, B, H), state), **keywords)
    check(function, *arguments, cotangents=(None, state), **keywords)
    check(function, *arguments, cotangents=(normal(T, B, H), None), **keywords)


@pytest.mark.parametrize("activation", ["identity", "tanh", "relu", "sigmoid", "softmax"])
@pytest.mark.parametrize("bias", [False, True])
def test_dense(activation, bias):
    arguments = [normal(T, B, I), normal(H, I, seed=1), *([normal(H, seed=2)] if bias else [])]
    for dy in (normal(T, B, H, seed=3), None):
        check(gpurnn.dense, *arguments, cotangents=dy, activation=activation)
        _, pullback = gpurnn.dense.vjp(*strict(arguments), activation=activation)
        assert_strict(pullback(strict(dy)))


@pytest.mark.parametrize("padding_idx", [None, 2])
def test_embedding(padding_idx):
    indices = np.array([[0, 2, 2], [1, 4, 2]])
    check(gpurnn.embedding, indices, normal(5, 3), cotangents=normal(2, 3, 3), padding_idx=padding_idx)


def test_dropout():
    check(gpurnn.dropout, normal(5, 7, dtype="float32"), 0.4, 3, cotangents=normal(5, 7, seed=1, dtype="float32"))


@pytest.mark.parametrize("lengths", [None, [5, 0, 2]], ids=str)
@pytest.mark.parametrize("values", [False, True])
@pytest.mark.parametrize("score", ["dot", "general", "additive"])
def test_attention(score, values, lengths):
    S = 5
    arguments = [normal(T, B, I), normal(S, B, I, seed=1), *([normal(S, B, H + 1, seed=2)] if values else [])]
    keywords = {
        "dot": {"scale": 0.5},
        "general": {"weight": normal(I, I, seed=3)},
        "additive": {"weight_query": normal(H, I, seed=3), "weight_keys": normal(H, I, seed=4), "v": normal(H, seed=5)},
    }[score] | {"score": score, "lengths": None if lengths is None else np.array(lengths)}
    dcontext, dweights = normal(T, B, H + 1 if values else I, seed=6), normal(T, B, S, seed=7)
    for cotangents in ((dcontext, dweights), (dcontext, None), (None, dweights)):
        check(gpurnn.attention, *arguments, cotangents=cotangents, **keywords)


@pytest.mark.parametrize("dtype", ["float64", "complex64"])
@pytest.mark.parametrize("shape", [(T, B, H), (H,)])
def test_linear_scan(shape, dtype):
    a, b, h0, dh = (normal(*s, seed=k).astype(dtype) for k, s in enumerate([shape, (T, B, H), (B, H), (T, B, H)]))
    for cotangent in (dh, None):
        check(gpurnn.linear_scan, a, b, h0, cotangents=cotangent)
        check(gpurnn.linear_scan, a, b, cotangents=cotangent)
        _, pullback = gpurnn.linear_scan.vjp(*strict((a, b)))
        assert_strict(pullback(strict(cotangent)))


def moved(layer):
    """A layer, and its copy on strict arrays."""
    import strict_wing

    other = layer.to(strict_wing.xp)
    assert_strict(dict(other.params))
    return layer, other


def check_layer(layer, arguments, cotangents, rng=None) -> None:
    layer, other = moved(layer)
    result = other(*strict(arguments))
    assert_strict(result)
    assert_same(plain(result), layer(*arguments))
    expected, pullback = layer.vjp(*arguments, rng=rng)
    result, strict_pullback = other.vjp(*strict(arguments), rng=rng)
    assert_strict(result)
    assert_same(plain(result), expected)
    for given in cotangents:
        gradients = strict_pullback(strict(given))
        assert_strict(gradients)
        assert_same(plain(gradients), pullback(given))
    assert repr(other) == repr(layer)
    assert_same(other.state_dict(), layer.state_dict())
    assign(other, {name: p + 1 for name, p in layer.state_dict().items()})
    assert_strict(dict(other.params))
    assert_same(plain(dict(other.params)), {name: p + 1 for name, p in layer.params.items()})


RECURRENT = pairwise(
    {
        "layer": [gpurnn.RNN, gpurnn.LSTM, gpurnn.GRU],
        "bidirectional": [True, False],
        "batch_first": [True, False],
        "residual": [True, False],
        "bias": [True, False],
        "dropout": [0.0, 0.5],
        "variational_dropout": [0.5, 0.0],
        "recurrent_dropout": [0.0, 0.5],
        "state": [True, False],
        "lengths": ["int64", None, "uint8", "uint64"],
        "resets": [True, False],
        "dtype": ["float32", "float64"],
    }
)


@pytest.mark.parametrize("choice", RECURRENT, ids=lambda choice: "-".join(map(str, list(choice.values())[1:])))
def test_recurrent_layers(choice):
    names = ("bias", "batch_first", "dropout", "bidirectional", "residual", "variational_dropout", "recurrent_dropout")
    dtype = choice["dtype"]
    layer = choice["layer"](I, H, 2, dtype=dtype, **{name: choice[name] for name in names})
    D, pair = layer.num_directions, choice["layer"] is gpurnn.LSTM
    x, resets = normal(T, B, I, dtype=dtype), pattern_of_resets(T, B) if choice["resets"] else None
    lengths = None if choice["lengths"] is None else pattern_of_lengths(T, B).astype(choice["lengths"])
    dy = normal(T, B, D * H, seed=2, dtype=dtype)
    if choice["batch_first"]:
        x, dy, resets = x.swapaxes(0, 1), dy.swapaxes(0, 1), None if resets is None else resets.T
    h, c = normal(2, 2 * D, B, H, seed=3, dtype=dtype)
    state = (h, c) if pair else h
    arguments = (x, state if choice["state"] else None, lengths, resets)
    check_layer(layer, arguments, [(dy, state), (None, state), (dy, None), (None, None)], rng=1)
    check_layer(layer, arguments, [(dy, (None, c) if pair else None)])


def test_other_layers():
    check_layer(gpurnn.Dense(3, 5, activation="tanh", dtype="float64"), (normal(2, 3),), [normal(2, 5), None])
    check_layer(gpurnn.Embedding(5, 3), (np.array([[0, 4]]),), [normal(1, 2, 3, dtype="float32"), None])
    layer = gpurnn.Dropout(0.5)
    x = normal(5, 6)
    for rng in (None, 1):
        y, pullback = layer.vjp(x, rng=rng)
        strict_y, strict_pullback = layer.vjp(strict(x), rng=rng)
        assert_same(plain(strict_y), y)
        for dy in (x, None):
            assert_same(plain(strict_pullback(strict(dy))), pullback(dy))
    assert_same(plain(layer(strict(x))), x)


def test_sequential():
    model = gpurnn.Sequential(
        gpurnn.Embedding(7, 3),
        gpurnn.Dropout(0.5),
        gpurnn.LSTM(3, 4),
        gpurnn.GRU(4, 4, residual=True),
        gpurnn.Dense(4, 7),
    )
    tokens = np.arange(T * B).reshape(T, B) % 7
    dy = normal(T, B, 7, dtype="float32")
    for rng in (None, 1):
        check_layer(model, (tokens, None, pattern_of_lengths(T, B), pattern_of_resets(T, B)), [(dy, None)], rng=rng)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("mask", [None, "bool", "weights"])
@pytest.mark.parametrize("options", [False, True], ids=["plain", "all"])
def test_cross_entropy(reduction, mask, options):
    labels = np.arange(T * B).reshape(T, B) % 5
    keywords = {"reduction": reduction}
    if mask is not None:
        chosen = labels > 1
        keywords["mask"] = chosen if mask == "bool" else chosen * normal(T, B) ** 2
    if options:
        keywords |= {"class_weights": normal(5) ** 2, "label_smoothing": 0.1}
    cotangent = normal(T, B) if reduction == "none" else np.array(2.0)
    check(losses.cross_entropy, normal(T, B, 5), labels, cotangents=cotangent, **keywords)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("mask", [None, "bool", "weights"])
@pytest.mark.parametrize("half", [False, True])
def test_mse(reduction, mask, half):
    keywords = {"reduction": reduction, "half": half}
    if mask is not None:
        keywords["mask"] = normal(T, B) > 0 if mask == "bool" else normal(T, B) ** 2
    cotangent = normal(T, B, 2) if reduction == "none" else np.array(2.0)
    check(losses.mse, normal(T, B, 2), normal(T, B, 2, seed=1), cotangents=cotangent, **keywords)


GRADS = {"weight": normal(3, 2, seed=1), "bias": normal(3, seed=2)}


@pytest.mark.parametrize("norm_type", [1.0, 2.0, 3.5, np.inf])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_norms_and_clipping(norm_type, dtype):
    grads = {name: g.astype(dtype) for name, g in GRADS.items()}
    check(gradients.global_norm, grads, norm_type)
    for bound in (0.5, 100.0):
        check(gradients.clip_by_global_norm, grads, bound, norm_type)
    check(gradients.clip_by_value, grads, 0.5)
    check(gradients.add_l2, grads, {name: 2 * g for name, g in grads.items()}, 0.1)


OPTIMIZERS = {
    "sgd": lambda: optimizers.SGD(0.1),
    "sgd-momentum": lambda: optimizers.SGD(0.1, momentum=0.9, weight_decay=0.1),
    "sgd-nesterov": lambda: optimizers.SGD(0.1, momentum=0.9, nesterov=True),
    "rmsprop": lambda: optimizers.RMSprop(0.1),
    "rmsprop-all": lambda: optimizers.RMSprop(0.1, momentum=0.9, centered=True),
    "adam": lambda: optimizers.Adam(0.1),
    "adam-amsgrad": lambda: optimizers.Adam(0.1, amsgrad=True, weight_decay=0.1),
    "adamw": lambda: optimizers.AdamW(0.1, recurrent_weight_decay=0.1),
    "adagrad": lambda: optimizers.Adagrad(0.1, initial_accumulator_value=0.1),
    "adadelta": lambda: optimizers.Adadelta(0.1),
    "nadam": lambda: optimizers.NAdam(0.1),
    "adamax": lambda: optimizers.Adamax(0.1),
    "rprop": lambda: optimizers.Rprop(0.1),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_update_in_place(name):
    params = {"weight_hh": normal(3, 2), "bias": normal(3)}
    grads = dict(zip(params, GRADS.values(), strict=True))
    others = strict({key: p.copy() for key, p in params.items()})
    held = list(others.values())
    one, other = OPTIMIZERS[name](), OPTIMIZERS[name]()
    for _ in range(3):
        one.step(params, grads)
        other.step(others, strict(grads))
    assert all(a is b for a, b in zip(held, others.values(), strict=True))
    assert_same(plain(others), params)
    state = other.state_dict()
    step = state.pop("step")
    assert_strict(state)
    assert_same({"step": step, **plain(state)}, one.state_dict())
    again = OPTIMIZERS[name]()
    again.load_state_dict({"step": step, **state})
    again.step(others, strict(grads))
    one.step(params, grads)
    assert_same(plain(others), params)
