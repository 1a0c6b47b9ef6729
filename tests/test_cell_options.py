"""The options of the cells: gradients, agreement of the wings, golden cases, and rejected values."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest
from compiled_together import compiled_together
from gpurnn.kernels import devices, host, native
from gpurnn.kernels.compiler import CompilerError
from gpurnn.kernels.recurrence import plan
from problems import ALL, OPTIONED, SCHEDULES, Options, draw, pairwise, unrolled_backward, unrolled_forward
from test_kernel_recurrence import run
from test_native_recurrence import ELEMENTARY
from test_recurrence_gradients import check
from tolerance import assert_all_close, assert_same, recurrence_terms

import gpurnn
from gpurnn import kernels, reference
from gpurnn.cells import GRU, LSTM, Cell, Vanilla

SMOOTH = ["tanh", "sigmoid", "identity", ("affine", 0.7, 0.2), ("scaled_tanh", 1.1, 0.8), "softplus"]
"""Activations without kinks. Central differences are meaningless at the kinks of the others."""
GATES = ["sigmoid", "tanh", ("affine", 0.3, 0.2), ("scaled_tanh", 1.1, 0.8)]
"""With larger gates the states grow from step to step, and so do the errors of differences."""


def choices(**options: list) -> list[dict]:
    return pairwise(options)


LSTMS = choices(
    activation=SMOOTH, gate_activation=GATES, output_activation=SMOOTH, clip=[None, 50.0], cell_clip=[None, 50.0],
    peephole=[False, True], coupled=[False, True], zoneout=[(0.0, 0.0), (0.3, 0.0), (0.0, 0.2)],
    layer_norm=[False, True], proj_size=[0, 2],
    step_masks=[(), ("dropout_g",), ("zoneout_h",), ("dropout_g", "zoneout_h", "zoneout_c")],
)  # fmt: skip
GRUS = choices(
    reset_after=[False, True], update=["candidate", "state"], activation=SMOOTH, gate_activation=GATES,
    clip=[None, 50.0], zoneout=[0.0, 0.3], layer_norm=[False, True], step_masks=[(), ("zoneout_h",)],
)  # fmt: skip
VANILLAS = choices(
    activation=SMOOTH,
    leak=[0.0, 0.3],
    clip=[None, 50.0],
    zoneout=[0.0, 0.3],
    layer_norm=[False, True],
    step_masks=[(), ("zoneout_h",)],
)
PAIRS: list[Cell] = [
    kind(**options) for kind, all_of in ((LSTM, LSTMS), (GRU, GRUS), (Vanilla, VANILLAS)) for options in all_of
]


@pytest.mark.parametrize(
    "cell",
    PAIRS,
    ids=lambda cell: cell.kernel_type("T") + "-norm" * cell.layer_norm + "-projection" * cell.sums_over_units,
)
def test_gradients_of_every_pair_of_a_cells_options(cell):
    # Where a reset makes W_hh h zero, a layer norm changes within 0.003, less than the step of the differences.
    check(draw(cell, Options(lengths=True, mask=True), T=2, H=8) if cell.layer_norm else draw(cell, ALL), seed=3)


@pytest.mark.slow
@pytest.mark.kernels
@pytest.mark.parametrize("kind", [LSTM, GRU, Vanilla], ids=lambda kind: kind.name)
def test_the_kernels_agree_with_the_definition_for_every_pair_of_a_cells_options(kind):
    problems = [draw(cell, ALL, B=2, H=6, dtype="float32") for cell in PAIRS if isinstance(cell, kind)]

    def launches() -> None:
        for problem in problems:
            run(kernels, problem)

    with compiled_together(launches):
        for problem in problems:
            assert_all_close(run(kernels, problem), run(reference, problem), recurrence_terms(4, 2, 2, 6))


# Inputs for which no argument comes near a kink: the gradients of both sides then appear.
KINKS = ["relu", ("leaky_relu", 0.2), ("thresholded_relu", 0.1), ("hard_sigmoid", 0.3, 0.4), ("elu", 0.7), "softsign"]


@pytest.mark.parametrize("clip", [None, 0.6])
@pytest.mark.parametrize("activation", KINKS, ids=str)
def test_gradients_beside_the_kinks_of_an_activation(activation, clip):
    from gpurnn.reference.cells.activations import activate

    kinks = {"relu": [0.0], "leaky_relu": [0.0], "thresholded_relu": [0.1], "hard_sigmoid": [-4 / 3, 2.0], "elu": [0.0]}
    name = activation if isinstance(activation, str) else activation[0]
    a = np.linspace(-3, 3, 301)
    bounds = [] if clip is None else [-clip, clip]
    for kink in [*kinks.get(name, [0.0]), *bounds]:
        a = a[np.abs(a - kink) > 1e-3]
    slope = np.empty_like(a)
    value = activate(activation, a.copy(), slope, clip)
    step = 1e-5
    numeric = (activate(activation, a + step, None, clip) - activate(activation, a - step, None, clip)) / (2 * step)
    np.testing.assert_allclose(slope, numeric, atol=1e-9)
    assert np.isfinite(value).all()


@pytest.mark.parametrize("cell", OPTIONED)
def test_a_sequence_is_its_steps(cell):
    # A layer norm amplifies the rounding of a product that is zero.
    options = Options(lengths=True, bidirectional=True) if OPTIONED[cell].sums_over_units else ALL
    problem = draw(OPTIONED[cell], options, T=5, B=4, H=6)
    y, final, saved = reference.recurrence_forward(
        problem.cell, problem.x, problem.weights, problem.state, training=True, **problem.options
    )
    y_steps, final_steps, kept = unrolled_forward(problem)
    terms = recurrence_terms(5, 4, 2, 6)
    assert_all_close((y, final), (y_steps, final_steps), terms)
    assert_all_close(
        reference.recurrence_backward(saved, problem.dy, problem.dstate), unrolled_backward(problem, kept), terms
    )


@pytest.fixture(params=["step-fused", "block", "persistent", "stepwise"])
def schedule(request, monkeypatch):
    """Each schedule in turn, on a device so small that blocks have several units and persistent ones several groups."""
    device = dataclasses.replace(devices.lookup("H100"), multiprocessors=5)
    monkeypatch.setattr(plan, "device_of", lambda array: device)
    with plan.schedule(request.param):
        yield request.param


QUICK = ["rnn-clip", "lstm-all", "gru-zoneout-mask"]
QUICKLY = list(zip(QUICK, ("stepwise", "block", "block"), strict=True))
"""Slow tests cover the others, each with its own compilation."""
COMPILED = [name for name, cell in OPTIONED.items() if not cell.sums_over_units]
SCHEDULED = pairwise({"cell": COMPILED, "schedule": list(SCHEDULES), "dtype": ["float64", "float32"]})


@pytest.mark.parametrize(
    ("cell", "schedule", "dtype"),
    [
        pytest.param(*pair.values(), marks=() if (pair["cell"], pair["schedule"]) in QUICKLY else pytest.mark.slow)
        for pair in SCHEDULED
    ],
    indirect=["schedule"],
)
def test_schedules_agree_with_the_definition(cell, schedule, dtype, kernel_wing):
    problem = draw(OPTIONED[cell], ALL, T=5, B=6, I=3, H=11, dtype=dtype)
    arrays = {name: kernel_wing.to(value) for name, value in vars(problem).items()}
    found = kernel_wing.back(run(kernel_wing.module, dataclasses.replace(problem, **arrays)))
    assert_all_close(found, run(reference, problem), recurrence_terms(5, 6, 3, 11))


SUMS = [name for name, cell in OPTIONED.items() if cell.sums_over_units]
"""Cells whose steps have sums over units: layer norm, a projection."""
SUMS_SCHEDULED = [
    pytest.param(cell, schedule, dtype, marks=() if cell == "lstm-projection-norm" else pytest.mark.slow)
    for cell, dtype in zip(SUMS, ["float32", "float64"] * 3, strict=True)
    for schedule in SCHEDULES
]


@pytest.mark.parametrize(("cell", "schedule", "dtype"), SUMS_SCHEDULED, indirect=["schedule"])
def test_schedules_agree_with_the_definition_where_steps_have_sums_over_units(cell, schedule, dtype, kernel_wing):
    """Rows of one warp and of several, steps that do not exist, and blocks that work alone or exchange data."""
    for B, H, options in ((6, 11, ALL), (3, 70, Options(lengths=True)), (1, 11, Options(bias=False))):
        problem = draw(OPTIONED[cell], options, T=4, B=B, I=3, H=H, dtype=dtype)
        if B > 1 or schedule.startswith("step") or cell == "gru-norm-before":  # others need own kernels for one row
            arrays = {name: kernel_wing.to(value) for name, value in vars(problem).items()}
            found = kernel_wing.back(run(kernel_wing.module, dataclasses.replace(problem, **arrays)))
            assert_all_close(found, run(reference, problem), recurrence_terms(4, B, 3, H))


@pytest.mark.kernels
@pytest.mark.parametrize("schedule", ["stepwise", "block", "persistent"], indirect=True)
def test_sums_over_units_have_the_same_bits_in_any_order_of_threads_and_blocks(schedule):
    problem = draw(OPTIONED["lstm-projection-norm"], ALL, T=3, B=5, H=70, dtype="float64")
    runs = []
    for seed in (1, 2):
        with host.execution(seed=seed):
            runs.append(run(kernels, problem))
    assert_same(*runs)


@pytest.mark.kernels
def test_a_step_with_sums_over_units_is_that_of_the_definition():
    cell = OPTIONED["lstm-projection-norm"]
    problem = draw(cell, Options(), T=1, B=3, H=11)
    weights = {name: array for name, array in problem.weights[0].items() if not name.endswith("_ih")}
    weights |= {name: mask[0, 0] for name, mask in zip(cell.step_masks, problem.step_masks, strict=True)}
    xw = problem.x[0] @ problem.weights[0]["weight_ih"].T
    state, dstate = (tuple(s[0] for s in of) for of in (problem.state, problem.dstate))
    found, expected = [], []
    for wing, results in ((kernels, found), (reference, expected)):
        new, saved = wing.cell_forward(cell, xw, state, weights)
        da, before, gradients = wing.cell_backward(saved, dstate)
        results += [new, da, before, gradients, wing.cell_gates(saved)]
    assert_all_close(found, expected, recurrence_terms(1, 3, 2, 11))


@pytest.mark.kernels
@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["block", "persistent"])
def test_a_watchdog_leaves_the_bits_of_sums_over_units_as_they_are(schedule, monkeypatch):
    problem, results = draw(OPTIONED["lstm-projection-norm"], ALL, T=5, B=6, H=11), []
    monkeypatch.setattr(plan, "_SECONDS_OF_A_LAUNCH", 0.0)  # the fewest steps: one
    for has_watchdog in (False, True):
        device = dataclasses.replace(devices.lookup("H100"), multiprocessors=5, has_watchdog=has_watchdog)
        monkeypatch.setattr(plan, "device_of", lambda array, device=device: device)
        with plan.schedule(schedule):
            results.append(run(kernels, problem))
        plan._choose.cache_clear()
    assert_same(*results)


ON_THE_COMPILED_WING = [
    pytest.param(cell, dtype, marks=() if cell in QUICK else pytest.mark.slow)
    for number, (cell, options) in enumerate(OPTIONED.items())
    for dtype in ("float64", "float32")
    # Each is a compilation, so slow tests cover one dtype. test_native_recurrence.py has other sums in float32.
    if cell in QUICK or dtype == ("float64" if options.sums_over_units else ("float64", "float32")[number % 2])
]


@pytest.mark.parametrize(("cell", "dtype"), ON_THE_COMPILED_WING)
def test_the_compiled_wing_agrees_with_the_definition(cell, dtype):
    problem = draw(OPTIONED[cell], ALL, T=5, B=6, I=3, H=11, dtype=dtype)
    terms = recurrence_terms(5, 6, 3, 11) + ELEMENTARY * 5
    assert_all_close(run(native, problem), run(reference, problem), terms)


def test_where_nothing_compiles_the_numpy_wing_computes_and_says_so(monkeypatch):
    def rejected(library):
        raise CompilerError("there is no compiler")

    problem = draw(LSTM(zoneout=(0.25, 0.0)), ALL)
    monkeypatch.setattr(native.recurrence.build, "load", rejected)
    native.recurrence.can_compute.cache_clear()
    try:
        with pytest.warns(UserWarning, match=r"lstm: the NumPy wing computes LSTM\(.*there is no compiler"):
            found = run(native, problem)
    finally:
        native.recurrence.can_compute.cache_clear()
    assert_same(found, run(reference, problem))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"activation": "swish"}, ValueError, "activation is 'swish', expected one of 'tanh', 'relu'"),
        ({"activation": ("tanh", 1.0)}, ValueError, r"activation is \('tanh', 1.0\), expected 'tanh'"),
        ({"activation": ("elu", 1.0, 2.0)}, ValueError, r"activation is .*, expected \('elu', alpha\)"),
        ({"activation": ("elu", "1")}, TypeError, "activation is '1', expected a finite number"),
        ({"clip": 0.0}, ValueError, "clip is 0.0, expected"),
        ({"cell_clip": float("nan")}, ValueError, "cell_clip is nan, expected"),
        ({"zoneout": 0.1}, TypeError, "zoneout is 0.1, expected 2 probabilities"),
        ({"zoneout": (0.1, 1.0)}, ValueError, r"zoneout is 1.0, expected a probability in \[0, 1\)"),
        ({"proj_size": -1}, ValueError, "proj_size is -1, expected"),
        ({"peephole": 1}, TypeError, "peephole is 1, expected True or False"),
    ],
)
def test_options_that_mean_nothing_are_rejected(options, error, message):
    with pytest.raises(error, match=f"lstm: {message}"):
        gpurnn.LSTM(2, 3, **options)


def test_a_coupled_lstm_has_no_forget_gate():
    x, w = np.zeros((2, 1, 2)), np.zeros((9, 3))
    layer = gpurnn.LSTM(2, 3, coupled=True, peephole=True)
    assert {n: p.shape for n, p in layer.params.items() if "weight_ih" not in n} == {
        "weight_hh_l0": (9, 3), "peephole_i_l0": (3,), "peephole_o_l0": (3,), "bias_ih_l0": (9,), "bias_hh_l0": (9,),
    }  # fmt: skip
    assert not layer.params["bias_ih_l0"].any()
    p = np.zeros(3)
    with pytest.raises(ValueError, match=r"lstm: peephole_f is given, expected None: LSTM\(.*coupled=True"):
        gpurnn.lstm(x, w[:, :2], w, coupled=True, peephole_i=p, peephole_f=p, peephole_o=p)
    with pytest.raises(ValueError, match=r"weight_hh has shape \(12, 3\), expected \(3\*hidden_size, hidden_size\)"):
        gpurnn.lstm(x, np.zeros((12, 2)), np.zeros((12, 3)), coupled=True)
    with pytest.raises(TypeError, match="lstm: peephole_f is None, expected an array"):
        gpurnn.lstm(x, np.zeros((12, 2)), np.zeros((12, 3)), peephole_i=p)


@pytest.mark.parametrize("checkpoint_every", [None, 1])
def test_a_layer_draws_the_masks_of_its_steps(checkpoint_every):
    """It draws the masks from seeds: a unit stays with the probability of zoneout, and g is scaled or zero."""
    x = np.random.default_rng(0).normal(size=(2000, 1, 2))
    layer = gpurnn.LSTM(2, 3, zoneout=(0.3, 0.0), candidate_dropout=0.25, dtype="float64")
    (y, state), pullback = layer.vjp(x, rng=5, checkpoint_every=checkpoint_every)
    stays = (y[1:] == y[:-1]).mean()
    assert abs(stays - 0.3) < 0.03
    assert_same((y, state), layer.vjp(x, rng=5)[0])
    assert_same(pullback((np.ones_like(y), None)), layer.vjp(x, rng=5)[1]((np.ones_like(y), None)))
    expected = gpurnn.lstm(x, **{n[:-3]: p for n, p in layer.params.items()}, zoneout=(0.3, 0.0))[0]
    assert_same(layer(x)[0], expected)
    assert (layer.vjp(x, rng=6)[0][0] != y).any()


def test_explain_says_what_layer_norm_and_a_projection_cost():
    found = gpurnn.explain(gpurnn.LSTM(4, 256, layer_norm=True, proj_size=64), (100, 16, 4), device="H100")
    plain = gpurnn.explain(gpurnn.LSTM(4, 256), (100, 16, 4), device="H100")
    assert not plain.options
    assert set(found.options) == {"layer_norm", "proj_size"}
    assert {found.schedule, *found.passed_over} == set(plan.SCHEDULES)
    assert found.microseconds_per_step["persistent"] > plain.microseconds_per_step["persistent"]
    assert re.fullmatch(
        r"4 exchanges and .* microseconds a step; without it 2 exchanges and .* microseconds a step",
        found.options["proj_size"],
    )
    assert f"  layer_norm: {found.options['layer_norm']}" in str(found)


def test_a_projection_is_smaller_than_the_cell():
    with pytest.raises(ValueError, match="LSTM: proj_size is 3, expected less than hidden_size = 3"):
        gpurnn.LSTM(2, 3, proj_size=3)
    with pytest.raises(TypeError, match="proj_size"):
        gpurnn.GRU(2, 3, proj_size=1)  # type: ignore[call-arg]
    layer = gpurnn.LSTM(2, 3, 2, proj_size=1, bidirectional=True)
    y, (h, c) = layer(np.zeros((4, 5, 2), np.float32))
    assert (y.shape, h.shape, c.shape) == ((4, 5, 2), (4, 5, 1), (4, 5, 3))
    assert layer.params["weight_hr_l1_reverse"].shape == (1, 3)
    with pytest.raises(ValueError, match="layer has proj_size=1, expected 0"):
        gpurnn.analysis.gates(gpurnn.LSTM(2, 3, proj_size=1), np.zeros((4, 5, 2), np.float32))


def test_masks_of_a_projection_have_its_width():
    rng = np.random.default_rng(0)
    layer, x, ones = gpurnn.LSTM(2, 3, proj_size=2, dtype="float64"), rng.normal(size=(4, 1, 2)), np.ones((4, 1, 2))
    weights = {n[:-3]: p for n, p in layer.params.items()}
    y, (h, _) = gpurnn.lstm(x, **weights, zoneout_h=ones)
    assert not y.any()
    assert not h.any()
    with pytest.raises(ValueError, match=r"zoneout_h has shape \(4, 1, 3\), expected"):
        gpurnn.lstm(x, **weights, zoneout_h=np.ones((4, 1, 3)))
    assert_same(gpurnn.lstm(x, **weights), (layer(x)[0], tuple(s[0] for s in layer(x)[1])))


@pytest.mark.parametrize("wing", ["reference", "host"])
@pytest.mark.parametrize("layer_norm", [False, True])
def test_gates_of_an_lstm_with_options(layer_norm, wing):
    """With the gates of a run, each state follows from the one before it."""
    layer = gpurnn.LSTM(2, 5, gate_activation=("hard_sigmoid", 0.3), clip=1.0, layer_norm=layer_norm, dtype="float64")
    x = np.random.default_rng(0).normal(size=(4, 3, 2))
    with gpurnn.use(wing):
        gates = gpurnn.analysis.gates(layer, x)
        states = [layer(x[:t])[1][1][0] for t in range(1, 5)]
    before = [np.zeros((3, 5)), *states[:-1]]
    for t, (c, c_prev) in enumerate(zip(states, before, strict=True)):
        np.testing.assert_allclose(gates["f"][t] * c_prev + gates["i"][t] * gates["g"][t], c, rtol=0, atol=1e-12)
