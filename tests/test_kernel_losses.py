"""The wings' losses against their definition, for short and long rows; `test_losses.py` tests the API."""

from __future__ import annotations

import numpy as np
import parity
import pytest
from gpurnn.kernels import host
from gpurnn.kernels import losses as kernel_file
from gpurnn.reference import definitions
from tolerance import assert_close, assert_same

from gpurnn import kernels

DTYPES = ("float32", "float64")
OPTIONS = {
    "plain": (False, False, 0.0),
    "weights": (True, False, 0.0),
    "class weights": (False, True, 0.0),
    "smoothed": (False, False, 0.1),
    "all": (True, True, 0.3),
    "only smooth": (True, True, 1.0),
}
# Up to 1024 classes, a warp takes a row, eight rows to a block. Beyond that, a block of 256 threads takes a row.
SIZES = [(1, 1), (3, 2), (7, 31), (8, 32), (9, 33), (17, 100), (2, 1023), (2, 1024), (2, 1025), (3, 3000), (0, 5)]


def draw(N, V, dtype, options=(False, False, 0.0)):
    weighted, class_weighted, label_smoothing = options
    rng = np.random.default_rng(N * V)
    logits = (3 * rng.standard_normal((N, V))).astype(dtype)
    labels = rng.integers(0, V, N)
    weights = rng.random(N).astype(dtype) if weighted else None
    if weighted:
        weights[1::3] = 0
    class_weights = (rng.random(V) + 0.5).astype(dtype) if class_weighted else None
    return logits, labels, weights, {"class_weights": class_weights, "label_smoothing": label_smoothing}


def definition(logits, labels, weights, dlosses, *, class_weights, label_smoothing):
    """Losses and their gradient, in the widest type available."""
    N, V = logits.shape
    rows, classes = (np.ones(n) if w is None else w for n, w in ((N, weights), (V, class_weights)))
    wide = [a.astype(np.longdouble) for a in (logits, rows, dlosses, classes)]
    return definitions.cross_entropy(
        wide[0], labels, *wide[1:3], class_weights=wide[3], label_smoothing=np.longdouble(label_smoothing)
    )


def run(wing, logits, labels, weights, dlosses, **options):
    """Losses and gradient. Inference must give the same losses, and a second pullback the same gradient."""
    arguments = wing.to((logits, labels, weights))
    before = wing.to((logits, labels, weights))
    options = wing.to(options)
    inferred, nothing = wing.module.cross_entropy_forward(*arguments, **options)
    assert nothing is None
    losses, saved = wing.module.cross_entropy_forward(*arguments, **options, training=True)
    first = wing.module.cross_entropy_backward(saved, wing.to(dlosses))
    second = wing.module.cross_entropy_backward(saved, wing.to(dlosses))
    if wing.name != "reference":  # the reference's products with the class weights are BLAS's, over more or fewer rows
        assert_same(wing.back(inferred), wing.back(losses))
    assert_same(wing.back(second), wing.back(first))
    assert_same(wing.back(arguments), wing.back(before))
    return wing.back(losses), wing.back(first)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize(("N", "V"), SIZES)
def test_cross_entropy_is_its_definition(wing, N, V, options, dtype):
    logits, labels, weights, options = draw(N, V, dtype, options)
    dlosses = np.random.default_rng(1).standard_normal(N).astype(dtype)
    expected, gradient = definition(logits, labels, weights, dlosses, **options)
    losses, dlogits = run(wing, logits, labels, weights, dlosses, **options)
    # A sum over the classes has at most 40 steps, and its terms carry the rounding of a difference of logits: NumPy
    # adds by pairs, the kernels V / 256 or at most 32 numbers per thread.
    assert_close(losses, expected.astype(dtype), 40, "losses", magnitude=float(abs(logits).max(initial=1)))
    assert_close(dlogits, gradient.astype(dtype), 40, "dlogits", magnitude=float(abs(dlosses).max(initial=1)))
    if weights is not None:
        masked = weights == 0
        assert not losses[masked].any()
        assert not dlogits[masked].any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_vocabulary_of_a_hundred_thousand(wing, dtype):
    N, V = 3, 100_000
    logits, labels, weights, options = draw(N, V, dtype, OPTIONS["all"])
    dlosses = np.ones(N, dtype)
    expected, gradient = definition(logits, labels, weights, dlosses, **options)
    losses, dlogits = run(wing, logits, labels, weights, dlosses, **options)
    terms = -(-V // 256) + 40
    assert_close(losses, expected.astype(dtype), terms, "losses")
    assert_close(dlogits, gradient.astype(dtype), terms, "dlogits")


@pytest.mark.kernels
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize(("N", "V"), [(9, 33), (3, 1500), (5, 2)])
def test_a_gradient_has_the_same_bits_wherever_its_logits_begin(N, V, options, dtype):
    """The packets then begin at another class, or there are none."""
    logits, labels, weights, options = draw(N, V, dtype, options)
    labels[:3] = 0, V - 1, V // 2
    results = []
    for values in (logits, parity.beside_a_packet(logits)):
        _, saved = kernels.cross_entropy_forward(values, labels, weights, **options, training=True)
        results.append(kernels.cross_entropy_backward(saved, np.ones(N, dtype)))
    assert_same(*results)


@pytest.mark.parametrize("rising", [False, True])
@pytest.mark.parametrize("V", [100, 2000])
def test_logits_of_a_large_range_in_any_order(wing, V, rising):
    """The maximum may come first, last or be raised at each step."""
    logits = np.linspace(-300, 300, V)[None, :: 1 if rising else -1].astype("float32").repeat(2, axis=0)
    labels = np.array([0, V - 1])
    options = {"class_weights": None, "label_smoothing": 0.25}
    expected, gradient = definition(logits, labels, None, np.ones(2), **options)
    losses, dlogits = run(wing, logits, labels, None, np.ones(2, "float32"), **options)
    assert_close(losses, expected.astype("float32"), 40)
    assert_close(dlogits, gradient.astype("float32"), 40)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
@pytest.mark.parametrize("V", [40, 1500])
def test_infinite_logits(wing, V, label_smoothing):
    """Minus infinity excludes a class, even many in a row. One plus infinity, or no class left, gives NaN."""
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((5, V))
    logits[0, : V - 2] = -np.inf
    logits[1, 3] = np.inf
    logits[2] = -np.inf
    logits[3, V - 1] = np.nan
    labels = np.full(5, V - 1)
    with np.errstate(all="ignore"):
        losses, dlogits = run(
            wing, logits, labels, None, np.ones(5), class_weights=None, label_smoothing=label_smoothing
        )
    assert np.isnan(losses).tolist() == [False, True, True, True, False]
    assert np.isnan(dlogits).all(axis=1).tolist() == [False, True, True, True, False]
    if label_smoothing:
        assert losses[0] == np.inf
    else:
        options = {"class_weights": None, "label_smoothing": 0.0}
        expected, gradient = definition(logits[:1, -2:], np.array([1]), None, np.ones(1), **options)
        assert_close(losses[:1], expected.astype("float64"), 4)
        assert_close(dlogits[:1, -2:], gradient.astype("float64"), 4)
        assert not dlogits[0, :-2].any()
    assert np.isfinite(dlogits[[0, 4]]).all()


@pytest.mark.parametrize("label_smoothing", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("V", [4, 40, 1500])
def test_a_term_of_weight_zero_does_not_count_though_it_is_infinite(wing, V, label_smoothing):
    """A class excluded by its logit does not count in the loss if its weight is zero. This does not hide NaN."""
    logits = np.random.default_rng(0).standard_normal((3, V))
    class_weights = np.linspace(0.5, 1.5, V)
    class_weights[[0, 2]] = 0
    labels, options = np.array([1, 0, 1]), {"class_weights": class_weights, "label_smoothing": label_smoothing}
    logits[:, [0, 2]] = -1e300  # so large a term is hidden only by a weight of zero
    expected = run(wing, logits, labels, None, np.ones(3), **options)
    logits[:, [0, 2]] = -np.inf
    losses, dlogits = found = run(wing, logits, labels, None, np.ones(3), **options)
    assert np.isfinite(losses).all()
    assert_same(found, expected)
    logits[0, 2] = np.nan
    with np.errstate(invalid="ignore"):
        losses, dlogits = run(wing, logits, labels, None, np.ones(3), **options)
    assert np.isnan(losses).tolist() == np.isnan(dlogits).any(axis=1).tolist() == [True, False, False]


@pytest.mark.parametrize("V", [4, 1500])
def test_evenly_smoothed_labels_count_a_class_that_is_ruled_out(wing, V):
    """With label smoothing of 1, the label's own term has no weight, but all classes have."""
    logits = np.zeros((2, V))
    logits[0, 1] = -np.inf
    options = {"class_weights": None, "label_smoothing": 1.0}
    losses, _ = run(wing, logits, np.array([1, 1]), None, np.ones(2), **options)
    assert losses[0] == np.inf
    np.testing.assert_allclose(losses[1], np.log(V))


@pytest.mark.parametrize("rubbish", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
@pytest.mark.parametrize("V", [100, 1500])
def test_a_masked_row_is_not_read(wing, V, label_smoothing, rubbish):
    logits, labels, _, options = draw(10, V, "float64", (False, True, label_smoothing))
    weights = np.arange(10.0) % 3
    dlosses = np.random.default_rng(1).standard_normal(10)
    expected = run(wing, logits, labels, weights, dlosses, **options)
    masked = weights == 0
    logits[masked], labels[masked] = rubbish, -100
    with np.errstate(invalid="ignore"):  # NumPy computes such rows and drops them
        losses, dlogits = run(wing, logits, labels, weights, dlosses, **options)
    assert_same((losses, dlogits), expected)
    assert not losses[masked].any()
    assert not dlogits[masked].any()


@pytest.mark.parametrize("V", [100, 1500])
def test_a_class_weight_counts_in_the_rows_of_its_label_alone(wing, V):
    logits, labels, _, options = draw(10, V, "float64", OPTIONS["class weights"])
    dlosses = np.random.default_rng(1).standard_normal(10)
    labels[labels == 3] = 4
    expected = run(wing, logits, labels, None, dlosses, **options)
    options["class_weights"][3] = np.inf
    assert_same(run(wing, logits, labels, None, dlosses, **options), expected)


@pytest.mark.kernels
@pytest.mark.parametrize("V", [100, 1500])
@pytest.mark.parametrize("options", [OPTIONS["plain"], OPTIONS["all"]])
def test_the_kernels_give_nan_for_a_label_that_is_no_class(V, options):
    logits, labels, _, options = draw(6, V, "float32", options)
    labels[[0, 2, 5]] = -1, V, 2**40
    losses, saved = kernels.cross_entropy_forward(logits, labels, **options, training=True)
    dlogits = kernels.cross_entropy_backward(saved, np.ones(6, "float32"))
    bad = [True, False, True, False, False, True]
    assert np.isnan(losses).tolist() == bad
    assert np.isnan(dlogits).all(axis=1).tolist() == bad
    assert np.isnan(dlogits).any(axis=1).tolist() == bad


@pytest.mark.kernels
@pytest.mark.parametrize("V", [100, 1500])
def test_the_order_of_threads_and_blocks_changes_no_bit(V):
    logits, labels, weights, options = draw(20, V, "float32", OPTIONS["all"])

    def both():
        losses, saved = kernels.cross_entropy_forward(logits, labels, weights, **options, training=True)
        return losses, kernels.cross_entropy_backward(saved, weights)

    first = both()
    for seed in (1, 2, 3):
        with host.execution(seed=seed):
            assert_same(both(), first)


@pytest.mark.kernels
def test_the_order_of_threads_and_blocks_changes_no_bit_of_mse():
    y, target, d = np.random.default_rng(0).standard_normal((3, 1000)).astype("float32")

    def both():
        errors, saved = kernels.mse_forward(y, target, training=True)
        return errors, kernels.mse_backward(saved, d)

    first = both()
    for seed in (1, 2, 3):
        with host.execution(seed=seed):
            assert_same(both(), first)


@pytest.mark.kernels
def test_a_warp_and_a_block_give_a_row_the_same_loss(monkeypatch):
    logits, labels, weights, options = draw(9, 700, "float64", OPTIONS["all"])
    assert kernel_file._threads_a_row(700) == 32
    by_warps = kernels.cross_entropy_forward(logits, labels, weights, **options)[0]
    monkeypatch.setattr(kernel_file, "_WARP_A_ROW", 699)
    assert kernel_file._threads_a_row(700) == kernel_file._THREADS
    by_blocks = kernels.cross_entropy_forward(logits, labels, weights, **options)[0]
    assert_close(by_blocks, by_warps, 40)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [0, 1, 255, 256, 257, 1000])
def test_mse_is_its_definition(wing, n, dtype):
    rng = np.random.default_rng(n)
    y, target, d = (rng.standard_normal(n).astype(dtype) for _ in range(3))
    arguments = wing.to((y, target))
    inferred, nothing = wing.module.mse_forward(*arguments)
    assert nothing is None
    errors, saved = wing.module.mse_forward(*arguments, training=True)
    assert_same(wing.back(inferred), wing.back(errors))
    expected, gradient = definitions.mse(y, target, d)
    assert_same(wing.back(errors), expected)
    first = wing.module.mse_backward(saved, wing.to(d))
    assert_same(wing.back(wing.module.mse_backward(saved, wing.to(d))), wing.back(first))
    assert_same(wing.back(first), gradient)
    assert_same(wing.back(arguments), (y, target))
