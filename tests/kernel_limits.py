"""The registers that kernels may have. ``python tests/kernel_limits.py`` writes them anew, for a diff to be read."""

from __future__ import annotations

import json
from pathlib import Path

from gpurnn.kernels import nvrtc

FILE = Path(__file__).with_suffix(".json")
"""Registers of a thread of each kernel, the most of all architectures."""


def main() -> None:
    limits: dict[str, int] = {}
    for (name, _), resources in nvrtc.compile_all(nvrtc.ARCHITECTURES).items():
        limits[name] = max(limits.get(name, 0), resources["registers"])
    FILE.write_text(json.dumps(limits, indent=0, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
