"""Weights of PyTorch, Keras and ONNX as layers of gpurnn, and back.

``from_X`` makes the layer that computes what the weights were trained for: gates in gpurnn's order, the form of the GRU
that X has, activations and directions. ``to_X`` gives them back, bit for bit. The library itself is needed only for its
own objects and files: weights in NumPy arrays need none.
"""

from __future__ import annotations

from .keras import from_keras, to_keras
from .onnx import from_onnx, to_onnx
from .torch import from_torch, to_torch

__all__ = ["from_keras", "from_onnx", "from_torch", "to_keras", "to_onnx", "to_torch"]
