"""The shared libraries of this package: compiled for an instruction set, once for each content, and loaded.

`../compiler.py` has the compiler and the cache; `install.py` has the libraries that an installation brings.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

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
"""The compiler's options for each instruction set."""

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
    "-Wno-maybe-uninitialized",  # in g++'s own headers
    "-Wno-psabi",  # no vector is handed from one library to another
    "-D__device__=inline __attribute__((always_inline))",
    "-D__forceinline__=",
)

LINK = ("-shared", "-pthread", *(["-static"] if os.name == "nt" else []))
"""With -static, Windows needs none of the compiler's own libraries."""

BUILDS = {
    "plain": (),
    "quick": ("-O1",),
    # g++ takes five times as long for checks inlined into functions that are inlined.
    "sanitize": (
        "-O0",
        "-g1",
        "-U__device__",
        "-D__device__=inline",
        "-fsanitize=address,undefined",
        "-fno-sanitize-recover=undefined",
    ),
    "threads": ("-O1", "-g1", "-fsanitize=thread"),
}
"""Further options, by the value of ``$GPURNN_NATIVE_BUILD``. The quick build takes half the time to compile; it is for
libraries that an installation lacks. The libraries of the sanitizers must be preloaded."""

# Most of g++'s time would go to locations of variables, which -g1 does not write, and to inlined checks.
_GCC_FLAGS = {
    "sanitize": ("-fno-var-tracking-assignments", "--param=asan-instrumentation-with-call-threshold=0"),
    "threads": ("-fno-var-tracking-assignments",),
}


SHIPPED = Path(__file__).parent / "libraries"
"""The directory of the libraries that were compiled when an installation was built; see `install.py`."""


class Library(NamedTuple):
    """A shared library that this package can load: its name, its C++ source and further options of the compiler."""

    name: str
    source: Callable[[], str]
    options: tuple[str, ...] = ()

    def path(self, instructions: str) -> Path:
        """The library for an instruction set, compiled if neither the installation nor the cache has it.

        Its content is verified, or as safe as the package that contains it, so it is safe to load.

        Raises
        ------
        CompilerError
            There is no compiler, or it rejects the source, or the cache cannot be used.
        """
        shipped = self.shipped(instructions)
        if shipped.exists():
            return shipped
        compiler, build = cpp.find_compiler(), _chosen_build()
        # Libraries of several compilers and machines may be in one cache.
        key = cpp.digest_of(self._key(instructions, build), *compiler, cpp.compiler_version(compiler), cpp.machine())
        return cpp.cached(f"{self.name}_{instructions}-{key}.so", lambda path: self.compile(instructions, path, build))

    def shipped(self, instructions: str) -> Path:
        """The path of the library in an installation that was built from these sources, which has no quick builds."""
        build = "plain" if _chosen_build() == "quick" else _chosen_build()
        return SHIPPED / f"{self.name}_{instructions}-{self._key(instructions, build)}.so"

    def _key(self, instructions: str, build: str) -> str:
        """A digest of everything that the library is made of."""
        source = self.source()
        texts = dict(pair for include in cpp.included(source) for pair in _texts(include))
        contents = [part for pair in sorted(texts.items()) for part in pair]
        return cpp.digest_of(*self._flags(instructions, build), source, *contents)

    def compile(self, instructions: str, path: Path, build: str = "plain") -> None:
        """Write a build of the library to ``path``."""
        unit = path.with_suffix(".cpp")
        unit.write_text(self.source(), encoding="utf-8")
        command = (*cpp.find_compiler(), *self._flags(instructions, build), f"-I{KERNELS}", str(unit), "-o", str(path))
        try:
            cpp.run(command)
        finally:
            unit.unlink()

    def _flags(self, instructions: str, build: str) -> tuple[str, ...]:
        flags = BUILDS[build]
        if build in _GCC_FLAGS and not cpp.is_clang(cpp.find_compiler()):
            flags += _GCC_FLAGS[build]
        return (*FLAGS, *INSTRUCTION_SETS[instructions], *self.options, *flags, *LINK)


def _chosen_build() -> str:
    return os.environ.get("GPURNN_NATIVE_BUILD", "plain")


@functools.cache
def _texts(include: str) -> tuple[tuple[str, str], ...]:
    """The names and the texts of a file in KERNELS and of all files that it includes."""
    texts = cpp.source_closure(KERNELS / include)
    return tuple((path.relative_to(KERNELS).as_posix(), text) for path, text in texts.items())


_loaded: dict[tuple[str, str], ctypes.CDLL] = {}
"""The loaded libraries, by name and instruction set."""


def load(library: Library) -> ctypes.CDLL:
    """A library for the instruction set that is chosen now, loaded into this process."""
    instructions = processor.chosen()
    found = _loaded.get((library.name, instructions))
    if found is None:
        path = library.path(instructions)
        try:
            found = ctypes.CDLL(str(path))
        except OSError as error:
            raise CompilerError(f"the compiled library {path} cannot be loaded: {error}") from error
        _loaded[library.name, instructions] = found
    return found


def size_proof(name: str, structure: type[ctypes.Structure]) -> str:
    """A line of C++ that checks that a struct is as large as Python's structure for it."""
    return f'static_assert(sizeof({name}) == {ctypes.sizeof(structure)}, "{structure.__name__} of Python");\n'


def _head() -> int:
    """The bytes of an array object before the address of its numbers: the header of every object of CPython.

    0 if this interpreter lays out arrays otherwise.
    """
    size = object.__basicsize__
    samples = np.ones(3), np.ones((2, 3), "f4")[1:], np.frombuffer(b"read only", "u1")
    if sys.implementation.name != "cpython":
        return 0
    right = [ctypes.c_void_p.from_address(id(array) + size).value == array.ctypes.data for array in samples]
    return size if all(right) else 0


HEAD = _head()
_word_at: Any = ctypes.c_void_p.from_address


def address(array: np.ndarray[Any, Any]) -> int:
    """The address of an array's first number.

    ``array.ctypes.data`` takes eight times as long, which matters in a layer that is called for each step.
    """
    return _word_at(id(array) + HEAD).value or 0 if HEAD else int(array.ctypes.data)


def addresses(arrays: Iterable[np.ndarray[Any, Any] | None]) -> list[int]:
    """The addresses of arrays' first numbers, 0 for None."""
    return [0 if array is None else address(array) for array in arrays]


def objects(arrays: Iterable[np.ndarray[Any, Any] | None]) -> list[int]:
    """The addresses of array objects, 0 for None. They cost nothing: a library finds the numbers by `HEAD`."""
    return [0 if array is None else id(array) for array in arrays]


def call(function: Any, *arguments: Any) -> None:
    """Call a function of a library: arrays and structures by address, ints modulo 2^64 and floats as double."""
    function(*map(_argument, arguments))


def _argument(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return ctypes.c_void_p(address(value))
    if isinstance(value, int):
        return ctypes.c_int64(value)
    if isinstance(value, float):
        return ctypes.c_double(value)
    return value if value is None else ctypes.byref(value)
