"""The compiled wing's functions except the recurrence: each against the NumPy definition, in each instruction set.

The common tests of these functions run on the compiled wing too; these tests vary its instruction sets and threads.
"""

from __future__ import annotations

import numpy as np
import pytest
from gpurnn.kernels import native
from tolerance import assert_all_close, assert_same

from gpurnn import reference
from gpurnn.cells import IndRNN, MinGRU, MinLSTM
from gpurnn.optimizers import KINDS

pytestmark = pytest.mark.usefixtures("new_arrays_are_nan")


def draw(dtype: str, *shape: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng([seed, *shape])
    x = rng.standard_normal(shape)
    return (x + 1j * rng.standard_normal(shape) if dtype.startswith("complex") else x).astype(dtype)


# ---- Operations: from a wing and a dtype to all results --------------------------------------------------------------


def scan(wing, dtype, columns, constant):
    a = draw(dtype, *((columns,) if constant else (300, 2, columns)))
    a /= (1 + np.abs(a)).astype(a.real.dtype)
    b, h0, dh = draw(dtype, 300, 2, columns), draw(dtype, 2, columns), draw(dtype, 300, 2, columns, seed=1)
    h, saved = wing.linear_scan_forward(a, b, h0, training=True)
    inferred = wing.linear_scan_forward(a, b, h0)[0]
    for array in (a, b, h0):
        array[...] = np.nan
    return h, inferred, *wing.linear_scan_backward(saved, dh), *wing.linear_scan_backward(saved, dh)


def independent(wing, dtype, columns, activation):
    cell = IndRNN(activation, leak=0.3)
    a, u, h0 = draw(dtype, 70, 3, columns), 0.5 * draw(dtype, 3, columns), draw(dtype, 3, columns, seed=1)
    marks = np.random.default_rng(0).random((2, 70, 3)) < 0.1
    marks = {"resets": marks[0], "exists": ~marks[1]}
    h, saved = wing.independent_forward(cell, a, u, h0, **marks, training=True)
    results = h.copy(), wing.independent_forward(cell, a, u, h0, **marks)[0]
    for array in (a, u, h0, h, *marks.values()):
        array[...] = 0
    dh = draw(dtype, 70, 3, columns, seed=2)
    return *results, *wing.independent_backward(saved, dh), *wing.independent_backward(saved, dh)


def minimal(wing, dtype, units, cell):
    a, h0 = 3 * draw(dtype, 70, 3, cell.gates * units), draw(dtype, 3, units)
    marks = np.random.default_rng(0).random((2, 70, 3)) < 0.1
    marks = {"resets": marks[0], "exists": ~marks[1]}
    h, saved = wing.minimal_forward(cell, a, h0, **marks, training=True)
    results = h.copy(), wing.minimal_forward(cell, a, h0, **marks)[0], wing.minimal_forward(cell, a, h0)[0]
    for array in (a, h0, h, *marks.values()):
        array[...] = 0
    dh = draw(dtype, 70, 3, units, seed=2)
    return *results, *wing.minimal_backward(saved, dh), *wing.minimal_backward(saved, dh)


def cross_entropy(wing, dtype, V, smoothing):
    logits, labels = 3 * draw(dtype, 37, V), np.random.default_rng(0).integers(0, V, 37)
    weights, class_weights = np.abs(draw(dtype, 37)), np.abs(draw(dtype, V))
    weights[[0, 5, 36]] = 0
    options = {"class_weights": class_weights, "label_smoothing": smoothing}
    losses, saved = wing.cross_entropy_forward(logits, labels, weights, **options, training=True)
    inferred = wing.cross_entropy_forward(logits, labels, weights, **options)[0]
    for array in (logits, labels):
        array[...] = 0
    dlosses = draw(dtype, 37, seed=1)
    return losses, inferred, *(wing.cross_entropy_backward(saved, dlosses) for _ in range(2))


def attention(wing, dtype, additive):
    query, keys, values = draw(dtype, 5, 9, 21), draw(dtype, 11, 9, 21, seed=1), draw(dtype, 11, 9, 19, seed=2)
    v, lengths = draw(dtype, 21) if additive else None, np.array([11, 0, 1, 5, 11, 10, 3, 8, 2])
    context, weights, saved = wing.attention_forward(query, keys, values, v, lengths=lengths, scale=0.3, training=True)
    inferred = wing.attention_forward(query, keys, values, v, lengths=lengths, scale=0.3)[:2]
    dcontext, dweights = draw(dtype, 5, 9, 19, seed=3), draw(dtype, 5, 9, 11, seed=4)
    for array in (query, keys, values, lengths, *([] if v is None else [v])):
        array[...] = 0
    results = [context.copy(), weights.copy(), *inferred]
    context[...] = weights[...] = 0
    for arguments in ((dcontext, dweights), (dcontext, None), (None, dweights), (None, None)):
        results += [g for g in wing.attention_backward(saved, *arguments) if g is not None]
    return tuple(results)


SIZES = (1, 0, 4095, 4096, 4097, 37, 20_000)


def update(wing, dtype, kind):
    optimizer = KINDS[kind]()
    params, grads = ([draw(dtype, size, seed=seed) for size in SIZES] for seed in (0, 1))
    slots = {
        name: None if value is None else [np.full_like(p, value) for p in params]
        for name, value in optimizer.slots(0.1).items()
    }
    for step in (1, 2, 3):
        shrink = [1 - 0.01 * k for k in range(len(params))]
        wing.optimizer_update(kind, params, grads, slots, shrink, 0.1, optimizer.scalars(step, 0.1))
    return *params, *(a for arrays in slots.values() if arrays is not None for a in arrays)


def scatter(wing, dtype, width):
    indices = np.random.default_rng(0).integers(0, 7, 100)
    return (wing.embedding_scatter(indices, draw(dtype, 100, width), 9),)


def dropout(wing, dtype, size):
    return (wing.dropout_mask(np.empty(0, dtype), (size,), 0.3, 2**63 + 5, 2**32 - 3),)


def dense(wing, dtype, rows, inputs, outputs):
    x, weight, bias = draw(dtype, rows, inputs), draw(dtype, outputs, inputs, seed=1), draw(dtype, outputs, seed=2)
    dy = draw(dtype, rows, outputs, seed=3)
    y, without = wing.dense_forward(x, weight, bias), wing.dense_forward(x, weight)
    return y, without, *wing.dense_backward(x, weight, dy)


def norm(wing, dtype, scale):
    return (wing.global_norm([(scale * draw(dtype, size)).astype(dtype) for size in SIZES]),)


CLOSE = {
    "scan of few columns": (scan, 3, True, 600),
    "scan of 37 columns": (scan, 37, False, 600),
    "scan of many columns": (scan, 1100, True, 600),
    "scan of many columns and factors": (scan, 700, False, 600),
    "independent units": (independent, 37, "tanh", 140),
    "many independent units": (independent, 300, "sigmoid", 140),
    "minimal GRU": (minimal, 37, MinGRU(), 140),
    "minimal LSTM": (minimal, 150, MinLSTM(), 140),
    "loss of 2 classes": (cross_entropy, 2, 0.0, 40),
    "loss of 100 classes": (cross_entropy, 100, 0.1, 140),
    "additive attention": (attention, True, 100),
    "attention by products": (attention, False, 100),
    "dense of few outputs": (dense, 61, 37, 19, 61),
    "dense of many outputs": (dense, 7, 30, 1111, 1111),
    "dense of many inputs": (dense, 13, 530, 150, 530),
    "dense of one row": (dense, 1, 300, 300, 300),
    "dense of one output": (dense, 700, 129, 1, 700),
    "scatter of a column": (scatter, 1, 100),
    "scatter of 150 columns": (scatter, 150, 100),
    "norm": (norm, 1.0, 64),
    "norm of tiny numbers": (norm, 1e-30, 64),
}
"""A function, its arguments, and the length of its sums."""

SAME = {
    **{f"update of {kind}": (update, kind) for kind in KINDS},
    "dropout of 1": (dropout, 1),
    "dropout of 5003": (dropout, 5003),
}
"""These give the bits of the definition, since no sum is in another order."""


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("operation", CLOSE)
def test_operations_agree_with_the_definition(instructions, operation, dtype):
    function, *arguments, terms = CLOSE[operation]
    assert_all_close(function(native, dtype, *arguments), function(reference, dtype, *arguments), terms)


@pytest.mark.parametrize("dtype", ["complex64", "complex128"])
@pytest.mark.parametrize("operation", [name for name in CLOSE if "scan" in name])
def test_complex_scans_agree_with_the_definition(instructions, operation, dtype):
    test_operations_agree_with_the_definition(instructions, operation, dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("operation", SAME)
def test_operations_have_the_bits_of_the_definition(instructions, operation, dtype):
    function, *arguments = SAME[operation]
    assert_same(function(native, dtype, *arguments), function(reference, dtype, *arguments))


@pytest.mark.parametrize("operation", [*CLOSE, *SAME])
def test_any_number_of_threads_gives_the_same_bits(instructions, operation, team):
    function, *arguments = CLOSE[operation][:-1] if operation in CLOSE else SAME[operation]
    dtype = "complex64" if function is scan else "float32"
    team(1)
    alone = function(native, dtype, *arguments)
    for count in (2, 3, 7):
        team(count)
        assert_same(function(native, dtype, *arguments), alone)


def test_a_decaying_state_of_a_scan_is_zero_in_the_end_and_not_subnormal():
    """Computing with subnormal numbers takes a processor a hundred times as long."""
    h, _ = native.linear_scan_forward(
        np.full(1, 0.9, np.float32), np.zeros((2000, 1, 1), np.float32), np.ones((1, 1), np.float32)
    )
    assert h[800] > 0
    assert h[-1] == 0


def test_a_decaying_moment_is_subnormal_in_the_end_as_in_the_definition():
    def moments(wing):
        params, slots = [np.zeros(1, np.float32)], {"square": [np.full(1, 2.0**-149, np.float32)]}
        scalars = {"lr": 0.1, "rho": 1.0, "one_minus_rho": 0.0, "eps": 0.1}
        slots["update"] = [np.full(1, 2.0**-149, np.float32)]
        wing.optimizer_update("adadelta", params, [np.zeros(1, np.float32)], slots, [1.0], 0.0, scalars)
        return slots["square"][0], slots["update"][0]

    assert_same(moments(native), moments(reference))
    assert moments(native)[0] > 0


def test_a_label_that_is_no_class_is_rejected():
    with pytest.raises(ValueError, match="cross_entropy: labels holds 3 at flat position 1, expected 0 <= label < "):
        native.cross_entropy_forward(np.zeros((2, 3)), np.array([0, 3]))


@pytest.mark.parametrize("bad", [-1, 4, 10**9])
def test_an_index_that_is_no_row_is_rejected(bad):
    """The gradient is computed later, and the caller may have changed the array in between."""
    with pytest.raises(IndexError, match=f"embedding: indices holds {bad}, expected 0 <= index < num_embeddings = 4"):
        native.embedding_scatter(np.array([0, bad]), np.ones((2, 3)), 4)
