"""How the kernels would run a recurrence, in numbers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from array_api_compat import is_cupy_array

from gpurnn.cells import Cell, IndRNN

from .. import devices, dtypes, linear_scan
from . import independent, plan, predict, predict_rows, stack
from .layer import recurrence_chunk
from .plan import FusedPlan, Problem
from .run import apart


def explain_recurrence(
    where: str, cell: Cell, T: int, B: int, H: int, D: int, layers: int, dtype: str, x: Any, device: Any = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The plans of both passes of a layer of D directions, as attributes of `gpurnn.explanation.Explanation`.

    The layer is one of a stack of ``layers``. The plans are for ``device``, a name or a `devices.Device`. None means
    the device of the array x.
    """
    gpu = plan.device_of(x) if device is None else devices.lookup(device, where)
    forward = Problem(cell, T, B, H, D, dtypes.TABLE[dtype])
    backward = replace(forward, backward=True)
    if cell.elementwise:
        return _of_elementwise(forward, gpu), _of_elementwise(backward, gpu)
    is_here = device is None and is_cupy_array(x)
    at_once, back_at_once = stack.decide(forward, layers, gpu) or (None, None)
    return _of_stack(forward, gpu, is_here, at_once), _of_stack(backward, gpu, is_here, back_at_once)


def _of_stack(problem: Problem, gpu: devices.Device, is_here: bool, at_once: stack.Decision | None) -> dict[str, Any]:
    """The attributes of a pass on a device, which layers share if some run at once."""
    share = gpu if at_once is None else plan.share_of(gpu, at_once.layers)
    assert share is not None
    if at_once is None:
        return _of_kernels(problem, share, is_here)
    chunks = -(-problem.T // at_once.chunk)
    found = _of_kernels(replace(problem, T=plan.LONG), share, is_here)
    return found | {
        "launches": found["launches"] * chunks,
        "layers_at_once": at_once.layers,
        "chunk": at_once.chunk,
        "microseconds_in_chunks": 1e6 * at_once.seconds,
        "microseconds_one_by_one": 1e6 * at_once.one_by_one,
    }


def _of_kernels(problem: Problem, gpu: devices.Device, is_here: bool) -> dict[str, Any]:
    """The attributes of a pass on a device. If the device ``is_here``, it is asked how many blocks it runs at once."""
    choice, reasons = plan.consider(problem, gpu), dict[str, str]()
    while is_here and (why := apart(problem, choice.plans[choice.best][0])):
        reasons[choice.best] = why
        choice = plan.consider(problem, gpu, reasons)
    chosen, prediction = choice.plans[choice.best]
    if isinstance(chosen, FusedPlan):
        launch = chosen.launch
        grid, block, shared_bytes = launch.grid, launch.block, launch.shared_bytes
        bytes_moved = predict.kernel_bytes(problem, launch)
    else:
        grid, block, shared_bytes = (-(-problem.units // plan.STEPWISE_THREADS), 1, 1), (plan.STEPWISE_THREADS,), 0
        if problem.cell.sums_over_units:
            grid = (-(-problem.B // predict_rows.rows_at_once(problem.H)), 1, problem.D)
        bytes_moved = predict.kernel_bytes(problem, None) + predict.library_bytes(problem)
    microseconds = {name: 1e6 * predicted.seconds for name, (_, predicted) in choice.plans.items()}
    passed_over = {
        name: choice.refusals.get(name) or f"predicted {microseconds[name]:.2f} microseconds a step"
        for name in plan.SCHEDULES
        if name != choice.best
    }
    registers = min(255, devices.REGISTERS // block[0])
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
        "bytes_per_step": bytes_moved,
        "microseconds_per_step": microseconds,
        "bound_by": prediction.bound_by,
        "passed_over": passed_over,
        "options": _options(problem, gpu, choice),
    }


def _options(problem: Problem, gpu: devices.Device, choice: plan.Choice) -> dict[str, str]:
    """The cost of each option that sums over units: the cost of a step with it and without it."""
    costs = {}
    for option in ("layer_norm", "proj_size"):
        if getattr(problem.cell, option, 0):
            plain: Any = {option: getattr(type(problem.cell)(), option)}
            without = plan.consider(replace(problem, cell=replace(problem.cell, **plain)), gpu)
            costs[option] = f"{_exchanges(choice)}; without it {_exchanges(without)}"
    return costs


def _exchanges(choice: plan.Choice) -> str:
    count = choice.problem.exchanges(plan.EXCHANGE.get(choice.best, "launch"))
    microseconds = 1e6 * choice.plans[choice.best][1].seconds
    return f"{count} exchange{'s' * (count > 1)} and {microseconds:.2f} microseconds a step"


_OPERATIONS_OF_A_GATE = 10
"""Roughly the array operations of a gate's value for all steps: each is a launch that reads two arrays, writes one."""


def _of_elementwise(problem: Problem, gpu: devices.Device) -> dict[str, Any]:
    """The attributes of a pass of a cell whose units do not read each other, in chunks of `recurrence_chunk` steps."""
    cell, steps, columns = problem.cell, min(problem.T, recurrence_chunk(problem.B)), problem.B * problem.H
    if isinstance(cell, IndRNN):
        schedule, grid, block = "independent", (-(-columns // independent.BLOCK),), (independent.BLOCK,)
        # Forward reads a and writes h; backward reads dh, h and the values that the cell kept, and writes da.
        launches, arrays, flops = 1, 4 if problem.backward else 2, 2 + cell.operations[problem.backward]
    else:
        schedule, operations = "scan", _OPERATIONS_OF_A_GATE * cell.gates
        grid, block, scans = linear_scan.launches(steps, columns, problem.dtype)
        # The scan writes h and reads a and b, once more for the maps of several chunks.
        launches, arrays, flops = scans + operations, (3 if scans == 1 else 5) + 3 * operations, 2 + operations
    moved, flops = problem.D * columns * problem.dtype.itemsize * arrays, flops * problem.D * columns
    launches *= problem.D * -(-problem.T // steps)
    terms = {
        "exchange": launches * predict.LAUNCH / problem.T,
        "bytes": moved / gpu.bandwidth,
        "arithmetic": flops / gpu.peak_flops(problem.dtype.accumulator),
    }
    registers = min(255, devices.REGISTERS // block[0])
    reason = "no unit reads the state of another one, so a step has no product"
    return {
        "device": gpu.name,
        "schedule": schedule,
        "grid": grid,
        "block": block,
        "shared_bytes": 0,
        "registers": registers,
        "occupancy": devices.occupancy(gpu, block[0], registers, 0),
        "launches": launches,
        "flops_per_step": flops,
        "bytes_per_step": moved,
        "microseconds_per_step": {schedule: 1e6 * (terms["exchange"] + max(terms["bytes"], terms["arithmetic"]))},
        "bound_by": max(terms, key=lambda term: terms[term]),
        "passed_over": dict.fromkeys(plan.SCHEDULES, reason),
        "options": {},
    }
