"""``gpurnn info``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import click

from .. import __version__, _dispatch
from .terminal import tell, tell_json


@click.command(short_help="Show versions, and which devices can compute here.")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def info(as_json: bool) -> None:
    """Show versions, and which devices can compute here and why the others cannot.

    \b
    gpurnn info
    gpurnn info --json
    """
    import importlib.metadata
    import os
    import platform

    import numpy as np

    from .._dispatch import why_no_cuda
    from ..kernels.devices import launch_seconds
    from ..kernels.host import find_compiler

    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    packages = {"numpy": np.__version__}
    for package in ("array-api-compat", "safetensors", "tqdm", "click", "filelock", "platformdirs"):
        packages[package] = importlib.metadata.version(package)
    with suppress(importlib.metadata.PackageNotFoundError):
        packages["matplotlib"] = importlib.metadata.version("matplotlib")
    wing = _dispatch.numpy_wing()
    why_not = {"cpu": "", "reference": "", "cuda": "; ".join(why_no_cuda())}
    why_not |= {"native": "; ".join(why_no_native()), "host": "; ".join(why_no_host())}
    planned = 1e6 * launch_seconds()
    measured, why_unmeasured = _measured() if not why_not["cuda"] else (None, "there is no GPU")
    if as_json:
        report: dict[str, Any] = {
            "gpurnn": __version__, "python": platform.python_version(), "system": platform.system(),
            "machine": platform.machine(), "cpus": os.cpu_count(), "blas": f"{blas['name']} {blas['version']}",
            "packages": packages, "numpy_arrays": {"wing": wing, "reason": _dispatch.why_default()},
            "devices": {name: {"runs": not reason, "reason": reason or None} for name, reason in why_not.items()},
            "launch_microseconds": {"measured": measured, "planned": planned, "reason": why_unmeasured},
        }  # fmt: skip
        tell_json(report)
        return
    tell(f"gpurnn {__version__}")
    tell(f"Python {platform.python_version()} on {platform.system()} {platform.machine()}, {os.cpu_count()} CPUs")
    for package, version in packages.items():
        tell(f"{package} {version}" + (f" ({blas['name']} {blas['version']})" if package == "numpy" else ""))
    if "matplotlib" not in packages:
        tell("matplotlib is not installed: no pictures; pip install matplotlib")
    tell("\nDevices, as --device takes them")
    what = {
        "cpu": f"as {wing}, the default, because {_dispatch.why_default()}", "reference": "NumPy",
        "cuda": "fused CUDA kernels, by CuPy",
        "host": "the CUDA kernels on the CPU, slowly",
    }  # fmt: skip
    if not why_not["native"]:
        from ..kernels.native import install, processor, threads

        count = threads.available()
        reason = install.why_not()
        by = f", when it is first called, by {' '.join(find_compiler())}" if reason else ""
        what["native"] = f"compiled for {processor.chosen()}{by}, on at most {count} thread{'' if count == 1 else 's'}"
    if not why_not["host"]:
        what["host"] += f", compiled with {' '.join(find_compiler())}"
    for name, reason in why_not.items():
        tell(f"  {name:9} " + (f"cannot run here: {reason}" if reason else f"runs here: {what[name]}"))
    by = "GPURNN_LAUNCH_MICROSECONDS" if "GPURNN_LAUNCH_MICROSECONDS" in os.environ else "the default"
    tell("\nCPU time of a launch of a CUDA kernel, in microseconds")
    tell(f"  measured  {measured or f'no: {why_unmeasured}'}")
    tell(f"  planned   {planned:g}, {by}" + (f"; GPURNN_LAUNCH_MICROSECONDS={measured} sets it" if measured else ""))


def _measured() -> tuple[float | None, str | None]:
    """The CPU time of a launch in microseconds, or why it cannot be measured."""
    from ..kernels.recurrence import cost

    try:
        return round(1e6 * cost.launch_seconds(), 2), None
    except Exception as error:  # whatever is wrong with this GPU, the rest is still worth showing
        return None, f"{type(error).__name__}: {error}"


def why_no_native() -> Iterator[str]:
    """The reasons why the compiled CPU wing cannot run; none if it can."""
    from ..kernels.compiler import CompilerError, find_compiler
    from ..kernels.native import install, processor

    try:
        processor.chosen()
        if install.why_not():
            find_compiler()
    except (CompilerError, ValueError) as error:
        yield str(error)


def why_no_host() -> Iterator[str]:
    """The reasons why the CUDA kernels cannot be compiled for the CPU; none if they can."""
    from ..kernels.host import CompilerError, find_compiler

    try:
        find_compiler()
    except CompilerError as error:
        yield str(error)
