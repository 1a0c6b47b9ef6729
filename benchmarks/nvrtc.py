"""Compile the kernels with NVRTC as CuPy would on a GPU of any architecture, without a driver.

The compiler's log says which resources of a multiprocessor each kernel needs, for the tests. This also measures how
long the compilation takes, for which a first call on a GPU waits.
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
from collections.abc import Iterator, Sequence
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

import gpurnn.kernels
from gpurnn.kernels import attention, compiler
from gpurnn.kernels.launch import CUPY_OPTIONS, Module
from gpurnn.kernels.recurrence import plan

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
    """The registers of each kernel, and its bytes of stack, spills and static shared memory.

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
    """The result of `compile_module`, from an earlier run on the same content if there was one."""
    code, options = cuda_source(module, architecture)
    key = compiler.digest_of(*map(importlib.metadata.version, PACKAGES), code, *options, *module.names)
    path = compiler.cached(
        f"nvrtc-{key}.json", lambda path: path.write_text(json.dumps(compile_module(module, architecture)))
    )
    resources: dict[str, dict[str, int]] = json.loads(path.read_text())
    return resources


def modules() -> list[Module]:
    """Every translation unit that the library can compile."""
    parts = [importlib.import_module(f"gpurnn.kernels.{part.name}") for part in iter_modules(gpurnn.kernels.__path__)]
    return [module for part in parts if hasattr(part, "modules") for module in part.modules()]


def runs(module: Module, architecture: int) -> bool:
    """Whether a GPU of an architecture can run a translation unit: older architectures have no clusters."""
    major, minor = plan.CLUSTER_CAPABILITY
    return module.cluster == 1 or architecture >= 10 * major + minor


def compile_all(jobs: Sequence[tuple[Module, int]]) -> dict[tuple[str, int], dict[str, int]]:
    """The results of `cached` for modules, each for an architecture, by kernel and architecture.

    It uses several processes, because NVRTC compiles one unit at a time.
    """
    resources: dict[tuple[str, int], dict[str, int]] = {}
    if not jobs:
        return resources
    with concurrent.futures.ProcessPoolExecutor(os.cpu_count()) as pool:
        for (_, architecture), kernels in zip(jobs, pool.map(cached, *zip(*jobs, strict=True)), strict=True):
            resources |= {(name, architecture): needed for name, needed in kernels.items()}
    return resources


def is_planned(name: str) -> bool:
    """Whether a kernel is one of those for which the planner expects that a multiprocessor holds a block."""
    return "Exchange::" in name or "_scatter<" in name


def fault(name: str, resources: dict[str, int]) -> str | None:
    """A description of the resources that a kernel must not need but does; None if there are none."""
    if resources["spilled"] or resources["stack"]:
        return f"{name} spills {resources['spilled']} bytes and has a stack of {resources['stack']} bytes"
    # The planner counts only dynamic shared memory. So does the launcher, which raises the limit above 48 KiB.
    most = 0 if is_planned(name) else 48 * 1024 - attention.SHARED
    if resources["shared"] > most:
        return f"{name} has {resources['shared']} bytes of static shared memory, expected at most {most}"
    return None


def digest(module: Module) -> str:
    """A digest of the code of a translation unit and of its options, but not of comments."""
    texts = sorted((path.name, text) for path, text in module.texts.items())
    code = (" ".join(re.sub(r"//[^\n]*|/\*.*?\*/", " ", text, flags=re.DOTALL).split()) for _, text in texts)
    options = (option for option in module.cuda_source()[1] if not option.startswith("-I"))
    parts = *code, module.include or "", *options, *CUPY_OPTIONS, *module.names
    return compiler.digest_of(*parts)[:12]


def digests() -> dict[str, str]:
    """The `digest` of the translation units that have a kernel of a name, by that name."""
    found: dict[str, str] = {}
    for module in modules():
        own = digest(module)
        for name in module.names:
            found[name] = compiler.digest_of(found[name], own)[:12] if name in found else own
    return found


def changed(limits: dict[str, Any]) -> list[Module]:
    """The translation units whose code has changed since `write_limits` compiled it."""
    new = {name for name, code in digests().items() if limits.get(name, {}).get("code") != code}
    return [module for module in modules() if not new.isdisjoint(module.names)]


def write_limits(path: Path, pattern: str = "") -> None:
    """Compile all kernels for all architectures, and write the limits that the tests check, as JSON.

    For each kernel: the most registers of a thread on any architecture, and the digest of its code. With a regular
    expression, the entries of other kernels stay as they are in the file.

    Raises
    ------
    CompileError
        A kernel spills, or has too much static shared memory.
    """
    limits: dict[str, Any] = {}
    chosen = [module for module in modules() if any(re.search(pattern, name) for name in module.names)]
    codes = digests()
    jobs = [(module, architecture) for architecture in ARCHITECTURES for module in chosen if runs(module, architecture)]
    for (name, architecture), resources in compile_all(jobs).items():
        found = fault(name, resources)
        if found:
            raise CompileError(f"for sm_{architecture}, {found}")
        most = max(limits.get(name, {}).get("registers", 0), resources["registers"])
        limits[name] = {"registers": most, "code": codes[name]}
    if pattern:
        names = {name for module in modules() for name in module.names}
        limits = {name: limit for name, limit in json.loads(path.read_text()).items() if name in names} | limits
    lines = (f"{json.dumps(name)}: {json.dumps(limit)}" for name, limit in sorted(limits.items()))
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def report() -> Iterator[str]:
    """A row for each source file, and one for all: CPU seconds for a translation unit, and for each kernel of it."""
    reason = missing()
    if reason is not None:
        raise NotInstalled(reason)
    version = ".".join(map(str, _call("nvrtcVersion")))
    yield (
        f"NVRTC {version}, sm_{TIMED_ARCHITECTURE}, CPU seconds. A call compiles one translation unit at its first "
        "use: some kernels for one dtype, in a recurrence for one cell and schedule."
    )
    yield ""
    yield "| source | translation units | seconds each: median, longest | a kernel: median, longest | all |"
    yield "| --- | --: | --: | --: | --: |"
    times: dict[str, list[tuple[float, int]]] = {}
    for module in modules():
        begin = time.process_time()
        compile_module(module, TIMED_ARCHITECTURE)
        times.setdefault(module.source.name, []).append((time.process_time() - begin, len(module.names)))
    for source, units in times.items():
        each, kernel = [t for t, _ in units], [t / n for t, n in units]
        yield (
            f"| {source} | {len(units)} | {statistics.median(each):.2f}, {max(each):.2f} "
            f"| {statistics.median(kernel):.2f}, {max(kernel):.2f} | {sum(each):.1f} |"
        )
    every = [t for units in times.values() for t, _ in units]
    yield f"| all | {len(every)} | {statistics.median(every):.2f}, {max(every):.2f} | | {sum(every):.1f} |"
