"""The values before a forecast, in the units of the network: the source of inputs and windows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import examples
from .series import Series
from .transforms import Transformed, Transforms, Values


@dataclass(frozen=True)
class Past:
    """The values and covariates before a forecast.

    Attributes
    ----------
    name : str
    transformed : Transformed
        From the first value to the last.
    known : (length + ..., known_features) array
        From the step of the first value to the last step for which they are known.
    static : (static_features,) array
    gap : int
        The number of steps without a value between the last value and the first step to forecast.
    length : int
        Steps from the first value to the last.
    dtype : dtype
        That of the caller's values.
    """

    name: str
    transformed: Transformed
    known: Values
    static: Values
    gap: int
    length: int
    dtype: np.dtype[Any]

    def covariates(self, start: int, count: int, scale: tuple[Values, Values]) -> Values:
        """The covariates of steps start ... start + count - 1 in scaled units; unknown ones are 0."""
        mean, std = scale
        K = self.known.shape[1]
        known = (self.known[start : start + count] - mean[:K]) / std[:K]
        missing = np.zeros((count - len(known), K))
        static = np.broadcast_to((self.static - mean[K:]) / std[K:], (count, len(self.static)))
        return np.concatenate([np.concatenate([known, missing]), static], axis=1)

    def inputs(self, scale: tuple[Values, Values], covariate_scale: tuple[Values, Values]) -> Values:
        """The inputs of f at each step, (T, input_size): the values there, and the covariates of the step after it."""
        values = (self.transformed.values - scale[0]) / scale[1]
        covariates = self.covariates(self.transformed.transforms.lost + 1, len(values), covariate_scale)
        return np.concatenate([values, covariates], axis=1)


def past_of(
    where: str, series: Series, transforms: Transforms, features: int, least: int = 1, stop: int | None = None
) -> Past:
    """A series before the step ``stop``, transformed; reject one that is too short."""
    values = series.values[:stop]
    there = np.flatnonzero(np.isfinite(values[:, :features]).any(axis=1))
    if not len(there):
        raise ValueError(f"{where}: {series.name} holds no numbers, expected a series of such")
    start, end = int(there[0]), int(there[-1]) + 1
    least = max(transforms.least, transforms.lost + least)
    if end - start < least:
        steps = "step" if end - start == 1 else "steps"
        raise ValueError(f"{where}: {series.name} has {end - start} {steps}, expected at least {least}")
    if transforms.log and (values[start:end, :features] <= 0).any():
        step, feature = (int(i) for i in np.argwhere(values[start:end, :features] <= 0)[0])
        raise ValueError(
            f"{where}: {series.name} holds {values[start + step, feature]:g} at {series.label(start + step)}, "
            "expected positive values, as log=True takes their logarithms"
        )
    transformed = transforms.apply(values[start:end], features)
    known, gap = series.known[start:], len(values) - end
    return Past(series.name, transformed, known, series.static, gap, end - start, series.dtype)


def scale_of_covariates(pasts: list[Past]) -> tuple[Values, Values]:
    """The mean and std of the covariates: of known ones over all steps, of static ones over all series."""
    known, static = np.concatenate([past.known for past in pasts]), np.stack([past.static for past in pasts])
    scales = [examples.scale_of(v) if v.size else (np.zeros(v.shape[1]), np.ones(v.shape[1])) for v in (known, static)]
    mean, std = (np.concatenate([scale[i] for scale in scales]) for i in (0, 1))
    return mean, std
