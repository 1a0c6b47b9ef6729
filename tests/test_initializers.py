"""Initial weights: their moments, their spectra, and what they reject."""

import numpy as np
import pytest

from gpurnn import initializers


def draw(initializer, shape, dtype="float64", seed=0):
    return initializer(np.random.default_rng(seed), shape, dtype)


@pytest.mark.parametrize("name", sorted(initializers._BY_NAME))
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(4, 7), (7, 4), (5, 5), (1, 1)])
def test_shape_dtype_and_layout(name, dtype, shape):
    w = draw(initializers.get(name), shape, dtype)
    assert w.shape == shape
    assert w.dtype == dtype
    assert w.flags.c_contiguous
    assert w.flags.writeable


@pytest.mark.parametrize("name", sorted(initializers._BY_NAME))
def test_one_generator_state_gives_one_matrix_in_every_dtype(name):
    wide, narrow = (draw(initializers.get(name), (6, 6), dtype) for dtype in ("float64", "float32"))
    np.testing.assert_array_equal(wide.astype(np.float32), narrow)
    other = draw(initializers.get(name), (6, 6), seed=1)
    assert np.array_equal(wide, other) == (name in ("identity", "zeros"))


# A sample's standard deviation has a relative error of about sqrt((kurtosis - 1) / 4n), at most 1/sqrt(2n).
@pytest.mark.parametrize(
    ("initializer", "std"),
    [
        (initializers.normal(), 1 / np.sqrt(500)),
        (initializers.normal(0.3), 0.3),
        (initializers.xavier_uniform(), np.sqrt(2 / 900)),
        (initializers.xavier_uniform(2.0), 2 * np.sqrt(2 / 900)),
        (initializers.xavier_normal(0.5), 0.5 * np.sqrt(2 / 900)),
        (initializers.uniform(), 1 / np.sqrt(3 * 400)),
        (initializers.uniform(0.6), 0.6 / np.sqrt(3)),
    ],
)
def test_mean_and_standard_deviation(initializer, std):
    w = draw(initializer, (400, 500))
    assert abs(w.mean()) < 5 * std / np.sqrt(w.size)
    assert w.std() == pytest.approx(std, rel=5 / np.sqrt(2 * w.size))


def test_uniform_bounds_are_reached_and_kept():
    for initializer, bound in [
        (initializers.uniform(), 1 / np.sqrt(400)),
        (initializers.xavier_uniform(), np.sqrt(6 / 900)),
    ]:
        w = draw(initializer, (400, 500))
        assert 0.999 * bound < w.max() < bound
        assert -bound < w.min() < -0.999 * bound


@pytest.mark.parametrize("shape", [(6, 6), (9, 4), (4, 9)])
def test_orthogonal_has_all_singular_values_equal_to_the_gain(shape):
    w = draw(initializers.orthogonal(gain=1.3), shape)
    np.testing.assert_allclose(np.linalg.svd(w, compute_uv=False), 1.3, rtol=1e-14)


def test_orthogonal_gain_is_the_spectral_radius():
    w = draw(initializers.orthogonal(gain=0.8), (50, 50))
    assert max(abs(np.linalg.eigvals(w))) == pytest.approx(0.8, rel=1e-13)


@pytest.mark.parametrize("shape", [(513, 513), (700, 521), (600, 1024)])
def test_a_large_orthogonal_matrix_is_orthogonal_dense_and_of_gaussian_entries(shape):
    w = draw(initializers.orthogonal(gain=1.3), shape)
    assert w.shape == shape
    if shape[0] < shape[1]:
        w = w.T
    np.testing.assert_allclose(w.T @ w, 1.69 * np.eye(w.shape[1]), atol=1e-13)
    entries = w * np.sqrt(max(shape)) / 1.3
    assert abs(entries.mean()) < 5 / np.sqrt(w.size)
    assert np.mean(entries**4) == pytest.approx(3, rel=0.1)  # the moments of a normal distribution
    assert abs(entries).max() < 7


def test_the_eigenvalues_of_a_large_orthogonal_matrix_lie_all_around_their_circle():
    eigenvalues = np.linalg.eigvals(draw(initializers.orthogonal(gain=0.9), (600, 600)))
    np.testing.assert_allclose(abs(eigenvalues), 0.9, rtol=1e-12)
    counts, _ = np.histogram(np.angle(eigenvalues), 8, (-np.pi, np.pi))
    np.testing.assert_allclose(counts, 75, atol=5)


def test_orthogonal_is_uniform():
    # Under the uniform distribution every entry is symmetric about zero; LAPACK's signs would make the diagonal
    # negative.
    traces = [np.trace(draw(initializers.orthogonal(), (3, 3), seed=seed)) for seed in range(400)]
    assert abs(np.mean(traces)) < 5 / np.sqrt(400)
    assert np.var(traces) == pytest.approx(1, rel=0.5)


def test_identity():
    np.testing.assert_array_equal(draw(initializers.identity(0.5), (3, 3)), 0.5 * np.eye(3))
    np.testing.assert_array_equal(draw(initializers.identity(), (2, 3)), [[1, 0, 0], [0, 1, 0]])


def test_zeros():
    assert not draw(initializers.zeros(), (3, 4)).any()


def test_get_returns_a_function_as_it_is():
    mine = initializers.normal(0.1)
    assert initializers.get(mine) is mine


def test_get_refuses():
    with pytest.raises(ValueError, match="init is 'xaver', expected one of 'identity', 'normal'"):
        initializers.get("xaver")
    with pytest.raises(TypeError, match="init is 3, expected a name or a function"):
        initializers.get(3)
