"""The training loop: gradients, clipping, updates, validation, early stopping, metrics and checkpoints."""

from __future__ import annotations

import copy
import math
import os
import threading
import time
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from .. import _checks, _dispatch, _metrics, _random, gradients, losses, optimizers, schedules
from .._contract import Remembers, Trainable
from ..distributed import Communicator, own_shards
from ..optimizers import Optimizer, Rprop
from . import batch_gradients, run_state
from .checkpoint import CheckpointError, checkpoints, file_name, latest_checkpoint, save_checkpoint
from .data import Data, _fingerprint, num_batches, steps_of_epoch, steps_of_epochs
from .directory import CHECKPOINTS, METRICS_FILE, RUN, FollowedDirectory, RunDirectory
from .evaluation import added, evaluation, means, nothing
from .terminal import interrupt_deferred, progress_bar

METRICS: dict[str, tuple[str, Callable[[float], float]]] = {
    "bits_per_character": ("bits per character", lambda loss: loss / math.log(2.0)),
    "perplexity": ("perplexity", losses.perplexity),
}
"""Other units of a mean cross-entropy in nats: their names, and the functions that convert the loss."""


class Trainer:
    r"""Minimises the loss of a model over data by gradient descent, in steps that survive a crash.

    A step takes one batch or several, computes the gradient g of their mean loss L plus the L2 penalty, clips it and
    passes it to the optimizer: g = dL/d\theta + \lambda \theta, then g <- clip(g), then
    \theta <- optimizer(\theta, g, \eta_t). Over a `TokenStream` this is truncated backpropagation through time, with
    the state passed on from window to window; over `PaddedBatches` it is full backpropagation through time. Memory is
    that of one batch, however long the stream.

    A trainer can be pickled and copied, also by its own callbacks; the copy continues with the same bits. If a part
    cannot be pickled, such as a lambda as a schedule, Python's own error names it.

    Parameters
    ----------
    model : Trainable
        Anything with ``params``, ``loss`` and ``loss_and_gradients``. Its parameters change in place.
    data : Data
        `TokenStream`, `PaddedBatches` or anything with their methods.
    optimizer : str or Optimizer
        "adam", "adamw", "sgd" or another by its class name in lower case; or an object of `gpurnn.optimizers`, which
        has further options: frozen parameters, learning rates and decays by group, averages of the parameters.
    steps, epochs : int
        When training ends, counted from its very beginning; exactly one of the two.
    lr : float, optional
        The learning rate of an optimizer given by name; 0.003 for Adam, and the class's own otherwise.
    schedule : str or callable, optional
        The learning rate from step to step: "constant", "cosine", "linear", "one_cycle" or "plateau", which begin with
        the optimizer's rate or rise to it, and end with the run; see `gpurnn.schedules`. Or a function:
        ``schedule(step)`` is the learning rate of a step, from 0. None: the optimizer's own.
        If it has a method ``observe``, as `gpurnn.schedules.ReduceOnPlateau` has, it is called with each validation
        loss, and the schedule's ``state_dict`` is kept in the checkpoints.
    teacher_forcing : float or callable, optional
        The probability that a decoder is fed the true target of the step before instead of its own prediction: a number
        in [0, 1], or a function ``teacher_forcing(step)``; see `gpurnn.schedules`. It is passed to the model's
        ``loss_and_gradients`` as a keyword. None: nothing is passed, and the model uses its default.
    clip_norm : float, optional
        Scale the gradient so that its global norm is at most this.
    clip_value : float, optional
        Clip each gradient entry to [-clip_value, clip_value]; before ``clip_norm``, if both are given.
    l2 : float or dict of str to float
        \lambda above, for the weights and not the biases; or one for each kind of weight, by a part of their names,
        such as ``{"weight_hh": 1e-4}``. See `gpurnn.gradients.add_l2`. For a decay of W_hh that is not part of the
        gradient, see ``recurrent_weight_decay`` of `gpurnn.optimizers`.
    validation : Data, optional
        Evaluated every ``validation_interval`` steps (None: once an epoch) and at the end.
    patience : int, optional
        Early stopping: end after this many evaluations in a row that did not lower the validation loss. In any case the
        model ends with the parameters that had the lowest loss.
    directory : path, optional
        Where ``run.json``, ``metrics.jsonl`` and ``checkpoints/`` go. None: nothing is written. A directory belongs to
        one run, which ``run.json`` identifies, and is locked while the run trains. A new run takes a directory that
        holds none of these names; to use one that holds a run, call `resume`. A file that the run did not write is
        never changed or deleted: a damaged file, or one of another run, in the place of a checkpoint is renamed to
        NAME.1.
    resume : bool
        Continue the run in ``directory``, as `resume` does, if it has checkpoints; else a new run begins there.
    gradient_accumulation_steps : int
        Batches in a step. Their gradients add up to the gradient of the mean loss over all of their targets, as if they
        were one large batch, in the memory of one of them. The last step of an epoch may have fewer.
    gradient_checkpoint_every : int or "sqrt", optional
        Gradient checkpointing in time, at the cost of one more forward pass: the ``checkpoint_every`` of the ``vjp`` of
        recurrent layers, passed to the model's ``loss_and_gradients`` as a keyword of that name. The gradients stay the
        same to the last bit. The checkpoints of the run are unrelated.
    checkpoint_interval : int
        Steps between checkpoints. One is also written at the beginning, at the end and at Ctrl-C; the last two are
        kept.
    log_interval : int
        Steps that a line of the metrics covers; its loss is their mean.
    metric : {"bits_per_character", "perplexity"}, optional
        The unit in which to state the loss, besides nats.
    communicator : gpurnn.distributed.Communicator, optional
        The processes that train together: every one of them makes the same `Trainer` with its own communicator. Each
        computes some rows of a batch; the gradients are summed, weighted by the targets that count, and all processes
        make the same update. Process 0 alone writes, shows progress and calls the functions below; the others read
        checkpoints of ``directory``, so all of them must see it. An error of one process ends the training of all.
    shards : int, optional
        Compute a batch in this many parts of its rows, one after another or in different processes, and add up their
        gradients in a fixed order. The result has the same bits for any number of processes, so a run may be resumed on
        another number of them. Without it, each process computes its rows at once, and the transport orders the sums.
        With shards or several processes, the data need a method ``shard``.
    rng : int or numpy.random.Generator
        For dropout. It seeds a generator for each batch. If a batch is computed in parts, gpurnn's layers draw the
        masks that these rows have in the whole batch. Random numbers of your own model differ from part to part.
    progress : bool
        Whether to show a progress bar on stderr.
    callbacks : callable or sequence of callables
        Each is called at the end of every epoch, after its validation, as ``callback(trainer)`` with this object:
        ``trainer.epoch_history[-1]`` describes the epoch, and ``trainer.stop()`` ends the training.
    on_checkpoint : callable, optional
        Called without arguments after each checkpoint.
    on_log : callable, optional
        ``on_log(record)`` is called with each line of the metrics, a dict, once it is in ``history``.
    on_gradients : callable, optional
        ``on_gradients(step, params, grads)`` is called before each update with the number of updates before it, the
        parameters and the gradients g, including the penalty, before any clipping and whether finite or not. It must
        not change them.

    Attributes
    ----------
    step : int
        The number of steps taken.
    total : int
        The number of steps to take. It may be raised, and `train` called again.
    history : list of dict
        The metrics: lines with ``loss`` and lines with ``validation_loss``. If the model has a ``loss_unit``, they name
        it. ``metrics.jsonl`` has the same lines, but an infinite perplexity is the string "Infinity": JSON has no such
        number.
    epoch_history : list of dict
        A row for each epoch, the last one perhaps unfinished: ``epoch``, ``step``, the mean ``loss`` of its targets
        during training, ``accuracy`` for classifiers and taggers, and ``validation_loss`` and ``validation_accuracy``
        of the last validation in the epoch. ``pandas.DataFrame(trainer.epoch_history)`` is a table.
    saved_step : int or None
        The step of the last checkpoint.
    stopped_early : bool

    Raises
    ------
    ValueError, TypeError
        An option is out of its range.

    Examples
    --------
    A model is anything that has a loss and its gradients; here one that adds up its inputs.

    >>> import numpy as np
    >>> from gpurnn.optimizers import SGD
    >>> from gpurnn.training import PaddedBatches
    >>> class Sum:
    ...     def __init__(self):
    ...         self.params = {"weight": np.zeros(1)}
    ...     def loss(self, inputs, targets, state=None, lengths=None):
    ...         return self.loss_and_gradients(inputs, targets)[:2]
    ...     def loss_and_gradients(self, inputs, targets, state=None, lengths=None, *, rng=None):
    ...         total = inputs.sum(axis=0)
    ...         error = self.params["weight"] * total - targets
    ...         return (error**2).mean(), None, {"weight": np.array([2 * (error * total).mean()])}
    >>> sequences = [np.array([1.0, 2.0]), np.array([1.0, -3.0])]
    >>> data = PaddedBatches(sequences, 2, [s.sum() * np.ones(()) for s in sequences], per_sequence=True)
    >>> model = Sum()
    >>> Trainer(model, data, SGD(lr=0.1), steps=20, progress=False).train()
    >>> model.params["weight"].round(3)
    array([1.])
    """

    @_checks.lists_options
    def __init__(
        self,
        model: Trainable,
        data: Data,
        optimizer: str | Optimizer = "adam",
        *,
        steps: int | None = None,
        epochs: int | None = None,
        lr: float | None = None,
        schedule: str | Callable[[int], float] | None = None,
        teacher_forcing: float | Callable[[int], float] | None = None,
        clip_norm: float | None = None,
        clip_value: float | None = None,
        l2: float | dict[str, float] = 0.0,
        validation: Data | None = None,
        validation_interval: int | None = None,
        patience: int | None = None,
        directory: str | os.PathLike[str] | RunDirectory | None = None,
        resume: bool = False,
        gradient_accumulation_steps: int = 1,
        gradient_checkpoint_every: int | str | None = None,
        checkpoint_interval: int = 500,
        log_interval: int = 10,
        metric: str | None = None,
        communicator: Communicator | None = None,
        shards: int | None = None,
        rng: int | np.random.Generator = 0,
        progress: bool = True,
        callbacks: Callable[[Trainer], object] | Sequence[Callable[[Trainer], object]] = (),
        on_checkpoint: Callable[[], None] | None = None,
        on_log: Callable[[dict[str, Any]], None] | None = None,
        on_gradients: Callable[[int, dict[str, Any], dict[str, Any]], None] | None = None,
    ) -> None:
        where = "Trainer"
        if (steps is None) == (epochs is None):
            raise ValueError(f"{where}: steps is {steps!r} and epochs is {epochs!r}, expected exactly one of the two")
        _require(where, "model", model, "params", "loss", "loss_and_gradients")
        if hasattr(model, "training_state"):
            _require(where, "model", model, "training_state", "load_training_state")
        _require(where, "data", data, "carries_state", "batch", "config")
        chosen = optimizers._named(where, optimizer, lr)
        _require(where, "optimizer", chosen, "lr", "step", "state_dict", "load_state_dict")
        if validation is not None:
            _require(where, "validation", validation, "carries_state", "batch", "config")
        if communicator is not None and not isinstance(communicator, Communicator):
            described = _checks.described(communicator)
            raise TypeError(f"{where}: communicator is {described}, expected a gpurnn.distributed.Communicator")
        self.communicator = communicator
        self._processes = Communicator() if communicator is None else communicator
        self.shards = None if shards is None else _checks.integer_at_least(where, "shards", shards, 1)
        if self.shards is not None and self.shards < self._processes.size and self._leads:
            _checks.warn(
                where,
                f"shards={self.shards} leaves {self._processes.size - self.shards} of {self._processes.size} processes "
                "without work",
            )
        if self._parts is not None:
            _require(where, "data", data, "shard")
            if validation is not None:
                _require(where, "validation", validation, "shard")
            if isinstance(model, Remembers):
                raise TypeError(
                    f"{where}: model is a {type(model).__name__}, which remembers earlier batches, expected one whose "
                    "batches can be cut into shards"
                )
        accumulated = _checks.integer_at_least(where, "gradient_accumulation_steps", gradient_accumulation_steps, 1)
        self.gradient_accumulation_steps = accumulated
        if steps is not None:
            self.total = _checks.integer_at_least(where, "steps", steps, 0)
        else:
            self.total = steps_of_epochs(data, _checks.integer_at_least(where, "epochs", epochs, 0), accumulated)
        if isinstance(schedule, str):
            schedule = schedules._named(where, schedule, chosen.lr, self.total)
        elif schedule is not None and lr is not None:
            _checks.warn(where, f"lr={lr} has no effect, as schedule is a function that gives the learning rate")
        callbacks = (callbacks,) if callable(callbacks) else callbacks
        if not isinstance(callbacks, Sequence):
            raise TypeError(f"{where}: callbacks is {_checks.described(callbacks)}, expected a sequence of functions")
        functions = {
            "schedule": schedule, "on_checkpoint": on_checkpoint, "on_log": on_log, "on_gradients": on_gradients,
            **{f"callbacks[{i}]": callback for i, callback in enumerate(callbacks)},
        }  # fmt: skip
        for name, function in functions.items():
            if isinstance(function, type):
                raise TypeError(f"{where}: {name} is the class {function.__qualname__}, expected an object of it")
            _checks.function(where, name, function)
        self.model, self.data, self.optimizer = model, data, chosen
        self.schedule: Any = schedule
        self.callbacks = tuple(callbacks)
        if teacher_forcing is not None and not callable(teacher_forcing):
            teacher_forcing = _checks.probability(where, "teacher_forcing", teacher_forcing)
        if hasattr(teacher_forcing, "observe"):
            raise TypeError(
                f"{where}: teacher_forcing is {_checks.described(teacher_forcing)}, expected a probability or a "
                "function of the step alone: only a schedule of the learning rate can go by validation losses"
            )
        self.teacher_forcing = teacher_forcing
        if clip_norm is not None:
            clip_norm = _checks.finite(where, "clip_norm", _checks.positive(where, "clip_norm", clip_norm))
        if clip_value is not None:
            clip_value = _checks.finite(where, "clip_value", _checks.positive(where, "clip_value", clip_value))
        self.clip_norm, self.clip_value = clip_norm, clip_value
        params = gradients.of_parameters(where, model.params, {})[0]
        gradients.l2_strengths(where, "l2", l2, params)
        if isinstance(chosen, Optimizer):
            chosen._groups(where, params)  # rejects texts that are in no name
        self.l2 = {text: float(v) for text, v in l2.items()} if isinstance(l2, Mapping) else float(l2)
        if validation is None and (patience is not None or validation_interval is not None):
            raise ValueError(f"{where}: validation is None, expected data for early stopping or validation_interval")
        self._observer: Any = schedule if hasattr(schedule, "observe") else None
        if self._observer is not None:
            _require(where, "schedule", schedule, "observe", "state_dict", "load_state_dict")
            if validation is None:
                raise ValueError(f"{where}: validation is None, expected data, whose losses the schedule can observe")
        if schedule is not None and isinstance(chosen, Rprop):
            _checks.warn(where, "schedule has no effect after the first step, as Rprop has a step size for each entry")
        if directory is None and on_checkpoint is not None:
            _checks.warn(where, "on_checkpoint has no effect, as directory is None and no checkpoints are written")
        method = f"{type(model).__name__}.loss_and_gradients"
        for name, option, is_given in (
            ("teacher_forcing", "teacher_forcing", teacher_forcing is not None),
            ("gradient_checkpoint_every", "checkpoint_every", gradient_checkpoint_every is not None),
        ):
            if is_given and not _checks.takes(model.loss_and_gradients, option):
                raise TypeError(f"{where}: {name} is given, expected none, as {method} takes no {option}")
        if getattr(data, "weighted", False) and not _checks.takes(model.loss_and_gradients, "mask"):
            raise TypeError(f"{where}: data has weights, but {method} takes no mask")
        overlaps = (getattr(data, "gradient_steps", None) or 0) > getattr(data, "steps", 0)
        if overlaps and not _checks.takes(model.loss_and_gradients, "state_after"):
            raise TypeError(f"{where}: data has gradient_steps above steps, but {method} takes no state_after")
        self.validation = validation
        if validation_interval is not None:
            validation_interval = _checks.integer_at_least(where, "validation_interval", validation_interval, 1)
        self.validation_interval = validation_interval
        self.patience = None if patience is None else _checks.integer_at_least(where, "patience", patience, 1)
        if directory is not None and not isinstance(directory, RunDirectory):
            _checks.path(where, "directory", directory)
            # Absolute, because the process may change its working directory before the run ends.
            directory = RunDirectory(Path(directory).absolute())
        if directory is not None and self._processes.rank:
            directory = FollowedDirectory(directory.path, directory.names, directory.details)
        self._folder = directory
        self.directory = None if self._folder is None else self._folder.path
        self.gradient_checkpoint_every = gradient_checkpoint_every
        self.checkpoint_interval = _checks.integer_at_least(where, "checkpoint_interval", checkpoint_interval, 1)
        if directory is None and self.checkpoint_interval != 500:
            _checks.warn(
                where,
                f"checkpoint_interval={self.checkpoint_interval} has no effect, as directory is None and no "
                "checkpoints are written",
            )
        self.log_interval = _checks.integer_at_least(where, "log_interval", log_interval, 1)
        if metric is not None:
            metric = _checks.choice(where, "metric", metric, tuple(METRICS))
        self.metric = metric
        self.progress = _checks.flag(where, "progress", progress) and self._processes.rank == 0
        self.on_checkpoint, self.on_log, self.on_gradients = on_checkpoint, on_log, on_gradients

        self.step = 0
        self._epoch = (0, 0)  # the current one, and the step that it begins with
        self.history: list[dict[str, Any]] = []
        self._rng = _random.generator(where, rng)
        self._state: Any = None
        self._unlogged = nothing()
        self._of_epoch = nothing()  # the sums since the current epoch began
        self._epochs: list[dict[str, Any]] = []  # the rows of the epochs that have ended
        self._asked_to_stop = self._stopping = False  # in this process; in all of them
        self._record: dict[str, float] = {}  # the entries of the metrics for the last step
        self._best: dict[str, Any] | None = None
        self._final: dict[str, Any] | None = None  # the results that were computed only because the run ends
        self._last: dict[str, Any] | None = None  # the last parameters, if the model has the best ones
        self._checkpoint: Path | None = None
        self.saved_step: int | None = None

        self._pending = ["announce"]  # the work that is left after the last step, in this order
        self._evaluated = math.nan  # the validation loss that a pending entry is about
        self._before: dict[str, Any] | None = None  # in the first part of a step, the state that undoes it
        self._torn = False  # whether an update has begun and not ended
        self._announced: int | None = None
        self._began = 0.0  # when the step under way began
        self._timed = {"count": 0, "seconds": 0.0}  # of the unlogged steps that this object took

        self._run = ""
        self._known: set[str] = set()  # checkpoints that this object has read or written
        self._metrics_size = 0
        self._unwritten: list[dict[str, Any]] = []  # lines of the history that the file does not hold

        if _checks.flag(where, "resume", resume):
            if self.directory is None:
                raise ValueError(f"{where}: resume is True and directory is None, expected the directory of the run")
            self._check_that_all_do_the_same("resume=True")
            if self._processes.broadcast(bool(checkpoints(self.directory / CHECKPOINTS))):
                self.resume()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self._before is not None:  # copied in the middle of a step, which the copy begins again
            self._roll_back()

    @property
    def _parts(self) -> int | None:
        """The number of parts in which a batch is computed; None if it is computed whole."""
        return self._processes.size if self.shards is None and self._processes.size > 1 else self.shards

    @property
    def _leads(self) -> bool:
        """Whether this process writes and calls the caller's functions."""
        return self._processes.rank == 0

    @property
    def _xp(self) -> Any:
        return _dispatch.namespace("Trainer", **{f"model.params[{n!r}]": p for n, p in self.model.params.items()})

    @property
    def _loss_unit(self) -> str | None:
        return getattr(self.model, "loss_unit", None)

    @property
    def stopped_early(self) -> bool:
        """Whether the validation loss has not fallen for ``patience`` evaluations."""
        return self.patience is not None and self._best is not None and self._best["failures"] >= self.patience

    @property
    def epoch_history(self) -> list[dict[str, Any]]:
        """A row for each epoch; see the attributes of this class."""
        rows = list(self._epochs)
        if self._of_epoch["count"]:
            epoch, index, steps = self._position()
            rows.append({"epoch": round(epoch + index / steps, 4), "step": self.step, **means(self._of_epoch)})
        epochs, begin = [], 0
        for row in rows:
            measured = {name: value for name, value in row.items() if name not in ("epoch", "step", "loss")}
            whole = {"epoch": row["epoch"], "step": row["step"], **self._stated("", row["loss"], measured)}
            for line in self.history:
                if "validation_loss" in line and begin < line["step"] <= row["step"]:
                    whole |= {name: value for name, value in line.items() if name.startswith("validation_")}
            whole.pop(_metrics.UNIT, None)
            epochs.append(whole)
            begin = row["step"]
        return epochs

    def __repr__(self) -> str:
        epoch, index, steps = self._position()
        epochs = f"{epoch + index / steps:.4g} epoch" + ("" if (epoch, index) == (1, 0) else "s")
        lines = [
            f"Trainer({type(self.model).__name__}, {type(self.data).__name__}, {self.optimizer!r})",
            f"  {self.step:,} of {self.total:,} steps, {epochs}",
        ]
        if self.stopped_early:
            lines[-1] += f"; stopped early: {self.patience} evaluations did not lower the validation loss"
        rows = self.epoch_history
        if rows:
            values = (f"{n.replace('_', ' ')} {v:.4g}" for n, v in rows[-1].items() if n not in ("epoch", "step"))
            lines.append(f"  last epoch: {', '.join(values)}")
        if self._best is not None:
            lines.append(f"  best validation loss: {self._best['loss']:.4g}, at step {self._best['step']:,}")
        return "\n".join(lines)

    def stop(self) -> None:
        """End `train` after the step under way, as if it were the last one; for callbacks.

        Another call of `train` continues.
        """
        self._asked_to_stop = True

    def train(self) -> None:
        """Take the steps that are left.

        After an exception, call it again when the cause is gone: training continues with the step that failed, with the
        same bits as if nothing had happened. An exception in the middle of an update leaves parameters and optimizer
        half updated. Then `train` does not continue before `resume` is called.

        After the last step, ``total`` may be raised and `train` called again. Results that a run computes only because
        it ends (the last line of the metrics, the last validation, the best parameters of early stopping) are undone
        first, so that the result is that of one run with the new ``total``.

        Raises
        ------
        FloatingPointError
            The loss or a gradient is NaN or infinite. The message names the step, the parameter and the last good
            checkpoint, which is still there.
        KeyboardInterrupt
            Ctrl-C: the step under way is finished and a checkpoint written first. A second one acts at once.
        RunDirectoryError
            ``directory`` holds a training run and `resume` was not called, files that a run would overwrite, or a run
            that another process trains right now. Nothing in it has changed.
        RuntimeError
            An earlier call was interrupted in the middle of an update.
        OSError
            A file cannot be written.
        """
        self._check_that_all_do_the_same("train()")
        if self._torn:
            cure = "build the model, the optimizer and the Trainer again"
            if self._checkpoint is not None:
                cure = f"call resume(), which continues from {self._checkpoint.name}"
            raise RuntimeError(
                f"Trainer: the update of step {self.step} was interrupted, so the parameters and the optimizer may be "
                f"half updated; {cure}"
            )
        if self._folder is None:
            self._train()
            return
        folder, new = self._folder, not self._run
        wing = _dispatch.computing(next(iter(self.model.params.values())))
        with ExitStack() as lock:

            def take() -> None:
                lock.enter_context(folder.locked(new=new))
                if new:
                    self._run = folder.begin(wing)
                else:
                    folder.go_on(self._run, self._known, wing)

            self._processes.together("Trainer", take)
            self._run = self._processes.broadcast(self._run)
            self._train()

    def _check_that_all_do_the_same(self, call: str) -> None:
        """Reject, in all processes, any difference between them: each would wait for something else, forever."""
        processes = self._processes
        if processes.size == 1:
            return
        every = processes.each("Trainer", lambda: self._described(call))
        for rank, other in enumerate(every):
            difference = run_state.difference("", every[0], other)
            if difference is not None:
                name, first, here = difference
                raise ValueError(
                    f"Trainer: {name} is {first} in process 0 and {here} in process {rank}, expected the same in all; "
                    "every process makes the same model, data and Trainer, and process 0 alone calls its functions"
                )

    def _described(self, call: str) -> dict[str, Any]:
        """The properties that must be the same in all processes for them to take the same steps."""
        params = list(self.model.params.values())
        return {
            "the call": call,
            "step": self.step,
            "total": self.total,
            "whether an update was interrupted": self._torn,
            "what is left to do after the last step": list(self._pending),
            "whether there is a directory": self._folder is not None,
            "checkpoint_interval": self.checkpoint_interval,
            "wire_dtype": self._processes.wire_dtype,
            "the number of callbacks": len(self.callbacks),
            "whether there is an on_gradients": self.on_gradients is not None,
            **self._config(),
            **self._scheduled(self.total),
            # Shards promise the last bits, and other instructions change these.
            **({} if self.shards is None else {"what computes": _dispatch.computing(params[0])}),
            "the crc32 of the state of rng": zlib.crc32(repr(self._rng.bit_generator.state).encode()),
            # After the first step, different processors may have different last bits.
            "the crc32 of the parameters": None if self.step else _fingerprint(params),
        }

    def _train(self) -> None:
        if self._folder is not None:
            self._processes.together("Trainer", self._prepare_directory)
        self._asked_to_stop = self._stopping = False
        if self._final is not None and not self._is_over:
            self._reopen()
        finished = False
        with (
            interrupt_deferred() as interrupt,
            # A bar that is switched off still takes locks that forked processes share.
            progress_bar(total=self.total, initial=self.step) if self.progress else nullcontext() as bar,
            np.errstate(over="ignore", invalid="ignore"),  # an overflow is seen in the loss and the gradient norm
        ):
            self._began = time.perf_counter()
            self._attend(bar)
            interrupted = self._is_to_end(interrupt)
            while not (self._is_over or interrupted):
                self._processes.together("Trainer", self._take_step)
                self._attend(bar)
                interrupted = self._is_to_end(interrupt)
                if bar is not None:
                    bar.update()
            if not interrupted and self._final is None:
                self._processes.together("Trainer", lambda: self._finish(bar))
                finished = True
        if finished or self.saved_step != self.step:
            self._processes.together("Trainer", self._save)
        self._processes.together("Trainer", self._announce)
        if self._is_to_end(interrupt):
            self._processes.agreed = True
            raise KeyboardInterrupt
        if self._last is None:
            left = self._averages
            if self.patience is not None and self._best is not None and not self._final_is_best:
                left = self._best["params"]
            if left:
                self._last = self._copied_parameters()
                self._assign_parameters(left)

    def _prepare_directory(self) -> None:
        """Make the file of the metrics match this object, and save a checkpoint to fall back on if there is none."""
        assert self._folder is not None
        self._metrics_size = self._folder.trim_metrics(self._metrics_size)
        self._metrics_size += self._folder.append_metrics(self._unwritten)
        self._unwritten = []
        if self._checkpoint is None:
            self._save()

    def _is_to_end(self, interrupt: threading.Event) -> bool:
        """Whether any process was interrupted; if any was asked to stop, all of them stop as well."""
        every = self._processes.all_gather((interrupt.is_set(), self._asked_to_stop))
        self._stopping = any(asked for _, asked in every)
        return any(interrupted for interrupted, _ in every)

    @property
    def _is_over(self) -> bool:
        return self.step >= self.total or self.stopped_early or self._stopping

    @property
    def _final_is_best(self) -> bool:
        return self._final is not None and bool(self._final["improved"])

    def _attend(self, bar: Any) -> None:
        """Do the work that is left after the last step. After an exception, the next call continues with it."""
        while self._pending:
            if self._is_due(self._pending[0]):
                self._processes.together("Trainer", lambda: self._attend_to(self._pending[0], bar))
                if self._pending[0].startswith("callback "):
                    self._stopping = self._processes.broadcast(self._asked_to_stop)
            del self._pending[0]

    def _is_due(self, what: str) -> bool:
        """Whether an entry of the pending work is to be done now: the same in all processes."""
        if what == "log":
            return self._unlogged["steps"] >= self.log_interval and self._unlogged["count"] > 0
        if what == "validate":
            return self.validation is not None and self._validation_is_due()
        if what == "observe":
            return self._observer is not None
        if what == "judge":
            return self.patience is not None
        if what == "save":
            return self.step % self.checkpoint_interval == 0 and not self._is_over
        if what == "announce":
            return self._announced != self.saved_step
        return True

    def _attend_to(self, what: str, bar: Any) -> None:
        """Do one entry of the pending work, which is due."""
        if what == "log":
            self._log(self._at_this_step(self._training_record()))
            self._unlogged, self._timed = nothing(), {"count": 0, "seconds": 0.0}
            self._pending[1:1] = ["report"]
            self._show(bar, self.history[-1])
        elif what == "validate":
            assert self.validation is not None
            record = self._validated(self.validation)
            self._log(self._at_this_step(record))
            self._pending[1:1] = ["report", "observe", "judge"]
            self._evaluated = record["validation_loss"]
        elif what == "report":
            if self.on_log is not None and self._leads:
                self.on_log(self.history[-1])
        elif what == "observe":
            self._observer.observe(self._evaluated)
        elif what == "judge":
            self._judge(self._evaluated)
        elif what.startswith("callback "):
            if self._leads:
                self.callbacks[int(what.partition(" ")[2])](self)
        elif what == "save":
            self._save()
        elif what == "announce":
            self._announce()

    def _judge(self, loss: float) -> None:
        if self._best is None or loss < self._best["loss"]:
            with self._averaged():
                params = self._copied_parameters()
            self._best = {"loss": loss, "step": self.step, "failures": 0, "params": params}
        else:
            self._best["failures"] += 1

    def _finish(self, bar: Any) -> None:
        """Log and validate before it is due, because the run ends here; if the run is made longer, this is undone."""
        records: list[dict[str, Any]] = []
        kept: list[dict[str, Any]] = []
        improved = False
        if self._unlogged["count"]:
            records.append(self._at_this_step(self._training_record()))
            self._show(bar, records[0])
        if self.validation is not None and self.step and not self._validation_is_due():
            record = self._validated(self.validation)
            records.append(self._at_this_step(record))
            improved = self._best is None or record["validation_loss"] < self._best["loss"]
        elif records and self.history and self.history[-1]["step"] == self.step:
            # As at every step, the line of the validation comes last.
            kept = self.history[-1:]
            records += kept
        self._replace_last_lines(kept, records)
        self._final = {"records": records, "kept": kept, "improved": improved}
        if self.on_log is not None:
            for record in records[: len(records) - len(kept)] if self._leads else ():
                self.on_log(record)

    def _reopen(self) -> None:
        """Undo what `_finish` and the end of `train` did."""
        assert self._final is not None
        self._replace_last_lines(self._final["records"], self._final["kept"])
        self._final = None
        if self._last is not None:
            self._assign_parameters(self._last)
            self._last = None

    def _replace_last_lines(self, old: list[dict[str, Any]], new: list[dict[str, Any]]) -> None:
        """Replace records at the end of the history and of the metrics."""
        if self._folder is not None:
            self._metrics_size = self._folder.trim_metrics(self._metrics_size - len(_metrics.encoded(old)))
            self._unwritten = old
            self._metrics_size += self._folder.append_metrics(new)
            self._unwritten = []
        self.history[len(self.history) - len(old) :] = new

    def resume(self) -> int:
        """Continue from the newest sound checkpoint in ``directory``, bit for bit, and return its step.

        The bits are those of the run on the wing and the machine that it began on. ``run.json`` names the wing, and
        `train` warns if another one computes now; see `gpurnn.use`.
        The model, the data, the optimizer and the options must be those of the run. ``steps`` may be raised, also after
        the run has ended; the result is that of one run with the new number of steps.
        A damaged checkpoint is skipped with a warning if there is a sound one before it. A damaged line of the metrics
        is left out of ``history`` with a warning; a missing file of the metrics also gives a warning. `resume` changes
        no file: `train` cuts the file after the last sound line up to the checkpoint, and writes the later lines again.

        Raises
        ------
        CheckpointError
            There is no sound checkpoint, or it belongs to another run; the message says what differs. Nothing has
            changed: not the model, the optimizer or this object.
        """
        return self._processes.together("Trainer.resume", self._resume)

    def _resume(self) -> int:
        if self.directory is None or self._folder is None:
            raise ValueError("Trainer.resume: directory is None, expected the directory of a training run")
        known = {found.name for found in checkpoints(self.directory / CHECKPOINTS)}
        path, saved = latest_checkpoint(self.directory / CHECKPOINTS)
        self._check_saved(path, saved)
        history, size, unwritten = self._history_until(saved)
        before = self._restorable()
        try:
            self._restore(saved)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
            self._restore(before)
            raise CheckpointError(f"{path}: its state does not fit this run: {error}") from error
        self._unlogged, self._best, self._record = saved["unlogged"], self._on_device(saved["best"]), saved["record"]
        self._epochs, self._of_epoch = saved["epochs"], saved["epoch"]
        self._timed = {"count": 0, "seconds": 0.0}
        self._state = self._on_device(saved["recurrent_state"])
        self._final = saved["final"]
        self._run, self._known, self._checkpoint = saved["run"], known, path
        self.step = self.saved_step = self._announced = saved["step"]
        self._epoch, self._last, self._pending, self._torn, self._before = (0, 0), None, [], False, None
        self._asked_to_stop = self._stopping = False
        if self._final is not None:
            end = self._final["records" if self._is_over else "kept"]
            history, unwritten = history + end, unwritten + end
            if not self._is_over:
                self._final = None
        self.history, self._metrics_size, self._unwritten = history, size, unwritten
        return self.step

    def _history_until(self, saved: dict[str, Any]) -> tuple[list[dict[str, Any]], int, list[dict[str, Any]]]:
        """The metrics up to a checkpoint; the size of the part of the file to keep; and the lines to write after it.

        Metrics that were logged only because the run ended there are left out.
        """
        assert self.directory is not None
        path = self.directory / METRICS_FILE
        if not path.exists():
            if saved["step"]:
                warnings.warn(f"{path}: is missing, so the history begins at step {saved['step']}", stacklevel=3)
            return [], 0, []
        found = _metrics.read(path)
        final = [] if saved["final"] is None else saved["final"]["records"]
        history: list[dict[str, Any]] = []
        size, unwritten = 0, []
        for record, end in zip(found.records, found.ends, strict=True):
            if record["step"] > saved["step"] or record in final:
                break
            history.append(record)
            if end is None:
                unwritten.append(record)
            else:
                size = end
        return history, size, unwritten

    def _restorable(self) -> dict[str, Any]:
        """The present state, in the form that `_restore` takes."""
        return {
            "params": {name: _dispatch.to_numpy(p) for name, p in self._copied_parameters().items()},
            "optimizer": self.optimizer.state_dict(),
            "rng": self._rng.bit_generator.state,
            "model": copy.deepcopy(self._model_state()),
            "schedule": None if self._observer is None else self._observer.state_dict(),
        }

    def _restore(self, saved: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(self._on_device(saved["optimizer"]))
        where = "Trainer.resume"
        if isinstance(self.optimizer, Optimizer) and self.optimizer._step:
            params = gradients.of_parameters(where, self.model.params, {})[0]
            trained, _ = self.optimizer._groups(where, params)
            self.optimizer._check_state(where, {name: params[name] for name in trained})
        self._rng.bit_generator.state = saved["rng"]
        if isinstance(self.model, Remembers):
            self.model.load_training_state(self._on_device(saved["model"]))
        if self._observer is not None:
            self._observer.load_state_dict(saved["schedule"])
        self._assign_parameters(saved["params"])

    def _position(self) -> tuple[int, int, int]:
        """The epoch of the next step, the number of the step in that epoch, and the epoch's number of steps."""
        epoch, first = self._epoch if self._epoch[1] <= self.step else (0, 0)
        while first + (steps := steps_of_epoch(self.data, epoch, self.gradient_accumulation_steps)) <= self.step:
            epoch, first = epoch + 1, first + steps
        self._epoch = (epoch, first)
        return epoch, self.step - first, steps

    def _validation_is_due(self) -> bool:
        interval = self.validation_interval
        return self._position()[1] == 0 if interval is None else self.step % interval == 0

    def _take_step(self) -> None:
        """One update. An exception before the update leaves everything as it was."""
        self._before = {"rng": self._rng.bit_generator.state, "model": copy.deepcopy(self._model_state())}
        try:
            loss, count, metrics, state, grads, rate, record = self._gradients()
        except BaseException:
            self._roll_back()
            raise
        self._before, self._torn = None, True
        self.optimizer.step(self.model.params, grads, lr=rate)
        self._state = state if self.data.carries_state else None
        self._unlogged = added(self._unlogged, loss, count, metrics)
        self._of_epoch = added(self._of_epoch, loss, count, metrics)
        now = time.perf_counter()
        self._timed = {
            "count": self._timed["count"] + count,
            "seconds": self._timed["seconds"] + now - self._began,
        }
        self._began, self._record = now, record
        self.step += 1
        called: list[str] = []
        epoch, index, _ = self._position()
        if index == 0:
            if self._of_epoch["count"]:  # not if all targets of the epoch have the weight 0
                self._epochs = [*self._epochs, {"epoch": epoch, "step": self.step, **means(self._of_epoch)}]
            self._of_epoch = nothing()
            called = [f"callback {i}" for i in range(len(self.callbacks))]
        self._pending = ["log", "validate", *called, "save", "announce"]
        self._torn = False

    def _roll_back(self) -> None:
        """Undo the beginning of a step: the draws and changes that computing its gradients made."""
        assert self._before is not None
        self._rng.bit_generator.state = self._before["rng"]
        if isinstance(self.model, Remembers):
            self.model.load_training_state(self._before["model"])
        self._before = None

    def _gradients(
        self,
    ) -> tuple[float, float, dict[str, float], Any, dict[str, Any], float | None, dict[str, float]]:
        """The loss of the next step, its number of targets, metrics, state, clipped gradients, rate, and record."""
        epoch, index, _ = self._position()
        first, several = index * self.gradient_accumulation_steps, self.gradient_accumulation_steps > 1
        state = self._state if index > 0 else None
        forcing = self._teacher_forcing(self.step)
        forced = {} if forcing is None else {"teacher_forcing": forcing}
        checkpointed = self.gradient_checkpoint_every
        options = {**forced, **({} if checkpointed is None else {"checkpoint_every": checkpointed})}
        sums = nothing()
        grads: dict[str, Any] = {}
        for number in range(first, min(first + self.gradient_accumulation_steps, num_batches(self.data, epoch))):
            held = state if number == first or self.data.carries_state else None
            loss, count, metrics, state, of_batch = self._computed(epoch, number, held, options)
            sums = added(sums, loss, count, metrics)
            params, of_batch = gradients.of_parameters("Trainer", self.model.params, of_batch)
            if several:
                of_batch = {name: g * float(count) for name, g in of_batch.items()}
            grads = {name: grads[name] + g for name, g in of_batch.items()} if grads else of_batch
        count = sums["count"]
        if several:
            metrics = means({**sums, "count": count or 1.0})
            loss = metrics.pop("loss")
            grads = {name: g / float(count or 1.0) for name, g in grads.items()}
        if self.l2:
            grads = gradients.add_l2(grads, params, self.l2)
        whole, frozen = grads, getattr(self.optimizer, "frozen", ())
        if frozen:
            grads = {name: g for name, g in grads.items() if not any(text in name for text in frozen)}
        if (observe := self.on_gradients) is not None:
            self._processes.first("Trainer", lambda: observe(self.step, {name: params[name] for name in grads}, grads))
        # The norm is taken before any clipping, which would hide an infinity.
        clipped = grads
        if self.clip_value is not None:
            clipped = gradients.clip_by_value(clipped, self.clip_value)
        if self.clip_norm is not None:
            clipped, total = gradients.clip_by_global_norm(clipped, self.clip_norm)
        if self.clip_norm is None or self.clip_value is not None:
            total = gradients.global_norm(grads)
        norm = float(total)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise self._diverged(f"the loss is {loss:g} and the gradient norm {norm:g}", grads)
        rate = self._learning_rate(self.step)
        record = {
            "learning_rate": float(self.optimizer.lr) if rate is None else rate,
            "gradient_norm": norm,
            **forced,
        }
        return loss, count, metrics, state, {**whole, **clipped}, rate, record

    def _computed(self, epoch: int, number: int, state: Any, options: dict[str, Any]) -> batch_gradients.Computed:
        seed = _random.philox_seed(self._rng)
        batch = (self.model, self.data, epoch, number, state)
        if self._parts is None:
            return batch_gradients.of_batch(*batch, seed=seed, options=options)
        return batch_gradients.of_parts(
            *batch,
            seed=seed,
            options=options,
            processes=self._processes,
            parts=self._parts,
            fixed_order=self.shards is not None,
        )

    def _learning_rate(self, step: int) -> float | None:
        """The value of the schedule; None if there is none."""
        if self.schedule is None:
            return None
        return _checks.non_negative("Trainer", f"schedule({step})", self.schedule(step))

    def _teacher_forcing(self, step: int) -> float | None:
        """The probability that a step is fed the true target; None if the model does not take it."""
        if not callable(self.teacher_forcing):
            return self.teacher_forcing
        return _checks.probability("Trainer", f"teacher_forcing({step})", self.teacher_forcing(step))

    def _diverged(self, what: str, grads: dict[str, Any]) -> FloatingPointError:
        """The error for a loss, gradient or parameter that is NaN or infinite, with the parameters to blame."""

        arrays = {f"parameter {name}": p for name, p in self.model.params.items()}
        arrays |= {f"the gradient of {name}": g for name, g in grads.items()}
        blame = [f"{name} is not finite" for name, a in arrays.items() if not bool(self._xp.all(self._xp.isfinite(a)))]
        if not blame:
            largest = {name: float(self._xp.max(self._xp.abs(a))) for name, a in arrays.items() if 0 not in a.shape}
            name = max(largest, key=lambda name: largest[name])
            blame = [f"all is finite, the largest entry {largest[name]:g} that of {name}"]
        others = f" (and {len(blame) - 1} more)" if len(blame) > 1 else ""
        kept = "none was written" if self._checkpoint is None else self._checkpoint
        return FloatingPointError(
            f"Trainer: step {self.step}: {what}: {blame[0]}{others}; last good checkpoint: {kept}"
        )

    def _stated(self, prefix: str, loss: float, measured: Mapping[str, float]) -> dict[str, Any]:
        """By name: a loss, the same loss in the chosen metric, the model's own metrics, and the unit of the loss."""
        stated: dict[str, Any] = {f"{prefix}loss": loss, **{f"{prefix}{name}": v for name, v in measured.items()}}
        if self.metric is not None:
            stated[f"{prefix}{self.metric}"] = METRICS[self.metric][1](loss)
        if self._loss_unit is not None:
            stated[_metrics.UNIT] = self._loss_unit
        return stated

    def _training_record(self) -> dict[str, Any]:
        """The metrics of the steps since the last line."""
        measured = means(self._unlogged)
        record = {**self._stated("", measured.pop("loss"), measured), **self._record}
        if self._timed["count"]:  # not if all of these steps were taken before a resume
            record["tokens_per_second"] = round(self._timed["count"] / self._timed["seconds"], 1)
        return record

    def _show(self, bar: Any, record: dict[str, Any]) -> None:
        """Show a line of the metrics on the progress bar, if there is one."""
        if bar is None:
            return
        shown = [f"loss {record['loss']:.3f}"]
        if self.metric is not None:
            shown.append(f"{METRICS[self.metric][0]} {record[self.metric]:.3f}")
        if "accuracy" in record:
            shown.append(f"accuracy {record['accuracy']:.3f}")
        if "tokens_per_second" in record:
            shown.append(f"{record['tokens_per_second'] / 1000:.1f}k tokens/s")
        bar.set_postfix_str(", ".join(shown), refresh=False)

    def _validated(self, validation: Data) -> dict[str, Any]:
        """The loss and the model's metrics of the data to validate on, by their names in the metrics."""
        with self._averaged():
            measured = evaluation(self.model, validation, self._processes, self._parts)
        loss = measured.pop("loss")
        if not math.isfinite(loss):
            raise self._diverged(f"the validation loss is {loss:g}", {})
        return self._stated("validation_", loss, measured)

    @property
    def _averages(self) -> dict[str, Any]:
        """The moving averages of the parameters, if the optimizer keeps them."""
        return {} if getattr(self.optimizer, "ema_decay", None) is None else self.optimizer.averages

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """A context in which the model has the moving averages of its parameters, if there are any."""
        averages = self._averages
        trained = {name: self._xp.asarray(self.model.params[name], copy=True) for name in averages}
        self._assign_parameters(averages)
        try:
            yield
        finally:
            self._assign_parameters(trained)

    def _copied_parameters(self) -> dict[str, Any]:
        return {name: self._xp.asarray(array, copy=True) for name, array in self.model.params.items()}

    def _model_state(self) -> Any:
        return self.model.training_state() if isinstance(self.model, Remembers) else None

    def _log(self, record: dict[str, Any]) -> None:
        """Append a record to the metrics and to the history."""
        if self._folder is not None:
            self._metrics_size += self._folder.append_metrics([record])
        self.history.append(record)

    def _at_this_step(self, record: dict[str, Any]) -> dict[str, Any]:
        epoch, index, batches = self._position()
        return {"step": self.step, "epoch": float(epoch + index / batches), **record}

    def _config(self) -> dict[str, Any]:
        """The settings that must not change when the run is resumed, JSON-compatible."""
        accumulated = self.gradient_accumulation_steps
        return {
            **({"gradient_accumulation_steps": accumulated} if accumulated > 1 else {}),
            **({"shards": self.shards} if self.shards is not None else {}),
            **({"processes": self._parts} if self.shards is None and self._parts is not None else {}),
            "parameters": {n: [list(p.shape), _checks.dtype_name(p)] for n, p in self.model.params.items()},
            "data": self.data.config(),
            "validation": None if self.validation is None else self.validation.config(),
            "validation_interval": self.validation_interval,
            "patience": self.patience,
            "optimizer": repr(self.optimizer),
            "clip_norm": self.clip_norm,
            "clip_value": self.clip_value,
            "l2": self.l2,
            "log_interval": self.log_interval,
            "rng": type(self._rng.bit_generator).__name__,
        }

    def _check_saved(self, path: Path, saved: dict[str, Any]) -> None:
        """Reject a checkpoint of another run, and one that no Trainer can have written."""
        lacking = run_state.ENTRIES - saved.keys()
        if lacking:
            raise CheckpointError(f"{path}: has no entry {min(lacking)!r}, so it is not the checkpoint of a Trainer")
        try:
            here = {**self._config(), **self._scheduled(saved["step"])}
            difference = run_state.difference("", saved["config"], here)
            if difference is not None:
                name, held, found = difference
                if name == "processes":
                    raise CheckpointError(
                        f"{path}: belongs to a run without shards on {held or 1} processes, but here there are "
                        f"{found or 1}; only a run with shards resumes on another number"
                    )
                raise CheckpointError(f"{path}: belongs to a run whose {name} is {held}, but here it is {found}")
            run_state.check(saved, self.model.params, self._rng)
        except CheckpointError:
            raise
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise CheckpointError(f"{path}: its state is not one that a Trainer writes: {error}") from error
        run = None if self._folder is None else self._folder.read()
        if run is not None and run["run"] != saved["run"]:
            raise CheckpointError(f"{path}: belongs to another run than its directory, by {RUN}")

    def _scheduled(self, step: int) -> dict[str, list[float | None] | str | None]:
        """The fingerprints of the schedules: their values at the beginning, half way to ``step`` and at ``step``."""
        at = (0, step // 2, step)
        learning_rate: list[float | None] | str | None = None
        if self._observer is not None:
            learning_rate = repr(self._observer)  # its values depend on the losses that it has observed
        elif self.schedule is not None:
            learning_rate = [self._learning_rate(s) for s in at]
        return {
            "learning_rate": learning_rate,
            "teacher_forcing": None if self.teacher_forcing is None else [self._teacher_forcing(s) for s in at],
        }

    def _save(self) -> None:
        """Write a checkpoint, if there is a directory to write it to."""
        if self._folder is None:
            self.saved_step = self.step
            return
        for array in self.model.params.values():
            if not bool(self._xp.all(self._xp.isfinite(array))):
                raise self._diverged("the last update overflowed", {})
        state = {
            "run": self._run,
            "step": self.step,
            "params": self.model.params,
            "optimizer": self.optimizer.state_dict(),
            "recurrent_state": self._whole_state(),
            "rng": self._rng.bit_generator.state,
            "unlogged": self._unlogged,
            "epochs": self._epochs,
            "epoch": self._of_epoch,
            "record": self._record,
            "best": self._best,
            "final": self._final,
            "model": self._model_state(),
            "schedule": None if self._observer is None else self._observer.state_dict(),
            "config": {**self._config(), **self._scheduled(self.step)},
        }
        folder, name = self._folder.path / CHECKPOINTS, file_name(self.step)
        if self._leads:  # no verb of the communicator may follow here, where this process alone may fail
            # The metrics up to here must be on the disk before the checkpoint that counts on them.
            self._folder.flush_metrics()
            self._known.add(name)  # an exception may come after the file is written
            save_checkpoint(folder, self.step, state)
        self._checkpoint, self.saved_step = folder / name, self.step

    def _whole_state(self) -> Any:
        """The recurrent state that goes into a checkpoint; if batches have shards, the state of each shard."""
        if self._parts is None or self._state is None:
            return self._state
        own = own_shards(self._processes, self._parts)
        states = [_on_host(self._state[s]) for s in own]
        return [state for of_rank in self._processes.all_gather(states) for state in of_rank]

    def _announce(self) -> None:
        """Call ``on_checkpoint``, unless it was called for the last checkpoint."""
        due = self._folder is not None and self._announced != self.saved_step and self._leads
        if due and self.on_checkpoint is not None:
            self.on_checkpoint()
        self._announced = self.saved_step

    def _assign_parameters(self, values: dict[str, Any]) -> None:
        # In place, because the layers and the model share these arrays.
        params = self.model.params
        for name, value in values.items():
            params[name][...] = self._on_device(value)

    def _on_device(self, tree: Any) -> Any:
        """``tree`` with its NumPy arrays as arrays of the parameters' library."""
        if isinstance(tree, dict):
            return {key: self._on_device(value) for key, value in tree.items()}
        if isinstance(tree, (tuple, list)):
            return type(tree)(self._on_device(value) for value in tree)
        return _dispatch.from_numpy(self._xp, tree) if isinstance(tree, np.ndarray) else tree


def _on_host(tree: Any) -> Any:
    """``tree`` with its arrays as NumPy arrays."""
    if isinstance(tree, (tuple, list)):
        return type(tree)(_on_host(value) for value in tree)
    return None if tree is None else np.asarray(_dispatch.to_numpy(tree))


def _require(where: str, name: str, value: Any, *attributes: str) -> None:
    if isinstance(value, type):  # a class has the attributes of its objects
        raise TypeError(f"{where}: {name} is the class {value.__qualname__}, expected an object of such a class")
    lacking = [attribute for attribute in attributes if not hasattr(value, attribute)]
    if lacking:
        raise TypeError(f"{where}: {name} is {_checks.described(value)} without {lacking}, expected {attributes}")
