"""Recurrent networks for array programmers: NumPy in, NumPy out; CuPy in, fused CUDA kernels, CuPy out."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

# Name -> module that defines it. Loaded on first use, so that `import gpurnn` costs what importing NumPy costs.
_EXPORTS: dict[str, str] = {}

__all__ = ["__version__", *_EXPORTS]


def __getattr__(name: str) -> Any:
    module = _EXPORTS.get(name)
    if module is None:
        raise AttributeError(f"module 'gpurnn' has no attribute {name!r}")
    value = getattr(importlib.import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
