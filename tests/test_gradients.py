"""Clipping and L2: PyTorch's numbers, the formulas, and that nothing is changed in place."""

from __future__ import annotations

import math

import golden
import numpy as np
import pytest
from tolerance import assert_close, assert_golden, assert_same, epsilon

from gpurnn.gradients import add_l2, clip_by_global_norm, clip_by_value, global_norm

pytestmark = pytest.mark.usefixtures("each_wing")

DTYPES = ("float64", "float32")
INF = math.inf


def cases(kind):
    return [
        pytest.param(record, dtype, id=f"{record['name']}-{dtype}")
        for record in golden.records("misc")
        if record["kind"] == kind
        for dtype in DTYPES
    ]


def numbered(arrays, prefix):
    return {name.removeprefix(prefix): a for name, a in arrays.items() if name.startswith(prefix)}


@pytest.mark.parametrize(("record", "dtype"), cases("clip_grad_norm_"))
def test_clip_by_global_norm_gives_what_torch_gives(record, dtype):
    a = golden.arrays("misc", record["name"], dtype)
    grads = numbered(a, "in")
    before = {name: g.copy() for name, g in grads.items()}
    clipped, norm = clip_by_global_norm(grads, record["max_norm"], float(record["norm_type"]))
    assert norm.shape == ()
    assert norm.dtype == "float64"
    # The input entries were rounded; the sum of their powers is in float64.
    terms = int(3 + (1 if record["norm_type"] == INF else record["norm_type"]))
    assert_golden(norm.astype(dtype), a["total_norm"], terms, "norm")
    assert clipped.keys() == grads.keys()
    for name, expected in numbered(a, "out").items():
        assert_golden(clipped[name], expected, terms + 2, name)
        assert not np.shares_memory(clipped[name], grads[name])
    assert_same(grads, before)


@pytest.mark.parametrize(("record", "dtype"), cases("clip_grad_value_"))
def test_clip_by_value_gives_what_torch_gives(record, dtype):
    a = golden.arrays("misc", record["name"], dtype)
    grads = numbered(a, "in")
    before = {name: g.copy() for name, g in grads.items()}
    clipped = clip_by_value(grads, record["clip_value"])
    assert clipped.keys() == grads.keys()
    for name, expected in numbered(a, "out").items():
        assert_golden(clipped[name], expected, 1, name)
        assert not np.shares_memory(clipped[name], grads[name])
    assert_same(grads, before)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_textbook_formula_with_its_1e_6(dtype):
    grads = {"a": np.array([3e-6, 0.0], dtype), "b": np.array([[4e-6]], dtype)}
    clipped, norm = clip_by_global_norm(grads, 1e-6)
    assert norm == pytest.approx(5e-6, rel=2 * epsilon(dtype))
    assert_close(clipped["b"], np.array([[4e-6 * 1e-6 / (5e-6 + 1e-6)]], dtype), terms=4)
    untouched, _ = clip_by_global_norm(grads, 1.0)
    assert_same(untouched, grads)


@pytest.mark.parametrize("norm_type", [1.0, 2.0, 3.0, INF])
@pytest.mark.parametrize("value", [1e-30, 1e30])
def test_the_norm_of_float32_neither_overflows_nor_underflows(norm_type, value):
    grads = {"a": np.full((300, 300), value, "float32"), "b": np.full(10_000, -value, "float32")}
    expected = value * (1 if norm_type == INF else 100_000 ** (1 / norm_type))
    assert global_norm(grads, norm_type) == pytest.approx(expected, rel=1e-6)
    clipped, _ = clip_by_global_norm(grads, 1e10 * value, norm_type)
    factor = min(1.0, 1e10 * value / (expected + 1e-6))
    assert clipped["b"][0] == pytest.approx(-value * factor, rel=1e-6)


def test_the_norm_is_that_of_everything_together():
    rng = np.random.default_rng(0)
    grads = {str(k): rng.standard_normal(shape) for k, shape in enumerate([(), (0,), (70_000,), (3, 4, 5)])}
    grads = {name: np.asarray(g) for name, g in grads.items()}
    grads["strided"] = rng.standard_normal((40, 30))[::2, ::3]
    everything = np.concatenate([g.reshape(-1) for g in grads.values()])
    for norm_type in (1.0, 2.0, 2.5, INF):
        assert global_norm(grads, norm_type) == pytest.approx(np.linalg.norm(everything, norm_type), rel=1e-12)


@pytest.mark.parametrize("norm_type", [1.0, 2.0, INF])
def test_the_norm_of_no_entries_is_zero(norm_type):
    clipped, norm = clip_by_global_norm({"a": np.empty((0, 3))}, 1.0, norm_type)
    assert norm.shape == ()
    assert norm == 0
    assert clipped["a"].shape == (0, 3)


@pytest.mark.parametrize("norm_type", [1.0, 2.0, INF])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_norm_that_is_not_finite_is_seen_everywhere(norm_type, bad, dtype):
    grads = {"a": np.array([1.0, bad], dtype), "b": np.ones((2, 2), dtype)}
    clipped, norm = clip_by_global_norm(grads, 1.0, norm_type)
    assert not np.isfinite(norm)
    for name, g in clipped.items():
        assert np.isnan(g).all(), name
        assert g.dtype == dtype


def test_clip_by_value_keeps_nan_and_takes_infinity():
    clipped = clip_by_value({"a": np.array([np.nan, np.inf, -np.inf, 0.5])}, 1)
    np.testing.assert_array_equal(clipped["a"], [np.nan, 1.0, -1.0, 0.5])


@pytest.mark.parametrize("dtype", DTYPES)
def test_add_l2_is_the_gradient_of_half_the_squares_of_the_weights(dtype):
    rng = np.random.default_rng(0)
    names = (
        "weight_ih_l0",
        "weight_hh_l0_reverse",
        "bias_ih_l0",
        "1.weight",
        "1.bias",
        "weights.bias",
        "bias.weight_x",
    )
    params = {name: rng.standard_normal((2, 3)).astype(dtype) for name in names}
    grads = {name: rng.standard_normal((2, 3)).astype(dtype) for name in names}
    before = {name: g.copy() for name, g in grads.items()}
    found = add_l2(grads, params, 0.25)
    assert_same(grads, before)
    penalised = {"weight_ih_l0", "weight_hh_l0_reverse", "1.weight", "bias.weight_x"}
    for name, g in found.items():
        if name in penalised:
            assert_close(g, grads[name] + dtype_of(dtype, 0.25) * params[name], terms=2, name=name)
        else:
            assert g is grads[name]
    assert found.keys() == grads.keys()


def dtype_of(dtype, value):
    return np.dtype(dtype).type(value)


G = {"weight": np.ones((2, 3)), "bias": np.ones(2)}


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: clip_by_global_norm({}, 1.0), TypeError, "clip_by_global_norm: expected at least one array"),
        (lambda: clip_by_global_norm({"a": [1.0]}, 1.0), TypeError, r"clip_by_global_norm: grads\['a'\] is a list"),
        (
            lambda: clip_by_global_norm({"a": np.ones(2, int)}, 1.0),
            TypeError,
            r"grads\['a'\] has dtype int64, expected",
        ),
        (
            lambda: clip_by_global_norm({**G, "c": np.ones(1, "float32")}, 1.0),
            TypeError,
            r"grads\['c'\] has dtype float32 but grads\['weight'\] has float64, expected one dtype",
        ),
        (lambda: clip_by_global_norm(G, -1.0), ValueError, "max_norm is -1.0, expected a number of at least 0"),
        (lambda: clip_by_global_norm(G, INF), ValueError, "max_norm is inf, expected a number of at least 0"),
        (lambda: clip_by_global_norm(G, math.nan), ValueError, "max_norm is nan"),
        (lambda: clip_by_global_norm(G, 1.0, 0.0), ValueError, "global_norm: norm_type is 0.0, expected a positive"),
        (lambda: global_norm(G, math.nan), ValueError, "global_norm: norm_type is nan, expected a positive number"),
        (lambda: global_norm({"a": None}), TypeError, r"global_norm: grads\['a'\] is None, expected an array"),
        (
            lambda: clip_by_value(G, -0.5),
            ValueError,
            "clip_by_value: clip_value is -0.5, expected a number",
        ),
        (lambda: clip_by_value({"a": 1.0}, 1.0), TypeError, r"clip_by_value: grads\['a'\] is a float"),
        (
            lambda: add_l2(G, {"weight": G["weight"], "w": G["bias"]}, 0.1),
            KeyError,
            r"add_l2: missing \['w'\], unknown \['bias'\], expected the names of params in grads",
        ),
        (
            lambda: add_l2(G, {**G, "weight": np.ones((3, 2))}, 0.1),
            ValueError,
            r"grads\['weight'\] has shape \(2, 3\), expected the parameter's shape = \(3, 2\)",
        ),
        (
            lambda: add_l2(G, {name: g.astype("float32") for name, g in G.items()}, 0.1),
            TypeError,
            r"grads\['weight'\] has dtype float64 but params\['weight'\] has float32",
        ),
        (lambda: add_l2(G, G, -1), ValueError, "add_l2: weight is -1, expected a number of at least 0"),
    ],
)
def test_refusals(call, error, message):
    with pytest.raises(error, match=message):
        call()


LARGE = {"float32": 1e30, "float64": 1e200}


def exact_norm(arrays, p=2.0):
    flat = np.concatenate([np.abs(a.reshape(-1).astype(np.longdouble)) for a in arrays])
    return flat.max() if p == np.inf else (flat**p).sum() ** (1 / np.longdouble(p))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("norm_type", [1.0, 2.0, 3.0, np.inf])
@pytest.mark.parametrize("case", ["large", "small", "subnormal", "mixed", "one", "largest"])
def test_norms_near_the_ends_of_the_range(each_wing, case, norm_type, dtype):
    rng = np.random.default_rng(0)
    values, kind = rng.normal(size=(2, 1500)), np.finfo(dtype)
    size = {
        "large": LARGE[dtype], "small": 1 / LARGE[dtype], "subnormal": 50 * float(kind.smallest_subnormal),
        "mixed": LARGE[dtype] ** rng.choice([-1, 0, 1], values.shape), "one": 1.0, "largest": float(kind.max) / 1e4,
    }[case]  # fmt: skip
    first, second = (values * size).astype(dtype)
    grads = {"a": first, "b": second, "empty": np.zeros((0, 2), dtype)}
    exact = exact_norm([first, second], norm_type)
    norm = global_norm(grads, norm_type)
    assert abs(norm - exact) <= 1e-12 * exact + np.finfo("float64").smallest_subnormal
    clipped, same = clip_by_global_norm(grads, 1.0, norm_type)
    assert same == norm
    scale = min(1, 1 / (exact + np.longdouble(1e-6)))
    for name, g in (("a", first), ("b", second)):
        expected = g.astype(np.longdouble) * scale
        slack = 4 * kind.eps * np.abs(expected) + float(kind.smallest_subnormal)
        assert (np.abs(clipped[name] - expected) <= slack).all()
    bounded = clip_by_value(grads, 1.0)
    assert_same(bounded["a"], np.clip(first, -1, 1))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_norms_of_zeros_and_of_what_is_not_finite(each_wing, dtype):
    zero, large = np.zeros(5, dtype), np.full(5, LARGE[dtype], dtype)
    for norm_type in (1.0, 2.0, 3.0, np.inf):
        assert global_norm({"a": zero}, norm_type) == 0
        clipped, norm = clip_by_global_norm({"a": zero, "b": zero[:0]}, 1.0, norm_type)
        assert norm == 0
        assert not clipped["a"].any()
        for bad, check in ((np.inf, np.isinf), (-np.inf, np.isinf), (np.nan, np.isnan)):
            grads = {"a": large, "b": np.array([bad, 1], dtype), "c": zero}
            clipped, norm = clip_by_global_norm(grads, 1.0, norm_type)
            assert check(norm)
            assert all(np.isnan(g).all() for g in clipped.values())
