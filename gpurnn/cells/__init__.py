"""Descriptions of the recurrent cells and their options. Both wings read them; the wings hold the equations."""

from __future__ import annotations

from .activations import Activation
from .base import RECURRENT_WEIGHT, Cell
from .gru import GRU, Update
from .lstm import LSTM
from .minimal import MinGRU, MinLSTM
from .options import CellOptions, GateOptions
from .vanilla import IndRNN, Vanilla

__all__ = [
    "CELLS", "ELEMENTWISE", "GRU", "LSTM", "RECURRENT_WEIGHT", "Activation", "Cell", "CellOptions", "GateOptions",
    "IndRNN", "MinGRU", "MinLSTM", "Update", "Vanilla",
]  # fmt: skip

CELLS: dict[str, type[Cell]] = {cell.name: cell for cell in (Vanilla, LSTM, GRU)}
"""The cells whose steps have a product with W_hh, by name: each works in all schedules."""

ELEMENTWISE: dict[str, type[Cell]] = {cell.name: cell for cell in (IndRNN, MinGRU, MinLSTM)}
"""The cells whose units do not read each other, by name: see ``functional/_elementwise.py``."""
