"""Norms and optimizer updates over whole lists of arrays of one dtype, each in one pass over memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gpurnn.reference import optim as reference

from gpurnn._contract import Array

from ..optim import proofs_of, scalars_layout
from . import build, threads
from .recurrence import C_NAMES

_CHUNK = 4096
"""Elements of one partial sum of squares, as in ``optim.h``."""


def unit() -> str:
    """The C++ source of the library: the update of each kind of optimizer, and the norms."""
    from gpurnn.optimizers import KINDS  # the optimizers are above the wings

    lines = ['#include "native/optim.h"', f'static_assert(chunk_elements == {_CHUNK}, "_CHUNK of Python");']
    kinds: list[Any] = list(KINDS.values())
    for optimizer in (kind() for kind in kinds):
        rule, slots, scalars = optimizer.kind.capitalize(), tuple(optimizer.slots(0.1)), optimizer.scalars(1, 0.1)
        for dtype, real in C_NAMES.items():
            lines += proofs_of(f"{rule}<{real}>", slots, scalars_layout(scalars, dtype))
            lines.append(f"UPDATE({rule}, {real})")
    return "\n".join([*lines, ""])


LIBRARY = build.Library("optim", unit)


def optimizer_update(
    kind: str,
    params: Sequence[Array],
    grads: Sequence[Array],
    slots: Mapping[str, Sequence[Array] | None],
    shrink: Sequence[float],
    weight_decay: float,
    scalars: Mapping[str, float | bool],
) -> None:
    """A step of an optimizer, with the same bits as in ``gpurnn.reference``."""
    dtype = params[0].dtype
    lists = [params, [np.ascontiguousarray(g) for g in grads]]
    lists += [[None] * len(params) if arrays is None else arrays for arrays in slots.values()]  # type: ignore[list-item]
    layout = scalars_layout(scalars, dtype.name)
    rule = np.array(tuple(scalars.values()), layout)
    function = getattr(build.load(LIBRARY), f"gpurnn_{kind.capitalize()}_{C_NAMES[dtype.name]}")
    build.call(function, threads.team(), _table(lists, shrink), len(params), float(weight_decay), rule)


def _table(lists: Sequence[Sequence[Array | None]], shrink: Sequence[float]) -> Array:
    """The rows that ``optim.h`` reads: elements, shrink, and the address in each list."""
    columns = [
        [a.size for a in lists[0] if a is not None],
        np.array(shrink, np.float64).view(np.int64),
        *([0 if a is None else build.address(a) for a in arrays] for arrays in lists),
    ]
    return np.ascontiguousarray(np.array(columns, np.int64).T)


def global_norm(arrays: Sequence[Array]) -> Array:
    """The 2-norm of all elements of all ``arrays``, as ``gpurnn.reference`` gives it: a () float64 array."""
    contiguous = [np.ascontiguousarray(a) for a in arrays]
    function = getattr(build.load(LIBRARY), f"gpurnn_squares_{C_NAMES[arrays[0].dtype.name]}")
    table = _table([contiguous], [1.0] * len(arrays))
    sums = np.empty(sum(-(-a.size // _CHUNK) for a in arrays))

    def sum_of_squares(scale: float) -> float:
        build.call(function, threads.team(), table, len(arrays), scale, sums)
        return float(sums.sum())  # by pairs

    return np.array(reference.root_of_squares(sum_of_squares, arrays))
