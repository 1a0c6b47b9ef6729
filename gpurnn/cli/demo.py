"""``gpurnn demo``."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .options import PathType, computing_on, device_option
from .run import DEMO_TEXT, SAMPLE, Run, carry_out, check_new, held_run, load_model, new_run, remove_run, run_folder
from .settings import options_of
from .terminal import Refusal, quiet_option, refusing, say

if TYPE_CHECKING:
    from ..training.directory import RunDirectory

_DEMO = shlex.split("--cell gru --hidden 192 --batch 24 --window 48 --steps 1600 --lr 0.01 --warmup 20")

EXPECTED = "expected.png"
"""The picture of the characters that the model expects in a line that it was not trained on."""

_LINE = 66
"""The number of characters of the line that are drawn."""


@click.command(short_help="Train on the Python language reference, and let the model write.")
@click.option(
    "--out", default="gpurnn-demo", type=PathType(path_type=Path), metavar="DIR", show_default=True,
    help="Directory of the results; an earlier demo there is replaced.",
)  # fmt: skip
@click.option("--resume", is_flag=True, help="Resume a demo that was interrupted.")
@device_option
@quiet_option
def demo(out: Path, resume: bool, device: str) -> None:
    """Train on the Python language reference, in under two minutes on two cores, and let the model write.

    The text is the topics of help(), which come with Python. DIR receives it as python-reference.txt. The picture
    expected.png shows which characters the model expects in a line that it was not trained on. The other files are
    those of `gpurnn train`.

    \b
    gpurnn demo
    gpurnn generate gpurnn-demo --prompt "The statement"
    """
    from .. import _files

    if resume:
        run = held_run(out, [], {})
        carry_out(run, device)
        _show(run)
        return
    source = out / DEMO_TEXT
    folder = run_folder(out, DEMO_TEXT, EXPECTED, demo=True)
    _check_demo(folder)
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise Refusal("this Python came without its language reference, pydoc_data.topics; try gpurnn train") from error
    text = "\n\n".join(topics[name].strip() for name in sorted(topics)) + "\n"
    with computing_on(device):  # reject a device that cannot run before an earlier demo is deleted
        pass
    say(f"gpurnn train {shlex.join([str(source), '--out', str(out), *_DEMO])}")
    with refusing(ValueError, OSError), folder.locked(new=not _is_demo(folder)):
        if _is_demo(folder):
            remove_run(folder)
        folder.begin(anew=True)
        _files.write_atomically(source, text.encode())
        run = new_run(folder, [str(source.resolve())], options_of(_DEMO))
    carry_out(run, device)
    _show(run)


def _check_demo(folder: RunDirectory) -> None:
    """Reject a directory that is neither free for a demo nor holds an earlier demo."""
    if _is_demo(folder):
        return
    if folder.belongs_to_a_run():
        raise Refusal(f"{folder.path} already holds a run that is not a demo; choose another directory with --out")
    check_new(folder)


def _is_demo(folder: RunDirectory) -> bool:
    from ..training.directory import RunDirectoryError

    try:
        held = folder.read()
    except RunDirectoryError:
        return False
    return held is not None and held.get("demo") is True


def _show(run: Run) -> None:
    """Show the sample, and draw what the model expects in the first line of prose that it was not trained on."""
    out, text = run.folder.path, run.text
    assert isinstance(text, str)  # the demo has no token file
    say("\n" + (out / SAMPLE).read_text(encoding="utf-8")[:1000].rstrip() + "\n")
    held_out = text[round(len(text) * (1 - run.options["validation_fraction"])) :]
    prose = (line for line in held_out.splitlines()[1:] if line[:1].isalpha() and "  " not in line)
    line = next((line for line in prose if len(line) >= _LINE), held_out)[:_LINE]
    try:
        from ..plots import expectations

        expectations(load_model(out), line, out / EXPECTED)
        say(f"expected    {out / EXPECTED}: which characters it expects in a line that it was not trained on")
    except ImportError:
        say("expected    none: matplotlib is not installed; pip install matplotlib")
