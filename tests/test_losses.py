"""Losses: against PyTorch's numbers, central differences, and bad arguments."""

from __future__ import annotations

import itertools
import math

import golden
import numpy as np
import pytest
from gpurnn.reference import losses as wing
from problems import pairwise
from strict_wing import plain, strict
from tolerance import assert_close, assert_golden, assert_same, check_gradients

from gpurnn.losses import binary_cross_entropy, cross_entropy, huber, l1, mse, smooth_l1

pytestmark = pytest.mark.usefixtures("each_wing")

DTYPES = ("float64", "float32")
REDUCTIONS = ("mean", "sum", "none")
ELEMENTWISE = {
    "l1": (l1, {}),
    "huber": (huber, {"delta": 0.7}),
    "smooth_l1": (smooth_l1, {"beta": 0.5}),
    "bce_logits": (binary_cross_entropy, {}),
}
"""The losses by the kind of their golden cases, with the options of these cases."""


def cases(kind):
    return [
        pytest.param(record, dtype, id=f"{record['name']}-{dtype}")
        for record in golden.records("misc")
        if record["kind"] == kind
        for dtype in DTYPES
    ]


@pytest.mark.parametrize(("record", "dtype"), cases("cross_entropy"))
def test_cross_entropy_gives_what_torch_gives(record, dtype):
    a = golden.arrays("misc", record["name"], dtype)
    logits = np.ascontiguousarray(np.moveaxis(a["x"], record["class_axis"], -1))
    options = {
        "mask": a["target"] != record["ignore_index"],
        "class_weights": a.get("weight"),
        "label_smoothing": record["label_smoothing"],
        "reduction": record["reduction"],
    }
    value, pullback = cross_entropy.vjp(logits, a["target"], **options)
    dlogits, parameters = pullback(a["ct"])
    # A logit is rounded four times before a sum over the classes; a sum over the rows follows.
    terms = 4 * logits.shape[-1] + a["target"].size
    assert parameters == {}
    if dtype == "float64":
        assert_golden(value, a["y"], terms, "value")
        assert_golden(np.moveaxis(dlogits, -1, record["class_axis"]), a["g_x"], terms, "dlogits")
    else:
        # A loss is a difference of numbers as large as the logits, a gradient one of probabilities.
        weights = options["mask"] * a.get("weight", np.ones(logits.shape[-1]))[a["target"]]
        probability = abs(a["ct"]).max() * weights.max() / (weights.sum() if record["reduction"] == "mean" else 1)
        assert_close(value, a["y"], terms, "value", magnitude=float(abs(logits).max()))
        dx = np.moveaxis(dlogits, -1, record["class_axis"])
        assert_close(dx, a["g_x"], terms, "dlogits", magnitude=float(probability))
    assert_same(cross_entropy(logits, a["target"], **options), value)


@pytest.mark.parametrize(("record", "dtype"), cases("mse"))
def test_mse_gives_what_torch_gives(record, dtype):
    a = golden.arrays("misc", record["name"], dtype)
    value, pullback = mse.vjp(a["x"], a["target"], reduction=record["reduction"])
    terms = 8 + a["x"].size
    assert_golden(value, a["y"], terms, "value")
    assert_golden(pullback(a["ct"])[0], a["g_x"], terms, "dy")
    half, pullback = mse.vjp(a["x"], a["target"], reduction=record["reduction"], half=True)
    assert_golden(half, a["y"] / 2, terms, "value")
    assert_golden(pullback(a["ct"])[0], a["g_x"] / 2, terms, "dy")


@pytest.mark.parametrize(("record", "dtype"), [parameters for kind in ELEMENTWISE for parameters in cases(kind)])
def test_elementwise_losses_give_what_torch_gives(record, dtype):
    loss, options = ELEMENTWISE[record["kind"]]
    assert {name: record[name] for name in record.keys() & {"delta", "beta"}} == options
    a = golden.arrays("misc", record["name"], dtype)
    value, pullback = loss.vjp(a["x"], a["target"], reduction=record["reduction"], **options)
    terms = 8 + a["x"].size
    assert_golden(value, a["y"], terms, "value")
    assert_golden(pullback(a["ct"])[0], a["g_x"], terms, "dx")
    assert_same(loss(a["x"], a["target"], reduction=record["reduction"], **options), value)


def test_all_golden_cases_of_losses_are_there():
    kinds = [record["kind"] for record in golden.records("misc")]
    assert {kind: kinds.count(kind) for kind in ("cross_entropy", "mse", *ELEMENTWISE)} == dict.fromkeys(
        ("cross_entropy", "mse", *ELEMENTWISE), 25
    )


def problem(shape, V, *, mask, class_weights, seed=0, dtype="float64"):
    rng = np.random.default_rng(seed)
    logits = (2 * rng.standard_normal((*shape, V))).astype(dtype)
    labels = rng.integers(0, V, shape)
    options = {}
    if mask == "bool":
        options["mask"] = rng.random(shape) < 0.6
    elif mask == "weights":
        options["mask"] = (rng.random(shape) * (rng.random(shape) < 0.7)).astype(dtype)
    if class_weights:
        options["class_weights"] = rng.random(V).astype(dtype)
    return logits, labels, options


def each_pair(**factors):
    """Parametrize a test such that any two values of any two factors occur together."""
    return pytest.mark.parametrize(tuple(factors), [tuple(row.values()) for row in pairwise(factors)], ids=str)


CROSS_ENTROPY = {
    "reduction": list(REDUCTIONS),
    "mask": [None, "bool", "weights"],
    "class_weights": [False, True],
    "label_smoothing": [0.0, 0.2, 1.0],
    "sizes": [((3, 4), 5), ((6,), 2), ((), 4), ((2, 3), 1)],
}


@pytest.mark.slow
def test_cross_entropy_gradient_with_every_combination_of_options():
    for combination in itertools.product(*CROSS_ENTROPY.values()):
        test_cross_entropy_gradient(*combination)


@each_pair(**CROSS_ENTROPY)
def test_cross_entropy_gradient(reduction, mask, class_weights, label_smoothing, sizes):
    shape, V = sizes
    logits, labels, options = problem(shape, V, mask=mask, class_weights=class_weights)
    options |= {"label_smoothing": label_smoothing, "reduction": reduction}
    value, pullback = cross_entropy.vjp(logits, labels, **options)
    cotangent = np.asarray(np.random.default_rng(1).standard_normal(value.shape))
    dlogits, _ = pullback(cotangent)
    check_gradients(
        lambda a: [cross_entropy(a["logits"], labels, **options)],
        {"logits": logits}, [cotangent], {"logits": dlogits}, seed=2,
    )  # fmt: skip
    first = dlogits.copy()
    assert_same(pullback(cotangent)[0], first)
    assert_same(dlogits, first)


@each_pair(
    reduction=list(REDUCTIONS),
    half=[False, True],
    mask=[None, "bool", "weights"],
    sizes=[((3, 4, 2), 2), ((3, 4), 2), ((5, 3), 1), ((), 0), ((2, 3), 0)],
)
def test_mse_gradient(reduction, half, mask, sizes):
    shape, axes = sizes
    rng = np.random.default_rng(0)
    y, target = np.asarray(rng.standard_normal(shape)), np.asarray(rng.standard_normal(shape))
    options = {"half": half, "reduction": reduction}
    if mask is not None:
        kept = rng.random(shape[:axes]) < 0.7
        options["mask"] = np.asarray(kept if mask == "bool" else kept * rng.random(shape[:axes]))
    value, pullback = mse.vjp(y, target, **options)
    cotangent = np.asarray(rng.standard_normal(value.shape))
    dy, _ = pullback(cotangent)
    check_gradients(
        lambda a: [mse(a["y"], a["target"], **options)],
        {"y": y, "target": target}, [cotangent], {"y": dy, "target": -dy}, seed=2,
    )  # fmt: skip
    first = dy.copy()
    assert_same(pullback(cotangent)[0], first)
    assert_same(dy, first)


EDGES = {"l1": 0.0, "huber": 0.7, "smooth_l1": 0.5}
"""The values of |e| at which the derivatives change."""


@each_pair(
    kind=list(ELEMENTWISE),
    reduction=list(REDUCTIONS),
    mask=[None, "bool", "weights"],
    sizes=[((3, 4, 2), 2), ((5, 3), 1), ((), 0)],
)
def test_elementwise_gradient(kind, reduction, mask, sizes):
    shape, axes = sizes
    loss, options = ELEMENTWISE[kind]
    rng = np.random.default_rng(0)
    y, target = np.asarray(2 * rng.standard_normal(shape)), np.asarray(rng.random(shape))
    if kind in EDGES:  # all points of a central difference must be on one side of the edge
        y = np.where(np.abs(np.abs(y - target) - EDGES[kind]) < 0.05, target + EDGES[kind] + 0.1, y)
    if mask is not None:
        kept = rng.random(shape[:axes]) < 0.7
        options = {**options, "mask": np.asarray(kept if mask == "bool" else kept * rng.random(shape[:axes]))}
    value, pullback = loss.vjp(y, target, reduction=reduction, **options)
    cotangent = np.asarray(rng.standard_normal(value.shape))
    dy, parameters = pullback(cotangent)
    assert parameters == {}
    check_gradients(
        lambda a: [loss(a["y"], target, reduction=reduction, **options)], {"y": y}, [cotangent], {"y": dy}, seed=2
    )
    first = dy.copy()
    assert_same(pullback(cotangent)[0], first)
    assert_same(dy, first)
    assert_same(pullback(None), (np.zeros_like(y), {}))


@pytest.mark.parametrize("dtype", DTYPES)
def test_elementwise_losses_are_their_definitions(dtype):
    y = np.array([-3.0, -0.5, -0.25, 0.0, 0.25, 0.5, 3.0], dtype)
    zero = np.zeros_like(y)

    def losses_and_slopes(loss, **options):
        losses, pullback = loss.vjp(y, zero, reduction="none", **options)
        return losses.tolist(), pullback(np.ones_like(y))[0].tolist()

    sign = [-1, -1, -1, 0, 1, 1, 1]
    assert losses_and_slopes(l1) == ([3, 0.5, 0.25, 0, 0.25, 0.5, 3], sign)
    assert losses_and_slopes(smooth_l1, beta=0) == losses_and_slopes(l1)
    squares = [0.125, 0.03125, 0, 0.03125, 0.125]
    assert losses_and_slopes(huber) == ([2.5, *squares, 2.5], [-1, -0.5, -0.25, 0, 0.25, 0.5, 1])
    assert losses_and_slopes(huber, delta=math.inf) == ([4.5, *squares, 4.5], y.tolist())
    assert losses_and_slopes(smooth_l1) == losses_and_slopes(huber)
    half = [2 * loss for loss in squares]
    assert losses_and_slopes(smooth_l1, beta=0.5) == ([2.75, *half, 2.75], [-1, -1, -0.5, 0, 0.5, 1, 1])


@pytest.mark.parametrize("dtype", DTYPES)
def test_binary_cross_entropy_is_exact_where_p_rounds_to_0_or_1(dtype):
    logits = np.array([40.0, -40.0, 80.0, -80.0, 1e30, -1e30, 1e30], dtype)
    target = np.array([1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 0.0], dtype)
    losses, pullback = binary_cross_entropy.vjp(logits, target, reduction="none")
    tails = [math.exp(-40), math.exp(-40), math.exp(-80), math.exp(-80), 0, 0]
    np.testing.assert_allclose(losses, [*tails, 1e30], rtol=4 * np.finfo(dtype).eps)
    signs = np.array([-1, 1, -1, 1, -1, 1])
    np.testing.assert_allclose(
        pullback(np.ones_like(logits))[0], [*(signs * tails), 1], rtol=4 * np.finfo(dtype).eps, atol=0
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_huber_and_smooth_l1_of_large_errors_do_not_overflow(dtype):
    big = float(np.finfo(dtype).max) / 8
    for loss in (huber, smooth_l1):
        value, pullback = loss.vjp(np.array([big, -big], dtype), np.zeros(2, dtype))
        assert value == np.dtype(dtype).type(big)
        np.testing.assert_array_equal(pullback(1.0)[0], np.array([0.5, -0.5], dtype))


BORDERS = [(loss, size) for loss in (huber, smooth_l1) for size in (1e-30, 1e30, 1e38, 1e39, 1e300)]
BORDERS += [(smooth_l1, size) for size in (1e-320, 1e-60, 5e-46, 1e-45)]  # the slopes of huber are no larger


@pytest.mark.parametrize(("loss", "size"), BORDERS, ids=lambda value: getattr(value, "__name__", str(value)))
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_border_that_the_dtype_does_not_hold(dtype, loss, size):
    """Checked against Python's floats. Some borders are too large or too small for float32."""
    errors, limits = np.array([0.0, 1e-37, -3e-30, -0.5, 7.0, -1e19, 3e38], dtype), np.finfo(dtype)
    with np.errstate(over="ignore"):  # losses beyond the range
        losses, pullback = loss.vjp(
            errors, np.zeros_like(errors), **{"delta" if loss is huber else "beta": size}, reduction="none"
        )
    slopes = pullback(np.ones_like(errors))[0]
    unit = 1.0 if loss is huber else size
    for error, value, slope in zip(errors.tolist(), losses.tolist(), slopes.tolist(), strict=True):
        steepness = min(abs(error), size) / unit
        right = steepness * (abs(error) - 0.5 * min(abs(error), size))
        rounding = 4 * float(limits.eps) + float(limits.smallest_subnormal)
        assert math.isclose(value, right, rel_tol=rounding, abs_tol=2 * float(limits.smallest_subnormal)) or (
            value == math.inf and right > float(limits.max)
        )
        assert math.isclose(
            slope, math.copysign(steepness, error), rel_tol=rounding, abs_tol=2 * float(limits.smallest_subnormal)
        )


def test_an_infinite_error_costs_infinity_whatever_the_border():
    for delta in (1e-300, 1.0, 1e300, math.inf):
        assert huber(np.array([-math.inf]), np.zeros(1), delta=delta) == math.inf


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("kind", ELEMENTWISE)
def test_elementwise_losses_read_nothing_in_a_masked_position(kind, reduction):
    loss, options = ELEMENTWISE[kind]
    y, target = np.random.default_rng(0).random((2, 3, 4, 2))
    mask = np.arange(12).reshape(3, 4) % 3 > 0
    expected, pullback = loss.vjp(y, target, mask=mask, reduction=reduction, **options)
    dvalue = np.ones_like(expected)
    expected_gradient, _ = pullback(dvalue)
    y[~mask], target[~mask] = np.nan, np.inf
    value, pullback = loss.vjp(y, target, mask=mask, reduction=reduction, **options)
    assert_same(value, expected)
    assert_same(pullback(dvalue)[0], expected_gradient)
    assert not expected_gradient[~mask].any()


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("mask", [None, "bool", "weights"])
@pytest.mark.parametrize("kind", ELEMENTWISE)
def test_elementwise_losses_on_strict_arrays(kind, mask, reduction, strict_namespace):
    loss, options = ELEMENTWISE[kind]
    y, target, d = np.random.default_rng(0).standard_normal((3, 3, 4))
    if mask is not None:
        options = {**options, "mask": y > 0 if mask == "bool" else y**2}
    expected, pullback = loss.vjp(y, target, reduction=reduction, **options)
    d = d if reduction == "none" else np.array(2.0)
    value, strict_pullback = loss.vjp(*strict((y, target)), reduction=reduction, **strict(options))
    assert_same(plain(value), expected)
    assert_same(plain(strict_pullback(strict(d))[0]), pullback(d)[0])
    assert_same(plain(strict_pullback(None)[0]), np.zeros_like(y))


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("class_weights", [False, True])
def test_cross_entropy_is_its_definition(label_smoothing, class_weights):
    logits, labels, options = problem((7,), 6, mask="weights", class_weights=class_weights)
    w = options.get("class_weights", np.ones(6))
    expected = []
    for x, y, m in zip(logits, labels, options["mask"], strict=True):
        nats = [math.log(sum(math.exp(k) for k in x)) - c for c in x]
        smooth = sum(w_c * l_c for w_c, l_c in zip(w, nats, strict=True)) / 6
        expected.append(m * ((1 - label_smoothing) * w[y] * nats[y] + label_smoothing * smooth))
    options["label_smoothing"] = label_smoothing
    losses = cross_entropy(logits, labels, reduction="none", **options)
    assert_close(losses, np.array(expected), terms=24)
    mean = cross_entropy(logits, labels, **options)
    assert mean == pytest.approx(sum(expected) / (options["mask"] * w[labels]).sum(), rel=1e-14)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("class_weights", [False, True])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("rubbish", [np.nan, np.inf])
def test_nothing_in_a_masked_position_is_read(reduction, class_weights, label_smoothing, rubbish):
    logits, labels, options = problem((4, 5), 3, mask="bool", class_weights=class_weights)
    options |= {"label_smoothing": label_smoothing, "reduction": reduction}
    masked = ~options["mask"]
    expected, pullback = cross_entropy.vjp(logits, labels, **options)
    dvalue = np.ones_like(expected)
    expected_gradient, _ = pullback(dvalue)
    if reduction == "none":
        assert not expected[masked].any()

    logits[masked], labels[masked] = rubbish, -100
    with np.errstate(invalid="ignore"):
        value, pullback = cross_entropy.vjp(logits, labels, **options)
    dlogits, _ = pullback(dvalue)
    assert_same(value, expected)
    assert_same(dlogits, expected_gradient)
    assert not dlogits[masked].any()


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_mse_reads_nothing_in_a_masked_position(reduction):
    rng = np.random.default_rng(0)
    y, target = rng.standard_normal((2, 3, 4, 2))
    mask = rng.random((3, 4)) < 0.5
    expected, pullback = mse.vjp(y, target, mask=mask, reduction=reduction)
    dvalue = np.ones_like(expected)
    expected_gradient, _ = pullback(dvalue)
    y[~mask] = np.nan
    value, pullback = mse.vjp(y, target, mask=mask, reduction=reduction)
    assert_same(value, expected)
    assert_same(pullback(dvalue)[0], expected_gradient)
    assert not expected_gradient[~mask].any()
    if reduction == "mean":
        assert value == pytest.approx(((y - target)[mask] ** 2).mean(), rel=1e-15)


@pytest.mark.parametrize("dtype", DTYPES)
def test_cross_entropy_of_huge_logits_is_finite_and_exact(dtype):
    big = float(np.finfo(dtype).max) / 4
    logits = np.array([[big, -big, 0], [-big, -big, -big]], dtype)
    value, pullback = cross_entropy.vjp(logits, np.array([0, 1]), reduction="none")
    np.testing.assert_allclose(value, [0, np.log(3)], rtol=4 * np.finfo(dtype).eps)
    dlogits, _ = pullback(np.ones(2, dtype))
    np.testing.assert_allclose(dlogits, [[0, 0, 0], [1 / 3, -2 / 3, 1 / 3]], atol=4 * np.finfo(dtype).eps)


def test_cross_entropy_does_not_change_when_a_row_is_shifted():
    logits, labels, _ = problem((5,), 4, mask=None, class_weights=False)
    shifted = logits + np.array([[0.0], [512.0], [-1024.0], [8.0], [1e5]])
    actual, expected = (cross_entropy(x, labels, reduction="none") for x in (shifted, logits))
    np.testing.assert_allclose(actual, expected, atol=1e5 * np.finfo("float64").eps)


@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
@pytest.mark.parametrize("count", [0, 3])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_mean_of_nothing_is_zero(loss, count, dtype):
    x = np.ones((count, 4), dtype)
    mask = np.zeros(count, bool) if count else None
    if loss == "mse":
        value, pullback = mse.vjp(x, x + 1, mask=mask)
    else:
        value, pullback = cross_entropy.vjp(x, np.zeros(count, int), mask=mask)
    assert value.shape == ()
    assert value.dtype == dtype
    assert value == 0
    assert_same(pullback(1.0)[0], np.zeros_like(x))


@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_value_and_what_the_pullback_takes(loss, reduction, dtype):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, 2, 4)).astype(dtype)
    if loss == "mse":
        value, pullback = mse.vjp(x, -x, reduction=reduction)
    else:
        value, pullback = cross_entropy.vjp(x, rng.integers(0, 4, (3, 2)), reduction=reduction)
    assert isinstance(value, np.ndarray)
    assert value.dtype == dtype
    assert value.shape == (() if reduction != "none" else x.shape if loss == "mse" else (3, 2))
    assert_same(pullback(None), (np.zeros_like(x), {}))
    expected = pullback(np.full(value.shape, 0.5, dtype))[0]
    assert expected.dtype == dtype
    if reduction == "none":
        with pytest.raises(TypeError, match=f"{loss}: dvalue is a float, expected a numpy.ndarray"):
            pullback(0.5)
        with pytest.raises(ValueError, match=rf"{loss}: dvalue has shape \(2,\)"):
            pullback(np.zeros(2, dtype))
    else:
        assert_same(pullback(0.5)[0], expected)
        assert_same(pullback(np.dtype(dtype).type(0.5))[0], expected)
        with pytest.raises(ValueError, match=rf"{loss}: dvalue has shape \(1,\)"):
            pullback(np.zeros(1, dtype))
    other = "float64" if dtype == "float32" else "float32"
    with pytest.raises(TypeError, match=f"{loss}: dvalue has dtype {other}"):
        pullback(np.zeros(value.shape, other))


@pytest.mark.parametrize("training", [False, True])
def test_arguments_may_be_strided_and_read_only_and_stay_as_they_were(training):
    logits, labels, options = problem((4, 6), 5, mask="bool", class_weights=True)
    expected = cross_entropy(logits, labels, **options)
    given = [np.asfortranarray(logits)[:, ::-1][:, ::-1], np.asfortranarray(labels), np.asfortranarray(options["mask"])]
    before = [a.copy() for a in given]
    for a in given:
        a.flags.writeable = False
    x, y, mask = given
    weights = options["class_weights"]
    if training:
        value, pullback = cross_entropy.vjp(x, y, mask=mask, class_weights=weights)
        dlogits, _ = pullback(1.0)
        reference = cross_entropy.vjp(logits, labels, **options)[1](1.0)[0]
        assert_same(dlogits, reference)
    else:
        value = cross_entropy(x, y, mask=mask, class_weights=weights)
    assert_same(value, expected)
    for a, b in zip(given, before, strict=True):
        assert_same(a, b)


@pytest.mark.parametrize("kind", ["int8", "uint8", "int32", "uint32", "int64", "uint64"])
def test_labels_of_any_integer_dtype(kind):
    logits, labels, _ = problem((5,), 4, mask=None, class_weights=False)
    assert_same(cross_entropy(logits, labels.astype(kind)), cross_entropy(logits, labels))
    mask = labels != 2
    assert_same(
        cross_entropy(logits, labels.astype(kind), mask=mask, class_weights=np.arange(1.0, 5.0)),
        cross_entropy(logits, labels, mask=mask, class_weights=np.arange(1.0, 5.0)),
    )


def test_blocks_of_the_evaluation_change_nothing(monkeypatch):
    logits, labels, options = problem((50,), 7, mask="bool", class_weights=True, dtype="float32")
    options |= {"label_smoothing": 0.1, "reduction": "none"}
    whole = cross_entropy.vjp(logits, labels, **options)[0]
    for block in (1, 7, 30, 349, 350):
        monkeypatch.setattr(wing, "_BLOCK", block)
        assert_same(cross_entropy(logits, labels, **options), whole)


def test_nan_comes_through():
    logits = np.array([[0.0, np.nan], [0.0, 1.0]])
    losses = cross_entropy(logits, np.array([0, 0]), reduction="none")
    assert np.isnan(losses).tolist() == [True, False]
    assert np.isnan(mse(np.array([np.nan, 1.0]), np.zeros(2)))


X, LABELS = np.zeros((2, 3)), np.zeros(2, int)


@pytest.mark.parametrize(("labels", "where"), [([0, 3], "3 at flat position 1"), ([-1, 0], "-1 at flat position 0")])
def test_a_label_that_is_no_class(each_wing, labels, where):
    """The label is rejected if it can be inspected. On a GPU that would mean waiting: loss and gradient are NaN."""
    labels = np.array(labels)
    if each_wing != "host":
        with pytest.raises(ValueError, match=rf"labels holds {where}, expected 0 <= label < classes = 3"):
            cross_entropy(X, labels)
        return
    losses, pullback = cross_entropy.vjp(X, labels, reduction="none")
    bad = labels != 0
    np.testing.assert_array_equal(np.isnan(losses), bad)
    np.testing.assert_array_equal(np.isnan(pullback(np.ones(2))[0]).all(axis=1), bad)
    assert np.isnan(cross_entropy(X, labels, class_weights=np.ones(3)))


@pytest.mark.parametrize(
    ("logits", "labels", "options", "error", "message"),
    [
        ([[0.0]], LABELS, {}, TypeError, "cross_entropy: logits is a list, expected a numpy.ndarray"),
        (X, [0, 0], {}, TypeError, "cross_entropy: labels is a list, expected a numpy.ndarray"),
        (X.astype(int), LABELS, {}, TypeError, "cross_entropy: logits has dtype int64, expected float32 or float64"),
        (X.astype("float16"), LABELS, {}, TypeError, "cross_entropy: logits has dtype float16, expected float32"),
        (X, np.zeros(2), {}, TypeError, "cross_entropy: labels has dtype float64, expected an integer dtype"),
        (X, np.zeros(2, bool), {}, TypeError, "cross_entropy: labels has dtype bool, expected an integer dtype"),
        (X, np.zeros(3, int), {}, ValueError, r"labels has shape \(3,\), expected logits.shape\[:-1\] = \(2,\)"),
        (np.zeros(()), LABELS, {}, ValueError, r"logits has shape \(\), expected \(..., classes\)"),
        (np.zeros((2, 0)), LABELS, {}, ValueError, r"logits has shape \(2, 0\), expected \(..., classes\)"),
        (X, LABELS, {"mask": np.ones(3, bool)}, ValueError, r"mask has shape \(3,\), expected .* = \(2,\)"),
        (
            X,
            LABELS,
            {"mask": np.array([1, 2])},
            ValueError,
            "mask holds 2, expected bools, or integers 0 and 1, or numbers",
        ),
        (X, LABELS, {"mask": np.ones(2, "float32")}, TypeError, "mask has dtype float32, expected bool, or integers"),
        (
            X,
            LABELS,
            {"class_weights": np.ones(2)},
            ValueError,
            r"class_weights has shape \(2,\), expected \(classes,\)",
        ),
        (X, LABELS, {"class_weights": np.ones(3, "float32")}, TypeError, "class_weights has dtype float32 but logits"),
        (X, LABELS, {"label_smoothing": 1.5}, ValueError, r"label_smoothing is 1.5, expected a number in \[0, 1\]"),
        (X, LABELS, {"label_smoothing": -0.1}, ValueError, "label_smoothing is -0.1"),
        (X, LABELS, {"label_smoothing": math.nan}, ValueError, "label_smoothing is nan"),
        (X, LABELS, {"reduction": "max"}, ValueError, "reduction is 'max', expected one of 'mean', 'sum', 'none'"),
    ],
)
def test_cross_entropy_refuses(logits, labels, options, error, message):
    for call in (cross_entropy, cross_entropy.vjp):
        with pytest.raises(error, match=message):
            call(logits, labels, **options)


@pytest.mark.parametrize(
    ("y", "target", "options", "error", "message"),
    [
        (X, X.tolist(), {}, TypeError, "mse: target is a list, expected a numpy.ndarray"),
        (X, X.astype("float32"), {}, TypeError, "mse: target has dtype float32 but y has float64, expected one dtype"),
        (X, LABELS, {}, TypeError, "mse: target has dtype int64, expected float32 or float64"),
        (X, np.zeros((2, 1)), {}, ValueError, r"mse: target has shape \(2, 1\), expected the shape of y = \(2, 3\)"),
        (X, X, {"mask": np.ones(3, bool)}, ValueError, r"mse: mask has shape \(3,\), expected the leading axes of y"),
        (X, X, {"mask": np.ones((2, 3, 1), bool)}, ValueError, r"mse: mask has shape \(2, 3, 1\), expected"),
        (
            X,
            X,
            {"mask": np.full((2, 3), -1)},
            ValueError,
            "mse: mask holds -1, expected bools, or integers 0 and 1, or numbers",
        ),
        (X, X, {"reduction": None}, ValueError, "mse: reduction is None, expected one of 'mean', 'sum', 'none'"),
    ],
)
def test_mse_refuses(y, target, options, error, message):
    for call in (mse, mse.vjp):
        with pytest.raises(error, match=message):
            call(y, target, **options)


@pytest.mark.parametrize(
    ("loss", "y", "target", "options", "error", "message"),
    [
        (l1, X, X.tolist(), {}, TypeError, "l1: target is a list, expected a numpy.ndarray"),
        (l1, X.astype(int), X, {}, TypeError, "l1: y has dtype int64, expected float32 or float64"),
        (l1, X, np.zeros((2, 1)), {}, ValueError, r"l1: target has shape \(2, 1\), expected the shape of y = \(2, 3\)"),
        (huber, X, X, {"delta": 0}, ValueError, "huber: delta is 0, expected a positive number"),
        (huber, X, X, {"delta": math.nan}, ValueError, "huber: delta is nan, expected a positive number"),
        (smooth_l1, X, X, {"beta": -0.1}, ValueError, "smooth_l1: beta is -0.1, expected a number of at least 0"),
        (smooth_l1, X, X, {"beta": math.inf}, ValueError, "smooth_l1: beta is inf, expected a number of at least 0"),
        (smooth_l1, X, X, {"mask": np.full((2, 3), 2)}, ValueError, "smooth_l1: mask holds 2, expected bools"),
        (
            binary_cross_entropy, X, LABELS, {}, TypeError,
            "binary_cross_entropy: target has dtype int64, expected float32 or float64",
        ),
        (
            binary_cross_entropy, X, np.zeros(3), {}, ValueError,
            r"binary_cross_entropy: target has shape \(3,\), expected the shape of logits = \(2, 3\)",
        ),
        (
            binary_cross_entropy, X, X, {"mask": np.ones(3, bool)}, ValueError,
            r"binary_cross_entropy: mask has shape \(3,\), expected the leading axes of logits = \(2,\)",
        ),
        (
            binary_cross_entropy, X, X, {"reduction": "max"}, ValueError,
            "binary_cross_entropy: reduction is 'max', expected one of 'mean', 'sum', 'none'",
        ),
    ],
)  # fmt: skip
def test_elementwise_losses_refuse(loss, y, target, options, error, message):
    for call in (loss, loss.vjp):
        with pytest.raises(error, match=message):
            call(y, target, **options)


@pytest.mark.parametrize("V", [1, 31, 33, 1024, 1025, 3000])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_vocabularies_of_a_warp_and_of_a_block(V, label_smoothing):
    """All options at once, against the definition row by row."""
    rng = np.random.default_rng(V)
    logits, labels = 50 * rng.standard_normal((5, V)) + 1000, rng.integers(0, V, 5)
    class_weights, weights, d = rng.random(V) + 0.1, np.array([1.0, 0.0, 2.0, 0.5, 1.0]), rng.standard_normal(5)
    logits[1] = np.nan
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    target = (1 - label_smoothing) * np.eye(V)[labels] * class_weights + label_smoothing / V * class_weights
    expected = -weights * (target * log_p).sum(axis=1)
    gradient = (d * weights)[:, None] * (np.exp(log_p) * target.sum(axis=1, keepdims=True) - target)
    expected[1], gradient[1] = 0, 0
    losses, pullback = cross_entropy.vjp(
        logits, labels, mask=weights, class_weights=class_weights, label_smoothing=label_smoothing, reduction="none"
    )
    assert_close(losses, expected, 4 * V + 100, magnitude=1100 if label_smoothing else 0)
    assert_close(pullback(d)[0], gradient, 4 * V + 100, magnitude=1)


# --- ignore_index ---


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_an_ignored_label_counts_as_masked(dtype, reduction):
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(3, 4, 5)).astype(dtype), rng.integers(0, 5, (3, 4))
    ignored = labels == 2
    marked = np.where(ignored, -100, labels)
    logits[ignored] = np.nan
    mask = rng.integers(0, 2, (3, 4)).astype(bool)
    value, pull = cross_entropy.vjp(logits, marked, ignore_index=-100, mask=mask, reduction=reduction)
    expected, pull_masked = cross_entropy.vjp(logits, labels, mask=mask & ~ignored, reduction=reduction)
    cotangent = np.ones_like(value) if reduction == "none" else 1.0
    assert_same(value, expected)
    assert_same(pull(cotangent)[0], pull_masked(cotangent)[0])
    assert_same(cross_entropy(logits, marked, ignore_index=-100, mask=mask, reduction=reduction), value)


def test_a_class_may_be_ignored_and_all_labels_too():
    logits = np.log(np.array([[0.5, 0.25, 0.25], [0.1, 0.2, 0.7]]))
    value = cross_entropy(logits, np.array([0, 2]), ignore_index=2)
    np.testing.assert_allclose(value, np.log(2.0))
    value, pull = cross_entropy.vjp(logits, np.array([7, 7]), ignore_index=7)
    assert float(value) == 0
    assert not pull(1.0)[0].any()


@pytest.mark.parametrize("weight", [np.inf, np.nan])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_the_weight_of_an_ignored_class_is_not_read(reduction, weight):
    """It may be infinite: 1 / count of a class that never occurs."""
    logits, labels = np.array([[0.0, 1.0], [0.0, 1.0]]), np.array([0, 1])
    value, pull = cross_entropy.vjp(
        logits, labels, ignore_index=0, class_weights=np.array([weight, 1.0]), reduction=reduction
    )
    expected, pull_expected = cross_entropy.vjp(logits, labels, mask=labels == 1, reduction=reduction)
    np.testing.assert_array_equal(value, expected)
    cotangent = np.ones_like(value) if reduction == "none" else 1.0
    np.testing.assert_array_equal(pull(cotangent)[0], pull_expected(cotangent)[0])


def test_an_ignored_label_is_an_integer():
    with pytest.raises(TypeError, match=r"cross_entropy: ignore_index is 1\.5, expected a whole number"):
        cross_entropy(np.zeros((1, 2)), np.zeros(1, int), ignore_index=1.5)
