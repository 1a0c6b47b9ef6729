"""Poolings: one vector for a whole sequence from the outputs of its steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _arrays, _dispatch, functional, initializers
from .._contract import Array
from .._op import Pullback
from .._random import generator
from ..layers.base import Layer, Parameters, parameter, parameter_dtype

if TYPE_CHECKING:
    pass

POOLINGS = ("last", "mean", "attention")


def _take(where: str, y: Array, lengths: Array | None) -> tuple[Any, Array, Array]:
    """The namespace, y (T, B, K) and the lengths of its sequences, ready to compute with."""
    xp, y, lengths = _arrays.take(where, {"y": y}, {"lengths": lengths}, needed=("y",))
    if lengths is None:
        lengths = xp.full((y.shape[1],), y.shape[0], dtype=xp.int64, device=_dispatch.device(y))
    return xp, y, lengths


class LastPooling(Layer):
    """The output of a recurrent stack once it has read the whole sequence; zero for a sequence without steps.

    That is its output at the last valid step, or at the first step for the columns of a direction that runs backward.
    """

    name = "last"

    def __init__(self, bidirectional: bool = False, reverse: bool = False) -> None:
        self.bidirectional, self.reverse = bidirectional, reverse
        self.params = Parameters({})

    def __call__(self, y: Array, lengths: Array | None = None) -> Array:
        """Pool y (T, B, K) to (B, K)."""
        return self.vjp(y, lengths)[0]

    def vjp(self, y: Array, lengths: Array | None = None) -> tuple[Array, Pullback]:
        """``(pooled, pullback)``, with ``pullback(dpooled)`` returning ``(dy, {})``."""
        xp, y, lengths = _take("LastPooling", y, lengths)
        T, B, K = y.shape
        H = 0 if self.reverse else K // 2 if self.bidirectional else K
        # y is zero past a length, and so is step 0 of a sequence without steps.
        step = xp.clip(lengths - 1, min=0)
        row = step * B + xp.arange(B, dtype=xp.int64, device=_dispatch.device(y))
        pooled, pull = functional.embedding.vjp(row, xp.reshape(y, (T * B, K)))
        if H < K:
            pooled = xp.concat([pooled[:, :H], y[0, :, H:]], axis=1)

        def pullback(dpooled: Array) -> tuple[Array, dict[str, Array]]:
            dlast = dpooled
            if H < K:
                dlast = xp.concat([dpooled[:, :H], xp.zeros_like(dpooled[:, H:])], axis=1)
            dy = xp.reshape(pull(dlast)[1]["weight"], (T, B, K))
            if H < K:
                dy[0, :, H:] = dpooled[:, H:]
            return dy, {}

        return pooled, pullback


class MeanPooling(Layer):
    """The mean over the valid steps; zero for a sequence without steps."""

    name = "mean"

    def __init__(self) -> None:
        self.params = Parameters({})

    def __call__(self, y: Array, lengths: Array | None = None) -> Array:
        """Pool y (T, B, K) to (B, K)."""
        return self.vjp(y, lengths)[0]

    def vjp(self, y: Array, lengths: Array | None = None) -> tuple[Array, Pullback]:
        """``(pooled, pullback)``, with ``pullback(dpooled)`` returning ``(dy, {})``."""
        xp, y, lengths = _take("MeanPooling", y, lengths)
        count = xp.astype(xp.clip(lengths, min=1), y.dtype)[:, None]

        def pullback(dpooled: Array) -> tuple[Array, dict[str, Array]]:
            return xp.zeros_like(y) + dpooled / count, {}

        # y is zero past a length.
        return xp.sum(y, axis=0) / count, pullback


class AttentionPooling(Layer):
    """A weighted mean over the valid steps, with u^T tanh(W h_t + b) as the score of step t; u is learned.

    Yang et al. 2016, equations 5 to 7. Zero for a sequence without steps.
    """

    name = "attention"

    def __init__(self, size: int, *, dtype: Any = "float32", rng: int | np.random.Generator = 0) -> None:
        self.size = size
        random, kind = generator("AttentionPooling", rng), parameter_dtype("AttentionPooling", dtype)
        xavier, normal = initializers.get("xavier"), initializers.get("normal")
        self.params = Parameters(
            {
                "weight": parameter((size, size), kind, lambda: xavier(random, (size, size), kind)),
                "bias": parameter((size,), kind, lambda: np.zeros(size, kind)),
                "query": parameter((size,), kind, lambda: normal(random, (1, size), kind)[0]),
            }
        )

    def _arguments(self, y: Array, lengths: Array | None) -> tuple[tuple[Array, ...], dict[str, Any]]:
        """The arguments of `gpurnn.attention`: with a query of 1 for all, W_a query is the bias b."""
        xp = _dispatch.namespace("AttentionPooling", y=y, lengths=lengths)
        query = xp.ones((1, y.shape[1], 1), dtype=y.dtype, device=_dispatch.device(y))
        n = self.size
        p = _arrays.parameters("AttentionPooling", self.params, {"weight": (n, n), "bias": (n,), "query": (n,)})
        weights = {"weight_query": p["bias"][:, None], "weight_keys": p["weight"]}
        return (query, y), {"score": "additive", **weights, "v": p["query"], "lengths": lengths}

    def __call__(self, y: Array, lengths: Array | None = None) -> Array:
        """Pool y (T, B, K) to (B, K)."""
        arguments, options = self._arguments(y, lengths)
        return functional.attention(*arguments, **options)[0][0, ...]

    def vjp(self, y: Array, lengths: Array | None = None) -> tuple[Array, Pullback]:
        """``(pooled, pullback)``, with ``pullback(dpooled)`` returning ``(dy, grads)``."""
        arguments, options = self._arguments(y, lengths)
        (context, _), pull = functional.attention.vjp(*arguments, **options)

        def pullback(dpooled: Array) -> tuple[Array, dict[str, Array]]:
            (_, dy, _), grads = pull((dpooled[None, ...], None))
            return dy, {"weight": grads["weight_keys"], "bias": grads["weight_query"][:, 0], "query": grads["v"]}

        return context[0, ...], pullback
