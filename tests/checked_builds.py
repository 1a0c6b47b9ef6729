"""Repeats the tests that execute kernels in the builds that check every access: ``python tests/checked_builds.py``.

What is given on the command line goes to pytest, after ``-m kernels``.
"""

from __future__ import annotations

import os
import subprocess
import sys

from gpurnn.kernels import host


def main() -> int:
    """The number of builds whose tests failed."""
    failed = 0
    for build, variables in (
        ("conflicts", {"GPURNN_HOST_BUILD": "conflicts"}),
        ("sanitize", host.sanitizer_environment()),
    ):
        command = [sys.executable, "-m", "pytest", "-m", "kernels", *(sys.argv[1:] or ["tests"])]
        print(f"+ {build}: {' '.join(command)}", flush=True)
        failed += subprocess.run(command, env=os.environ | variables).returncode != 0
    return failed


if __name__ == "__main__":
    sys.exit(main())
