"""How the kernels would run a recurrence, in numbers."""

from __future__ import annotations

from typing import Any

from array_api_compat import is_cupy_array

from gpurnn.cells import Cell

from .. import devices, dtypes
from . import plan
from .plan import FusedPlan
from .run import apart


def explain_recurrence(
    where: str, cell: Cell, T: int, B: int, H: int, D: int, dtype: str, x: Any, device: Any = None
) -> dict[str, Any]:
    """The plan for a layer of D directions, as the attributes of `gpurnn.explanation.Explanation` of one layer.

    It is a plan for ``device``, which is a name or a `devices.Device`. If it is None, for the device of the array x.
    """
    gpu = plan.device_of(x) if device is None else devices.lookup(device, where)
    problem = plan.Problem(cell, T, B, H, D, dtypes.TABLE[dtype])
    choice = plan.consider(problem, gpu)
    if device is None and is_cupy_array(x):
        choice = plan.consider(problem, gpu, apart(problem, choice.plans[choice.best][0]))
    chosen, prediction = choice.plans[choice.best]
    if isinstance(chosen, FusedPlan):
        launch = chosen.forward
        grid, block, shared_bytes = launch.grid, launch.block, launch.shared_bytes
        threads = launch.variant.most_threads(problem.dtype)
    else:
        grid, block, shared_bytes = (-(-D * B * H // plan.STEPWISE_THREADS), 1, 1), (plan.STEPWISE_THREADS,), 0
        threads = plan.STEPWISE_THREADS
    microseconds = {name: 1e6 * predicted.seconds for name, (_, predicted) in choice.plans.items()}
    passed_over = {
        name: choice.refusals.get(name) or f"predicted {microseconds[name]:.2f} microseconds a step"
        for name in plan.SCHEDULES
        if name != choice.best
    }
    registers = min(255, devices.REGISTERS // threads)
    return {
        "device": gpu.name,
        "schedule": choice.best,
        "grid": grid,
        "block": block,
        "shared_bytes": shared_bytes,
        "registers": registers,
        "occupancy": devices.occupancy(gpu, block[0], registers, shared_bytes),
        "launches": prediction.launches,
        "flops_per_step": problem.flops,
        "bytes_per_step": prediction.bytes_moved,
        "microseconds_per_step": microseconds,
        "bound_by": prediction.bound_by,
        "passed_over": passed_over,
    }
