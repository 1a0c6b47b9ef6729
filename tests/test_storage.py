"""Shows that kernels are ready for arrays of 16 bits: they store in one type and compute in another.

These tests add float16, with its own C type, to the table of dtypes. A kernel must then give the float32 results for
the same numbers, rounded once.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from gpurnn.kernels import (
    attention,
    compiler,
    devices,
    dropout,
    dtypes,
    embedding,
    launch,
    linear_scan,
    losses,
    optim,
    self_attention,
)
from gpurnn.kernels.recurrence import plan
from gpurnn.kernels.recurrence.run import Run, run_backward, run_forward
from gpurnn.kernels.recurrence.struct import Struct
from problems import ALL, CELLS, SCHEDULES, draw
from test_nvrtc import needs_nvrtc
from tolerance import arrays_of, assert_all_close, recurrence_terms

from benchmarks import nvrtc
from gpurnn import kernels, reference
from gpurnn.cells import IndRNN

HALF = dtypes.Dtype("float16", storage="Half", accumulator="float32", itemsize=2)

WANT_TILES_OF_THEIR_OWN = {
    "forward<Gru<float, false, false>, Half, Exchange::grid, 4, 8, 0, 4>",
    "forward<Lstm<float>, Half, Exchange::grid, 1, 2, 0, 1>",
}
"""Kernels that spill with a type of 16 bits, as their packets hold twice the numbers. The table has no such dtype."""
HEADER = Path(__file__).with_name("half.cuh").read_text()


@pytest.fixture(autouse=True)
def half(monkeypatch):
    """Lets kernels take arrays of float16."""
    unit = compiler.translation_unit

    def with_half(*arguments):
        return f"{HEADER}\n{unit(*arguments)}"

    monkeypatch.setattr(compiler, "translation_unit", with_half)
    monkeypatch.setattr(launch, "translation_unit", with_half)
    monkeypatch.setitem(dtypes.TABLE, HALF.name, HALF)


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float16)


def widened(array):
    return array.astype(np.float32) if array.dtype == np.float16 else array


def assert_rounded(run, *arrays):
    """Check that ``run`` gives for float16 the bits of its float32 results, rounded."""
    narrow, wide = arrays_of(run(*arrays)), arrays_of(run(*map(widened, arrays)))
    assert narrow
    for found, expected in zip(narrow, wide, strict=True):
        assert found.dtype == np.float16
        np.testing.assert_array_equal(found, expected.astype(np.float16))


def rounded(array):
    """The values of ``array`` that float16 can store."""
    return array.astype(np.float16).astype(array.dtype)


@pytest.mark.kernels
def test_every_float16_is_read_and_every_float32_rounded_as_numpy_does():
    every = np.arange(2**16, dtype=np.uint16).view(np.float16)
    finite = every[np.isfinite(every)].astype(np.float32)
    between = np.concatenate([finite, np.nextafter(finite, np.inf), finite * np.float32(1 + 2**-11), finite * 2])
    weight = np.concatenate([every, np.array([np.inf, -np.inf], np.float16)])[:, None]
    found = kernels.embedding_gather(weight, np.arange(len(weight)))
    np.testing.assert_array_equal(found, weight)
    zeros = np.zeros(len(between), np.float16)
    # (y - 0)^2: y is converted, and its square is rounded.
    with np.errstate(over="ignore", under="ignore"):
        y = np.sqrt(np.abs(between)).astype(np.float16)
        expected = np.square(y.astype(np.float32)).astype(np.float16)
    np.testing.assert_array_equal(kernels.mse_forward(y, zeros)[0], expected)


@pytest.mark.kernels
@pytest.mark.parametrize("additive", [False, True])
@pytest.mark.parametrize(("T", "S", "shared"), [(1, 5, 48), (6, 3, 48), (6, 3, 0), (20, 3, 0)], ids=str)
def test_attention(T, S, shared, additive, monkeypatch):
    """Includes scores that do not fit into shared memory, and tiles."""
    monkeypatch.setattr(attention, "SHARED", shared * 1024)
    B, A, E = 2, 3, 4

    def run(query, keys, values, v, dcontext, dweights, lengths):
        context, weights, saved = kernels.attention_forward(
            query, keys, values, v if additive else None, lengths=lengths, scale=0.5, training=True
        )
        return context, weights, kernels.attention_backward(saved, dcontext, dweights)

    shapes = (T, B, A), (S, B, A), (S, B, E), (A,), (T, B, E), (T, B, S)
    assert_rounded(run, *(numbers(*shape, seed=k) for k, shape in enumerate(shapes)), np.array([S, S // 2]))


@pytest.mark.kernels
@pytest.mark.parametrize("V", [5, 1500])  # one warp per row, one block per row
def test_losses(V):
    def run(logits, labels, weights, class_weights, dlosses):
        options = {"class_weights": class_weights, "label_smoothing": 0.1, "training": True}
        found, saved = kernels.cross_entropy_forward(logits, labels, weights, **options)
        errors, differences = kernels.mse_forward(logits[:, 0], weights, training=True)
        back = kernels.mse_backward(rounded(differences), dlosses)
        return found, kernels.cross_entropy_backward(saved, dlosses), errors, differences, back

    labels = np.random.default_rng(0).integers(0, V, 4)
    assert_rounded(run, numbers(4, V), labels, abs(numbers(4)), abs(numbers(V, seed=1)), numbers(4, seed=2))


@pytest.mark.kernels
@pytest.mark.parametrize("constant", [False, True])
def test_linear_scan(constant):
    T, B, N = 150, 2, 3

    def run(a, b, h0, dh):
        h, saved = kernels.linear_scan_forward(a, b, h0, training=True)
        saved = dataclasses.replace(saved, h=rounded(saved.h))
        return h, kernels.linear_scan_backward(saved, dh)[1:]  # where da is a sum, it is rounded only once

    a = (0.9 * np.tanh(numbers(*((N,) if constant else (T, B, N))))).astype(np.float16)
    assert_rounded(run, a, numbers(T, B, N, seed=1), numbers(B, N, seed=2), numbers(T, B, N, seed=3))


@pytest.mark.kernels
def test_independent_units():
    T, B, H = 30, 2, 3

    def run(a, u, h0, dh):
        h, saved = kernels.independent_forward(IndRNN("tanh"), a, u, h0, training=True)
        saved = dataclasses.replace(saved, h=rounded(saved.h))
        return h, kernels.independent_backward(saved, dh)

    assert_rounded(run, *(numbers(*shape, seed=k) for k, shape in enumerate([(T, B, H), (B, H), (B, H), (T, B, H)])))


@pytest.mark.kernels
def test_rows_of_a_table_and_dropout():
    indices = np.random.default_rng(0).integers(0, 3, 500)  # two levels of runs
    assert_rounded(lambda dy: kernels.embedding_scatter(indices, dy, 4), numbers(500, 5))
    assert_rounded(lambda like: kernels.dropout_mask(like, (7, 9), 0.3, 1, 2), numbers(1))


@pytest.mark.kernels
def test_norms_and_an_update():
    """The slots of an optimizer are float32."""

    def run(p, q, dp, dq):
        arrays, grads, norm = [p.copy(), q.copy()], [dp, dq], kernels.global_norm([dp, dq])
        slots = {name: [np.full(a.shape, 0.5, np.float32) for a in arrays] for name in ("mean", "square")}
        scalars = {"rate": 0.1, "beta1": 0.9, "one_minus_beta1": 0.1}
        scalars |= {"beta2": 0.99, "one_minus_beta2": 0.01, "floor": 1e-8}
        kernels.optimizer_update("adam", arrays, grads, slots | {"largest": None}, [0.99, 0.98], 0.01, scalars)
        means = [mean.astype(p.dtype) for mean in slots["mean"]]
        return arrays, means, kernels.scaled(grads, np.array(0.3)), norm.astype(p.dtype)

    assert_rounded(run, *(numbers(*shape, seed=k) for k, shape in enumerate([(3000,), (5, 7)] * 2)))


@pytest.mark.kernels
@pytest.mark.parametrize("schedule", ["step-fused", "block", "persistent"])
@pytest.mark.parametrize("cell", ["rnn-tanh-leak", "lstm", "gru-reset-after-state"])
def test_a_step_of_a_recurrence(cell, schedule, monkeypatch):
    """The state is float32."""
    gpu = dataclasses.replace(devices.lookup("H100"), multiprocessors=5)
    monkeypatch.setattr(plan, "device_of", lambda array: gpu)
    cell, B, H = CELLS[cell], 5, 17
    G = cell.gates * H
    states = [numbers(1, B, H, seed=k).astype(np.float32) for k in range(2 * cell.states)]

    mask = numbers(1, B, H) > 0  # makes the operand float16

    def run(w, xw, b_ih, b_hh, dy):
        state, dstate = (tuple(s.copy() for s in states[k : k + cell.states]) for k in (0, cell.states))
        with plan.schedule(schedule):
            forward = Run.begin(cell, 1, B, H, w, mask=mask.astype(w.dtype), training=True)
        y = run_forward(forward, xw, (b_ih, b_hh), state)
        kept = dataclasses.replace(forward, operands=rounded(forward.operands), saved=rounded(forward.saved))
        da, da_hidden = run_backward(kept, dy, dstate)
        for s in state:
            assert s.dtype == np.float32
        return y, forward.operands, forward.saved, da, da_hidden, tuple(s.astype(w.dtype) for s in state)

    shapes = (1, G, H), (1, B, G), (1, G), (1, G), (1, B, H)
    assert_rounded(run, *(numbers(*shape, seed=9 + k) for k, shape in enumerate(shapes)))


@pytest.mark.kernels
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("cell", ["lstm", "gru-reset-before-candidate"])
def test_a_recurrence(cell, schedule, monkeypatch):
    """Blocks exchange operands in 16 bits, in more than one phase."""
    gpu = dataclasses.replace(devices.lookup("H100"), multiprocessors=5)
    monkeypatch.setattr(plan, "device_of", lambda array: gpu)
    options = ALL
    problem = draw(CELLS[cell], options, T=4, B=3, I=2, H=5, dtype="float16")

    def run(wing, dtype):
        def to(nested):
            if isinstance(nested, dict):
                return {name: to(array) for name, array in nested.items()}
            return tuple(map(to, nested)) if isinstance(nested, tuple) else nested.astype(dtype)

        others = {
            "lengths": problem.lengths,
            "resets": problem.resets,
            "exists": problem.exists,
            "repeats": problem.repeats,
            "mask": to(problem.mask),
        }
        arguments = problem.cell, to(problem.x), to(problem.weights), to(problem.state)
        y, state, saved = wing.recurrence_forward(*arguments, training=True, **others)
        return y, state, wing.recurrence_backward(saved, to(problem.dy), to(problem.dstate))

    with plan.schedule(schedule):
        found = run(kernels, np.float16)
    expected = [a.astype(np.float16) for a in arrays_of(run(reference, np.float64))]
    assert_all_close(arrays_of(found), expected, recurrence_terms(4, 3, 2, 5))


@needs_nvrtc
@pytest.mark.slow
def test_nvrtc_compiles_kernels_for_it():
    files = attention, dropout, embedding, linear_scan, losses, optim, self_attention
    modules = [m for file in files for m in file.modules() if "Half" in " ".join(m.names)]
    for cell in (CELLS["lstm"], CELLS["gru-reset-before-state"]):
        struct = Struct.of(cell, HALF)
        modules.append(struct.stepwise_module())
        modules += [struct.fused_module(variant) for variant in plan.fused_variants(cell, HALF)]
    assert {module.source.name for module in modules} >= {"attention.cu", "fused.cu", "linear_scan.cu", "losses.cu"}
    resources = {}
    for module in modules:  # clusters need 90
        resources |= nvrtc.compile_module(module, 80 if nvrtc.runs(module, 80) else 90)
    assert {name for name, r in resources.items() if r["spilled"]} == WANT_TILES_OF_THEIR_OWN
