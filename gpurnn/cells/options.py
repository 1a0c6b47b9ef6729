"""The types of all cells' options, for type checkers and editors where options are passed on by name."""

from __future__ import annotations

from typing import TypedDict

from .activations import Activation
from .gru import Update


class GateOptions(TypedDict, total=False):
    """The options of the cells, except the activation of the candidate and the size of a projection."""

    gate_activation: Activation
    output_activation: Activation
    leak: float
    reset_after: bool
    update: Update
    clip: float | None
    cell_clip: float | None
    peephole: bool
    coupled: bool
    zoneout: float | tuple[float, float]
    candidate_dropout: float
    layer_norm: bool


class CellOptions(GateOptions, total=False):
    """All options of cells. See `gpurnn.RNN`, `gpurnn.LSTM` and `gpurnn.GRU` for those that each takes."""

    activation: Activation
    proj_size: int
