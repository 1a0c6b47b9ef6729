"""Properties of every recurrence, with shapes, lengths and options drawn by hypothesis."""

from __future__ import annotations

import dataclasses
import itertools
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from problems import CELLS, Options, Problem, draw, unrolled_backward, unrolled_forward
from tolerance import arrays_of, assert_all_close, assert_same, recurrence_terms

from gpurnn import reference


@st.composite
def problems(draw_from, options: st.SearchStrategy[Options] | None = None, least_steps: int = 0) -> Problem:
    """Any cell, any options, small sizes including zero, and any pattern of lengths and resets."""
    cell = CELLS[draw_from(st.sampled_from(sorted(CELLS)))]
    chosen = draw_from(st.builds(Options, *[st.booleans()] * 8) if options is None else options)
    T, B = draw_from(st.integers(least_steps, 6)), draw_from(st.integers(0, 4))
    problem = draw(
        cell, dataclasses.replace(chosen, lengths=False, resets=False, holes=False),
        T, B, draw_from(st.integers(1, 3)), draw_from(st.integers(1, 4)), draw_from(st.integers(0, 99)),
        draw_from(st.sampled_from(["float64", "float32"])),
    )  # fmt: skip
    if chosen.lengths:
        lengths = draw_from(st.lists(st.integers(0, T), min_size=B, max_size=B))
        kind = draw_from(st.sampled_from(["int8", "uint8", "int32", "int64", "uint64"]))
        problem = dataclasses.replace(problem, lengths=np.array(lengths, kind))
    if chosen.resets:
        steps = draw_from(st.lists(st.lists(st.booleans(), min_size=B, max_size=B), min_size=T, max_size=T))
        problem = dataclasses.replace(problem, resets=np.array(steps, bool).reshape(T, B))
    if chosen.holes:
        steps = draw_from(st.lists(st.lists(st.booleans(), min_size=B, max_size=B), min_size=T, max_size=T))
        problem = dataclasses.replace(problem, exists=np.array(steps, bool).reshape(T, B))
    return problem


def forward(problem: Problem, training: bool = False):
    return reference.recurrence_forward(
        problem.cell, problem.x, problem.weights, problem.state, training=training, **problem.options
    )


def run(problem: Problem):
    """Outputs and gradients: y, state, dx, dweights, dstate0."""
    y, state, saved = forward(problem, training=True)
    return y, state, *reference.recurrence_backward(saved, problem.dy, problem.dstate)


def past(problem: Problem) -> np.ndarray:
    """(T, B): the steps that do not exist."""
    return ~problem.there()


def assert_as(problem: Problem, actual, expected) -> None:
    """Check equality up to the rounding of a recurrence of the problem's size."""
    T, B, I = problem.x.shape
    given_arrays = (problem.x, problem.dy, *problem.state, *problem.dstate)
    magnitude = max((float(np.abs(a).max()) for a in given_arrays if a.size), default=0.0)
    assert_all_close(actual, expected, recurrence_terms(T, B, I, problem.hidden_size), magnitude)


@given(problems())
def test_the_loop_is_its_steps(problem):
    """`cell_forward` and `cell_backward`, chained for each row alone, give the results of the recurrence."""
    y, state, saved = unrolled_forward(problem)
    assert_as(problem, run(problem), (y, state, *unrolled_backward(problem, saved)))


@given(problems())
def test_inference_gives_what_training_gives(problem):
    y, state, nothing = forward(problem)
    assert nothing is None
    assert_as(problem, (y, state), forward(problem, training=True)[:2])


@given(problems())
def test_two_runs_and_two_pullbacks_are_bit_equal(problem):
    y, state, saved = forward(problem, training=True)
    first = reference.recurrence_backward(saved, problem.dy, problem.dstate)
    assert_same(reference.recurrence_backward(saved, problem.dy, problem.dstate), first)
    assert_same(run(problem), (y, state, *first))


@given(problems())
def test_arguments_stay_as_they_were(problem):
    given_arrays = [w for direction in problem.weights for w in direction.values()]
    given_arrays += [problem.x, *problem.state, problem.dy, *problem.dstate]
    given_arrays += [a for a in problem.options.values() if isinstance(a, np.ndarray)]
    for a in given_arrays:
        a.flags.writeable = False
    run(problem)
    forward(problem)


@given(problems())
def test_writing_to_outputs_does_not_reach_the_gradients(problem):
    expected = run(problem)[2:]
    y, state, saved = forward(problem, training=True)
    for a in (y, *state):
        a.fill(np.nan)
    assert_same(reference.recurrence_backward(saved, problem.dy, problem.dstate), expected)


with_lengths = st.builds(Options, st.booleans(), st.booleans(), st.just(True), *[st.booleans()] * 3)
with_absent_steps = st.one_of(with_lengths, st.builds(Options, *[st.booleans()] * 6, st.just(True)))


@pytest.mark.parametrize("nothing", [np.nan, np.inf])
@given(problem=problems(with_absent_steps))
def test_nothing_is_read_and_only_zeros_are_written_where_there_is_no_step(nothing, problem):
    hidden = past(problem)
    spoiled = dataclasses.replace(problem, x=problem.x.copy(), dy=problem.dy.copy())
    spoiled.x[hidden] = nothing
    spoiled.dy[hidden] = nothing
    if problem.resets is not None and problem.lengths is not None:
        spoiled.resets = problem.resets | (np.arange(len(hidden))[:, None] >= problem.lengths)
    y, state, dx, dweights, dstate0 = run(spoiled)
    assert not y[hidden].any()
    assert not dx[hidden].any()
    assert_same((y, state, dx, dweights, dstate0), run(problem))


@given(problems(with_lengths))
def test_padded_equals_trimmed(problem):
    """Each row alone, cut to its length, gives its outputs and its share of the gradients."""
    y, state, dx, dweights, dstate0 = run(problem)
    summed = [np.zeros_like(g) for g in arrays_of(dweights)]
    for b, length in enumerate(problem.lengths):
        alone = dataclasses.replace(
            problem,
            x=problem.x[:length, b : b + 1],
            dy=problem.dy[:length, b : b + 1],
            state=tuple(s[:, b : b + 1] for s in problem.state),
            dstate=tuple(s[:, b : b + 1] for s in problem.dstate),
            lengths=None,
            resets=None if problem.resets is None else problem.resets[:length, b : b + 1],
            mask=None if problem.mask is None else problem.mask[:, b : b + 1],
        )
        y_b, state_b, dx_b, dweights_b, dstate0_b = run(alone)
        assert_as(problem, y[:length, b : b + 1], y_b)
        assert_as(problem, dx[:length, b : b + 1], dx_b)
        assert_as(problem, [s[:, b : b + 1] for s in state], state_b)
        assert_as(problem, [s[:, b : b + 1] for s in dstate0], dstate0_b)
        if length == 0:
            assert_same(tuple(s[:, b] for s in state), tuple(s[:, b] for s in problem.state))
            assert_same(tuple(s[:, b] for s in dstate0), tuple(s[:, b] for s in problem.dstate))
        for total, g in zip(summed, arrays_of(dweights_b), strict=True):
            total += g
    assert_as(problem, dweights, summed)


with_holes = st.builds(Options, *[st.booleans()] * 3, st.just(False), *[st.booleans()] * 2, st.just(True))


@given(problems(with_holes))
def test_steps_with_holes_equal_those_that_exist_alone(problem):
    """Each row alone, without its holes, gives its outputs and its share of the gradients."""
    y, state, dx, dweights, dstate0 = run(problem)
    summed = [np.zeros_like(g) for g in arrays_of(dweights)]
    for b, there in enumerate(problem.there().T):
        row = slice(b, b + 1)
        alone = dataclasses.replace(
            problem,
            x=problem.x[there, row],
            dy=problem.dy[there, row],
            state=tuple(s[:, row] for s in problem.state),
            dstate=tuple(s[:, row] for s in problem.dstate),
            lengths=None,
            exists=None,
            mask=None if problem.mask is None else problem.mask[:, row],
        )
        y_b, state_b, dx_b, dweights_b, dstate0_b = run(alone)
        assert_as(problem, y[there, row], y_b)
        assert_as(problem, dx[there, row], dx_b)
        assert_as(problem, [s[:, row] for s in state], state_b)
        assert_as(problem, [s[:, row] for s in dstate0], dstate0_b)
        for total, g in zip(summed, arrays_of(dweights_b), strict=True):
            total += g
    assert_as(problem, dweights, summed)


@given(problems(), st.randoms(use_true_random=False))
def test_permuting_the_batch_permutes_the_result(problem, random):
    order = list(range(problem.x.shape[1]))
    random.shuffle(order)
    permuted = dataclasses.replace(
        problem,
        x=problem.x[:, order],
        dy=problem.dy[:, order],
        state=tuple(s[:, order] for s in problem.state),
        dstate=tuple(s[:, order] for s in problem.dstate),
        lengths=None if problem.lengths is None else problem.lengths[order],
        resets=None if problem.resets is None else problem.resets[:, order],
        exists=None if problem.exists is None else problem.exists[:, order],
        mask=None if problem.mask is None else problem.mask[:, order],
    )
    y, state, dx, dweights, dstate0 = run(problem)
    expected = (y[:, order], [s[:, order] for s in state], dx[:, order], dweights, [s[:, order] for s in dstate0])
    assert_as(problem, run(permuted), expected)


def joined(parts: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(parts, axis=0)


one_direction = st.builds(Options, *[st.booleans()] * 5, st.just(False), st.booleans(), st.booleans())


@given(problems(one_direction, least_steps=1), st.integers(1, 3))
def test_steps_at_once_equal_pieces_with_the_state_carried(problem, piece):
    """One call over T steps equals calls over pieces of 1, 2 or 3 steps, with gradients passed through the state."""
    T = problem.x.shape[0]
    state, kept, ys = problem.state, [], []
    for start in range(0, T, piece):
        steps = slice(start, min(start + piece, T))
        part = dataclasses.replace(
            problem,
            x=problem.x[steps],
            state=state,
            lengths=None
            if problem.lengths is None
            else np.clip(problem.lengths.astype(int) - start, 0, steps.stop - start),
            resets=None if problem.resets is None else problem.resets[steps],
            exists=None if problem.exists is None else problem.exists[steps],
        )
        y, state, saved = forward(part, training=True)
        ys.append(y)
        kept.append((steps, saved))
    dstate, dxs, dweights = problem.dstate, [], None
    for steps, saved in reversed(kept):
        dx, dw, dstate = reference.recurrence_backward(saved, problem.dy[steps], dstate)
        dxs.insert(0, dx)
        dweights = arrays_of(dw) if dweights is None else [a + b for a, b in zip(dweights, arrays_of(dw), strict=True)]
    assert_as(problem, run(problem), (joined(ys), state, joined(dxs), dweights, dstate))


unaligned = st.builds(
    Options,
    st.booleans(),
    st.booleans(),
    st.just(False),
    *[st.booleans()] * 2,
    st.just(True),
    st.booleans(),
    st.booleans(),
)


@given(problems(unaligned, least_steps=1))
def test_reversed_twice_is_the_identity(problem):
    """If time is reversed, the directions exchanged, and the result reversed again, the recurrence is the same."""
    H = problem.dy.shape[2] // 2

    def turned(a):
        return np.concatenate([a[::-1, :, H:], a[::-1, :, :H]], axis=2)

    def exchanged(arrays):
        return tuple(a[::-1] for a in arrays)

    resets = problem.resets
    if resets is not None:
        # A sequence that begins at t begins at T - t when read from the end. One that begins at 0 has no counterpart.
        resets = resets.copy()
        resets[0] = False
        problem = dataclasses.replace(problem, resets=resets)
        resets = np.concatenate([resets[:1], resets[:0:-1]])
    mirrored = dataclasses.replace(
        problem,
        x=problem.x[::-1],
        dy=turned(problem.dy),
        weights=problem.weights[::-1],
        state=exchanged(problem.state),
        dstate=exchanged(problem.dstate),
        resets=resets,
        exists=None if problem.exists is None else problem.exists[::-1],
        mask=None if problem.mask is None else problem.mask[::-1],
    )
    y, state, dx, dweights, dstate0 = run(mirrored)
    assert_as(problem, run(problem), (turned(y), exchanged(state), dx[::-1], dweights[::-1], exchanged(dstate0)))


with_resets = st.builds(Options, *[st.booleans()] * 3, st.just(True), *[st.booleans()] * 2)


@given(problems(with_resets, least_steps=1))
def test_resets_equal_separate_runs(problem):
    """Each row of a batch, cut where new sequences begin, run as sequences of their own."""
    T, B, _ = problem.x.shape
    y, state, dx, dweights, dstate0 = run(problem)
    summed = [np.zeros_like(g) for g in arrays_of(dweights)]
    for b in range(B):
        length = T if problem.lengths is None else int(problem.lengths[b])
        starts = [t for t in range(length) if problem.resets[t, b]]
        edges = [0, *[t for t in starts if t > 0], length]
        row = slice(b, b + 1)
        for first, last in itertools.pairwise(edges):
            keep = [
                # The forward direction begins with the given state unless a sequence begins there; so does the
                # backward direction, at the end of the row.
                first == 0 and not (length > 0 and problem.resets[0, b]),
                last == length,
            ]
            ends = [last == length, first == 0]

            def part(arrays, wanted, row=row):
                return tuple(np.stack([s[d, row] * wanted[d] for d in range(len(s))]) for s in arrays)

            alone = dataclasses.replace(
                problem,
                x=problem.x[first:last, row],
                dy=problem.dy[first:last, row],
                state=part(problem.state, keep),
                dstate=part(problem.dstate, ends),
                lengths=None,
                resets=None,
                mask=None if problem.mask is None else problem.mask[:, row],
            )
            y_p, state_p, dx_p, dweights_p, dstate0_p = run(alone)
            assert_as(problem, y[first:last, row], y_p)
            assert_as(problem, dx[first:last, row], dx_p)
            for d in range(len(problem.weights)):
                if ends[d]:
                    assert_as(problem, [s[d, row] for s in state], [s[d] for s in state_p])
                if keep[d]:
                    assert_as(problem, [s[d, row] for s in dstate0], [s[d] for s in dstate0_p])
                elif (first == 0, last == length)[d]:
                    assert not any(s[d, row].any() for s in dstate0)
            for total, g in zip(summed, arrays_of(dweights_p), strict=True):
                total += g
    assert_as(problem, dweights, summed)


@given(problems())
def test_a_batch_without_rows_or_steps_leaves_the_state_as_it_was(problem):
    T, B, _ = problem.x.shape
    y, state, dx, dweights, dstate0 = run(problem)
    if T == 0:
        assert_same((state, dstate0), (problem.state, problem.dstate))
    if T == 0 or B == 0:
        assert y.size == 0
        assert dx.size == 0
        assert not any(g.any() for g in arrays_of(dweights))


def large(cell: str, seed: int) -> Problem:
    """A problem whose scratch arrays are large enough to be pooled."""
    return draw(CELLS[cell], Options(bidirectional=True), T=20, B=16, I=8, H=64, seed=seed)


@pytest.mark.parametrize("cell", ["rnn-tanh", "lstm", "gru-reset-before-candidate", "gru-reset-after-state"])
def test_what_one_call_saved_survives_other_calls(cell):
    first, second = large(cell, 1), large(cell, 2)
    expected = [tuple(map(np.copy, arrays_of(run(problem)))) for problem in (first, second)]
    runs = [forward(problem, training=True) for problem in (first, second, first)]
    run(second)
    for problem, (y, state, saved), before in zip((first, second, first), runs, [*expected, expected[0]], strict=True):
        gradients = reference.recurrence_backward(saved, problem.dy, problem.dstate)
        assert_same(tuple(arrays_of((y, state, gradients))), before)


def test_calls_in_several_threads_do_not_share_scratch():
    problem_list = [large("lstm", seed) for seed in range(4)]
    expected = [tuple(arrays_of(run(problem))) for problem in problem_list]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            for results, before in zip(pool.map(run, problem_list), expected, strict=True):
                assert_same(tuple(arrays_of(results)), before)


@pytest.mark.parametrize("length", [-1, 5])
def test_a_length_outside_the_sequence_is_refused(length):
    problem = draw(CELLS["lstm"], Options(lengths=True))
    problem.lengths[1] = length
    with pytest.raises(ValueError, match=r"lengths holds .* expected 0 \.\.\. T = 4"):
        forward(problem)


def test_states_that_leave_the_range_saturate():
    """Large inputs give gates of 0 and 1, no overflow and no NaN; the suite turns warnings into errors."""
    for cell in (
        CELLS["lstm"],
        CELLS["gru-reset-before-candidate"],
        CELLS["gru-reset-after-state"],
        CELLS["rnn-sigmoid"],
    ):
        for dtype in ("float32", "float64"):
            problem = draw(cell, Options(bidirectional=True), dtype=dtype)
            for sign in (1, -1):
                results = run(dataclasses.replace(problem, x=sign * 1e30 * np.abs(problem.x)))
                assert all(np.isfinite(a).all() for a in arrays_of(results))
