"""The wings as the tests use them: NumPy arrays in and out, whichever wing computes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from gpurnn import _dispatch
from gpurnn.layers.base import named


class Wing:
    """A wing, with conversions of NumPy arrays to it and back.

    Attributes
    ----------
    name : str
        "reference"; "native"; "host", the kernels on the host executor; "cuda", the kernels on a GPU.
    module : module or namespace
        Its functions, and the reference's where it has none.
    xp : module
        The library of its arrays, NumPy or CuPy.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.module: Any = _dispatch._functions(_dispatch.NUMPY_WINGS.get(name, _dispatch.WINGS["cupy"]))
        self.xp: Any = np
        if name == "cuda":
            self.xp = pytest.importorskip("cupy", reason="CuPy is not installed")
            if not self._has_device():
                pytest.skip("no CUDA device")

    def _has_device(self) -> bool:
        try:
            return int(self.xp.cuda.runtime.getDeviceCount()) > 0
        except self.xp.cuda.runtime.CUDARuntimeError:
            return False

    def to(self, nested: Any) -> Any:
        """Copy arrays, in tuples, lists and dicts too, to where the wing computes, so that nothing is shared."""
        return _mapped(nested, self.xp.asarray if self.name == "cuda" else np.copy)

    def back(self, nested: Any) -> Any:
        """The reverse of `to`."""
        return _mapped(nested, self.xp.asnumpy if self.name == "cuda" else lambda a: a)


def _mapped(nested: Any, function: Any) -> Any:
    if isinstance(nested, (tuple, list)):
        entries = [_mapped(entry, function) for entry in nested]
        return type(nested)(*entries) if hasattr(nested, "_fields") else type(nested)(entries)
    if isinstance(nested, dict):
        return {name: _mapped(entry, function) for name, entry in nested.items()}
    if hasattr(nested, "dtype") and not isinstance(nested, np.generic):
        return function(nested)
    return nested


def _unaligned(a: np.ndarray) -> np.ndarray:
    memory = np.zeros(a.nbytes + 1, np.uint8)[1:]
    memory[...] = np.frombuffer(a.tobytes(), np.uint8)
    return memory.view(a.dtype).reshape(a.shape)


def _inside(a: np.ndarray) -> np.ndarray:
    return np.pad(a, 1, mode="edge")[tuple(slice(1, -1) for _ in a.shape)]


def _read_only(a: np.ndarray) -> np.ndarray:
    copy = a.copy()
    copy.flags.writeable = False
    return copy


def _every_other(a: np.ndarray) -> np.ndarray:
    return np.repeat(a, 2, axis=-1)[..., ::2] if a.ndim else a


def _backwards(a: np.ndarray) -> np.ndarray:
    every = (slice(None, None, -1),) * a.ndim
    return a[every].copy()[every]


def _repeated(a: np.ndarray) -> np.ndarray:
    return np.broadcast_to(a[:1], a.shape) if a.ndim else a


def _single(a: np.ndarray) -> np.ndarray:
    """Replace axes of length 1: a new axis has stride 0, one cut from a larger array keeps that array's stride."""
    for axis in range(a.ndim):
        if a.shape[axis] == 1:
            return np.expand_dims(np.squeeze(a, axis=axis), axis)
    return a


LAYOUTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "fortran": lambda a: a.copy(order="F"),
    "strided": _every_other,
    "reversed": _backwards,
    "inside": _inside,
    "broadcast": _repeated,
    "read-only": _read_only,
    "unaligned": _unaligned,
    "byte-swapped": lambda a: a.astype(a.dtype.newbyteorder()),
    "new axis": _single,
}
"""Ways to store the values of an array; "broadcast" keeps only those of the first row."""

INTEGERS = [np.dtype(f"{order}{kind}{size}") for kind in "iu" for size in (1, 2, 4, 8) for order in "<>"]
"""Every integer dtype, in both byte orders."""


def canonical(a: np.ndarray) -> np.ndarray:
    """The same values in C order and in the machine's byte order."""
    return np.array(a, a.dtype.newbyteorder("="), order="C")


def assign(layer: Any, values: dict[str, np.ndarray]) -> None:
    """Copy values into a layer's parameters, labelled with the layer's own form of the GRU."""
    layer.load_state_dict(named(values, layer._forms()))


def beside_a_packet(array: np.ndarray) -> np.ndarray:
    """A copy that begins one number past a 16-byte boundary, so that a kernel's packet cannot begin there."""
    numbers = np.empty(array.nbytes + 32, np.uint8)
    first = -numbers.ctypes.data % 16 + array.itemsize % 16
    copy = numbers[first : first + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy
