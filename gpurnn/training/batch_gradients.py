"""The gradients of the loss of one batch, computed as a whole or in parts that the processes share."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from .. import _dispatch, _random, gradients
from .._contract import Trainable
from ..distributed import Communicator, ShardSum, own_shards
from .data import Batch, Data
from .evaluation import added, means, measures, nothing, weighting


class Computed(NamedTuple):
    """The results of a model for a batch: means over its targets, their number, the state after it, and gradients."""

    loss: float
    num_targets: float
    metrics: dict[str, float]
    state: Any
    grads: dict[str, Any]


def of_batch(
    model: Trainable, data: Data, epoch: int, number: int, state: Any, *, seed: int, options: dict[str, Any]
) -> Computed:
    """The gradients of a whole batch.

    Parameters
    ----------
    epoch, number : int
        Which batch of ``data``.
    state
        The recurrent state before the batch; None for zeros.
    seed : int
        For dropout.
    options : dict
        Further keywords of the model's ``loss_and_gradients``.
    """
    return _computed(model, data.batch(epoch, number), state, np.random.default_rng(seed), options)


def of_parts(
    model: Trainable,
    data: Any,
    epoch: int,
    number: int,
    states: list[Any] | None,
    *,
    seed: int,
    options: dict[str, Any],
    processes: Communicator,
    parts: int,
    fixed_order: bool,
) -> Computed:
    """`of_batch` for a batch that is cut by rows into ``parts``, which the ``processes`` share.

    A row has the same dropout as in the whole batch, so no mask depends on the processes or the parts. If the data do
    not say which rows a part has, its dropout is seeded by the step and the part.

    Parameters
    ----------
    states : list, optional
        The recurrent states by part; those of the parts that this process computes are read.
    fixed_order : bool
        Whether to add up the gradients in an order that does not depend on the number of processes. Otherwise each
        process has one part, and the transport decides the order.
    """
    sums = ShardSum(processes, parts)
    after: list[Any] = [None] * parts
    params = gradients.of_parameters("Trainer", model.params, {})[0]
    whole: dict[str, Any] = {}

    def own() -> list[tuple[float, float, dict[str, float]]]:
        measured = []
        for part in own_shards(processes, parts):
            batch = data.shard(epoch, number, part, parts)
            if batch is None:
                grads = {name: _dispatch.namespace("Trainer", **{name: p}).zeros_like(p) for name, p in params.items()}
            else:
                state = None if states is None else states[part]
                rng = np.random.default_rng([seed, part])
                if batch.rows is not None:
                    rng = _random.OfRows(seed, *batch.rows)
                loss, count, metrics, after[part], found = _computed(model, batch, state, rng, options)
                *_, found = gradients.take_gradients("Trainer", model.params, found)
                grads = {name: found[name] * float(count) for name in params}
                measured.append((loss, count, metrics))
            if fixed_order:
                sums.add(part, grads)
            else:
                whole.update(grads)
        return measured

    total = nothing()
    for of_rank in processes.each("Trainer", own):
        for loss, count, metrics in of_rank:
            total = added(total, loss, count, metrics)
    count = total["count"]
    if fixed_order:
        grads = sums.total(params)
    else:
        grads = dict(zip(params, processes.all_reduce([whole[name] for name in params]), strict=True))
    grads = {name: g / float(count or 1.0) for name, g in grads.items()}
    metrics = means({**total, "count": count or 1.0})
    return Computed(metrics.pop("loss"), count, metrics, after, grads)


def _computed(
    model: Trainable, batch: Batch, state: Any, rng: np.random.Generator, options: dict[str, Any]
) -> Computed:
    metrics: dict[str, float] = {}
    loss, state, grads = model.loss_and_gradients(
        batch.inputs,
        batch.targets,
        state,
        batch.lengths,
        rng=rng,
        **options,
        **({"metrics": metrics} if measures(model.loss_and_gradients) else {}),
        **weighting(batch),
        **({} if batch.state_after is None else {"state_after": batch.state_after}),
    )
    return Computed(float(loss), batch.count, metrics, state, grads)
