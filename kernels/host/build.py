"""Compile a ``.cu`` file into a shared library for the host executor, once per content.

`compiler.py` has the compiler and the cache. A library's name holds a digest of everything that went in: the source
with what it includes, the executor, the flags, the compiler's version and the kind of machine.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from .. import compiler as cpp
from ..compiler import KERNELS, CompilerError

HOST = KERNELS / "host"

BUILDS = ("plain", "sanitize", "conflicts", "counts")

# No contraction: all CPUs then round alike wherever the kernel doesn't ask for a fused multiply-add. CUDA code reads
# one type's memory as another's, as nvcc allows. A loop that never ends may be a spin, which must be reported, not
# removed. "#pragma unroll" is unknown here; -g1 keeps line numbers, nothing else.
COMMON_FLAGS = (
    "-std=c++17",
    "-fPIC",
    "-g1",
    "-gdwarf-4",  # addr2line of binutils 2.40 takes the wrong file out of g++ 12's version 5
    "-fvisibility=hidden",
    "-fno-exceptions",
    "-fno-strict-aliasing",
    "-ffp-contract=off",
    "-fno-finite-loops",
    "-Wno-unknown-pragmas",
)
# The checks of -fsanitize=undefined that g++ and clang++ share and that are errors in CUDA C too. undefined.cpp
# reports them.
UNDEFINED_FLAGS = (
    "-fsanitize=bounds,null,alignment,bool,enum,return,unreachable,signed-integer-overflow,shift-exponent,integer-divide-by-zero",
)
# Half of g++'s time goes to locations of variables, which -g1 does not write.
GCC_FLAGS = ("-fno-var-tracking-assignments",)
# Address checks as calls find the same as inlined checks, and g++ takes half the time for them.
GCC_SANITIZE_FLAGS = ("--param=asan-instrumentation-with-call-threshold=0",)
# A call before each memory access. Vector accesses, which clang++ makes of a loop, would have none.
RECORDED_FLAGS = ("-fsanitize=thread", "-fno-tree-vectorize", "-fno-tree-slp-vectorize")
# -O1: compilation happens so often that the few short launches would not repay more.
KERNEL_FLAGS = {
    "plain": ("-O1",),
    "sanitize": (
        "-O1",
        "-fno-omit-frame-pointer",
        "-fsanitize=address",
        "-fsanitize-recover=address",
        *UNDEFINED_FLAGS,
    ),
    "conflicts": ("-O1", *RECORDED_FLAGS, *UNDEFINED_FLAGS),
    "counts": ("-O1", *RECORDED_FLAGS, "-DHOST_COUNTS"),
}
EXECUTOR_FLAGS = {
    "plain": ("-O2",),
    "sanitize": ("-O2", "-fsanitize=address"),
    "conflicts": ("-O2",),
    "counts": ("-O2",),
}
LINK_FLAGS = {"plain": (), "sanitize": ("-fsanitize=address",), "conflicts": (), "counts": ()}


def find_compiler() -> tuple[str, ...]:
    """The command of the C++ compiler that libraries are compiled with.

    Raises
    ------
    CompilerError
        If there is none, or the executor does not run on this system.
    """
    if not sys.platform.startswith("linux"):
        raise CompilerError(f"the host executor needs Linux, and this is {sys.platform}")
    return cpp.find_compiler()


def _common_flags(compiler: tuple[str, ...], build: str) -> tuple[str, ...]:
    flags = (*COMMON_FLAGS, "-fno-sanitize=undefined")
    if cpp.is_clang(compiler):
        return flags
    return (*flags, *GCC_FLAGS, *(GCC_SANITIZE_FLAGS if build == "sanitize" else ()))


def _executor_objects(compiler: tuple[str, ...], build: str) -> list[Path]:
    recorder = build if build in ("conflicts", "counts") else "no_recorder"
    headers = [(HOST / name).read_bytes() for name in ("executor.h", "fiber.h", "accesses.h", "counts.h")]

    def object_of(part: str) -> Path:
        path = HOST / f"{part}.cpp"
        command = (*compiler, *_common_flags(compiler, build), *EXECUTOR_FLAGS[build], "-c", str(path))
        key = cpp.digest_of(*command, cpp.compiler_version(compiler), cpp.machine(), path.read_bytes(), *headers)
        return cpp.cached(f"{part}-{key}.o", lambda target: cpp.run((*command, "-o", str(target))))

    return [object_of(part) for part in ("executor", recorder, "undefined")]


def build_library(
    source: Path,
    kernels: Sequence[str],
    defines: dict[str, str],
    build: str,
    include: str | None = None,
    proofs: Sequence[str] = (),
) -> Path:
    """The shared library of ``kernels`` (names, or template instances such as ``"step<float, 4>"``) out of ``source``.

    Its content is verified, so it is safe to load.

    Raises
    ------
    CompilerError
        There is no compiler, it rejects the source (with the source's own file names and lines) or does not end, or the
        cache cannot be used.
    """
    if build not in BUILDS:
        raise ValueError(f"build is {build!r}, expected one of {', '.join(BUILDS)}")
    compiler = find_compiler()
    if build == "sanitize" and "ziglang" in compiler:
        raise CompilerError("the sanitize build needs g++ or clang++: the ziglang wheel has no AddressSanitizer")
    source = source.resolve()
    table = ", ".join(f'describe("{name}", &{name})' for name in kernels)
    unit = cpp.translation_unit(f'#include "{source}"', include, proofs) + (
        f"namespace host {{ const Kernel kernels[] = {{{table}}}; const int kernel_count = {len(kernels)}; }}\n"
    )
    flags = (
        *_common_flags(compiler, build),
        *KERNEL_FLAGS[build],
        f"-I{KERNELS}",
        "-include",
        str(HOST / "cuda_on_host.h"),
    )
    flags += tuple(f"-D{name}={value}" for name, value in sorted(defines.items()))
    if build in ("sanitize", "conflicts") and source.parent.name == "recurrence":
        flags += ("-O0",)  # compiled for each cell and schedule, with checks; the kernels of other files run for longer
    version = cpp.compiler_version(compiler)
    if build == "counts" and not cpp.is_clang(compiler):
        flags += ("-fno-thread-jumps",)  # a copy of code for each outcome of a condition would count twice
    texts = cpp.source_closure(source, include)
    texts |= cpp.source_closure(HOST / "cuda_on_host.h")
    content = [f"{path}\n{text}" for path, text in sorted(texts.items())]
    # Two steps, because a compiler that gets -fsanitize=thread when it links adds a runtime of its own.
    objects = _executor_objects(compiler, build)
    name = re.sub(r"\W", "_", source.stem)
    key = cpp.digest_of(*compiler, *flags, unit, version, cpp.machine(), *content, *(path.name for path in objects))

    def make(library: Path) -> None:
        generated, kernel_object = library.with_name("kernels.cpp"), library.with_name("kernels.o")
        generated.write_text(unit, encoding="utf-8")
        cpp.run((*compiler, *flags, "-c", str(generated), "-o", str(kernel_object)))
        parts = (str(kernel_object), *map(str, objects))
        cpp.run((*compiler, "-shared", *LINK_FLAGS[build], *parts, "-lpthread", "-ldl", "-lm", "-o", str(library)))

    return cpp.cached(f"{name}-{build}-{key}.so", make)


def sanitizer_environment() -> dict[str, str]:
    """The environment variables with which a Python process can load libraries of the ``sanitize`` build.

    AddressSanitizer has to be there before the first allocation, so it is preloaded; it then guards NumPy's arrays too.
    """
    compiler = find_compiler()
    names = ("libasan.so",) if not cpp.is_clang(compiler) else ("libclang_rt.asan-x86_64.so", "libclang_rt.asan.so")
    for name in names:
        found = cpp.run((*compiler, f"-print-file-name={name}")).strip()
        if os.path.isabs(found) and os.path.exists(found):
            options = "detect_leaks=0:halt_on_error=0:detect_stack_use_after_return=0:suppress_equal_pcs=0"
            return {
                "LD_PRELOAD": os.path.realpath(found),
                "ASAN_OPTIONS": options,
                "PYTHONMALLOC": "malloc",
                "GPURNN_HOST_BUILD": "sanitize",
            }
    raise CompilerError(f"the compiler {shlex.join(compiler)} has no shared AddressSanitizer library")
