"""The libraries that an installation brings: whether they are there, and how they are made when it is built.

``python -m gpurnn.kernels.native.install`` makes them. ``setup.py`` runs it.
"""

from __future__ import annotations

import functools
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from gpurnn.cells import CELLS, IndRNN

from ..compiler import CompilerError
from . import (
    attention,
    build,
    dense,
    dropout,
    embedding,
    independent,
    linear_scan,
    losses,
    minimal,
    optim,
    processor,
    recurrence,
    threads,
)


def libraries() -> Iterator[build.Library]:
    """All libraries that this package can load."""
    for module in (threads, attention, dense, dropout, embedding, linear_scan, losses, minimal, optim):
        yield module.LIBRARY
    for cell in IndRNN.variants():
        for dtype in recurrence.C_NAMES:
            yield independent.library(cell, dtype)
    made = set()
    for cell in (variant for kind in CELLS.values() for variant in kind.variants()):
        for dtype in recurrence.C_NAMES:
            library = recurrence.library(cell, dtype)
            if library.name not in made:  # cells that differ only in their numbers share one
                made.add(library.name)
                yield library


def why_not() -> str:
    """Why the installation cannot compute with compiled libraries on this processor; empty if it can."""
    try:
        instructions = processor.chosen()
    except (CompilerError, ValueError) as error:
        return str(error)
    return _why_not(instructions, os.environ.get("GPURNN_NATIVE_BUILD", "plain"))


@functools.cache
def _why_not(instructions: str, _: str) -> str:
    missing = [library.name for library in libraries() if not library.shipped(instructions).exists()]
    if missing:
        there = sorted({path.name.rpartition("-")[0].rpartition("_")[2] for path in build.SHIPPED.glob("*.so")})
        found = "no compiled libraries"
        if instructions in there:
            found = f"no library of its sources for {missing[0]}, which have changed since it was built"
        elif there:
            found = f"libraries for {', '.join(there)} alone"
        return (
            f"this installation has {found}, and needs them for {instructions}; a wheel for this platform has them, "
            "and one that pip builds from source where there is a C++ compiler"
        )
    try:
        threads.library()
    except CompilerError as error:
        return str(error)
    return ""


def main(directory: Path, sets: list[str]) -> None:
    """Compile all libraries for some instruction sets into ``directory``, and remove other libraries there.

    Raises
    ------
    CompilerError
        There is no compiler, or it rejects a source.
    """
    directory.mkdir(parents=True, exist_ok=True)
    wanted = {
        directory / library.shipped(instructions).name: (library, instructions)
        for instructions in sets
        for library in libraries()
    }
    for path in directory.glob("*.so"):
        if path not in wanted:
            path.unlink()
    todo = [(path, *what) for path, what in wanted.items() if not path.exists()]
    start = time.monotonic()

    def make(path: Path, library: build.Library, instructions: str) -> None:
        part = path.with_suffix(".part")
        library.compile(instructions, part)
        os.replace(part, path)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for done in [pool.submit(make, *each) for each in todo]:
            done.result()
    print(f"{len(todo)} libraries for {', '.join(sets)}, in {time.monotonic() - start:.0f} seconds")


def sets_to_make() -> list[str]:
    """The widest instruction set of this processor, or those that ``$GPURNN_CPU`` names; "all" are the machine's."""
    named = os.environ.get("GPURNN_CPU")
    if named is None:
        return [processor.chosen()]
    of_machine = list(processor.MACHINES.get(processor.machine(), ()))
    return of_machine if named == "all" else [name for name in of_machine if name in named.split(",")]


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else build.SHIPPED, sets_to_make())
