"""Training: the loop and its checkpoints, the data it reads, curricula, truncated backpropagation, and REINFORCE."""

from .checkpoint import CheckpointError
from .curriculum import Curriculum
from .data import Batch, PaddedBatches, TokenStream, pad
from .directory import RunDirectoryError
from .reinforce import Policy, Reinforce
from .trainer import Trainer, evaluate
from .truncation import Window, truncated_bptt

__all__ = [
    "Batch",
    "CheckpointError",
    "Curriculum",
    "PaddedBatches",
    "Policy",
    "Reinforce",
    "RunDirectoryError",
    "TokenStream",
    "Trainer",
    "Window",
    "evaluate",
    "pad",
    "truncated_bptt",
]
