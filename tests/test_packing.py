"""The order and sign in which a cell's steps keep the rows of its gates, for each way of making them."""

import numpy as np
import pytest
from gpurnn.reference.cells.packing import Rows, collides

ROWS = Rows(5, gates=((2, "sigma"), (0, "tanh")))
"""Rows of three gates with 5 units each."""


def drawn(n, dtype):
    rng = np.random.default_rng(n)
    return rng.normal(size=(15, n)).astype(dtype), rng.normal(size=15).astype(dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("n", [1, 7, 128])
@pytest.mark.parametrize("few", [False, True])
def test_factors_are_the_rows_of_the_gates_in_order_and_with_their_sign(n, dtype, few):
    w, bias = drawn(n, dtype)
    assert collides(n, w.itemsize) == (n == 128)
    expected = np.stack([-w[10:].T, w[:5].T])
    np.testing.assert_array_equal(ROWS.factors(w, few=few), expected, strict=True)
    found = ROWS.factors(w, bias, few=few)
    np.testing.assert_array_equal(found[:, :n], expected, strict=True)
    np.testing.assert_array_equal(found[:, n], [-bias[10:], bias[:5]])


@pytest.mark.parametrize("B", [1, 3])
def test_a_multiplier_writes_the_product_of_each_slot(B):
    w, _ = drawn(8, "float64")
    h, out = np.random.default_rng(0).normal(size=(2, B, 8)), np.full((2, B, 5), np.nan)
    multiply = ROWS.multiplier(w, out)
    for rows in h:
        multiply(rows)
        np.testing.assert_allclose(out, [-rows @ w[10:].T, rows @ w[:5].T], rtol=1e-13, atol=1e-14)
