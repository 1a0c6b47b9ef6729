"""Compiles the kernels with NVRTC as CuPy would on a GPU of any architecture, without a driver.

Reads from the compiler's log what each kernel needs of a multiprocessor, for the tests, and measures how long the
compilation takes, which is what a first call on a GPU waits for.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import importlib
import importlib.metadata
import json
import os
import re
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

import gpurnn.kernels
from gpurnn.kernels import compiler
from gpurnn.kernels.launch import CUPY_OPTIONS, Module

from .contenders import NotInstalled

ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)

PACKAGES = ("cuda-bindings", "nvidia-cuda-nvrtc-cu12")

TIMED_ARCHITECTURE = 90


class CompileError(RuntimeError):
    """NVRTC rejected a source; the message is its log, with the kernel's file and line."""


@functools.cache
def missing() -> str | None:
    """Why NVRTC cannot run here, with the remedy; None if it can."""
    try:
        _call("nvrtcVersion")
    except (ImportError, RuntimeError) as error:
        return f"NVRTC is missing ({error}); pip install {' '.join(PACKAGES)}"
    return None


def _call(name: str, *arguments: Any) -> Any:
    from cuda.bindings import nvrtc

    status, *results = getattr(nvrtc, name)(*arguments)
    if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise CompileError(f"{name}: {nvrtc.nvrtcGetErrorString(status)[1].decode()}")
    return results[0] if len(results) == 1 else results


def cuda_source(module: Module, architecture: int) -> tuple[str, tuple[str, ...]]:
    """The text of a translation unit, and all options that it is compiled with."""
    code, options = module.cuda_source()
    return code, (*options, *CUPY_OPTIONS, f"-arch=sm_{architecture}", "--ptxas-options=-v")


@contextlib.contextmanager
def _compiled(module: Module, architecture: int) -> Iterator[tuple[Any, dict[str, str]]]:
    """The compiled program of a translation unit, and the symbol of each kernel."""
    code, options = cuda_source(module, architecture)
    program = _call("nvrtcCreateProgram", code.encode(), b"kernels.cu", 0, [], [])
    try:
        for name in module.names:
            _call("nvrtcAddNameExpression", program, name.encode())
        try:
            _call("nvrtcCompileProgram", program, len(options), [option.encode() for option in options])
        except CompileError as error:
            raise CompileError(f"{error}\n{_log(program)}") from None
        yield program, {name: _call("nvrtcGetLoweredName", program, name.encode()).decode() for name in module.names}
    finally:
        _call("nvrtcDestroyProgram", program)


def compile_module(module: Module, architecture: int) -> dict[str, dict[str, int]]:
    """By kernel: registers, and bytes of stack, spills and static shared memory.

    Raises
    ------
    CompileError
    """
    with _compiled(module, architecture) as (program, symbols):
        log = _log(program)
    return {name: _resources(log, symbol) for name, symbol in symbols.items()}


def cubin(module: Module, architecture: int) -> tuple[bytes, dict[str, str]]:
    """The machine code of a translation unit, and the symbol of each kernel.

    Raises
    ------
    CompileError
    """
    with _compiled(module, architecture) as (program, symbols):
        code = bytearray(_call("nvrtcGetCUBINSize", program))
        _call("nvrtcGetCUBIN", program, code)
    return bytes(code), symbols


def _log(program: Any) -> str:
    log = bytearray(_call("nvrtcGetProgramLogSize", program))
    _call("nvrtcGetProgramLog", program, log)
    return log.rstrip(b"\0").decode(errors="replace")


def _resources(log: str, mangled: str) -> dict[str, int]:
    """The report of ptxas on one kernel."""
    report = re.search(rf"Function properties for {re.escape(mangled)}\b(.*?)(?=Compiling entry|\Z)", log, re.DOTALL)
    if report is None:
        raise CompileError(f"ptxas reports nothing of {mangled}:\n{log}")

    def number(pattern: str) -> int:
        match = re.search(pattern, report.group(1))
        return int(match.group(1)) if match else 0

    return {
        "registers": number(r"Used (\d+) registers"),
        "stack": number(r"(\d+) bytes stack frame"),
        "spilled": number(r"(\d+) bytes spill stores") + number(r"(\d+) bytes spill loads"),
        "shared": number(r"(\d+) bytes smem"),
    }


def cached(module: Module, architecture: int) -> dict[str, dict[str, int]]:
    """`compile_module`, or its result of an earlier run on the same content."""
    code, options = cuda_source(module, architecture)
    key = compiler.digest_of(*map(importlib.metadata.version, PACKAGES), code, *options, *module.names)
    path = compiler.cached(
        f"nvrtc-{key}.json", lambda path: path.write_text(json.dumps(compile_module(module, architecture)))
    )
    resources: dict[str, dict[str, int]] = json.loads(path.read_text())
    return resources


def modules() -> list[Module]:
    """Every translation unit that the library can ask for."""
    parts = [importlib.import_module(f"gpurnn.kernels.{part.name}") for part in iter_modules(gpurnn.kernels.__path__)]
    return [module for part in parts if hasattr(part, "modules") for module in part.modules()]


def compile_all(
    architectures: tuple[int, ...], processes: int | None = None, *, pattern: str = ""
) -> dict[tuple[str, int], dict[str, int]]:
    """`cached` of all modules, by kernel and architecture; in processes, since NVRTC compiles one at a time.

    With a regular expression only of those that have a kernel whose name it matches.
    """
    chosen = [module for module in modules() if any(re.search(pattern, name) for name in module.names)]
    jobs = [(module, architecture) for architecture in architectures for module in chosen]
    resources: dict[tuple[str, int], dict[str, int]] = {}
    with concurrent.futures.ProcessPoolExecutor(processes or os.cpu_count()) as pool:
        for (_, architecture), kernels in zip(jobs, pool.map(cached, *zip(*jobs, strict=True)), strict=True):
            resources |= {(name, architecture): needed for name, needed in kernels.items()}
    return resources


def write_limits(path: Path, pattern: str = "") -> None:
    """Write the registers of a thread of each kernel, the most of all architectures, as JSON.

    With a regular expression those of other kernels stay as they are in the file.
    """
    limits: dict[str, int] = {}
    for (name, _), resources in compile_all(ARCHITECTURES, pattern=pattern).items():
        limits[name] = max(limits.get(name, 0), resources["registers"])
    if pattern:
        names = {name for module in modules() for name in module.names}
        limits = {name: n for name, n in json.loads(path.read_text()).items() if name in names} | limits
    path.write_text(json.dumps(limits, indent=0, sort_keys=True) + "\n")


def report() -> Iterator[str]:
    """A row for each source file: seconds for a translation unit, and for each kernel of it."""
    reason = missing()
    if reason is not None:
        raise NotInstalled(reason)
    version = ".".join(map(str, _call("nvrtcVersion")))
    yield (
        f"NVRTC {version}, sm_{TIMED_ARCHITECTURE}, one thread. A translation unit is what a call compiles at its "
        "first use: some kernels for one dtype, and of a recurrence for one cell and schedule."
    )
    yield ""
    yield "| source | translation units | seconds each: median, longest | seconds a kernel: median, longest |"
    yield "| --- | --: | --: | --: |"
    times: dict[str, list[tuple[float, int]]] = {}
    for module in modules():
        begin = time.perf_counter()
        compile_module(module, TIMED_ARCHITECTURE)
        times.setdefault(module.source.name, []).append((time.perf_counter() - begin, len(module.names)))
    for source, units in times.items():
        each, kernel = [t for t, _ in units], [t / n for t, n in units]
        yield (
            f"| {source} | {len(units)} | {statistics.median(each):.2f}, {max(each):.2f} "
            f"| {statistics.median(kernel):.2f}, {max(kernel):.2f} |"
        )
