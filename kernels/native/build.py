"""Compiles this package's C++ for one of the processor's instruction sets, once for each content.

`../compiler.py` has the compiler and the cache.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .. import compiler as cpp
from ..compiler import KERNELS, CompilerError
from . import processor

INSTRUCTION_SETS = {
    "avx512": ("-mavx512f", "-mavx512bw", "-mavx512cd", "-mavx512dq", "-mavx512vl", "-mfma"),
    "avx2": ("-mavx2", "-mfma"),
    "sse4": ("-msse4.2",),
    "neon": (),
}
"""The compiler's options for each."""

# No contraction: the same expression then rounds alike wherever it is inlined. The loops are written for registers
# already, and the compiler's own vectorizer would only make the library longer. No exceptions leave this code.
FLAGS = (
    "-std=c++17",
    "-O3",
    "-fPIC",
    "-fvisibility=hidden",
    "-fno-exceptions",
    "-fno-rtti",
    "-fno-math-errno",
    "-ffp-contract=off",
    "-fno-tree-vectorize",
    "-fno-tree-slp-vectorize",
    "-Wall",
    "-Wextra",
    "-Wno-unknown-pragmas",
    "-Wno-unknown-warning-option",
    "-Wno-maybe-uninitialized",  # of g++'s own headers
    "-Wno-psabi",  # no vector is handed from one library to another
    "-D__device__=inline __attribute__((always_inline))",
    "-D__forceinline__=",
    f"-I{KERNELS}",
)

BUILDS = {
    "plain": (),
    "quick": ("-O1",),
    "sanitize": ("-O1", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"),
    "threads": ("-O1", "-g1", "-fsanitize=thread"),
}
"""Further options, by the value of ``$GPURNN_NATIVE_BUILD``. The quick one takes half the time to compile. The
libraries of the sanitizers must be preloaded."""


def library(name: str, source: str, options: Sequence[str] = ()) -> Path:
    """The shared library of a C++ ``source``, with further ``options`` of the compiler.

    Its content is verified, so it may be loaded.

    Raises
    ------
    CompilerError
        There is no compiler, or it rejects the source, or the cache cannot be used.
    """
    compiler = cpp.find_compiler()
    build = BUILDS[os.environ.get("GPURNN_NATIVE_BUILD", "plain")]
    command = (*compiler, *FLAGS, *options, *build, "-shared", "-pthread")
    # What the source includes lies in KERNELS.
    texts: dict[Path, str] = {}
    for include in cpp.included(source):
        texts |= cpp.source_closure(KERNELS / include)
    content = [f"{path}\n{text}" for path, text in sorted(texts.items())]
    key = cpp.digest_of(*command, source, cpp.compiler_version(compiler), cpp.machine(), *content)

    def make(path: Path) -> None:
        unit = path.with_suffix(".cpp")
        unit.write_text(source, encoding="utf-8")
        cpp.run((*command, str(unit), "-o", str(path)))

    return cpp.cached(f"{name}-{key}.so", make)


def load(name: str, source: str, options: Sequence[str] = ()) -> ctypes.CDLL:
    """`library`, loaded into this process."""
    path = library(name, source, options)
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise CompilerError(f"what the compiler made cannot be loaded: {error}") from error


_loaded: dict[tuple[str, str], ctypes.CDLL] = {}
"""By name and instruction set."""


def loaded(name: str, source: Callable[[], str], options: Sequence[str] = ()) -> ctypes.CDLL:
    """The library ``name``, compiled from what ``source`` returns for the instruction set that is chosen now."""
    instructions = processor.chosen()
    found = _loaded.get((name, instructions))
    if found is None:
        found = load(f"{name}_{instructions}", source(), (*INSTRUCTION_SETS[instructions], *options))
        _loaded[name, instructions] = found
    return found


def size_proof(name: str, structure: type[ctypes.Structure]) -> str:
    """A line of C++ that proves a struct to be as large as what Python hands over as one."""
    return f'static_assert(sizeof({name}) == {ctypes.sizeof(structure)}, "{structure.__name__} of Python");\n'


def call(function: Any, *arguments: Any) -> None:
    """Call a function of a library: arrays and structures by address, ints modulo 2^64 and floats as double."""
    function(*map(_argument, arguments))


def _argument(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return ctypes.c_void_p(value.ctypes.data)
    if isinstance(value, int):
        return ctypes.c_int64(value)
    if isinstance(value, float):
        return ctypes.c_double(value)
    return value if value is None else ctypes.byref(value)
