"""The NumPy wing: the definition of every operation, in readable NumPy."""

from .cells import cell_backward, cell_forward
from .recurrence import recurrence_backward, recurrence_forward

__all__ = ["cell_backward", "cell_forward", "recurrence_backward", "recurrence_forward"]
