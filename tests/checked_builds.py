"""Repeats the tests that execute kernels in the builds that check every access: ``python tests/checked_builds.py``.

What is given on the command line goes to pytest, after ``-m kernels``. The builds run side by side.
"""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

from gpurnn.kernels import host

COMMAND = [sys.executable, "-m", "pytest", "-m", "kernels", *(sys.argv[1:] or ["tests"])]


def run(variables: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        COMMAND, env=os.environ | variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def main() -> int:
    """The number of builds whose tests failed."""
    builds = {"conflicts": {"GPURNN_HOST_BUILD": "conflicts"}, "sanitize": host.sanitizer_environment()}
    failed = 0
    with ThreadPoolExecutor(len(builds)) as pool:
        for build, done in zip(builds, pool.map(run, builds.values()), strict=True):
            print(f"+ {build}: {' '.join(COMMAND)}\n{done.stdout}", flush=True)
            failed += done.returncode != 0
    return failed


if __name__ == "__main__":
    sys.exit(main())
