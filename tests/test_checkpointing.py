"""Gradient checkpointing in time gives the plain gradients to the last bit, in less memory."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from problems import CELLS, Options, draw, pairwise, pattern_of_lengths, pattern_of_resets
from tolerance import arrays_of, assert_same

import gpurnn
from gpurnn import kernels, reference

LAYERS = {"rnn": gpurnn.RNN, "lstm": gpurnn.LSTM, "gru": gpurnn.GRU}
WINGS = {"reference": reference.recurrence, "host": kernels.recurrence}


def assert_bits(actual, expected) -> None:
    """Equal to the last bit, the sign of a zero too."""
    assert_same(actual, expected)
    for a, e in zip(arrays_of(actual), arrays_of(expected), strict=True):
        assert a.tobytes() == e.tobytes()


@pytest.fixture
def short_chunks(monkeypatch):
    """Chunks of few rows, so that short sequences have several."""
    for module in WINGS.values():
        monkeypatch.setattr(module, "CHUNK_ROWS", 5)


CHUNKED = pairwise(
    {
        "cell": list(CELLS),
        "options": [Options(), Options(lengths=True), Options(resets=True, mask=True), Options(True, True, True, True)],
        "cut": [2, 4],
        "dtype": ["float32", "float64"],
    }
)


@pytest.mark.usefixtures("short_chunks")
@pytest.mark.parametrize("choice", CHUNKED, ids=lambda choice: "-".join(map(str, choice.values())))
def test_parts_that_are_cut_between_chunks_give_the_bits_of_the_whole(wing, choice):
    """What the contract between the API and a wing promises of `recurrence_chunk`, for the forward direction."""
    problem = draw(CELLS[choice["cell"]], choice["options"], T=7, B=3, I=2, H=3, dtype=choice["dtype"])
    forward, backward = wing.module.recurrence_forward, wing.module.recurrence_backward
    cut = choice["cut"]
    assert cut % wing.module.recurrence_chunk(3) == 0
    x, weights, state, dy, dstate = wing.to((problem.x, problem.weights, problem.state, problem.dy, problem.dstate))
    y, final, saved = forward(problem.cell, x, weights, state, training=True, **wing.to(problem.options))
    whole = (y, final, *backward(saved, dy, dstate))
    parts = []
    for steps in (slice(0, cut), slice(cut, 7)):
        length = len(range(*steps.indices(7)))
        options = {
            "lengths": None if problem.lengths is None else np.clip(problem.lengths - steps.start, 0, length),
            "resets": None if problem.resets is None else problem.resets[steps],
            "mask": problem.mask,
        }
        part, state, saved = forward(problem.cell, x[steps], weights, state, training=True, **wing.to(options))
        parts.append((part, saved))
    dx_after, dweights, dstate = backward(parts[1][1], dy[cut:], dstate)
    dx, dweights, dstate = backward(parts[0][1], dy[:cut], dstate, dweights)
    found = wing.back((parts[0][0], parts[1][0], state, dx, dx_after, dweights, dstate))
    y, final, whole_dx, *others = wing.back(whole)
    assert_bits(found, (y[:cut], y[cut:], final, whole_dx[:cut], whole_dx[cut:], *others))


def problem_of(layer, T, B, lengths, resets, state, seed=0):
    """The arguments of a layer's vjp, and cotangents for its outputs."""
    rng = np.random.default_rng(seed)
    dtype = layer.params["weight_ih_l0"].dtype

    def normal(*shape):
        return rng.standard_normal(shape).astype(dtype)

    pair = isinstance(layer, gpurnn.LSTM)
    lengths = pattern_of_lengths(T, B).astype(lengths) if lengths else None
    resets = pattern_of_resets(T, B) if resets else None
    x, dy = normal(T, B, layer.input_size), normal(T, B, layer.hidden_size)
    if lengths is not None:
        x[np.arange(T)[:, None] >= lengths] = np.nan
    h, c, dh, dc = normal(4, layer.num_layers, B, layer.hidden_size)
    if layer.batch_first:
        x, dy, resets = x.swapaxes(0, 1), dy.swapaxes(0, 1), None if resets is None else resets.T
    initial = ((h, c) if pair else h) if state else None
    return (x, initial, lengths, resets), (dy, (dh, dc) if pair else dh)


def results(layer, arguments, cotangents, rng, **options):
    """Outputs and gradients, those of the second of two pullbacks."""
    outputs, pullback = layer.vjp(*arguments, rng=rng, **options)
    first = pullback(cotangents)
    second = pullback(cotangents)
    assert_bits(second, first)
    return outputs, second


LAYER_CHOICES = pairwise(
    {
        "cell": list(CELLS),
        "num_layers": [1, 2, 3],
        "bias": [True, False],
        "batch_first": [False, True],
        "residual": [False, True],
        "dropout": [0.0, 0.4],
        "variational_dropout": [0.0, 0.4],
        "recurrent_dropout": [0.0, 0.4],
        "state": [True, False],
        "lengths": [None, "int32", "uint64"],
        "resets": [False, True],
        "rng": [None, 3],
        "given": ["both", "dy", "dstate"],
        "state_after": [None, 0, 3, 13],
        "every": [1, 3, 4, "sqrt", 12, 100],
        "T": [13, 12, 1],
        "B": [3, 1],
        "H": [3, 1],
        "dtype": ["float32", "float64"],
    }
)


def check_layer(choice) -> None:
    cell, T, H = CELLS[choice["cell"]], choice["T"], choice["H"]
    own = {name: getattr(cell, name) for name in ("activation", "leak", "reset_after", "update") if hasattr(cell, name)}
    names = ("num_layers", "bias", "batch_first", "residual", "dropout", "variational_dropout", "recurrent_dropout")
    layer = LAYERS[cell.name](3, H, **{name: choice[name] for name in names}, **own, dtype=choice["dtype"], rng=1)
    arguments, (dy, dstate) = problem_of(layer, T, choice["B"], choice["lengths"], choice["resets"], choice["state"])
    cotangents = (dy if choice["given"] != "dstate" else None, dstate if choice["given"] != "dy" else None)
    options = {} if choice["state_after"] is None else {"state_after": min(T, choice["state_after"])}
    plain = results(layer, arguments, cotangents, choice["rng"], **options)
    kept = results(layer, arguments, cotangents, choice["rng"], checkpoint_every=choice["every"], **options)
    assert_bits(kept, plain)


@pytest.mark.usefixtures("short_chunks")
@pytest.mark.parametrize("choice", LAYER_CHOICES, ids=lambda choice: "-".join(map(str, choice.values())))
def test_every_pair_of_options_of_a_layer(choice):
    check_layer(choice)


@pytest.mark.kernels
@pytest.mark.usefixtures("short_chunks")
@pytest.mark.parametrize("choice", LAYER_CHOICES[::4], ids=lambda choice: "-".join(map(str, choice.values())))
def test_options_of_a_layer_in_the_kernels(choice):
    with gpurnn.use("host"):
        check_layer({**choice, "T": min(choice["T"], 7), "num_layers": min(choice["num_layers"], 2)})
