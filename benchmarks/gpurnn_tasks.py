"""The tasks of `benchmarks.tasks` with gpurnn's models: `python -m benchmarks.gpurnn_tasks TASK SEED THREADS`.

Print a JSON object: ``measures``, in the order of the task's, and ``seconds`` of training. The environment sets the
threads, as for NumPy's BLAS. A fourth argument names a file for a picture of the reversal's alignment.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

import gpurnn
from gpurnn.models import EncoderDecoder, Forecaster, SequenceClassifier, SequenceRegressor, SequenceTagger
from gpurnn.schedules import Linear
from gpurnn.training.data import Batch

from .task_data import (
    FIRST,
    TASKS,
    Array,
    Examples,
    Task,
    adding,
    copying,
    digits,
    measure_transduction,
    padded,
    sunspots,
    transduction,
)

TORCH_GRU = {"reset_after": True, "update": "state"}
"""The options of a GRU that computes as PyTorch's."""


class Drawn:
    """Endless batches, drawn from a seed."""

    carries_state = False

    def __init__(self, draw: Callable[[np.random.Generator], tuple[Array, Array]], seed: int, count: int) -> None:
        self._draw, self.seed, self.count = draw, seed, count

    def __len__(self) -> int:
        return self.count

    def batch(self, epoch: int, index: int) -> Batch:
        inputs, targets = self._draw(np.random.default_rng([self.seed, epoch * self.count + index]))
        return Batch(inputs, targets, None, targets.shape[0] * (targets.shape[1] if targets.ndim > 1 else 1))

    def config(self) -> dict[str, Any]:
        return {"kind": "Drawn", "seed": self.seed, "count": self.count}


def _cell(task: Task) -> dict[str, Any]:
    return {"cell": task.cell, **(TORCH_GRU if task.cell == "gru" else {})}


def _train(model: Any, task: Task, *data: Any, **options: Any) -> float:
    """Train as the task says, and return the seconds that it took."""
    started = time.perf_counter()
    model.fit(*data, optimizer=gpurnn.Adam(task.training["lr"]), clip_norm=1.0, **options)
    return time.perf_counter() - started


def _falling(task: Task, steps: int) -> Linear:
    """A learning rate that falls linearly to zero."""
    return Linear(task.training["lr"], task.training["lr"] / steps)


def solve_adding(task: Task, seed: int) -> tuple[list[float], float]:
    """The mean squared error over 1,000 new examples."""
    steps, batch, T = task.training["steps"], task.training["batch"], task.data["steps"]
    model = SequenceRegressor(2, task.hidden, 1, rng=seed, **_cell(task))
    seconds = _train(model, task, Drawn(lambda rng: adding(rng, T, batch), seed, steps), steps=steps)
    x, y = adding(np.random.default_rng(10_000), T, 1_000)
    return [float(model.loss(x, y)[0])], seconds


def solve_copying(task: Task, seed: int) -> tuple[list[float], float]:
    """Mean cross-entropy over 1,000 new examples."""
    steps, batch, delay = task.training["steps"], task.training["batch"], task.data["delay"]

    def draw(rng: np.random.Generator, batch: int = batch) -> tuple[Array, Array]:
        x, y = copying(rng, delay, batch)
        return np.eye(10, dtype=np.float32)[x], y

    model = SequenceTagger(10, task.hidden, 9, rng=seed, **_cell(task))
    seconds = _train(model, task, Drawn(draw, seed, steps), steps=steps)
    return [float(model.loss(*draw(np.random.default_rng(10_000), 1_000))[0])], seconds


def solve_digits(task: Task, seed: int) -> tuple[list[float], float]:
    """Accuracy on the last 450."""
    data = digits(task.data["pixels"])
    model = SequenceClassifier(data.inputs[0].shape[1], task.hidden, 10, rng=seed, **_cell(task))
    epochs, batch = task.training["epochs"], task.training["batch"]
    steps = epochs * -(-len(data.inputs) // batch)
    seconds = _train(
        model, task, data.inputs, data.targets, steps=steps, batch_size=batch, schedule=_falling(task, steps), rng=seed
    )
    return [float(np.mean(model.predict(data.test_inputs) == np.array(data.test_targets)))], seconds


def solve_sunspots(task: Task, seed: int) -> tuple[list[float], float]:
    """The mean squared errors of one-step forecasts from the twelve values before, for two periods, over 1535."""
    series = sunspots().astype(np.float32)
    model = Forecaster(12, task.hidden, rng=seed, **_cell(task))
    epochs, batch = task.training["epochs"], task.training["batch"]
    seconds = _train(model, task, series[:221], epochs=epochs, batch_size=batch, rng=seed)
    found = np.array([model.predict(series[:t], 1)[0] for t in range(221, 280)]).reshape(-1)
    errors = (found - series[221:280]) ** 2 / 1535
    return [float(errors[:35].mean()), float(errors[35:].mean())], seconds


def transducer(task: Task, seed: int) -> tuple[EncoderDecoder, Examples]:
    """The untrained model of a task from sequence to sequence, and its data."""
    data, source_symbols, target_symbols = transduction(task.data["name"])
    model = EncoderDecoder(
        source_symbols, target_symbols, task.training["embedding"], task.hidden, bidirectional=True,
        attention="additive", rng=seed, **_cell(task),
    )  # fmt: skip
    return model, data


def solve_transduction(task: Task, seed: int, picture: str | None = None) -> tuple[list[float], float]:
    """The errors of greedy decoding. ``picture`` is a file for the alignment of a long test input."""
    model, data = transducer(task, seed)
    steps, batch = task.training["steps"], task.training["batch"]
    seconds = _train(
        model, task, data.inputs, data.targets, steps=steps, batch_size=batch, schedule=_falling(task, steps), rng=seed
    )
    found = model.predict(data.test_inputs)
    alignments = []
    if task.name == "reversal":
        source, lengths = padded(data.test_inputs)
        target = padded([np.append(y, model.end) for y in found])
        weights = model.align(source, target, lengths)
        pairs = zip(data.test_inputs, found, strict=True)
        alignments = [weights[: len(y), i, : len(x)] for i, (x, y) in enumerate(pairs)]
        if picture is not None:
            i = max(range(len(found)), key=lambda i: len(found[i]))
            source_symbols, target_symbols = (
                [chr(ord("A") + int(token) - FIRST) for token in tokens] for tokens in (data.test_inputs[i], found[i])
            )
            gpurnn.plots.alignment(alignments[i], source_symbols, target_symbols, picture)
    return measure_transduction(task, found, alignments, data), seconds


SOLVERS = {
    "adding": solve_adding,
    "copying": solve_copying,
    "digits": solve_digits,
    "sunspots": solve_sunspots,
    "transduction": solve_transduction,
}


def solve(task: Task, seed: int) -> tuple[list[float], float]:
    """The task's measures after training, and the seconds of training."""
    return SOLVERS[task.kind](task, seed)


def main() -> None:
    """Solve the task that the command line names, and print the result."""
    task, seed, picture = TASKS[sys.argv[1]], int(sys.argv[2]), sys.argv[4:]
    measures, seconds = solve_transduction(task, seed, *picture) if picture else solve(task, seed)
    print(json.dumps({"measures": measures, "seconds": seconds}))


if __name__ == "__main__":
    main()
