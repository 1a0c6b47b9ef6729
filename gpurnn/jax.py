"""The recurrent functions for JAX's transformations: `jax.grad`, `jax.jit` and `jax.vmap`.

They take the arguments and return the results of `gpurnn.rnn`, `gpurnn.lstm`, `gpurnn.gru`, `gpurnn.indrnn`,
`gpurnn.mingru` and `gpurnn.minlstm`, with all options. Their gradients are gpurnn's own, by `jax.custom_vjp`. The
backward pass computes the forward pass again, because JAX keeps only arrays between the two. Lengths, resets and masks
are constants, whose gradients are zero.
Within a transformation, JAX calls them back on the CPU, so arrays on a GPU pass through host memory. Outside of one
they are gpurnn's functions, on JAX's own memory.

Examples
--------
>>> import jax
>>> import jax.numpy as jnp
>>> import gpurnn.jax
>>> x, w_ih, w_hh = jnp.ones((3, 1, 1)), jnp.ones((1, 1)), jnp.ones((1, 1))
>>> def last(w_hh):
...     y, state = gpurnn.jax.rnn(x, w_ih, w_hh, activation="identity")
...     return state.sum()
>>> float(jax.jit(jax.grad(last))(w_hh)[0, 0])
3.0
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np

try:
    import jax
    import jax.numpy as jnp
except ImportError as error:
    raise ImportError("gpurnn.jax needs JAX; pip install 'gpurnn[jax]'") from error

from . import _dispatch, functional
from .cells import CELLS, ELEMENTWISE

__all__ = ["gru", "indrnn", "lstm", "mingru", "minlstm", "rnn"]

_KINDS = CELLS | ELEMENTWISE

Arguments = Mapping[str, Any]


def _of(name: str) -> Any:
    """gpurnn's function of this name, for JAX's transformations."""
    op: Any = getattr(functional, name)
    signature = inspect.signature(op)

    @functools.wraps(op)
    def called(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        if not _traced(bound.arguments):
            # JAX's functions take NumPy arrays too.
            given = {n: v if _is_option(v) else jax.tree.map(jnp.asarray, v) for n, v in bound.arguments.items()}
            return op(**given)
        arrays = {n: v for n, v in bound.arguments.items() if jax.tree.leaves(v) and not _is_option(v)}
        options = {n: v for n, v in bound.arguments.items() if n not in arrays and _is_option(v)}
        fixed = {n: arrays.pop(n) for n in ("lengths", "dropout_h", *_of_steps(name)) if n in arrays}
        return _apply(name, _dispatch.numpy_wing(), tuple(options.items()), arrays, fixed)

    del called.__dict__["vjp"], called.__wrapped__
    called.__signature__ = signature  # type: ignore[attr-defined]
    called.__doc__ = f"`gpurnn.{name}`, for `jax.grad`, `jax.jit` and `jax.vmap`; arguments and results are the same."
    return called


def _of_steps(name: str) -> tuple[str, ...]:
    """The arguments, besides x, with an axis of steps."""
    return "resets", "mask", *_KINDS[name].masks


def _is_option(value: Any) -> bool:
    return value is not None and not any(hasattr(leaf, "shape") for leaf in jax.tree.leaves(value))


def _traced(tree: Any) -> bool:
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree))


def _computed(
    name: str, wing: str, options: Any, vjp: bool, arrays: Arguments, fixed: Arguments, cotangents: Any
) -> Any:
    """Compute the outputs, or with ``vjp`` the gradients of ``arrays``, with NumPy arrays."""
    arrays, fixed, cotangents = jax.tree.map(np.asarray, (arrays, fixed, cotangents))
    op: Any = getattr(functional, name)
    with _dispatch.use(wing):
        if not vjp:
            return op(**arrays, **fixed, **dict(options))
        _, pullback = op.vjp(**arrays, **fixed, **dict(options))
        (dx, dstate), gradients = pullback(cotangents)
    found = {"x": dx, "state": dstate, **gradients}
    return {n: _like(found[n], value) for n, value in arrays.items()}


def _like(gradients: Any, arrays: Any) -> Any:
    """Return gradients, with None for states that were not given."""
    if isinstance(arrays, (tuple, list)):
        return type(arrays)(None if a is None else g for g, a in zip(gradients, arrays, strict=True))
    return gradients


def _outputs_of(name: str, options: Any, arrays: Arguments, fixed: Arguments) -> Any:
    """The shapes and dtypes of the outputs: those of a single step of zeros, which also checks all arguments."""
    zeros = jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), {n: a for n, a in arrays.items() if n != "x"})
    x = arrays["x"]
    fixed = {
        n: np.zeros((min(a.shape[0], 1), *a.shape[1:]) if n in _of_steps(name) else a.shape, a.dtype)
        for n, a in fixed.items()
    }
    op: Any = getattr(functional, name)
    y, state = op(np.zeros((min(x.shape[0], 1), *x.shape[1:]), x.dtype), **zeros, **fixed, **dict(options))
    return jax.ShapeDtypeStruct((x.shape[0], *y.shape[1:]), y.dtype), _shapes(state)


def _shapes(tree: Any) -> Any:
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), tree)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _apply(name: str, wing: str, options: Any, arrays: Arguments, fixed: Arguments) -> Any:
    shapes = _outputs_of(name, options, arrays, fixed)
    run = functools.partial(_computed, name, wing, options, False)
    return jax.pure_callback(run, shapes, arrays, fixed, (), vmap_method="sequential")


def _forward(name: str, wing: str, options: Any, arrays: Arguments, fixed: Arguments) -> Any:
    return _apply(name, wing, options, arrays, fixed), (arrays, fixed)


def _backward(name: str, wing: str, options: Any, residuals: Any, cotangents: Any) -> Any:
    arrays, fixed = residuals
    run = functools.partial(_computed, name, wing, options, True)
    return jax.pure_callback(run, _shapes(arrays), arrays, fixed, cotangents, vmap_method="sequential"), None


_apply.defvjp(_forward, _backward)

rnn = _of("rnn")
lstm = _of("lstm")
gru = _of("gru")
indrnn = _of("indrnn")
mingru = _of("mingru")
minlstm = _of("minlstm")
