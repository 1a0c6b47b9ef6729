"""Linear state-space models as layers with trainable matrices, dense or diagonal."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy as np

from .. import _arrays, _checks, _dispatch, initializers
from .._contract import Array
from .._op import Pullback
from .._random import generator
from ..functional._ssm import OUTPUT_STATES, OutputState, run_ssm
from ..functional._state import cotangents_of
from .base import Layer, Parameters, parameter, parameter_dtype


class _StateSpace(Layer):
    """The base class of the state-space layers; subclasses define how A depends on the parameters."""

    stateful = True
    batch_first = False

    def __init__(
        self, input_size: int, state_size: int, output_size: int, output_state: OutputState, complex: bool
    ) -> None:
        where = type(self).__name__
        self.input_size = _checks.size(where, "input_size", input_size)
        self.state_size = _checks.size(where, "state_size", state_size)
        self.output_size = _checks.size(where, "output_size", output_size)
        self.output_state = _checks.choice(where, "output_state", output_state, OUTPUT_STATES)
        self.complex = _checks.flag(where, "complex", complex)

    def _initialise(
        self,
        params: dict[str, Array],
        dtype: np.dtype[Any],
        rng: np.random.Generator,
        scale: Callable[[], Any],
        feedthrough: bool,
    ) -> None:
        """Set ``params``, with B, C and D added.

        ``scale()`` is the standard deviation that white input adds to each state.
        """
        parts = ("_real", "_imag") if self.complex else ("",)
        I, N, O = self.input_size, self.state_size, self.output_size

        def initial(shape: tuple[int, int], gain: Callable[[], Any]) -> np.ndarray[Any, Any]:
            std = gain() / math.sqrt(shape[1])
            return (rng.standard_normal(shape) * np.reshape(std, (-1, 1)) / math.sqrt(len(parts))).astype(dtype)

        def initial_feedthrough() -> np.ndarray[Any, Any]:
            return (rng.standard_normal((O, I)) / math.sqrt(I)).astype(dtype)

        for name, shape, gain in (("B", (N, I), scale), ("C", (O, N), lambda: 1.0)):
            for part in parts:
                params[name + part] = parameter(shape, dtype, partial(initial, shape, gain))
        self.feedthrough = _checks.flag(type(self).__name__, "feedthrough", feedthrough)
        if self.feedthrough:
            params["D"] = parameter((O, I), dtype, initial_feedthrough)
        self.params = Parameters(params)

    def _parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each parameter, including those that only other state-space layers have."""
        I, N, O = self.input_size, self.state_size, self.output_size
        shapes = dict.fromkeys(("B", "B_real", "B_imag"), (N, I)) | dict.fromkeys(("C", "C_real", "C_imag"), (O, N))
        return {"A": (N, N), "nu": (N,), "theta": (N,), **shapes, "D": (O, I)}

    def _transition(self, xp: Any, params: dict[str, Array]) -> tuple[Array, Any]:
        """A, and a function from its gradient to the gradients of the parameters that define it."""
        raise NotImplementedError

    def __call__(
        self,
        x: Array,
        state: Any = None,
        lengths: Array | None = None,
        resets: Array | None = None,
        *,
        return_states: bool = False,
    ) -> tuple[Any, ...]:
        """Return the outputs and the final state; save nothing.

        Parameters
        ----------
        x : (T, B, input_size) array
            Has the dtype of the parameters.
        state : (1, B, state_size) array, optional
            The initial state, zero by default; for a complex model a pair of such arrays, real and imaginary part.
        lengths : (B,) integer array, optional
            The number of steps of each sequence, in any order, zero allowed. x is not read past it.
        resets : (T, B) array of bools, or of integers 0 and 1, optional
            True where a new sequence starts: the state before that step is zero.
        return_states : bool
            Whether the states of all steps are returned too.

        Returns
        -------
        y : (T, B, output_size) array
            Exactly zero past a sequence's length.
        state
            The final state, shaped like ``state``, taken after each sequence's last step.
        states : (T, B, state_size) array
            Only with ``return_states``: the state after each step, exactly zero past a sequence's length; for a complex
            model a pair of such arrays.

        Raises
        ------
        TypeError, ValueError
            Arrays or dtypes are unsupported or mixed, or shapes or lengths do not fit.
        """
        return self._forward(x, state, lengths, resets, training=False, return_states=return_states)[0]

    def vjp(
        self,
        x: Array,
        state: Any = None,
        lengths: Array | None = None,
        resets: Array | None = None,
        rng: int | np.random.Generator | None = None,
        *,
        return_states: bool = False,
        checkpoint_every: int | str | None = None,
        state_after: int | None = None,
    ) -> tuple[tuple[Any, ...], Pullback]:
        """Return ``((y, state), pullback)``; ``pullback((dy, dstate))`` returns ``((dx, dstate0), grads)``.

        The first four arguments and ``return_states`` are those of a call; ``rng`` is not used. With ``return_states``
        the outputs are ``(y, state, states)``, and the pullback takes ``(dy, dstate, dstates)``.

        Parameters
        ----------
        checkpoint_every : int or "sqrt", optional
            K, for gradient checkpointing: keep the state at every K-th step only, and recompute the steps between in
            the pullback. Memory, except for x, y and their gradients, falls from O(T) to O(T/K + K). "sqrt" is
            K = ceil(sqrt(T)). The result has the same bits as without; for that, K is rounded up to whole chunks of
            ``ceil(8192 / B)`` steps.
        state_after : int, optional
            Return the state after this many steps, 0 ... T, instead of the final state, and take its gradient.
        """
        return self._forward(
            x,
            state,
            lengths,
            resets,
            training=True,
            return_states=return_states,
            checkpoint_every=checkpoint_every,
            state_after=state_after,
        )

    def _forward(
        self, x: Array, state: Any, lengths: Array | None, resets: Array | None, *, training: bool, **options: Any
    ) -> tuple[tuple[Any, ...], Any]:
        where = type(self).__name__
        parts = self._parts("state", state)
        params = _arrays.parameters(where, self.params, self._parameter_shapes())
        xp, _, x, *given, lengths, resets = _arrays.take(
            where, {"params": next(iter(params.values())), "x": x, **parts}, {"lengths": lengths}, {"resets": resets},
            needed=("x",),
        )  # fmt: skip
        parts = dict(zip(parts, given, strict=True))
        _checks.ndim(where, "x", x, 3, "(T, B, input_size)")
        if x.shape[2] != self.input_size:
            raise ValueError(
                f"{where}: x has shape {tuple(x.shape)}, expected input_size = {self.input_size} at its end"
            )
        shape = (1, x.shape[1], self.state_size)
        A, pull_transition = self._transition(xp, params)
        B, C = (
            self._joined(xp, params[f"{name}_real"], params[f"{name}_imag"]) if self.complex else params[name]
            for name in "BC"
        )
        (y, final, *states), pull = run_ssm(
            where, training, x, A, B, C, params.get("D"), self._inner_state(xp, parts, shape, x),
            output_state=self.output_state, lengths=lengths, resets=resets, **options,
        )  # fmt: skip

        outputs = (y, self._outer_state(xp, final), *(self._split(xp, h) for h in states))

        def pullback(cotangents: Any) -> tuple[tuple[Array, Any], dict[str, Array]]:
            dy, dstate, *dstates = cotangents_of(where, cotangents, ("y", "state", "states")[: len(outputs)])
            given = [self._parts("dstate", dstate), *(self._parts("dstates", d) for d in dstates)]
            taken = iter(_arrays.take(where, {"y": y, **{name: d for each in given for name, d in each.items()}})[2:])
            dfinal, *dall = ({name: next(taken) for name in each} for each in given)
            steps = (*x.shape[:2], self.state_size)
            of_steps = (self._whole(xp, each, steps, "(T, B, state_size)", x) for each in dall)
            (dx, dstate0), by_matrix = pull((dy, self._inner_state(xp, dfinal, shape, x), *of_steps))
            grads = pull_transition(by_matrix.pop("A"))
            for name, gradient in by_matrix.items():
                if name != "D" and self.complex:
                    grads[f"{name}_real"] = _arrays.contiguous(xp.real(gradient))
                    grads[f"{name}_imag"] = _arrays.contiguous(xp.imag(gradient))
                else:
                    grads[name] = gradient
            return (dx, self._outer_state(xp, dstate0)), self._summed(grads)

        return outputs, pullback if training else None

    def _parts(self, name: str, state: Any) -> dict[str, Array | None]:
        """The arrays of a state by their names in messages."""
        if not self.complex:
            if isinstance(state, (tuple, list)):
                raise TypeError(
                    f"{type(self).__name__}: {name} is {_checks.described(state)}, expected one array, as the states "
                    "of this layer are real"
                )
            return {name: state}
        if state is None:
            return {f"{name}[0]": None, f"{name}[1]": None}
        if not isinstance(state, (tuple, list)) or len(state) != 2:
            raise TypeError(
                f"{type(self).__name__}: {name} is {_checks.described(state)}, expected a pair (real, imaginary)"
            )
        return {f"{name}[0]": state[0], f"{name}[1]": state[1]}

    @staticmethod
    def _joined(xp: Any, real: Array, imag: Array) -> Array:
        """The complex array of a real and an imaginary part."""
        kind = xp.complex64 if _checks.dtype_name(real) == "float32" else xp.complex128
        return xp.astype(real, kind) + 1j * xp.astype(imag, kind)

    def _inner_state(
        self, xp: Any, parts: dict[str, Array | None], shape: tuple[int, ...], like: Array
    ) -> Array | None:
        """The (B, state_size) array for `ssm`, from the parts of a state."""
        whole = self._whole(xp, parts, shape, "(1, B, state_size)", like)
        return None if whole is None else whole[0, ...]

    def _whole(
        self, xp: Any, parts: dict[str, Array | None], shape: tuple[int, ...], symbol: str, like: Array
    ) -> Array | None:
        """The array for `ssm`, from the caller's parts."""
        for name, part in parts.items():
            if part is not None:
                _checks.shape(type(self).__name__, name, part, shape, symbol)
        if all(part is None for part in parts.values()):
            return None
        zero = _dispatch.zeros(xp, shape, like)
        arrays = [zero if part is None else part for part in parts.values()]
        return self._joined(xp, *arrays) if self.complex else arrays[0]

    def _outer_state(self, xp: Any, state: Array) -> Any:
        """The reverse of `_inner_state`."""
        return self._split(xp, xp.expand_dims(state, axis=0))

    def _split(self, xp: Any, whole: Array) -> Any:
        """The reverse of `_whole`."""
        if not self.complex:
            return whole
        return _arrays.contiguous(xp.real(whole)), _arrays.contiguous(xp.imag(whole))

    def _widths(self, given: int | None) -> tuple[int | None, int | None]:
        return self.input_size, self.output_size


class StateSpace(_StateSpace):
    """Linear state-space layer with a dense A: h_t = A h_{t-1} + B x_t, y_t = C h_t + D x_t; see `gpurnn.ssm`.

    Parameters
    ----------
    input_size, state_size, output_size : int
    output_state : {"after", "before"}
        Which state y reads: h_t, after the update, or h_{t-1}, before it, as `scipy.signal.dlsim` does.
    feedthrough : bool
        Whether there is a D.
    radius : float
        The initial modulus of A's eigenvalues: A starts as an orthogonal matrix times ``radius``. Training may make A
        unstable; a `DiagonalStateSpace` stays stable.
    dtype : "float32" or "float64"
    rng : int or numpy.random.Generator
        Where the initial matrices come from.

    Attributes
    ----------
    params : dict of str to array
        ``A`` (state_size, state_size), ``B`` (state_size, input_size), ``C`` (output_size, state_size) and ``D``
        (output_size, input_size).

    Raises
    ------
    TypeError, ValueError
        A size is below 1, the radius is negative, or dtype or output_state is unknown.

    References
    ----------
    A. Gu, K. Goel, C. Ré, "Efficiently modeling long sequences with structured state spaces" (ICLR 2022), section 2.

    Examples
    --------
    >>> import numpy as np
    >>> import gpurnn
    >>> layer = gpurnn.StateSpace(3, 8, 2)
    >>> layer
    StateSpace(3, 8, 2)  # 110 parameters
    >>> y, state = layer(np.zeros((5, 4, 3), np.float32))
    >>> y.shape, state.shape
    ((5, 4, 2), (1, 4, 8))
    """

    def __init__(
        self,
        input_size: int,
        state_size: int,
        output_size: int,
        *,
        output_state: OutputState = "after",
        feedthrough: bool = True,
        radius: float = 0.95,
        dtype: Any = "float32",
        rng: int | np.random.Generator = 0,
    ) -> None:
        super().__init__(input_size, state_size, output_size, output_state, False)
        self.radius = radius = _checks.non_negative("StateSpace", "radius", radius)
        kind, random = parameter_dtype("StateSpace", dtype), generator("StateSpace", rng)
        shape = (self.state_size, self.state_size)
        params = {"A": parameter(shape, kind, lambda: initializers.orthogonal(radius)(random, shape, kind))}
        # This makes the variance of the states that of white input.
        scale = math.sqrt(1 - radius**2) if radius < 1 else 1.0
        self._initialise(params, kind, random, lambda: scale, feedthrough)

    def _transition(self, xp: Any, params: dict[str, Array]) -> tuple[Array, Any]:
        return params["A"], lambda dA: {"A": dA}


class DiagonalStateSpace(_StateSpace):
    """Linear state-space layer with a stable diagonal A: h_t = a h_{t-1} + B x_t, y_t = Re(C h_t) + D x_t.

    a = exp(-exp(nu) + i theta), so that |a| < 1 whatever values training gives nu and theta (where exp(-exp(nu)) rounds
    to 1, |a| is 1 - 4 epsilon). In a real layer, a = exp(-exp(nu)) is between 0 and 1. The states are computed by
    `gpurnn.linear_scan`, in parallel over time.

    Parameters
    ----------
    input_size, state_size, output_size : int
    complex : bool
        Whether a, B, C and the state are complex. Parameters and states are real arrays all the same: real and
        imaginary parts are separate.
    output_state : {"after", "before"}
        Which state y reads: h_t, after the update, or h_{t-1}, before it, as `scipy.signal.dlsim` does.
    feedthrough : bool
        Whether there is a D.
    radius : pair of float
        The least and the largest initial |a|, 0 < least <= largest < 1; |a|^2 is uniform between them. A state
        remembers for about 1/(1 - |a|) steps.
    max_phase : float
        The initial phases theta of a complex a are uniform in (0, max_phase), in radians. Phases beyond pi add nothing,
        because y is a real part.
    dtype : "float32" or "float64"
        The dtype of the parameters.
    rng : int or numpy.random.Generator
        Where the initial parameters come from.

    Attributes
    ----------
    params : dict of str to array
        ``nu`` (state_size,), ``B`` (state_size, input_size), ``C`` (output_size, state_size) and ``D``
        (output_size, input_size). If complex, also ``theta`` (state_size,), and ``B_real``, ``B_imag``, ``C_real``,
        ``C_imag`` instead of B and C.

    Raises
    ------
    TypeError, ValueError
        A size is below 1, a radius is out of (0, 1), a phase is negative, or dtype or output_state is unknown.

    Notes
    -----
    The rows of B start with the factor sqrt(1 - |a|^2), which gives every state the variance of white input. It is the
    normalisation gamma of the LRU, but as part of the initial B instead of a separate parameter.

    References
    ----------
    A. Orvieto et al., "Resurrecting recurrent neural networks for long sequences" (ICML 2023), sections 3.3 and 3.4:
    the LRU; A. Gu, A. Gupta, K. Goel, C. Ré, "On the parameterization and initialization of diagonal state space
    models" (NeurIPS 2022).

    Examples
    --------
    >>> import numpy as np
    >>> import gpurnn
    >>> layer = gpurnn.DiagonalStateSpace(3, 8, 2)
    >>> layer
    DiagonalStateSpace(3, 8, 2)  # 102 parameters
    >>> (y, (real, imag)), pullback = layer.vjp(np.zeros((5, 4, 3), np.float32))
    >>> y.shape, real.shape, imag.shape
    ((5, 4, 2), (1, 4, 8), (1, 4, 8))
    >>> (dx, dstate), grads = pullback((y, None))
    >>> sorted(grads)
    ['B_imag', 'B_real', 'C_imag', 'C_real', 'D', 'nu', 'theta']
    """

    def __init__(
        self,
        input_size: int,
        state_size: int,
        output_size: int,
        *,
        complex: bool = True,
        output_state: OutputState = "after",
        feedthrough: bool = True,
        radius: tuple[float, float] = (0.9, 0.999),
        max_phase: float = math.pi,
        dtype: Any = "float32",
        rng: int | np.random.Generator = 0,
    ) -> None:
        where = "DiagonalStateSpace"
        super().__init__(input_size, state_size, output_size, output_state, complex)
        if not isinstance(radius, (tuple, list)) or len(radius) != 2:
            raise TypeError(f"{where}: radius is {radius!r}, expected a pair (least, largest)")
        least, largest = (_checks.fraction(where, f"radius[{i}]", r) for i, r in enumerate(radius))
        if not 0 < least <= largest:
            raise ValueError(f"{where}: radius is {radius!r}, expected 0 < least <= largest < 1")
        self.radius = (least, largest)
        self.max_phase = max_phase = _checks.non_negative(where, "max_phase", max_phase)
        if not self.complex and max_phase != math.pi:
            raise ValueError(f"{where}: max_phase is {max_phase}, expected none with complex=False: a has no phase")
        kind, random = parameter_dtype(where, dtype), generator(where, rng)
        shape = (self.state_size,)
        squares = cache(lambda: random.uniform(least**2, largest**2, shape))
        params = {"nu": parameter(shape, kind, lambda: np.log(-np.log(squares()) / 2).astype(kind))}
        if self.complex:
            params["theta"] = parameter(shape, kind, lambda: random.uniform(0, max_phase, shape).astype(kind))
        self._initialise(params, kind, random, lambda: np.sqrt(1 - squares()), feedthrough)

    def _transition(self, xp: Any, params: dict[str, Array]) -> tuple[Array, Any]:
        # Beyond these bounds exp(-exp(nu)) rounds to 1 or 0: |a| would be 1, or its gradient infinity times zero.
        rate = xp.exp(xp.clip(params["nu"], None, 80.0))
        radius = xp.clip(xp.exp(-rate), None, 1 - 4 * float(xp.finfo(rate.dtype).eps))
        if not self.complex:
            return radius, lambda da: {"nu": -da * rate * radius}
        theta = params["theta"]
        real, imag = radius * xp.cos(theta), radius * xp.sin(theta)

        def pull(da: Array) -> dict[str, Array]:
            dreal, dimag = xp.real(da), xp.imag(da)
            return {"nu": -rate * (dreal * real + dimag * imag), "theta": dimag * real - dreal * imag}

        return self._joined(xp, real, imag), pull
