"""Compiles kernels with NVRTC as CuPy would on a GPU of any architecture, without a driver, and reads what came out.

A tool for tests and benchmarks; nothing that computes needs it.
"""

from __future__ import annotations

import concurrent.futures
import ctypes
import functools
import importlib
import importlib.metadata
import json
import os
import re
from pathlib import Path

from . import compiler
from .launch import CUPY_OPTIONS, Module

ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)
WHEEL = "nvidia-cuda-nvrtc-cu12"

USUAL = ARCHITECTURES if os.environ.get("GPURNN_ARCHITECTURES") == "all" else (75, 90, 120)
"""Those that tests compile for: all take nine minutes of one core's time."""


class CompileError(RuntimeError):
    """NVRTC refused a source; the message is its log, with the kernel's file and line."""


@functools.cache
def find() -> ctypes.CDLL | None:
    """NVRTC out of its wheel, None if that is not installed, or not for Linux."""
    try:
        files = importlib.metadata.files(WHEEL) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    path = next((f for f in files if f.name == "libnvrtc.so.12"), None)
    return None if path is None else ctypes.CDLL(str(path.locate()))


def _call(name: str, *args: object) -> None:
    found = find()
    assert found is not None, f"NVRTC is not installed; pip install {WHEEL}"
    status = getattr(found, name)(*args)
    if status != 0:
        found.nvrtcGetErrorString.restype = ctypes.c_char_p
        raise CompileError(f"{name}: {found.nvrtcGetErrorString(status).decode()}")


def _text(program: ctypes.c_void_p, what: str) -> str:
    size = ctypes.c_size_t()
    _call(f"nvrtcGet{what}Size", program, ctypes.byref(size))
    text = ctypes.create_string_buffer(size.value)
    _call(f"nvrtcGet{what}", program, text)
    return text.value.decode(errors="replace")


def cuda_source(module: Module, architecture: int) -> tuple[str, tuple[str, ...]]:
    """The text, and all options that it is compiled with."""
    code, options = module.cuda_source()
    return code, (*options, *CUPY_OPTIONS, f"-arch=sm_{architecture}", "--ptxas-options=-v")


def compile_module(module: Module, architecture: int) -> dict[str, dict[str, int]]:
    """By kernel: registers, and bytes of stack, spills and static shared memory.

    Raises
    ------
    CompileError
    """
    return _compile(*cuda_source(module, architecture), module.names)


def cached(module: Module, architecture: int) -> dict[str, dict[str, int]]:
    """`compile_module`, or what it once gave for the same content."""
    code, options = cuda_source(module, architecture)
    key = compiler.digest_of(importlib.metadata.version(WHEEL), code, *options, *module.names)
    path = compiler.cached(
        f"nvrtc-{key}.json", lambda path: path.write_text(json.dumps(compile_module(module, architecture)))
    )
    found: dict[str, dict[str, int]] = json.loads(path.read_text())
    return found


def _compile(code: str, options: tuple[str, ...], names: tuple[str, ...]) -> dict[str, dict[str, int]]:
    program = ctypes.c_void_p()
    _call("nvrtcCreateProgram", ctypes.byref(program), code.encode(), b"kernels.cu", 0, None, None)
    try:
        for name in names:
            _call("nvrtcAddNameExpression", program, name.encode())
        arguments = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        try:
            _call("nvrtcCompileProgram", program, len(options), arguments)
        except CompileError as error:
            raise CompileError(f"{error}\n{_text(program, 'ProgramLog')}") from None
        log = _text(program, "ProgramLog")
        lowered = {}
        for name in names:
            mangled = ctypes.c_char_p()
            _call("nvrtcGetLoweredName", program, name.encode(), ctypes.byref(mangled))
            lowered[name] = (mangled.value or b"").decode()
    finally:
        _call("nvrtcDestroyProgram", ctypes.byref(program))
    return {name: _resources(log, mangled) for name, mangled in lowered.items()}


def _resources(log: str, mangled: str) -> dict[str, int]:
    """What ptxas says of one kernel."""
    told = re.search(rf"Function properties for {re.escape(mangled)}\b(.*?)(?=Compiling entry|\Z)", log, re.DOTALL)
    if told is None:
        raise CompileError(f"ptxas says nothing of {mangled}:\n{log}")

    def number(pattern: str) -> int:
        match = re.search(pattern, told.group(1))
        return int(match.group(1)) if match else 0

    return {
        "registers": number(r"Used (\d+) registers"),
        "stack": number(r"(\d+) bytes stack frame"),
        "spilled": number(r"(\d+) bytes spill stores") + number(r"(\d+) bytes spill loads"),
        "shared": number(r"(\d+) bytes smem"),
    }


def modules() -> list[Module]:
    """Every translation unit that the library can ask for."""
    files = sorted(path.stem for path in Path(__file__).parent.glob("*.py") if path.stem not in ("__init__", "nvrtc"))
    wing = [importlib.import_module(f"{__package__}.{name}") for name in files]
    return [module for file in wing if hasattr(file, "modules") for module in file.modules()]


def compile_all(architectures: tuple[int, ...], processes: int | None = None) -> dict[tuple[str, int], dict[str, int]]:
    """`cached` of all modules, by kernel and architecture; in processes, since NVRTC compiles one at a time."""
    jobs = [(module, architecture) for architecture in architectures for module in modules()]
    found = {}
    with concurrent.futures.ProcessPoolExecutor(processes or os.cpu_count()) as pool:
        for (_, architecture), kernels in zip(jobs, pool.map(cached, *zip(*jobs, strict=True)), strict=True):
            found |= {(name, architecture): resources for name, resources in kernels.items()}
    return found
