"""Single steps, of the functions and of the layers, compared with whole sequences."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from problems import CELLS, KINDS
from tolerance import assert_all_close, assert_same, check_gradients, recurrence_terms

import gpurnn
from gpurnn.layers.recurrent import LAYERS

SIZES = [(5, 1, 3, 4), (4, 3, 65, 33), (3, 32, 20, 17), (6, 1, 64, 64)]

each_wing = pytest.mark.parametrize(
    "each_wing",
    ["reference", "native", pytest.param("host", marks=pytest.mark.kernels)],
    indirect=True,
)


def arguments(cell, B: int, I: int, H: int, dtype: str):
    """The weights and the options of a cell by name, and a state."""
    rng = np.random.default_rng(0)
    weights = {
        n: (0.3 * rng.standard_normal(s)).astype(dtype) for n, s in cell.shapes(input_size=I, hidden_size=H).items()
    }
    state = tuple(rng.standard_normal((B, H)).astype(dtype) for _ in range(cell.states))
    options = cell.values(cell.function_options())
    return {**weights, **options}, state if cell.states > 1 else state[0]


def arrays_of(state) -> tuple[np.ndarray, ...]:
    return state if isinstance(state, tuple) else (state,)


def assert_as_the_sequence(wing: str, found, expected, terms: int, *, rounded: bool = False) -> None:
    """Equal to the last bit on NumPy arrays. On kernels, or if ``rounded``, products of single steps may differ."""
    if wing == "host" or rounded:
        assert_all_close(found, expected, terms)
    else:
        assert_same(found, expected)


@pytest.mark.parametrize(
    ("each_wing", "name", "dtype"),
    [
        *(("reference", name, dtype) for name in CELLS for dtype in ("float32", "float64")),
        *(("native", name, dtype) for name in KINDS for dtype in ("float32", "float64")),
        *(pytest.param("host", name, "float32", marks=pytest.mark.kernels) for name in KINDS),
    ],
    indirect=["each_wing"],
)
@pytest.mark.parametrize(("T", "B", "I", "H"), SIZES)
def test_steps_of_a_cell_are_those_of_its_sequence(T, B, I, H, name, dtype, each_wing):
    cell = CELLS[name]
    given, state = arguments(cell, B, I, H, dtype)
    x = np.random.default_rng(1).standard_normal((T, B, I)).astype(dtype)
    y, final = getattr(gpurnn, cell.name)(x, **given, state=state)
    step, ys = getattr(gpurnn, f"{cell.name}_cell"), []
    for x_t in x:
        before = [s.copy() for s in arrays_of(state)]
        after = step(x_t, **given, state=state)
        assert_same(arrays_of(state), before)
        state = after
        ys.append(arrays_of(state)[0])
    assert_as_the_sequence(
        each_wing, (np.stack(ys), *arrays_of(state)), (y, *arrays_of(final)), recurrence_terms(T, B, I, H)
    )


@each_wing
@pytest.mark.parametrize("options", [{}, {"num_layers": 3, "residual": True, "batch_first": True, "bias": False}])
@pytest.mark.parametrize("kind", LAYERS.values(), ids=LAYERS)
def test_steps_of_a_layer_are_those_of_its_sequence(kind, options, each_wing):
    layer = kind(5, 5, **options)
    stream = np.random.default_rng(1).standard_normal((6, 2, 5)).astype("float32")
    ys, state = [], None
    for x_t in stream:
        y, state = layer.step(x_t, state)
        ys.append(y)
    y, final = layer(stream.swapaxes(0, 1).copy() if layer.batch_first else stream)
    found = np.stack(ys, axis=1 if layer.batch_first else 0), *arrays_of(state)
    assert_as_the_sequence(
        each_wing, found, (y, *arrays_of(final)), recurrence_terms(6, 2, 5, 5, layer.num_layers),
        rounded=layer.cell.elementwise,
    )  # fmt: skip


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", KINDS)
def test_gradients_of_a_step(name, masked, each_wing):
    cell, B, I, H = CELLS[name], 2, 3, 4
    given, state = arguments(cell, B, I, H, "float64")
    options = {n: given.pop(n) for n in cell.function_options()}
    if masked:
        options["dropout_h"] = np.random.default_rng(2).integers(0, 2, (B, H)) * 1.5
    rng, step = np.random.default_rng(3), getattr(gpurnn, f"{cell.name}_cell")
    states = {f"state{i}": s for i, s in enumerate(arrays_of(state))}
    inputs = {"x": rng.standard_normal((B, I)), **given, **states}
    cotangents = [rng.standard_normal((B, H)) for _ in states]

    def of(inputs):
        packed = tuple(inputs[n] for n in states)
        weights = {n: inputs[n] for n in given}
        return inputs["x"], {**weights, **options, "state": packed if len(packed) > 1 else packed[0]}

    def outputs(inputs):
        x, keywords = of(inputs)
        return list(arrays_of(step(x, **keywords)))

    x, keywords = of(inputs)
    new, pullback = step.vjp(x, **keywords)
    assert_same(arrays_of(new), tuple(outputs(inputs)))
    (dx, dstate), gradients = pullback(tuple(cotangents) if len(cotangents) > 1 else cotangents[0])
    found = {"x": dx, **gradients, **dict(zip(states, arrays_of(dstate), strict=True))}
    check_gradients(outputs, inputs, cotangents, found, seed=4)
    again = pullback(tuple(cotangents) if len(cotangents) > 1 else cotangents[0])
    assert_same(again, ((dx, dstate), gradients))


@pytest.mark.parametrize("each_wing", ["reference", "native"], indirect=True)
@pytest.mark.parametrize("kind", LAYERS.values(), ids=LAYERS)
def test_a_step_allocates_its_results_and_little_else(kind, each_wing):
    """The weights are more than a hundred times as large; copies of them use the pool's memory."""
    layer, x, state = kind(384, 384), np.ones((1, 384), "float32"), None
    for _ in range(3):
        _, state = layer.step(x, state)
    tracemalloc.start()
    try:
        _, state = layer.step(x, state)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    weights = layer.params["weight_ih_l0"].nbytes
    assert peak < weights / 5
    assert peak < 2**17


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gpurnn.LSTM(3, 4, bidirectional=True).step(np.ones((2, 3), "f4")), "LSTM.step: the layer is bidirec"),
        (
            lambda: gpurnn.GRU(3, 4).step(np.ones((1, 2, 3), "f4")),
            r"GRU.step: x has shape \(1, 2, 3\), expected 2 ax",
        ),
        (lambda: gpurnn.GRU(3, 4).step([1.0]), "GRU.step: x is a list, expected a numpy.ndarray"),
        (lambda: gpurnn.GRU(3, 4).step(np.ones((2, 2), "f4")), r"GRU.step: x has shape .*, expected input_size = 3"),
        (
            lambda: gpurnn.RNN(3, 4).step(np.ones((2, 3), "f4"), np.ones((2, 4), "f4")),
            r"RNN.step: state has shape \(2, 4\), expected \(num_layers, B, hidden_size\) = \(1, 2, 4\)",
        ),
        (
            lambda: gpurnn.lstm_cell(np.ones((2, 3, 1)), np.ones((4, 1)), np.ones((4, 1))),
            r"lstm_cell: x has shape \(2, 3, 1\), expected 2 axes \(B, input_size\)",
        ),
        (
            lambda: gpurnn.gru_cell(np.ones((2, 1)), np.ones((3, 1)), np.ones((3, 1)), state=np.ones((1, 1))),
            r"gru_cell: state has shape \(1, 1\), expected \(B, hidden_size\) = \(2, 1\)",
        ),
        (lambda: gpurnn.rnn_cell(None, np.ones((1, 1)), np.ones((1, 1))), "rnn_cell: x is None, expected an array"),
    ],
)
def test_what_does_not_fit_is_rejected_by_name(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call()
