"""Curriculum learning: easy examples first."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .. import _checks


@dataclass(frozen=True)
class Curriculum:
    r"""Which examples take part in an epoch: those no more difficult than T_epoch.

    T_epoch = min(T_max, T_start + epoch \* T_increment), epoch = 0, 1, ...

    Parameters
    ----------
    start : float
        T_start, at least 0.
    increment : float
        T_increment, above 0.
    maximum : float
        T_max, at least ``start``. More difficult examples never take part.
    difficulty : callable, optional
        ``difficulty(sequence, target)`` returns a number for a sequence as it was passed, and its target or None. It is
        called once for each. None: the number of steps of the sequence.

    Raises
    ------
    TypeError, ValueError
        A parameter out of its range.

    References
    ----------
    Y. Bengio, J. Louradour, R. Collobert, J. Weston, "Curriculum learning", ICML 2009; W. Zaremba, I. Sutskever,
    "Learning to execute", arXiv:1410.4615 (2014), for the length as the difficulty.

    Examples
    --------
    >>> import numpy as np
    >>> from gpurnn.training import Curriculum, PaddedBatches
    >>> curriculum = Curriculum(start=10, increment=5, maximum=22)
    >>> [curriculum(epoch) for epoch in range(4)]
    [10.0, 15.0, 20.0, 22.0]
    >>> sequences = [np.zeros(length, int) for length in (8, 10, 12, 20, 21, 40)]
    >>> data = PaddedBatches(sequences, batch_size=1, curriculum=curriculum)
    >>> [data.num_batches(epoch) for epoch in range(4)], len(data)
    ([2, 3, 4, 5], 5)
    """

    start: float
    increment: float
    maximum: float = math.inf
    difficulty: Callable[[Any, Any], float] | None = None

    def __post_init__(self) -> None:
        where = "Curriculum"
        _checks.attributes(self, _checks.non_negative, "start")
        _checks.attributes(self, _checks.positive, "increment", "maximum")
        _checks.finite(where, "increment", self.increment)
        if self.maximum < self.start:
            raise ValueError(f"{where}: maximum is {self.maximum!r}, expected at least start = {self.start!r}")
        if self.difficulty is not None and not callable(self.difficulty):
            raise TypeError(f"{where}: difficulty is {self.difficulty!r}, expected a function of sequence and target")

    def __call__(self, epoch: int) -> float:
        """T_epoch."""
        epoch = _checks.integer_at_least("Curriculum", "epoch", epoch, 0)
        return float(min(self.maximum, self.start + epoch * self.increment))
