"""What the kernels of a recurrence do in a step, counted by running them on a CPU.

The counts build of the host executor (`gpurnn.kernels.host.counts`) counts the instructions of each warp, as the source
has them, and what they move. They are the same on every machine, and say nothing of time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import numpy as np
from gpurnn.kernels import dtypes, host
from gpurnn.kernels.recurrence import plan
from gpurnn.kernels.recurrence.run import Run, run_backward, run_forward

from gpurnn.cells import Cell

from .gpu import CELLS

SHAPES = ((16, 768), (64, 512), (1, 256), (32, 128))
"""B and H of those that are counted unless others are asked for."""

_STEPS = 3

_PASSES = {
    "forward": "forward", "operand_of_step": "forward", "finish_step": "forward",
    "backward": "backward", "begin_step_backward": "backward", "operand_of_step_backward": "backward",
}  # fmt: skip
"""The pass that a kernel belongs to."""

_ARITHMETIC = ("arithmetic", "divisions", "special_functions", "conversions")
_COLLECTIVES = ("shuffles", "votes", "syncwarps")
_GLOBAL_LOADS = ("load", "read_only_load", "published_load")
_GLOBAL_STORES = ("store", "published_store")


def of_steps(
    cell: Cell, T: int, B: int, H: int, *, schedule: str | None = None, dtype: str = "float32"
) -> list[host.Counts]:
    """The launches of a training step's recurrence over T steps, forward and then backward."""
    rng, type_ = np.random.default_rng(0), dtypes.TABLE[dtype]

    def array(*shape: int) -> np.ndarray:
        made = host.empty(shape, dtype)
        made[...] = rng.standard_normal(shape) / np.sqrt(H)
        return made

    rows = cell.gates * H
    state = tuple(np.zeros((1, B, H), type_.accumulator) for _ in range(cell.states))
    chosen = contextlib.nullcontext() if schedule is None else plan.schedule(schedule)
    with host.counts() as launches, chosen:
        run = Run.begin(cell, T, B, H, array(1, rows, H), training=True)
        run_forward(run, array(1, T * B, rows), (array(1, rows), array(1, rows)), state)
        run_backward(run, array(T, B, H), tuple(np.zeros_like(s) for s in state))
    return launches


def of_step(
    cell: Cell, B: int, H: int, *, schedule: str | None = None, dtype: str = "float32"
) -> dict[str, host.Counts]:
    """The counts of a step amid a sequence, by pass: what one step more adds.

    They are those of the kernels; the stepwise schedule's products are not among them.
    """
    shorter, longer = (by_pass(of_steps(cell, T, B, H, schedule=schedule, dtype=dtype)) for T in (_STEPS - 1, _STEPS))
    return {
        name: host.Counts(
            total.kernel, total.grid, total.block,
            {counter: values - shorter[name][counter] for counter, values in total.by_warp.items()},
        )
        for name, total in longer.items()
    }  # fmt: skip


def by_pass(launches: Sequence[host.Counts]) -> dict[str, host.Counts]:
    """The sums over the launches of the kernels of each pass' steps."""
    totals: dict[str, host.Counts] = {}
    for launch in launches:
        name = _PASSES.get(launch.kernel.split("<")[0])
        if name is None:
            continue
        before = totals.get(name)
        by_warp = {k: v + (before[k] if before else 0) for k, v in launch.by_warp.items()}
        totals[name] = host.Counts(launch.kernel, launch.grid, launch.block, by_warp)
    return totals


def report(names: Sequence[str], shapes: Sequence[tuple[int, int]], schedule: str | None, dtype: str) -> Iterator[str]:
    """A row for each cell, shape and pass."""
    yield (
        f"{dtype}, planned for an {plan.HOST_DEVICE}, counted on the host executor: nothing was measured. Of one step "
        "amid a sequence in training, in the block that executes the most: instructions of its warps as the source has "
        "them, without addresses, loops and branches; bytes and 32-byte sectors of global memory, in all blocks; "
        "multiply-adds of each warp."
    )
    yield ""
    columns = (
        "cell", "B, H", "pass", "grid", "instructions", "multiply-adds", "other arithmetic", "shuffles, votes",
        "barriers", "global loads, stores", "shared loads, stores", "wavefronts", "of them conflicts",
        "bytes read, written", "sectors read, written", "multiply-adds by warp",
    )  # fmt: skip
    yield f"| {' | '.join(columns)} |"
    yield "| --- | --- | --- |" + " --: |" * (len(columns) - 3)
    for name in names:
        for B, H in shapes:
            for pass_, counts in of_step(CELLS[name], B, H, schedule=schedule, dtype=dtype).items():
                yield _row(name, B, H, pass_, counts)


def _row(name: str, B: int, H: int, pass_: str, counts: host.Counts) -> str:
    block = int(counts.instructions.sum(axis=1).argmax())

    def own(*kinds: str) -> str:
        return f"{sum(int(counts[kind][block].sum()) for kind in kinds):,}"

    def all_blocks(kinds: Sequence[str], what: str) -> str:
        return f"{sum(int(counts[f'{kind}_{what}'].sum()) for kind in kinds):,}"

    cells = (
        name.upper(), f"{B}, {H}", pass_, " x ".join(map(str, counts.grid)), own(*host.INSTRUCTIONS),
        own("multiply_adds"), own(*_ARITHMETIC), own(*_COLLECTIVES), own("barriers"),
        f"{own(*(f'{kind}s' for kind in _GLOBAL_LOADS))}, {own(*(f'{kind}s' for kind in _GLOBAL_STORES))}",
        f"{own('shared_loads')}, {own('shared_stores')}", own("shared_load_wavefronts", "shared_store_wavefronts"),
        own("bank_conflicts"), f"{all_blocks(_GLOBAL_LOADS, 'bytes')}, {all_blocks(_GLOBAL_STORES, 'bytes')}",
        f"{all_blocks(_GLOBAL_LOADS, 'sectors')}, {all_blocks(_GLOBAL_STORES, 'sectors')}",
        " ".join(f"{n}" for n in counts["multiply_adds"][block]),
    )  # fmt: skip
    return f"| {' | '.join(cells)} |"
