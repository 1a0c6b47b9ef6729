"""Attention of decoder steps to encoder states: scores, mask, softmax and context in one pass.

Dot products of many steps are computed by tiles (`self_attention.py`).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpurnn._contract import Array

from . import dtypes
from .arrays import contiguous, empty, namespace
from .dtypes import Dtype
from .launch import Module
from .self_attention import Tiles
from .streams import of_stream, remembers_stream

_THREADS = 256
_TILE = 4
"""Steps, or source positions, of a row that a block computes at once."""

_LEAST_STEPS = 16
"""The fewest steps that are computed by tiles: a tile always computes 64 steps."""

SHARED = 32 * 1024
"""The most bytes of scores, or of their gradients, that a block keeps in shared memory."""


def _kernel(name: str, dtype: Dtype, additive: bool, tile: int) -> str:
    return f"{name}<{dtype.types}, {str(additive).lower()}, {tile}>"


@functools.cache
def _module(dtype: Dtype, additive: bool) -> Module:
    steps = [_kernel(name, dtype, additive, tile) for name in ("attend", "attend_backward") for tile in (1, _TILE)]
    return Module("attention.cu", [*steps, _kernel("attend_backward_source", dtype, additive, _TILE)])


def modules() -> list[Module]:
    """All translation units that this file can compile."""
    return [_module(dtype, additive) for dtype in dtypes.TABLE.values() for additive in (False, True)]


@dataclass(frozen=True)
class _Attention:
    """The values that `attention_backward` needs."""

    query: Array
    keys: Array
    values: Array
    v: Array | None
    lengths: Array | None
    scale: float
    weights: Array

    @property
    def dtype(self) -> Dtype:
        return dtypes.of(self.query)

    @property
    def sizes(self) -> tuple[np.int32, ...]:
        """The sizes T, B, S, A, E."""
        return tuple(np.int32(n) for n in (*self.query.shape[:2], *self.keys.shape[::2], self.values.shape[2]))

    @property
    def tile(self) -> int:
        """Steps of a block: one for a decoder that attends step by step."""
        return 1 if self.query.shape[0] == 1 else _TILE

    def blocks(self, length: int, tile: int) -> int:
        """The number of blocks: one for each ``tile`` steps or positions of each row."""
        return -(-length // tile) * int(self.query.shape[1])

    @property
    def shared_bytes(self) -> int:
        """Bytes of a block's scores, one for each pair of step and position; 0 if that is more than `SHARED`."""
        needed = self.tile * len(self.keys) * self.weights.dtype.itemsize
        return needed if needed <= SHARED else 0

    def launch(self, name: str, tile: int, blocks: int, *args: Any, shared_mem: int = 0) -> None:
        additive = self.v is not None
        kernel = _module(self.dtype, additive)[_kernel(name, self.dtype, additive, tile)]
        kernel((blocks,), (_THREADS,), args, shared_mem=shared_mem)


@remembers_stream
def attention_forward(
    query: Array,
    keys: Array,
    values: Array,
    v: Array | None = None,
    *,
    lengths: Array | None = None,
    scale: float = 1.0,
    training: bool = False,
) -> tuple[Array, Array, _Attention | Tiles | None]:
    """Scores, weights and context; arguments and results are as in ``gpurnn.reference``.

    A length beyond S counts as S, one below zero as zero: a check would need a copy from the device.
    """
    xp = namespace(query)
    T, B, _ = query.shape
    S, E = keys.shape[0], values.shape[2]

    def own(x: Array | None) -> Any:
        # Training copies, so that the caller may change its arrays before it asks for the gradients.
        return xp.array(x, order="C") if training and x is not None else contiguous(x)

    if lengths is not None:
        lengths = xp.clip(lengths, 0, S).astype(np.int32)
    if v is None and T >= _LEAST_STEPS:
        tiles = Tiles(own(query), own(keys), own(values), scale, lengths)
        return tiles.forward(), tiles.weights(), tiles if training else None
    context = empty(query, (T, B, E), query.dtype)
    weights = empty(query, (T, B, S), dtypes.of(query).accumulator)
    call = _Attention(
        own(query),
        own(keys),
        own(values),
        own(v),
        lengths,
        scale,
        weights,
    )
    if T * B:
        blocks, shared = call.blocks(T, call.tile), call.shared_bytes
        arrays = call.query, call.keys, call.values, call.v, call.lengths, context, weights
        scalars = *call.sizes, call.dtype.scalar(scale), np.bool_(shared)
        call.launch("attend", call.tile, blocks, *arrays, *scalars, shared_mem=shared)
    return context, weights.astype(query.dtype, copy=training), call if training else None


@of_stream
def attention_backward(
    saved: _Attention | Tiles, dcontext: Array | None, dweights: Array | None
) -> tuple[Array, Array, Array, Array | None]:
    """Gradients of query, keys, values and v, as ``gpurnn.reference`` gives them."""
    if isinstance(saved, Tiles):
        return *saved.backward(dcontext, dweights), None
    xp, query = namespace(saved.query), saved.query
    T, B, _ = query.shape
    S = saved.keys.shape[0]
    dquery, dkeys, dvalues = (empty(query, x.shape, query.dtype) for x in (query, saved.keys, saved.values))
    blocks, real = saved.blocks(T, saved.tile), saved.dtype.accumulator
    dv_of_blocks = None if saved.v is None else empty(query, (blocks, *saved.v.shape), real)
    dscores = empty(query, (T, B, S), real)
    dcontext = contiguous(dcontext)
    if T * B:
        inputs = query, saved.keys, saved.values, saved.v, saved.lengths, saved.weights, dcontext, contiguous(dweights)
        scalars = *saved.sizes, saved.dtype.scalar(saved.scale), np.bool_(saved.shared_bytes)
        arrays = *inputs, dscores, dquery, dv_of_blocks
        saved.launch("attend_backward", saved.tile, blocks, *arrays, *scalars, shared_mem=saved.shared_bytes)
    if S * B:
        of_source = query, saved.keys, saved.v, saved.lengths, saved.weights, dcontext, dscores, dkeys, dvalues
        saved.launch("attend_backward_source", _TILE, saved.blocks(S, _TILE), *of_source, *saved.sizes)
    if dv_of_blocks is None:
        return dquery, dkeys, dvalues, None
    return dquery, dkeys, dvalues, xp.matmul(xp.ones(blocks, real), dv_of_blocks).astype(query.dtype, copy=False)
