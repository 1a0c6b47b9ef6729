"""The compiled wing for processors and systems that this machine is not."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest
from gpurnn.kernels.native import build, recurrence

from gpurnn.cells import GRU

TARGETS = {"aarch64-linux-gnu": "neon", "aarch64-macos": "neon", "x86_64-windows-gnu": "avx2"}


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ziglang") is None, reason="ziglang, which compiles for them, is missing")
@pytest.mark.parametrize("target", TARGETS)
def test_every_source_compiles_without_a_warning(target, tmp_path):
    for name, source, options in (
        ("recurrence", recurrence.unit(GRU(), "float32"), build.INSTRUCTION_SETS[TARGETS[target]]),
        ("threads", '#include "native/threads.cpp"\n', ("-fexceptions",)),
    ):
        unit = tmp_path / f"{name}.cpp"
        unit.write_text(source)
        compiler = (sys.executable, "-m", "ziglang", "c++", "-target", target)
        command = (*compiler, *build.FLAGS, *options, "-Werror", "-c", str(unit), "-o", str(unit.with_suffix(".o")))
        compiled = subprocess.run(command, capture_output=True, text=True)
        assert (compiled.returncode, compiled.stderr) == (0, "")
