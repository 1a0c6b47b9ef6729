"""Recurrent networks for array programmers: NumPy in, NumPy out; CuPy in, fused CUDA kernels, CuPy out."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .functional import dense as dense
    from .functional import dropout as dropout
    from .functional import embedding as embedding
    from .functional import gru as gru
    from .functional import lstm as lstm
    from .functional import rnn as rnn
    from .layers import GRU as GRU
    from .layers import LSTM as LSTM
    from .layers import RNN as RNN
    from .layers import Dense as Dense
    from .layers import Dropout as Dropout
    from .layers import Embedding as Embedding
    from .layers import Layer as Layer
    from .layers import Sequential as Sequential

__version__ = "0.1.0"

# Module -> the names it gives to this one, loaded on first use: `import gpurnn` costs what importing NumPy costs.
_EXPORTS = {
    "functional": ("dense", "dropout", "embedding", "gru", "lstm", "rnn"),
    "layers": ("GRU", "LSTM", "RNN", "Dense", "Dropout", "Embedding", "Layer", "Sequential"),
}
_MODULES = {name: module for module, names in _EXPORTS.items() for name in names}

__all__ = ["__version__", *sorted(_MODULES)]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'gpurnn' has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
