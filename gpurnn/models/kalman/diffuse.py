"""Diffuse initial states: a regression on the observations estimates them, and this solves it.

Nothing is known of a diffuse state before the observations. With d of them x_0 = m0 + E delta + N(0, P), with an
unknown delta (B, d). The filter runs for each of them, so every mean has 1 + d columns: the mean for delta = 0, and
its derivatives by delta. The mean itself is the columns times (1, delta). The observations give the information
(B, 1 + d, 1 + d), the sum of v^T S^-1 v over the innovations v (B, p, 1 + d) with their covariances S. It is a sum of
squares in (1, delta), and the estimate of delta minimises it.
"""

from __future__ import annotations

import math
from typing import Any

from ... import _dispatch
from ..._contract import Array
from .products import summed, symmetric, times, transpose


def centre(xp: Any, innovation: Array, precision: Array) -> Array:
    """A matrix (B, 1 + d, 1 + d): means times it measure delta from its estimate given all observations.

    If delta were measured from zero, large squares of observations far from zero would be summed, and cancel later.
    The estimate may err: any centre near it will do.
    """
    columns = innovation.shape[-1]
    unit = xp.eye(columns, dtype=innovation.dtype, device=_dispatch.device(innovation))
    matrix = unit + xp.zeros_like(innovation[0, :, :1, :1])
    # The first estimate has a rounding error of the size of the terms that cancel; the second removes that error.
    for _ in range(2 if columns > 1 else 0):
        centred = times(xp, innovation, matrix)
        information = summed(xp, centred, times(xp, precision, centred))
        by_delta = information[:, 1:, 1:]
        scale = _scale(xp, by_delta)
        # The ridge leaves combinations that the observations do not determine where they are.
        ridge = unit[1:, 1:] * (by_delta.shape[-1] * float(xp.finfo(by_delta.dtype).eps))
        scaled = by_delta / scale[:, :, None] / scale[:, None, :] + ridge
        estimate = -xp.linalg.solve(scaled, information[:, 1:, :1] / scale[:, :, None]) / scale[:, :, None]
        shift = xp.concat([xp.zeros_like(estimate[:, :1, :]), estimate], axis=1)
        matrix = matrix + xp.concat([shift, xp.zeros_like(matrix[:, :, 1:])], axis=2)
    return matrix


def determined(xp: Any, information: Array, mean: Array) -> Array:
    """(...) bools: whether the information (..., 1 + d, 1 + d) determines the delta part of a mean (..., n, 1 + d)."""
    d = information.shape[-1] - 1
    if d == 0:
        return xp.ones_like(information[..., 0, 0], dtype=xp.bool)
    scale, unknown = _null_space(xp, information[..., 1:, 1:])
    spread = mean[..., 1:] / scale[..., None, :]
    left, size = (xp.sqrt(xp.sum(x * x, axis=-1)) for x in (spread @ unknown, spread))
    return xp.all(left <= 100 * d * float(xp.finfo(mean.dtype).eps) * size, axis=-1)


def moments(xp: Any, information: Array) -> Array:
    """E[(1, delta) (1, delta)^T], (..., 1 + d, 1 + d), from the information.

    Its entries are arbitrary for combinations of delta that are not determined.
    """
    one = xp.ones_like(information[..., :1, :1])
    if information.shape[-1] == 1:
        return one
    mean, covariance = estimate(xp, information)
    top = xp.concat([one, transpose(xp, mean)], axis=-1)
    return xp.concat([top, xp.concat([mean, mean @ transpose(xp, mean) + covariance], axis=-1)], axis=-2)


def estimate(xp: Any, information: Array) -> tuple[Array, Array]:
    """Mean (..., d, 1) and covariance (..., d, d) of delta, from the information; see `moments`."""
    by_delta = information[..., 1:, 1:]
    if by_delta.shape[-1] == 0:
        return information[..., 1:, :1], by_delta
    scale, unknown = _null_space(xp, by_delta)
    unknown = unknown * scale[..., :, None]
    covariance = symmetric(xp, xp.linalg.inv(by_delta + unknown @ transpose(xp, unknown)))
    return -(covariance @ information[..., 1:, :1]), covariance


def log_determinant(xp: Any, information: Array) -> Array:
    """(...), the logarithm of the product of the nonzero eigenvalues of delta's information."""
    by_delta = information[..., 1:, 1:]
    scale, unknown = _null_space(xp, by_delta)
    known = xp.all(unknown == 0, axis=-2)
    unknown = unknown / scale[..., :, None]
    # With a basis N of the null space of A the product is |A + N N^T| / |N^T N|.
    gram = transpose(xp, unknown) @ unknown
    unit = xp.eye(by_delta.shape[-1], dtype=by_delta.dtype, device=_dispatch.device(by_delta))
    gram = xp.where(known[..., None, :], unit, gram)
    whole = xp.linalg.slogdet(by_delta + unknown @ transpose(xp, unknown))[1]
    return whole - xp.linalg.slogdet(gram)[1]


def marginal(xp: Any, mean: Array, covariance: Array, delta: Array, spread: Array) -> tuple[Array, Array]:
    """Mean (..., n) and covariance of a state, from those given delta and from the mean and covariance of delta."""
    by_delta = mean[..., 1:]
    expected = (mean[..., :1] + times(xp, by_delta, delta))[..., 0]
    return expected, covariance + times(xp, times(xp, by_delta, spread), transpose(xp, by_delta))


def known_marginal(xp: Any, information: Array, mean: Array, covariance: Array) -> tuple[Array, Array]:
    """`marginal` with the moments of delta from the information; NaN where this does not determine the mean."""
    if information.shape[-1] == 1:
        alone = covariance.shape[-3] == mean.shape[-3]
        return mean[..., 0], covariance if alone else covariance + xp.zeros_like(mean)
    known = determined(xp, information, mean)[..., None, None]
    expected, spread = marginal(xp, mean, covariance, *estimate(xp, information))
    unknown = xp.full_like(spread, math.nan)
    return xp.where(known[..., 0], expected, unknown[..., 0]), xp.where(known, spread, unknown)


def _scale(xp: Any, by_delta: Array) -> Array:
    """(..., d), the roots of the diagonal of the information (..., d, d) of d states; 1 where that is zero."""
    scale = xp.sqrt(xp.linalg.diagonal(by_delta))
    return xp.where(scale > 0, scale, xp.ones_like(scale))


def _null_space(xp: Any, by_delta: Array) -> tuple[Array, Array]:
    """The scale (..., d) of the information (..., d, d) of d diffuse states, and a basis of its null space.

    The basis is a matrix of d columns, orthonormal or zero: the combinations of the scaled states that do not affect
    the observations.
    """
    scale = _scale(xp, by_delta)
    values, vectors = xp.linalg.eigh(by_delta / scale[..., :, None] / scale[..., None, :])
    none = values <= 100 * by_delta.shape[-1] * float(xp.finfo(by_delta.dtype).eps)
    return scale, xp.where(none[..., None, :], vectors, xp.zeros_like(vectors))
