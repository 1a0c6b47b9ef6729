"""The host's cost of a launch, for the step-fused schedule, which has one launch per step."""

from __future__ import annotations

import statistics
import time
from typing import Any

import numpy as np

from gpurnn.cells import LSTM

from ..launch import Bound
from . import plan
from .run import Run

_TURNS = 9


def step_fused(xp: Any, T: int, B: int, H: int) -> tuple[Any, Bound, Any]:
    """The arguments of a launch of that schedule's kernel, the launch bound, and its changing arguments per step."""
    cell = LSTM()
    w = xp.zeros((1, cell.gates * H, H), np.float32)
    with plan.schedule("step-fused"):
        run = Run.begin(cell, T, B, H, w, training=False)
    assert isinstance(run.plan, plan.FusedPlan)
    launch, launches = run.plan.launch, run.plan.launches(T, 1)
    y, xw = (xp.zeros((1, T * B, gates * H), np.float32) for gates in (1, cell.gates))
    h, c = (xp.zeros((1, B, H), np.float32) for _ in range(2))
    arrays = w, xw, None, None, None, None, None, h, c, y, run.operands, run.saved, None
    args = (*arrays, *run.sizes, np.int32(run.slots), *launches[0], *launch.sizes, run.cell_value)
    call = (launch.grid, launch.block, args), {"shared_mem": launch.shared_bytes}
    return call, run.fused("forward", launch, *args), launches


def launch_seconds() -> float:
    """CPU time of a launch on CuPy's current device: the median of several series, each begun on an idle device."""
    import cupy

    _, bound, launches = step_fused(cupy, 200, 1, 8)
    times = []
    for _ in range(_TURNS):
        cupy.cuda.get_current_stream().synchronize()
        begin = time.process_time()
        for launch in launches:
            bound(*launch)
        times.append((time.process_time() - begin) / len(launches))
    return statistics.median(times[1:])  # the first one compiles
