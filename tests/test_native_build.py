"""Builds of the compiled wing: for other processors and systems than this one, and the quick build of the tests."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest
import test_native_operations as operations
import test_native_recurrence as recurrences
from gpurnn.kernels import native
from gpurnn.kernels.compiler import KERNELS
from gpurnn.kernels.native import build, install, recurrence, sums
from problems import ALL, draw
from tolerance import assert_same

from gpurnn.cells import GRU, LSTM

TARGETS = {"aarch64-linux-gnu": "neon", "aarch64-macos": "neon", "x86_64-windows-gnu": "avx2"}
OPTIMISED = "aarch64-linux-gnu"


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ziglang") is None, reason="ziglang, which compiles for them, is missing")
@pytest.mark.parametrize("target", TARGETS)
def test_every_source_compiles_without_a_warning(target, tmp_path):
    """One target is optimised. The others differ from it in declarations, not in code for the optimiser."""
    one_cell = recurrence.library(GRU(), "float32").name
    for library in (*install.libraries(), sums.library(LSTM(), "float32")):
        if "float" in library.name and library.name != one_cell and not library.name.startswith("sums"):
            continue
        unit = tmp_path / f"{library.name}.cpp"
        unit.write_text(library.source())
        compiler = (sys.executable, "-m", "ziglang", "c++", "-target", target)
        flags = (*build.FLAGS, *build.INSTRUCTION_SETS[TARGETS[target]], *library.options, f"-I{KERNELS}")
        quick = () if target == OPTIMISED else ("-O0",)
        command = (*compiler, *flags, *quick, "-Werror", "-c", str(unit), "-o", str(unit.with_suffix(".o")))
        compiled = subprocess.run(command, capture_output=True, text=True)
        assert (compiled.returncode, compiled.stderr) == (0, "")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_quick_build_of_the_tests_has_the_bits_of_the_plain_one(dtype, monkeypatch, tmp_path):
    results = []
    for name, shipped in (("quick", tmp_path), ("plain", build.SHIPPED)):
        monkeypatch.setenv("GPURNN_NATIVE_BUILD", name)
        monkeypatch.setattr(build, "SHIPPED", shipped)
        monkeypatch.setattr(build, "_loaded", {})
        cells = (recurrences.CELLS[cell] for cell in recurrences.KINDS if cell != "gru-sums")
        problems = (draw(cell, ALL, T=5, B=9, I=3, H=37, dtype=dtype) for cell in cells)
        layers = tuple(recurrences.run(native, problem) for problem in problems)
        others = tuple(f(native, dtype, *arguments) for f, *arguments, _ in operations.CLOSE.values())
        others += tuple(f(native, dtype, *arguments) for f, *arguments in operations.SAME.values())
        results.append((layers, others))
    assert_same(*results)
