"""The options of `Model.fit`, typed for checkers and editors, for models whose own ``fit`` passes them on."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np

if TYPE_CHECKING:
    from ..distributed import Communicator
    from ..optimizers import Optimizer
    from ..training import Trainer


class TrainerOptions(TypedDict, total=False):
    """The options of `gpurnn.Trainer` that `Model.fit` passes on unchanged."""

    schedule: str | Callable[[int], float] | None
    teacher_forcing: float | Callable[[int], float] | None
    clip_value: float | None
    l2: float | dict[str, float]
    validation_interval: int | None
    directory: str | os.PathLike[str] | None
    resume: bool
    gradient_accumulation_steps: int
    gradient_checkpoint_every: int | str | None
    checkpoint_interval: int
    log_interval: int
    metric: str | None
    communicator: Communicator | None
    shards: int | None
    callbacks: Callable[[Trainer], object] | Sequence[Callable[[Trainer], object]]
    on_checkpoint: Callable[[], None] | None
    on_log: Callable[[dict[str, Any]], None] | None
    on_gradients: Callable[[int, dict[str, Any], dict[str, Any]], None] | None


class FitOptions(TrainerOptions, total=False):
    """All options of `Model.fit`."""

    epochs: int | None
    steps: int | None
    batch_size: int
    validation: Any
    validation_split: float | None
    patience: int | None
    optimizer: str | Optimizer
    lr: float | None
    clip_norm: float | None
    rng: int | np.random.Generator
    verbose: bool
