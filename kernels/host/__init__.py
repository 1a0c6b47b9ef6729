"""The host executor: runs the CUDA kernels of this package, from their own source, on a CPU.

A ``.cu`` file is compiled as C++17 (``build.py``, ``cuda_on_host.h``) together with the executor (``executor.cpp``),
which runs each CUDA thread as a fiber: the blocks of a plain launch one after another, those of a cluster or of a
cooperative launch side by side. All fibers share one OS thread, in an order drawn from a seed, so a run can be repeated
exactly.

Errors that it finds
--------------------
- Always: a barrier that some thread of the block or cluster never reaches, or reaches elsewhere (``barrier``); a warp
  collective whose mask lacks the caller or names a lane that ended or that waits elsewhere (``collective``,
  ``deadlock``); a shuffle from a lane that takes no part (``lane``); spins on a value that never comes (``livelock``);
  loops that never end (``endless``), after a limit of time if they never wait and of waits if they do; faults
  (``bounds``); writes past the end of dynamic shared memory and of arrays from `empty` (``bounds``); failed asserts
  (``assert``). Shared memory and the arrays of `empty` start as NaN, and so do the red zones behind them, so reading
  too early or too far gives NaN.
- In the ``conflicts`` build also: every access outside the arrays of the launch, exactly; undefined behaviour of
  integers, indices out of an array's declared bounds (``bounds``, ``undefined``); two accesses to a word by two
  threads with no barrier in between, not both reads nor both atomic; ``__ldg`` of data that the launch writes; a word
  that one block writes and another reads without `publish` and `read_published`; a block that ends while another one of
  its cluster may still read its shared memory (``conflict``).
- In the ``counts`` build: nothing more. It counts the operations of each warp, see `counts`.
- In the ``sanitize`` build: the errors that AddressSanitizer and UndefinedBehaviorSanitizer find, also in local arrays.

Errors that no run on a CPU shows
---------------------------------
- Reordering: one OS thread sees all memory operations in order. A missing fence or a stale cache changes no result
  here. The ``conflicts`` build checks the rule that makes them harmless instead: blocks exchange data through
  ``intrinsics.cuh`` only. That the PTX in that header is right can only be shown on a GPU.
- The interleavings of a warp in lockstep, and every interleaving finer than from one wait to the next: fibers are not
  interrupted between two waits. The ``conflicts`` build makes up for it, since it doesn't depend on the order.
- The executor remembers a word's last write and its last reads by two threads. It misses conflicts with older
  accesses, and with accesses that this run's data never made. Two static shared arrays count as one stretch of
  memory: an index past the first is found if it is written as an index of the array itself, not through a pointer.
- Registers, spills, occupancy, launch limits of a device, time; flushed subnormal numbers and the
  last bits of the GPU's own expf, tanhf and their like.

Environment variables: ``GPURNN_HOST_BUILD`` (``plain``, ``sanitize``, ``conflicts``, ``counts``), ``GPURNN_HOST_SEED``,
``CXX``, ``GPURNN_CACHE_DIR`` and ``GPURNN_COMPILER_TIMEOUT`` (see ``compiler.py``).
"""

from __future__ import annotations

import contextlib
import contextvars
import ctypes
import dataclasses
import os
import re
import shutil
import subprocess
import threading
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gpurnn import _fork

from ..compiler import KERNELS, CompilerError
from .build import BUILDS, HOST, build_library, find_compiler, sanitizer_environment

__all__ = [
    "BUILDS",
    "CompilerError",
    "Counts",
    "Execution",
    "ExecutionError",
    "Library",
    "counts",
    "empty",
    "execution",
    "find_compiler",
    "sanitizer_environment",
]

_RED_ZONE = 256  # bytes
_FRESH = 0xFF  # every byte of fresh memory: NaN in each floating-point format, -1 as an integer
_ALIGNMENT = 256  # bytes, as cudaMalloc's


class ExecutionError(RuntimeError):
    """A check has found an error in a kernel.

    Attributes
    ----------
    check : str
        The check that found it: ``"barrier"``, ``"collective"``, ``"lane"``, ``"deadlock"``, ``"livelock"``,
        ``"endless"``, ``"bounds"``, ``"undefined"``, ``"conflict"`` or ``"assert"``.
    """

    def __init__(self, check: str, message: str) -> None:
        super().__init__(f"{check}: {message}")
        self.check = check


@dataclasses.dataclass(frozen=True)
class Execution:
    """How kernels are built and run.

    Attributes
    ----------
    build : str
        One of `BUILDS`.
    seed : int
        Decides the order of threads and blocks.
    stall_seconds : float
        For how long one thread may run without waiting for another.
    most_waits : int
        How often one thread may wait in a launch, at barriers, at warp collectives and in spins.
    most_polls : int
        How often a thread that waits for other blocks polls before the kernel gives up, as it does on a GPU. By default
        an `ExecutionError` comes first.
    """

    build: str = "plain"
    seed: int = 0
    stall_seconds: float = 10.0
    # A count and not a time, so that a launch that ends passes on slow machines and with slow sanitizers. By any other
    # measure a loop with barriers makes progress. The recurrences wait ten to a few hundred times per time step: 16
    # blocks of 512 threads would reach this bound after an hour. An endless loop of one warp reaches it in ten seconds,
    # of 1024 threads in minutes.
    most_waits: int = 10**7
    most_polls: int = 10**9


_current: contextvars.ContextVar[Execution | None] = contextvars.ContextVar("execution", default=None)


def current_execution() -> Execution:
    """The choice of `execution`, else of the environment."""
    return _current.get() or Execution(
        os.environ.get("GPURNN_HOST_BUILD", "plain"), int(os.environ.get("GPURNN_HOST_SEED", "0"))
    )


@contextlib.contextmanager
def execution(**changes: Any) -> Iterator[None]:
    """``with execution(build="conflicts", seed=3): ...`` runs kernels with these fields of `Execution` changed."""
    token = _current.set(dataclasses.replace(current_execution(), **changes))
    try:
        yield
    finally:
        _current.reset(token)


# ---- Counts ---------------------------------------------------------------------------------------------------------

INSTRUCTIONS = (
    "multiply_adds",
    "arithmetic",
    "divisions",
    "special_functions",
    "conversions",
    "shuffles",
    "votes",
    "syncwarps",
    "barriers",
    "loads",
    "read_only_loads",
    "published_loads",
    "stores",
    "published_stores",
    "atomics",
    "cluster_loads",
    "shared_loads",
    "shared_stores",
)
"""The kinds of instructions of a warp in `Counts`."""


@dataclasses.dataclass(frozen=True)
class Counts:
    """The operations of the warps of a launch.

    ``counts["multiply_adds"]`` is an array (blocks, warps); blocks are in the order of their number, x first. Besides
    the kinds of `INSTRUCTIONS` there are

    - ``load_bytes`` and ``load_sectors`` of global memory, and the same for its other kinds of access
      (``read_only_load``, ``published_load``, ``store``, ``published_store``, ``atomic``): the bytes that the lanes of
      an access name, each once, and the sectors of 32 bytes that contain them; ``cluster_load_bytes`` and
      ``cluster_load_sectors``, the same for loads by rank from the shared memory of a cluster's blocks, also the own;
    - ``shared_load_bytes`` and ``shared_store_bytes``, the bytes of all lanes; ``shared_load_wavefronts`` and
      ``shared_store_wavefronts``, the turns in which the 32 banks serve them; ``bank_conflicts``, the wavefronts beyond
      those needed without conflicts;
    - ``spins``, the turns of waiting loops: how long a block waits depends on the executor's order.
    """

    kernel: str
    grid: tuple[int, ...]
    block: tuple[int, ...]
    by_warp: dict[str, np.ndarray]

    def __getitem__(self, name: str) -> np.ndarray:
        return self.by_warp[name]

    @property
    def instructions(self) -> np.ndarray:
        """(blocks, warps): the instructions of all kinds, as in the source.

        A GPU executes more: addresses, loops and branches do not count.
        """
        total: np.ndarray = sum((self[kind] for kind in INSTRUCTIONS), np.zeros_like(self["barriers"]))
        return total


_counted: contextvars.ContextVar[list[Counts] | None] = contextvars.ContextVar("counted", default=None)


@contextlib.contextmanager
def counts() -> Iterator[list[Counts]]:
    """``with counts() as launches: ...`` runs kernels in the ``counts`` build, and lists the `Counts` of each launch.

    An instruction counts once for all lanes of a warp that reach it together, and once for each group of lanes that
    reaches it alone. Lanes are together at each barrier and each collective of the whole warp. From there on, the n-th
    visits of the lanes to a place in the source are one instruction.
    """
    launches: list[Counts] = []
    token = _counted.set(launches)
    try:
        with execution(build="counts"):
            yield launches
    finally:
        _counted.reset(token)


# ---- Device memory --------------------------------------------------------------------------------------------------


def _address_sanitizer() -> bool:
    return "asan" in os.environ.get("LD_PRELOAD", "")


# The allocations of `empty`, by id.
_red_zones: weakref.WeakValueDictionary[int, np.ndarray] = weakref.WeakValueDictionary()


def empty(shape: int | Sequence[int], dtype: Any) -> np.ndarray:
    """An array like freshly allocated device memory: all bytes 0xFF, which is NaN, with a red zone behind it."""
    dtype = np.dtype(dtype)
    count = int(np.prod(shape, dtype=np.int64))
    size = count * dtype.itemsize
    if _address_sanitizer():
        memory = np.full(size, _FRESH, np.uint8)  # AddressSanitizer adds red zones of its own
        array: np.ndarray = memory.view(dtype).reshape(shape)
        return array
    memory = np.full(size + _RED_ZONE + _ALIGNMENT, _FRESH, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    array = memory[start : start + size].view(dtype).reshape(shape)
    _red_zones[id(memory)] = memory
    return array


def _check_red_zones(kernel: str, arrays: Sequence[tuple[str, np.ndarray]]) -> None:
    for name, array in arrays:
        memory = array
        while isinstance(memory.base, np.ndarray):
            memory = memory.base
        if _red_zones.get(id(memory)) is not memory:
            continue
        start = -memory.ctypes.data % _ALIGNMENT
        end = memory.size - _ALIGNMENT + start - _RED_ZONE
        touched = np.flatnonzero(memory[end : end + _RED_ZONE] != _FRESH)
        if touched.size:
            memory[end : end + _RED_ZONE] = _FRESH  # so that the next launch is not blamed
            raise ExecutionError("bounds", f"kernel {kernel}: wrote {touched[0]} bytes behind the end of `{name}`")


# ---- Libraries and launches -----------------------------------------------------------------------------------------


class _Region(ctypes.Structure):
    _fields_ = (("begin", ctypes.c_void_p), ("bytes", ctypes.c_uint64), ("name", ctypes.c_char_p))


class _Launch(ctypes.Structure):
    _fields_ = (
        ("kernel", ctypes.c_int32),
        ("grid", ctypes.c_uint32 * 3),
        ("block", ctypes.c_uint32 * 3),
        ("cooperative", ctypes.c_int32),
        ("shared_bytes", ctypes.c_uint64),
        ("seed", ctypes.c_uint64),
        ("stall_seconds", ctypes.c_double),
        ("most_waits", ctypes.c_uint64),
        ("most_polls", ctypes.c_uint64),
        ("arguments", ctypes.POINTER(ctypes.c_void_p)),
        ("regions", ctypes.POINTER(_Region)),
        ("region_count", ctypes.c_int32),
    )


# Each library has an executor of its own, but the signal handlers that a launch replaces belong to the process.
# If a Python signal handler launches during another launch, that one has not begun yet or has already ended.
_one_launch = _fork.Lock(threading.RLock)


class Library:
    """The compiled kernels of one ``.cu`` file.

    Parameters
    ----------
    source : Path
        The ``.cu`` file.
    kernels : sequence of str
        Names of kernels, or of template instances such as ``"step<float, 4>"``.
    defines : dict of str to str
        Macros.
    build : str
        One of `BUILDS`.
    include, proofs
        See `kernels.launch.Module`.
    """

    def __init__(
        self,
        source: Path,
        kernels: Sequence[str],
        defines: dict[str, str],
        build: str,
        *,
        include: str | None = None,
        proofs: Sequence[str] = (),
    ) -> None:
        if build == "sanitize" and not _address_sanitizer():
            raise RuntimeError(
                "the sanitize build needs AddressSanitizer in the process: start Python with sanitizer_environment()"
            )
        self.path = build_library(source, kernels, defines, build, include, proofs)
        try:
            self._library = ctypes.CDLL(str(self.path))
        except OSError as error:
            raise CompilerError(f"what the compiler made cannot be loaded: {error}") from error
        self._library.gpurnn_host_kernel_parameters.restype = ctypes.c_char_p
        self._indices = {name: i for i, name in enumerate(kernels)}
        self._counters: list[str] = []
        if build == "counts":
            self._library.gpurnn_host_counters.restype = ctypes.c_char_p
            self._counters = self._library.gpurnn_host_counters().decode().rstrip(",").split(",")

    def parameters(self, kernel: str) -> list[str]:
        """The parameter types, from the compiler: ``"const f4*"``, ``"i4"``; ``"V24"`` is a struct of 24 bytes."""
        text = self._library.gpurnn_host_kernel_parameters(self._indices[kernel]).decode()
        return text.split(",") if text else []

    def launch(
        self,
        kernel: str,
        grid: Sequence[int],
        block: Sequence[int],
        arguments: Sequence[Any],
        names: Sequence[str],
        *,
        shared_bytes: int,
        cooperative: bool,
        reachable: Sequence[np.ndarray] = (),
    ) -> None:
        """Run one launch to its end. ``arguments`` are arrays and NumPy scalars that `kernels.launch` has checked.

        Raises
        ------
        ExecutionError
            A check has found an error in the kernel.
        """
        how = current_execution()
        arrays = [(name, a) for name, a in zip(names, arguments, strict=True) if isinstance(a, np.ndarray)]
        arrays += [(f"reachable array {i}", a) for i, a in enumerate(reachable)]
        # Each argument's value has memory of its own: a pointer, or the scalar's bytes.
        values = [np.array(a.ctypes.data if isinstance(a, np.ndarray) else a) for a in arguments]
        regions = [_Region(a.ctypes.data, a.nbytes, name.encode()) for name, a in arrays]
        launch = _Launch(
            kernel=self._indices[kernel],
            grid=(*grid, *(1,) * (3 - len(grid))),
            block=(*block, *(1,) * (3 - len(block))),
            cooperative=cooperative,
            shared_bytes=shared_bytes,
            seed=how.seed,
            stall_seconds=how.stall_seconds,
            most_waits=how.most_waits,
            most_polls=how.most_polls,
            arguments=(ctypes.c_void_p * len(values))(*(v.ctypes.data for v in values)),
            regions=(_Region * len(regions))(*regions),
            region_count=len(regions),
        )
        message = ctypes.create_string_buffer(8192)
        launches = _counted.get() if self._counters else None
        warps = -(-int(np.prod(block)) // 32)
        with _one_launch.current:
            failed = self._library.gpurnn_host_launch(ctypes.byref(launch), message, ctypes.c_size_t(len(message)))
            if launches is not None:
                counted = np.empty((int(np.prod(grid)), warps, len(self._counters)), np.uint64)
                self._library.gpurnn_host_counts(ctypes.c_void_p(counted.ctypes.data))
        if launches is not None:
            by_warp = {name: counted[:, :, i].astype(np.int64) for i, name in enumerate(self._counters)}
            launches.append(Counts(kernel, tuple(grid), tuple(block), by_warp))
        if failed:
            check, _, what = message.value.decode(errors="replace").partition(": ")
            raise ExecutionError(check, re.sub(r"\{code:(0x[0-9a-f]+)\}", self._source_line, what))
        _check_red_zones(kernel, arrays)

    def _source_line(self, code: re.Match[str]) -> str:
        """``file:line`` in the kernel of an address in the library, if binutils or LLVM are installed."""
        for tool in ("addr2line", "llvm-addr2line"):
            if shutil.which(tool):
                command = [tool, "-i", "-e", str(self.path), code.group(1)]
                frames = subprocess.run(command, capture_output=True, text=True).stdout.splitlines()
                lines = [os.path.normpath(frame.split(" (")[0]) for frame in frames if not frame.startswith("??")]
                # Innermost first: skip functions of CUDA and of intrinsics.cuh, outwards to the kernel.
                for line in lines:
                    if not line.startswith((str(HOST), str(KERNELS / "intrinsics.cuh"))):
                        return line
        return f"{self.path.name}+{code.group(1)}"
