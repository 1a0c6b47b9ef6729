"""Convert weights of PyTorch, Keras and ONNX to gpurnn's layers and back; use gpurnn to compute for Keras and ONNX.

``from_X`` makes the layer that the weights were trained for: gates in gpurnn's order, X's form of the GRU, activations
and directions. ``to_X`` converts it back, bit for bit. The library itself is needed only for its own objects and files:
weights in NumPy arrays need no library.
"""

from __future__ import annotations

import importlib
from typing import Any

from .keras import from_keras, to_keras
from .keras_hooks import keras_hooks
from .onnx import from_onnx
from .onnx_models import to_onnx
from .torch import from_torch, to_torch

__all__ = ["from_keras", "from_onnx", "from_torch", "keras_hooks", "onnx_ops", "to_keras", "to_onnx", "to_torch"]


def __getattr__(name: str) -> Any:
    if name == "onnx_backend":  # needs onnx, so it is loaded on first use
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def onnx_ops() -> list[Any]:
    """ONNX's operators RNN, LSTM and GRU in full, computed by gpurnn, for ONNX's reference evaluator.

    Returns
    -------
    operators : list of classes
        Use ``onnx.reference.ReferenceEvaluator(model, new_ops=onnx_ops())``. They support every direction and layout,
        lengths, initial states, peepholes, clips, coupled gates, both GRUs, and all activations with alpha and beta.

    Raises
    ------
    ImportError
        onnx is not installed.
    """
    from .onnx_backend import OPERATORS

    return list(OPERATORS)
