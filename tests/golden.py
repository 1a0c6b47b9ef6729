"""The golden cases: random inputs and PyTorch's results for them in float64, gradients included.

``golden/NAME.json`` lists one record per case, ``golden/NAME.npz`` holds the arrays as ``case/array``.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(__file__).parent / "golden"


@functools.cache
def _arrays(name: str) -> dict[str, dict[str, np.ndarray]]:
    found: dict[str, dict[str, np.ndarray]] = {}
    with np.load(FOLDER / f"{name}.npz") as archive:
        for key in archive.files:
            case, _, array = key.partition("/")
            found.setdefault(case, {})[array] = archive[key]
    return found


@functools.cache
def records(name: str) -> list[dict[str, Any]]:
    """The records of every case of one file."""
    return json.loads((FOLDER / f"{name}.json").read_text())


def family(name: str, of: str) -> list[dict[str, Any]]:
    """The records in one file of the family ``of``."""
    return [record for record in records(name) if record["family"] == of]


def arrays(name: str, case: str, dtype: str = "float64") -> dict[str, np.ndarray]:
    """The arrays of one case by name, the floating ones cast to ``dtype``."""
    return {key: a.astype(dtype) if a.dtype.kind == "f" else a for key, a in _arrays(name)[case].items()}
