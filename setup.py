"""Compile the libraries of the CPU wing into the wheel. Without a C++ compiler the wheel is pure Python.

``GPURNN_CPU=all`` compiles the libraries of every instruction set, for a wheel to be distributed; otherwise only those
of this processor are compiled. Everything else about packaging is in ``pyproject.toml``.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent


def make_libraries(directory: Path) -> None:
    """Make the libraries in ``directory``, using a copy of the package laid out as in an installation."""
    with tempfile.TemporaryDirectory() as temporary:
        package = Path(temporary) / "gpurnn"
        for source, target in {"gpurnn": "", "reference": "reference", "kernels": "kernels"}.items():
            shutil.copytree(ROOT / source, package / target, ignore=shutil.ignore_patterns("__pycache__", "libraries"))
        paths = os.pathsep.join(filter(None, [temporary, os.environ.get("PYTHONPATH")]))
        done = subprocess.run(
            [sys.executable, "-m", "gpurnn.kernels.native.install", str(directory)],
            cwd=temporary, env=os.environ | {"PYTHONPATH": paths}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
    if done.returncode:
        shutil.rmtree(directory, ignore_errors=True)
        print(f"{done.stdout}\nNothing was compiled; NumPy computes what the CPU wing would.", file=sys.stderr)
    else:
        print(done.stdout)


class BuildWithLibraries(build_py):
    def run(self) -> None:
        super().run()
        package = ROOT / "kernels" if self.editable_mode else Path(self.build_lib) / "gpurnn" / "kernels"
        make_libraries((package / "native" / "libraries").resolve())


class WheelOfPlatform(bdist_wheel):
    """A wheel for all versions of Python, since Python loads the libraries as plain C."""

    def run(self) -> None:
        self.run_command("build")
        build = self.get_finalized_command("build_py")
        libraries = Path(build.build_lib) / "gpurnn" / "kernels" / "native" / "libraries"
        self.root_is_pure = not any(libraries.glob("*.so"))
        self.distribution.has_ext_modules = lambda: not self.root_is_pure
        super().run()

    def get_tag(self) -> tuple[str, str, str]:
        return super().get_tag() if self.root_is_pure else ("py3", "none", super().get_tag()[2])


setup(cmdclass={"build_py": BuildWithLibraries, "bdist_wheel": WheelOfPlatform})
