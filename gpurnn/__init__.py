"""Recurrent networks for array programmers: NumPy in, NumPy out; CuPy in, fused CUDA kernels, CuPy out."""

import lazy_loader

# The names are in __init__.pyi, for type checkers too. Each is loaded on first use.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

__version__ = "0.1.0"
