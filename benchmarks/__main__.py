"""`python -m benchmarks`: the table of ratios, and further measurements as subcommands."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path

import click
from gpurnn.kernels import devices, dtypes
from gpurnn.kernels.recurrence import plan

from . import (
    checkpointing,
    compare,
    counts,
    device,
    distributed,
    end_to_end,
    gpu,
    launches,
    lyapunov,
    memory,
    nvrtc,
    sass,
    scan,
    transformer,
)
from .cases import (
    CELLS,
    FLASHRNN_SIZES,
    GATES,
    HASTE_SIZES,
    LONG_SIZES,
    MODES,
    QUICK_SIZES,
    SIZES,
    STEP,
    STEP_SIZES,
    AnyCase,
    Case,
    Size,
    Smoothing,
    Update,
)  # fmt: skip
from .compare import Disagreement
from .contenders import NotInstalled


class SizeType(click.ParamType):  # type: ignore[type-arg]  # not generic in click 8.1
    """T,B,I,H."""

    name = "T,B,I,H"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> Size:
        try:
            size = Size(*map(int, value.split(",")))
        except (TypeError, ValueError):
            self.fail(f"{value!r}, expected four whole numbers T,B,I,H", param, ctx)
        if min(size) < 1:
            self.fail(f"{value!r}, expected numbers of at least 1", param, ctx)
        return size


class ShapeType(click.ParamType):  # type: ignore[type-arg]
    """B,H."""

    name = "B,H"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        try:
            B, H = map(int, value.split(","))
        except (TypeError, ValueError):
            self.fail(f"{value!r}, expected two whole numbers B,H", param, ctx)
        if min(B, H) < 1:
            self.fail(f"{value!r}, expected numbers of at least 1", param, ctx)
        return B, H


threads_option = click.option("--threads", type=click.IntRange(min=1), default=compare.cpus(), show_default=True)
peer_python_option = click.option(
    "--peer-python", default=sys.executable, envvar="PEER_PYTHON", metavar="PATH",
    help="The Python that has PyTorch and ONNX Runtime, if it is not this one.  [env: PEER_PYTHON]",
)  # fmt: skip


raw_option = click.option(
    "--raw", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE.jsonl",
    help="Add the seconds of each turn to this file, a case a line.",
)  # fmt: skip


def _show(lines: Iterable[str]) -> None:
    """Print the command and then, as they come, the lines of its report."""
    click.echo(f"`{shlex.join(['python', '-m', 'benchmarks', *sys.argv[1:]])}`\n")
    try:
        for line in lines:
            click.echo(line)
    except (Disagreement, NotInstalled) as error:
        raise click.ClickException(str(error)) from error


@click.group(invoke_without_command=True, context_settings={"max_content_width": 100})
@click.option("--quick", is_flag=True, help="Four sizes and few repeats, for a first look.")
@click.option("--size", "sizes", type=SizeType(), multiple=True, help="Only this size; may be given several times.")
@click.option("--cell", "cells", type=click.Choice(list(CELLS)), multiple=True, help="Only this cell; likewise.")
@click.option("--repeats", type=click.IntRange(min=1), help="Turns of each contender.  [default: by time]")
@click.option("--gpu", "on_gpu", is_flag=True, help="The CUDA kernels instead: measured, or predicted without a GPU.")
@threads_option
@peer_python_option
@raw_option
@click.pass_context
def main(
    context: click.Context,
    quick: bool,
    sizes: tuple[Size, ...],
    cells: tuple[str, ...],
    repeats: int | None,
    on_gpu: bool,
    threads: int,
    peer_python: str,
    raw: Path | None,
) -> None:
    """Print gpurnn's time compared with that of others, in Markdown.

    The others are PyTorch and ONNX Runtime, where they are installed, and the multiply-adds of the products alone.
    Ratios are medians over the turns, with their quartiles; below 1 gpurnn is faster.
    """
    if context.invoked_subcommand is None:
        sizes = sizes or (QUICK_SIZES if quick else (*SIZES, *FLASHRNN_SIZES, *HASTE_SIZES) if on_gpu else SIZES)
        repeats = repeats or (3 if quick else None)
        if on_gpu:
            _show(gpu.report(tuple(cell for cell in cells if cell in GATES) or tuple(GATES), sizes))
            return
        cases = [Case(cell, size, mode) for cell in cells or CELLS for size in sizes for mode in MODES]
        _show(compare.run(cases, repeats=repeats, threads=threads, peer_python=peer_python, raw=raw))


def _comparison(name: str, cases: list[AnyCase], text: str) -> None:
    """Make a subcommand that compares gpurnn's time for some cases with that of other libraries."""

    @main.command(name, help=text)
    @click.option("--repeats", type=click.IntRange(min=1), help="Turns of each contender.  [default: by time]")
    @threads_option
    @peer_python_option
    @raw_option
    def compared(repeats: int | None, threads: int, peer_python: str, raw: Path | None) -> None:
        _show(compare.run(cases, repeats=repeats, threads=threads, peer_python=peer_python, raw=raw))


_comparison(
    "step", [Case(cell, size, STEP) for cell in GATES for size in STEP_SIZES],
    "Print the time of a single step of one sequence, compared with PyTorch's cells.",
)  # fmt: skip
_comparison(
    "long", [Case("lstm", size, mode) for size in LONG_SIZES for mode in MODES],
    "Print the time of an LSTM over 100,000 steps, compared with PyTorch and ONNX Runtime.",
)  # fmt: skip
_comparison(
    "update", [Update()],
    "Print the time of Adam's update of a language model, compared with PyTorch's and one pass over memory.",
)  # fmt: skip
_comparison(
    "kalman",
    [Smoothing()],
    "Print the time of the Kalman smoother of 10,000 steps, compared with statsmodels'.",
)


@main.command("end-to-end")
@click.option("--steps", type=click.IntRange(min=1), default=500, show_default=True)
@click.option("--repeats", type=click.IntRange(min=1), default=3, show_default=True, help="Runs of each.")
@threads_option
@peer_python_option
def end_to_end_command(steps: int, repeats: int, threads: int, peer_python: str) -> None:
    """Train a language model with `gpurnn train` and the same one in PyTorch; print loss and time of both."""
    _show(end_to_end.report(steps=steps, repeats=repeats, threads=threads, peer_python=peer_python))


@main.command("memory")
def memory_command() -> None:
    """Print the peak memory of truncated backpropagation through time."""
    _show(memory.report())


@main.command("checkpointing")
@threads_option
def checkpointing_command(threads: int) -> None:
    """Print the peak memory and the time of gradient checkpointing in time, up to 100,000 steps."""
    _show(checkpointing.report(threads=threads))


@main.command("distributed")
@click.option(
    "--processes", type=click.IntRange(min=1), multiple=True, default=distributed.PROCESSES, show_default=True,
    help="How many; may be given several times.",
)  # fmt: skip
@click.option("--turns", type=click.IntRange(min=1), default=distributed.TURNS, show_default=True, help="Runs of each.")
@click.option("--steps", type=click.IntRange(min=1), default=distributed.STEPS, show_default=True, help="Of a run.")
def distributed_command(processes: tuple[int, ...], turns: int, steps: int) -> None:
    """Print the time of training on several processes, with shards and without, and a model on paper of many GPUs."""
    _show(distributed.report(processes, turns, steps))


@main.command("scan")
def scan_command() -> None:
    """Print the time of the parallel scan of linear state-space models compared with a loop's, up to 100,000 steps."""
    _show(scan.report())


@main.command("transformer")
@click.option(
    "--length",
    "lengths",
    type=click.IntRange(2, transformer.POSITIONS),
    multiple=True,
    default=transformer.LENGTHS,
    help="T; may be given several times.  [default: 64, 128 ... 4096]",
)
@click.option(
    "--text-steps",
    type=click.IntRange(1, transformer.MOST_TEXT_STEPS),
    default=transformer.STEPS["text"],
    show_default=True,
)
@click.option("--adding-steps", type=click.IntRange(min=1), default=transformer.STEPS["adding"], show_default=True)
@click.option("--parameters", type=click.IntRange(min=1), default=transformer.PARAMETERS, show_default=True)
@click.option("--plot", type=click.Path(dir_okay=False, path_type=Path), help="Write a picture there, such as x.png.")
@threads_option
def transformer_command(
    lengths: tuple[int, ...], text_steps: int, adding_steps: int, parameters: int, plot: Path | None, threads: int
) -> None:
    """Print loss, time and memory of LSTM, GRU, linear SSM and self-attention at equal numbers of parameters."""
    steps = {"text": text_steps, "adding": adding_steps}
    _show(transformer.report(lengths, parameters=parameters, steps=steps, threads=threads, plot=plot))


@main.command("lyapunov")
def lyapunov_command() -> None:
    """Print Lyapunov exponents of random networks compared with those of mean-field theory."""
    _show(lyapunov.report())


@main.command("launch")
def launch_command() -> None:
    """Print the CPU time of a launch through CuPy, as JSON lines; without a GPU over a driver that does nothing."""
    try:
        for line in launches.report():
            click.echo(line)
    except NotInstalled as error:
        raise click.ClickException(str(error)) from error


@main.command("device")
@click.option("--section", "sections", type=click.Choice(list(device.SECTIONS)), multiple=True, help="Only this one.")
@click.option("--small", is_flag=True, help="A few small cases, which say nothing of time.")
@click.option("--seconds", type=click.FloatRange(min=1), default=device.SECONDS, show_default=True, help="For all.")
@click.option(
    "--raw", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE.jsonl", help="Add the lines to this file."
)
def device_command(sections: tuple[str, ...], small: bool, seconds: float, raw: Path | None) -> None:
    """Check the kernels on a GPU and measure them, in minutes, as JSON lines."""
    good = True
    try:
        for line in device.report(sections=sections, small=small, seconds=seconds):
            text = json.dumps(line)
            click.echo(text)
            if raw is not None:
                with raw.open("a") as file:
                    file.write(text + "\n")
            good &= device.is_good(line)
    except NotInstalled as error:
        raise click.ClickException(str(error)) from error
    if not good:
        raise click.ClickException("some lines have an error or do not agree")


@main.command("nvrtc")
@click.option(
    "--limits",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Compile all kernels for all architectures instead, and write the registers of each there: "
    "tests/kernel_limits.json.",
)
@click.option("--kernels", default="", metavar="REGEX", help="With --limits: leave those of other kernels as they are.")
def nvrtc_command(limits: Path | None, kernels: str) -> None:
    """Print how long NVRTC takes for the CUDA kernels."""
    if limits is None:
        _show(nvrtc.report())
    else:
        nvrtc.write_limits(limits, kernels)


@main.command("counts")
@click.option(
    "--cell", "cells", type=click.Choice(list(gpu.CELLS)), multiple=True, help="Only this cell; may be repeated."
)
@click.option("--shape", "shapes", type=ShapeType(), multiple=True, help="Only this shape; may be repeated.")
@click.option("--schedule", type=click.Choice(list(plan.EXCHANGE)), help="Instead of the one that is planned.")
@click.option("--dtype", type=click.Choice(list(dtypes.TABLE)), default="float32", show_default=True)
@click.option(
    "--device",
    "gpu_name",
    type=click.Choice(list(devices.DEVICES)),
    default=plan.HOST_DEVICE,
    show_default=True,
    help="The GPU that is planned for.",
)
@click.option("--options", is_flag=True, help="Instead, what each option of the cells adds.")
def counts_command(
    cells: tuple[str, ...],
    shapes: tuple[tuple[int, int], ...],
    schedule: str | None,
    dtype: str,
    gpu_name: str,
    options: bool,
) -> None:
    """Print what the recurrent kernels do in a step: instructions, bytes, bank conflicts. Counted on a CPU."""
    if options:
        chosen = cells or tuple(counts.OPTIONS), shapes or counts.OPTIONS_SHAPES
        _show(counts.report_options(*chosen, schedule, dtype, gpu_name))
    else:
        _show(counts.report(cells or ("lstm", "gru"), shapes or counts.SHAPES, schedule, dtype, gpu_name))


@main.command("sass")
@click.argument("kernels", default=r"Lstm<float>.*Exchange|scatter<Lstm<float>", metavar="REGEX")
def sass_command(kernels: str) -> None:
    """Print the main loops in the machine code of the kernels whose names match REGEX."""
    _show(sass.report(kernels))


if __name__ == "__main__":
    main(prog_name="python -m benchmarks")
