"""The options of all cells, as type checkers and editors see them where they are passed on by name."""

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
    """All options of cells; which a cell takes, its layer says: `gpurnn.RNN`, `gpurnn.LSTM` and `gpurnn.GRU`."""

    activation: Activation
    proj_size: int
