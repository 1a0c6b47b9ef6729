"""Training: the loop, the data it reads, and checkpoints."""

from .checkpoint import CheckpointError
from .curriculum import Curriculum
from .data import Batch, PaddedBatches, TokenStream, pad
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
    "TokenStream",
    "Trainer",
    "Window",
    "evaluate",
    "pad",
    "truncated_bptt",
]
