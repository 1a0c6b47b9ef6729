"""The training loop: gradients, clipping, updates, validation, early stopping, metrics and checkpoints."""

from __future__ import annotations

import json
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from tqdm import tqdm

from .. import _checks, _dispatch, _random, gradients, losses
from .checkpoint import CheckpointError, checkpoints, latest_checkpoint, save_checkpoint
from .data import Batch, Data, num_batches

METRICS: dict[str, tuple[str, Callable[[float], float]]] = {
    "bits_per_character": ("bits per character", lambda loss: loss / math.log(2.0)),
    "perplexity": ("perplexity", losses.perplexity),
}
"""What a mean cross-entropy in nats can also be stated as: the words for it, and how it follows from the loss."""


class Model(Protocol):
    """What a `Trainer` needs of a model. `LanguageModel` is one; ten lines around any layers are another.

    A model that remembers more from step to step than its parameters has two methods more, ``training_state()``, which
    returns it as a dict of arrays, numbers, strings and None, and ``load_training_state(state)``.
    """

    @property
    def params(self) -> dict[str, Any]:
        """The parameters by name. The optimizer changes these arrays in place."""

    def loss(self, inputs: Any, targets: Any, state: Any = None, lengths: Any = None) -> tuple[Any, Any]:
        """The mean loss over the targets that count, and the final recurrent state."""

    def loss_and_gradients(
        self,
        inputs: Any,
        targets: Any,
        state: Any = None,
        lengths: Any = None,
        *,
        rng: np.random.Generator | None = None,
    ) -> tuple[Any, Any, dict[str, Any]]:
        """What `loss` returns, in training mode if ``rng`` is given, and the loss's gradients by parameter name.

        If the trainer has ``teacher_forcing``, it is passed on as one more keyword of this name, a float.
        Likewise ``checkpoint_every``, and for windows that overlap ``state_after``: there ``targets`` are of the last
        steps only, and the state after that many steps is to be returned.
        """


def evaluate(model: Model, data: Data) -> float:
    """The mean loss per target of one epoch of ``data``, in evaluation mode."""
    total, count, state = 0.0, 0, None
    for index in range(num_batches(data, 0)):
        batch = data.batch(0, index)
        # The state at the end of the batch before is that after the context, as nothing has changed in between.
        inputs = batch.inputs[batch.context :, ...] if batch.context else batch.inputs
        loss, state = model.loss(inputs, batch.targets, state, batch.lengths)
        if not data.carries_state:
            state = None
        total += float(loss) * batch.count
        count += batch.count
    return total / count


class Trainer:
    r"""Minimises the loss of a model over data by gradient descent, in steps that survive a crash.

    A step takes one batch, the gradient g of its mean loss L plus the L2 penalty, clips it and hands it to the
    optimizer: g = dL/d\theta + \lambda \theta, then g <- clip(g), then \theta <- optimizer(\theta, g, \eta_t). Over a
    `TokenStream` this is truncated backpropagation through time, the state handed on from window to window; over
    `PaddedBatches` it is full backpropagation through time. Memory is that of one batch, however long the stream.

    Parameters
    ----------
    model : Model
        Anything with ``params``, ``loss`` and ``loss_and_gradients``. Its parameters change in place.
    data : Data
        `TokenStream`, `PaddedBatches` or anything with their methods.
    optimizer : Optimizer
        From `gpurnn.optimizers`.
    steps, epochs : int
        When training ends, counted from its very beginning; exactly one of the two.
    schedule : callable, optional
        ``schedule(step)`` is the learning rate of a step, from 0; see `gpurnn.schedules`. None: the optimizer's own.
        One with a method ``observe`` is given each validation loss, ``observe(loss)``, and its ``state_dict`` is kept
        in the checkpoints; so `gpurnn.schedules.ReduceOnPlateau`.
    teacher_forcing : float or callable, optional
        How likely a decoder is to be fed the true target of the step before instead of its own prediction: a number in
        [0, 1], or that of a step, ``teacher_forcing(step)``; see `gpurnn.schedules`. It goes to the model's
        ``loss_and_gradients`` as a keyword. None: nothing is passed, and the model does as it always does.
    clip_norm : float, optional
        Scale the gradient so that its global norm is at most this.
    clip_value : float, optional
        Clip each gradient entry to [-clip_value, clip_value]; before ``clip_norm``, if both are given.
    l2 : float or dict of str to float
        \lambda above, on the weights and not the biases; or one for each kind of weight, by a part of their names, as
        ``{"weight_hh": 1e-4}``. See `gpurnn.gradients.add_l2`. For a decay of W_hh apart from the gradient see
        ``recurrent_weight_decay`` of `gpurnn.optimizers`.
    validation : Data, optional
        Evaluated every ``validation_interval`` steps (None: once an epoch) and at the end.
    patience : int, optional
        Early stopping: end after this many evaluations in a row that did not lower the validation loss, and in any case
        leave the model with the parameters that had the lowest.
    directory : path, optional
        Where ``metrics.jsonl`` and ``checkpoints/`` go. None: nothing is written.
    gradient_checkpoint_every : int or "sqrt", optional
        Gradient checkpointing in time, at the cost of one more forward pass: the ``checkpoint_every`` of the ``vjp`` of
        recurrent layers, passed to the model's ``loss_and_gradients`` as a keyword of that name. The gradients stay the
        same to the last bit. It has nothing to do with the checkpoints of the run.
    checkpoint_interval : int
        Steps between checkpoints. One is also written at the beginning, at the end and at Ctrl-C; the last two are
        kept.
    log_interval : int
        Steps that a line of the metrics covers; its loss is their mean.
    metric : {"bits_per_character", "perplexity"}, optional
        What to state the loss as, besides in nats.
    rng : int or numpy.random.Generator
        For dropout.
    progress : bool
        Whether to show a progress bar on stderr.
    on_checkpoint : callable, optional
        Called without arguments after each checkpoint.
    on_gradients : callable, optional
        ``on_gradients(step, params, grads)`` is called before each update with the number of updates before it, the
        parameters and the gradients g, the penalty included, before any clipping and whether finite or not. It is to
        change nothing.

    Attributes
    ----------
    step : int
        How many steps have been taken.
    history : list of dict
        The metrics, as in ``metrics.jsonl``: lines with ``loss`` and lines with ``validation_loss``.
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

    def __init__(
        self,
        model: Model,
        data: Data,
        optimizer: Any,
        *,
        steps: int | None = None,
        epochs: int | None = None,
        schedule: Callable[[int], float] | None = None,
        teacher_forcing: float | Callable[[int], float] | None = None,
        clip_norm: float | None = None,
        clip_value: float | None = None,
        l2: float | dict[str, float] = 0.0,
        validation: Data | None = None,
        validation_interval: int | None = None,
        patience: int | None = None,
        directory: str | os.PathLike[str] | None = None,
        gradient_checkpoint_every: int | str | None = None,
        checkpoint_interval: int = 500,
        log_interval: int = 10,
        metric: str | None = None,
        rng: int | np.random.Generator = 0,
        progress: bool = True,
        on_checkpoint: Callable[[], None] | None = None,
        on_gradients: Callable[[int, dict[str, Any], dict[str, Any]], None] | None = None,
    ) -> None:
        where = "Trainer"
        if (steps is None) == (epochs is None):
            raise ValueError(f"{where}: steps is {steps!r} and epochs is {epochs!r}, expected exactly one of the two")
        _require(where, "model", model, "params", "loss", "loss_and_gradients")
        _require(where, "data", data, "carries_state", "batch", "config")
        _require(where, "optimizer", optimizer, "lr", "step", "state_dict", "load_state_dict")
        if validation is not None:
            _require(where, "validation", validation, "carries_state", "batch", "config")
        self.model, self.data, self.optimizer, self.schedule = model, data, optimizer, schedule
        if steps is not None:
            self.total = _checks.integer_at_least(where, "steps", steps, 0)
        else:
            self.total = sum(num_batches(data, e) for e in range(_checks.integer_at_least(where, "epochs", epochs, 0)))
        if teacher_forcing is not None and not callable(teacher_forcing):
            teacher_forcing = _checks.probability(where, "teacher_forcing", teacher_forcing)
        if hasattr(teacher_forcing, "observe"):
            raise TypeError(
                f"{where}: teacher_forcing is a {type(teacher_forcing).__qualname__}, expected a probability or a "
                "function of the step alone: only a schedule of the learning rate can go by validation losses"
            )
        self.teacher_forcing = teacher_forcing
        for name, value in (("clip_norm", clip_norm), ("clip_value", clip_value)):
            if value is not None:
                _checks.finite(where, name, _checks.positive(where, name, value))
        gradients.l2_strengths(where, "l2", l2, model.params)
        self.clip_norm, self.clip_value, self.l2 = clip_norm, clip_value, l2
        if validation is None and (patience is not None or validation_interval is not None):
            raise ValueError(f"{where}: validation is None, expected data for early stopping or validation_interval")
        self._observer: Any = schedule if hasattr(schedule, "observe") else None
        if self._observer is not None:
            _require(where, "schedule", schedule, "observe", "state_dict", "load_state_dict")
            if validation is None:
                raise ValueError(f"{where}: validation is None, expected data, whose losses the schedule can observe")
        self.validation = validation
        if validation_interval is not None:
            validation_interval = _checks.integer_at_least(where, "validation_interval", validation_interval, 1)
        self.validation_interval = validation_interval
        self.patience = None if patience is None else _checks.integer_at_least(where, "patience", patience, 1)
        self.directory = None if directory is None else Path(directory)
        self.gradient_checkpoint_every = gradient_checkpoint_every
        self.checkpoint_interval = _checks.integer_at_least(where, "checkpoint_interval", checkpoint_interval, 1)
        self.log_interval = _checks.integer_at_least(where, "log_interval", log_interval, 1)
        if metric is not None:
            _checks.choice(where, "metric", metric, tuple(METRICS))
        self.metric = metric
        self.progress = progress
        self.on_checkpoint, self.on_gradients = on_checkpoint, on_gradients

        self.step = 0
        self._epoch = (0, 0)  # the current one, and the step that it begins with
        self.history: list[dict[str, Any]] = []
        self._rng = _random.generator(where, rng)
        self._state: Any = None
        self._unlogged = {"loss": 0.0, "count": 0, "steps": 0}
        self._best: dict[str, Any] | None = None
        self._checkpoint: Path | None = None
        self.saved_step: int | None = None
        self._xp = _dispatch.namespace(where, **model.params)

    @property
    def stopped_early(self) -> bool:
        """Whether the validation loss has not fallen for ``patience`` evaluations."""
        return self.patience is not None and self._best is not None and self._best["failures"] >= self.patience

    def train(self) -> None:
        """Take the steps that are left.

        Raises
        ------
        FloatingPointError
            The loss or a gradient is NaN or infinite. The message names the step, the parameter and the last good
            checkpoint, which is still there.
        KeyboardInterrupt
            Ctrl-C: the step under way is finished and a checkpoint written first. A second one acts at once.
        ValueError
            ``directory`` already holds a training run and `resume` was not called.
        """
        if self.directory is not None and self._checkpoint is None:
            held = checkpoints(self.directory / "checkpoints")
            if held:
                raise ValueError(
                    f"Trainer: directory {self.directory} already holds a training run ({held[-1].name}); "
                    "call resume() first, or choose another directory"
                )
            self._keep_metrics_to(0)
            self._save()
        with (
            _interrupt_deferred() as interrupt,
            tqdm(
                total=self.total, initial=self.step, unit="step", dynamic_ncols=True, disable=not self.progress
            ) as bar,
            np.errstate(over="ignore", invalid="ignore"),  # what overflows is seen in the loss and the gradient norm
        ):
            started = time.perf_counter()
            while self.step < self.total and not self.stopped_early and not interrupt.is_set():
                record = self._take_step()
                if self._unlogged["steps"] >= self.log_interval or self.step == self.total:
                    now = time.perf_counter()
                    shown = self._log_training(record, now - started)
                    started = now
                    bar.set_postfix_str(shown, refresh=False)
                if self.validation is not None and self._validation_is_due():
                    self._validate(self.validation)
                if self.step % self.checkpoint_interval == 0:
                    self._save()
                bar.update()
        if self.saved_step != self.step:
            self._save()
        if interrupt.is_set():
            raise KeyboardInterrupt
        if self.patience is not None and self._best is not None:
            self._assign_parameters(self._best["params"])

    def resume(self) -> int:
        """Go on where the newest sound checkpoint in ``directory`` left off, bit for bit, and return its step.

        The model, the data, the optimizer and the options must be those of the run; ``steps`` may be raised.
        A damaged checkpoint is passed over with a warning if there is a sound one before it. Lines of the metrics
        that are later than the checkpoint are removed; they will be written again.

        Raises
        ------
        CheckpointError
            There is no sound checkpoint, or it belongs to another run; the message says what differs.
        """
        if self.directory is None:
            raise ValueError("Trainer.resume: directory is None, expected the directory of a training run")
        path, saved = latest_checkpoint(self.directory / "checkpoints")
        self._require_same_run(path, saved)
        self._assign_parameters(saved["params"])
        self.optimizer.load_state_dict(self._on_device(saved["optimizer"]))
        self._rng.bit_generator.state = saved["rng"]
        self._state = self._on_device(saved["recurrent_state"])
        self._unlogged = saved["unlogged"]
        self._best = self._on_device(saved["best"])
        if hasattr(self.model, "training_state"):
            self.model.load_training_state(self._on_device(saved["model"]))  # type: ignore[attr-defined]
        if self._observer is not None:
            self._observer.load_state_dict(saved["schedule"])
        self.step = self.saved_step = saved["step"]
        self._checkpoint = path
        self._keep_metrics_to(self.step)
        return self.step

    def _position(self) -> tuple[int, int, int]:
        """The epoch of the next step, the number of its batch in that epoch, and how many batches that has."""
        epoch, first = self._epoch if self._epoch[1] <= self.step else (0, 0)
        while first + (batches := num_batches(self.data, epoch)) <= self.step:
            epoch, first = epoch + 1, first + batches
        self._epoch = (epoch, first)
        return epoch, self.step - first, batches

    def _validation_is_due(self) -> bool:
        if self.step == self.total:
            return True
        interval = self.validation_interval
        return self._position()[1] == 0 if interval is None else self.step % interval == 0

    def _take_step(self) -> dict[str, float]:
        """One update: what it was made with, for the metrics."""
        epoch, index, _ = self._position()
        batch = self.data.batch(epoch, index)
        state = self._state if index > 0 else None
        forcing = self._teacher_forcing(self.step)
        options = {} if forcing is None else {"teacher_forcing": forcing}
        loss_array, state, grads = self.model.loss_and_gradients(
            batch.inputs, batch.targets, state, batch.lengths, rng=self._rng, **options, **self._backpropagation(batch)
        )
        loss = float(loss_array)
        if self.l2:
            grads = gradients.add_l2(grads, self.model.params, self.l2)
        if self.on_gradients is not None:
            self.on_gradients(self.step, self.model.params, grads)
        # The norm is that before any clipping, which would hide an infinity.
        clipped = grads
        if self.clip_value is not None:
            clipped = gradients.clip_by_value(clipped, self.clip_value)
        if self.clip_norm is not None:
            clipped, norm = gradients.clip_by_global_norm(clipped, self.clip_norm)
        if self.clip_norm is None or self.clip_value is not None:
            norm = gradients.global_norm(grads)
        norm = float(norm)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise self._diverged(f"the loss is {loss:g} and the gradient norm {norm:g}", grads)
        rate = None if self.schedule is None else self.schedule(self.step)
        self.optimizer.step(self.model.params, clipped, lr=rate)
        self._state = state if self.data.carries_state else None
        self.step += 1
        self._unlogged["loss"] += loss * batch.count
        self._unlogged["count"] += batch.count
        self._unlogged["steps"] += 1
        return {"learning_rate": self.optimizer.lr if rate is None else rate, "gradient_norm": norm, **options}

    def _backpropagation(self, batch: Batch) -> dict[str, Any]:
        """What the model is to be told of how to go through time, where that is not the usual way."""
        given = {"checkpoint_every": self.gradient_checkpoint_every, "state_after": batch.state_after}
        return {name: value for name, value in given.items() if value is not None}

    def _teacher_forcing(self, step: int) -> float | None:
        """How likely a step is to be fed the true target; None if the model is not to be told."""
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

    def _stated(self, prefix: str, loss: float) -> dict[str, float]:
        """A loss, and the same in the chosen metric, by their names in the metrics."""
        stated = {f"{prefix}loss": loss}
        if self.metric is not None:
            stated[f"{prefix}{self.metric}"] = METRICS[self.metric][1](loss)
        return stated

    def _log_training(self, record: dict[str, float], seconds: float) -> str:
        """Write a line for the steps since the last one, and return what the progress bar shows."""
        unlogged, self._unlogged = self._unlogged, {"loss": 0.0, "count": 0, "steps": 0}
        stated = self._stated("", unlogged["loss"] / unlogged["count"])
        speed = unlogged["count"] / seconds
        self._log({**stated, **record, "tokens_per_second": round(speed, 1)})
        shown = [f"loss {stated['loss']:.3f}"]
        if self.metric is not None:
            shown.append(f"{METRICS[self.metric][0]} {stated[self.metric]:.3f}")
        return ", ".join([*shown, f"{speed / 1000:.1f}k tokens/s"])

    def _validate(self, validation: Data) -> None:
        loss = evaluate(self.model, validation)
        if not math.isfinite(loss):
            raise self._diverged(f"the validation loss is {loss:g}", {})
        self._log(self._stated("validation_", loss))
        if self._observer is not None:
            self._observer.observe(loss)
        if self.patience is None:
            return
        if self._best is None or loss < self._best["loss"]:
            params = {name: self._xp.asarray(array, copy=True) for name, array in self.model.params.items()}
            self._best = {"loss": loss, "step": self.step, "failures": 0, "params": params}
        else:
            self._best["failures"] += 1

    def _log(self, record: dict[str, Any]) -> None:
        epoch, index, batches = self._position()
        record = {"step": self.step, "epoch": epoch + index / batches, **record}
        self.history.append(record)
        if self.directory is not None:
            with open(self.directory / "metrics.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")

    def _keep_metrics_to(self, step: int) -> None:
        """Cut the metrics file after its last whole line up to ``step``, and read what is left as the history."""
        assert self.directory is not None
        self.directory.mkdir(parents=True, exist_ok=True)
        self.history, size = [], 0
        with open(self.directory / "metrics.jsonl", "a+b") as file:
            file.seek(0)
            for line in file:
                if not line.endswith(b"\n"):
                    break  # a kill cut it short
                record = json.loads(line)
                if record["step"] > step:
                    break
                self.history.append(record)
                size += len(line)
            file.truncate(size)

    def _config(self) -> dict[str, Any]:
        """What must not change when the run is resumed, as JSON can hold it."""
        return {
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

    def _require_same_run(self, path: Path, saved: dict[str, Any]) -> None:
        here = {**self._config(), **self._scheduled(saved["step"])}
        difference = _difference("", saved["config"], here)
        if difference is not None:
            raise CheckpointError(f"{path}: belongs to a run whose {difference}")

    def _scheduled(self, step: int) -> dict[str, list[float | None] | str | None]:
        """What the schedules give at the beginning, half way to ``step`` and at it: fingerprints of them."""
        at = (0, step // 2, step)
        learning_rate: list[float | None] | str | None = None
        if self._observer is not None:
            learning_rate = repr(self._observer)  # what it gives depends on what it has observed
        elif self.schedule is not None:
            learning_rate = [float(self.schedule(s)) for s in at]
        return {
            "learning_rate": learning_rate,
            "teacher_forcing": None if self.teacher_forcing is None else [self._teacher_forcing(s) for s in at],
        }

    def _save(self) -> None:
        """Write a checkpoint, if there is a directory to write it to."""
        if self.directory is None:
            self.saved_step = self.step
            return
        for array in self.model.params.values():
            if not bool(self._xp.all(self._xp.isfinite(array))):
                raise self._diverged("the last update overflowed", {})
        # The metrics up to here must be on the disk before the checkpoint that counts on them.
        with open(self.directory / "metrics.jsonl", "ab") as file:
            os.fsync(file.fileno())
        state = {
            "step": self.step,
            "params": self.model.params,
            "optimizer": self.optimizer.state_dict(),
            "recurrent_state": self._state,
            "rng": self._rng.bit_generator.state,
            "unlogged": self._unlogged,
            "best": self._best,
            "model": self.model.training_state() if hasattr(self.model, "training_state") else None,
            "schedule": None if self._observer is None else self._observer.state_dict(),
            "config": {**self._config(), **self._scheduled(self.step)},
        }
        self._checkpoint = save_checkpoint(self.directory / "checkpoints", self.step, state)
        self.saved_step = self.step
        if self.on_checkpoint is not None:
            self.on_checkpoint()

    def _assign_parameters(self, values: dict[str, Any]) -> None:
        # In place, because the layers and the model share these arrays.
        for name, array in self.model.params.items():
            array[...] = self._on_device(values[name])

    def _on_device(self, tree: Any) -> Any:
        """``tree`` with its NumPy arrays as arrays of the parameters' library."""
        if isinstance(tree, dict):
            return {key: self._on_device(value) for key, value in tree.items()}
        if isinstance(tree, (tuple, list)):
            return type(tree)(self._on_device(value) for value in tree)
        return _dispatch.from_numpy(self._xp, tree) if isinstance(tree, np.ndarray) else tree


def _require(where: str, name: str, value: Any, *attributes: str) -> None:
    lacking = [attribute for attribute in attributes if not hasattr(value, attribute)]
    if lacking:
        raise TypeError(f"{where}: {name} is a {type(value).__qualname__} without {lacking}, expected {attributes}")


def _difference(name: str, held: Any, here: Any) -> str | None:
    """The first entry in which two nested dicts differ, in words; None if there is none."""
    if isinstance(held, dict) and isinstance(here, dict):
        keys = [*here, *(key for key in held if key not in here)]
        differences = (_difference(f"{name}.{key}" if name else key, held.get(key), here.get(key)) for key in keys)
        return next((d for d in differences if d is not None), None)
    return None if held == here else f"{name} is {held}, but here it is {here}"


@contextmanager
def _interrupt_deferred() -> Iterator[threading.Event]:
    """Turn the first Ctrl-C into an event, so that no update is torn apart; the second acts at once."""
    interrupt = threading.Event()
    previous = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(previous):
        yield interrupt
        return

    def remember(*_: Any) -> None:
        interrupt.set()
        signal.signal(signal.SIGINT, previous)

    signal.signal(signal.SIGINT, remember)
    try:
        yield interrupt
    finally:
        signal.signal(signal.SIGINT, previous)
