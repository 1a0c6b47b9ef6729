"""What lies past a length is not read, by any layer: it may be NaN, infinite, or no token."""

from __future__ import annotations

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


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e300])
@pytest.mark.parametrize(
    ("first", "recurrent"),
    # Positions are counted along the first axis.
    [(f, r) for f in FIRST for r in RECURRENT if (f, r) != ("position", "batch first")],
)
def test_layers_before_a_recurrent_one(first, recurrent, bad):
    model = gpurnn.Sequential(FIRST[first](), RECURRENT[recurrent]())
    x = np.random.default_rng(0).normal(size=(T, B, F))
    past = PAST
    if recurrent == "batch first":
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
