"""Every gradient of every recurrence against central differences in float64, for all combinations of options."""

from __future__ import annotations

import dataclasses
import inspect
import itertools

import numpy as np
import pytest
from problems import ALL, CELLS, Options, draw, pairwise, pattern_of_holes, pattern_of_lengths, pattern_of_resets
from tolerance import Kink, arrays_of, assert_close, check_gradients, recurrence_terms

import gpurnn
from gpurnn import reference
from gpurnn.layers.recurrent import LAYERS

# All combinations of options are drawn, including those without effect.
pytestmark = pytest.mark.filterwarnings("ignore:.* has no effect:UserWarning")


def inputs_of(problem) -> dict[str, np.ndarray]:
    inputs = {"x": problem.x, **{f"state[{k}]": s for k, s in enumerate(problem.state)}}
    for d, weights in enumerate(problem.weights):
        inputs |= {f"{name}[{d}]": w for name, w in weights.items()}
    return inputs


def check(problem, seed: int) -> None:
    def run(inputs, training=False):
        return reference.recurrence_forward(
            problem.cell,
            inputs["x"],
            tuple({name: inputs[f"{name}[{d}]"] for name in weights} for d, weights in enumerate(problem.weights)),
            tuple(inputs[f"state[{k}]"] for k in range(len(problem.state))),
            training=training,
            **problem.options,
        )

    def outputs(inputs):
        y, state, _ = run(inputs)
        return [y, *state]

    inputs = inputs_of(problem)
    dx, dweights, dstate = reference.recurrence_backward(run(inputs, training=True)[2], problem.dy, problem.dstate)
    found = {"x": dx, **{f"state[{k}]": s for k, s in enumerate(dstate)}}
    for d, gradients in enumerate(dweights):
        found |= {f"{name}[{d}]": g for name, g in gradients.items()}
    check_gradients(outputs, inputs, [problem.dy, *problem.dstate], {name: found[name] for name in inputs}, seed)


PAIRS = [Options(**on) for on in pairwise({field.name: [False, True] for field in dataclasses.fields(Options)})]
COMBINATIONS = [Options(*on) for on in itertools.product((False, True), repeat=8)]


@pytest.mark.parametrize("options", PAIRS, ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_gradients_of_every_pair_of_options(cell, options):
    check(draw(CELLS[cell], options), seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("cell", CELLS)
def test_gradients_of_every_combination_of_options(cell):
    for options in COMBINATIONS:
        check(draw(CELLS[cell], options), seed=1)


SIZES = [
    {"T": 1},
    {"B": 1},
    {"I": 1},
    {"H": 1},
    {"T": 1, "B": 1},
    {"B": 1, "H": 1},
    {"T": 1, "B": 1, "I": 1, "H": 1},
    {"T": 7, "B": 5, "I": 6, "H": 5},
]


@pytest.mark.parametrize("options", [Options(), ALL], ids=["plain", "all"])
@pytest.mark.parametrize("sizes", SIZES, ids=lambda sizes: "-".join(f"{k}{v}" for k, v in sizes.items()))
@pytest.mark.parametrize("cell", CELLS)
def test_gradients_of_awkward_sizes(cell, sizes, options):
    check(draw(CELLS[cell], options, **sizes), seed=2)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("absent", ["dy", "dstate", "dstate[0]", "both"])
def test_an_absent_cotangent_is_zero(cell, absent):
    problem = draw(CELLS[cell], Options(lengths=True, bidirectional=True))
    saved = reference.recurrence_forward(
        problem.cell, problem.x, problem.weights, problem.state, training=True, **problem.options
    )[2]
    dy, dstate = problem.dy, problem.dstate
    if absent in ("dy", "both"):
        given, full = (None, dstate), (np.zeros_like(dy), dstate)
    else:
        given, full = (dy, dstate), (dy, dstate)
    if absent in ("dstate", "both"):
        given = (given[0], (None,) * len(dstate))
        full = (full[0], tuple(map(np.zeros_like, dstate)))
    if absent == "dstate[0]":
        given = (dy, (None, *dstate[1:]))
        full = (dy, (np.zeros_like(dstate[0]), *dstate[1:]))
    actual, expected = reference.recurrence_backward(saved, *given), reference.recurrence_backward(saved, *full)
    for a, e in zip(arrays_of(actual), arrays_of(expected), strict=True):
        np.testing.assert_array_equal(a, e)
    if absent == "both":
        assert not any(a.any() for a in arrays_of(actual))


@pytest.mark.parametrize("options", [Options(), ALL], ids=["plain", "all"])
@pytest.mark.parametrize("cell", CELLS)
def test_float32_gradients_are_those_of_float64(cell, options):
    exact = draw(CELLS[cell], options, T=6, B=4, I=3, H=5)
    coarse = draw(CELLS[cell], options, T=6, B=4, I=3, H=5, dtype="float32")
    results = []
    for problem in (exact, coarse):
        y, state, saved = reference.recurrence_forward(
            problem.cell, problem.x, problem.weights, problem.state, training=True, **problem.options
        )
        results.append(arrays_of((y, state, reference.recurrence_backward(saved, problem.dy, problem.dstate))))
    for k, (expected, actual) in enumerate(zip(*results, strict=True)):
        assert actual.dtype == np.float32
        assert_close(actual, expected.astype(np.float32), recurrence_terms(6, 4, 3, 5), f"array {k}")


FUNCTIONAL = pairwise(
    {
        "cell": list(CELLS),
        "bias_ih": [True, False],
        "bias_hh": [True, False],
        "state": ["absent", "given", "partly"],
        "lengths": [None, "int32", "uint8"],
        "resets": [False, True],
        "mask": [False, True],
        "holes": [None, "repeat", "zero"],
        "reverse": [False, True],
        "T": [4, 1],
        "B": [3, 1],
        "I": [2, 1],
        "H": [3, 1],
    }
)


@pytest.mark.parametrize("choice", FUNCTIONAL, ids=lambda choice: "-".join(map(str, choice.values())))
def test_functional_gradients_of_every_pair_of_options(choice):
    cell = CELLS[choice["cell"]]
    holes = choice["holes"] is not None
    options = Options(True, True, choice["lengths"] is not None, choice["resets"], choice["mask"], holes=holes)
    problem = draw(cell, options, *(choice[size] for size in "TBIH"))
    names = list(cell.parameters)
    inputs = {"x": problem.x, **problem.weights[0]}
    inputs = {name: value for name, value in inputs.items() if choice.get(name, True)}
    inputs |= {f"state[{k}]": s[0] for k, s in enumerate(problem.state)}
    given_states = {"absent": 0, "given": cell.states, "partly": 1}[choice["state"]]
    for k in range(given_states, cell.states):
        del inputs[f"state[{k}]"]
    pair = cell.states == 2
    keywords = {
        "lengths": problem.lengths if problem.lengths is None else problem.lengths.astype(choice["lengths"]),
        "resets": problem.resets,
        "dropout_h": None if problem.mask is None else problem.mask[0],
        "mask": problem.exists,
        "zero_masked_output": choice["holes"] == "zero",
        "reverse": choice["reverse"],
    }
    function = getattr(gpurnn, cell.name)
    keywords |= cell.values(cell.function_options())

    def call(op, arrays):
        state = [arrays.get(f"state[{k}]") for k in range(cell.states)]
        if choice["state"] != "absent":
            keywords["state"] = tuple(state) if pair else state[0]
        return op(arrays["x"], **{name: arrays[name] for name in names if name in arrays}, **keywords)

    def outputs(arrays):
        y, state = call(function, arrays)
        return [y, *state] if pair else [y, state]

    _, pullback = call(function.vjp, inputs)
    dstate = tuple(s[0] for s in problem.dstate)
    (dx, dstate0), gradients = pullback((problem.dy, dstate if pair else dstate[0]))
    assert gradients.keys() == {name for name in names if name in inputs}
    found = {"x": dx, **gradients}
    found |= {f"state[{k}]": s for k, s in enumerate(dstate0 if pair else (dstate0,))}
    assert len(dstate0 if pair else (dstate0,)) == cell.states
    check_gradients(outputs, inputs, [problem.dy, *dstate], {name: found[name] for name in inputs}, seed=3)


LAYER_CHOICES = pairwise(
    {
        "cell": list(CELLS),
        "num_layers": [1, 2, 3],
        "bias": [True, False],
        "batch_first": [False, True],
        "dropout": [0.0, 0.4],
        "direction": ["forward", "reverse", "concat", "sum", "mul", "average"],
        "residual": [False, True],
        "variational_dropout": [0.0, 0.4],
        "recurrent_dropout": [0.0, 0.4],
        "state": [False, True],
        "lengths": [False, True],
        "resets": [False, True],
        "holes": [None, "repeat", "zero"],
        "T": [4, 1],
        "B": [3, 1],
        "I": ["H", 2],
        "H": [3, 1],
    }
)


@pytest.mark.parametrize("choice", LAYER_CHOICES, ids=lambda choice: "-".join(map(str, choice.values())))
def test_layer_gradients_of_every_pair_of_options(choice):
    """With ``rng`` the masks are the same in every call, so dropout is differentiated like any other function."""
    smooth = "relu" not in choice["cell"]
    for seed in range(1 if smooth else 50):
        try:
            check_layer(choice, seed, smooth)
        except Kink:
            continue
        return
    raise AssertionError("no inputs without a kink nearby")


def check_layer(choice, seed: int, smooth: bool) -> None:
    rng = np.random.default_rng(seed)
    cell, T, B, H = CELLS[choice["cell"]], choice["T"], choice["B"], choice["H"]
    I = H if choice["I"] == "H" else choice["I"]
    layer = LAYERS[cell.name](
        I,
        H,
        **{
            name: choice[name]
            for name in choice
            if name in inspect.signature(LAYERS[cell.name]).parameters and name not in cell.options()
        },
        **(
            {"reverse": choice["direction"] == "reverse"}
            if choice["direction"] in ("forward", "reverse")
            else {"bidirectional": True, "merge": choice["direction"]}
        ),
        zero_masked_output=choice["holes"] == "zero",
        **cell.values(),
        dtype="float64",
    )
    D, pair = layer.num_directions, cell.states == 2
    lengths = pattern_of_lengths(T, B) if choice["lengths"] else None
    resets = pattern_of_resets(T, B) if choice["resets"] else None
    mask = pattern_of_holes(T, B) if choice["holes"] else None
    x = rng.standard_normal((T, B, I))
    if lengths is not None:
        x[np.arange(T)[:, None] >= lengths] = np.nan
    if mask is not None:
        x[~mask] = np.nan
    if choice["batch_first"]:
        x, resets, mask = (None if a is None else a.swapaxes(0, 1) for a in (x, resets, mask))
    inputs = {"x": x, **{name: 0.6 * rng.standard_normal(p.shape) for name, p in layer.params.items()}}
    if choice["state"]:
        inputs |= {f"state[{k}]": rng.standard_normal((choice["num_layers"] * D, B, H)) for k in range(cell.states)}

    def call(arrays):
        layer.params = {name: arrays[name] for name in layer.params}
        state = tuple(arrays[f"state[{k}]"] for k in range(cell.states)) if choice["state"] else None
        arguments = (arrays["x"], state if pair or state is None else state[0], lengths, resets)
        (y, final), pullback = layer.vjp(*arguments, rng=5, mask=mask)
        return [y, *final] if pair else [y, final], pullback

    results, pullback = call(inputs)
    cotangents = [rng.standard_normal(a.shape) for a in results]
    (dx, dstate), gradients = pullback((cotangents[0], tuple(cotangents[1:]) if pair else cotangents[1]))
    assert list(gradients) == list(layer.params)
    found = {"x": dx, **gradients, **{f"state[{k}]": s for k, s in enumerate(dstate if pair else (dstate,))}}
    check_gradients(
        lambda arrays: call(arrays)[0], inputs, cotangents, {name: found[name] for name in inputs}, seed, smooth
    )
