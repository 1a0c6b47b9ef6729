"""The compiled CPU wing: the cells' own structs over the registers of the processor.

It has the functions that gain by it; the NumPy wing has the others.
"""

from gpurnn.reference.recurrence import check_lengths, recurrence_chunk

from .memory import recurrence_memory
from .recurrence import recurrence_backward, recurrence_forward

__all__ = ["check_lengths", "recurrence_backward", "recurrence_chunk", "recurrence_forward", "recurrence_memory"]
