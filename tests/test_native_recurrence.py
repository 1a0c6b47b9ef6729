"""The compiled recurrence: each cell and option against the NumPy definition, in each instruction set."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
from gpurnn.kernels import native
from gpurnn.kernels.compiler import CompilerError
from gpurnn.kernels.native import build, processor, threads
from problems import ALL, CELLS, KINDS, OPTIONS, Options, draw
from tolerance import assert_all_close, assert_same, recurrence_terms

from gpurnn import reference
from gpurnn.cells import GRU, LSTM, Vanilla

pytestmark = pytest.mark.usefixtures("new_arrays_are_nan")

SUMS = {
    "lstm-sums": LSTM(layer_norm=True, proj_size=2, zoneout=(0.1, 0.2)),
    "gru-sums": GRU(layer_norm=True),
}
"""Cells whose steps have sums over hidden units."""
CELLS = CELLS | SUMS
KINDS = [*KINDS, *SUMS]

ELEMENTARY = 4
"""The roundings at each step by which exp and tanh differ from NumPy's; see test_native_functions.py."""


def run(wing, problem, dweights=None):
    """Outputs of training and of inference, and all gradients."""
    arguments = (problem.cell, problem.x, problem.weights, problem.state)
    y, state, saved = wing.recurrence_forward(*arguments, training=True, **problem.options)
    inferred = wing.recurrence_forward(*arguments, **problem.options)
    assert inferred[2] is None
    assert_same(inferred[:2], (y, state)) if wing is native else None
    return y, state, wing.recurrence_backward(saved, problem.dy, problem.dstate, dweights)


def check(problem):
    """Compare with the definition."""
    T, B, I = problem.x.shape
    terms = recurrence_terms(T, B, I, problem.hidden_size) + ELEMENTARY * T
    assert_all_close(run(native, problem), run(reference, problem), terms)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("cell", CELLS)
def test_cells_agree_with_the_definition(cell, options):
    check(draw(CELLS[cell], options, T=5, B=6, I=3, H=11))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("cell", KINDS)
def test_instruction_sets_agree_with_the_definition(instructions, cell, dtype):
    check(draw(CELLS[cell], ALL, T=5, B=9, I=3, H=37, dtype=dtype))


# Rows close to the height of a tile, units and inputs close to the lanes of a register and the width of a panel.
SIZES = [
    {"T": 1}, {"T": 2}, {"B": 1}, {"H": 1}, {"T": 1, "B": 1, "I": 1, "H": 1}, {"B": 5, "H": 33}, {"B": 37, "H": 3},
    {"T": 0}, {"B": 0}, {"T": 9, "B": 2, "H": 40}, {"B": 7, "H": 16}, {"B": 8, "I": 70, "H": 8}, {"I": 64, "H": 64},
    {"B": 1, "I": 17, "H": 150}, {"B": 2, "I": 16, "H": 129}, {"T": 150, "B": 12, "H": 5}, {"T": 1, "B": 5, "H": 37},
]  # fmt: skip


@pytest.mark.parametrize("sizes", SIZES, ids=lambda sizes: "-".join(f"{k}{v}" for k, v in sizes.items()))
@pytest.mark.parametrize("cell", KINDS)
def test_awkward_sizes(cell, sizes):
    if cell in SUMS and sizes.get("H", 8) < 8:  # in a norm, numbers close to each other lose their digits
        sizes = {**sizes, "H": 8}
    options = Options(bidirectional=True) if 0 in sizes.values() else ALL
    check(draw(CELLS[cell], options, **sizes))


@pytest.mark.parametrize(("batch", "hidden_size"), [(3, 70), (19, 70), (3, 16)])
@pytest.mark.parametrize("cell", KINDS)
def test_any_number_of_threads_gives_the_same_bits(instructions, cell, batch, hidden_size, team):
    """With few rows, threads share the columns; with many, or too little to share, each takes rows of its own."""
    problem = draw(CELLS[cell], ALL, T=6, B=batch, I=5, H=hidden_size, dtype="float32")
    team(1)
    alone = run(native, problem)
    for count in (2, 3, 7):
        team(count)
        assert_same(run(native, problem), alone)


def rows_of(problem, rows):
    """The problem of some rows of the batch."""

    def part(a, axis):
        return None if a is None else np.ascontiguousarray(np.take(a, rows, axis))

    return dataclasses.replace(
        problem, x=part(problem.x, 1), state=tuple(part(s, 1) for s in problem.state),
        lengths=part(problem.lengths, 0), resets=part(problem.resets, 1), exists=part(problem.exists, 1),
        mask=part(problem.mask, 1),
        dy=part(problem.dy, 1), dstate=tuple(part(s, 1) for s in problem.dstate),
    )  # fmt: skip


@pytest.mark.parametrize("cell", KINDS)
def test_a_row_has_the_same_bits_in_any_batch(instructions, cell):
    problem = draw(CELLS[cell], ALL, T=6, B=13, I=5, H=35, dtype="float32")
    y, state, (dx, _, dstate0) = run(native, problem)
    for rows in ([4], [0, 12], [9, 1, 5, 7, 2], list(range(1, 9))):
        y_part, state_part, (dx_part, _, dstate_part) = run(native, rows_of(problem, rows))
        assert_same((y_part, dx_part), (y[:, rows], dx[:, rows]))
        assert_same(state_part, tuple(s[:, rows] for s in state))
        assert_same(dstate_part, tuple(s[:, rows] for s in dstate0))


@pytest.mark.parametrize("border", [1, 4, 6])
@pytest.mark.parametrize("cell", KINDS)
def test_a_sequence_in_parts_gives_the_bits_of_the_whole(cell, border):
    """So do its gradients, where those of the earlier steps are added to those of the later ones."""
    options = Options(lengths=False, mask=True)
    whole = draw(CELLS[cell], options, T=7, B=5, I=3, H=18, dtype="float32")
    y, state, (dx, dweights, dstate0) = run(native, whole)
    first = dataclasses.replace(whole, x=whole.x[:border].copy(), dy=whole.dy[:border].copy())
    y_first, between, saved = native.recurrence_forward(
        first.cell, first.x, first.weights, first.state, training=True, mask=first.mask
    )
    second = dataclasses.replace(whole, x=whole.x[border:].copy(), dy=whole.dy[border:].copy(), state=between)
    y_second, final, (dx_second, later, dbetween) = run(native, second)
    dx_first, total, dstate_first = native.recurrence_backward(saved, first.dy, dbetween, later)
    assert_same((np.concatenate([y_first, y_second]), final), (y, state))
    assert_same((np.concatenate([dx_first, dx_second]), dstate_first), (dx, dstate0))
    assert_same(total, dweights)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("cell", CELLS)
def test_single_steps_give_the_bits_of_a_sequence(instructions, cell, dtype, team):
    """With any number of rows and threads: a step of few rows reads the weights in their original layout."""
    if instructions != processor.instruction_sets()[0] and cell not in KINDS:
        pytest.skip("in each instruction set, a cell of each kind of product is compiled")
    for batch in (1, 2, 3, 4, 5):
        problem = draw(CELLS[cell], Options(mask=True), T=4, B=batch, I=19, H=70, dtype=dtype)
        team(1)
        expected = native.recurrence_forward(
            problem.cell, problem.x, problem.weights, problem.state, mask=problem.mask
        )[:2]  # fmt: skip
        for count in (1, 2, 3, 7):
            team(count)
            ys, state = [], problem.state
            for x in problem.x:
                y, state, _ = native.recurrence_forward(
                    problem.cell, x[None], problem.weights, state, mask=problem.mask
                )  # fmt: skip
                ys.append(y)
            assert_same((np.concatenate(ys), state), expected)


@pytest.mark.parametrize("cell", ["lstm", "gru-reset-before-state"])
def test_a_step_has_the_same_bits_whenever_its_threads_come(cell, team, monkeypatch):
    """The threads do not start together, as those of a longer call do, and some may not start at all."""
    problem = draw(CELLS[cell], Options(), T=30, B=1, I=200, H=250, dtype="float32")

    def steps():
        ys, state = [], problem.state
        for x in problem.x:
            y, state, _ = native.recurrence_forward(problem.cell, x[None], problem.weights, state)
            ys.append(y)
        return np.concatenate(ys), state

    team(1)
    expected = steps()
    team(3)
    steps()  # after this call they are awake
    monkeypatch.setattr(threads, "PATIENCE", -1.0)
    assert_same(steps(), expected)
    assert threads.library().gpurnn_workers() == 2
    threads.release()
    assert_same(steps(), expected)


@pytest.mark.parametrize("cell", KINDS)
def test_a_pullback_can_be_called_again(cell):
    """Changing the arguments or results in between does not affect it."""
    problem = draw(CELLS[cell], ALL, T=5, B=4, I=3, H=9)
    y, state, saved = native.recurrence_forward(
        problem.cell, problem.x, problem.weights, problem.state, training=True, **problem.options
    )
    expected = native.recurrence_backward(saved, problem.dy, problem.dstate)
    kept = [a.copy() for a in (expected[0], *expected[2], *(g for w in expected[1] for g in w.values()))]
    for array in (
        y,
        *state,
        problem.x,
        *problem.state,
        problem.lengths,
        problem.resets,
        problem.exists,
        problem.mask,
        expected[0],
    ):
        array[...] = 0
    for direction in problem.weights:
        for weight in direction.values():
            weight[...] = 7
    again = native.recurrence_backward(saved, problem.dy, problem.dstate)
    for array, before in zip((again[0], *again[2], *(g for w in again[1] for g in w.values())), kept, strict=True):
        np.testing.assert_array_equal(array, before)


@pytest.mark.parametrize("cell", [*KINDS, "lstm-peephole"])
def test_chunks_without_rows_leave_gradients_of_zero(cell, monkeypatch):
    """The gradients of weights begin with the last chunk of steps. Here no row exists in the last two of three."""
    monkeypatch.setattr("gpurnn.reference.clock.CHUNK_ROWS", 6)
    problem = draw(LSTM(peephole=True) if "peephole" in cell else CELLS[cell], ALL, T=6, B=3, I=5, H=23)
    for most in (2, 0):
        check(dataclasses.replace(problem, lengths=np.minimum(problem.lengths, most)))


def test_gradients_of_nothing_are_zero():
    problem = draw(LSTM(), ALL)
    saved = native.recurrence_forward(
        problem.cell, problem.x, problem.weights, problem.state, training=True, **problem.options
    )[2]
    dx, dweights, dstate0 = native.recurrence_backward(saved, None, (None, None))
    for array in (dx, *dstate0, *(g for direction in dweights for g in direction.values())):
        assert not array.any()


@pytest.mark.parametrize("activation", ["identity", "relu"])
def test_without_a_leak_an_infinite_state_is_not_read_beside_the_product(activation):
    """A leak of zero times infinity would be NaN."""
    one = np.ones((1, 1))
    weights, state = ({"weight_ih": one, "weight_hh": one},), (np.zeros((1, 1, 1)),)
    y, final, saved = native.recurrence_forward(
        Vanilla(activation), np.full((3, 1, 1), np.inf), weights, state, training=True
    )
    dx, _, dstate = native.recurrence_backward(saved, None, (np.full((1, 1, 1), np.inf),))
    for array in (y, *final, dx, *dstate):
        assert np.isposinf(array).all()


def test_a_nan_stays_in_its_row():
    problem = draw(GRU(), Options(bidirectional=True), T=4, B=6, I=3, H=20)
    expected = run(native, problem)
    problem.x[1, 2, 0] = np.nan
    y, _, (dx, _, _) = run(native, problem)
    others = [0, 1, 3, 4, 5]
    assert np.isnan(y[1:, 2]).any()
    assert_same((y[:, others], dx[:, others]), (expected[0][:, others], expected[2][0][:, others]))


def test_a_decaying_state_is_zero_in_the_end_and_not_subnormal():
    """Computing with subnormal numbers takes a hundred times as long. Outside a call they behave as usual."""
    weights = ({"weight_ih": np.ones((1, 1), np.float32), "weight_hh": np.full((1, 1), 0.5, np.float32)},)
    x = np.zeros((200, 1, 1), np.float32)
    x[0] = 1
    y, _, _ = native.recurrence_forward(Vanilla("identity"), x, weights, (np.zeros((1, 1, 1), np.float32),))
    np.testing.assert_array_equal(y[:126, 0, 0], np.float32(0.5) ** np.arange(126, dtype=np.float32))
    assert not y[127:].any()
    assert np.float32(2.0**-130) / np.float32(2) > 0


def test_lengths_outside_are_refused():
    problem = draw(LSTM(), Options(lengths=True))
    with pytest.raises(ValueError, match=r"lstm: lengths holds 5 \.\.\. 5, expected 0 \.\.\. T = 4"):
        native.recurrence_forward(
            problem.cell, problem.x, problem.weights, problem.state, lengths=np.full(problem.x.shape[1], 5)
        )


# ---- Threads and processes ------------------------------------------------------------------------------------------


@pytest.fixture
def problem():
    return draw(LSTM(), ALL, T=8, B=12, I=5, H=30, dtype="float32")


def test_threads_that_call_at_once_get_the_same_bits(problem, team):
    team(1)
    expected = run(native, problem)
    team(3)
    found = []
    callers = [threading.Thread(target=lambda: found.append(run(native, problem))) for _ in range(5)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert len(found) == 5
    for one in found:
        assert_same(one, expected)


def test_workers_end_when_they_are_released(problem, team):
    team(3)
    run(native, problem)
    assert threads.library().gpurnn_workers() == 2
    threads.release()
    assert threads.library().gpurnn_workers() == 0
    team(2)
    run(native, problem)
    assert threads.library().gpurnn_workers() == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_has_threads_of_its_own(problem, team):
    team(3)
    expected = run(native, problem)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        status = 1
        try:
            assert threads.library().gpurnn_workers() == 0
            assert_same(run(native, problem), expected)
            assert threads.library().gpurnn_workers() == 2
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0
    assert_same(run(native, problem), expected)


@pytest.mark.parametrize(("variable", "count"), [("1", 1), ("2", 2), ("2,1", 2), ("", None), ("none", None)])
def test_the_number_of_threads_is_what_openmp_is_told(variable, count, monkeypatch):
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    monkeypatch.setenv("OMP_NUM_THREADS", variable)
    assert threads.most() == threads.available() == min(processors, count or processors)


def test_a_tool_can_limit_the_threads(monkeypatch):
    monkeypatch.setattr(threads, "available", lambda: 5)
    library = threads.library()
    for limit, expected in ((3, 3), (9, 5), (0, 5)):
        library.gpurnn_set_num_threads(limit)
        assert (library.gpurnn_get_num_threads(), threads.most()) == (limit, expected)


def test_a_machine_without_a_compiler_is_told_so(monkeypatch, tmp_path):
    monkeypatch.setattr(build, "SHIPPED", tmp_path)
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr(build, "_loaded", {})
    problem = draw(LSTM(), Options())
    with pytest.raises(CompilerError, match=r"^no C\+\+ compiler: set CXX, install g\+\+"):
        run(native, problem)


def test_a_process_on_one_processor_has_one_thread():
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("this system does not bind processes to processors")
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "from gpurnn.kernels.native import threads; print(threads.most())"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=Path(__file__).parents[1]
    )
    assert found.stdout.strip() == "1"


def test_an_instruction_set_that_the_processor_lacks_is_refused(monkeypatch):
    monkeypatch.setenv("GPURNN_CPU", "avx9000")
    with pytest.raises(ValueError, match="GPURNN_CPU is 'avx9000', expected an instruction set of this processor: "):
        processor.chosen()
