"""The windows of series to which a model is fitted, as batches that are split by time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ... import _checks
from ..._contract import Array
from ...training import PaddedBatches
from .past import Past


class Windows(PaddedBatches):
    """Windows of one or several series, each with the value that follows it.

    Parameters
    ----------
    windows : sequence of (T_i, C) arrays
        The windows of a series follow one another in the order of time.
    targets : sequence of (F,) arrays
    counts : sequence of int
        The number of windows of each series.
    batch_size, shuffle, rng
        As in `PaddedBatches`.
    """

    def __init__(
        self,
        windows: Sequence[Any],
        targets: Sequence[Any],
        counts: Sequence[int],
        batch_size: int,
        *,
        shuffle: bool,
        rng: int | np.random.Generator,
    ) -> None:
        super().__init__(windows, batch_size, targets, per_sequence=True, shuffle=shuffle, rng=rng)
        self._counts = counts
        self.places: NDArray[np.intp] = np.arange(len(windows))
        """The numbers of these windows among all windows."""

    def split(self, share: float, *, rng: int | np.random.Generator = 0) -> tuple[Windows, Windows]:
        """The earlier windows of each series to train on, and the last share of them to validate on.

        Raises
        ------
        ValueError, TypeError
            The share is out of its range, or there is only one window.
        """
        where = "Forecaster.fit"
        share = _checks.finite(where, "validation_split", share)
        if not 0.0 < share < 1.0:
            raise ValueError(f"{where}: validation_split is {share!r}, expected a number in (0, 1)")
        held = [min(round(share * count), count - 1) for count in self._counts]
        if not any(held):  # all series are short: the last window of each
            held = [int(count > 1) for count in self._counts]
        if not any(held):
            raise ValueError(f"{where}: every series has one window only, expected more to split off a validation part")
        later = np.concatenate(
            [np.arange(count) >= count - part for count, part in zip(self._counts, held, strict=True)]
        )
        rest, part = self._chosen(np.flatnonzero(~later)), self._chosen(np.flatnonzero(later))
        part.shuffle = False
        return rest, part

    def _chosen(self, places: Any) -> Windows:
        chosen: Any = super()._chosen(places)
        chosen.places = self.places[places]
        return chosen


@dataclass(frozen=True)
class Learnt:
    """Windows and the values that follow them, series by series, and the number of windows of each series."""

    windows: list[Array]
    targets: list[Array]
    counts: list[int]

    def batches(self, batch_size: int, *, shuffle: bool, rng: int | np.random.Generator) -> Windows:
        if not self.windows:
            raise ValueError("Forecaster.fit: no value of a series follows another, expected fewer gaps")
        return Windows(self.windows, self.targets, self.counts, batch_size, shuffle=shuffle, rng=rng)


def windows_of(
    pasts: list[Past], scales: list[Any], covariate_scale: Any, window: int, array: Callable[[NDArray[Any]], Array]
) -> Learnt:
    """All windows whose next value is known; ``array`` converts them."""
    windows, targets, counts = [], [], []
    for past, scale in zip(pasts, scales, strict=True):
        rows = array(past.inputs(scale, covariate_scale))
        values = array((past.transformed.values - scale[0]) / scale[1])
        # A series that is longer than the window has whole windows only.
        first = window if len(past.transformed.values) > window else 1
        whole = np.flatnonzero(past.transformed.observed.all(axis=1)).tolist()
        steps = [t for t in whole if t >= first]
        windows += [rows[max(0, t - window) : t, :] for t in steps]
        targets += [values[t, :] for t in steps]
        counts.append(len(steps))
    return Learnt(windows, targets, counts)
