"""Layers of a stack that run at once give the bits of one layer after another, in every order."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from gpurnn.kernels import devices, dtypes, host, streams
from gpurnn.kernels.recurrence import layer as kernel_layer
from gpurnn.kernels.recurrence import plan, stack
from gpurnn.kernels.recurrence.plan import Problem
from gpurnn.kernels.recurrence.stack import Decision
from tolerance import assert_same

import gpurnn
from gpurnn import cells

T, B, I, H, CHUNK = 8, 3, 4, 5, 3


def decided(monkeypatch, layers, back):
    """Have this many layers of a stack run at once, whatever is predicted. With fewer than two they run in sequence."""

    both = tuple(Decision(n, CHUNK, 0.0, 0.0) for n in (layers, back)) if layers > 1 else None
    monkeypatch.setattr(stack, "_decide", lambda *_: both)
    monkeypatch.setattr(kernel_layer, "CHUNK_ROWS", CHUNK * B)  # products have a chunk's rows either way


@pytest.fixture
def at_once(monkeypatch):
    """Records how many recurrences ran at once, each time."""
    counts, run = [], streams._run_at_once
    monkeypatch.setattr(streams, "_run_at_once", lambda works, like: (counts.append(len(works)), run(works, like)))
    return counts


def results(wing, layer, schedule="persistent", seed=0, **options):
    """Outputs and gradients of all parameters, inputs and states, in training."""
    rng = np.random.default_rng(3)
    x = rng.standard_normal((T, B, I)).astype("float32")
    widths = layer.cell.state_sizes(H)
    h, *c = (rng.standard_normal((layer.num_layers, B, width)).astype("float32") for width in widths)
    x, state = wing.to((x, (h, *c) if c else h))
    given = wing.to({
        "lengths": np.array([T, 0, 5]), "resets": rng.random((T, B)) < 0.2, "mask": rng.random((T, B)) < 0.8
    })  # fmt: skip
    dy = wing.to(rng.standard_normal((T, B, widths[0])).astype("float32"))
    with plan.schedule(schedule), host.execution(seed=seed):
        (y, final), pullback = layer.vjp(x, state, rng=5, **given, **options)
        return wing.back((y, final, pullback((dy, final))))


LAYERS = {
    "lstm": (2, "persistent", lambda: gpurnn.LSTM(
        I, H, 3, dropout=0.3, residual=True, variational_dropout=0.3, recurrent_dropout=0.3, zoneout=(0.1, 0.1), rng=1
    )),
    "gru": (3, "scatter", lambda: gpurnn.GRU(I, H, 3, reset_after=True, reverse=True, zero_masked_output=True, rng=1)),
    "lstm with layer norm and a projection": (2, "persistent", lambda: gpurnn.LSTM(
        I, H, 3, layer_norm=True, proj_size=3, dropout=0.3, variational_dropout=0.3, zoneout=(0.1, 0.1), rng=1
    )),
    "gru with layer norm": (3, "block", lambda: gpurnn.GRU(I, H, 3, layer_norm=True, reverse=True, rng=1)),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYERS)
def test_the_bits_of_one_layer_after_another(name, monkeypatch, at_once, kernel_wing):
    """Half or a third of the device has the same plan here as the whole. The third layer runs alone, after two."""
    layers, schedule, make = LAYERS[name]
    layer = make().to("cuda") if kernel_wing.name == "cuda" else make()
    chunks = -(-T // CHUNK)
    wave = [min(k, layers, chunks, chunks + layers - k) for k in range(1, chunks + layers)]
    alone = [1] * chunks if layers == 2 else []
    with gpurnn.use(kernel_wing.name):
        decided(monkeypatch, 1, 1)
        expected = results(kernel_wing, layer, schedule)
        assert not at_once
        decided(monkeypatch, layers, layers)
        assert_same(results(kernel_wing, layer, schedule, seed=1), expected)
        assert at_once == wave + alone + alone + wave
        at_once.clear()
        decided(monkeypatch, layers, 1)
        assert_same(results(kernel_wing, layer, schedule, seed=0, checkpoint_every=2 * CHUNK), expected)
        assert 2 in at_once
        assert at_once[-3 * 2 :] == [1] * 3 * 2  # backward, through the first two chunks


@pytest.mark.parametrize("fails", ["block", "work", "nothing"])
def test_after_a_failure_nothing_is_computed_from_it(fails):
    order = []

    def computes():
        with streams.side_by_side(np.zeros(1)):
            streams.beside(lambda: 1 / (fails != "work") and order.append("work"))
            streams.afterwards(lambda: order.append("after"))
            streams.afterwards(lambda: order.append("always"), always=True)
            assert not order
            1 / (fails != "block")

    if fails == "nothing":
        computes()
        assert order == ["work", "after", "always"]
        return
    with pytest.raises(ZeroDivisionError):
        computes()
    assert order == ["always"]
    assert not streams.is_beside()


FLOAT, H100 = dtypes.TABLE["float32"], devices.lookup("H100")
SMALL = Problem(cells.LSTM(), 512, 16, 256, 1, FLOAT)


@pytest.mark.parametrize(
    ("cell", "chunk", "operations"), [(cells.LSTM(), 128, 18), (cells.LSTM(layer_norm=True, proj_size=64), 86, 33)]
)
def test_layers_run_at_once_where_that_is_predicted_to_take_less_time(cell, chunk, operations):
    """The prediction uses the time of a step on half of the device: four chunks of two layers take five turns."""
    forwards = replace(SMALL, cell=cell)
    forward, backward = stack.decide(forwards, 2, H100)
    assert (forward.layers, backward.layers, forward.chunk, backward.chunk) == (2, 2, chunk, chunk)
    turns = -(-512 // chunk) + 1
    for of_pass, problem in ((forward, forwards), (backward, replace(forwards, backward=True))):
        half = plan.share_of(H100, 2)
        alone, beside = (plan.predicted(plan.choose(problem, d), problem, d).seconds for d in (H100, half))
        host = 2 * operations * 9e-6 * problem.backward
        assert of_pass.one_by_one == pytest.approx(2 * 512 * alone, rel=0.01)
        assert of_pass.seconds == pytest.approx(turns * max(chunk * beside, host), rel=0.2)
        assert of_pass.seconds < 0.9 * of_pass.one_by_one
        with plan.shared(2, 2):
            chosen = plan.choose(replace(problem, T=3), H100)
        assert 2 * math.prod(chosen.launch.grid) <= H100.multiprocessors


@pytest.mark.parametrize(
    ("layers", "changes"),
    [
        (1, {}),
        (2, {"D": 2}),  # each layer needs the end of the one below
        (2, {"T": 60}),  # the host would take longer for the launches
        (2, {"B": 64, "H": 512}),  # each layer keeps the whole device busy
        (2, {"H": 4096}),  # the weights do not fit
        (2, {"cell": cells.MinGRU()}),
    ],
)
def test_otherwise_one_layer_runs_after_another(layers, changes):
    assert stack.decide(replace(SMALL, **changes), layers, H100) is None


def test_explain_says_that_layers_run_at_once():
    found = gpurnn.explain(gpurnn.LSTM(256, 256, 2), (512, 16, 256))
    forward, backward = stack.decide(SMALL, 2, H100)
    for explained, decision in ((found, forward), (found.backward, backward)):
        assert (explained.layers_at_once, explained.chunk, explained.launches) == (2, 128, 4)
        assert explained.microseconds_in_chunks == pytest.approx(1e6 * decision.seconds)
        assert 2 * math.prod(explained.grid) <= H100.multiprocessors
    assert "2 layers at once, in chunks of 128 steps: predicted 1,4" in str(found)
    assert gpurnn.explain(gpurnn.LSTM(256, 256), (512, 16, 256)).layers_at_once == 1
