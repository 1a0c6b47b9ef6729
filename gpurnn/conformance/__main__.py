"""``python -m gpurnn.conformance TARGET``."""

from __future__ import annotations

import ast
import sys

import click

from .kernels import KINDS, find
from .report import joined
from .suite import run


def _form(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, object]:
    form: dict[str, object] = {}
    for value in values:
        name, equals, text = value.partition("=")
        if not equals:
            raise click.BadParameter(f"{value!r} is not OPTION=VALUE")
        try:
            form[name] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            form[name] = text
    return form


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("target")
@click.option("--cell", type=click.Choice(list(KINDS)), help="The cell of a function.")
@click.option("--library", default="numpy", show_default=True, help="The library of the arrays that a function takes.")
@click.option("--form", multiple=True, callback=_form, help="OPTION=VALUE that a function always has.")
@click.option("--format", "style", type=click.Choice(["text", "json", "junit"]), default="text", show_default=True)
@click.option("--output", type=click.Path(dir_okay=False, writable=True), help="A file, instead of the terminal.")
def main(target: str, cell: str | None, library: str, form: dict[str, object], style: str, output: str | None) -> None:
    """Check a kernel of a recurrent layer.

    TARGET is gpurnn, onnxruntime, a class such as torch.nn.LSTM or gpurnn.torch.GRU, or module:function. The exit
    status is 1 if a check failed.
    """
    sys.path.insert(0, "")
    try:
        kernels = find(target, cell, library, form)
    except (ValueError, TypeError, ImportError) as error:
        raise click.ClickException(str(error)) from error
    reports = [run(kernel) for kernel in kernels]
    text = joined(reports, style)
    if output is None:
        click.echo(text)
    else:
        with open(output, "w", encoding="utf-8") as file:
            file.write(text + "\n")
    sys.exit(not all(report.passed for report in reports))


if __name__ == "__main__":
    main(prog_name="python -m gpurnn.conformance")
