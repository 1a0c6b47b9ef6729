"""Measurements over batches: sums over their targets, the means, and the evaluation of a model."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from .._contract import Trainable
from ..distributed import Communicator, own_shards
from .data import Batch, Data, num_batches


def nothing() -> dict[str, Any]:
    """The sums before the first step: of the losses and the model's metrics, of targets, and of steps."""
    return {"loss": 0.0, "count": 0, "steps": 0, "metrics": {}}


def added(sums: dict[str, Any], loss: float, count: float, metrics: Mapping[str, float]) -> dict[str, Any]:
    """Sums with one more step or batch, given the means of its targets."""
    of_metrics = {name: sums["metrics"].get(name, 0.0) + value * count for name, value in metrics.items()}
    return {
        "loss": sums["loss"] + loss * count,
        "count": sums["count"] + count,
        "steps": sums["steps"] + 1,
        "metrics": of_metrics,
    }


def means(sums: dict[str, Any]) -> dict[str, float]:
    """The means of the loss and of the metrics over all targets."""
    return {name: total / sums["count"] for name, total in {"loss": sums["loss"], **sums["metrics"]}.items()}


def weighting(batch: Batch) -> dict[str, Any]:
    """The keyword that passes the weights of the targets on to a model."""
    return {} if batch.weights is None else {"mask": batch.weights}


def measures(function: Callable[..., Any]) -> bool:
    """Whether a method of a model names a parameter ``metrics``, a dict to fill in; ``**keywords`` do not count."""
    return "metrics" in inspect.signature(function).parameters


def evaluate(model: Trainable, data: Data) -> float:
    """The mean loss per target of one epoch of ``data``, in evaluation mode."""
    return evaluation(model, data)["loss"]


def evaluation(
    model: Trainable, data: Data, processes: Communicator | None = None, shards: int | None = None
) -> dict[str, float]:
    """The means of the loss and of the model's metrics over one epoch of ``data``, in evaluation mode."""
    if shards is None:
        measured = _evaluated(model, data, data.batch)
    else:
        assert processes is not None
        measured = _evaluated_in_shards(model, data, processes, shards)
    sums = nothing()
    for loss, count, metrics in measured:
        sums = added(sums, loss, count, metrics)
    return means(sums)


def _evaluated(
    model: Trainable, data: Data, batch_of: Callable[[int, int], Batch | None]
) -> list[tuple[float, float, dict[str, float]]]:
    """The loss, the number of targets and the metrics of each batch of an epoch, or of one shard of each."""
    measured, state, takes_metrics = [], None, measures(model.loss)
    for index in range(num_batches(data, 0)):
        metrics: dict[str, float] = {}
        batch = batch_of(0, index)
        if batch is None:
            measured.append((0.0, 0.0, metrics))
            continue
        # The state after the batch before is also that after the context, as the parameters have not changed.
        inputs = batch.inputs[batch.context :, ...] if batch.context else batch.inputs
        options = {**weighting(batch), **({"metrics": metrics} if takes_metrics else {})}
        loss, state = model.loss(inputs, batch.targets, state, batch.lengths, **options)
        if not data.carries_state:
            state = None
        measured.append((float(loss), batch.count, metrics))
    return measured


def _evaluated_in_shards(
    model: Trainable, data: Any, processes: Communicator, shards: int
) -> list[tuple[float, float, dict[str, float]]]:
    """`_evaluated` for all shards, which the processes share, in the order of batches and then of shards."""

    def own() -> list[Any]:
        return [
            _evaluated(model, data, lambda epoch, index, s=s: data.shard(epoch, index, s, shards))  # type: ignore[misc]
            for s in own_shards(processes, shards)
        ]

    of_shards = [shard for of_rank in processes.each("Trainer", own) for shard in of_rank]
    return [measured for of_batch in zip(*of_shards, strict=True) for measured in of_batch if measured[1]]
