"""``gpurnn diagnose``."""

from __future__ import annotations

from pathlib import Path

import click

from .options import PathType, integer
from .run import METRICS, RUN, load_model, make_directory, read_metrics, read_run, run_folder
from .terminal import Refusal, refusing, tell
from .texts import read_all


@click.command(context_settings={"show_default": True})
@click.argument("directory", type=PathType(path_type=Path), metavar="DIR")
@click.option("--text", type=PathType(), metavar="FILE", help="Text to run on.  [default: that of the training]")
@integer("--length", 64, "Characters or words of it.")
@integer("--starts", 8, "States from which fixed points are looked for.")
def diagnose(directory: Path, text: str | None, length: int, starts: int) -> None:
    """Say how the recurrent layers of the model in DIR behave, and draw it.

    Do gradients vanish or explode, are perturbations forgotten or amplified, what are the fixed points, which gates are
    saturated, which units are dead, what does a step cost. The pictures go to DIR/diagnosis.

    The norm of the gradient in training is that of all parameters, before clipping, as metrics.jsonl has it; for that
    of each layer give a gpurnn.analysis.GradientNorms to a Trainer.
    """
    from ..analysis.report import diagnose as report

    model = load_model(directory)
    if text is None:
        if not (directory / RUN).exists():
            raise Refusal(f"{directory}: does not say what the model was trained on ({RUN}); give a text with --text")
        files = read_run(run_folder(directory))["files"]
    else:
        files = [text]
    tokens = model.vocabulary.encode(read_all(files))[: length + 1]
    if len(tokens) < 2:
        raise Refusal(f"{' '.join(files)}: expected at least 2 {model.vocabulary.kind}s")
    history = read_metrics(directory / METRICS)
    pictures = directory / "diagnosis"
    make_directory(pictures)
    with refusing(ImportError, ValueError):
        report(model, tokens, pictures, history, starts, tell)
    tell(f"\npictures      {pictures}")
