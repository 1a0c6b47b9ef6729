"""The wings as tests take them: NumPy arrays in and out, whatever computes."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest

from gpurnn import kernels, reference


class Wing:
    """A wing, and the way of NumPy arrays to it and back.

    Attributes
    ----------
    name : str
        "reference"; "host", the kernels on the host executor; "cuda", the kernels on a GPU.
    module : module
        Its functions.
    xp : module
        The library of its arrays, NumPy or CuPy.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.module: ModuleType = reference if name == "reference" else kernels
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
        """Arrays, in tuples, lists and dicts too, where the wing computes; copies, so that nothing is shared."""
        return _mapped(nested, self.xp.asarray if self.name == "cuda" else np.copy)

    def back(self, nested: Any) -> Any:
        """The reverse of `to`."""
        return _mapped(nested, self.xp.asnumpy if self.name == "cuda" else lambda a: a)


def _mapped(nested: Any, function: Any) -> Any:
    if isinstance(nested, (tuple, list)):
        return type(nested)(_mapped(entry, function) for entry in nested)
    if isinstance(nested, dict):
        return {name: _mapped(entry, function) for name, entry in nested.items()}
    if hasattr(nested, "dtype") and not isinstance(nested, np.generic):
        return function(nested)
    return nested
