"""Rows of a table out, and the sum of rows in: PyTorch's numbers, a plain sum, and equal bits from run to run."""

from __future__ import annotations

import golden
import numpy as np
import pytest
from gpurnn.reference import embedding_gather, embedding_scatter
from hypothesis import given
from hypothesis import strategies as st
from tolerance import assert_close, assert_golden, assert_same

import gpurnn

pytestmark = pytest.mark.usefixtures("each_wing")


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(
    "record", [r for r in golden.records("misc") if r["kind"] == "embedding"], ids=lambda record: record["name"]
)
def test_embedding_gives_what_torch_gives(record, dtype):
    a = golden.arrays("misc", record["name"], dtype)
    y, pullback = gpurnn.embedding.vjp(a["idx"], a["W"], padding_idx=record["padding_idx"])
    assert_golden(y, a["y"], 1, "y")
    assert_golden(pullback(a["cy"])[1]["weight"], a["g_W"], a["idx"].size + 1, "dweight")


@given(
    shape=st.sampled_from([(), (0,), (1,), (3, 0), (5,), (4, 6), (2, 3, 4), (60,)]),
    V=st.integers(1, 40),
    E=st.integers(0, 5),
    dtype=st.sampled_from(["float32", "float64"]),
    kind=st.sampled_from(["int8", "uint8", "int32", "int64", "uint64"]),
    seed=st.integers(0, 99),
)
def test_scatter_is_the_sum_of_the_rows(shape, V, E, dtype, kind, seed):
    rng = np.random.default_rng(seed)
    # The minimum of two draws repeats some indices often and leaves others out.
    indices = np.minimum(rng.integers(0, V, shape), rng.integers(0, V, shape)).astype(kind)
    dy = rng.standard_normal((*shape, E)).astype(dtype)
    expected = np.zeros((V, E))
    for index, row in zip(indices.reshape(-1), dy.reshape(indices.size, E), strict=True):
        expected[index] += row
    found = embedding_scatter(indices, dy, V)
    assert_close(found, expected.astype(dtype), terms=indices.size + 1)
    assert_same(embedding_scatter(indices, dy, V), found)
    assert not found[np.setdiff1d(np.arange(V), indices)].any()


@pytest.mark.parametrize(("count", "V"), [(3000, 10), (3000, 3000), (300, 70_000), (300, 1 << 16)])
def test_scatter_of_many_rows(count, V):
    rng = np.random.default_rng(0)
    indices = rng.integers(0, V, count)
    indices[:2] = V - 1
    dy = rng.standard_normal((count, 8)).astype("float32")
    expected = np.zeros((V, 8))
    np.add.at(expected, indices, dy.astype("float64"))
    assert_close(embedding_scatter(indices, dy, V), expected.astype("float32"), terms=int(np.bincount(indices).max()))


@pytest.mark.parametrize("V", [5, 5000])
def test_scatter_gives_the_same_bits_wherever_its_rows_lie_in_memory(V):
    rng = np.random.default_rng(0)
    indices = rng.integers(0, V, 400)
    dy = rng.standard_normal((400, 9)).astype("float32")
    first = embedding_scatter(indices, dy, V)
    for shift in (1, 2, 3):
        moved = np.empty(dy.size + shift, "float32")[shift:].reshape(dy.shape)
        moved[...] = dy
        assert_same(embedding_scatter(indices.astype("int32"), moved, V), first)
    assert_same(embedding_scatter(np.asfortranarray(indices), np.asfortranarray(dy), V), first)


def test_a_row_that_is_hit_often_is_summed_in_the_order_of_the_positions():
    rng = np.random.default_rng(0)
    indices = rng.integers(0, 20, (50, 40))
    dy = (rng.standard_normal((50, 40, 6)) * 10.0 ** rng.integers(-6, 6, (50, 40, 1))).astype("float32")
    expected = np.zeros((20, 6), "float32")
    np.add.at(expected, indices, dy)
    assert_same(embedding_scatter(indices, dy, 20), expected)


def test_a_nan_stays_in_its_row():
    for indices in (np.array([0, 1, 2, 1]), np.array([1, 0] * 8)):
        dy = np.ones((len(indices), 2))
        dy[indices == 1] = np.nan
        found = embedding_scatter(indices, dy, 4)
        assert np.isnan(found).all(axis=1).tolist() == [False, True, False, False]


@pytest.mark.parametrize("kind", ["int8", "uint8", "int32", "int64", "uint64"])
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 4)])
def test_gather(shape, kind):
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((6, 3)).astype("float32")
    indices = np.asarray(rng.integers(0, 6, shape)).astype(kind)
    y = embedding_gather(weight, indices)
    assert y.shape == (*shape, 3)
    assert_same(y, weight[indices.astype(int)])
    assert not np.shares_memory(y, weight)


def test_gather_from_a_strided_read_only_table():
    weight = np.asfortranarray(np.arange(12.0).reshape(4, 3))
    weight.flags.writeable = False
    y = embedding_gather(weight, np.array([3, 0]))
    assert y.flags.c_contiguous
    assert_same(y, np.array([[9.0, 10.0, 11.0], [0.0, 1.0, 2.0]]))


@pytest.mark.parametrize("bad", [-1, 4, 2**40])
def test_gather_refuses_an_index_that_is_not_in_the_table(bad):
    with pytest.raises(IndexError, match=f"embedding: indices holds {bad}, expected 0 <= index < num_embeddings = 4"):
        embedding_gather(np.zeros((4, 2)), np.array([[0, 1], [bad, 2]]))


@pytest.mark.parametrize("count", [1, 63, 64, 65, 200, 5000])
@pytest.mark.parametrize("V", [1, 2, 7, 300])
def test_many_rows_of_few_and_of_many_indices(count, V):
    """Sums that one thread makes, that many make together, and both in one gradient."""
    rng = np.random.default_rng(count * V)
    indices, dy = rng.integers(0, V, count), rng.standard_normal((count, 3))
    indices[: count // 2] = V // 2  # one that occurs far more often than the rest
    rng.shuffle(indices)
    expected = np.zeros((V, 3))
    np.add.at(expected, indices, dy)
    _, pullback = gpurnn.embedding.vjp(indices, np.zeros((V, 3)))
    assert_close(pullback(dy)[1]["weight"], expected, count)
