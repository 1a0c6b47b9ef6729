"""The operations of a recurrence's kernels in a step, counted by running them on a CPU.

The counts build of the host executor (`gpurnn.kernels.host.counts`) counts the instructions of each warp, as in the
source, and the bytes that they move. The counts are the same on every machine, and say nothing about time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from gpurnn.kernels import devices, dtypes, host
from gpurnn.kernels.recurrence import plan
from gpurnn.kernels.recurrence.rows import RowRun, backward_rows, forward_rows
from gpurnn.kernels.recurrence.run import Run, run_backward, run_forward

from gpurnn.cells import GRU, LSTM, Cell, Vanilla

from .gpu import CELLS

SHAPES = ((16, 768), (64, 512), (1, 256), (32, 128))
"""The default B and H."""

OPTIONS_SHAPES = ((8, 32),)
"""The default for options: they add work to each unit of each row, whatever the shape."""

OPTIONS: dict[str, list[Cell]] = {
    "lstm": [
        LSTM(),
        LSTM(activation="relu"),
        LSTM(gate_activation="hard_sigmoid"),
        LSTM(output_activation="identity"),
        LSTM(clip=5.0),
        LSTM(cell_clip=5.0),
        LSTM(peephole=True),
        LSTM(coupled=True),
        LSTM(zoneout=(0.1, 0.1)),
        LSTM(zoneout=(0.1, 0.1), step_masks=("zoneout_h", "zoneout_c")),
        LSTM(candidate_dropout=0.1, step_masks=("dropout_g",)),
        LSTM(layer_norm=True),
        LSTM(proj_size=16),
    ],
    "gru": [
        GRU(reset_after=True, update="state"),
        GRU(reset_after=True, update="state", activation="relu"),
        GRU(reset_after=True, update="state", gate_activation="hard_sigmoid"),
        GRU(reset_after=True, update="state", clip=5.0),
        GRU(reset_after=True, update="state", zoneout=0.1),
        GRU(reset_after=True, update="state", zoneout=0.1, step_masks=("zoneout_h",)),
        GRU(reset_after=True, update="state", layer_norm=True),
    ],
    "rnn": [
        Vanilla(),
        Vanilla(activation="relu"),
        Vanilla(clip=5.0),
        Vanilla(zoneout=0.1),
        Vanilla(zoneout=0.1, step_masks=("zoneout_h",)),
        Vanilla(layer_norm=True),
    ],
}
"""Each cell, plain and with each of its options; with `Cell.step_masks` as in training."""

_STEPS, _LONG = 3, 100

_PASSES = {
    "forward": "forward", "operand_of_step": "forward", "finish_step": "forward",
    "backward": "backward", "begin_step_backward": "backward", "operand_of_step_backward": "backward",
    "backward_scatter": "backward",
    "forward_rows": "forward", "forward_phase": "forward", "backward_rows": "backward", "backward_phase": "backward",
}  # fmt: skip
"""The pass that a kernel belongs to; ``multiply`` belongs to the pass of the next launch."""

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

    rows, (width, *_) = cell.gates * H, cell.state_sizes(H)
    state = tuple(np.zeros((1, B, size), type_.accumulator) for size in cell.state_sizes(H))
    step_masks = array(len(cell.step_masks), 1, T, B, H) if cell.step_masks else None
    biases, dstate = (array(1, rows), array(1, rows)), tuple(np.zeros_like(s) for s in state)
    chosen = contextlib.nullcontext() if schedule is None else plan.schedule(schedule)
    with host.counts() as launches, chosen:
        if cell.sums_over_units:
            shapes = cell.shapes(input_size=1, hidden_size=H)
            weights = ({name: array(*shape) for name, shape in shapes.items()},)
            of_rows = RowRun.begin(cell, T, B, H, weights, None, None, None, step_masks, training=True)
            forward_rows(of_rows, array(1, T * B, rows), biases, state)
            backward_rows(of_rows, array(T, B, width), dstate)
        else:
            diagonal = [[array(H) for _ in cell.diagonal]]
            w = array(1, rows, H)
            run = Run.begin(cell, T, B, H, w, diagonal=diagonal, step_masks=step_masks, training=True)
            run_forward(run, array(1, T * B, rows), biases, state)
            run_backward(run, array(T, B, H), dstate)
    return launches


def of_step(
    cell: Cell, B: int, H: int, *, schedule: str | None = None, dtype: str = "float32", device: str = plan.HOST_DEVICE
) -> dict[str, host.Counts]:
    """The counts of a step amid a sequence, by pass: the difference that one more step makes.

    Only kernels count, not the products of the stepwise schedule. Without a schedule each pass has the one that is
    planned for a long sequence on the device.
    """
    if schedule is None:
        problem = plan.Problem(cell, _LONG, B, H, 1, dtypes.TABLE[dtype])
        passes = problem, replace(problem, backward=True)
        best = {of_pass.name: plan.consider(of_pass, devices.lookup(device)).best for of_pass in passes}
        return {name: of_step(cell, B, H, schedule=best[name], dtype=dtype, device=device)[name] for name in best}
    with plan.planned_for(device):
        shorter, longer = (
            by_pass(of_steps(cell, T, B, H, schedule=schedule, dtype=dtype)) for T in (_STEPS - 1, _STEPS)
        )
    return {
        name: host.Counts(
            total.kernel, total.grid, total.block,
            {counter: values - shorter[name][counter] for counter, values in total.by_warp.items()},
        )
        for name, total in longer.items()
    }  # fmt: skip


def by_pass(launches: Sequence[host.Counts]) -> dict[str, host.Counts]:
    """The sums over all launches of each pass's steps."""
    totals: dict[str, host.Counts] = {}
    for k, launch in enumerate(launches):
        kernel = launch.kernel.split("<")[0]
        name = _PASSES.get(launches[k + 1].kernel.split("<")[0] if kernel == "multiply" else kernel)
        if name is None:
            continue
        before = totals.get(name)
        by_warp = {k: v if before is None else _added(v, before[k]) for k, v in launch.by_warp.items()}
        totals[name] = host.Counts(launch.kernel, launch.grid, launch.block, by_warp)
    return totals


def _added(counts: np.ndarray, others: np.ndarray) -> np.ndarray:
    """The sum of the counts of two launches, by block; one may have fewer blocks."""
    most = max(len(counts), len(others))
    padded = [np.pad(part, ((0, most - len(part)), (0, 0))) for part in (counts, others)]
    return padded[0] + padded[1]


def report(
    names: Sequence[str], shapes: Sequence[tuple[int, int]], schedule: str | None, dtype: str, device: str
) -> Iterator[str]:
    """A row for each cell, shape and pass."""
    yield (
        f"{dtype}, planned for an {device}, counted on the host executor: nothing was measured. For one step "
        "amid a sequence in training, in the block that executes the most: instructions of its warps as in the source, "
        "without addresses, loops and branches; bytes and 32-byte sectors of global memory, in all blocks; "
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
            for pass_, counts in of_step(CELLS[name], B, H, schedule=schedule, dtype=dtype, device=device).items():
                yield _row(name, B, H, pass_, counts)


def report_options(
    names: Sequence[str], shapes: Sequence[tuple[int, int]], schedule: str | None, dtype: str, device: str
) -> Iterator[str]:
    """A row for each cell, shape and option: the work that the option adds to a step."""
    yield (
        f"{dtype}, planned for an {device}, counted on the host executor: nothing was measured. For one step "
        "amid a sequence in training, forward and backward: instructions of the warps of the block that executes the "
        "most, as in the source, without addresses, loops and branches, and bytes of global memory that all "
        "blocks read and write. In brackets, how many more they are than without the option."
    )
    yield ""
    columns = (
        "cell", "B, H", "option", "instructions, forward", "backward", "bytes read, forward", "backward",
        "bytes written, forward", "backward",
    )  # fmt: skip
    yield f"| {' | '.join(columns)} |"
    yield "| --- | --- | --- |" + " --: |" * (len(columns) - 3)
    for name in names:
        for B, H in shapes:
            plain: list[int] = []
            for cell in OPTIONS[name]:
                step = of_step(cell, B, H, schedule=schedule, dtype=dtype, device=device).values()
                work = [int(of_pass.instructions.sum(axis=1).max()) for of_pass in step]
                for kinds in (_GLOBAL_LOADS, _GLOBAL_STORES):
                    work += [sum(int(of_pass[f"{kind}_bytes"].sum()) for kind in kinds) for of_pass in step]
                plain = plain or work
                more = [f" ({n - usual:+,})" if n != usual else "" for n, usual in zip(work, plain, strict=True)]
                numbers = [f"{n:,}{added}" for n, added in zip(work, more, strict=True)]
                yield f"| {' | '.join([name.upper(), f'{B}, {H}', _option_of(cell, OPTIONS[name][0]), *numbers])} |"


def _option_of(cell: Cell, plain: Cell) -> str:
    """The options in which a cell differs from the plain one."""
    values = cell.values(name for name in cell.options() if getattr(cell, name) != getattr(plain, name))
    options = ", ".join(f"{name}={value!r}" for name, value in values.items())
    return f"`{options}`{', by masks' if cell.step_masks else ''}" if options else "none"


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
