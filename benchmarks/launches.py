"""The CPU time of a launch through genuine CuPy, on a GPU or over the tests' driver, which does nothing."""

from __future__ import annotations

import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from gpurnn.kernels import devices
from gpurnn.kernels.recurrence.cost import step_fused

from . import gpu
from .cases import Size
from .contenders import NotInstalled

TESTS = Path(__file__).parents[1] / "tests"

SIZE = Size(500, 16, 1, 768)
"""The size of an LSTM. A turn has one launch per step: fewer than a GPU's queue holds."""

TURNS = 9

_OVER_THE_TESTS_DRIVER = """
import os, cupy_on_host
cupy_on_host.DRIVER.is_idle = True
from benchmarks import launches
for line in launches.measured("none: calls of the driver return at once"):
    print(line, flush=True)
os._exit(0)
"""


def report() -> Iterator[str]:
    """JSON lines: microseconds of CPU time of a launch, one line for each way to make it."""
    if importlib.util.find_spec("cupy") is None:
        raise NotInstalled("CuPy is missing; pip install 'gpurnn[cuda]'")
    if gpu.has_gpu():
        yield from measured(devices.current().name)
        return
    ended = subprocess.run(
        [sys.executable, "-c", _OVER_THE_TESTS_DRIVER],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)])},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )  # fmt: skip
    yield from ended.stdout.splitlines()


def measured(device: str, size: Size = SIZE) -> Iterator[str]:
    """The lines, with CuPy's current driver."""
    import cupy

    call, bound, launches = step_fused(cupy, size.T, size.B, size.H)
    own = bound.kernel.function(cupy.cuda.runtime.getDevice(), 0)
    (grid, block, args), options = call
    values = [np.uint64(0) if a is None else a for a in args]

    def by_cupy() -> None:
        for _ in launches:
            own(grid, block, values, shared_mem=options["shared_mem"])

    def unbound() -> None:
        for _ in launches:
            bound.kernel(grid, block, args, **options)

    def by_bound() -> None:
        for launch in launches:
            bound(*launch)

    ways: dict[str, Callable[[], None]] = {
        "CuPy's own call": by_cupy,
        "Kernel.__call__": unbound,
        "Kernel.bind": by_bound,
        "Kernel.bind, as a graph": lambda: bound.each(launches),
    }
    for name, way in ways.items():
        times = []
        for _ in range(TURNS):
            cupy.cuda.get_current_stream().synchronize()
            begin = time.process_time()
            way()
            times.append(1e6 * (time.process_time() - begin) / len(launches))
        microseconds = round(statistics.median(times[2:]), 2)  # the first two compile, and capture
        yield json.dumps(
            {"what": "launch", "way": name, "cpu_microseconds": microseconds, "arguments": len(args), "gpu": device}
        )
