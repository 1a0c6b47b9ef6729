"""Recurrent networks for array programmers: NumPy in, NumPy out; CuPy in, fused CUDA kernels, CuPy out."""

import importlib

import lazy_loader

# The names are in __init__.pyi, for type checkers too. Each is loaded on first use.
_loaded, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    if name in __all__:
        return _loaded(name)
    if name in ("jax", "kernels", "reference", "sktime", "torch"):  # not in __all__: not all can be imported everywhere
        return importlib.import_module(f"{__name__}.{name}")
    message = f"module {__name__!r} has no attribute {name!r}"
    if not name.startswith("_"):
        message += importlib.import_module(f"{__name__}._checks").near(name, __all__)
    raise AttributeError(message, name=name)
