"""Repeats the tests that execute kernels in the builds that check every access: ``python tests/checked_builds.py``.

What is given on the command line goes to pytest, after ``-m kernels``. The builds run side by side.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile

from gpurnn.kernels import host


def main() -> int:
    """The number of builds whose tests failed."""
    command = [sys.executable, "-m", "pytest", "-m", "kernels", *(sys.argv[1:] or ["tests"])]
    runs = []
    for build, variables in (
        ("conflicts", {"GPURNN_HOST_BUILD": "conflicts"}),
        ("sanitize", host.sanitizer_environment()),
    ):
        output = tempfile.TemporaryFile("w+")
        process = subprocess.Popen(command, env=os.environ | variables, stdout=output, stderr=subprocess.STDOUT)
        runs.append((build, process, output))
    failed = 0
    for build, process, output in runs:
        failed += process.wait() != 0
        output.seek(0)
        print(f"+ {build}: {' '.join(command)}\n{output.read()}", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
