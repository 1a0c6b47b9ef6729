"""The recurrent cells: what each is, its options and its switches. Both wings read these, and hold the equations."""

from __future__ import annotations

from .activations import Activation
from .base import RECURRENT_WEIGHT, Cell
from .gru import GRU, Update
from .lstm import LSTM
from .vanilla import Vanilla

__all__ = ["CELLS", "GRU", "LSTM", "RECURRENT_WEIGHT", "Activation", "Cell", "Update", "Vanilla"]

CELLS: dict[str, type[Cell]] = {cell.name: cell for cell in (Vanilla, LSTM, GRU)}
"""Every cell by its name."""
