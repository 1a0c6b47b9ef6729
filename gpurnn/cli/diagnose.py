"""``gpurnn diagnose``."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path

import click

from ..cells import CELLS
from .options import PathType, encoding_option, integer
from .run import METRICS, RUN, load_model, make_directory, read_metrics, run_folder, text_of
from .terminal import Refusal, as_json_text, refusing, tell, tell_json, warn
from .texts import name_of, read

FINDINGS = "findings.json"

_OURS = {"format": "gpurnn diagnosis"}
"""Marks a findings file: it and the pictures in its directory belong to a diagnosis."""


@click.command(short_help="Say what is good or bad in a language model.", context_settings={"show_default": True})
@click.argument("directory", type=PathType(path_type=Path), metavar="DIR")
@click.option(
    "--text", type=PathType(allow_dash=True), metavar="FILE", help="Text to run on.  [default: the training text]"
)
@encoding_option
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
@integer("--length", 64, "Characters, words or tokens of the text to run on.")
@integer("--starts", 8, "States from which to search for fixed points.")
def diagnose(directory: Path, text: str | None, encoding: str | None, as_json: bool, length: int, starts: int) -> None:
    """Say how the recurrent layers of the model in DIR behave, whether that is good or bad, and what to try.

    Has it learnt? Do gradients vanish or explode? Do small differences fade or grow? Does it come to rest? Which gates
    are saturated? Which units are dead? What does a step cost? The pictures and findings.json go to DIR/diagnosis.

    The norm of the gradient in training comes from metrics.jsonl. It covers all parameters, before clipping. For the
    norm of each layer, pass a gpurnn.analysis.GradientNorms to a Trainer.

    \b
    gpurnn diagnose my-model
    gpurnn diagnose my-model --text OTHER.txt --length 500
    """
    from .. import _files
    from ..analysis.report import diagnose as report

    model = load_model(directory)
    if model.recurrent.cell.elementwise:
        raise Refusal(
            f"{directory}: its cell is {model.cell!r}, expected one with a product with W_hh: {', '.join(CELLS)}"
        )
    if text is not None:
        source, contents = name_of(text), read(text, encoding)
    elif (directory / RUN).exists():
        source, contents = f"{directory}: its text", text_of(run_folder(directory), length + 1)
        if encoding is not None:
            warn("--encoding has no effect without --text: the training text is read as it was in training")
    else:
        raise Refusal(f"{directory}: does not say what the model was trained on ({RUN}); give a text with --text")
    tokens = model.vocabulary.encode(contents)[: length + 1]
    if len(tokens) < 2:
        raise Refusal(f"{source}: expected at least 2 {model.vocabulary.kind}s")
    history = read_metrics(directory / METRICS)
    pictures = directory / "diagnosis"
    _claim(pictures)
    with refusing(ImportError, ValueError):
        findings = report(model, tokens, pictures, history, starts, (lambda line: None) if as_json else tell)
    described = {"model": str(directory), "steps": len(tokens) - 1, "pictures": str(pictures)}
    found = {**described, "findings": [asdict(finding) for finding in findings]}
    _files.write_atomically(pictures / FINDINGS, as_json_text({**_OURS, **found}).encode())
    if as_json:
        tell_json(found)
    else:
        tell(f"\npictures      {pictures}")


def _claim(pictures: Path) -> None:
    """Make the directory of the pictures; reject one with files that no diagnosis wrote."""
    from .. import _files

    path = pictures / FINDINGS
    try:
        ours = json.loads(path.read_bytes()).get("format") == _OURS["format"]
    except (OSError, ValueError, AttributeError):
        ours = False
    if not ours and os.path.lexists(pictures) and (not pictures.is_dir() or any(pictures.iterdir())):
        raise Refusal(f"{pictures}: is there already, and no diagnosis made it; move it away")
    make_directory(pictures)
    if not ours:
        _files.write_atomically(path, as_json_text(_OURS).encode())
