"""Compiles a ``.cu`` file into a shared library for the host executor, once for each content.

The compiler is ``$CXX``, else g++, else clang++, else the one in the ``ziglang`` wheel, so that pip alone is enough.
Libraries lie in ``$GPURNN_CACHE_DIR``, else ``$XDG_CACHE_HOME/gpurnn``, else ``~/.cache/gpurnn``, under a name made
from everything that went in: the source with what it includes, the executor, the flags and the compiler's version.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

HOST = Path(__file__).resolve().parent
KERNELS = HOST.parent

BUILDS = ("plain", "sanitize", "conflicts")

# No contraction: all CPUs then round alike wherever the kernel doesn't ask for a fused multiply-add. CUDA code reads
# one type's memory as another's, as nvcc allows. A loop that never ends may be a spin, to be reported and not to be
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
KERNEL_FLAGS = {
    "plain": ("-O2",),
    "sanitize": (
        "-O1",
        "-fno-omit-frame-pointer",
        "-fsanitize=address",
        "-fsanitize-recover=address",
        *UNDEFINED_FLAGS,
    ),
    "conflicts": ("-O1", "-fsanitize=thread", *UNDEFINED_FLAGS),
}
EXECUTOR_FLAGS = {"plain": ("-O2",), "sanitize": ("-O2", "-fsanitize=address"), "conflicts": ("-O2",)}
LINK_FLAGS = {"plain": (), "sanitize": ("-fsanitize=address",), "conflicts": ()}


class CompilerError(RuntimeError):
    """No compiler was found, or it refused the source; the message holds what it said."""


def cache_directory() -> Path:
    """Where libraries are kept: ``$GPURNN_CACHE_DIR``, ``$XDG_CACHE_HOME/gpurnn`` or ``~/.cache/gpurnn``."""
    own = os.environ.get("GPURNN_CACHE_DIR")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gpurnn"


def find_compiler() -> tuple[str, ...]:
    """The C++ compiler's command, found anew at each call.

    Raises
    ------
    CompilerError
        If there is none.
    """
    named = os.environ.get("CXX")
    if named:
        return tuple(shlex.split(named))
    for name in ("g++", "clang++"):
        path = shutil.which(name)
        if path:
            return (path,)
    if importlib.util.find_spec("ziglang") is not None:
        return (sys.executable, "-m", "ziglang", "c++")
    raise CompilerError("no C++ compiler: set CXX, install g++ or clang++, or `pip install ziglang`")


@functools.cache
def compiler_version(compiler: tuple[str, ...]) -> str:
    """What ``compiler --version`` prints."""
    try:
        return subprocess.run([*compiler, "--version"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise CompilerError(f"the C++ compiler {shlex.join(compiler)} does not run: {error}") from error


def source_closure(source: Path, include_directories: Sequence[Path] = (KERNELS,)) -> dict[Path, str]:
    """The texts of ``source`` and of every file that it includes in quotes, directly or not, skipped parts or not."""
    texts: dict[Path, str] = {}
    waiting = [source.resolve()]
    while waiting:
        path = waiting.pop()
        if path in texts:
            continue
        texts[path] = path.read_text(encoding="utf-8")
        for name in re.findall(r'^\s*#\s*include\s*"([^"]+)"', texts[path], re.MULTILINE):
            places = [directory / name for directory in (path.parent, *include_directories)]
            waiting.extend(place.resolve() for place in places if place.is_file())
    return texts


def digest_of(*parts: str | bytes) -> str:
    """One hash of all parts and of where each ends."""
    digest = hashlib.sha256()
    for part in parts:
        encoded = part.encode() if isinstance(part, str) else part
        digest.update(len(encoded).to_bytes(8, "little") + encoded)
    return digest.hexdigest()[:32]


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _compile(command: Sequence[str], target: Path) -> None:
    """Runs ``command -o target``; another process sees the whole file or none."""
    # With AddressSanitizer, which the kernels need in this process, a compiler takes more than half as long again.
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    with tempfile.TemporaryDirectory(dir=target.parent) as directory:
        part = Path(directory) / target.name
        done = subprocess.run([*command, "-o", str(part)], capture_output=True, text=True, env=environment)
        if done.returncode != 0:
            raise CompilerError(f"{shlex.join(command)}\n{done.stderr}")
        os.replace(part, target)


def _cached(name: str, suffix: str, command: Sequence[str], *content: str | bytes) -> Path:
    target = cache_directory() / f"{name}-{digest_of(*command, *content)}{suffix}"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(target.with_suffix(".lock")):
            if not target.exists():  # another process may have made it while this one waited
                _compile(command, target)
    return target


def _executor_objects(compiler: tuple[str, ...], build: str) -> list[Path]:
    recorder = "conflicts" if build == "conflicts" else "no_recorder"
    headers = [(HOST / name).read_bytes() for name in ("executor.h", "fiber.h")]
    objects = []
    for part in ("executor", recorder, "undefined"):
        path = HOST / f"{part}.cpp"
        command = (*compiler, *COMMON_FLAGS, "-fno-sanitize=undefined", *EXECUTOR_FLAGS[build], "-c", str(path))
        objects.append(_cached(part, ".o", command, compiler_version(compiler), path.read_bytes(), *headers))
    return objects


def build_library(source: Path, kernels: Sequence[str], defines: dict[str, str], build: str) -> Path:
    """The shared library of ``kernels`` (names, or template instances such as ``"step<float, 4>"``) out of ``source``.

    Raises
    ------
    CompilerError
        If there is no compiler, or it refuses the source; with the source's own file names and lines.
    """
    if build not in BUILDS:
        raise ValueError(f"build is {build!r}, expected one of {', '.join(BUILDS)}")
    compiler = find_compiler()
    if build == "sanitize" and "ziglang" in compiler:
        raise CompilerError("the sanitize build needs g++ or clang++: the ziglang wheel has no AddressSanitizer")
    source = source.resolve()
    table = ", ".join(f'describe("{name}", &{name})' for name in kernels)
    unit = (
        f'#include "{source}"\n'
        f"namespace host {{ const Kernel kernels[] = {{{table}}}; const int kernel_count = {len(kernels)}; }}\n"
    )
    flags = (
        *COMMON_FLAGS,
        "-fno-sanitize=undefined",
        *KERNEL_FLAGS[build],
        f"-I{KERNELS}",
        "-include",
        str(HOST / "cuda_on_host.h"),
    )
    flags += tuple(f"-D{name}={value}" for name, value in sorted(defines.items()))
    texts = source_closure(source)
    texts |= source_closure(HOST / "cuda_on_host.h")
    content = [f"{path}\n{text}" for path, text in sorted(texts.items())]
    version = compiler_version(compiler)
    # Two steps, because a compiler that is told -fsanitize=thread when it links adds a runtime of its own.
    objects = _executor_objects(compiler, build)
    name = re.sub(r"\W", "_", source.stem)
    key = digest_of(*compiler, *flags, unit, version, *content, *(path.name for path in objects))
    library = cache_directory() / f"{name}-{build}-{key}.so"
    if library.exists():
        return library
    library.parent.mkdir(parents=True, exist_ok=True)
    with _locked(library.with_suffix(".lock")):
        if library.exists():
            return library
        with tempfile.TemporaryDirectory(dir=library.parent) as directory:
            generated, kernel_object = Path(directory) / "kernels.cpp", Path(directory) / "kernels.o"
            generated.write_text(unit, encoding="utf-8")
            _compile((*compiler, *flags, "-c", str(generated)), kernel_object)
            parts = (str(kernel_object), *map(str, objects))
            _compile((*compiler, "-shared", *LINK_FLAGS[build], *parts, "-lpthread", "-ldl", "-lm"), library)
    return library


def sanitizer_environment() -> dict[str, str]:
    """The environment variables with which a Python process can load libraries of the ``sanitize`` build.

    AddressSanitizer has to be there before the first allocation, so it is preloaded; it then guards NumPy's arrays too.
    """
    compiler = find_compiler()
    names = (
        ("libasan.so",)
        if "clang" not in compiler_version(compiler)
        else ("libclang_rt.asan-x86_64.so", "libclang_rt.asan.so")
    )
    for name in names:
        found = subprocess.run([*compiler, f"-print-file-name={name}"], capture_output=True, text=True).stdout.strip()
        if os.path.isabs(found) and os.path.exists(found):
            options = "detect_leaks=0:halt_on_error=0:detect_stack_use_after_return=0:suppress_equal_pcs=0"
            return {
                "LD_PRELOAD": os.path.realpath(found),
                "ASAN_OPTIONS": options,
                "PYTHONMALLOC": "malloc",
                "GPURNN_HOST_BUILD": "sanitize",
            }
    raise CompilerError(f"the compiler {shlex.join(compiler)} has no shared AddressSanitizer library")
