"""Transforms of a series before it is learnt, and their inverses for forecasts: log, trend, season, differences."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ... import _checks
from .. import examples

HARMONICS = 10
"""The largest number of harmonics with which a season is fitted."""

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Transforms:
    """The transforms of a series, in the order of their application.

    Attributes
    ----------
    log : bool
        Take logarithms.
    trend : bool
        Subtract a straight line, fitted by least squares.
    season_length : tuple of float
        Subtract a season of each of these lengths: harmonics, fitted together with the line.
    differences : tuple of int
        Take differences x_t - x_{t - lag} for each of these lags, one after another.
    """

    log: bool
    trend: bool
    season_length: tuple[float, ...]
    differences: tuple[int, ...]

    @property
    def lost(self) -> int:
        """The number of values at the beginning that have no difference."""
        return sum(self.differences)

    @property
    def least(self) -> int:
        """The smallest length of a series for which the transforms leave a value."""
        seasons = [int(np.ceil(2 * length)) for length in self.season_length]
        return max([3 * self.trend, *seasons, self.lost + 1])

    def design(self, start: int, stop: int, length: int) -> Values:
        """The columns (n, k) of the regression at steps start ... stop - 1 of a series of this length; k may be 0."""
        t = np.arange(start, stop)
        columns = [np.ones(len(t))] if self.trend or self.season_length else []
        columns += [t / length] if self.trend else []
        for period in self.season_length:
            for harmonic in range(1, min(HARMONICS, int(period / 2)) + 1):
                angle = 2 * np.pi * harmonic * t / period
                # The sine of the highest harmonic of an even season is zero.
                columns += [np.cos(angle)] if 2 * harmonic == period else [np.cos(angle), np.sin(angle)]
        return np.stack(columns, axis=1) if columns else np.zeros((len(t), 0))

    def apply(self, values: Values, logs: int) -> Transformed:
        """Transform a series (T, F), NaN in gaps, for the network; only the first ``logs`` features can have logs."""
        T, F = values.shape
        x = values.copy()
        if self.log:
            x[:, :logs] = np.log(x[:, :logs])
        design = self.design(0, T, T)
        k = design.shape[1]
        coefficients, spread = np.zeros((k, F)), np.zeros((k, k, F))
        for f in range(F if k else 0):
            there = np.isfinite(x[:, f])
            if there.any():
                coefficients[:, f], spread[:, :, f] = _least_squares(design[there], x[there, f])
        x = x - design @ coefficients
        observed, x = np.isfinite(x), _carried_on(x)
        ends = []
        for lag in self.differences:
            ends.append(x[-lag:])
            x, observed = x[lag:] - x[:-lag], observed[lag:] & observed[:-lag]
        return Transformed(self, x, observed, logs, T, coefficients, spread, ends)


@dataclass(frozen=True)
class Transformed:
    """A series that is transformed for the network, but not yet scaled.

    Attributes
    ----------
    values : (T - lost, F) array
        Without gaps: each gap is filled with the value before it.
    observed : (T - lost, F) array of bool
        False in gaps.
    """

    transforms: Transforms
    values: Values
    observed: NDArray[np.bool_]
    _logs: int
    _length: int
    _coefficients: Values
    _spread: Values
    _ends: list[Values] = field(repr=False)

    def inverse(self, ahead: Values, random: np.random.Generator | None = None) -> Values:
        """The continuation of the series in its own units, (steps, ..., F), from that in the network's units.

        With ``random``, ``ahead`` is (steps, samples, F), and each sample draws its own trend and seasons, as uncertain
        as their fit.
        """
        y = ahead
        for lag, end in zip(reversed(self.transforms.differences), reversed(self._ends), strict=True):
            whole = np.concatenate([np.broadcast_to(_between(end, y), (lag, *y.shape[1:])), y])
            for step in range(lag, len(whole)):
                whole[step] += whole[step - lag]
            y = whole[lag:]
        design = self.transforms.design(self._length, self._length + len(ahead), self._length)
        if design.size:
            y = y + _between(design @ self._coefficients, y)
            if random is not None:
                drawn = random.standard_normal((design.shape[1], *y.shape[1:]))
                y = y + np.einsum("tk,kjf,jnf->tnf", design, self._spread, drawn)
        if self.transforms.log:
            with np.errstate(over="ignore"):  # a forecast that is infinite is rejected where it is made
                y = np.concatenate([np.exp(y[..., : self._logs]), y[..., self._logs :]], axis=-1)
        return y

    def scale(self) -> tuple[Values, Values]:
        """The mean and the standard deviation (F,) of the observed values."""
        F = self.values.shape[1]
        found = [
            examples.scale_of(self.values[self.observed[:, f], f]) if self.observed[:, f].any() else (0.0, 1.0)
            for f in range(F)
        ]
        mean, std = (np.array([float(np.squeeze(pair[i])) for pair in found]) for i in (0, 1))
        return mean, std


def _least_squares(design: Values, y: Values) -> tuple[Values, Values]:
    """The coefficients (k,) that fit y (n,) best, the smallest of those, and a square root (k, k) of their covariance.

    The covariance assumes that the remainder is an autoregression of order one: the more each value resembles the one
    before it, the less information all of them give.
    """
    n, k = design.shape
    # A product of a few columns takes a hundredth of the time of the singular values of all rows.
    values, vectors = np.linalg.eigh(design.T @ design)
    there = values > values[-1] * 1e-12
    root = vectors[:, there] / np.sqrt(values[there]) @ vectors[:, there].T
    coefficients = root @ (root @ (design.T @ y))
    coefficients += root @ (root @ (design.T @ (y - design @ coefficients)))  # restores digits that the product lost
    left = y - design @ coefficients
    power = float(left @ left)
    if n <= k + 1 or power == 0.0:
        return coefficients, np.zeros((k, k))
    likeness = min(0.98, max(0.0, float(left[1:] @ left[:-1]) / power))
    return coefficients, root * np.sqrt(power / (n - k) * (1 + likeness) / (1 - likeness))


def _between(rows: Values, like: Values) -> Values:
    """(n, F) with axes of length 1 inserted to match ``like`` (n, ..., F)."""
    return rows.reshape(len(rows), *[1] * (like.ndim - 2), rows.shape[1])


def _carried_on(x: Values) -> Values:
    """A series whose gaps are filled with the value before them, or at the beginning with the first value."""
    if np.isfinite(x).all():
        return x
    filled = np.empty_like(x)
    for f in range(x.shape[1]):
        there = np.isfinite(x[:, f])
        if not there.any():
            filled[:, f] = 0.0
            continue
        last = np.maximum.accumulate(np.where(there, np.arange(len(x)), -1))
        filled[:, f] = x[np.where(last < 0, np.argmax(there), last), f]
    return filled


def checked(where: str, log: Any, trend: Any, season_length: Any, differences: Any) -> Transforms:
    """The transforms from a caller's arguments, checked."""
    seasons = tuple(_checks.finite(where, "season_length", length) for length in _several(season_length))
    for length in seasons:
        if length < 2:
            raise ValueError(f"{where}: season_length is {season_length!r}, expected at least 2 steps")
    seasons = tuple(int(length) if length.is_integer() else length for length in seasons)
    lags = tuple(_checks.size(where, "differences", lag) for lag in _several(differences))
    return Transforms(_checks.flag(where, "log", log), _checks.flag(where, "trend", trend), seasons, lags)


def _several(value: Any) -> tuple[Any, ...]:
    """None, one number or a sequence of them, as a tuple."""
    if value is None:
        return ()
    if isinstance(value, (list, tuple)):
        return tuple(value)
    return (value,)
