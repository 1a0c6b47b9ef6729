"""The source distribution and the wheel: their contents, and training with the wheel where only it and its dependencies
are installed.

Without a network they fail rather than skip: pip has to fetch the build backend and the dependencies.
"""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from gpurnn.kernels.native import build

ROOT = Path(__file__).parent.parent
FOLDERS = {"gpurnn": "gpurnn", "reference": "gpurnn/reference", "kernels": "gpurnn/kernels"}
"""The folders of the source, and where they are in the wheel."""


def run(*command, variables=None, **options):
    """Run a command outside the source tree; if it fails, the error message is its output."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "GPURNN"))}
    environment |= variables or {}
    done = subprocess.run(
        list(map(str, command)), env=environment, text=True, encoding="utf-8",
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options,
    )  # fmt: skip
    assert done.returncode == 0, f"{command}\n{done.stdout}"
    return done.stdout


def not_source(directory, names):
    """The names in a directory of the working tree that a fresh clone would not have."""
    made = {"build", "dist", "__pycache__", "libraries", "_build", "generated"}
    return [
        name
        for name in names
        if name in made
        or name.startswith(".")
        or name.endswith(".egg-info")
        or os.path.exists(os.path.join(directory, name, "pyvenv.cfg"))
    ]


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A copy of the source, so that a build leaves nothing in the tree."""
    tree = tmp_path_factory.mktemp("wheel") / "tree"
    shutil.copytree(ROOT, tree, ignore=not_source)
    return tree


@pytest.fixture(scope="module")
def no_compiler(tmp_path_factory):
    """The variables of an environment in which no program is found."""
    return {"PATH": str(tmp_path_factory.mktemp("empty")), "CXX": ""}


def build_wheel(tree, name, variables):
    directory = tree.parent / name
    command = (sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", directory, tree)
    run(*command, cwd=tree.parent, variables=variables)
    (built,) = directory.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def wheel(tree, no_compiler):
    """The wheel built on a machine without a C++ compiler."""
    return build_wheel(tree, "pure", no_compiler)


ONE_LIBRARY = "gpurnn/kernels/native/libraries/threads_"


@pytest.fixture(scope="module")
def platform_wheel(tree, wheel):
    """The wheel built with a compiler, for this processor.

    The build finds all libraries except one as they were built for this installation: compiling all takes a minute.
    """
    if build.SHIPPED.is_dir():
        made = tree / "build" / "lib" / "gpurnn" / "kernels" / "native" / "libraries"
        shutil.copytree(build.SHIPPED, made, ignore=shutil.ignore_patterns("threads_*"))
    return build_wheel(tree, "platform", None)


@pytest.mark.slow
def test_source_distribution_holds_the_source_whole(tree, tmp_path):
    tools = tmp_path / "tools"
    run(sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", tools, "setuptools>=77")
    build = f"from setuptools import build_meta; build_meta.build_sdist({str(tmp_path)!r})"
    run(sys.executable, "-c", build, cwd=tree, variables={"PYTHONPATH": str(tools)})
    (built,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(built) as archive:
        held = {name.partition("/")[2] for name in archive.getnames() if archive.getmember(name).isfile()}
    made = ("docs/_build/", "docs/api/generated/", "docs/examples/", "docs/sg_execution_times.rst")
    source = {path.relative_to(tree).as_posix() for path in tree.rglob("*") if path.is_file()}
    source = {name for name in source if not name.startswith(made) and "egg-info" not in name}
    assert source <= held
    # Files that setuptools adds.
    made = {"PKG-INFO", "setup.cfg"}
    assert {name for name in held - source if not name.startswith((".", "gpurnn.egg-info/"))} == made


@pytest.mark.slow
def test_wheel_holds_the_package_whole_and_nothing_else(wheel):
    assert wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
    tops = {name.partition("/")[0] for name in held}
    (metadata,) = (top for top in tops if top.endswith(".dist-info"))
    assert tops == {"gpurnn", metadata}
    assert f"{metadata}/licenses/LICENSE" in held

    packaged = {name for name in held if name.startswith("gpurnn/")}
    source = {
        f"{target}/{path.relative_to(ROOT / folder).as_posix()}"
        for folder, target in FOLDERS.items()
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and not {"__pycache__", "libraries"}.intersection(path.parts)
    }
    assert packaged == source
    assert {"gpurnn/py.typed", "gpurnn/reference/cells/lstm.py", "gpurnn/kernels/__init__.py"} <= packaged


TWO_STEPS = """
import sys
import numpy as np
import gpurnn

assert gpurnn.__file__.startswith(sys.prefix), gpurnn.__file__
rng = np.random.default_rng(0)
x, target = (rng.normal(size=(7, 4, size)).astype(np.float32) for size in (3, 2))
model = gpurnn.Sequential(gpurnn.LSTM(3, 8), gpurnn.Dense(8, 2))
optimizer = gpurnn.Adam(lr=0.01)
losses = []
for step in range(3):
    (y, _), pullback = model.vjp(x)
    losses.append(float(((y - target) ** 2).mean()))
    _, grads = pullback((2 * (y - target) / y.size, None))
    optimizer.step(model.params, grads)
assert losses[2] < losses[1] < losses[0], losses
"""


@pytest.mark.slow
def test_a_wheel_of_a_platform_is_the_pure_one_and_libraries(wheel, platform_wheel):
    assert "-py3-none-" in platform_wheel.name
    assert not platform_wheel.name.endswith("-any.whl")
    packaged = []
    for path in (wheel, platform_wheel):
        with zipfile.ZipFile(path) as archive:
            packaged.append({name for name in archive.namelist() if name.startswith("gpurnn/")})
    made = packaged[1] - packaged[0]
    assert packaged[0] < packaged[1]
    assert all(name.startswith("gpurnn/kernels/native/libraries/") and name.endswith(".so") for name in made)
    assert any(name.startswith(ONE_LIBRARY) for name in made)


COMPUTING = {"wheel": "reference", "platform_wheel": "native"}


@pytest.fixture(scope="module")
def scripts(tmp_path_factory):
    """The directory of programs of an environment that has only what the wheels install."""
    environment = tmp_path_factory.mktemp("clean") / "environment"
    run(sys.executable, "-m", "venv", environment)
    return environment / ("Scripts" if os.name == "nt" else "bin")


@pytest.mark.slow
@pytest.mark.parametrize("which", COMPUTING)
def test_installed_wheel_trains(which, request, no_compiler, scripts, tmp_path):
    """The wheels are tested one after another in one environment, so that common dependencies are installed once."""
    pip = scripts / "python", "-m", "pip"
    run(*pip, "uninstall", "--yes", "gpurnn", cwd=tmp_path)
    run(*pip, "install", request.getfixturevalue(which), cwd=tmp_path)
    variables = {**no_compiler, "GPURNN_CACHE_DIR": str(tmp_path / "cache")}
    run(scripts / "python", "-I", "-W", "error", "-c", TWO_STEPS, cwd=tmp_path, variables=variables)
    assert not (tmp_path / "cache").exists()
    assert "Usage: gpurnn" in run(scripts / "gpurnn", "--help", cwd=tmp_path)
    said = run(scripts / "gpurnn", "info", cwd=tmp_path, variables=variables)
    assert f"  cpu       runs here: as {COMPUTING[which]}, the default, because this installation has " in said
