"""``gpurnn info``."""

from __future__ import annotations

from collections.abc import Iterator

import click

from .. import __version__
from .terminal import tell


@click.command()
def info() -> None:
    """Show versions, and which backends can run here and why the others cannot."""
    import importlib.metadata
    import os
    import platform

    import numpy as np

    tell(f"gpurnn {__version__}")
    tell(f"Python {platform.python_version()} on {platform.system()} {platform.machine()}, {os.cpu_count()} CPUs")
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    tell(f"numpy {np.__version__} ({blas['name']} {blas['version']})")
    for package in ("array-api-compat", "safetensors", "tqdm", "click", "filelock", "platformdirs"):
        tell(f"{package} {importlib.metadata.version(package)}")
    try:
        tell(f"matplotlib {importlib.metadata.version('matplotlib')}")
    except importlib.metadata.PackageNotFoundError:
        tell("matplotlib is not installed: no loss curves; pip install 'gpurnn[plot]'")
    tell("\nBackends")
    tell("  numpy  runs here")
    reasons = list(_why_no_cuda())
    tell("  cuda   " + ("cannot run here: " + "; ".join(reasons) if reasons else "runs here"))
    from ..kernels.host import CompilerError, find_compiler

    try:
        tell(f"  host   runs here: gpurnn.use('host') compiles the CUDA kernels with {' '.join(find_compiler())}")
    except CompilerError as error:
        tell(f"  host   cannot run here: {error}")


def _why_no_cuda() -> Iterator[str]:
    """What keeps CuPy arrays from being computed with; nothing if nothing does."""
    try:
        import cupy
    except ImportError as error:
        reason = str(error).strip().partition("\n")[0]
        yield f"CuPy cannot be imported ({reason}); pip install 'gpurnn[cuda12]'"
        return
    try:
        devices = cupy.cuda.runtime.getDeviceCount()
    except RuntimeError as error:
        yield f"CuPy {cupy.__version__} finds no CUDA device ({error})"
        return
    if devices == 0:
        yield f"CuPy {cupy.__version__} finds no CUDA device"
