"""``gpurnn diagnose``."""

from __future__ import annotations

from pathlib import Path

import click

from .options import PathType, encoding_option, integer
from .run import METRICS, RUN, load_model, make_directory, read_metrics, run_folder, text_of
from .terminal import Refusal, refusing, tell, warn
from .texts import name_of, read


@click.command(context_settings={"show_default": True})
@click.argument("directory", type=PathType(path_type=Path), metavar="DIR")
@click.option(
    "--text", type=PathType(allow_dash=True), metavar="FILE", help="Text to run on.  [default: that of the training]"
)
@encoding_option
@integer("--length", 64, "Characters or words of it.")
@integer("--starts", 8, "States from which fixed points are looked for.")
def diagnose(directory: Path, text: str | None, encoding: str | None, length: int, starts: int) -> None:
    """Say how the recurrent layers of the model in DIR behave, and draw it.

    Do gradients vanish or explode, are perturbations forgotten or amplified, what are the fixed points, which gates are
    saturated, which units are dead, what does a step cost. The pictures go to DIR/diagnosis.

    The norm of the gradient in training is that of all parameters, before clipping, as metrics.jsonl has it; for that
    of each layer give a gpurnn.analysis.GradientNorms to a Trainer.
    """
    from ..analysis.report import diagnose as report

    model = load_model(directory)
    if text is not None:
        source, contents = name_of(text), read(text, encoding)
    elif (directory / RUN).exists():
        source, contents = f"{directory}: its text", text_of(run_folder(directory))
        if encoding is not None:
            warn("--encoding has no effect without --text: the text of the training is read as it was then")
    else:
        raise Refusal(f"{directory}: does not say what the model was trained on ({RUN}); give a text with --text")
    tokens = model.vocabulary.encode(contents)[: length + 1]
    if len(tokens) < 2:
        raise Refusal(f"{source}: expected at least 2 {model.vocabulary.kind}s")
    history = read_metrics(directory / METRICS)
    pictures = directory / "diagnosis"
    make_directory(pictures)
    with refusing(ImportError, ValueError):
        report(model, tokens, pictures, history, starts, tell)
    tell(f"\npictures      {pictures}")
