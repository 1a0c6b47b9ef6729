"""``gpurnn train``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from .options import PathType
from .run import carry_out, check_new, held_run, new_run, run_folder
from .settings import with_training_options
from .terminal import Refusal
from .texts import to_be_read_again


@click.command(context_settings={"show_default": True})
@click.argument("files", nargs=-1, type=PathType(), metavar="FILE...")
@click.option("--out", required=True, type=PathType(path_type=Path), metavar="DIR", help="Where everything goes.")
@click.option("--resume", is_flag=True, help="Go on with the run in DIR; its files and options need not be repeated.")
@with_training_options
@click.pass_context
def train(context: click.Context, /, files: tuple[str, ...], out: Path, resume: bool, **options: Any) -> None:
    """Train a language model on text FILEs (UTF-8, read as one text, each from a new line on).

    DIR receives the model (model.safetensors), the loss as metrics.jsonl and loss.png, a sample.txt, and checkpoints:
    after a crash, or Ctrl-C, the same command with --resume goes on exactly where it stopped. The file run.json says
    that DIR belongs to this run. A DIR that holds any of these names already, and no run to resume, is rejected; other
    files in it are left alone.
    """
    paths = [to_be_read_again(file) for file in files]
    if options["validation"] is not None:
        options["validation"] = to_be_read_again(options["validation"])
    if resume:
        source = context.get_parameter_source
        given = {name: value for name, value in options.items() if source(name) is ParameterSource.COMMANDLINE}
        carry_out(held_run(out, paths, given))
    elif not paths:
        raise Refusal("no FILE given to train on")
    else:
        check_new(run_folder(out))
        carry_out(new_run(run_folder(out), paths, options))
