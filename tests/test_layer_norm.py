"""Layer normalisation, the function and the layer: PyTorch's numbers, central differences, strict arrays, errors."""

from __future__ import annotations

import golden
import numpy as np
import pytest
from strict_wing import plain, strict
from tolerance import assert_close, assert_golden, assert_same, check_gradients, epsilon

import gpurnn

CASES = [record for record in golden.records("misc") if record["kind"] == "layer_norm"]


def test_all_cases_are_there():
    assert len(CASES) == 25


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("record", CASES, ids=lambda record: record["name"])
def test_it_gives_what_torch_gives(record, dtype):
    a = golden.arrays("misc", record["name"], dtype)
    y, pullback = gpurnn.layer_norm.vjp(a["x"], a["gamma"], a["beta"], eps=record["eps"])
    dx, gradients = pullback(a["cy"])
    # Nearly equal features are divided by their small deviation, and so are their roundings.
    amplified = float(max(1, (abs(a["x"]).max(axis=-1) / np.sqrt(a["x"].var(axis=-1) + record["eps"])).max()))
    terms = int(amplified) * 8 * a["x"].shape[-1] + a["x"].shape[0]
    magnitude = float(abs(a["gamma"]).max() * abs(a["cy"]).max() / np.sqrt(a["x"].var(axis=-1).min() + record["eps"]))
    if dtype == "float64":
        assert_golden(dx, a["g_x"], terms, "dx")
    else:
        assert_close(dx, a["g_x"], terms, "dx", magnitude=magnitude)
    for name, actual, expected in (
        ("y", y, a["y"]), ("dweight", gradients["weight"], a["g_gamma"]), ("dbias", gradients["bias"], a["g_beta"]),
    ):  # fmt: skip
        assert_golden(actual, expected, terms, name)
    assert_same(gpurnn.layer_norm(a["x"], a["gamma"], a["beta"], eps=record["eps"]), y)


@pytest.mark.parametrize("given", [(), ("weight",), ("bias",), ("weight", "bias")], ids="-".join)
@pytest.mark.parametrize("shape", [(4, 3, 5), (6,), (2, 1)], ids=str)
def test_gradients(shape, given):
    rng = np.random.default_rng(0)
    inputs = {"x": rng.standard_normal(shape), **{name: rng.standard_normal(shape[-1]) for name in given}}
    dy = rng.standard_normal(shape)
    _, pullback = gpurnn.layer_norm.vjp(**inputs, eps=0.1)
    dx, gradients = pullback(dy)
    assert gradients.keys() == set(given)
    check_gradients(lambda a: [gpurnn.layer_norm(**a, eps=0.1)], inputs, [dy], {"x": dx, **gradients}, seed=1)
    first = dx.copy()
    assert_same(pullback(dy), (first, gradients))
    assert_same(pullback(None), (np.zeros(shape), {name: np.zeros(shape[-1]) for name in given}))


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_every_position_has_mean_0_and_variance_1(dtype):
    x = (1000 + np.random.default_rng(0).standard_normal((7, 2, 64))).astype(dtype)
    y = gpurnn.layer_norm(x, eps=0.0)
    assert y.dtype == dtype
    limit = 1000 * 64 * epsilon(dtype)
    np.testing.assert_allclose(y.mean(axis=-1), 0, atol=limit)
    np.testing.assert_allclose(y.var(axis=-1), 1, atol=limit)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", ["random", "two", "one above the others", "one below the others", "equal"])
def test_the_end_of_the_range(dtype, shape):
    """Up to the documented size all digits are right; above it they are right, or the whole position is NaN."""
    F, largest = 64, np.finfo(dtype).max
    features = np.random.default_rng(0).uniform(-1, 1, F) if shape == "random" else np.ones(F)
    if shape == "two":
        features[::2] = -1
    elif shape != "equal":
        features[0] = -1
        features *= 1 if shape == "one below the others" else -1
    for size in (0.5 / F, 1 / F, 2 / F, 0.2, 0.5, 0.7, 1.0):
        with np.errstate(over="ignore", invalid="ignore"):
            x = (features * size).astype(dtype)[None] * largest
            y, pullback = gpurnn.layer_norm.vjp(x)
            dx, _ = pullback(np.ones_like(y))
        if np.isnan(y).all() and size > 0.5 / F:
            assert np.isnan(dx).all()
            continue
        centred = features - features.mean()
        expected = centred / (np.sqrt((centred**2).mean()) or 1)
        np.testing.assert_allclose(y[0], expected, rtol=0, atol=F * epsilon(dtype))
        assert np.isfinite(dx).all()


def test_equal_features_give_the_bias():
    x, bias = np.full((3, 4), 7.0), np.arange(4.0)
    np.testing.assert_array_equal(gpurnn.layer_norm(x, np.ones(4), bias), np.tile(bias, (3, 1)))


@pytest.mark.parametrize("bias", [False, True])
def test_the_layer_is_the_function(bias):
    layer = gpurnn.LayerNorm(5, eps=0.1, bias=bias, dtype="float64")
    rng = np.random.default_rng(0)
    for p in layer.params.values():
        p += rng.standard_normal(p.shape)
    x, dy = rng.standard_normal((2, 3, 4, 5))
    expected, expected_pullback = gpurnn.layer_norm.vjp(x, **layer.params, eps=0.1)
    y, pullback = layer.vjp(x, rng=0)
    assert_same((layer(x), y, pullback(dy)), (expected, expected, expected_pullback(dy)))
    assert layer.params.keys() == ({"weight", "bias"} if bias else {"weight"})
    expected = f"LayerNorm(5, eps=0.1{'' if bias else ', bias=False'}, dtype='float64')"
    assert repr(layer) == f"{expected}  # {10 if bias else 5} parameters"


@pytest.mark.parametrize("given", [(), ("weight",), ("weight", "bias")], ids="-".join)
def test_strict_arrays(given, strict_namespace):
    rng = np.random.default_rng(0)
    inputs = {"x": rng.standard_normal((3, 2, 4)), **{name: rng.standard_normal(4) for name in given}}
    y, pullback = gpurnn.layer_norm.vjp(**inputs)
    strict_y, strict_pullback = gpurnn.layer_norm.vjp(**strict(inputs))
    assert_same(plain(strict_y), y)
    for dy in (rng.standard_normal((3, 2, 4)), None):
        assert_same(plain(strict_pullback(strict(dy))), pullback(dy))


def test_the_layer_on_strict_arrays(strict_namespace):
    layer, x = gpurnn.LayerNorm(4), np.random.default_rng(0).standard_normal((3, 4)).astype("float32")
    moved = layer.to(strict_namespace)
    assert_same(plain(moved(strict(x))), layer(x))
    assert_same(plain(moved.vjp(strict(x))[1](strict(x))), layer.vjp(x)[1](x))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"x": [1.0]}, TypeError, "layer_norm: x is a list, expected a numpy.ndarray"),
        ({"x": None}, TypeError, "layer_norm: x is None, expected an array"),
        ({"x": np.zeros(3, int)}, TypeError, "layer_norm: x has dtype int64, expected float32 or float64"),
        ({"x": np.zeros(())}, ValueError, r"layer_norm: x has shape \(\), expected \(..., features\)"),
        ({"x": np.zeros((3, 0))}, ValueError, r"layer_norm: x has shape \(3, 0\), expected \(..., features\)"),
        ({"weight": np.ones(3)}, ValueError, r"layer_norm: weight has shape \(3,\), expected \(features,\) = \(4,\)"),
        (
            {"bias": np.ones((1, 4))},
            ValueError,
            r"layer_norm: bias has shape \(1, 4\), expected \(features,\) = \(4,\)",
        ),
        ({"weight": np.ones(4, "float32")}, TypeError, "layer_norm: x has dtype float64 but weight has float32"),
        ({"eps": -1e-5}, ValueError, "layer_norm: eps is -1e-05, expected a number of at least 0"),
    ],
)
def test_refusals(arguments, error, message):
    for call in (gpurnn.layer_norm, gpurnn.layer_norm.vjp):
        with pytest.raises(error, match=message):
            call(**{"x": np.zeros((2, 4)), **arguments})


def test_what_the_pullback_refuses():
    _, pullback = gpurnn.layer_norm.vjp(np.zeros((2, 4)))
    with pytest.raises(ValueError, match=r"layer_norm: dy has shape \(4,\), expected the shape of y = \(2, 4\)"):
        pullback(np.zeros(4))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"features": 0}, ValueError, "LayerNorm: features is 0, expected at least 1"),
        ({"features": 2.0}, TypeError, "LayerNorm: features is 2.0, expected a whole number"),
        ({"eps": -1}, ValueError, "LayerNorm: eps is -1, expected a number of at least 0"),
        ({"dtype": "int32"}, TypeError, "LayerNorm: dtype is 'int32', expected float32 or float64"),
    ],
)
def test_what_the_layer_refuses(options, error, message):
    with pytest.raises(error, match=message):
        gpurnn.LayerNorm(**{"features": 4, **options})


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("eps", [0.0, 1e-5])
def test_rows_of_any_size(dtype, eps):
    """In float32 the squares of 1e30 overflow, and those of 1e-30 underflow."""
    rng = np.random.default_rng(0)
    reach = 35 if dtype == "float32" else 300
    sizes = 10.0 ** np.linspace(-reach, reach, 21)
    x = (rng.normal(size=(21, 7)) * sizes[:, None]).astype(dtype)
    wide = x.astype(np.longdouble)
    centred = wide - wide.mean(axis=1, keepdims=True)
    root = np.sqrt((centred**2).mean(axis=1, keepdims=True) + np.longdouble(eps))
    y, pull = gpurnn.layer_norm.vjp(x, eps=eps)
    bound = 64 * np.finfo(dtype).eps
    assert (np.abs(y - centred / root) <= bound * np.abs(centred / root).max(axis=1, keepdims=True)).all()
    dy = rng.normal(size=x.shape).astype(dtype)
    along = (dy * centred / root).mean(axis=1, keepdims=True)
    expected = (dy - dy.mean(axis=1, keepdims=True) - centred / root * along) / root
    slack = bound * np.abs(expected).max(axis=1, keepdims=True) + np.finfo(dtype).tiny
    assert (np.abs(pull(dy)[0] - expected) <= slack).all()
