"""The recurrence's kernels: every schedule, cell and option against the NumPy definition."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from gpurnn.kernels import devices, dtypes, host, residency
from gpurnn.kernels import launch as launch_module
from gpurnn.kernels.recurrence import layer, plan
from gpurnn.kernels.recurrence import run as run_module
from gpurnn.kernels.recurrence.run import Run, run_backward, run_forward
from parity import Wing
from problems import ALL, CELLS, KINDS, OPTIONS, SCHEDULES, Options, draw, pairwise
from tolerance import assert_all_close, assert_same, recurrence_terms

from gpurnn import kernels, reference
from gpurnn.cells import GRU, LSTM, Vanilla


@pytest.fixture(params=SCHEDULES)
def schedule(request, monkeypatch):
    """Each schedule in turn, on a device so small that blocks have several units and persistent ones several groups."""
    on_device(monkeypatch, multiprocessors=5)
    with plan.schedule(request.param):
        yield request.param


def on_device(monkeypatch, **limits) -> devices.Device:
    device = dataclasses.replace(devices.lookup("H100"), **limits)
    monkeypatch.setattr(plan, "device_of", lambda array: device)
    return device


def run(wing, problem):
    """Outputs of training and of inference, and all gradients."""
    arguments = (problem.cell, problem.x, problem.weights, problem.state)
    y, state, saved = wing.recurrence_forward(*arguments, training=True, **problem.options)
    inferred = wing.recurrence_forward(*arguments, **problem.options)
    assert inferred[2] is None
    return y, state, inferred[:2], wing.recurrence_backward(saved, problem.dy, problem.dstate)


@pytest.fixture
def hold(kernel_wing):
    """Checks the kernels' results for a problem against the definition."""

    def check(problem):
        T, B, I = problem.x.shape
        arrays = {name: kernel_wing.to(value) for name, value in vars(problem).items()}
        found = kernel_wing.back(run(kernel_wing.module, dataclasses.replace(problem, **arrays)))
        assert_all_close(found, run(reference, problem), recurrence_terms(T, B, I, problem.hidden_size))

    return check


PAIRS = pairwise({"schedule": list(SCHEDULES), "cell": list(CELLS), "options": list(OPTIONS)})
ACTIVATED = [name for name, cell in CELLS.items() if isinstance(cell, Vanilla) and cell.activation != "tanh"]
"""These cells access the same memory as the one with tanh, so the builds that check accesses omit them."""


def of_cell(*values, cell):
    return pytest.param(*values, marks=pytest.mark.unrepeated if cell in ACTIVATED else ())


@pytest.mark.parametrize(
    ("schedule", "cell", "options"),
    [of_cell(*pair.values(), cell=pair["cell"]) for pair in PAIRS],
    indirect=["schedule"],
    ids=lambda value: str(value),
)
def test_schedules_agree_with_the_definition(schedule, cell, options, hold):
    """Any two of a schedule, a cell and an option occur together."""
    hold(draw(CELLS[cell], OPTIONS[options], T=5, B=6, I=3, H=11))


@pytest.mark.slow
@pytest.mark.parametrize("cell", CELLS)
def test_schedules_agree_with_the_definition_with_every_option(schedule, cell, hold):
    for options in OPTIONS.values():
        hold(draw(CELLS[cell], options, T=5, B=6, I=3, H=11))


@pytest.mark.parametrize("cell", ["lstm", "gru-reset-before-candidate"])
@pytest.mark.parametrize(
    "schedules", [("persistent", "stepwise"), ("stepwise", "block"), ("block", "step-fused")], ids="-".join
)
def test_passes_by_schedules_of_their_own(schedules, cell, monkeypatch, hold):
    """The forward pass saves the same values for every schedule of the backward pass."""
    on_device(monkeypatch, multiprocessors=5)
    monkeypatch.setattr(
        plan, "choose", lambda problem, device, apart="": plan.make(schedules[problem.backward], problem, device)
    )
    hold(draw(CELLS[cell], ALL, T=5, B=6, I=3, H=11))


@pytest.mark.parametrize("cell", KINDS)
def test_float32(schedule, cell, hold):
    hold(draw(CELLS[cell], ALL, T=5, B=6, I=3, H=11, dtype="float32"))


SIZES = [
    {"T": 1}, {"T": 2}, {"B": 1}, {"H": 1}, {"T": 1, "B": 1, "I": 1, "H": 1}, {"B": 5, "H": 33}, {"B": 37, "H": 3},
    {"T": 0}, {"B": 0}, {"T": 9, "B": 2, "H": 40},
]  # fmt: skip


@pytest.mark.parametrize("sizes", SIZES, ids=lambda sizes: "-".join(f"{k}{v}" for k, v in sizes.items()))
@pytest.mark.parametrize("cell", ["rnn-tanh", "lstm", "gru-reset-before-candidate", "gru-reset-after-state"])
def test_awkward_sizes(schedule, cell, sizes, hold):
    options = Options(bidirectional=True) if 0 in sizes.values() else ALL
    hold(draw(CELLS[cell], options, **sizes))


@pytest.mark.kernels
@pytest.mark.parametrize("cell", [*KINDS, "gru-reset-before-state"])
def test_any_order_of_threads_and_blocks_gives_the_same_bits(schedule, cell):
    problem = draw(CELLS[cell], ALL, T=4, B=5, H=9, dtype="float32")
    runs = []
    for seed in (1, 2):
        with host.execution(seed=seed):
            runs.append(run(kernels, problem))
    assert_all_close(runs[0], runs[1], terms=0)


@pytest.mark.parametrize("activation", ["identity", "relu"])
def test_without_a_leak_an_infinite_state_is_not_read_beside_the_product(schedule, activation, kernel_wing):
    """A leak of zero times infinity would be NaN."""
    one = np.ones((1, 1))
    weights, state = ({"weight_ih": one, "weight_hh": one},), (np.zeros((1, 1, 1)),)
    for wing, to in ((reference, lambda arrays: arrays), (kernel_wing.module, kernel_wing.to)):
        arguments = (Vanilla(activation), *to((np.full((3, 1, 1), np.inf), weights, state)))
        y, final, saved = wing.recurrence_forward(*arguments, training=True)
        infinite = to((np.full((1, 1, 1), np.inf),))
        dx, _, dstate = wing.recurrence_backward(saved, None, infinite)
        (stepped,), _ = wing.cell_forward(arguments[0], *to((one, (np.inf * one,), weights[0])))
        for array in (y, *final, dx, *dstate, stepped):
            assert np.isposinf(kernel_wing.back(array)).all()


@pytest.mark.kernels
def test_lengths_are_cut_off_before_they_are_narrowed():
    problem = draw(LSTM(), Options())
    found, expected = (
        run(kernels, dataclasses.replace(problem, lengths=np.array(lengths)))
        for lengths in ([2**32 + 1, -(2**32) + 1, 2], [4, 0, 2])
    )
    assert_all_close(found, expected, terms=0)


@pytest.mark.kernels
def test_cotangents_may_be_left_out(schedule):
    problem = draw(LSTM(), ALL)
    for dy, dstate in ((None, problem.dstate), (problem.dy, (None, None)), (None, (problem.dstate[0], None))):
        found, expected = (
            wing.recurrence_backward(
                wing.recurrence_forward(
                    problem.cell, problem.x, problem.weights, problem.state, training=True, **problem.options
                )[2],
                dy,
                dstate,
            )
            for wing in (kernels, reference)
        )
        assert_all_close(found, expected, recurrence_terms(4, 3, 2, 3))


@pytest.mark.kernels
def test_a_pullback_gives_the_same_twice_whatever_became_of_the_arguments(schedule):
    problem = draw(GRU(), ALL)
    y, state, saved = kernels.recurrence_forward(
        problem.cell, problem.x, problem.weights, problem.state, training=True, **problem.options
    )
    first = kernels.recurrence_backward(saved, problem.dy, problem.dstate)
    for array in (
        y,
        *state,
        problem.x,
        *problem.state,
        *(p for direction in problem.weights for p in direction.values()),
    ):
        array[...] = np.nan
    assert_all_close(kernels.recurrence_backward(saved, problem.dy, problem.dstate), first, terms=0)


@pytest.mark.kernels
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_weights_are_copied_only_for_a_pullback_or_two_directions(bidirectional, training, monkeypatch):
    problem, weights = draw(CELLS["lstm"], Options(bidirectional=bidirectional), T=3, B=2, I=2, H=4), []
    monkeypatch.setattr(layer, "run_forward", lambda run, xw, biases, final: (
        weights.extend((run.w, *biases)), run_forward(run, xw, biases, final))[1])  # fmt: skip
    kernels.recurrence_forward(problem.cell, problem.x, problem.weights, problem.state, training=training)
    given = [problem.weights[0][name] for name in ("weight_hh", "bias_ih", "bias_hh")]
    shared = [np.shares_memory(used, array) for used, array in zip(weights, given, strict=True)]
    assert shared == [not (training or bidirectional), not bidirectional, not bidirectional]


@pytest.mark.kernels
@pytest.mark.parametrize("cell", ["lstm", "rnn-tanh", "gru-reset-after-state", "gru-reset-before-state"])
def test_the_gradients_of_both_biases_are_arrays_of_their_own(cell):
    problem = draw(CELLS[cell], Options(bidirectional=True), T=3, B=2, I=2, H=4)
    *_, saved = kernels.recurrence_forward(problem.cell, problem.x, problem.weights, problem.state, training=True)
    for gradients in kernels.recurrence_backward(saved, problem.dy, problem.dstate)[1]:
        db_ih, db_hh = gradients["bias_ih"], gradients["bias_hh"]
        assert not np.shares_memory(db_ih, db_hh)
        assert np.array_equal(db_ih, db_hh) == (not problem.cell.hidden_apart)


@pytest.mark.parametrize(
    ("cell", "H", "B"), [(LSTM(), 128, 1), (LSTM(), 127, 3), (GRU(True), 147, 2), (Vanilla(), 256, 2)], ids=str
)
def test_weights_held_in_registers(cell, H, B, hold, kernel_wing):
    """Sizes for which the shared memory of a block alone is too small."""
    problem = draw(cell, Options(lengths=True), T=2, B=B, H=H, dtype="float32")
    sizes = plan.Problem(cell, 2, B, H, 1, dtypes.TABLE["float32"])
    passes = [sizes, dataclasses.replace(sizes, backward=True)]
    for of_pass in passes:
        assert plan.make("block", of_pass, devices.lookup("H100")).launch.variant.held
    device = plan.device_of(kernel_wing.to(problem.x))
    if not all("block" in plan.consider(of_pass, device).plans for of_pass in passes):
        pytest.skip(f"more than a block's shared memory on {device.name}")
    with plan.schedule("block"):
        hold(problem)


@pytest.mark.parametrize("cell", [LSTM(), GRU()], ids=str)
@pytest.mark.parametrize(("schedule", "B", "H"), [("step-fused", 20, 50), ("persistent", 12, 70)])
def test_operands_longer_than_a_chunk(cell, schedule, B, H, monkeypatch, hold):
    """Operands that shared memory takes in pieces, with the least shared memory that the schedule can use."""
    problem = draw(cell, ALL, T=3, B=B, H=H)
    for kilobytes in range(4, 64):
        device = on_device(monkeypatch, multiprocessors=9, shared_memory_per_block=1000 * kilobytes)
        sizes = cell, 3, B, H, 2, dtypes.TABLE["float64"]
        found = [plan.consider(plan.Problem(*sizes, backward), device).plans for backward in (False, True)]
        if all(schedule in plans for plans in found):
            break
    assert found[1][schedule][0].launch.chunk < cell.gates * H
    with plan.schedule(schedule):
        hold(problem)


@pytest.mark.kernels
@pytest.mark.parametrize(
    ("schedule", "cell"),
    [
        *itertools.product(("block", "persistent"), ("lstm", "gru-reset-before-state", "gru-reset-after-candidate")),
        ("scatter", "gru-reset-after-candidate"),
    ],
)
def test_a_watchdog_leaves_the_bits_as_they_are(schedule, cell, monkeypatch):
    """Sequences are cut into launches short enough for the watchdog. Each launch continues where the last one ended."""
    dtype = "float32" if schedule == "scatter" else "float64"
    problem, launched = draw(CELLS[cell], ALL, T=7, B=5, H=12, dtype=dtype), []
    launch = host.Library.launch

    def counted(library, kernel, *args, **options):
        launched.append(kernel.split("<")[0].removesuffix("_scatter"))
        launch(library, kernel, *args, **options)

    monkeypatch.setattr(host.Library, "launch", counted)
    results = []
    for steps, launches in ((None, 1), (3, 3), (1, 7)):
        device = on_device(monkeypatch, multiprocessors=5, has_watchdog=steps is not None)
        if steps is not None:
            free = dataclasses.replace(device, has_watchdog=False)
            sizes = plan.Problem(problem.cell, 7, 5, 12, 2, dtypes.of(problem.x))
            seconds = plan.predicted(plan.make(schedule, sizes, free), sizes, free).seconds
            monkeypatch.setattr(plan, "_SECONDS_OF_A_LAUNCH", (steps + 0.5) * seconds)
            back = plan.make(schedule, dataclasses.replace(sizes, backward=True), device).most_steps
        with plan.schedule(schedule):
            results.append(run(kernels, problem))
        plan._choose.cache_clear()
        assert launched.count("forward") == 2 * launches  # in training and in inference
        phases = len(problem.cell.phases)
        assert launched.count("backward") == (1 if steps is None else -(-(7 * phases + 1) // (back * phases)))
        launched.clear()
    for found in results[1:]:
        assert_same(found, results[0])


# Not repeated in the build that checks every access: it would first report that blocks which did not meet conflict.
@pytest.mark.parametrize(
    ("cell", "schedule"),
    [
        *((cell, "persistent") for cell in ("lstm", "rnn-tanh", "gru-reset-before-state")),
        ("lstm", "cluster"),
        ("lstm", "scatter"),
    ],
)
def test_what_is_computed_after_blocks_have_not_met_is_nan(cell, schedule, monkeypatch):
    """It also raises an error: here at once, on a GPU at a later launch."""
    on_device(monkeypatch, multiprocessors=16 if schedule == "cluster" else 5)
    sizes = {"H": 12} if schedule == "persistent" else {"H": 16, "dtype": "float32"}  # two clusters
    problem = draw(CELLS[cell], Options(), T=4, B=1, **sizes)
    launch, seen = host.Library.launch, []

    def apart(*args, cooperative, **options):
        launch(*args, cooperative=False, **options)

    arguments = problem.cell, problem.x, problem.weights, problem.state
    with plan.schedule(schedule), host.execution(most_polls=20):
        expected, _, saved = kernels.recurrence_forward(*arguments, training=True)
        monkeypatch.setattr(host.Library, "launch", apart)
        with pytest.raises(RuntimeError, match="blocks has ended early, because they did not all run at once; its"):
            kernels.recurrence_forward(*arguments)
        monkeypatch.setattr(run_module, "empty", lambda like, shape, dtype: np.zeros(shape, dtype))
        monkeypatch.setattr(run_module, "watch", lambda words, *blocks: seen.append(words.max()))
        y, state, _ = kernels.recurrence_forward(*arguments)
        dx, dweights, dstate = kernels.recurrence_backward(saved, problem.dy, problem.dstate)
    assert len(seen) == 2
    assert min(seen) >= residency.GIVEN_UP
    assert np.all(np.isnan(y) | (y == expected))
    assert np.isnan(y).mean() >= 0.5
    for found in (*state, dx, *dstate, *(g for gradients in dweights for g in gradients.values())):
        assert np.isnan(found).any()


PERSISTENT = {  # B, H, multiprocessors, KiB of shared memory: the kernels of both passes
    (1, 33, 2, 227): ("1, 8, 3, 1", "1, 8, 3, 1"),
    (1, 20, 10, 227): ("1, 2, 3, 1", "1, 2, 3, 1"),  # one tile of 8 weight rows, or four of 2
    (8, 40, 3, 227): ("4, 4, 3, 1", "4, 4, 3, 1"),
    (2, 96, 1, 64): ("4, 12, 2, 1", "4, 12, 2, 1"),
    (2, 88, 2, 5): ("4, 8, 3, 1", "4, 8, 3, 1"),  # a part's weights in registers span two pieces
    (2, 80, 1, 32): ("4, 8, 3, 1", "4, 8, 3, 1"),  # pieces, and more tiles than are multiplied at once
    (13, 96, 2, 227): ("4, 8, 0, 4", "4, 8, 0, 4"),
    (70, 11, 2, 12): ("4, 8, 0, 4", "4, 8, 0, 4"),
}


@pytest.mark.parametrize("sizes", PERSISTENT, ids=str)
def test_kernels_of_the_persistent_schedule(sizes, monkeypatch, hold):
    """Some or all weights are in registers, and threads have several units."""
    B, H, multiprocessors, kilobytes = sizes
    device = on_device(monkeypatch, multiprocessors=multiprocessors, shared_memory_per_block=1024 * kilobytes)
    forward, backward = (
        plan.make("persistent", plan.Problem(LSTM(), 2, B, H, 1, dtypes.TABLE["float32"], back), device).launch
        for back in (False, True)
    )
    expected = tuple(f"Exchange::grid, {kernel}" for kernel in PERSISTENT[sizes])
    assert (str(forward.variant), str(backward.variant)) == expected
    if kilobytes == 5:
        piece = backward.chunk // backward.parts // 32
        assert piece < backward.variant.held
    with plan.schedule("persistent"):
        hold(draw(LSTM(), Options(lengths=True, mask=True), T=2, B=B, H=H, dtype="float32"))


CLUSTERS = [  # cell, B, H, multiprocessors and the kernels of both passes
    ("lstm", 6, 15, 17, "4, 8, 3, 1", "4, 8, 3, 1"),  # the last block has one unit fewer; most have no columns forward
    ("lstm", 2, 300, 40, "4, 8, 3, 1", "4, 12, 2, 1"),  # two clusters share rows
    ("gru-reset-before-candidate", 6, 31, 17, "4, 8, 0, 1", "4, 8, 0, 1"),
    *(pytest.param(*case, marks=pytest.mark.slow) for case in [
        ("lstm", 40, 60, 17, "4, 8, 0, 4", "4, 8, 0, 4"),  # several units in a thread
        ("gru-reset-after-state", 9, 70, 33, "4, 8, 3, 1", "4, 8, 3, 1"),
    ]),
]  # fmt: skip


@pytest.mark.parametrize(("cell", "B", "H", "multiprocessors", "forward", "backward"), CLUSTERS)
def test_clusters_agree_with_the_definition(cell, B, H, multiprocessors, forward, backward, monkeypatch, hold):
    device = on_device(monkeypatch, multiprocessors=multiprocessors)
    for is_backward, kernel in enumerate((forward, backward)):
        problem = plan.Problem(CELLS[cell], 4, B, H, 2, dtypes.TABLE["float32"], bool(is_backward))
        assert str(plan.make("cluster", problem, device).launch.variant) == f"Exchange::cluster, {kernel}"
    with plan.schedule("cluster"):
        hold(draw(CELLS[cell], ALL, T=4, B=B, I=3, H=H, dtype="float32"))


SCATTERED = [  # cell, B, H, multiprocessors, and the grid and the kernel of the backward pass
    ("lstm", 7, 70, 4, (2, 1, 2), "8, 1, 24"),  # more weights than registers hold
    ("gru-reset-after-state", 9, 31, 8, (2, 2, 2), "8, 1, 24"),  # two groups of rows, blocks of fewer units and rows
    ("lstm", 3, 290, 24, (12, 1, 2), "8, 2, 12"),  # threads with one unit and with two
    *(pytest.param(*case, marks=pytest.mark.slow) for case in [
        ("gru-reset-after-candidate", 20, 30, 16, (8, 1, 2), "8, 1, 24"),  # more rows than a tile
        ("lstm", 2, 600, 80, (40, 1, 2), "8, 3, 8"),
        ("gru-reset-after-state", 2, 800, 90, (45, 1, 2), "8, 4, 6"),
    ]),
]  # fmt: skip


@pytest.mark.parametrize(("cell", "B", "H", "multiprocessors", "grid", "kernel"), SCATTERED)
def test_sums_of_blocks_agree_with_the_definition(cell, B, H, multiprocessors, grid, kernel, monkeypatch, hold):
    device = on_device(monkeypatch, multiprocessors=multiprocessors)
    launch = plan.make("scatter", plan.Problem(CELLS[cell], 3, B, H, 2, dtypes.TABLE["float32"], True), device).launch
    assert (launch.grid, str(launch.variant)) == (grid, kernel)
    with plan.schedule("scatter"):
        hold(draw(CELLS[cell], ALL, T=3, B=B, H=H, dtype="float32"))


@pytest.mark.kernels
@pytest.mark.parametrize(
    ("cell", "schedule"),
    [
        ("lstm", "cluster"),
        ("gru-reset-before-candidate", "cluster"),
        ("lstm", "scatter"),
        ("gru-reset-after-state", "scatter"),
    ],
)
def test_exchanges_of_sums_give_the_same_bits_in_any_order_of_threads_and_blocks(cell, schedule, monkeypatch):
    on_device(monkeypatch, multiprocessors=33)
    problem = draw(CELLS[cell], ALL, T=4, B=5, H=32, dtype="float32")
    runs = []
    for seed in (1, 2):
        with plan.schedule(schedule), host.execution(seed=seed):
            runs.append(run(kernels, problem))
    assert_all_close(runs[0], runs[1], terms=0)


@pytest.mark.gpu
@pytest.mark.parametrize("cell", ["lstm", "gru-reset-before-state"])
def test_a_loop_becomes_graphs(cell, monkeypatch):
    """Graphs are made automatically. A caller's results stay unchanged, although calls share their memory."""
    wing, T, turns = Wing("cuda"), 6, 12
    launches, call = [], launch_module.Bound.__call__

    def counted(bound, *values):
        launches.append(bound.kernel.name)
        call(bound, *values)

    monkeypatch.setattr(launch_module.Bound, "__call__", counted)
    problem = draw(CELLS[cell], Options(), T=T, B=3, H=10)
    weights, kept, counts = wing.to(problem.weights), [], []
    with plan.schedule("step-fused"):
        for turn in range(turns):
            steps = T - (turn == 7)
            now = dataclasses.replace(problem, x=turn * problem.x[:steps], dy=problem.dy[:steps])
            arrays = {name: wing.to(value) for name, value in vars(now).items()} | {"weights": weights}
            launches.clear()
            found = run(wing.module, dataclasses.replace(now, **arrays))
            counts.append(len(launches))
            kept.append((now, found, wing.back(found)))
    assert counts[0] == 3 * T * len(CELLS[cell].phases) + 3  # two first operands, and the end of the backward pass
    assert min(counts[-3:]) == 2
    for now, found, then in kept:
        assert_same(wing.back(found), then)
        assert_all_close(then, run(reference, now), recurrence_terms(*now.x.shape, problem.hidden_size))


@pytest.mark.gpu
@pytest.mark.parametrize("cell", ["rnn-tanh", "lstm", "gru-reset-before-state", "gru-reset-after-candidate"])
def test_a_sequence_becomes_a_graph(cell):
    """The step-fused launches, forward and backward, are captured and replayed: this gives the bits of the launches."""
    wing = Wing("cuda")
    import cupy

    T, B, H, cell = 6, 3, 24, CELLS[cell]
    rng = np.random.default_rng(0)
    shapes = ((1, cell.gates * H, H), (1, T * B, cell.gates * H), (T, B, H), *[(1, B, H)] * cell.states)
    w, xw, dy, *state = (0.2 * rng.standard_normal(shape) for shape in shapes)

    def begin():
        there, state_there = wing.to((w, xw, dy)), wing.to((*state,))
        run = Run.begin(cell, T, B, H, there[0], training=True)
        return there, run, state_there, wing.to((*state,))

    def launch(there, run, state_there, dstate):
        _, xw_there, dy_there = there
        y = run_forward(run, xw_there, (None, None), state_there)
        return y, *run_backward(run, dy_there, dstate), state_there, dstate

    pool = cupy.cuda.MemoryPool()
    with cupy.cuda.Stream(non_blocking=True) as stream, plan.schedule("step-fused"):
        expected = wing.back(launch(*begin()))
        arguments = begin()
        stream.begin_capture()
        with cupy.cuda.using_allocator(pool.malloc):
            captured = launch(*arguments)
        graph = stream.end_capture()
        graph.launch(stream)
        found = wing.back(captured)
    assert_all_close(found, expected, terms=0)


def draw_step(cell, bias=True, **sizes):
    """The arguments of `cell_forward` after the cell, and the gradient for `cell_backward`."""
    problem = draw(CELLS[cell], Options(bias=bias), T=1, **sizes)
    state, dstate = (tuple(s[0] for s in one) for one in (problem.state, problem.dstate))
    weights = dict(problem.weights[0])
    return (problem.x[0] @ weights.pop("weight_ih").T, state, weights), dstate


def run_step(wing, cell, arguments, dstate):
    """The state after a step, and all gradients, computed twice."""
    new, saved = wing.cell_forward(CELLS[cell], *arguments)
    return new, wing.cell_backward(saved, dstate), wing.cell_backward(saved, dstate)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("cell", [of_cell(cell, cell=cell) for cell in CELLS])
def test_single_steps(kernel_wing, cell, bias):
    step = draw_step(cell, bias, B=5, H=7)
    found = kernel_wing.back(run_step(kernel_wing.module, cell, *kernel_wing.to(step)))
    assert_all_close(found, run_step(reference, cell, *step), recurrence_terms(1, 5, 2, 7))


@pytest.mark.kernels
@pytest.mark.parametrize("cell", [*KINDS, "gru-reset-before-state"])
def test_any_order_of_threads_and_blocks_gives_a_single_step_the_same_bits(cell):
    step = draw_step(cell, B=5, H=9, dtype="float32")
    runs = []
    for seed in (1, 2):
        with host.execution(seed=seed):
            runs.append(run_step(kernels, cell, *step))
    assert_all_close(runs[0], runs[1], terms=0)
