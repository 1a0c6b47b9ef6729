"""Attention of decoder steps to encoder states: scores, mask, softmax and context in one pass."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import numpy as np
from gpurnn.reference.attention import check_lengths

from gpurnn._contract import Array

from . import build, threads


class Attention(ctypes.Structure):
    """``Attention`` of ``attention.cpp``."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("steps", "batch", "positions", "width", "outputs")),
        ("scale", ctypes.c_double),
        *((name, ctypes.c_void_p) for name in ("query", "keys", "values", "v", "lengths", "context", "weights")),
        *((name, ctypes.c_void_p) for name in ("dcontext", "dweights", "dquery", "dkeys", "dvalues", "dv", "scratch")),
    )


def unit() -> str:
    """The C++ source of the library."""
    return '#include "native/attention.cpp"\n' + build.size_proof("Attention<float>", Attention)


LIBRARY = build.Library("attention", unit)


@dataclass(frozen=True)
class _Attention:
    """The values that `attention_backward` needs."""

    arrays: dict[str, Array | None]
    """The arrays, by the field names of `Attention`."""
    sizes: dict[str, float]


def attention_forward(
    query: Array,
    keys: Array,
    values: Array,
    v: Array | None = None,
    *,
    lengths: Array | None = None,
    scale: float = 1.0,
    training: bool = False,
) -> tuple[Array, Array, Any]:
    """Context and weights; arguments and results are as in ``gpurnn.reference``."""
    T, B, A = query.shape
    S, E = keys.shape[0], values.shape[2]
    # A copy, so that no other thread can change it between the check and its use.
    lengths = None if lengths is None else np.array(lengths, np.int64)
    check_lengths(lengths, S)

    def own(x: Array | None) -> Array | None:
        # Training copies, so that later changes of the caller's arrays do not reach the gradients.
        return None if x is None else np.array(x, order="C") if training else np.ascontiguousarray(x)

    context, weights = np.empty((T, B, E), query.dtype), np.empty((T, B, S), query.dtype)
    arrays = {
        "query": own(query), "keys": own(keys), "values": own(values), "v": own(v), "lengths": lengths,
        "weights": weights,
    }  # fmt: skip
    sizes = {"steps": T, "batch": B, "positions": S, "width": A, "outputs": E, "scale": scale}
    _call("attention", sizes, arrays | {"context": context})
    return context, weights.copy() if training else weights, _Attention(arrays, sizes) if training else None


def attention_backward(
    saved: Any, dcontext: Array | None, dweights: Array | None
) -> tuple[Array, Array, Array, Array | None]:
    """Gradients of query, keys, values and v, as ``gpurnn.reference`` gives them."""
    query, keys, values, v = (saved.arrays[name] for name in ("query", "keys", "values", "v"))
    made = {"dquery": np.zeros_like(query), "dkeys": np.zeros_like(keys), "dvalues": np.zeros_like(values)}
    dv = None if v is None else np.zeros((query.shape[1], *v.shape), v.dtype)
    given = {
        name: None if array is None else np.ascontiguousarray(array)
        for name, array in (("dcontext", dcontext), ("dweights", dweights))
    }
    _call("attention_backward", saved.sizes, saved.arrays | given | made | {"dv": dv})
    return *made.values(), None if dv is None else dv.sum(axis=0)


def _call(name: str, sizes: dict[str, float], arrays: dict[str, Array | None]) -> None:
    query = arrays["query"]
    assert query is not None
    if not query.shape[1]:
        return
    team = threads.team()
    scratch = np.empty(team.most * int(sizes["positions"]), query.dtype)
    addresses = {key: None if array is None else build.address(array) for key, array in arrays.items()}
    call = Attention(**sizes, **addresses, scratch=build.address(scratch))
    build.call(getattr(build.load(LIBRARY), f"gpurnn_{name}_{query.dtype.name}"), team, call)
