"""``gpurnn demo``."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .options import PathType, computing_on, device_option
from .run import DEMO_TEXT, SAMPLE, carry_out, check_new, held_run, new_run, remove_run, run_folder
from .settings import options_of
from .terminal import Refusal, quiet_option, refusing, say

if TYPE_CHECKING:
    from ..training.directory import RunDirectory

_DEMO = shlex.split("--cell gru --hidden 192 --batch 24 --window 48 --steps 1600 --lr 0.01 --warmup 20")


@click.command(short_help="Train on the Python language reference, and let the model write.")
@click.option(
    "--out", default="gpurnn-demo", type=PathType(path_type=Path), metavar="DIR", show_default=True,
    help="Where everything goes; what an earlier demo left there is replaced.",
)  # fmt: skip
@click.option("--resume", is_flag=True, help="Resume a demo that was interrupted.")
@device_option
@quiet_option
def demo(out: Path, resume: bool, device: str) -> None:
    """Train on the Python language reference, in under two minutes on two cores, and let the model write.

    The text is that of the help() topics, which comes with Python. DIR receives it as python-reference.txt; the rest is
    what `gpurnn train` does with it.

    \b
    gpurnn demo
    gpurnn generate gpurnn-demo --prompt "The statement"
    """
    from .. import _files

    if resume:
        carry_out(held_run(out, [], {}), device)
        _show_sample(out)
        return
    source = out / DEMO_TEXT
    folder = run_folder(out, DEMO_TEXT, demo=True)
    _check_demo(folder)
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise Refusal("this Python came without its language reference, pydoc_data.topics; try gpurnn train") from error
    text = "\n\n".join(topics[name].strip() for name in sorted(topics)) + "\n"
    with computing_on(device):  # what cannot compute is rejected before an earlier demo is deleted
        pass
    say(f"gpurnn train {shlex.join([str(source), '--out', str(out), *_DEMO])}")
    with refusing(ValueError, OSError), folder.locked(new=not _is_demo(folder)):
        if _is_demo(folder):
            remove_run(folder)
        folder.begin(anew=True)
        _files.write_atomically(source, text.encode())
        run = new_run(folder, [str(source.resolve())], options_of(_DEMO))
    carry_out(run, device)
    _show_sample(out)


def _check_demo(folder: RunDirectory) -> None:
    """Reject a directory that is neither free for a demo nor an earlier demo's."""
    if _is_demo(folder):
        return
    if folder.belongs_to_a_run():
        raise Refusal(f"{folder.path} already holds a run that is no demo; choose another directory with --out")
    check_new(folder)


def _is_demo(folder: RunDirectory) -> bool:
    from ..training.directory import RunDirectoryError

    try:
        held = folder.read()
    except RunDirectoryError:
        return False
    return held is not None and held.get("demo") is True


def _show_sample(out: Path) -> None:
    say("\n" + (out / SAMPLE).read_text(encoding="utf-8")[:1000].rstrip())
