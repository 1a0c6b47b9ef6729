"""`python -m benchmarks`: the table of ratios, and further measurements as subcommands."""

from __future__ import annotations

import shlex
import sys

import click

from . import compare
from .cases import GATES, QUICK_SIZES, SIZES, Size


class SizeType(click.ParamType):
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


peer_python = click.option(
    "--peer-python", default=sys.executable, envvar="PEER_PYTHON", metavar="PATH",
    help="The Python that has PyTorch and ONNX Runtime, if it is not this one.  [env: PEER_PYTHON]",
)  # fmt: skip


@click.group(invoke_without_command=True, context_settings={"max_content_width": 100})
@click.option("--quick", is_flag=True, help="Four sizes and few repeats, for a first look.")
@click.option("--size", "sizes", type=SizeType(), multiple=True, help="Only this size; may be given several times.")
@click.option("--cell", "cells", type=click.Choice(list(GATES)), multiple=True, help="Only this cell; likewise.")
@click.option("--repeats", type=click.IntRange(min=1), help="Turns of each contender, else as many as time allows.")
@click.option("--threads", type=click.IntRange(min=1), default=compare.cpus(), show_default=True)
@peer_python
@click.pass_context
def main(
    context: click.Context,
    quick: bool,
    sizes: tuple[Size, ...],
    cells: tuple[str, ...],
    repeats: int | None,
    threads: int,
    peer_python: str,
) -> None:
    """Print gpurnn's time beside that of PyTorch and ONNX Runtime, where they are installed, in Markdown.

    Ratios are medians over the turns, with their quartiles; below 1 gpurnn is faster.
    """
    if context.invoked_subcommand is not None:
        return
    sizes = sizes or (QUICK_SIZES if quick else SIZES)
    repeats = repeats or (3 if quick else None)
    click.echo(f"`{shlex.join(['python', '-m', 'benchmarks', *sys.argv[1:]])}`\n")
    try:
        for line in compare.run(
            cells or tuple(GATES), sizes, repeats=repeats, threads=threads, peer_python=peer_python
        ):
            click.echo(line)
    except compare.Disagreement as error:
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    main(prog_name="python -m benchmarks")
