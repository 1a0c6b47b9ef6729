"""Gather rows of a table and scatter their sums: PyTorch's numbers, a plain sum, and equal bits from run to run."""

from __future__ import annotations

import golden
import numpy as np
import pytest
from gpurnn.kernels import embedding as kernel_file
from gpurnn.kernels import host
from hypothesis import given
from hypothesis import strategies as st
from tolerance import assert_close, assert_golden, assert_same

import gpurnn
from gpurnn import kernels, reference


@pytest.fixture
def gather(wing):
    return lambda weight, indices: wing.back(wing.module.embedding_gather(wing.to(weight), wing.to(indices)))


@pytest.fixture
def scatter(wing):
    return lambda indices, dy, V: wing.back(wing.module.embedding_scatter(wing.to(indices), wing.to(dy), V))


def sums_of_rows(indices, dy, V):
    """The definition, computed in float64 and cast to the dtype of ``dy``."""
    sums = np.zeros((V, dy.shape[-1]))
    np.add.at(sums, indices.reshape(-1).astype(int), dy.reshape(indices.size, dy.shape[-1]).astype("float64"))
    return sums.astype(dy.dtype)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(
    "record", [r for r in golden.records("misc") if r["kind"] == "embedding"], ids=lambda record: record["name"]
)
@pytest.mark.usefixtures("each_wing")
def test_embedding_gives_what_torch_gives(record, dtype):
    a = golden.arrays("misc", record["name"], dtype)
    y, pullback = gpurnn.embedding.vjp(a["idx"], a["W"], padding_idx=record["padding_idx"])
    assert_golden(y, a["y"], 1, "y")
    assert_golden(pullback(a["cy"])[1]["weight"], a["g_W"], a["idx"].size + 1, "dweight")


@pytest.mark.parametrize("module", [reference, pytest.param(kernels, marks=pytest.mark.kernels)])
@given(
    shape=st.sampled_from([(), (0,), (1,), (3, 0), (5,), (4, 6), (2, 3, 4), (60,), (2, 64), (7, 90)]),
    V=st.integers(1, 40),
    E=st.integers(0, 5),
    dtype=st.sampled_from(["float32", "float64"]),
    kind=st.sampled_from(["int8", "uint8", "int32", "int64", "uint64"]),
    seed=st.integers(0, 99),
)
def test_scatter_is_the_sum_of_the_rows(module, shape, V, E, dtype, kind, seed):
    rng = np.random.default_rng(seed)
    # The minimum of two draws repeats some indices often and omits others.
    indices = np.asarray(np.minimum(rng.integers(0, V, shape), rng.integers(0, V, shape))).astype(kind)
    dy = rng.standard_normal((*shape, E)).astype(dtype)
    given_indices, given_dy = indices.copy(), dy.copy()
    found = module.embedding_scatter(indices, dy, V)
    # Terms of size 1 may cancel.
    assert_close(found, sums_of_rows(indices, dy, V), terms=indices.size + 1, magnitude=1.0)
    assert_same(module.embedding_scatter(indices, dy, V), found)
    assert not found[np.setdiff1d(np.arange(V), indices)].any()
    assert_same((indices, dy), (given_indices, given_dy))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("count", "V"), [(3000, 10), (3000, 3000), (300, 70_000), (300, 1 << 16), (5000, 3), (5000, 70)]
)
def test_scatter_of_many_rows(count, V, dtype, scatter):
    rng = np.random.default_rng(0)
    indices = rng.integers(0, V, count)
    indices[:2] = V - 1
    dy = rng.standard_normal((count, 8)).astype(dtype)
    assert_close(scatter(indices, dy, V), sums_of_rows(indices, dy, V), terms=int(np.bincount(indices).max()))


@pytest.mark.parametrize("each", [1, 2, 31, 32, 33, 63, 64, 65, 127, 128, 129, 2048, 2049])
def test_scatter_of_indices_that_fill_whole_runs_or_just_miss(each, scatter):
    """Sums of integers are exact: no row may be lost, counted twice or given to a neighbour."""
    rng = np.random.default_rng(0)
    indices, dy = np.repeat(np.arange(4), each), rng.integers(-9, 10, (4 * each, 3)).astype("float32")
    assert_same(scatter(indices, dy, 6), sums_of_rows(indices, dy, 6))
    shuffled = rng.permutation(4 * each)
    assert_same(scatter(indices[shuffled], dy[shuffled], 6), sums_of_rows(indices[shuffled], dy[shuffled], 6))


def test_an_index_that_occurs_a_hundred_thousand_times(wing, scatter):
    count = 100_000
    indices = np.full(count, 3)
    indices[[7, count // 2]] = 1, 5
    dy = np.random.default_rng(0).integers(-9, 10, (count, 2)).astype("float32")
    assert_same(scatter(indices, dy, 7), sums_of_rows(indices, dy, 7))
    # A thread of the kernels adds at most 64 numbers, on each of four levels.
    tenths = np.full((count, 2), 0.1, "float32")
    terms = 4 * 64 if wing.module is kernels else count
    assert_close(scatter(indices, tenths, 7), sums_of_rows(indices, tenths, 7), terms)


@pytest.mark.parametrize(("V", "E"), [(5, 9), (5000, 8)])  # rows of 8 numbers use packets where they can
def test_the_same_bits_wherever_rows_lie_in_memory(V, E, wing):
    rng = np.random.default_rng(0)
    indices = rng.integers(0, V, 400)
    dy = rng.standard_normal((400, E)).astype("float32")
    first = wing.back(wing.module.embedding_scatter(wing.to(indices), wing.to(dy), V))
    rows = indices % 400
    for shift in (1, 2, 3):
        moved = wing.to(np.empty(dy.size + shift, "float32"))[shift:].reshape(dy.shape)
        moved[...] = wing.to(dy)
        assert_same(wing.back(wing.module.embedding_scatter(wing.to(indices.astype("int32")), moved, V)), first)
        assert_same(wing.back(wing.module.embedding_gather(moved, wing.to(rows))), dy[rows])
    spread = wing.to(np.repeat(indices, 2))[::2], wing.to(np.ascontiguousarray(dy.T)).T
    assert_same(wing.back(wing.module.embedding_scatter(*spread, V)), first)


@pytest.mark.parametrize("count", [100, 3000])
def test_what_stands_between_the_rows_of_an_index_changes_no_bit(count, scatter):
    """The rows of an index are summed in the order of their positions, so the sort must be stable."""
    rng = np.random.default_rng(0)
    indices, dy = rng.integers(0, 9, count), rng.standard_normal((count, 5)).astype("float32")
    together = np.argsort(indices, kind="stable")
    assert_same(scatter(indices, dy, 9), scatter(indices[together], dy[together], 9))


@pytest.mark.kernels
def test_any_order_of_threads_and_blocks_gives_the_same_bits():
    rng = np.random.default_rng(0)
    indices, dy = rng.integers(0, 9, 3000), rng.standard_normal((3000, 5)).astype("float32")

    def both():
        return kernels.embedding_gather(dy, indices), kernels.embedding_scatter(indices, dy, 9)

    first = both()
    for seed in (1, 2, 3):
        with host.execution(seed=seed):
            assert_same(both(), first)


@pytest.mark.kernels
def test_scatter_does_not_rest_on_what_fresh_memory_holds(monkeypatch):
    """The executor's fresh memory holds -1 as integers, by chance the key of ignored rows; a GPU's holds anything."""
    monkeypatch.setattr(kernel_file, "empty", lambda like, shape, dtype: np.ones(shape, dtype))
    indices, dy = np.arange(5).repeat(700), np.random.default_rng(0).integers(-9, 10, (3500, 3)).astype("float32")
    assert_same(kernels.embedding_scatter(indices, dy, 6), sums_of_rows(indices, dy, 6))


def test_the_reference_sums_a_row_that_is_hit_often_in_the_order_of_the_positions():
    rng = np.random.default_rng(0)
    indices = rng.integers(0, 20, (50, 40))
    dy = (rng.standard_normal((50, 40, 6)) * 10.0 ** rng.integers(-6, 6, (50, 40, 1))).astype("float32")
    expected = np.zeros((20, 6), "float32")
    np.add.at(expected, indices, dy)
    assert_same(reference.embedding_scatter(indices, dy, 20), expected)


@pytest.mark.parametrize("indices", [[0, 1, 2, 1], [1, 0] * 8, [1] * 65 + [0] * 64 + [2]])
def test_a_nan_stays_in_its_row(indices, scatter):
    indices = np.array(indices)
    dy = np.ones((len(indices), 2))
    dy[indices == 1] = np.nan
    assert np.isnan(scatter(indices, dy, 4)).all(axis=1).tolist() == [False, True, False, False]


@pytest.mark.parametrize("kind", ["int8", "uint8", "int32", "int64", "uint64"])
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 4), (300,)])
def test_gather(shape, kind, gather):
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((6, 3)).astype("float32")
    indices = np.asarray(rng.integers(0, 6, shape)).astype(kind)
    y = gather(weight, indices)
    assert y.shape == (*shape, 3)
    assert_same(y, weight[indices.astype(int)])
    assert not np.shares_memory(y, weight)


def test_gather_from_a_strided_table(wing):
    weight = wing.to(np.arange(12.0).reshape(3, 4)).T
    y = wing.back(wing.module.embedding_gather(weight, wing.to(np.array([3, 0]))))
    assert y.flags.c_contiguous
    assert_same(y, np.array([[3.0, 7.0, 11.0], [0.0, 4.0, 8.0]]))


@pytest.mark.usefixtures("each_wing")
def test_a_table_may_be_read_only():
    weight = np.arange(12.0).reshape(4, 3)
    weight.flags.writeable = False
    y, pullback = gpurnn.embedding.vjp(np.array([3, 0]), weight)
    y.flags.writeable = False
    assert_same(y, weight[[3, 0]])
    assert_same(pullback(y)[1]["weight"][3], y[0])


@pytest.mark.parametrize("bad", [-1, 4, 2**40])
def test_gather_of_an_index_that_is_not_in_the_table(bad, wing, gather):
    """The index is rejected if it can be inspected. On a GPU that would mean waiting, so the row is NaN."""
    indices, weight = np.array([[0, 1], [bad, 2]]), np.arange(8.0).reshape(4, 2)
    if wing.module is not kernels:
        with pytest.raises(
            IndexError, match=f"embedding: indices holds {bad}, expected 0 <= index < num_embeddings = 4"
        ):
            gather(weight, indices)
        return
    y = gather(weight, indices)
    assert np.isnan(y[1, 0]).all()
    assert_same(y[[0, 0, 1], [0, 1, 1]], weight[:3])


@pytest.mark.kernels
@pytest.mark.parametrize("count", [3, 70, 5000])
def test_the_kernels_leave_rows_out_that_belong_to_no_index(count):
    rng = np.random.default_rng(0)
    indices, dy = rng.integers(-3, 9, count), rng.integers(-9, 10, (count, 3)).astype("float32")
    known = (indices >= 0) & (indices < 6)
    dy[~known] = np.nan
    assert_same(kernels.embedding_scatter(indices, dy, 6), sums_of_rows(indices[known], dy[known], 6))
    nothing = kernels.embedding_scatter(np.full(count, -1), dy, 6)
    assert_same(nothing, np.zeros((6, 3), "float32"))


@pytest.mark.usefixtures("each_wing")
@pytest.mark.parametrize("count", [1, 63, 64, 65, 200, 5000])
@pytest.mark.parametrize("V", [1, 2, 7, 300])
def test_many_rows_of_few_and_of_many_indices(count, V):
    """Sums made by one thread, by many together, and both in one gradient."""
    rng = np.random.default_rng(count * V)
    indices, dy = rng.integers(0, V, count), rng.standard_normal((count, 3))
    indices[: count // 2] = V // 2  # it occurs far more often than the rest
    rng.shuffle(indices)
    expected = np.zeros((V, 3))
    np.add.at(expected, indices, dy)
    _, pullback = gpurnn.embedding.vjp(indices, np.zeros((V, 3)))
    assert_close(pullback(dy)[1]["weight"], expected, count)
