"""Optimizer updates over whole lists of arrays of one dtype, in place, in one launch.

An array that is not C-contiguous is updated in a copy, which then is written back.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from gpurnn._contract import Array

from .launch import C_NAMES, Module, contiguous, empty, is_captured, namespace

_THREADS = 256
_CHUNK = 2048
"""Elements of an array that one block takes."""


@functools.cache
def _module(dtype: str) -> Module:
    names = (
        "square_sums", "root_of_sum", "scaled",
        "sgd", "rmsprop", "adam", "adagrad", "adadelta", "nadam", "adamax", "rprop",
    )  # fmt: skip
    return Module("optim.cu", [f"{name}<{C_NAMES[dtype]}>" for name in names])


def modules() -> list[Module]:
    """Every translation unit that this file can ask for."""
    return [_module("float32"), _module("float64")]


def _address(array: Array) -> int:
    return int(array.ctypes.data if isinstance(array, np.ndarray) else array.data.ptr)


def _chunks(arrays: Sequence[Array]) -> list[int]:
    return [-(-a.size // _CHUNK) for a in arrays]


def _launch(name: str, lists: Sequence[Sequence[Array]], shrink: Sequence[float], *args: Any) -> None:
    """Launches a kernel over all chunks of lists of C-contiguous arrays."""
    first = lists[0]
    chunks = _chunks(first)
    if not any(chunks):
        return
    if not isinstance(first[0], np.ndarray) and is_captured():
        raise RuntimeError(
            f"{name}: the current stream is being captured, and the graph would copy a list of the arrays from host "
            "memory that is freed by then; leave norms and updates of the optimizers out of the capture"
        )
    # All in one copy to the device; see `Chunk` in ``optim.cu``.
    table = np.array(
        [
            np.cumsum(chunks) - chunks,
            [a.size for a in first],
            np.array(shrink, np.float64).view(np.int64),
            *([_address(a) for a in arrays] for arrays in lists),
        ],
        np.int64,
    )
    dtype = str(first[0].dtype)
    _module(dtype)[f"{name}<{C_NAMES[dtype]}>"](
        (sum(chunks),), (_THREADS,),
        (namespace(first[0]).asarray(table), np.int32(len(first)), np.int32(_CHUNK), *args),
        reachable=[a for arrays in lists for a in arrays],
    )  # fmt: skip


def _update(name: str, lists: Sequence[Sequence[Array]], shrink: Sequence[float], *options: float | bool) -> None:
    """Launches an update over lists of which each but the second, the gradients, is changed in place."""
    arrays = [[contiguous(a) for a in given] for given in lists]
    real = arrays[0][0].dtype.type
    _launch(name, arrays, shrink, *(np.bool_(o) if isinstance(o, bool) else real(o) for o in options))
    for l, given in enumerate(lists):
        for original, updated in zip(given, arrays[l], strict=True):
            # A contiguous array is taken itself, or as a view.
            if l != 1 and _address(updated) != _address(original):
                original[...] = updated


def global_norm(arrays: Sequence[Array]) -> Array:
    """The 2-norm of all elements of all ``arrays``, as ``gpurnn.reference`` gives it: a () float64 array.

    The sum of the squares is that of each chunk, then that of these; its order depends on the sizes alone.
    """
    like, chunks = arrays[0], sum(_chunks(arrays))
    sums, norm = empty(like, 3 * chunks, np.float64), empty(like, (), np.float64)
    _launch("square_sums", [[contiguous(a) for a in arrays]], [1.0] * len(arrays), sums)
    dtype = str(like.dtype)
    _module(dtype)[f"root_of_sum<{C_NAMES[dtype]}>"]((1,), (_THREADS,), (sums, norm, np.int64(chunks)))
    return norm


def scaled(arrays: Sequence[Array], factor: Array) -> list[Array]:
    """``factor`` times each array, as ``gpurnn.reference`` gives it."""
    products = [empty(a, a.shape, a.dtype) for a in arrays]
    _launch("scaled", [[contiguous(a) for a in arrays], products], [1.0] * len(arrays), factor)
    return products


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


def adagrad_update(
    params: Sequence[Array],
    grads: Sequence[Array],
    sums: Sequence[Array],
    shrink: Sequence[float],
    *,
    lr: float,
    weight_decay: float,
    eps: float,
) -> None:
    """Adagrad, as ``gpurnn.reference`` does it."""
    _update("adagrad", [params, grads, sums], shrink, lr, weight_decay, eps)


def adadelta_update(
    params: Sequence[Array],
    grads: Sequence[Array],
    squares: Sequence[Array],
    updates: Sequence[Array],
    shrink: Sequence[float],
    *,
    lr: float,
    weight_decay: float,
    rho: float,
    eps: float,
) -> None:
    """Adadelta, as ``gpurnn.reference`` does it."""
    _update("adadelta", [params, grads, squares, updates], shrink, lr, weight_decay, rho, 1 - rho, eps)


def nadam_update(
    params: Sequence[Array],
    grads: Sequence[Array],
    means: Sequence[Array],
    squares: Sequence[Array],
    shrink: Sequence[float],
    *,
    lr: float,
    weight_decay: float,
    beta1: float,
    beta2: float,
    eps: float,
    momentum: float,
    next_momentum: float,
    momentum_product: float,
    step: int,
) -> None:
    """NAdam, as ``gpurnn.reference`` does it."""
    # lr m' / (sqrt(v') + eps) with the bias corrections taken out of the arrays.
    root = math.sqrt(1 - beta2**step)
    of_mean = lr * root * next_momentum / (1 - next_momentum * momentum_product)
    of_gradient = lr * root * (1 - momentum) / (1 - momentum_product)
    _update(
        "nadam", [params, grads, means, squares], shrink,
        weight_decay, beta1, 1 - beta1, beta2, 1 - beta2, of_mean, of_gradient, eps * root,
    )  # fmt: skip


def adamax_update(
    params: Sequence[Array],
    grads: Sequence[Array],
    means: Sequence[Array],
    norms: Sequence[Array],
    shrink: Sequence[float],
    *,
    lr: float,
    weight_decay: float,
    beta1: float,
    beta2: float,
    eps: float,
    step: int,
) -> None:
    """Adamax, as ``gpurnn.reference`` does it."""
    rate = lr / (1 - beta1**step)
    _update("adamax", [params, grads, means, norms], shrink, rate, weight_decay, beta1, 1 - beta1, beta2, eps)


def rprop_update(
    params: Sequence[Array],
    grads: Sequence[Array],
    previous: Sequence[Array],
    sizes: Sequence[Array],
    shrink: Sequence[float],
    *,
    weight_decay: float,
    eta_minus: float,
    eta_plus: float,
    smallest: float,
    largest: float,
) -> None:
    """Rprop, as ``gpurnn.reference`` does it."""
    _update(
        "rprop", [params, grads, previous, sizes], shrink, weight_decay, eta_minus, eta_plus, smallest, largest
    )  # fmt: skip
