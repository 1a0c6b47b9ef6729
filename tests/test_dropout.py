"""Dropout masks: Philox4x32-10's published answers, the layout of its words, and the statistics of the mask."""

from __future__ import annotations

import math

import numpy as np
import pytest
from gpurnn.kernels import host
from gpurnn.reference import dropout as definition
from gpurnn.reference.dropout import philox4x32
from tolerance import assert_same

from gpurnn import kernels

# From kat_vectors of Random123 (Salmon et al.), philox4x32 with 10 rounds: counter, key, words.
KNOWN = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


@pytest.fixture
def dropout_mask(wing):
    """The wing's masks as NumPy arrays."""

    def mask(shape, rate, seed, first, dtype, stride=None):
        return wing.back(wing.module.dropout_mask(wing.to(np.empty(0, dtype)), shape, rate, seed, first, stride))

    return mask


def words(text):
    return [int(word, 16) for word in text.split()]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_published_known_answers(counter, key, expected):
    given = tuple(np.array([word], np.uint64) for word in words(counter))
    found = philox4x32(given, tuple(words(key)))
    assert [int(word[0]) for word in found] == words(expected)
    assert [int(word[0]) for word in given] == words(counter)
    assert philox(words(counter), words(key)) == words(expected)


def test_published_known_answers_in_a_mask(dropout_mask):
    """Each word of counter 0 and key 0 is exact: an entry is kept up to the word's value and dropped above it."""
    for k, word in enumerate(words(KNOWN[0][2])):
        assert dropout_mask((4,), word / 2**32, 0, 0, "float64")[k] > 0
        assert dropout_mask((4,), (word + 1) / 2**32, 0, 0, "float64")[k] == 0


def test_counters_side_by_side_do_not_disturb_each_other():
    together = tuple(np.array(column, np.uint64) for column in zip(*(words(c) for c, _, _ in KNOWN), strict=True))
    for row, (counter, _, _) in enumerate(KNOWN):
        alone = philox4x32(tuple(np.array([word], np.uint64) for word in words(counter)), (1, 2))
        assert [int(w[row]) for w in philox4x32(together, (1, 2))] == [int(w[0]) for w in alone]


def philox(counter, key):
    """Philox4x32-10 in Python's integers."""
    c, k = list(counter), list(key)
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [p1 >> 32 ^ c[1] ^ k[0], p1 & 0xFFFFFFFF, p0 >> 32 ^ c[3] ^ k[1], p0 & 0xFFFFFFFF]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return c


def element(n, rate, seed):
    counter = n // 4
    word = philox([counter % 2**32, counter >> 32, 0, 0], [seed % 2**32, seed >> 32])[n % 4]
    return 1 / (1 - rate) if word >= rate * 2**32 else 0.0


@pytest.mark.parametrize("seed", [0, 1, 0x0123456789ABCDEF, 2**64 - 1])
@pytest.mark.parametrize("first", [0, 7, 4 * (2**32 - 2), 2**64 - 30])
def test_every_element_is_what_the_definition_says(seed, first, dropout_mask):
    mask = dropout_mask((3, 7), 0.3, seed, first, "float64")
    assert mask.reshape(-1).tolist() == [element(first + i, 0.3, seed) for i in range(21)]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 6, 7, 8, 1023, 1024, 1025, 1026, 5003])
def test_every_wing_gives_the_bits_of_the_definition(size, dtype, dropout_mask):
    for seed, first in ((0, 0), (0x0123456789ABCDEF, 2**64 - 10001)):
        expected = definition.dropout_mask(np.empty(0, dtype), (size,), 0.3, seed, first)
        assert_same(dropout_mask((size,), 0.3, seed, first, dtype), expected)


def test_an_element_does_not_depend_on_the_size(monkeypatch, dropout_mask):
    whole = dropout_mask((1001,), 0.5, 3, 5, "float32")
    np.testing.assert_array_equal(dropout_mask((13, 77), 0.5, 3, 5, "float32").reshape(-1), whole)
    np.testing.assert_array_equal(dropout_mask((501,), 0.5, 3, 5 + 500, "float32"), whole[500:])
    monkeypatch.setattr(definition, "_BLOCK", 64)
    np.testing.assert_array_equal(dropout_mask((1001,), 0.5, 3, 5, "float32"), whole)


@pytest.mark.parametrize(("first", "end"), [(0, 4), (3, 5), (5, 11)])
@pytest.mark.parametrize("inner", [1, 3, 8, 130])
def test_rows_of_a_mask(first, end, inner, dropout_mask):
    """A mask of some rows equals those rows of the whole mask, wherever their entries begin within a counter."""
    whole = dropout_mask((5, 11, inner), 0.5, 3, 0, "float32")
    rows = dropout_mask((5, end - first, inner), 0.5, 3, first * inner, "float32", 11 * inner)
    np.testing.assert_array_equal(rows, whole[:, first:end])


def test_blocks_follow_on_each_other(dropout_mask):
    size = 4 * definition._BLOCK + 4
    mask = dropout_mask((size,), 0.5, 9, 0, "float64")
    expected = [element(i, 0.5, 9) for i in range(size - 8, size)]
    assert mask[-8:].tolist() == expected


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(), (1,), (0,), (2, 0, 3), (4,), (5, 3), (2, 3, 4)])
def test_shape_and_dtype(shape, dtype, dropout_mask):
    mask = dropout_mask(shape, 0.25, 1, 0, dtype)
    assert mask.shape == shape
    assert mask.dtype == dtype
    assert mask.flags.c_contiguous
    assert mask.flags.writeable
    assert set(mask.reshape(-1).tolist()) <= {0.0, float(np.dtype(dtype).type(1 / 0.75))}


def test_dtypes_drop_the_same_elements(dropout_mask):
    wide, narrow = (dropout_mask((999,), 0.7, 1, 2, dtype) for dtype in ("float64", "float32"))
    np.testing.assert_array_equal(wide.astype("float32"), narrow)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_rate(rate, dropout_mask):
    n = 1_000_000
    kept = dropout_mask((n,), rate, 42, 0, "float64") > 0
    sigma = math.sqrt(rate * (1 - rate) / n)
    assert abs(kept.mean() - (1 - rate)) < 4 * sigma
    # Neighbours, the words of one counter, and equal words of neighbouring counters are independent.
    for lag in (1, 2, 3, 4):
        both = (kept[:-lag] & kept[lag:]).mean()
        assert abs(both - (1 - rate) ** 2) < 6 * sigma


def test_rate_zero_keeps_everything(dropout_mask):
    assert (dropout_mask((1000,), 0.0, 1, 0, "float32") == 1).all()


def test_the_threshold_is_that_of_the_words(dropout_mask):
    word = philox([0, 0, 0, 0], [0, 0])[0]
    assert dropout_mask((1,), word / 2**32, 0, 0, "float64")[0] > 0
    assert dropout_mask((1,), (word + 1) / 2**32, 0, 0, "float64")[0] == 0
    assert dropout_mask((1,), (word + 0.5) / 2**32, 0, 0, "float64")[0] == 0


@pytest.mark.kernels
def test_the_order_of_threads_and_blocks_changes_no_bit():
    def mask():
        return kernels.dropout_mask(np.empty(0, "float32"), (37, 211), 0.3, 7, 5)

    first = mask()
    for seed in (1, 2, 3):
        with host.execution(seed=seed):
            assert_same(mask(), first)


def test_seeds_differ(dropout_mask):
    masks = [dropout_mask((256,), 0.5, seed, 0, "float32") for seed in (0, 1, 2**32, 2**63)]
    assert len({mask.tobytes() for mask in masks}) == 4
