"""``gpurnn evaluate``."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import click

from .options import PathType, computing_on, device_option, encoding_option
from .run import load_model
from .terminal import Refusal, tell, tell_json, warn
from .texts import name_of, read


@click.command(short_help="State how well a language model predicts texts.")
@click.argument("directory", type=PathType(path_type=Path), metavar="DIR")
@click.argument("files", nargs=-1, required=True, type=PathType(allow_dash=True), metavar="FILE...")
@encoding_option
@click.option("--json", "as_json", is_flag=True, help="Print the results as JSON.")
@device_option
def evaluate(directory: Path, files: tuple[str, ...], encoding: str | None, as_json: bool, device: str) -> None:
    """State how well the model in DIR predicts each text FILE; - reads standard input.

    The measure is bits per character for a model of characters, perplexity for a model of words, and bits per character
    and per byte of UTF-8 for a model of a tokenizer's tokens. Lower is better. The model predicts every symbol from all
    those before it in its file.

    \b
    gpurnn evaluate my-model OTHER.txt
    gpurnn evaluate my-model chapters/*.txt --json
    """
    import numpy as np

    from ..training.trainer import METRICS as UNITS

    with computing_on(device) as xp:
        model = load_model(directory).to(xp)
        vocabulary = model.vocabulary
        of_tokens = vocabulary.kind == "token"
        metric = "bits_per_character" if of_tokens else vocabulary.metric
        words, convert = UNITS[metric]
        found: list[dict[str, Any]] = []
        for file in files:
            text = read(file, encoding)
            tokens = vocabulary.encode(text)
            if len(tokens) == 0:
                raise Refusal(f"{name_of(file)}: there are no {vocabulary.kind}s in it")
            found.append(
                {
                    "file": file,
                    "nats": -model.log_likelihood(tokens),
                    "symbols": len(tokens),
                    "unknown": int(np.isin(tokens, vocabulary.unknown_tokens).sum()),
                    **({"characters": len(text), "bytes": len(text.encode())} if of_tokens else {}),
                }
            )
            if of_tokens and vocabulary.decode(tokens) != text:
                warn(f"{name_of(file)}: the tokenizer does not give it back, so these are the bits of another text")
    if len(found) > 1:
        counts = [name for name in found[0] if name != "file"]
        found.append({"file": "all", **{name: sum(one[name] for one in found) for name in counts}})
    for one in found:
        if of_tokens:  # perplexities of different tokens cannot be compared
            bits = one["nats"] / math.log(2.0)
            one |= {"bits_per_character": bits / one["characters"], "bits_per_byte": bits / one["bytes"]}
        else:
            one[metric] = convert(one["nats"] / one["symbols"])
    if as_json:
        report: dict[str, Any] = {"model": str(directory), "symbol": vocabulary.kind, "metric": metric}
        report["files"] = found[: len(files)]
        tell_json(report | ({"all": found[-1]} if len(found) > 1 else {}))
        return
    width = max(len(name_of(one["file"])) for one in found)
    for one in found:
        note = f", {one['unknown']:,} of them not in the vocabulary" if one["unknown"] else ""
        start = f"{name_of(one['file']):{width}}  " if len(found) > 1 else ""
        per_byte = f", {one['bits_per_byte']:.4f} per byte" if of_tokens else ""
        tell(f"{start}{one[metric]:.4f} {words}{per_byte} ({one['symbols']:,} {vocabulary.kind}s{note})")
