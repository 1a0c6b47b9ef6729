"""Every gradient of every recurrence against central differences in float64, for all combinations of options."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from problems import CELLS, Options, draw
from tolerance import assert_close, check_gradients, recurrence_terms

from gpurnn import reference

WEIGHTS = ("w_ih", "w_hh", "b_ih", "b_hh")


def inputs_of(problem) -> dict[str, np.ndarray]:
    inputs = {"x": problem.x, **{f"state[{k}]": s for k, s in enumerate(problem.state)}}
    for d, weights in enumerate(problem.weights):
        inputs |= {f"{name}[{d}]": w for name, w in zip(WEIGHTS, weights, strict=True) if w is not None}
    return inputs


def check(problem, seed: int) -> None:
    def run(inputs, training=False):
        return reference.recurrence_forward(
            problem.cell,
            inputs["x"],
            tuple(tuple(inputs.get(f"{name}[{d}]") for name in WEIGHTS) for d in range(len(problem.weights))),
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
        found |= {f"{name}[{d}]": g for name, g in zip(WEIGHTS, gradients, strict=True)}
    check_gradients(outputs, inputs, [problem.dy, *problem.dstate], {name: found[name] for name in inputs}, seed)


COMBINATIONS = [Options(*on) for on in itertools.product((False, True), repeat=6)]


@pytest.mark.parametrize("options", COMBINATIONS, ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_gradients_of_every_combination_of_options(cell, options):
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


@pytest.mark.parametrize("options", [Options(), Options(True, True, True, True, True, True)], ids=["plain", "all"])
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
    for a, e in zip(_flat(actual), _flat(expected), strict=True):
        np.testing.assert_array_equal(a, e)
    if absent == "both":
        assert not any(a.any() for a in _flat(actual))


@pytest.mark.parametrize("options", [Options(), Options(True, True, True, True, True, True)], ids=["plain", "all"])
@pytest.mark.parametrize("cell", CELLS)
def test_float32_gradients_are_those_of_float64(cell, options):
    exact = draw(CELLS[cell], options, T=6, B=4, I=3, H=5)
    coarse = draw(CELLS[cell], options, T=6, B=4, I=3, H=5, dtype="float32")
    results = []
    for problem in (exact, coarse):
        y, state, saved = reference.recurrence_forward(
            problem.cell, problem.x, problem.weights, problem.state, training=True, **problem.options
        )
        results.append(_flat((y, state, reference.recurrence_backward(saved, problem.dy, problem.dstate))))
    for k, (expected, actual) in enumerate(zip(*results, strict=True)):
        assert actual.dtype == np.float32
        assert_close(actual, expected.astype(np.float32), recurrence_terms(6, 4, 3, 5), f"array {k}")


def _flat(nested) -> list[np.ndarray]:
    return [nested] if isinstance(nested, np.ndarray) else [a for entry in nested for a in _flat(entry)]
