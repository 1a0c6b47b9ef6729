"""Recurrent layers and related layers as pure functions of arrays, each with its pullback.

Every function ``f`` here has ``f.vjp``, which takes the same arguments and returns ``(f(...), pullback)``. The pullback
takes gradients shaped like the result (None means zero), and returns the gradients of the inputs and a dict of the
gradients of the parameters. It may be called more than once, and always returns the same; do not modify the inputs
until you have called it for the last time. Calling ``f`` itself saves nothing.

Arrays may be stored in any way: in any memory order, with any strides, unaligned or in the other byte order. Results
are the same to the last bit, and are C-contiguous. Integers may have any integer dtype.
"""

from __future__ import annotations

from ._attention import attention
from ._dense import dense
from ._dropout import dropout
from ._embedding import embedding
from ._multi_head import multi_head_attention
from ._norm import layer_norm
from ._recurrent import (
    gru,
    gru_cell,
    indrnn,
    indrnn_cell,
    lstm,
    lstm_cell,
    mingru,
    mingru_cell,
    minlstm,
    minlstm_cell,
    rnn,
    rnn_cell,
)
from ._scan import linear_scan
from ._ssm import ssm

__all__ = [
    "attention", "dense", "dropout", "embedding", "gru", "gru_cell", "indrnn", "indrnn_cell", "layer_norm",
    "linear_scan", "lstm", "lstm_cell", "mingru", "mingru_cell", "minlstm", "minlstm_cell", "multi_head_attention",
    "rnn", "rnn_cell", "ssm",
]  # fmt: skip
