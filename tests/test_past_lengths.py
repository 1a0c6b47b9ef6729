"""No layer reads anything past a length: it may be NaN, infinite, or an invalid token."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from tolerance import assert_same

import gpurnn

pytestmark = pytest.mark.usefixtures("each_wing")

T, B, F = 5, 4, 3
LENGTHS = np.array([5, 0, 2, 4])
PAST = np.arange(T)[:, None] >= LENGTHS

FIRST = {
    "dense": lambda: gpurnn.Dense(F, F, activation="sigmoid", dtype="float64"),
    "softmax": lambda: gpurnn.Dense(F, F, activation="softmax", dtype="float64"),
    "norm": lambda: gpurnn.LayerNorm(F, dtype="float64"),
    "dropout": lambda: gpurnn.Dropout(0.5),
    "position": lambda: gpurnn.PositionalEncoding(),
}
RECURRENT = {
    "rnn": lambda: gpurnn.RNN(F, F, dtype="float64"),
    "lstm": lambda: gpurnn.LSTM(F, F, bidirectional=True, dtype="float64"),
    "gru": lambda: gpurnn.GRU(F, F, num_layers=2, dtype="float64"),
    "batch first": lambda: gpurnn.GRU(F, F, batch_first=True, dtype="float64"),
    "nested batch first": lambda: gpurnn.Sequential(gpurnn.GRU(F, F, batch_first=True, dtype="float64")),
    "state space": lambda: gpurnn.StateSpace(F, F, F, dtype="float64"),
    "diagonal": lambda: gpurnn.DiagonalStateSpace(F, F, F, dtype="float64"),
    "transformer": lambda: gpurnn.TransformerBlock(F, 1, dtype="float64"),
}


def run(model, x, dy_seed, **options):
    (y, state), pull = model.vjp(x, lengths=LENGTHS, rng=0, **options)
    dy = np.random.default_rng(dy_seed).normal(size=y.shape)
    past = PAST.T if y.shape[0] == B else PAST
    dy[past] = 0
    (dx, _), grads = pull((dy, None))
    return y, model(x, lengths=LENGTHS)[0], state, dx, grads


# Positions are encoded along the first axis.
PAIRS = [
    pair for pair in itertools.product(FIRST, RECURRENT) if not (pair[0] == "position" and "batch first" in pair[1])
]


@pytest.mark.parametrize(
    ("cell", "gates", "options"),
    [
        ("rnn", 1, {"clip": 3.0}), ("gru", 3, {"zoneout": 0.25}), ("lstm", 4, {"cell_clip": 0.5}),
        ("lstm", 3, {"coupled": True}), ("lstm", 4, {}), ("gru", 3, {}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("without", ["lengths", "mask"])
def test_the_state_of_a_row_without_steps(cell, gates, options, without):
    """It reaches the final state of its own row, and no gradient of the weights."""
    state = np.array([[1.0], [np.nan]])
    exists = {"lengths": np.array([2, 0])} if without == "lengths" else {"mask": np.array([[True, False]] * 2)}
    function, weight = getattr(gpurnn, cell), np.ones((gates, 1))
    state = (state, state) if cell == "lstm" else state
    (y, _), pull = function.vjp(np.ones((2, 2, 1)), weight, weight, state=state, **options, **exists)
    _, gradients = pull((np.where(np.isnan(y), 0, 1.0), None))
    assert all(np.isfinite(gradient).all() for gradient in gradients.values())


def test_the_state_of_a_row_of_independent_units_without_steps():
    layer = gpurnn.IndRNN(1, 2, dtype="float64", rng=0)
    state = np.array([[[1.0, 1.0], [np.nan, np.inf]]])
    (y, _), pull = layer.vjp(np.ones((3, 2, 1)), state=state, lengths=np.array([3, 0]))
    _, gradients = pull((np.where(np.isnan(y), 0, 1.0), None))
    assert all(np.isfinite(gradient).all() for gradient in gradients.values())


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e300])
@pytest.mark.parametrize(("first", "recurrent"), PAIRS)
def test_layers_before_a_recurrent_one(first, recurrent, bad):
    model = gpurnn.Sequential(FIRST[first](), RECURRENT[recurrent]())
    x = np.random.default_rng(0).normal(size=(T, B, F))
    past = PAST
    if "batch first" in recurrent:
        x, past = x.swapaxes(0, 1).copy(), PAST.T
    clean, spoilt = x.copy(), x.copy()
    clean[past], spoilt[past] = 0, bad
    expected, found = run(model, clean, 1), run(model, spoilt, 1)
    assert_same(found, expected)
    assert all(np.isfinite(g).all() for g in found[-1].values())
    assert not found[3][past].any()


@pytest.mark.parametrize("dtype", ["int64", "uint8", "int8"])
@pytest.mark.parametrize("bad", [100, -1])
def test_tokens_past_a_length(bad, dtype):
    model = gpurnn.Sequential(gpurnn.Embedding(7, F), gpurnn.GRU(F, F), gpurnn.Dense(F, 2))
    tokens = np.random.default_rng(0).integers(7, size=(T, B))
    clean, spoilt = tokens.copy(), tokens.copy()
    clean[PAST], spoilt[PAST] = 0, bad
    results = []
    for x in (clean, spoilt):
        (y, _), pull = model.vjp(x, lengths=LENGTHS.astype(dtype))
        results.append((y, pull((np.where(PAST[..., None], 0, y), None))[1]))
    assert_same(*results)


ALONE = {
    "rnn": lambda: gpurnn.RNN(F, F, activation="identity", leak=0.5, dtype="float64"),
    "gru before": lambda: gpurnn.GRU(F, F, dtype="float64"),
    "gru after": lambda: gpurnn.GRU(F, F, reset_after=True, bidirectional=True, dtype="float64"),
    "lstm": RECURRENT["lstm"],
    "state space": RECURRENT["state space"],
    "diagonal": lambda: gpurnn.DiagonalStateSpace(F, F, F, complex=False, dtype="float64"),
    "state before": lambda: gpurnn.DiagonalStateSpace(F, F, F, output_state="before", complex=False, dtype="float64"),
}


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("kind", ALONE)
def test_the_state_of_a_sequence_of_no_steps_reaches_no_other(kind, bad):
    """The state is returned unchanged, and nothing else depends on it."""
    layer, results = ALONE[kind](), []
    x = np.random.default_rng(0).normal(size=(T, B, F))
    for value in (0.0, bad):
        state = layer(x)[1]
        for part in state if isinstance(state, tuple) else (state,):
            part[:, LENGTHS == 0] = value
        with np.errstate(invalid="ignore"):  # NumPy computes such rows and drops them
            (y, final), pull = layer.vjp(x, state, LENGTHS)
            (dx, dstate), grads = pull((np.where(PAST[..., None], 0, 1.0) + 0 * y, None))
        for part in final if isinstance(final, tuple) else (final,):
            np.testing.assert_array_equal(part[:, LENGTHS == 0], value)
        results.append((y, dx, dstate, grads))
    assert_same(results[1], results[0])


@pytest.mark.parametrize("activation", ["identity", "relu"])
def test_a_sequence_that_ends_in_an_infinite_state_has_the_gradients_of_it_trimmed(activation):
    layer = gpurnn.RNN(F, F, activation=activation, dtype="float64")
    x = np.ones((T, 1, F))
    layer.params["weight_ih_l0"][...] = 1.0
    x[1] = np.inf
    (y, h), pull = layer.vjp(x, lengths=np.array([2]))
    (dx, _), grads = pull((np.ones_like(y), None))
    (short_y, short_h), pull = layer.vjp(x[:2])
    (short_dx, _), expected = pull((np.ones_like(short_y), None))
    assert np.isinf(h).all()
    assert_same((y[:2], h, dx[:2], grads["weight_hh_l0"]), (short_y, short_h, short_dx, expected["weight_hh_l0"]))
