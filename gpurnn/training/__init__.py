"""Training: the loop, the data it reads, and checkpoints."""

from .checkpoint import CheckpointError
from .curriculum import Curriculum
from .data import Batch, PaddedBatches, TokenStream, pad
from .trainer import Trainer, evaluate

__all__ = ["Batch", "CheckpointError", "Curriculum", "PaddedBatches", "TokenStream", "Trainer", "evaluate", "pad"]
