"""Repeats the tests that execute kernels in the builds that check every access: ``python tests/checked_builds.py``.

What is given on the command line goes to pytest, after ``-m kernels``. The builds run side by side.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from gpurnn.kernels import host

COMMAND = [sys.executable, "-m", "pytest", "-n0", "-m", "kernels", *(sys.argv[1:] or ["tests"])]


PYTEST_ENDS = (0, 1)  # all passed, some failed
SANITIZER_ENDS = 99


def run(variables: dict[str, str]) -> tuple[int, str]:
    """What pytest returned and printed; and AddressSanitizer's last report, where it ended the process.

    Its reports go to a file, for pytest keeps what a test writes to stderr and loses it with the process.
    """
    with tempfile.TemporaryDirectory() as directory:
        options = f"{variables.get('ASAN_OPTIONS', '')}:exitcode={SANITIZER_ENDS}:log_path={directory}/report"
        environment = os.environ | variables | {"ASAN_OPTIONS": options}
        process = subprocess.Popen(
            COMMAND, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        text, _ = process.communicate()
        if process.returncode not in PYTEST_ENDS:
            text += f"\nthe process ended with {process.returncode}\n"
            report = Path(directory, f"report.{process.pid}")
            if report.exists():
                text += report.read_text().rpartition("=" * 65)[2]
        return process.returncode, text


def main() -> int:
    """The number of builds whose tests failed."""
    builds = {"conflicts": {"GPURNN_HOST_BUILD": "conflicts"}, "sanitize": host.sanitizer_environment()}
    failed = 0
    with ThreadPoolExecutor(len(builds)) as pool:
        for build, (code, text) in zip(builds, pool.map(run, builds.values()), strict=True):
            print(f"+ {build}: {' '.join(COMMAND)}\n{text}", flush=True)
            failed += code != 0
    return failed


if __name__ == "__main__":
    sys.exit(main())
