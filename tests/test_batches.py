"""Batches of sequences: padding, and targets with lengths of their own."""

import numpy as np
import pytest
from strict_wing import Array, plain, strict
from tolerance import assert_same

from gpurnn.training import PaddedBatches, pad


def pairs(count=9, seed=0):
    """Sources (T, 2) of floats and targets (T',) of ints, of lengths that have nothing to do with each other."""
    rng = np.random.default_rng(seed)
    sources = [rng.standard_normal((rng.integers(1, 7), 2)) for _ in range(count)]
    return sources, [rng.integers(1, 9, rng.integers(1, 7), dtype=np.int32) for _ in range(count)]


# --- padding ---


def test_padding_is_zero_past_the_length():
    padded, lengths = pad([np.array([[1.0, 2.0]]), np.empty((0, 2)), np.array([[3.0, 4.0], [5.0, 6.0]])])
    assert_same(padded, np.array([[[1.0, 2.0], [0, 0], [3.0, 4.0]], [[0, 0], [0, 0], [5.0, 6.0]]]))
    assert_same(lengths, np.array([1, 0, 2], np.int32))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ([], "pad: arrays is empty, expected at least one sequence"),
        (3, "pad: arrays is 3, expected a sequence of arrays"),
        ([None], r"pad: arrays\[0\] is None, expected an array"),
        ([np.array(3)], r"pad: arrays\[0\] has shape \(\), expected \(T, ...\), steps first"),
        ([np.zeros(2), np.zeros(2, int)], r"pad: arrays\[1\] has dtype int64, expected float64 as arrays\[0\] has"),
        ([np.zeros((2, 3)), np.zeros((2, 4))], r"pad: arrays\[1\] has shape \(2, 4\), expected that of arrays\[0\]"),
    ],
)
def test_padding_refuses(arrays, message):
    with pytest.raises((TypeError, ValueError), match=message):
        pad(arrays)


# --- targets with lengths of their own ---


def test_targets_may_have_lengths_of_their_own():
    sources, targets = pairs()
    data = PaddedBatches(sources, 4, targets, own_lengths=True, rng=3)
    found = []
    for index in range(len(data)):
        batch = data.batch(1, index)
        padded, target_lengths = batch.targets
        assert padded.shape == (max(target_lengths), batch.inputs.shape[1])
        assert batch.inputs.shape[0] == max(batch.lengths)
        assert batch.count == sum(target_lengths)
        assert target_lengths.dtype == np.int32
        for b, (length, target_length) in enumerate(zip(batch.lengths, target_lengths, strict=True)):
            assert not padded[target_length:, b].any()
            found.append((batch.inputs[:length, b].tolist(), padded[:target_length, b].tolist()))
    expected = [(s.tolist(), t.tolist()) for s, t in zip(sources, targets, strict=True)]
    assert sorted(found) == sorted(expected)
    assert found != expected  # an epoch is shuffled


def test_targets_and_their_lengths_are_of_the_library_of_the_sequences(strict_namespace):
    sources, targets = pairs()
    ours = PaddedBatches(sources, 4, targets, own_lengths=True).batch(2, 1)
    theirs = PaddedBatches(strict(sources), 4, strict(targets), own_lengths=True).batch(2, 1)
    assert all(isinstance(a, Array) for a in (theirs.inputs, *theirs.targets, theirs.lengths))
    assert_same(plain((theirs.inputs, *theirs.targets, theirs.lengths)), (ours.inputs, *ours.targets, ours.lengths))


@pytest.mark.parametrize(
    ("targets", "options", "message"),
    [
        (None, {"own_lengths": True}, "own_lengths is True but targets is None"),
        ([np.ones(3)], {"own_lengths": True, "per_sequence": True}, "per_sequence and own_lengths are both True"),
        ([np.ones(0)], {"own_lengths": True}, r"targets\[0\] has shape \(0,\), expected at least 1 step"),
        ([np.array(1)], {"own_lengths": True}, r"targets\[0\] has shape \(\), expected at least 1 step"),
        ([np.ones(3)], {}, r"targets\[0\] has shape \(3,\), expected 2 steps, .*, for targets of other lengths own_l"),
    ],
)
def test_targets_that_do_not_fit_are_refused(targets, options, message):
    with pytest.raises(ValueError, match=message):
        PaddedBatches([np.array([1, 2])], 2, targets, **options)
