"""Defines "equal" for these tests, by dtype: every bound is stated here and nowhere else."""

from __future__ import annotations

import numpy as np

GOLDEN_FLOAT64 = 1e-9
"""The bound of float64 against the golden cases, relative to the largest magnitude of the array."""


def epsilon(dtype: np.dtype | str) -> float:
    """The spacing of the dtype's numbers at 1; 0 for an exact dtype."""
    return float(np.finfo(dtype).eps) if np.dtype(dtype).kind in "fc" else 0.0


def recurrence_terms(T: int, B: int, I: int, H: int, layers: int = 1) -> int:
    """Length of the longest sum behind an entry of a recurrence's outputs or gradients.

    The state of step T has passed through ``layers * T`` products of length I and H, and so has its gradient in the
    backward pass; the gradient of a weight is a sum of T * B of those.
    """
    return 2 * layers * T * (I + H) + T * B


def bound(dtype: np.dtype | str, terms: int) -> float:
    """Rounding error of a sum of ``terms`` terms, relative to their magnitude: at most epsilon for each addition."""
    return terms * epsilon(dtype)


def assert_close(
    actual: np.ndarray,
    expected: np.ndarray,
    terms: int,
    name: str = "",
    *,
    at_least: float = 0.0,
    magnitude: float = 0.0,
) -> None:
    """Check equal shape and dtype, and values within a relative bound.

    The relative bound is that of ``terms``, or ``at_least`` if larger. It is multiplied by the largest value of
    ``expected``, or by ``magnitude`` if larger: the size of terms that may cancel.
    """
    assert actual.shape == expected.shape, f"{name}: shape {actual.shape}, expected {expected.shape}"
    assert actual.dtype == expected.dtype, f"{name}: dtype {actual.dtype}, expected {expected.dtype}"
    if not expected.size:
        return
    relative = bound(expected.dtype, terms)
    scale = max(float(np.abs(expected).max()), magnitude)
    error = float(np.abs(actual - expected).max())
    limit = max(relative, at_least) * scale + relative * epsilon(expected.dtype)
    assert error <= limit, f"{name}: error {error:.3g}, bound {limit:.3g}, magnitude {scale:.3g}"


def arrays_of(nested) -> list[np.ndarray]:
    """The arrays in nested tuples, lists and dicts, in order; None contributes none."""
    if nested is None:
        return []
    if isinstance(nested, dict):
        nested = list(nested.values())
    if isinstance(nested, (tuple, list)):
        return [a for entry in nested for a in arrays_of(entry)]
    assert isinstance(nested, np.ndarray), f"a {type(nested).__name__} among arrays"
    return [nested]


def assert_all_close(actual, expected, terms: int, magnitude: float = 0.0) -> None:
    """`assert_close` for each array in nested tuples and lists."""
    for k, (a, e) in enumerate(zip(arrays_of(actual), arrays_of(expected), strict=True)):
        assert_close(a, e, terms, f"array {k}", magnitude=magnitude)


def assert_golden(actual: np.ndarray, expected: np.ndarray, terms: int, name: str = "") -> None:
    """`assert_close` to an expected value in float64: 1e-9 in float64, the bound of ``terms`` in float32."""
    if actual.dtype == np.float64:
        assert_close(actual, expected, terms, name, at_least=GOLDEN_FLOAT64)
    else:
        assert_close(actual, expected.astype(actual.dtype), terms, name)


def assert_same(actual: object, expected: object) -> None:
    """Check equality to the last bit, through tuples and dicts; None equals None."""
    if isinstance(expected, tuple):
        assert isinstance(actual, tuple)
        assert len(actual) == len(expected)
        for a, e in zip(actual, expected, strict=True):
            assert_same(a, e)
    elif isinstance(expected, dict):
        assert isinstance(actual, dict)
        assert actual.keys() == expected.keys()
        for key in expected:
            assert_same(actual[key], expected[key])
    elif expected is None:
        assert actual is None
    else:
        a, e = np.asarray(actual), np.asarray(expected)
        assert a.dtype == e.dtype
        np.testing.assert_array_equal(a, e)


STEP = epsilon("float64") ** 0.2
"""Step of `directional`, at which its truncation error STEP^4 equals its rounding error epsilon / STEP."""

DIFFERENCE = epsilon("float64") ** 0.8
"""The error of `directional`, relative to the terms of the function and to its fifth derivative."""


def directional(f, step: float = STEP) -> float:
    """f'(0) of a scalar function, by the central difference of fourth order."""
    return (8 * (f(step) - f(-step)) - (f(2 * step) - f(-2 * step))) / (12 * step)


class Kink(Exception):
    """Raised where a function has no derivative between the points of a central difference."""


def check_gradients(
    outputs, inputs: dict[str, np.ndarray], cotangents, gradients: dict[str, np.ndarray], seed: int, smooth: bool = True
) -> None:
    """Check ``gradients`` against central differences in float64, along a random direction for each input.

    Parameters
    ----------
    outputs : callable
        From a dict like ``inputs`` to a flat list of arrays.
    inputs, gradients : dict of arrays
        One gradient for each input, of its shape. NaN entries of an input are not varied; their gradient is zero.
    cotangents : list of arrays
        The weights of the outputs.
    smooth : bool
        False if the function may have kinks near the inputs: `Kink` is raised where two step sizes disagree.
    """
    rng = np.random.default_rng(seed)
    assert gradients.keys() == inputs.keys()
    terms = [np.abs(c * y).sum() for c, y in zip(cotangents, outputs(inputs), strict=True)]
    for name, value in inputs.items():
        gradient = gradients[name]
        assert gradient.shape == value.shape, name
        assert gradient.dtype == value.dtype, name
        assert np.isfinite(gradient).all(), name
        unread = np.isnan(value)
        assert not gradient[unread].any(), name
        if not value.size:
            continue
        direction = rng.standard_normal(value.shape)
        direction[unread] = 0
        direction /= max(float(np.linalg.norm(direction)), 1.0)

        def along(step: float, name: str = name, value: np.ndarray = value, direction: np.ndarray = direction) -> float:
            moved = outputs({**inputs, name: value + step * direction})
            return float(sum((c * y).sum() for c, y in zip(cotangents, moved, strict=True)))

        numeric = directional(along)
        analytic = float((gradient * direction).sum())
        # 100: fifth derivatives of a few steps of tanh reach 16 times those factors.
        limit = 100 * DIFFERENCE * (sum(terms) + float(np.abs(gradient * direction).sum()) + 1)
        if not smooth and abs(numeric - directional(along, STEP / 4)) > limit:
            raise Kink(name)
        assert abs(numeric - analytic) <= limit, (
            f"{name}: {analytic!r}, by central differences {numeric!r}, bound {limit:.2g}"
        )
