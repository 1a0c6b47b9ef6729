"""Layers of a stack that run at once give the bits of one layer after another, in every order."""

from __future__ import annotations

import numpy as np
import pytest
from gpurnn.kernels import host, launch
from gpurnn.kernels.recurrence import layer as kernel_layer
from gpurnn.kernels.recurrence import plan, stack
from gpurnn.kernels.recurrence.stack import Decision
from tolerance import assert_same

import gpurnn

T, B, I, H, CHUNK = 11, 3, 4, 5, 3


def decided(monkeypatch, layers, back=None, chunk=CHUNK):
    """Have a stack run so many layers at once, whatever is predicted; for fewer than two, one after another."""

    def _decide(problem, *_):
        n = (layers if back is None else back) if problem.backward else layers
        return Decision(n, chunk, 0.0, 0.0) if n > 1 else None

    monkeypatch.setattr(stack, "_decide", _decide)
    monkeypatch.setattr(kernel_layer, "CHUNK_ROWS", chunk * B)  # so that products have the rows of a chunk either way


@pytest.fixture
def at_once(monkeypatch):
    """How many recurrences ran at once, each time."""
    counts = []
    run = launch._run_at_once
    monkeypatch.setattr(launch, "_run_at_once", lambda works, like: (counts.append(len(works)), run(works, like)))
    return counts


def results(layer, seed, **options):
    """Outputs and gradients of all parameters, inputs and states, in training; and the outputs of inference."""
    rng = np.random.default_rng(3)
    n, states = layer.num_layers, layer.cell.states
    x = rng.standard_normal((T, B, I)).astype("float32")
    state = tuple(rng.standard_normal((n, B, H)).astype("float32") for _ in range(states))
    state = state if states == 2 else state[0]
    given = {
        "lengths": np.array([T, 0, 7]),
        "resets": rng.random((T, B)) < 0.2,
        "mask": rng.random((T, B)) < 0.8,
    }
    with gpurnn.use("host"), plan.schedule("persistent"), host.execution(seed=seed):
        inferred = layer(x, state, **given)
        (y, final), pullback = layer.vjp(x, state, rng=5, **given, **options)
        return inferred, y, final, pullback((rng.standard_normal(y.shape).astype("float32"), final))


LAYERS = {
    "lstm": lambda: gpurnn.LSTM(
        I, H, 3, dropout=0.3, residual=True, variational_dropout=0.3, recurrent_dropout=0.3, zoneout=(0.1, 0.1), rng=1
    ),
    "gru": lambda: gpurnn.GRU(I, H, 3, reset_after=True, reverse=True, zero_masked_output=True, rng=1),
}


@pytest.mark.kernels
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("layers", [2, 3])
def test_the_bits_of_one_layer_after_another(name, layers, monkeypatch, at_once):
    """Two at once are followed by the third alone. Here a half and a third of the device have the plan of the whole."""
    layer = LAYERS[name]()
    decided(monkeypatch, 1)
    expected = results(layer, 0)
    assert not at_once
    decided(monkeypatch, layers)
    for seed in (0, 1):
        assert_same(results(layer, seed), expected)
    chunks = -(-T // CHUNK)
    wave = [min(k, layers, chunks, chunks + layers - k) for k in range(1, chunks + layers)]
    alone = [1] * chunks if layers == 2 else []
    assert at_once == 2 * (2 * (wave + alone) + (alone + wave))
    at_once.clear()
    decided(monkeypatch, layers, back=1)
    assert_same(results(layer, 0, checkpoint_every=1), expected)
    assert at_once[-3 * chunks :] == [1] * 3 * chunks
