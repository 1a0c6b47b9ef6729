"""Repeats the tests that execute kernels in the builds that check every access: ``python tests/checked_builds.py``.

Arguments are passed to pytest, after the selection of the default tests. ``tests -m kernels`` adds the slow tests (more
combinations of options, each with its own compilation) and those marked as not repeated. The builds run side by side.
Two of them are builds of the compiled CPU wing, and run its own tests: "threads" tests the widest instruction set,
since threads work the same way in all of them; "sanitize" tests the other sets too, in float32.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from gpurnn.kernels import compiler, host
from gpurnn.kernels.native import processor

PYTEST = [sys.executable, "-m", "pytest", "-n0"]
KERNELS = [*PYTEST, "-m", "kernels and not slow and not unrepeated", *(sys.argv[1:] or ["tests"])]
NATIVE = [*PYTEST, "tests/test_native_recurrence.py", "tests/test_native_operations.py", "-m"]
IN_FLOAT32 = " and ".join(f"not ({name} and float64)" for name in processor.instruction_sets()[1:])

PYTEST_ENDS = (0, 1, 5)  # all passed, some failed, none was selected
NONE_SELECTED = PYTEST_ENDS[2]
SANITIZER_ENDS = 99


def run(command: list[str], variables: dict[str, str]) -> tuple[int, str]:
    """Return pytest's exit status and output, with AddressSanitizer's last report if it ended the process.

    The reports go to a file, because pytest captures a test's stderr and loses it with the process.
    """
    with tempfile.TemporaryDirectory() as directory:
        options = f"{variables.get('ASAN_OPTIONS', '')}:exitcode={SANITIZER_ENDS}:log_path={directory}/report"
        environment = os.environ | variables | {"ASAN_OPTIONS": options}
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        text, _ = process.communicate()
        if process.returncode not in PYTEST_ENDS:
            text += f"\nthe process ended with {process.returncode}\n"
            report = Path(directory, f"report.{process.pid}")
            if report.exists():
                text += report.read_text().rpartition("=" * 65)[2]
        return process.returncode, text


def thread_sanitizer() -> tuple[list[str], dict[str, str]]:
    """The command and the variables of a build that reports data races of the compiled CPU wing.

    A ThreadSanitizer library older than the kernel rejects randomised addresses. It also ends a forked child that
    starts threads, unless an option forbids that.
    """
    library = compiler.run((*compiler.find_compiler(), "-print-file-name=libtsan.so")).strip()
    fixed = ["setarch", "-R"] if shutil.which("setarch") else []
    options = f"{os.environ.get('TSAN_OPTIONS', '')}:die_after_fork=0"
    variables = {"LD_PRELOAD": os.path.realpath(library), "GPURNN_NATIVE_BUILD": "threads", "TSAN_OPTIONS": options}
    return [*fixed, *NATIVE, "not gpu and not slow"], variables


def main() -> int:
    """Run all builds. Return how many of them had failing tests."""
    sanitizer = host.sanitizer_environment()
    builds = {
        "conflicts": (KERNELS, {"GPURNN_HOST_BUILD": "conflicts"}),
        # The slowest build, in two processes.
        "sanitize": ([*KERNELS, "-k", "not float64"], sanitizer),
        "sanitize float64": ([*KERNELS, "-k", "float64"], sanitizer),
        "native sanitize": ([*NATIVE, "not gpu", "-k", IN_FLOAT32], {**sanitizer, "GPURNN_NATIVE_BUILD": "sanitize"}),
        "native threads": thread_sanitizer(),
    }
    failed = 0
    with ThreadPoolExecutor(len(builds)) as pool:
        for (build, (command, _)), (code, text) in zip(
            builds.items(), pool.map(lambda how: run(*how), builds.values()), strict=True
        ):
            print(f"+ {build}: {' '.join(command)}\n{text}", flush=True)
            failed += code != 0 and not (code == NONE_SELECTED and build.startswith("sanitize"))
    return failed


if __name__ == "__main__":
    sys.exit(main())
