"""Attention of many steps by tiles, with an online softmax: the weights are written only on request."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpurnn._contract import Array

from . import dtypes
from .arrays import contiguous, empty
from .dtypes import Dtype
from .launch import Module
from .streams import of_stream, remembers_stream

_THREADS = 256
_TILE = 64
"""Steps or positions of a tile, and columns of a part."""


def _widest(dtype: Dtype) -> int:
    """The most parts of 64 columns that a block sums in registers."""
    return 16 // np.dtype(dtype.accumulator).itemsize


def _layout(dtype: Dtype) -> np.dtype[Any]:
    """The memory layout of the struct ``Sizes``."""
    fields = [(name, np.int64) for name in ("from_t", "from_b", "mask_b", "mask_h")]
    fields += [(name, np.int32) for name in ("T", "B", "S", "A", "E", "heads", "causal")]
    return np.dtype([*fields, ("scale", dtype.accumulator)], align=True)


def _name(kernel: str, dtype: Dtype, parts: int, masked: bool) -> str:
    arguments = [dtype.types, *([] if kernel in ("tile_weights", "tile_means") else [str(parts)])]
    return f"{kernel}<{', '.join([*arguments, *(['true'] if masked else [])])}>"


@functools.cache
def _module(dtype: Dtype, parts: int, masked: bool) -> Module:
    kernels = "attend_tiles", "tile_weights", "tile_means", "tile_query_gradient", "tile_source_gradients"
    proof = f"sizeof(Sizes<{dtype.real}>) == {_layout(dtype).itemsize}"
    names = [_name(kernel, dtype, parts, masked) for kernel in kernels]
    return Module("self_attention.cu", names, proofs=[f'static_assert({proof}, "{proof}");'])


def modules() -> list[Module]:
    """All translation units that this file can compile."""
    kinds = [
        (dtype, kind) for dtype in dtypes.TABLE.values() for kind in ((1, False), (_widest(dtype), False), (1, True))
    ]
    return [_module(dtype, *kind) for dtype, kind in kinds]


@dataclass(frozen=True)
class Tiles:
    """One call: its inputs, and after `forward` the statistics of each step's softmax."""

    query: Array
    """(T, B, A)."""
    keys: Array
    """(S, B, A)."""
    values: Array
    """(S, B, E)."""
    scale: float
    lengths: Array | None = None
    """(B,) of int32."""
    excluded: Array | None = None
    """(B / heads, S): positions that do not exist, each row for ``heads`` consecutive rows."""
    mask: Array | None = None
    """(B / heads or 1, heads or 1, T, S): numbers that are added to the scores."""
    heads: int = 1
    causal: bool = False
    """A step sees no later position. The steps are the last T positions."""
    batch_first: bool = False
    """Whether weights are (B, T, S) and not (T, B, S)."""

    @functools.cached_property
    def statistics(self) -> Array:
        """(2, T, B): the highest score of each step, and the sum of exp(score - highest)."""
        return empty(self.query, (2, *self.query.shape[:2]), self._dtype.accumulator)

    def forward(self) -> Array:
        """The context (T, B, E)."""
        context = empty(self.query, (*self.query.shape[:2], self.values.shape[2]), self.query.dtype)
        arrays = self.query, self.keys, self.values, self.lengths, self.excluded, self.mask, context, self.statistics
        self._launch("attend_tiles", len(self.query), max(1, self._parts_of(self.values)), *arrays)
        return context

    def weights(self) -> Array:
        """The weights, computed again from the statistics of the softmax."""
        (T, B, _), S = self.query.shape, len(self.keys)
        weights = empty(self.query, (B, T, S) if self.batch_first else (T, B, S), self.query.dtype)
        arrays = self.query, self.keys, self.lengths, self.excluded, self.mask, self.statistics, weights
        self._launch("tile_weights", T, -(-S // _TILE), *arrays)
        return weights

    def backward(self, dcontext: Array | None, dweights: Array | None) -> tuple[Array, Array, Array]:
        """The gradients of query, keys and values."""
        arrays = self.query, self.keys, self.values, self.lengths, self.excluded, self.mask
        inputs = *arrays, contiguous(dcontext), contiguous(dweights), self.statistics
        means = empty(self.query, self.query.shape[:2], self._dtype.accumulator)
        dquery, dkeys, dvalues = (empty(x, x.shape, x.dtype) for x in (self.query, self.keys, self.values))
        T, S, of_keys = len(self.query), len(self.keys), self._parts_of(self.keys)
        self._launch("tile_means", T, 1, *inputs, means)
        self._launch("tile_query_gradient", T, of_keys, *inputs, means, dquery)
        of_source = self._parts_of(self.values) + of_keys
        self._launch("tile_source_gradients", S, of_source, *inputs, means, dkeys, dvalues)
        return dquery, dkeys, dvalues

    @functools.cached_property
    def _dtype(self) -> Dtype:
        return dtypes.of(self.query)

    @functools.cached_property
    def _parts(self) -> int:
        """Parts of 64 columns that a block sums. With a mask it is one: more would not fit in registers."""
        narrow = max(self.keys.shape[2], self.values.shape[2]) <= _TILE
        return 1 if narrow or self.mask is not None else _widest(self._dtype)

    def _parts_of(self, array: Array) -> int:
        return -(-array.shape[2] // (self._parts * _TILE))

    @property
    def _sizes(self) -> Any:
        (T, B, A), (S, _, E) = self.query.shape, self.values.shape
        strides = (S, T * S) if self.batch_first else (B * S, S)
        of_mask = (0, 0) if self.mask is None else self.mask.shape[:2]
        steps = of_mask[1] * T * S * (of_mask[0] > 1), T * S * (of_mask[1] > 1)
        sizes = (*strides, *steps, T, B, S, A, E, self.heads, self.causal, self.scale)
        made: Any = np.array(sizes, _layout(self._dtype))
        return made[()]

    def _launch(self, kernel: str, length: int, parts: int, *arrays: Array | None) -> None:
        """Launch a kernel with a block for each tile of ``length`` steps or positions and each of ``parts``."""
        blocks = -(-length // _TILE) * self.query.shape[1] * parts
        if blocks:
            real = np.dtype(self._dtype.accumulator).itemsize
            row = 128 // real + 16 // real
            shared = (2 * _TILE * row + _TILE * (_TILE + 16 // real)) * real
            kind = self._dtype, self._parts, self.mask is not None
            _module(*kind)[_name(kernel, *kind)]((blocks,), (_THREADS,), (*arrays, self._sizes), shared_mem=shared)


@remembers_stream
def multi_head_forward(
    query: Array,
    keys: Array,
    values: Array,
    num_heads: int,
    *,
    causal: bool = False,
    excluded: Array | None = None,
    mask: Array | None = None,
    scale: float = 1.0,
    with_weights: bool = True,
    training: bool = False,
) -> tuple[Array, Array | None, tuple[Tiles, tuple[int, ...]] | None]:
    """Context and weights; arguments and results are as in ``gpurnn.reference``.

    Each head of a batch row is a row of the tiles: its columns are next to those of the next head.
    """
    T, B, E = query.shape

    def by_head(x: Array) -> Array:
        rows: Array = contiguous(x).reshape(x.shape[0], B * num_heads, E // num_heads)
        return rows

    arrays = by_head(query), by_head(keys), by_head(values)
    call = Tiles(
        *arrays, scale, None, contiguous(excluded), contiguous(mask), num_heads, causal, batch_first=True
    )  # fmt: skip
    context = call.forward().reshape(T, B, E)
    weights = call.weights().reshape(B, num_heads, T, len(keys)) if with_weights else None
    return context, weights, (call, (B, E)) if training else None


@of_stream
def multi_head_backward(
    saved: tuple[Tiles, tuple[int, ...]], dcontext: Array, dweights: Array | None
) -> tuple[Array, Array, Array]:
    """Gradients of query, keys and values, as ``gpurnn.reference`` gives them."""
    call, row = saved
    dquery, dkeys, dvalues = (d.reshape(len(d), *row) for d in call.backward(dcontext, dweights))
    return dquery, dkeys, dvalues
