"""Importing gpurnn imports NumPy and no other array library, and nothing that only parts of it need."""

from __future__ import annotations

import ast
import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

import gpurnn

OPTIONAL = [
    "array_api_compat",
    "click",
    "cupy",
    "filelock",
    "matplotlib",
    "platformdirs",
    "safetensors",
    "scipy",
    "torch",
    "tqdm",
]


def modules_after(code: str) -> set[str]:
    """The top-level modules that a fresh interpreter has loaded after ``code``."""
    program = f"{code}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in json.loads(run.stdout.splitlines()[-1])}


def test_import_loads_nothing_optional():
    loaded = modules_after("import gpurnn")
    assert "gpurnn" in loaded
    assert not loaded.intersection(OPTIONAL)


def test_import_loads_no_package_but_the_loader():
    new = modules_after("import gpurnn") - modules_after("") - sys.stdlib_module_names
    assert {name for name in new if not name.startswith("_")} == {"gpurnn", "lazy_loader"}


def test_a_layer_computes_without_what_is_optional():
    code = (
        "import gpurnn, numpy\nlayer = gpurnn.LSTM(2, 3)\nlayer.vjp(numpy.zeros((4, 1, 2), 'float32'))[1]((None, None))"
    )
    assert not modules_after(code).intersection(set(OPTIONAL) - {"array_api_compat"})


def test_a_kalman_filter_imports_scipy_once_it_computes():
    """The passes over time need SciPy's BLAS; nothing else in gpurnn needs SciPy."""
    made = (
        "import gpurnn, numpy\nfrom gpurnn.models.kalman import level, seasonal\none = numpy.ones((1, 1))\n"
        "model = gpurnn.LinearGaussian(one, one, one, one)\nlevel() + seasonal(4)"
    )
    assert not modules_after(made).intersection(set(OPTIONAL) - {"array_api_compat"})
    assert "scipy" in modules_after(f"{made}\nmodel.smooth(numpy.arange(5.0)[:, None])")


@pytest.mark.parametrize("package", ["", ".analysis", ".layers", ".models", ".training"])
def test_every_name_of_a_stub_is_there_and_listed(package):
    """Type checkers read the stub, and so does the package: an undefined name in it would fail on use."""
    module = importlib.import_module(f"gpurnn{package}")
    names = [
        alias.asname
        for statement in ast.parse(Path(module.__file__).with_suffix(".pyi").read_text()).body
        if isinstance(statement, ast.ImportFrom)
        for alias in statement.names
    ]
    assert {*names} == {*module.__all__}
    assert len(set(names)) == len(names)
    assert set(module.__all__) <= set(dir(module))
    for name in module.__all__:
        assert getattr(module, name) is not None
    with pytest.raises(AttributeError, match="no_such_name"):
        module.no_such_name  # noqa: B018


def test_a_name_that_is_none_reminds_of_one_that_is():
    with pytest.raises(AttributeError, match=r"^module 'gpurnn' has no attribute 'Lstm'; did you mean LSTM or lstm\?$"):
        gpurnn.Lstm  # noqa: B018
    assert not hasattr(gpurnn, "_lstm")


def test_modules_that_need_another_package_are_attributes():
    code = "import gpurnn\nprint(gpurnn.kernels.__name__, gpurnn.reference.__name__)\ngpurnn.torch"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout.split() == ["gpurnn.kernels", "gpurnn.reference"]
    assert not run.returncode or "gpurnn.torch needs PyTorch" in run.stderr


def test_a_function_is_not_hidden_by_the_module_of_its_name():
    code = "import gpurnn.analysis.spectrum, gpurnn.analysis as a; print(type(a.spectrum).__name__)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "function"


@pytest.mark.slow
def test_mypy_knows_every_name_and_finds_those_that_are_none(tmp_path):
    code = tmp_path / "code.py"
    code.write_text(
        "import gpurnn\nreveal_type(gpurnn.LSTM(2, 3).num_layers)\nreveal_type(gpurnn.models.load)\n"
        "reveal_type(gpurnn.training.Trainer)\ngpurnn.Nope\ngpurnn.models.Nope\n"
    )
    options = ["--config-file", str(Path(gpurnn.__file__).parent.parent / "pyproject.toml"), "--cache-dir", tmp_path]
    run = subprocess.run([sys.executable, "-m", "mypy", *options, str(code)], capture_output=True, text=True)
    said = [line.partition(": ")[2] for line in run.stdout.splitlines()]
    assert said[0] == 'note: Revealed type is "int"'
    assert "LinearGaussian" in said[1]
    assert "Trainer" in said[2]
    assert said[3:5] == ['error: Module has no attribute "Nope"  [attr-defined]' for _ in range(2)]
