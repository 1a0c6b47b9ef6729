"""Optimizer updates over whole lists of arrays, in place, one launch for all arrays of a dtype."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from .launch import C_NAMES, Module, contiguous, empty, namespace

Array = Any

_THREADS = 256
_MOST_BLOCKS = 1024
"""Of an array: beyond that many each takes several stretches of it."""


@functools.cache
def _module(dtype: str) -> Module:
    names = ("square_sums", "root_of_sum", "sgd", "rmsprop", "adam")
    return Module("optim.cu", [f"{name}<{C_NAMES[dtype]}>" for name in names])


def modules() -> list[Module]:
    """Every translation unit that this file can ask for."""
    return [_module("float32"), _module("float64")]


def _groups(lists: Sequence[Sequence[Array]]) -> Iterator[list[int]]:
    """The positions of the arrays of each dtype, empty ones left out."""
    dtypes = [a.dtype for a in lists[0]]
    for dtype in dict.fromkeys(dtypes):
        found = [k for k, a in enumerate(lists[0]) if a.dtype == dtype and a.size]
        # As many as a grid may be high.
        for start in range(0, len(found), 65535):
            yield found[start : start + 65535]


def _launch(name: str, arrays: Sequence[Sequence[Array]], *args: Any) -> int:
    """Launches a kernel over lists of C-contiguous arrays of one dtype; returns the blocks that took each array."""
    first = arrays[0]
    xp, dtype = namespace(first[0]), str(first[0].dtype)
    flat = [a for one in arrays for a in one]
    table = xp.asarray(np.array([_address(a) for a in flat], np.uint64))
    sizes = xp.asarray(np.array([a.size for a in first], np.int64))
    blocks = min(_MOST_BLOCKS, -(-max(a.size for a in first) // _THREADS))
    _module(dtype)[f"{name}<{C_NAMES[dtype]}>"](
        (blocks, len(first)), (_THREADS,), (table, sizes, *args), reachable=flat
    )
    return blocks


def _address(array: Array) -> int:
    return int(array.ctypes.data if isinstance(array, np.ndarray) else array.data.ptr)


def _update(name: str, lists: Sequence[Sequence[Array]], shrink: Sequence[float], *options: float | bool) -> None:
    """Launches an update over lists of which each but the second, the gradients, is changed in place."""
    for group in _groups(lists):
        given = [[one[k] for k in group] for one in lists]
        arrays = [[contiguous(a) for a in one] for one in given]
        dtype = arrays[0][0].dtype
        factors = namespace(arrays[0][0]).asarray(np.array([shrink[k] for k in group], dtype))
        scalars = (np.bool_(value) if isinstance(value, bool) else dtype.type(value) for value in options)
        _launch(name, arrays, factors, *scalars)
        for l, one in enumerate(given):
            for original, updated in zip(one, arrays[l], strict=True):
                if l != 1 and updated is not original and _address(updated) != _address(original):
                    original[...] = updated


def global_norm(arrays: Sequence[Array]) -> Array:
    """The 2-norm of all elements of all ``arrays``, as ``gpurnn.reference`` gives it: a () float64 array."""
    like = arrays[0]
    blocks = [
        min(_MOST_BLOCKS, -(-max(arrays[k].size for k in group) // _THREADS)) * len(group)
        for group in _groups([arrays])
        if group
    ]
    partial, norm = empty(like, sum(blocks), np.float64), empty(like, (), np.float64)
    begin = 0
    for group, count in zip((g for g in _groups([arrays]) if g), blocks, strict=True):
        _launch("square_sums", [[contiguous(arrays[k]) for k in group]], partial[begin : begin + count])
        begin += count
    dtype = str(like.dtype)
    _module(dtype)[f"root_of_sum<{C_NAMES[dtype]}>"]((1,), (_THREADS,), (partial, norm, np.int64(begin)))
    return norm


def sgd_update(
    params: Sequence[Array],
    grads: Sequence[Array],
    momenta: Sequence[Array] | None,
    shrink: Sequence[float],
    *,
    lr: float,
    weight_decay: float,
    momentum: float,
    dampening: float,
    nesterov: bool,
    step: int,
) -> None:
    """Gradient descent with momentum, as ``gpurnn.reference`` does it."""
    lists = [params, grads] if momenta is None else [params, grads, momenta]
    _update(
        "sgd", lists, shrink, lr, weight_decay, momentum, 1 - dampening, momenta is not None, nesterov, step == 1
    )  # fmt: skip


def rmsprop_update(
    params: Sequence[Array],
    grads: Sequence[Array],
    squares: Sequence[Array],
    means: Sequence[Array] | None,
    momenta: Sequence[Array] | None,
    shrink: Sequence[float],
    *,
    lr: float,
    weight_decay: float,
    alpha: float,
    eps: float,
    momentum: float,
) -> None:
    """RMSprop, as ``gpurnn.reference`` does it."""
    lists = [params, grads, squares, *(given for given in (means, momenta) if given is not None)]
    _update(
        "rmsprop", lists, shrink, lr, weight_decay, alpha, 1 - alpha, eps, momentum,
        means is not None, momenta is not None,
    )  # fmt: skip


def adam_update(
    params: Sequence[Array],
    grads: Sequence[Array],
    means: Sequence[Array],
    squares: Sequence[Array],
    largest: Sequence[Array] | None,
    shrink: Sequence[float],
    *,
    lr: float,
    weight_decay: float,
    beta1: float,
    beta2: float,
    eps: float,
    step: int,
) -> None:
    """Adam, as ``gpurnn.reference`` does it."""
    # lr m' / (sqrt(v') + eps) with the bias corrections taken out of the arrays.
    root = math.sqrt(1 - beta2**step)
    rate, floor = lr * root / (1 - beta1**step), eps * root
    lists = [params, grads, means, squares] if largest is None else [params, grads, means, squares, largest]
    _update(
        "adam", lists, shrink, rate, weight_decay, beta1, 1 - beta1, beta2, 1 - beta2, floor, largest is not None
    )  # fmt: skip
