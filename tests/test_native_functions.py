"""exp, tanh and the logistic function over the lanes of a register, against NumPy's longer floats."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
from gpurnn.kernels.native import build, processor

SOURCE = """
#include "native/elementary.h"
#include "cells/activations.cuh"

template <class Real> Real sigmoid(Real a) { return Gate<Real>::of(a).value(); }
template <class Real> Real complement(Real a) { return Gate<Real>::of(a).complement(); }

#define EACH(name, f, T)                                                                                  \\
    extern "C" __attribute__((visibility("default"))) void name(const T* from, T* to, int64_t count) { \\
        for (int64_t i = 0; i < count; i += Vector<T>::lanes) {                                           \\
            const long n = count - i < Vector<T>::lanes ? count - i : Vector<T>::lanes;                   \\
            f(Vector<T>::load(from + i, n)).store(to + i, n);                                             \\
        }                                                                                                 \\
    }
EACH(float32_exp, exp, float) EACH(float32_tanh, tanh, float)
EACH(float32_sigmoid, sigmoid, float) EACH(float32_complement, complement, float)
EACH(float64_exp, exp, double) EACH(float64_tanh, tanh, double)
EACH(float64_sigmoid, sigmoid, double) EACH(float64_complement, complement, double)
"""


def logistic(x):
    e = np.exp(-abs(x))
    return np.where(x < 0, e, 1) / (1 + e)


ORACLES = {"exp": np.exp, "tanh": np.tanh, "sigmoid": logistic, "complement": lambda x: logistic(-x)}

UNITS = {"exp": 1.1, "tanh": 2.6, "sigmoid": 2.5, "complement": 2.5}
"""The largest allowed errors, in units in the last place."""

needs_long_double = pytest.mark.skipif(
    np.finfo(np.longdouble).nmant < 60, reason="NumPy's longdouble is no longer than its double here"
)


@pytest.fixture(scope="module", params=processor.instruction_sets())
def functions(request):
    """Computes a function, given its name and an array, with each instruction set of the processor in turn."""
    library = ctypes.CDLL(str(build.Library("functions", lambda: SOURCE).path(request.param)))

    def call(name: str, x: np.ndarray) -> np.ndarray:
        y = np.full(x.size + 1, 77, x.dtype)  # the last one must stay
        pointers = (ctypes.c_void_p(array.ctypes.data) for array in (x, y))
        getattr(library, f"{x.dtype}_{name}")(*pointers, ctypes.c_int64(x.size))
        assert y[-1] == 77
        return y[:-1]

    return call


def arguments(dtype: str, count: int) -> np.ndarray:
    """Numbers of every exponent and sign, and more where the functions neither vanish nor saturate."""
    rng = np.random.default_rng(0)
    unsigned = np.dtype(f"u{np.dtype(dtype).itemsize}")
    all_bits = rng.integers(0, 2 ** (8 * unsigned.itemsize), count, unsigned, endpoint=False).view(dtype)
    most = 110 if dtype == "float32" else 760
    special = [np.inf, -np.inf, np.nan, 0.0, -0.0, 1.0, -1.0]
    parts = [all_bits, rng.uniform(-most, most, count), rng.standard_normal(count), special]
    return np.concatenate([np.asarray(part, dtype) for part in parts])


@needs_long_double
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ORACLES)
@pytest.mark.parametrize("count", [10_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
def test_functions_are_right_to_a_few_units_over_the_whole_range(functions, name, dtype, count):
    x = arguments(dtype, count)
    with np.errstate(all="ignore"):
        exact = ORACLES[name](x.astype(np.longdouble))
        rounded = exact.astype(dtype)
        found = functions(name, x)
        error = abs(found.astype(np.longdouble) - exact) / np.spacing(abs(rounded))
    normal = np.isfinite(rounded) & (abs(rounded) >= np.finfo(dtype).tiny)
    assert error[normal].max() <= UNITS[name]
    # Below the normal numbers the unit keeps its absolute size, and results vanish gradually.
    assert error[np.isfinite(rounded) & ~normal].max(initial=0) <= UNITS[name] + 1
    np.testing.assert_array_equal(found[~np.isfinite(rounded)], rounded[~np.isfinite(rounded)])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_signs_of_zero_and_small_numbers_pass_tanh(functions, dtype):
    x = np.array([0.0, -0.0, 1e-30, -1e-30], dtype)
    found = functions("tanh", x)
    np.testing.assert_array_equal(found, x)
    np.testing.assert_array_equal(np.signbit(found), np.signbit(x))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_result_does_not_depend_on_its_neighbours_or_its_lane(functions, dtype):
    x = arguments(dtype, 50)
    for name in ORACLES:
        whole = functions(name, x)
        for start in (1, 3, 8):
            np.testing.assert_array_equal(functions(name, x[start:].copy()), whole[start:])
