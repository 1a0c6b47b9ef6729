"""The instruction sets of this processor."""

from __future__ import annotations

import functools
import os
import platform

from ..compiler import CompilerError

MACHINES = {"x86_64": ("avx512", "avx2", "sse4"), "aarch64": ("neon",)}
"""The instruction sets of each kind of machine, the widest first."""

_NAMES = {"amd64": "x86_64", "arm64": "aarch64"}

_NEEDED = {
    "avx512": ("AVX512F", "AVX512BW", "AVX512CD", "AVX512DQ", "AVX512VL", "FMA3"),
    "avx2": ("AVX2", "FMA3"),
    "sse4": ("SSE42",),
    "neon": ("NEON_VFPV4",),
}
"""The features that each set needs, by their names in NumPy, which asks the processor and the system."""


def machine() -> str:
    """The kind of machine: a key of `MACHINES` if this package supports it."""
    name = platform.machine().lower()
    return _NAMES.get(name, name)


@functools.cache
def instruction_sets() -> tuple[str, ...]:
    """The instruction sets that this processor has, the widest first."""
    from numpy._core._multiarray_umath import __cpu_features__ as has

    return tuple(
        name for name in MACHINES.get(machine(), ()) if all(has.get(feature, False) for feature in _NEEDED[name])
    )


@functools.cache
def chosen() -> str:
    """The instruction set to compute with: the widest, or ``$GPURNN_CPU``. It stays the same in a process.

    Raises
    ------
    CompilerError
        The processor has no instruction set that this package supports.
    ValueError
        The variable does not name an instruction set that this processor has.
    """
    has, named = instruction_sets(), os.environ.get("GPURNN_CPU")
    if not has:
        raise CompilerError(f"compiled layers need SSE4.2 or NEON, which this processor ({platform.machine()}) lacks")
    if named and named not in has:
        raise ValueError(f"GPURNN_CPU is {named!r}, expected an instruction set of this processor: {', '.join(has)}")
    return named or has[0]
