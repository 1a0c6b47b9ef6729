"""The windows of series as batches to train on, which are split by time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ... import _checks
from ...training import PaddedBatches


class Windows(PaddedBatches):
    """Windows of one or several series, each with the value that follows it.

    Parameters
    ----------
    windows : sequence of (T_i, C) arrays
        Those of a series one after another, in the order of time.
    targets : sequence of (F,) arrays
    counts : sequence of int
        How many are of each series.
    batch_size, shuffle, rng
        Those of `PaddedBatches`.
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
        """Which of all windows these are."""

    def split(self, share: float, *, rng: int | np.random.Generator = 0) -> tuple[Windows, Windows]:
        """The earlier windows of each series, to train on, and the last share of them, to validate on.

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
