"""``gpurnn train``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .options import PathType, device_option, flag_of, given, processes_on
from .run import (
    carry_out,
    check_new,
    check_replaceable,
    held_run,
    names_of,
    new_run,
    options_of_model,
    origin_of,
    run_folder,
)
from .settings import OF_MODEL, with_training_options
from .terminal import Refusal, one_of_several, quiet_option, warn
from .texts import STDIN, to_be_read_again

if TYPE_CHECKING:
    from ..distributed import Communicator


@click.command(short_help="Train a language model on texts.", context_settings={"show_default": True})
@click.argument("files", nargs=-1, type=PathType(allow_dash=True), metavar="FILE...")
@click.option("--out", required=True, type=PathType(path_type=Path), metavar="DIR", help="Directory of the results.")
@click.option("--resume", is_flag=True, help="Resume the run in DIR; its files and options need not be repeated.")
@click.option("--replace", is_flag=True, help="Replace the run in DIR; files that no run wrote there stay.")
@click.option(
    "--from", "origin", type=PathType(path_type=Path), metavar="MODEL",
    help="Begin with the model in this directory or file instead of a new one.",
)  # fmt: skip
@with_training_options
@device_option
@quiet_option
@click.pass_context
def train(
    context: click.Context,
    /,
    files: tuple[str, ...],
    out: Path,
    resume: bool,
    replace: bool,
    origin: Path | None,
    device: str,
    **options: Any,
) -> None:
    """Train a language model on text FILEs; - reads standard input.

    Several FILEs become one text, in which each begins on a new line. One FILE may also hold the tokens of a text, from
    `gpurnn tokenize`; then a process reads only the part that it needs. DIR receives the model (model.safetensors), the
    loss as metrics.jsonl and loss.png, a sample.txt, and checkpoints. The file run.json says that DIR belongs to this
    run. A DIR that has files of these names but no run is rejected. Other files in it are left alone.

    \b
    gpurnn train BOOK.txt --out my-model
    gpurnn train --out my-model --resume                 after a crash or Ctrl-C, with the same result
    gpurnn train --out my-model --resume --steps 5000    train on, up to this step
    gpurnn train LETTERS.txt --out tuned --from my-model
    gpurnn train BOOK.txt --out parts --level bpe        train a tokenizer too, and keep it as tokenizer.json
    zcat *.gz | gpurnn train - --out my-model
    gpurnn train book.tokens --out my-model
    mpiexec -n 4 gpurnn train BOOK.txt --out my-model --shards 8
    """
    processes = processes_on(device)
    with one_of_several(processes):
        if processes.size > 1 and STDIN in (*files, options["validation"]):
            raise Refusal(f"{STDIN} is given, expected files, as only one of {processes.size} processes could read it")
        _train(context, files, out, resume, replace, origin, device, options, processes)


def _train(
    context: click.Context,
    files: tuple[str, ...],
    out: Path,
    resume: bool,
    replace: bool,
    origin: Path | None,
    device: str,
    options: dict[str, Any],
    processes: Communicator,
) -> None:
    paths = [file if file == STDIN else to_be_read_again(file) for file in files]
    if options["validation"] not in (None, STDIN):
        options["validation"] = to_be_read_again(options["validation"])
    if options["tokenizer"] is not None:
        if given(context, "level") and options["level"] != "bpe":
            raise Refusal(f"--tokenizer and --level {options['level']} are given, expected one of them")
        options |= {"tokenizer": to_be_read_again(options["tokenizer"]), "level": "bpe"}
    chosen = {name: value for name, value in options.items() if given(context, name)}
    if resume and replace:
        raise Refusal("--resume and --replace are given, expected one of them")
    if resume:
        carry_out(held_run(out, paths, chosen, origin), device, processes)
        return
    if not paths:
        raise Refusal("no FILE given to train on")
    _warn_of_what_has_no_effect(options, chosen)
    found = None
    if origin is not None:
        found, model = origin_of(origin)
        options = {**options, **_as_the_model_is(options_of_model(model), chosen)}
        if "dropout" not in chosen:
            options["dropout"] = model.dropout
    folder = run_folder(out, *names_of(paths, options))
    replaces = processes.broadcast(replace and folder.belongs_to_a_run())
    if not replaces:
        processes.first("gpurnn", lambda: check_new(folder))
    run = new_run(folder, paths, options, found)
    for name in chosen:
        if run.options[name] != options[name]:
            warn(f"{flag_of(name)} has no effect, as the tokens of {paths[0]} are numbered already")
    if replaces:
        check_replaceable(run)
        run.replaces = True
    carry_out(run, device, processes)


def _warn_of_what_has_no_effect(options: dict[str, Any], chosen: dict[str, Any]) -> None:
    """Say which of the chosen options have no effect because of another one."""
    for name, why in (
        ("epochs", "--steps is given" if options["steps"] is not None else ""),
        ("validation_fraction", "--validation is given" if options["validation"] is not None else ""),
        *((name, "--tokenizer is given" if options["tokenizer"] else "") for name in ("max_vocabulary", "min_count")),
        ("warmup", "--schedule constant has none" if options["schedule"] == "constant" else ""),
    ):
        if name in chosen and why:
            warn(f"{flag_of(name)} has no effect, as {why}")


def _as_the_model_is(held: dict[str, Any], chosen: dict[str, Any]) -> dict[str, Any]:
    """The options of a model to begin with; say which of the chosen ones differ and so have no effect."""
    for name in OF_MODEL:
        if name in chosen and chosen[name] != held[name]:
            warn(f"{flag_of(name)} has no effect, as the model of --from is as it is")
    return held
