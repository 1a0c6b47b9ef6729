"""``gpurnn evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .options import PathType, computing_on, device_option, encoding_option
from .run import load_model
from .terminal import Refusal, tell, tell_json
from .texts import name_of, read


@click.command(short_help="State how well a language model predicts texts.")
@click.argument("directory", type=PathType(path_type=Path), metavar="DIR")
@click.argument("files", nargs=-1, required=True, type=PathType(allow_dash=True), metavar="FILE...")
@encoding_option
@click.option("--json", "as_json", is_flag=True, help="Print the results as JSON.")
@device_option
def evaluate(directory: Path, files: tuple[str, ...], encoding: str | None, as_json: bool, device: str) -> None:
    """State how well the model in DIR predicts each text FILE; a FILE - is what is piped in.

    In bits per character for a model of characters, as perplexity for one of words: the lower, the better. Every symbol
    is predicted from all those before it in its file.

    \b
    gpurnn evaluate my-model OTHER.txt
    gpurnn evaluate my-model chapters/*.txt --json
    """
    from ..training.trainer import METRICS as UNITS

    with computing_on(device) as xp:
        model = load_model(directory).to(xp)
        vocabulary = model.vocabulary
        words, convert = UNITS[vocabulary.metric]
        found: list[dict[str, Any]] = []
        for file in files:
            tokens = vocabulary.encode(read(file, encoding))
            if len(tokens) == 0:
                raise Refusal(f"{name_of(file)}: there are no {vocabulary.kind}s in it")
            found.append(
                {
                    "file": file,
                    "nats": -model.log_likelihood(tokens),
                    "symbols": len(tokens),
                    "unknown": int((tokens == 0).sum()),
                }
            )
    if len(found) > 1:
        found.append(
            {"file": "all", **{name: sum(one[name] for one in found) for name in ("nats", "symbols", "unknown")}}
        )
    for one in found:
        one[vocabulary.metric] = convert(one["nats"] / one["symbols"])
    if as_json:
        report: dict[str, Any] = {"model": str(directory), "symbol": vocabulary.kind, "metric": vocabulary.metric}
        report["files"] = found[: len(files)]
        tell_json(report | ({"all": found[-1]} if len(found) > 1 else {}))
        return
    width = max(len(name_of(one["file"])) for one in found)
    for one in found:
        note = f", {one['unknown']:,} of them not in the vocabulary" if one["unknown"] else ""
        start = f"{name_of(one['file']):{width}}  " if len(found) > 1 else ""
        tell(f"{start}{one[vocabulary.metric]:.4f} {words} ({one['symbols']:,} {vocabulary.kind}s{note})")
