"""Which wing computes for which arrays, what is rejected, and that all wings offer the same functions."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
import itertools
import os
import re
import subprocess
import sys
import types
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gpurnn.kernels import dtypes, native
from gpurnn.kernels.native import build, install, processor

import gpurnn
from gpurnn import _checks, _dispatch, kernels, reference
from gpurnn._contract import WING_FUNCTIONS, Wing
from gpurnn.cells import GRU


def parameters(function: Callable[..., Any]) -> list[tuple[Any, ...]]:
    """The parameters of a wing's function: names, kinds, defaults and types, except the type of ``saved``."""
    return [
        (p.name, p.kind, p.default, None if p.name == "saved" else p.annotation)
        for p in inspect.signature(function).parameters.values()
        if p.name != "self"
    ]


@pytest.mark.parametrize("name", WING_FUNCTIONS)
def test_the_wings_have_the_signatures_of_the_contract(name):
    expected = parameters(getattr(Wing, name))
    assert parameters(getattr(reference, name)) == expected
    assert parameters(getattr(kernels, name)) == expected
    assert all(getattr(each, name).__doc__ for each in (Wing, reference, kernels))


def test_the_compiled_wing_has_signatures_of_the_contract():
    defined = [name for name in WING_FUNCTIONS if hasattr(native, name)]
    assert "recurrence_forward" in defined
    for name in defined:
        assert parameters(getattr(native, name)) == parameters(getattr(Wing, name))


def test_the_kernels_take_every_dtype_that_functions_take():
    assert tuple(dtypes.TABLE) == _checks.FLOATS


class Stranger:
    """An array of a library that gpurnn does not know."""

    dtype = np.dtype("float64")
    shape = (2, 3)
    ndim = 2


def stranger_of(module: str) -> Stranger:
    return type("Tensor", (Stranger,), {"__module__": module})()


@pytest.mark.parametrize(
    ("module", "advice"),
    [
        ("jax", "numpy.asarray(x)"),
        ("tensorflow.python.framework.ops", "x.numpy()"),
        ("pandas.core.frame", "x.to_numpy()"),
        ("elsewhere", "numpy.asarray(x)"),
    ],
)
def test_arrays_of_other_libraries_are_refused_with_advice(module, advice):
    with pytest.raises(TypeError) as refusal:
        gpurnn.dense(stranger_of(module), np.zeros((4, 3)))
    library = module.partition(".")[0]
    assert str(refusal.value) == (
        f"dense: x is a {library}.Tensor, expected a numpy.ndarray or a cupy.ndarray; convert it with {advice}"
    )


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ([[1.0, 2.0, 3.0]], "list"),
        (1.0, "float"),
        ("text", "str"),
        (memoryview(b"abc"), "memoryview"),
        (np.ma.ones((2, 3)), r"numpy\.MaskedArray"),
    ],
)
def test_what_is_no_array_is_refused(value, kind):
    with pytest.raises(TypeError, match=rf"dense: x is a {kind}, expected a numpy\.ndarray or a cupy\.ndarray"):
        gpurnn.dense(value, np.zeros((4, 3)))


def test_a_call_without_arrays_is_refused():
    with pytest.raises(TypeError, match="lstm: expected at least one array"):
        _dispatch.namespace("lstm", x=None)


def test_a_class_named_like_cupy_is_no_cupy_array(monkeypatch):
    """While CuPy is not imported there are no CuPy arrays, whatever a class claims to be."""
    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    with pytest.raises(TypeError, match=r"dense: x is a cupy.Tensor, expected a numpy.ndarray or a cupy.ndarray"):
        gpurnn.dense(stranger_of("cupy"), np.zeros((4, 3)))


@pytest.fixture
def cupy_array(monkeypatch):
    """An array that looks like CuPy's; a module of that name is imported."""
    monkeypatch.setitem(sys.modules, "cupy", types.ModuleType("cupy"))
    return stranger_of("cupy")


def test_a_cupy_array_and_a_numpy_array_do_not_mix(cupy_array):
    message = (
        "lstm: weight_ih is a numpy array but weight_hh is a cupy array, expected one library; "
        "convert one of them, with cupy.asarray(weight_ih) or cupy.asnumpy(weight_hh)"
    )
    with pytest.raises(TypeError) as refusal:
        gpurnn.lstm(cupy_array, np.zeros((16, 3)), cupy_array)
    assert str(refusal.value) == message
    layer = gpurnn.LSTM(3, 4)
    with pytest.raises(TypeError, match=r"; convert one of them, with layer\.to\('cuda'\) or cupy\.asnumpy\(x\)$"):
        layer(cupy_array)
    with pytest.raises(TypeError, match=r"; convert one of them, with cupy\.asarray\(x\) or layer\.to\('cpu'\)$"):
        _dispatch.namespace("LSTM", params=cupy_array, x=np.zeros(3))


def test_each_library_has_its_wing(cupy_array):
    assert _dispatch.wing("lstm", x=np.zeros(3)) is reference
    assert _dispatch.wing("lstm", x=cupy_array, state=None) is kernels


def test_use_chooses_the_wing_of_numpy_arrays():
    x = np.zeros(3)
    with gpurnn.use("host"):
        assert _dispatch.wing("lstm", x=x) is kernels
        with gpurnn.use("reference"):
            assert _dispatch.wing("lstm", x=x) is reference
        assert _dispatch.wing("lstm", x=x) is kernels
    assert _dispatch.wing("lstm", x=x) is reference
    gpurnn.use("host")
    assert _dispatch.wing("lstm", x=x) is kernels
    gpurnn.use("reference")
    assert _dispatch.wing("lstm", x=x) is reference


@pytest.fixture
def partial_wing(monkeypatch):
    """A wing that does not define any function yet. `use` knows it as "partial"."""
    module = types.ModuleType("partial_wing")
    monkeypatch.setitem(sys.modules, "partial_wing", module)
    monkeypatch.setitem(_dispatch.NUMPY_WINGS, "partial", "partial_wing")
    yield module
    _dispatch._functions.cache_clear()


def test_a_wing_may_define_one_function(partial_wing):
    partial_wing.dropout_mask = lambda like, shape, rate, seed, first, stride: np.full(shape, 7.0)
    x, w = np.ones((3, 2, 4)), np.ones((16, 4))
    (y, _), pullback = gpurnn.lstm.vjp(x, w, w)
    expected = pullback((np.ones_like(y), None))
    with gpurnn.use("partial"):
        assert (gpurnn.dropout(x, 0.5, 1) == 7).all()
        (y_partial, _), pullback = gpurnn.lstm.vjp(x, w, w)
    assert (y_partial == y).all()
    for gradient, of_reference in zip(pullback((np.ones_like(y), None))[1].values(), expected[1].values(), strict=True):
        assert (gradient == of_reference).all()


def test_a_pullback_stays_on_the_wing_of_its_function(partial_wing):
    partial_wing.mse_forward = lambda y, target, *, training=False: (np.full(y.shape, 3.0), "saved")
    partial_wing.mse_backward = lambda saved, d: np.full(d.shape, 5.0 if saved == "saved" else 0.0)
    y = np.ones(2)
    with gpurnn.use("partial"):
        value, pullback = gpurnn.mse.vjp(y, y)
        with gpurnn.use("reference"):
            _, pullback_of_reference = gpurnn.mse.vjp(y, y)
        assert (pullback_of_reference(1.0)[0] == 0).all()
    assert value == 3
    assert (pullback(1.0)[0] == 5).all()


@pytest.mark.parametrize("name", ["mse_forward", "mse_backward", "recurrence_chunk"])
def test_a_wing_that_defines_half_of_a_pair_is_rejected(partial_wing, name):
    setattr(partial_wing, name, getattr(reference, name))
    kind = name.partition("_")[0]
    with gpurnn.use("partial"), pytest.raises(TypeError, match=rf"^partial_wing defines .*{kind}_.* but not {kind}_"):
        gpurnn.dropout(np.ones(2), 0.5, 1)


def in_a_new_context(test):
    """Run a test in its own context, as plain calls of `use` last until the context ends."""

    @functools.wraps(test)
    def run(*args, **kwargs):
        contextvars.Context().run(test, *args, **kwargs)

    return run


@pytest.fixture
def default(monkeypatch):
    """Call it with ``$GPURNN_WING`` and why the compiled wing is not ready. It returns the default and the reason."""

    def of(variable: str, why_not: str) -> tuple[str, str]:
        monkeypatch.setenv("GPURNN_WING", variable)
        monkeypatch.setattr(install, "why_not", lambda: why_not)
        _dispatch._default.cache_clear()
        return _dispatch.numpy_wing(), _dispatch.why_default()

    yield of
    _dispatch._default.cache_clear()


@in_a_new_context
def test_the_compiled_wing_is_the_default_where_it_is_ready(default):
    assert default("", "") == ("native", "this installation has its compiled libraries")
    with gpurnn.use("reference"):
        assert _dispatch.numpy_wing() == "reference"
    assert default("", "it is not there") == ("reference", "it is not there")
    for name in ("reference", "native", "host"):
        assert default(name, "") == (name, f"GPURNN_WING is {name}")
    with pytest.raises(ValueError, match="GPURNN_WING is 'numpy', expected one of 'reference', 'native', 'host'"):
        default("numpy", "")


@pytest.fixture
def shipped(monkeypatch, tmp_path):
    """Makes this empty directory the one that holds the installation's libraries."""
    monkeypatch.setattr(build, "SHIPPED", tmp_path)
    monkeypatch.setattr(build, "_loaded", {})
    monkeypatch.setattr(processor, "instruction_sets", lambda: ("avx2", "sse4"))
    install._why_not.cache_clear()
    yield tmp_path
    install._why_not.cache_clear()


def test_an_installation_is_ready_when_it_has_every_library(shipped, monkeypatch):
    def why_not():
        install._why_not.cache_clear()
        return install.why_not()

    cure = "; a wheel for this platform has them, and one that pip builds from source where there is a C++ compiler"
    assert why_not() == f"this installation has no compiled libraries, and needs them for avx2{cure}"
    of_avx2, of_sse4 = ([library.shipped(name) for library in install.libraries()] for name in ("avx2", "sse4"))
    for path in of_sse4:
        path.touch()
    assert why_not() == f"this installation has libraries for sse4 alone, and needs them for avx2{cure}"
    monkeypatch.setenv("GPURNN_CPU", "sse4")
    install.threads.library.cache_clear()
    assert re.match("the compiled library .*threads_sse4-.* cannot be loaded: .*file too short", why_not())
    monkeypatch.setattr(install.threads, "library", lambda: None)
    assert why_not() == ""
    monkeypatch.delenv("GPURNN_CPU")
    for path in of_avx2:
        path.touch()
    assert why_not() == ""
    of_avx2[-1].rename(shipped / f"{install.recurrence.library(GRU(), 'float64').name}_avx2-0.so")
    assert "has no library of its sources for gru_" in why_not()


def wing_in_use() -> str:
    return {reference: "reference", kernels: "host"}[_dispatch.wing("lstm", x=np.zeros(3))]


def in_a_thread(function=wing_in_use):
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result()


@in_a_new_context
def test_a_new_thread_starts_with_the_default():
    gpurnn.use("host")
    with gpurnn.use("host"):
        inherits = getattr(sys.flags, "thread_inherit_context", 0)
        assert in_a_thread() == ("host" if inherits else "reference")
        assert in_a_thread(functools.partial(contextvars.copy_context().run, wing_in_use)) == "host"
    assert wing_in_use() == "host"


@in_a_new_context
def test_a_thread_changes_nothing_for_another():
    used = gpurnn.use("host")

    def other() -> tuple[str, str]:
        gpurnn.use("reference")
        with used:  # made in another thread
            inside = wing_in_use()
        return inside, wing_in_use()

    assert in_a_thread(other) == ("host", "reference")
    assert wing_in_use() == "host"


@in_a_new_context
def test_asyncio_tasks_start_with_what_their_creator_used():
    async def task(wing: str) -> list[str]:
        found = [wing_in_use()]
        gpurnn.use(wing)
        await asyncio.sleep(0)
        return [*found, wing_in_use(), await asyncio.to_thread(wing_in_use)]

    async def main() -> None:
        with gpurnn.use("host"):
            tasks = [asyncio.create_task(task(wing)) for wing in ("reference", "host")]
        tasks.append(asyncio.create_task(task("host")))
        assert await asyncio.gather(*tasks) == [
            ["host", "reference", "reference"], ["host", "host", "host"], ["reference", "host", "host"],
        ]  # fmt: skip
        assert wing_in_use() == "reference"

    asyncio.run(main())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@in_a_new_context
def test_processes_start_with_what_their_parent_used_or_anew():
    code = "import sys, test_wings; sys.exit(test_wings.wing_in_use() != 'reference')"
    with gpurnn.use("host"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if pid == 0:
            os._exit(wing_in_use() != "host")
        assert os.waitpid(pid, 0)[1] == 0
        subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent)


@in_a_new_context
def test_an_exception_ends_what_was_used_within():
    gpurnn.use("host")
    with pytest.raises(KeyError), gpurnn.use("reference"), gpurnn.use("host"), gpurnn.use("reference"):
        raise KeyError
    assert wing_in_use() == "host"
    with pytest.raises(ValueError, match="use: wing is 'gpu', expected one of 'reference', 'native', 'host', 'cuda'"):
        gpurnn.use("gpu")
    assert wing_in_use() == "host"


@in_a_new_context
def test_uses_may_end_in_any_order():
    for order in itertools.permutations(range(3)):
        uses = []
        for wing in ("host", "reference", "host"):
            uses.append(gpurnn.use(wing))
            uses[-1].__enter__()
        left = dict(enumerate(("host", "reference", "host")))
        for which in order:
            uses[which].__exit__(None, None, None)
            del left[which]
            assert wing_in_use() == (left[max(left)] if left else "reference")


@in_a_new_context
def test_a_use_may_be_entered_again_and_within_itself():
    host = gpurnn.use("host")
    for _ in range(2):
        with host, gpurnn.use("reference"), host:
            assert wing_in_use() == "host"
        assert wing_in_use() == "reference"


@in_a_new_context
def test_plain_calls_follow_each_other_and_do_not_pile_up():
    with gpurnn.use("reference"):
        for wing in ("host", "reference") * 100:
            gpurnn.use(wing)
            assert wing_in_use() == wing
            with gpurnn.use("host"):
                assert wing_in_use() == "host"
            assert wing_in_use() == wing
        assert len(_dispatch._uses.get()) < 5


@in_a_new_context
def test_a_generator_that_is_closed_elsewhere_changes_nothing_there():
    def steps():
        with gpurnn.use("host"):
            yield wing_in_use()

    generator = steps()
    assert contextvars.Context().run(next, generator) == "host"
    generator.close()
    assert wing_in_use() == "reference"


def test_a_subclass_of_ndarray_is_a_numpy_array(tmp_path):
    mapped = np.memmap(tmp_path / "x", "float64", "w+", shape=(2, 3))
    assert gpurnn.dense(mapped, np.ones((4, 3))).shape == (2, 4)


def test_devices_have_the_same_names_everywhere(monkeypatch):
    with gpurnn.use("cpu"):
        assert _dispatch.numpy_wing() == "reference"
    layer = gpurnn.Sequential(gpurnn.LSTM(2, 3), gpurnn.Dense(3, 1))
    assert layer.to("cpu").params.keys() == layer.params.keys()
    monkeypatch.setattr(_dispatch, "why_no_cuda", lambda: iter(["there is no GPU"]))
    with pytest.raises(RuntimeError, match="use: 'cuda' cannot compute here: there is no GPU"):
        gpurnn.use("cuda")
    for made in (layer, gpurnn.Dropout(0.5), gpurnn.SequenceClassifier(2, 3, 2)):
        with pytest.raises(RuntimeError, match="to: device is 'cuda:1', which cannot compute here: there is no GPU"):
            made.to("cuda:1")
        for name in ("gpu", "cuda1", "cuda:x", "cpu:0"):
            with pytest.raises(ValueError, match=f"to: device is '{name}', expected 'cpu', 'cuda', 'cuda:1'"):
                made.to(name)


def test_after_use_of_cuda_a_numpy_array_is_rejected(monkeypatch):
    monkeypatch.setattr(_dispatch, "why_no_cuda", lambda: iter([]))
    layer, x = gpurnn.LSTM(2, 3), np.ones((4, 1, 2), np.float32)
    with gpurnn.use("cuda"), pytest.raises(TypeError, match=r"expected a cupy array after gpurnn\.use\('cuda'\); move"):
        layer(x)
    layer(x)
