"""Masks with any holes, sequences backward in time, and merged directions, of functions and layers."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from problems import pattern_of_holes
from tolerance import assert_all_close, assert_same, recurrence_terms

import gpurnn
from gpurnn.layers.recurrent import LAYERS, MERGES

T, B, I, H = 6, 3, 2, 4
TERMS = recurrence_terms(T, B, I, H, 2)

each_wing = pytest.mark.parametrize(
    "each_wing", ["reference", "native", pytest.param("host", marks=pytest.mark.kernels)], indirect=True
)
each_layer = pytest.mark.parametrize("kind", LAYERS.values(), ids=LAYERS)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype("float32")


def arrays_of(state) -> tuple[np.ndarray, ...]:
    return state if isinstance(state, tuple) else (state,)


def state_of(kind):
    states = tuple(normal(1, B, H, seed=3 + k) for k in range(2))
    return states if kind is gpurnn.LSTM else states[0]


MASKS = {"holes": pattern_of_holes(T, B), "nothing": np.zeros((T, B), bool), "everything": np.ones((T, B), int)}


@each_wing
@each_layer
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_a_masked_step_carries_the_state_on(kind, mask, each_wing):
    """Each row alone, without its holes, has the same outputs and the same final state."""
    x, state = normal(T, B, I, seed=1), state_of(kind)
    x[mask == 0] = np.nan
    repeated, zeroed = (kind(I, H, zero_masked_output=zero, rng=1) for zero in (False, True))
    y, final = repeated(x, state, mask=mask)
    zeros, same = zeroed(x, state, mask=mask)
    assert_same(arrays_of(final), arrays_of(same))
    for b, t in itertools.product(range(B), range(T)):
        if mask[t, b]:
            assert_same(y[t, b], zeros[t, b])
        else:
            assert not zeros[t, b].any()
            assert_same(y[t, b], y[t - 1, b] if t else np.zeros(H, "float32"))
    for b in range(B):
        there, row = mask[:, b] != 0, slice(b, b + 1)
        own = tuple(s[:, row] for s in arrays_of(state))
        alone, last = repeated(x[there, row], own if kind is gpurnn.LSTM else own[0])
        found = y[there, row], *(s[:, row] for s in arrays_of(final))
        assert_all_close(found, (alone, *arrays_of(last)), TERMS)


@each_wing
@each_layer
@pytest.mark.parametrize("lengths", [None, np.array([6, 0, 3])], ids=str)
def test_a_mask_that_is_a_length_is_that_length(kind, lengths, each_wing):
    x = normal(T, B, I, seed=1)
    mask = np.arange(T)[:, None] < (np.full(B, T) if lengths is None else lengths)
    layer = kind(I, H, 2, bidirectional=True, zero_masked_output=True)
    (y, final), pullback = layer.vjp(x, mask=mask)
    (expected, last), pull = layer.vjp(x, lengths=lengths)
    assert_all_close((y, *arrays_of(final)), (expected, *arrays_of(last)), TERMS)
    assert_all_close(pullback((np.ones_like(y), None)), pull((np.ones_like(y), None)), TERMS * 4)


@each_wing
@each_layer
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("lengths", [None, np.array([6, 0, 3])], ids=str)
def test_reverse_is_the_backward_direction(kind, lengths, batch_first, each_wing):
    """The backward half of a bidirectional layer has the outputs, state and gradients of the reversed layer."""
    resets = np.zeros((T, B), bool)
    resets[2, 0] = resets[4, 2] = resets[3, 2] = True
    both, reverse = kind(I, H, bidirectional=True), kind(I, H, reverse=True, batch_first=batch_first)
    for name, p in reverse.params.items():
        p[...] = both.params[f"{name}_reverse"]

    def turned(a):
        return None if a is None else a.swapaxes(0, 1) if batch_first else a

    x, dy = normal(T, B, I, seed=1), normal(T, B, H, seed=2)
    (y, final), pullback = both.vjp(x, lengths=lengths, resets=resets)
    (found, own), pull = reverse.vjp(turned(x), None, lengths, turned(resets))
    assert_all_close((turned(found), *arrays_of(own)), (y[:, :, H:], *(s[1:] for s in arrays_of(final))), TERMS)
    (dx, _), grads = pullback((np.concatenate([np.zeros_like(dy), dy], axis=2), None))
    (dx_own, _), own_grads = pull((turned(dy), None))
    expected = dx, {name: grads[f"{name}_reverse"] for name in own_grads}
    assert_all_close((turned(dx_own), own_grads), expected, TERMS * 4)


@each_layer
def test_the_function_in_reverse_is_the_layer(kind):
    layer, lengths = kind(I, H, reverse=True), np.array([5, 6, 2])
    x, mask = normal(T, B, I), pattern_of_holes(T, B)
    weights = {name.removesuffix("_l0"): p for name, p in layer.params.items()}
    y, _ = getattr(gpurnn, kind.__name__.lower())(x, **weights, reverse=True, mask=mask, lengths=lengths)
    assert_same(y, layer(x, lengths=lengths, mask=mask)[0])


@each_layer
@pytest.mark.parametrize("merge", MERGES)
def test_merged_directions(kind, merge):
    x = normal(T, B, I)
    concat, merged = kind(I, H, bidirectional=True), kind(I, H, bidirectional=True, merge=merge)
    y, final = concat(x)
    f, b = y[:, :, :H], y[:, :, H:]
    expected = {"concat": y, "sum": f + b, "mul": f * b, "average": (f + b) / 2}[merge]
    found, same = merged(x)
    assert_all_close(found, expected, 2)
    assert_same(arrays_of(same), arrays_of(final))
    assert merged.output_size == expected.shape[2]
    stack = kind(I, H, 3, bidirectional=True, merge=merge)
    assert stack.params["weight_ih_l2"].shape[1] == merged.output_size
    assert stack(x)[0].shape == expected.shape


@each_layer
@pytest.mark.parametrize("options", [{}, {"reverse": True}, {"zero_masked_output": True, "residual": True}], ids=str)
def test_segments_with_a_mask_have_the_bits_of_the_whole(kind, options):
    """The sequence has several chunks, with holes that extend from one to the next."""
    steps, rows = 1100, 2
    layer = kind(3, 3, 2, **options)
    rng = np.random.default_rng(0)
    x, mask = rng.standard_normal((steps, rows, 3)).astype("float32"), rng.random((steps, rows)) < 0.8
    mask[505:520] = False
    state = tuple(rng.standard_normal((2, rows, 3)).astype("float32") for _ in range(2))
    state = state if kind is gpurnn.LSTM else state[0]
    (y, final), pullback = layer.vjp(x, state, mask=mask)
    (found, last), pull = layer.vjp(x, state, mask=mask, checkpoint_every=1)
    assert_same((found, arrays_of(last)), (y, arrays_of(final)))
    dy = rng.standard_normal(y.shape).astype("float32")
    assert_same(pull((dy, None)), pullback((dy, None)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: gpurnn.GRU(I, H, bidirectional=True, reverse=True),
            "GRU: reverse is True, expected False as the layer is bidirectional",
        ),
        (
            lambda: gpurnn.GRU(I, H, bidirectional=True, merge="ave"),
            "GRU: merge is 'ave', expected one of 'concat', 'sum', 'mul', 'average'",
        ),
        (
            lambda: gpurnn.LSTM(I, H)(normal(T, B, I), mask=np.ones((B, T), bool)),
            r"LSTM: mask has shape \(3, 6\), expected \(T, B\) = \(6, 3\)",
        ),
        (
            lambda: gpurnn.RNN(I, H, batch_first=True)(normal(B, T, I), mask=np.ones((T, B), bool)),
            r"RNN: mask has shape \(6, 3\), expected \(B, T\) = \(3, 6\)",
        ),
        (
            lambda: gpurnn.LSTM(I, H)(normal(T, B, I), mask=normal(T, B)),
            "LSTM: mask has dtype float32, expected bool, or integers 0 and 1",
        ),
        (
            lambda: gpurnn.LSTM(I, H, reverse=True)(normal(T, B, I), lengths=np.array([7, 1, 1])),
            r"lstm: lengths holds 1 \.\.\. 7, expected 0 \.\.\. T = 6",
        ),
    ],
)
def test_what_does_not_fit_is_rejected_by_name(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call()


def test_a_merge_of_one_direction_warns():
    with pytest.warns(UserWarning, match="GRU: merge='sum' has no effect, as the layer has one direction"):
        gpurnn.GRU(I, H, merge="sum")
