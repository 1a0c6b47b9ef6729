"""Time that NVRTC takes for the kernels: what a first call on a GPU waits for."""

from __future__ import annotations

import importlib.metadata
import statistics
import time
from collections.abc import Iterator

from gpurnn.kernels import nvrtc

from .contenders import NotInstalled

ARCHITECTURE = 90


def report() -> Iterator[str]:
    """A row for each source file: seconds for a translation unit, and for each kernel of it."""
    if nvrtc.find() is None:
        raise NotInstalled(f"NVRTC is not installed; pip install {nvrtc.WHEEL}")
    yield (
        f"NVRTC {importlib.metadata.version(nvrtc.WHEEL)}, sm_{ARCHITECTURE}, one thread. A translation unit is what a "
        "call compiles at its first use: some kernels for one dtype, and of a recurrence for one cell and schedule."
    )
    yield ""
    yield "| source | translation units | seconds each: median, longest | seconds a kernel: median, longest |"
    yield "| --- | --: | --: | --: |"
    times: dict[str, list[tuple[float, int]]] = {}
    for module in nvrtc.modules():
        begin = time.perf_counter()
        nvrtc.compile_module(module, ARCHITECTURE)
        times.setdefault(module.source.name, []).append((time.perf_counter() - begin, len(module.names)))
    for source, found in times.items():
        each, kernel = [t for t, _ in found], [t / n for t, n in found]
        yield (
            f"| {source} | {len(found)} | {statistics.median(each):.2f}, {max(each):.2f} "
            f"| {statistics.median(kernel):.2f}, {max(kernel):.2f} |"
        )
