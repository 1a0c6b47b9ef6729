"""``gpurnn generate``."""

from __future__ import annotations

from pathlib import Path

import click

from .options import PathType, computing_on, device_option, given, integer, number
from .run import load_model
from .terminal import warn, warnings_said


@click.command(short_help="Write a text with a language model.", context_settings={"show_default": True})
@click.argument("directory", type=PathType(path_type=Path), metavar="DIR")
@integer("--length", 1000, "Characters, words or tokens to write.", least=0)
@click.option("--prompt", default="", metavar="TEXT", help="The text to continue.")
@number("--temperature", 0.7, "Below 1 likely symbols become likelier, above 1 less likely; 0 takes the likeliest.")
@integer("--top-k", None, "Draw from the N likeliest symbols only.")
@number("--top-p", None, "Draw only from the likeliest symbols that add up to X.", max=1, min_open=True)
@integer("--seed", 0, "The same seed writes the same text.", least=0)
@device_option
@click.pass_context
def generate(
    context: click.Context,
    /,
    directory: Path,
    length: int,
    prompt: str,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    seed: int,
    device: str,
) -> None:
    """Write a text with the model in DIR, each character, word or token as soon as it is drawn.

    \b
    gpurnn generate my-model --prompt "It was" --length 500
    gpurnn generate my-model --temperature 1 --top-p 0.9 --seed 7
    """
    with computing_on(device) as xp:
        model = load_model(directory).to(xp)
        if temperature == 0 and given(context, "seed"):
            warn("--seed has no effect, as --temperature 0 takes the likeliest symbol")
        join = model.vocabulary.join
        with warnings_said():
            symbols = model.stream(length, prompt, temperature=temperature, top_k=top_k, top_p=top_p, rng=seed)
        click.echo(prompt, nl=False)
        before = list(model.vocabulary.split(prompt))[-1:]
        for symbol in symbols:
            # The text that a symbol adds depends on the one before it: a space between words, none at line ends.
            click.echo(join([*before, symbol]).removeprefix(join(before)), nl=False)
            before = [symbol]
        click.echo()
