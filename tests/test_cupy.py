"""CuPy has all the functions that the library uses, and launches pass through CuPy as intended. No GPU is needed."""

from __future__ import annotations

import ast
import importlib
import inspect
import operator
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from gpurnn.kernels import launch

from benchmarks import nvrtc

cupy = pytest.importorskip("cupy", reason="CuPy isn't installed")

TESTS = Path(__file__).parent

needs_nvrtc = pytest.mark.skipif(nvrtc.missing(), reason=str(nvrtc.missing()))


def run(code: str, *arguments: str, cache: Path) -> None:
    """Run pytest with these arguments after ``code``, in a process where CuPy is not imported yet."""
    # At its normal exit Python would have CuPy free memory through objects that no longer exist.
    whole = f"import os, pytest, sys; {code}; ended = pytest.main(sys.argv[1:]); sys.stdout.flush(); os._exit(ended)"
    ended = subprocess.run(
        [sys.executable, "-c", whole, "-p", "no:cacheprovider", "-n0", *arguments],
        env={**os.environ, "CUPY_CACHE_DIR": str(cache), "PYTHONPATH": str(TESTS)}, capture_output=True, text=True,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert re.search(r"^\d+ passed, |^\d+ passed in", ended.stdout, re.MULTILINE), ended.stdout


@pytest.mark.slow
@needs_nvrtc
def test_launches_get_through_cupy(tmp_path):
    run("import cupy_on_host", str(TESTS / "cupy_launches.py"), cache=tmp_path)


@pytest.mark.slow
@needs_nvrtc
def test_the_tests_for_a_gpu_pass_with_genuine_cupy_arrays(tmp_path):
    """All of ``-m gpu``, except many cells, options and sizes of recurrences, which take the same path through CuPy."""
    few = "not test_schedules_agree and not test_awkward_sizes"
    setup = "import cupy_on_host; cupy_on_host.compute_with_numpy(); cupy_on_host.DRIVER.is_late = True"
    run(setup, "-m", "gpu", "-k", few, str(TESTS), cache=tmp_path)


def test_the_text_given_to_cupy_changes_with_what_it_includes(tmp_path):
    (tmp_path / "one.cu").write_text('#include "value.h"\n__global__ void one(int* x) { *x = VALUE; }\n')
    codes = set()
    for value in "12":
        (tmp_path / "value.h").write_text(f"#define VALUE {value}\n")
        raw = launch.Module(tmp_path / "one.cu", ["one"]).raw_module()
        assert raw.name_expressions == ("one",)
        assert "-std=c++17" in raw.options
        codes.add(raw.code)
    assert len(codes) == 2


def asked(tree: ast.AST) -> Iterator[tuple[str, set[str]]]:
    """Each ``xp.name`` in the code, with the keywords of a call of it."""
    nodes = list(ast.walk(tree))
    calls = {id(node.func): {k.arg for k in node.keywords if k.arg} for node in nodes if isinstance(node, ast.Call)}
    inner = {id(node.value) for node in nodes if isinstance(node, ast.Attribute)}
    for node in nodes:
        if isinstance(node, ast.Attribute) and id(node) not in inner and re.fullmatch(r"xp(\.\w+)+", ast.unparse(node)):
            yield ast.unparse(node), calls.get(id(node), set())


@pytest.mark.parametrize(("package", "library"), [("gpurnn.kernels", "cupy"), ("gpurnn", "array_api_compat.cupy")])
def test_cupy_has_what_is_asked_of_a_namespace(package, library):
    """Without a GPU, only the name and its keywords can be checked."""
    xp = importlib.import_module(library)
    files = Path(importlib.import_module(package).__file__).parent.rglob("*.py")
    found = [(path.name, *use) for path in files for use in asked(ast.parse(path.read_text()))]
    assert found
    for file, name, keywords in found:
        function = operator.attrgetter(name.removeprefix("xp."))(xp)
        try:
            parameters = inspect.signature(function).parameters.values()
        except (TypeError, ValueError):  # not a function, or a compiled one that hides its signature
            continue
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            assert keywords <= {p.name for p in parameters}, f"{file}: {name}"
