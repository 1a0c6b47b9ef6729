"""The recurrence of a layer, and predictions of its time and memory."""

from .explain import explain_recurrence
from .independent import independent_backward, independent_forward
from .layer import check_lengths, recurrence_backward, recurrence_chunk, recurrence_forward
from .memory import recurrence_memory
from .stack import wavefront
from .struct import modules

__all__ = [
    "check_lengths",
    "explain_recurrence",
    "independent_backward",
    "independent_forward",
    "modules",
    "recurrence_backward",
    "recurrence_chunk",
    "recurrence_forward",
    "recurrence_memory",
    "wavefront",
]
