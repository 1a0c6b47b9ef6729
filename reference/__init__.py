"""The NumPy wing: the definition of every operation, in readable NumPy."""

from .attention import attention_backward, attention_forward
from .cells import cell_backward, cell_forward, cell_gates
from .dropout import dropout_mask
from .embedding import embedding_gather, embedding_scatter
from .linear_scan import linear_scan_backward, linear_scan_forward
from .losses import cross_entropy_backward, cross_entropy_forward, mse_backward, mse_forward
from .memory import recurrence_memory
from .optim import global_norm, optimizer_update, scaled
from .recurrence import check_lengths, recurrence_backward, recurrence_chunk, recurrence_forward

__all__ = [
    "attention_backward",
    "attention_forward",
    "cell_backward",
    "cell_forward",
    "cell_gates",
    "check_lengths",
    "cross_entropy_backward",
    "cross_entropy_forward",
    "dropout_mask",
    "embedding_gather",
    "embedding_scatter",
    "global_norm",
    "linear_scan_backward",
    "linear_scan_forward",
    "mse_backward",
    "mse_forward",
    "optimizer_update",
    "recurrence_backward",
    "recurrence_chunk",
    "recurrence_forward",
    "recurrence_memory",
    "scaled",
]
