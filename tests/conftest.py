"""What all tests share: one BLAS thread, how hypothesis draws, and a wing for strict arrays."""

import os

# Two BLAS threads on two cores spin while anything else runs. A BLAS reads this when NumPy loads it.
for _variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")

# So that a test knows what computes, on a machine that has the compiled wing ready too. GPURNN_WING=native repeats the
# tests on that.
os.environ.setdefault("GPURNN_WING", "reference")

# ruff: noqa: E402
import signal
import sys

import parity
import pytest
import strict_wing
from gpurnn.kernels.native import processor, threads
from hypothesis import HealthCheck, settings

import gpurnn
from gpurnn import _dispatch

# What the installation has not is compiled in half the time; test_native_build.py compares the bits of both builds.
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


# They put another driver under CuPy, and so have a process of their own; see test_cupy.py.
collect_ignore = [] if "cupy_on_host" in sys.modules else ["cupy_launches.py", "cupy_on_host.py"]

# A shell starts what it runs in the background with interrupts ignored, and so would be those that tests send.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """The README trains models, and a file of text has no place for a marker."""
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
    with gpurnn.use("reference"):  # which computes for strict arrays: results have the bits of NumPy arrays
        yield strict_wing.xp


@pytest.fixture
def undrawn(monkeypatch):
    """Files of pictures hold a word: to draw one takes longer than all else that a short run does."""
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
    """The kernels, where they are executed, a `parity.Wing`."""
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
    """Each instruction set of the processor in turn; all but the widest in slow tests."""
    monkeypatch.setenv("GPURNN_CPU", request.param)
    return request.param


@pytest.fixture
def team(monkeypatch):
    """Lets a call have a number of threads, however little it has to do and however late they come."""

    def of(count: int) -> None:
        monkeypatch.setattr(threads, "most", lambda: count)
        monkeypatch.setattr(threads, "PATIENCE", 1e9)

    yield of
    threads.release()
