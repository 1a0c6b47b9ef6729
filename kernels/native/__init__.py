"""The compiled CPU wing: the cells' own structs on the vector registers of the processor, and other functions.

It has only the functions that gain by compilation; the NumPy wing has the others.
"""

from gpurnn.reference.clock import recurrence_chunk
from gpurnn.reference.recurrence import check_lengths

from .attention import attention_backward, attention_forward
from .dense import dense_backward, dense_forward
from .dropout import dropout_mask
from .embedding import embedding_scatter
from .independent import independent_backward, independent_forward
from .linear_scan import linear_scan_backward, linear_scan_forward
from .losses import cross_entropy_backward, cross_entropy_forward
from .memory import recurrence_memory
from .minimal import minimal_backward, minimal_forward
from .optim import global_norm, optimizer_update
from .recurrence import recurrence_backward, recurrence_forward

__all__ = [
    "attention_backward",
    "attention_forward",
    "check_lengths",
    "cross_entropy_backward",
    "cross_entropy_forward",
    "dense_backward",
    "dense_forward",
    "dropout_mask",
    "embedding_scatter",
    "global_norm",
    "independent_backward",
    "independent_forward",
    "linear_scan_backward",
    "linear_scan_forward",
    "minimal_backward",
    "minimal_forward",
    "optimizer_update",
    "recurrence_backward",
    "recurrence_chunk",
    "recurrence_forward",
    "recurrence_memory",
]
