"""Importing gpurnn imports no array library but NumPy, and nothing that only some of it needs."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

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


def test_every_public_name_is_there_and_listed():
    import gpurnn

    assert len(set(gpurnn.__all__)) == len(gpurnn.__all__)
    assert set(gpurnn.__all__) <= set(dir(gpurnn))
    for name in gpurnn.__all__:
        assert getattr(gpurnn, name) is not None
    with pytest.raises(AttributeError, match="module 'gpurnn' has no attribute 'nothing'"):
        gpurnn.nothing  # noqa: B018


def test_a_layer_computes_without_what_is_optional():
    code = (
        "import gpurnn, numpy\nlayer = gpurnn.LSTM(2, 3)\nlayer.vjp(numpy.zeros((4, 1, 2), 'float32'))[1]((None, None))"
    )
    assert not modules_after(code).intersection(set(OPTIONAL) - {"array_api_compat"})


def test_a_kalman_filter_smooths_without_scipy():
    """SciPy is imported by a fit, and by nothing else."""
    smooth = (
        "import gpurnn, numpy\none = numpy.ones((1, 1))\nmodel = gpurnn.LinearGaussian(one, one, one, one)\n"
        "y = numpy.arange(5.0)[:, None]\nmodel.smooth(y)\nmodel.fit(y, method='em', iterations=1)"
    )
    assert not modules_after(smooth).intersection(set(OPTIONAL) - {"array_api_compat"})
    assert "scipy" in modules_after(f"{smooth}\nmodel.fit(y, iterations=1)")


def test_type_checkers_see_every_public_name():
    """The names that are loaded on first use are those that a type checker reads."""
    import ast
    import inspect

    import gpurnn

    tree = ast.parse(inspect.getsource(gpurnn))
    seen = {
        alias.asname or alias.name
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and getattr(block.test, "id", None) == "TYPE_CHECKING"
        for statement in block.body
        if isinstance(statement, ast.ImportFrom)
        for alias in statement.names
    }
    assert seen == {*gpurnn.__all__, *gpurnn._EXPORTS} - {"__version__", "_dispatch", "_files"}


def test_every_exported_name_is_there():
    import gpurnn

    for name in (*gpurnn.__all__, *gpurnn._EXPORTS):
        assert getattr(gpurnn, name) is not None
        assert name in dir(gpurnn)
    with pytest.raises(AttributeError, match="no_such_name"):
        gpurnn.no_such_name  # noqa: B018
