"""Norms and optimizer updates over whole lists of arrays of one dtype, each in one launch."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpurnn._contract import Array

from . import dtypes
from .arrays import empty, is_captured, namespace, stream_key, uncaptured
from .dtypes import Dtype
from .launch import Kernel, Module
from .recent import Recent

_THREADS = 256
_CHUNK = 2048
"""Elements of an array that one block takes."""


def _norm_name(name: str, dtype: Dtype) -> str:
    return f"{name}<{dtype.types if name == 'scaled' else dtype.storage}>"


@functools.cache
def _norms(dtype: Dtype) -> Module:
    return Module("optim.cu", [_norm_name(name, dtype) for name in ("square_sums", "root_of_sum", "scaled")])


def _norm_kernel(name: str, like: Array) -> Kernel:
    dtype = dtypes.of(like)
    return _norms(dtype)[_norm_name(name, dtype)]


def scalars_layout(scalars: Mapping[str, float | bool], real: str) -> np.dtype[Any]:
    """The memory layout of the struct of a rule's scalars, whose numbers have the dtype ``real``."""
    return np.dtype([(name, bool if isinstance(value, bool) else real) for name, value in scalars.items()], align=True)


def proofs_of(struct: str, slots: tuple[str, ...], layout: np.dtype[Any]) -> list[str]:
    """C++ assertions that a rule's struct has the slots and scalars of the optimizer's class."""
    scalars = layout.names or ()
    facts = [f"{struct}::{name} == {number}" for number, name in enumerate((*slots, "count"))]
    facts += [f"sizeof({struct}) == {layout.itemsize}"]
    for scalar in scalars:  # a struct whose only 1 is at the place of the scalar
        facts += [f"{struct}{{{', '.join(str(int(name == scalar)) for name in scalars)}}}.{scalar} == 1"]
    return [f'static_assert({fact}, "{fact}");' for fact in facts]


@functools.cache
def _update(kind: str, slots: tuple[str, ...], layout: np.dtype[Any], dtype: Dtype) -> Module:
    """The kernel of one optimizer. The compiler checks that it has the slots and scalars of the optimizer's class."""
    rule = kind.capitalize()
    proofs = proofs_of(f"{rule}<{dtype.real}>", slots, layout)
    return Module("optim.cu", [f"update<{rule}, {dtype.types}>"], proofs=proofs)


def modules() -> list[Module]:
    """All translation units that this file can compile."""
    from gpurnn.optimizers import KINDS  # the optimizers are above the wings

    kinds: list[Any] = list(KINDS.values())
    optimizers = [kind() for kind in kinds]
    return [
        module
        for dtype in dtypes.TABLE.values()
        for module in (
            _norms(dtype),
            *(
                _update(o.kind, tuple(o.slots(o.lr)), scalars_layout(o.scalars(1, o.lr), dtype.accumulator), dtype)
                for o in optimizers
            ),
        )
    ]


def _address(array: Array | None) -> int:
    if array is None:
        return 0
    return int(array.ctypes.data if isinstance(array, np.ndarray) else array.data.ptr)


def _chunks(arrays: Sequence[Array]) -> list[int]:
    return [-(-a.size // _CHUNK) for a in arrays]


@dataclass(frozen=True)
class _Table:
    """The arrays that a kernel works on, as a table in device memory; see `Chunk` in ``optim.cu``."""

    entries: Array
    blocks: int


_TABLES = Recent(64)
_CAPTURED: dict[Any, _Table] = {}
"""The tables that CUDA graphs read. They stay, because a graph may be launched at any time."""


def _table(lists: Sequence[Sequence[Any]], shrink: Sequence[float]) -> _Table:
    """The table of lists of arrays. That of an earlier call is reused if the arrays have the same addresses."""
    first, captured, place = lists[0], False, None
    if not isinstance(first[0], np.ndarray):
        captured, place = is_captured(), stream_key()
    sizes, addresses = [a.size for a in first], [[_address(a) for a in arrays] for arrays in lists]
    key = (place, *sizes, *shrink, *itertools.chain(*addresses))
    table = _CAPTURED.get(key) or _TABLES.get(key)
    if table is None:
        chunks = _chunks(first)
        numbers = [np.cumsum(chunks) - chunks, sizes, np.array(shrink, np.float64).view(np.int64), *addresses]
        entries = np.array(numbers, np.int64)  # all in one copy to the device
        table = _Table((uncaptured if captured else namespace(first[0]).asarray)(entries), sum(chunks))
        _TABLES.put(key, table)
    if captured:
        _CAPTURED[key] = table
    return table


def _launch(kernel: Kernel, lists: Sequence[Sequence[Any]], shrink: Sequence[float], *args: Any) -> None:
    """Launch a kernel over all chunks of lists of arrays. A list that does not exist holds None."""
    first = lists[0]
    table = _table(lists, shrink)
    if not table.blocks:
        return
    arguments = table.entries, np.int32(len(first)), np.int32(_CHUNK), *args
    reachable = [a for arrays in lists for a in arrays if a is not None]
    kernel((table.blocks,), (_THREADS,), arguments, reachable=reachable)


def global_norm(arrays: Sequence[Array]) -> Array:
    """The 2-norm of all elements of all ``arrays``, as ``gpurnn.reference`` gives it: a () float64 array.

    The squares are summed within each chunk, then over the chunks. The order depends on the sizes alone.
    """
    like, chunks = arrays[0], sum(_chunks(arrays))
    sums, norm = empty(like, 3 * chunks, np.float64), empty(like, (), np.float64)
    _launch(_norm_kernel("square_sums", like), [arrays], [1.0] * len(arrays), sums)
    _norm_kernel("root_of_sum", like)((1,), (_THREADS,), (sums, norm, np.int64(chunks)))
    return norm


def scaled(arrays: Sequence[Array], factor: Array) -> list[Array]:
    """``factor`` times each array, as ``gpurnn.reference`` gives it."""
    products = [empty(a, a.shape, a.dtype) for a in arrays]
    _launch(_norm_kernel("scaled", arrays[0]), [arrays, products], [1.0] * len(arrays), factor)
    return products


def optimizer_update(
    kind: str,
    params: Sequence[Array],
    grads: Sequence[Array],
    slots: Mapping[str, Sequence[Array] | None],
    shrink: Sequence[float],
    weight_decay: float,
    scalars: Mapping[str, float | bool],
) -> None:
    """A step of an optimizer, as ``gpurnn.reference`` does it."""
    dtype = dtypes.of(params[0])
    layout = scalars_layout(scalars, dtype.accumulator)
    module = _update(kind, tuple(slots), layout, dtype)
    lists = [params, grads, *([None] * len(params) if arrays is None else arrays for arrays in slots.values())]
    rule = np.array(tuple(scalars.values()), layout)[()]
    _launch(module[module.names[0]], lists, shrink, dtype.scalar(weight_decay), rule)
