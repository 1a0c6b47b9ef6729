"""Shared test setup: one BLAS thread, hypothesis settings, and a wing for strict arrays."""

import os

# Two BLAS threads on two cores spin while anything else runs. A BLAS reads these variables when NumPy loads it.
for _variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")

# Tests must know which wing computes, even on a machine where the compiled wing is ready too. GPURNN_WING=native
# repeats the tests on the compiled wing.
os.environ.setdefault("GPURNN_WING", "reference")

# ruff: noqa: E402
import signal
import sys

import numpy as np
import parity
import pytest
import strict_wing
from gpurnn.kernels.native import processor, threads
from hypothesis import HealthCheck, settings

import gpurnn
from gpurnn import _dispatch

# Missing libraries are compiled in half the time; test_native_build.py compares the bits of both builds.
os.environ.setdefault("GPURNN_NATIVE_BUILD", "quick")

processor.chosen = processor.chosen.__wrapped__  # tests set GPURNN_CPU, which a process reads once

settings.register_profile(
    "gpurnn",
    deadline=None,
    derandomize=True,
    database=None,
    max_examples=200,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("gpurnn")


# These files put another driver under CuPy, so they run in a process of their own; see test_cupy.py.
collect_ignore = [] if "cupy_on_host" in sys.modules else ["cupy_launches.py", "cupy_on_host.py"]

# A shell starts background processes with interrupts ignored, and the interrupts that tests send would be ignored too.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Mark the README as slow: it trains models, and a text file has no place for a marker."""
    for item in items:
        if item.path.suffix == ".md":
            item.add_marker(pytest.mark.slow)


@pytest.fixture
def strict_namespace(monkeypatch):
    """Lets gpurnn compute on arrays of array_api_strict that live on `strict_wing.DEVICE`; gives their namespace."""
    to_numpy, from_numpy = _dispatch.to_numpy, _dispatch.from_numpy
    monkeypatch.setitem(_dispatch.WINGS, "array_api_strict", strict_wing.__name__)
    monkeypatch.setattr(
        _dispatch, "to_numpy", lambda a: strict_wing.plain(a) if isinstance(a, strict_wing.Array) else to_numpy(a)
    )
    monkeypatch.setattr(
        _dispatch,
        "from_numpy",
        lambda xp, a: strict_wing.strict(a.copy()) if xp is strict_wing.xp else from_numpy(xp, a),
    )
    with gpurnn.use("reference"):  # the wing for strict arrays: its results have the bits of NumPy arrays
        yield strict_wing.xp


@pytest.fixture
def undrawn(monkeypatch):
    """Write one word to picture files: drawing a picture takes longer than the rest of a short run."""
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, file, **options: file.write(b"undrawn"))


HOST = pytest.param("host", marks=pytest.mark.kernels)
CUDA = pytest.param("cuda", marks=pytest.mark.gpu)


@pytest.fixture(params=["reference", "native", HOST, CUDA])
def wing(request):
    """Each wing in turn, a `parity.Wing`."""
    return parity.Wing(request.param)


@pytest.fixture(params=["reference", "native", HOST, CUDA])
def recurrent_wing(request):
    """Each wing that has recurrences of its own, a `parity.Wing`."""
    return parity.Wing(request.param)


@pytest.fixture(params=[HOST, CUDA])
def kernel_wing(request):
    """The kernels, on whichever executor runs them, a `parity.Wing`."""
    return parity.Wing(request.param)


@pytest.fixture(params=["reference", "native", HOST])
def each_wing(request):
    """Lets each wing in turn compute for NumPy arrays; gives its name."""
    with gpurnn.use(request.param):
        yield request.param


@pytest.fixture(
    params=[
        pytest.param(name, marks=pytest.mark.slow if number else ())
        for number, name in enumerate(processor.instruction_sets())
    ]
)
def instructions(request, monkeypatch):
    """Each instruction set of the processor in turn; all but the widest only in slow tests."""
    monkeypatch.setenv("GPURNN_CPU", request.param)
    return request.param


@pytest.fixture
def new_arrays_are_nan(monkeypatch):
    """Fills what `np.empty` and `np.empty_like` return: a result shows if memory is read before it is written."""

    def filled(make):
        def call(*args, **options):
            array = make(*args, **options)
            if array.dtype.kind in "fc":
                array.fill(np.nan)
            return array

        return call

    monkeypatch.setattr(np, "empty", filled(np.empty))
    monkeypatch.setattr(np, "empty_like", filled(np.empty_like))


@pytest.fixture
def team(monkeypatch):
    """Sets the number of threads of a call, however little work it has and however late they start."""

    def of(count: int) -> None:
        monkeypatch.setattr(threads, "most", lambda: count)
        monkeypatch.setattr(threads, "PATIENCE", 1e9)

    yield of
    threads.release()
