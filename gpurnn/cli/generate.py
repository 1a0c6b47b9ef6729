"""``gpurnn generate``."""

from __future__ import annotations

from pathlib import Path

import click

from .options import PathType, integer, number
from .run import load_model


@click.command(context_settings={"show_default": True})
@click.argument("directory", type=PathType(path_type=Path), metavar="DIR")
@integer("--length", 1000, "Characters or words to write.", least=0)
@click.option("--prompt", default="", help="What the text goes on from.")
@number("--temperature", 0.7, "Below 1 likelier, above 1 wilder; 0 takes the likeliest.")
@integer("--top-k", None, "Draw from the N likeliest symbols only.")
@integer("--seed", 0, "The same seed writes the same text.", least=0)
def generate(directory: Path, length: int, prompt: str, temperature: float, top_k: int | None, seed: int) -> None:
    """Write a text with the model in DIR."""
    model = load_model(directory)
    text = model.sample(length, prompt, temperature=temperature, top_k=top_k, rng=seed)
    click.echo(model.vocabulary.join([prompt, text] if prompt else [text]))
