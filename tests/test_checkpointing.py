"""Gradient checkpointing in time gives the plain gradients to the last bit, in less memory."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from allocations import most_bytes
from problems import CELLS, Options, draw, pairwise, pattern_of_lengths, pattern_of_resets
from tolerance import arrays_of, assert_all_close, assert_same, recurrence_terms

import gpurnn
from benchmarks import checkpointing
from gpurnn import kernels, reference
from gpurnn.layers.recurrent import LAYERS

# All combinations of options are drawn, including those without effect.
pytestmark = pytest.mark.filterwarnings("ignore:.* has no effect:UserWarning")

WINGS = {"reference": reference.clock, "native": reference.clock, "host": kernels.recurrence.layer}
"""The modules that set the number of rows in a chunk."""


@pytest.fixture
def wing(recurrent_wing):
    return recurrent_wing


def assert_bits(actual, expected) -> None:
    """Check equality to the last bit, including the sign of a zero."""
    assert_same(actual, expected)
    for a, e in zip(arrays_of(actual), arrays_of(expected), strict=True):
        assert a.tobytes() == e.tobytes()


@pytest.fixture
def short_chunks(monkeypatch):
    """Use chunks of few rows, so that short sequences have several."""
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
    """Check the contract of `recurrence_chunk` between the API and a wing, for the forward direction."""
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


@pytest.mark.parametrize("cell", LAYERS)
def test_a_last_step_alone_has_the_bits_that_it_has_in_the_whole(cell):
    """A single row is multiplied by the weights in another order, and a sum's bits depend on its order."""
    layer, cut = LAYERS[cell](64, 8, rng=1), reference.clock.CHUNK_ROWS
    x = np.random.default_rng(0).normal(size=(cut + 1, 1, 64)).astype(np.float32)
    y, final = layer(x)
    first, state = layer(x[:cut])
    rest, end = layer(x[cut:], state)
    assert_bits((first, rest, end), (y[:cut], y[cut:], final))


def problem_of(layer, T, B, lengths, resets, state, seed=0):
    """The arguments of a layer's vjp, and cotangents for its outputs."""
    rng = np.random.default_rng(seed)
    dtype = layer.params["weight_ih_l0"].dtype

    def normal(*shape):
        return rng.standard_normal(shape).astype(dtype)

    pair = layer.cell.states == 2
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
    """Outputs and gradients; the gradients are those of the second of two pullbacks."""
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
    names = ("num_layers", "bias", "batch_first", "residual", "dropout", "variational_dropout", "recurrent_dropout")
    common = {name: choice[name] for name in (*names, "dtype")}
    layer = LAYERS[cell.name](3, H, **common, **cell.values(), rng=1)
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


@pytest.mark.usefixtures("short_chunks")
def test_layers_one_after_another():
    model = gpurnn.Sequential(
        gpurnn.Embedding(7, 3),
        gpurnn.Dropout(0.3),
        gpurnn.LSTM(3, 4, num_layers=2, dropout=0.3),
        gpurnn.GRU(4, 4, variational_dropout=0.3),
        gpurnn.Dense(4, 5),
    )
    rng = np.random.default_rng(0)
    tokens, lengths = rng.integers(7, size=(13, 3)), pattern_of_lengths(13, 3)
    dy = rng.standard_normal((13, 3, 5)).astype(np.float32)
    for options in ({}, {"state_after": 5}):
        dstate = model.vjp(tokens, **options)[0][1]
        plain = results(model, (tokens, None, lengths), (dy, dstate), 2, **options)
        assert_bits(results(model, (tokens, None, lengths), (dy, dstate), 2, checkpoint_every=4, **options), plain)


@pytest.mark.usefixtures("short_chunks")
def test_the_state_after_some_steps_is_that_of_the_steps_alone():
    layer = gpurnn.LSTM(3, 4, num_layers=2, dropout=0.5, variational_dropout=0.5, dtype="float64")
    (x, state, lengths, resets), (dy, dstate) = problem_of(layer, 8, 3, "int32", True, True)
    whole = layer.vjp(x, state, lengths, resets, 7)[1]((dy, None))
    for n in range(9):
        alone = layer.vjp(x[:n], state, np.minimum(lengths, n), resets[:n], 7)
        (_, handed), pull = layer.vjp(x, state, lengths, resets, 7, state_after=n)
        np.testing.assert_array_equal(handed[0], alone[0][1][0])
        np.testing.assert_array_equal(handed[1], alone[0][1][1])
        # The gradient of this state is that of the steps alone; the steps after it add their own.
        (dx, dstate0), grads = pull((None, dstate))
        (dx_alone, dstate0_alone), grads_alone = alone[1]((None, dstate))
        assert not dx[n:].any()
        assert_all_close(
            (dx[:n], dstate0, grads), (dx_alone, dstate0_alone, grads_alone), recurrence_terms(8, 3, 3, 4, 2)
        )
        assert_all_close(pull((dy, None)), whole, recurrence_terms(8, 3, 3, 4, 2))


REFUSED = [
    ({"checkpoint_every": 0}, ValueError, "GRU: checkpoint_every is 0, expected at least 1"),
    ({"checkpoint_every": 2.0}, TypeError, "GRU: checkpoint_every is 2.0, expected a whole number"),
    ({"checkpoint_every": True}, TypeError, "GRU: checkpoint_every is True, expected a whole number"),
    (
        {"checkpoint_every": "root"},
        ValueError,
        "GRU: checkpoint_every is 'root', expected a number of steps, 'sqrt' or None",
    ),
    ({"state_after": -1}, ValueError, "GRU: state_after is -1, expected at least 0"),
    ({"state_after": 10}, ValueError, "GRU: state_after is 10, expected at most T = 9"),
]


@pytest.mark.parametrize(("options", "error", "message"), REFUSED, ids=lambda value: str(value))
def test_options_out_of_their_range_are_refused(options, error, message):
    with pytest.raises(error, match=f"^{re.escape(message)}"):
        gpurnn.GRU(2, 3).vjp(np.zeros((9, 2, 2), np.float32), **options)


@pytest.mark.parametrize("options", [{"checkpoint_every": 3}, {"state_after": 3}], ids=str)
def test_a_bidirectional_layer_has_no_state_to_keep(options):
    (name,) = options
    message = f"^GRU: {name} is 3, expected None as the layer is bidirectional: no single state"
    with pytest.raises(ValueError, match=message):
        gpurnn.GRU(2, 3, bidirectional=True).vjp(np.zeros((9, 2, 2), np.float32), **options)


@pytest.mark.usefixtures("short_chunks")
@pytest.mark.parametrize("lengths", [[3, -1], [10, 2]], ids=str)
def test_lengths_are_refused_as_without_checkpoints(lengths):
    message = re.escape(f"gru: lengths holds {min(lengths)} ... {max(lengths)}, expected 0 ... T = 9")
    for options in ({}, {"checkpoint_every": 3}, {"state_after": 2}):
        with pytest.raises(ValueError, match=message):
            gpurnn.GRU(2, 3).vjp(np.zeros((9, 2, 2), np.float32), lengths=np.array(lengths), **options)


@pytest.mark.usefixtures("short_chunks")
def test_what_becomes_of_the_parameters_does_not_reach_the_gradients():
    """An optimizer changes them in place."""
    layer = gpurnn.GRU(3, 4, num_layers=2)
    arguments, cotangents = problem_of(layer, 9, 2, None, False, True)
    expected = layer.vjp(*arguments, checkpoint_every=3)[1](cotangents)
    _, pullback = layer.vjp(*arguments, checkpoint_every=3)
    for p in layer.params.values():
        p += 1
    assert_bits(pullback(cotangents), expected)


@pytest.mark.usefixtures("short_chunks", "strict_namespace")
def test_on_arrays_that_are_no_numpy_arrays():
    import strict_wing

    layer = gpurnn.LSTM(3, 4, num_layers=2, dropout=0.5, recurrent_dropout=0.5, residual=True, batch_first=True)
    arguments, cotangents = problem_of(layer, 9, 3, "uint8", True, True)
    moved = layer.to(strict_wing.xp)
    for options in ({"checkpoint_every": 3}, {"state_after": 5}, {"checkpoint_every": "sqrt", "state_after": 0}):
        outputs, pullback = moved.vjp(*strict_wing.strict(arguments), 1, **options)
        found = strict_wing.plain((outputs, pullback(strict_wing.strict(cotangents))))
        outputs, pullback = layer.vjp(*arguments, 1, **options)
        assert_bits(found, (outputs, pullback(cotangents)))


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_chunks_of_one_row(cell, each_wing, monkeypatch):
    """A BLAS treats one row differently from many, so a chunk must be the same whatever it is a part of."""
    monkeypatch.setattr(WINGS[each_wing], "CHUNK_ROWS", 1)
    layer = LAYERS[cell](37, 29)
    arguments, cotangents = problem_of(layer, 5, 1, None, False, True)
    plain = results(layer, arguments, cotangents, None)
    assert_bits(results(layer, arguments, cotangents, None, checkpoint_every=2), plain)


SIZES = [(300, 7, 5, 3), (70, 47, 33, 65), (2100, 1, 17, 40)]
"""T, B, I, H, of several chunks each."""


def bits_at_real_sizes() -> None:
    for (T, B, I, H), dtype in itertools.product(SIZES, ("float32", "float64")):
        for layer in (gpurnn.LSTM(I, H, dtype=dtype), gpurnn.GRU(I, H, 2, dtype=dtype)):
            arguments, cotangents = problem_of(layer, T, B, None, False, True)
            outputs, pullback = layer.vjp(*arguments)
            expected = outputs, pullback(cotangents)
            outputs, pullback = layer.vjp(*arguments, checkpoint_every=1)
            assert_bits((outputs, pullback(cotangents)), expected)


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2])
def test_sizes_at_which_a_blas_changes_its_ways(threads):
    """In a new process, as a BLAS reads its number of threads at the start."""
    limits = {f"{library}_NUM_THREADS": str(threads) for library in ("OMP", "OPENBLAS", "MKL")}
    code = "import test_checkpointing; test_checkpointing.bits_at_real_sizes()"
    folder = Path(__file__).parent
    environment = {**os.environ, **limits, "PYTHONPATH": str(folder)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder.parent, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def peak(T: int, checkpoint_every) -> int:
    """The peak number of bytes, not counting x, y and their gradients."""
    layer = gpurnn.LSTM(2, 8, num_layers=2)
    x, dy = np.zeros((T, 4, 2), np.float32), np.ones((T, 4, 8), np.float32)
    most = most_bytes(lambda: layer.vjp(x, checkpoint_every=checkpoint_every)[1]((dy, None)))
    return most - dy.nbytes - x.nbytes


@pytest.mark.slow
@pytest.mark.usefixtures("short_chunks")
def test_memory_grows_like_the_root_of_the_steps():
    short, long = (peak(T, "sqrt") for T in (144, 2304))
    assert long < 4 * short
    assert peak(576, None) > 3.5 * peak(144, None)
    assert long < peak(2304, None) / 8


@pytest.mark.slow
def test_the_benchmark_finds_what_the_model_says():
    header, _, _, _, plain, root = checkpointing.report(lengths=(3000,), every=("sqrt", "4096"), hidden=16)
    assert "2 LSTM layers" in header
    (memory,) = (float(entry) for entry in plain.split("|")[4:5])
    steps, held, model = (float(entry) for entry in root.split("|")[3:6])
    assert steps == 256
    assert model < held < 3 * model < memory / 2
