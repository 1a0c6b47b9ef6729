"""gpurnn's own times, which pytest-benchmark keeps and compares with later ones: `pytest -n0 benchmarks`."""

from __future__ import annotations

from typing import Any

import pytest

from .cases import GATES, MODES, SIZES, Case, Size
from .compare import cpus
from .contenders import Gpurnn


@pytest.mark.parametrize("size", SIZES, ids=lambda size: "T{}-B{}-I{}-H{}".format(*size))
@pytest.mark.parametrize("cell", GATES)
@pytest.mark.parametrize("mode", MODES)
def test_recurrence(benchmark: Any, mode: str, cell: str, size: Size) -> None:
    benchmark.group = f"{cell} {mode}"
    benchmark(Gpurnn(cpus()).prepare(Case(cell, size, mode)))
