"""The largest Lyapunov exponent of a measured series, from the divergence of neighbouring stretches."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import _checks, _dispatch
from ..models.examples import numbers


@dataclass(frozen=True)
class Divergence:
    """How neighbouring stretches of a series diverge with time; see `divergence`.

    Attributes
    ----------
    times : (K + 1,) float64 array
        0, dt, ..., K dt.
    log_distances : (K + 1,) float64 array
        The mean logarithm of the distance after each time, in nats.
    exponent : float
        The slope of the line through the fitted part of the curve, in nats per unit of time.
    standard_error : float
        The error of the slope, from the scatter of the curve about its line. It is a lower bound, because points of a
        curve are not independent. NaN for two points.
    fit : pair of int
        The first and the last step of the fitted part.
    pairs : int
        The number of reference points that have neighbours.
    """

    times: NDArray[np.float64]
    log_distances: NDArray[np.float64]
    exponent: float
    standard_error: float
    fit: tuple[int, int]
    pairs: int

    def __repr__(self) -> str:
        return (
            f"Divergence: exponent {self.exponent:.4g} +- {self.standard_error:.2g} nats per unit of time, "
            f"steps {self.fit[0]} to {self.fit[1]}, {self.pairs:,} reference points"
        )


def divergence(
    series: ArrayLike,
    *,
    steps: int,
    dimension: int = 1,
    delay: int = 1,
    window: int = 0,
    radius: float | None = None,
    fit: tuple[int, int] | None = None,
    dt: float = 1.0,
) -> Divergence:
    r"""Estimate the largest Lyapunov exponent of a system from a measured series, without its equations.

    The series is embedded: s_t = (x_t, x_{t-\tau}, ..., x_{t-(m-1)\tau}) stands for the unknown state. Two stretches
    that begin close to each other diverge like exp(\lambda k dt) at first. So \lambda is the slope of S(k), the mean of
    ln d_t(k) over t, over the steps k in which this curve is straight. Look at the curve: it bends at first, while the
    distance turns into the direction that grows most, and becomes flat when the distance is as large as the attractor.
    A distance of zero has no logarithm and is left out of the mean.

    Parameters
    ----------
    series : (T,) or (T, F) array
        The measurements, at equal intervals of time. It may also be a list, or a series of another library.
    steps : int
        K, how long to follow neighbours.
    dimension : int
        m, at least 1: more than twice the attractor's dimension is enough for one measured variable.
    delay : int
        \tau, in steps.
    window : int
        Neighbours are more than this number of steps apart in time; for a flow, use at least one mean period.
    radius : float, optional
        With None, d_t(k) is the Euclidean distance between s_{t+k} and the state k steps after the nearest neighbour of
        s_t (Rosenstein et al.). With a number, it is the mean of \|x_{t+k} - x_{j+k}\| over all neighbours j within
        this distance of s_t (Kantz), which averages out noise.
    fit : pair of int, optional
        The first and the last step of the line; (0, steps) by default.
    dt : float
        The time between two measurements, above 0.

    Returns
    -------
    divergence : Divergence

    Raises
    ------
    TypeError, ValueError
        The series is not all finite numbers or is too short, no point has a neighbour, all neighbours come to coincide,
        or an option is out of its range.

    References
    ----------
    M. T. Rosenstein, J. J. Collins, C. J. De Luca, "A practical method for calculating largest Lyapunov exponents from
    small data sets", Physica D 65 (1993); H. Kantz, "A robust method to estimate the maximal Lyapunov exponent of a
    time series", Physics Letters A 185 (1994).

    Examples
    --------
    The logistic map, whose exponent is ln 2 = 0.693:

    >>> x = [0.4]
    >>> for _ in range(2000):
    ...     x.append(4 * x[-1] * (1 - x[-1]))
    >>> growth = divergence(x, steps=6)
    >>> round(growth.exponent, 1)
    0.7
    """
    where = "divergence"
    values = _series(where, series)
    steps = _checks.integer_at_least(where, "steps", steps, 1)
    dimension = _checks.integer_at_least(where, "dimension", dimension, 1)
    delay = _checks.integer_at_least(where, "delay", delay, 1)
    window = _checks.integer_at_least(where, "window", window, 0)
    dt = _checks.finite(where, "dt", _checks.positive(where, "dt", dt))
    if radius is not None:
        radius = _checks.finite(where, "radius", _checks.positive(where, "radius", radius))
    first, last = (0, steps) if fit is None else _fit(where, fit, steps)
    span = (dimension - 1) * delay
    count = len(values) - span - steps
    if count < 2 or count <= window:
        needed = span + steps + max(window, 1) + 1
        raise ValueError(f"{where}: series has {len(values)} steps, expected at least {needed} for these options")
    # Squares of distances must neither overflow nor underflow. A power of two rounds nothing.
    power = int(np.frexp(np.abs(values).max())[1])
    values = np.ldexp(values, -power)
    # The newest measurement is in the last columns, so row t + k is the future of row t.
    states = np.concatenate([values[i * delay : len(values) - span + i * delay] for i in range(dimension)], axis=1)
    logs, pairs = (
        _nearest(where, states, count, steps, window)
        if radius is None
        else _within(where, states, values[span:], count, steps, window, radius, power)
    )
    logs += power * math.log(2)
    times: NDArray[np.float64] = dt * np.arange(steps + 1, dtype=np.float64)
    part = slice(first, last + 1)
    exponent, error = _slope(times[part], logs[part])
    return Divergence(times, logs, exponent, error, (first, last), pairs)


def _series(where: str, series: Any) -> NDArray[np.float64]:
    """The measurements (T, F)."""
    array: NDArray[Any] = _dispatch.to_numpy(numbers(where, "series", series, np.dtype(np.float64)))
    if array.ndim not in (1, 2) or array.shape[1:] == (0,):
        raise ValueError(f"{where}: series has shape {array.shape}, expected (T,) or (T, F) with F of at least 1")
    if not np.isfinite(array).all():
        raise ValueError(f"{where}: series holds NaN or infinity, expected finite numbers")
    return array[:, None] if array.ndim == 1 else array


def _fit(where: str, fit: Any, steps: int) -> tuple[int, int]:
    if not isinstance(fit, (tuple, list)) or len(fit) != 2:
        raise TypeError(f"{where}: fit is {fit!r}, expected a pair of steps")
    first, last = (_checks.integer_at_least(where, f"fit[{i}]", fit[i], 0) for i in range(2))
    if not first < last <= steps:
        raise ValueError(f"{where}: fit is {fit!r}, expected two steps in order within 0 ... {steps}")
    return first, last


def _nearest(
    where: str, states: NDArray[np.float64], count: int, steps: int, window: int
) -> tuple[NDArray[np.float64], int]:
    """The mean log distance of each point to its nearest neighbour, followed for some steps."""
    from scipy.spatial import KDTree

    begin = states[:count]
    tree = KDTree(begin)
    neighbours = np.full(count, -1)
    left = np.arange(count)
    # The window excludes at most 2 window + 1 points, so one more than that has one outside it.
    most = min(2 * window + 2, count)
    asked = min(window + 2, most)
    while len(left):
        distances, places = tree.query(begin[left], k=np.arange(1, asked + 1))
        allowed = (abs(places - left[:, None]) > window) & (distances > 0)
        some = allowed.any(axis=1)
        neighbours[left[some]] = places[some, allowed[some].argmax(axis=1)]
        left = left[~some]
        if asked == count:
            break
        asked = min(2 * asked, count)
    points = np.flatnonzero(neighbours >= 0)
    if not len(points):
        raise ValueError(f"{where}: no two points of series differ and are more than window={window} steps apart")
    logs = np.empty(steps + 1)
    for k in range(steps + 1):
        distance = np.linalg.norm(states[points + k] - states[neighbours[points] + k], axis=1)
        if not distance.any():
            raise ValueError(
                f"{where}: after {k} steps all neighbours in series coincide, expected that some differ; follow them "
                "for fewer steps"
            )
        logs[k] = np.log(distance[distance > 0]).mean()
    return logs, len(points)


def _within(
    where: str,
    states: NDArray[np.float64],
    newest: NDArray[np.float64],
    count: int,
    steps: int,
    window: int,
    radius: float,
    power: int,
) -> tuple[NDArray[np.float64], int]:
    """The mean over points of the log of the mean distance to all neighbours within a radius.

    The states are the caller's times 2**-power.
    """
    from scipy.spatial import KDTree

    begin = states[:count]
    with np.errstate(over="ignore"):
        # No two states are as far apart as the second number.
        reach = min(float(np.ldexp(radius, -power)), 2.0 * states.size)
    total, pairs, alone = np.zeros(steps + 1), 0, True
    for t, places in enumerate(KDTree(begin).query_ball_point(begin, reach)):
        others = np.array([j for j in places if abs(j - t) > window and j != t], int)
        if not len(others):
            continue
        alone = False
        future = others[:, None] + np.arange(steps + 1)
        apart = np.linalg.norm(newest[future] - newest[t : t + steps + 1], axis=2).mean(axis=0)
        if (apart > 0).all():
            total += np.log(apart)
            pairs += 1
    if alone:
        raise ValueError(f"{where}: no point of series has a neighbour within radius={radius}; pass a larger one")
    if not pairs:
        raise ValueError(
            f"{where}: each point of series comes to coincide with all its neighbours within radius={radius}, expected "
            "that some differ; pass a larger radius, or follow them for fewer steps"
        )
    return total / pairs, pairs


def _slope(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[float, float]:
    """The slope of the least-squares line and its standard error."""
    centred = x - x.mean()
    slope = float(centred @ y / (centred @ centred))
    residuals = y - y.mean() - slope * centred
    freedom = len(x) - 2
    error = float(np.sqrt(residuals @ residuals / freedom / (centred @ centred))) if freedom > 0 else float("nan")
    return slope, error
