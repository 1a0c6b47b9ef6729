"""Everything to find out on a first machine with a GPU, in minutes: JSON lines, as they come."""

from __future__ import annotations

import functools
import itertools
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from gpurnn.kernels import devices
from gpurnn.kernels.launch import Module
from gpurnn.kernels.recurrence import plan

import gpurnn

from . import gpu, kernel_parity, launches
from .cases import MODES, Case, Size
from .contenders import NotInstalled

SECONDS = 480
"""The time for all sections."""

ANCHORS = (
    Size(256, 16, 768, 768),
    Size(256, 64, 512, 512),
    Size(256, 1, 256, 256),
    Size(256, 32, 128, 128),
    Size(64, 128, 1024, 1024),
)
"""The shapes for comparing schedules: FlashRNN's first, then a large batch, one row, few units, many weights."""

STACKS = ((Size(512, 16, 256, 256), 2), (Size(1000, 1, 256, 256), 4), (Size(512, 16, 768, 768), 2))
"""The shapes of stacks and their numbers of layers. The last one's layers are planned one by one on an H100."""

TOOLS = ("racecheck", "memcheck", "synccheck")
"""The tools of compute-sanitizer."""

_MODULE = Module(Path(__file__).with_name("device.cu"), ["nothing", "barriers", "chain", "read"])
_THREADS = 256
_TURNS = 5

Line = dict[str, Any]
Part = tuple[Line, Callable[[], Line]]
"""The subject of a line, and a function that measures or checks it."""


def report(*, sections: tuple[str, ...] = (), small: bool = False, seconds: float = SECONDS) -> Iterator[Line]:
    """The lines of sections, all of them by default.

    A part that fails gives a line with its ``error``. A section has its share of the time, and the time left over by
    the sections before it. A line counts the parts for which no time was left.

    Raises
    ------
    NotInstalled
        There is no GPU.
    """
    if not gpu.has_gpu():
        raise NotInstalled(
            "no GPU was found: this measures one, by CuPy; pip install 'gpurnn[cuda]' where there is one"
        )
    begin = time.monotonic()
    end_of_section = begin
    for name, (parts, share) in SECTIONS.items():
        if sections and name not in sections:
            continue
        end_of_section += share * seconds
        left = 0
        for what, part in parts(small, end_of_section):
            if time.monotonic() > end_of_section:
                left += 1
                continue
            line = {"what": name, **what}
            try:
                line |= part()
            except Exception as error:  # the other parts matter all the more
                line["error"] = f"{type(error).__name__}: {error}"
            yield {**line, "at": round(time.monotonic() - begin, 1)}
        if left:
            yield {"what": name, "skipped": left, "error": "no time was left"}


def is_good(line: Line) -> bool:
    """Whether a line reports no error and no disagreement."""
    return "error" not in line and line.get("agrees", True)


# ---- Sections -------------------------------------------------------------------------------------------------------


def _device(small: bool, end: float) -> Iterator[Part]:
    def properties() -> Line:
        import cupy

        runtime = cupy.cuda.runtime
        found = devices.current()
        return {
            "name": found.name,
            "compute_capability": found.compute_capability,
            "multiprocessors": found.multiprocessors,
            "clock_hz": found.clock_hz,
            "l2_bytes": found.l2_bytes,
            "bandwidth": found.bandwidth,
            "driver": runtime.driverGetVersion(),
            "runtime": runtime.runtimeGetVersion(),
            "cupy": cupy.__version__,
            "nvrtc": ".".join(map(str, cupy.cuda.nvrtc.getVersion())),
            "numpy": np.__version__,
            "gpurnn": gpurnn.__version__,
            "python": platform.python_version(),
        }

    yield {}, properties


def _parity(small: bool, end: float) -> Iterator[Part]:
    import cupy

    clusters = devices.current().compute_capability >= plan.CLUSTER_CAPABILITY
    for check in kernel_parity.checks(small=small, clusters=clusters):
        yield check.what, functools.partial(check.run, cupy)


def _launch(small: bool, end: float) -> Iterator[Part]:
    """The time of a launch, on the host and on the GPU."""
    for line in launches.measured(devices.current().name, Size(3, 2, 1, 8) if small else launches.SIZE):
        yield {}, functools.partial(json.loads, line)
    count = 10 if small else 1000
    rows = tuple((np.int32(n),) for n in range(count))
    anything = _zeros(1, np.uint32)
    nothing = _MODULE["nothing"].bind((1,), (32,), (np.int32(0),), changing=["step"], reachable=[anything])

    def one_by_one() -> None:
        for row in rows:
            nothing(*row)

    def in_turn(call: Callable[[], Any]) -> Line:
        return {"microseconds": _microseconds(call) / count}

    yield {"way": "empty kernels, one by one"}, functools.partial(in_turn, one_by_one)
    yield {"way": "empty kernels, as a graph"}, functools.partial(in_turn, functools.partial(nothing.each, rows))


def _barrier(small: bool, end: float) -> Iterator[Part]:
    count = 3 if small else 1000
    all_blocks = devices.current().multiprocessors

    def of_launch(blocks: int, meetings: int) -> float:
        words = _zeros(1 + _TURNS, np.uint32)  # one per launch, because it must be zero
        bound = iter([
            _MODULE["barriers"].bind((blocks,), (_THREADS,), (words[k : k + 1], np.int32(meetings)), cooperative=True)
            for k in range(len(words))
        ])  # fmt: skip
        return _microseconds(lambda: next(bound)())

    def measured(blocks: int) -> Line:
        return {"microseconds": (of_launch(blocks, count) - of_launch(blocks, 0)) / count}

    for blocks in sorted({min(n, all_blocks) for n in (8, 16, 32, 64, all_blocks)}):
        yield {"blocks": blocks}, functools.partial(measured, blocks)


def _clock(small: bool, end: float) -> Iterator[Part]:
    """The clock under a load of one warp, and the bandwidths of memory and of the L2 cache."""
    device = devices.current()
    count = 1000 if small else 10**7

    def clock() -> Line:
        cycles = _zeros(1, np.int64)
        arguments = _zeros(1, np.float32), cycles, np.int32(count)
        microseconds = _microseconds(_MODULE["chain"].bind((1,), (1,), arguments))
        megahertz = int(cycles.get()[0]) / microseconds
        return {"megahertz": megahertz, "cycles_of_a_multiply_add": int(cycles.get()[0]) / count}

    yield {"of": "multiprocessor"}, clock
    memory = (1 << 12) if small else min(1 << 30, 64 * device.l2_bytes)

    def bandwidth(size: int, repeats: int) -> Line:
        blocks = 2 if small else 8 * device.multiprocessors
        x, sums = _zeros(size // 16 * 4, np.float32), _zeros(blocks * _THREADS, np.float32)
        arguments = x, sums, np.int64(x.size), np.int32(repeats)
        read = _MODULE["read"].bind((blocks,), (_THREADS,), arguments)
        return {"gigabytes_a_second": 1e-3 * x.nbytes * repeats / _microseconds(read), "bytes": x.nbytes}

    yield {"of": "memory"}, functools.partial(bandwidth, memory, 1)
    yield (
        {"of": "L2 cache"},
        functools.partial(bandwidth, memory if small else device.l2_bytes // 4, 2 if small else 64),
    )


def _schedules(small: bool, end: float) -> Iterator[Part]:
    """Every schedule at the anchors, in float32, and cuDNN if PyTorch is installed."""
    import cupy

    def in_steps(call: Callable[[], Any], T: int) -> Line:
        return {"microseconds_a_step": _microseconds(call) / T}

    device = devices.current()
    for size, cell, mode in itertools.product((Size(3, 2, 4, 8),) if small else ANCHORS, ("lstm", "gru"), MODES):
        if cell == "gru" and size not in ANCHORS[:1]:
            continue
        case = Case(cell, size, mode)
        calls = gpu.contenders(case, cupy)
        del calls["plain loop"]
        calls |= {name: peer for name, dtype in gpu.CUDNN.items() if (peer := gpu.cudnn(case, dtype)) is not None}
        predictions = gpu.predictions(case, device)
        for name, call in calls.items():
            predicted = {"predicted": predictions[name]} if name in predictions else {}
            what = {"cell": cell, "mode": mode, **size._asdict(), "way": name, **predicted}
            yield what, functools.partial(in_steps, call, size.T)


def _stacks(small: bool, end: float) -> Iterator[Part]:
    """Stacks, whose layers run at once if that is planned, and the same layers one after another."""
    import cupy

    def computed(layers: list[gpurnn.LSTM], x: Any, mode: str) -> None:
        pullbacks = []
        for layer in layers:
            if mode == "inference":
                x, _ = layer(x)
            else:
                (x, _), pullback = layer.vjp(x)
                pullbacks.append(pullback)
        for pullback in reversed(pullbacks):
            (x, _), _ = pullback((x, None))

    def in_steps(layers: list[gpurnn.LSTM], x: Any, mode: str) -> Line:
        return {"microseconds_a_step": _microseconds(lambda: computed(layers, x, mode)) / len(x)}

    for (T, B, I, H), count in (((3, 2, 8, 8), 2),) if small else STACKS:
        x = cupy.zeros((T, B, I), np.float32)
        stack = gpurnn.LSTM(I, H, count).to("cuda")
        one_by_one = [gpurnn.LSTM(I if k == 0 else H, H).to("cuda") for k in range(count)]
        explained = gpurnn.explain(stack, x)
        what = {"T": T, "B": B, "I": I, "H": H, "layers": count}
        for mode in MODES:
            for way, layers in (("stack", [stack]), ("one by one", one_by_one)):
                plan = {"layers_at_once": explained.layers_at_once if layers == [stack] else 1}
                yield {**what, "mode": mode, "way": way, **plan}, functools.partial(in_steps, layers, x, mode)


def _sanitizers(small: bool, end: float) -> Iterator[Part]:
    """The small checks under each tool of compute-sanitizer, in a process of its own."""
    program = compute_sanitizer()
    command = [sys.executable, "-m", "benchmarks", "device", "--section", "parity", "--small"]

    def run(tool: str, left: int) -> Line:
        if program is None:
            raise FileNotFoundError("compute-sanitizer is not there; it comes with the CUDA Toolkit")
        ended = subprocess.run(
            [program, "--tool", tool, "--error-exitcode", "9", *command],
            cwd=Path(__file__).parents[1],
            capture_output=True,
            text=True,
            timeout=max(1, end - time.monotonic()) / left,
        )
        lines = [json.loads(line) for line in ended.stdout.splitlines() if line.startswith("{")]
        text = [line for line in (ended.stdout + ended.stderr).splitlines() if not line.startswith("{")]
        summary = [line for line in text if "ERROR SUMMARY" in line or "RACECHECK SUMMARY" in line]
        found = {"exit": ended.returncode, "checks": len(lines), "summary": summary}
        if ended.returncode or not lines or not all(map(is_good, lines)):
            found["error"] = "\n".join(text[:40])
        return found

    for number, tool in enumerate(TOOLS):
        yield {"tool": tool}, functools.partial(run, tool, len(TOOLS) - number)


def compute_sanitizer() -> str | None:
    """The program's path: on the PATH, in a CUDA Toolkit, or in a Python package."""
    roots = [
        Path(os.environ.get("CUDA_PATH", "/usr/local/cuda")),
        *Path(sysconfig.get_path("purelib")).glob("nvidia/*"),
    ]
    places = [root / part for root in roots for part in ("bin", "compute-sanitizer")]
    return shutil.which("compute-sanitizer", path=os.pathsep.join([os.environ.get("PATH", ""), *map(str, places)]))


SECTIONS: dict[str, tuple[Callable[[bool, float], Iterator[Part]], float]] = {
    "device": (_device, 0.01),
    "parity": (_parity, 0.26),
    "launch": (_launch, 0.04),
    "barrier": (_barrier, 0.02),
    "clock": (_clock, 0.04),
    "schedule": (_schedules, 0.25),
    "stack": (_stacks, 0.03),
    "sanitizer": (_sanitizers, 0.35),
}
"""The parts of each section and its share of the time, by the name in its lines."""


# ---- Measuring ------------------------------------------------------------------------------------------------------


def _zeros(count: int, dtype: Any) -> Any:
    import cupy

    return cupy.zeros(count, dtype)


def _microseconds(call: Callable[[], Any]) -> float:
    """The median time of a call on the GPU, by CuPy's events, after a warm-up call."""
    import cupy

    times = []
    for _ in range(1 + _TURNS):
        begin, end = cupy.cuda.Event(), cupy.cuda.Event()
        begin.record()
        call()
        end.record()
        end.synchronize()
        times.append(1e3 * cupy.cuda.get_elapsed_time(begin, end))
    return statistics.median(times[1:])
