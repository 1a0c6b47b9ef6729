"""``gpurnn evaluate``."""

from __future__ import annotations

from pathlib import Path

import click

from .options import PathType
from .run import load_model
from .terminal import Refusal, tell
from .texts import read


@click.command()
@click.argument("directory", type=PathType(path_type=Path), metavar="DIR")
@click.argument("file", type=PathType(), metavar="FILE")
def evaluate(directory: Path, file: str) -> None:
    """State how well the model in DIR predicts the text FILE.

    In bits per character for a model of characters, as perplexity for one of words; every symbol is predicted from all
    those before it.
    """
    from ..training.trainer import METRICS as UNITS

    model = load_model(directory)
    vocabulary = model.vocabulary
    tokens = vocabulary.encode(read(file))
    if len(tokens) == 0:
        raise Refusal(f"{file}: there are no {vocabulary.kind}s in it")
    words, convert = UNITS[vocabulary.metric]
    value = convert(-model.log_likelihood(tokens) / len(tokens))
    unknown = int((tokens == 0).sum())
    note = f", {unknown:,} of them not in the vocabulary" if unknown else ""
    tell(f"{value:.4f} {words} ({len(tokens):,} {vocabulary.kind}s{note})")
