"""The CUDA wing: every operation as fused kernels, for CuPy arrays on a GPU and NumPy arrays on the host executor."""

from .cells import cell_backward, cell_forward
from .recurrence import recurrence_backward, recurrence_forward

__all__ = [
    "cell_backward",
    "cell_forward",
    "recurrence_backward",
    "recurrence_forward",
]
