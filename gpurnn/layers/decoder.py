"""Recurrent decoders: without attention, with Bahdanau's attention, or with Luong's and its input feeding."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .. import _arrays, _checks, _dispatch, functional, initializers
from .._contract import Array, State, Wing
from .._op import Pullback
from .._random import generator, mask_key
from ..cells import Cell
from ..functional._attention import SCORES
from ..functional._dropout import dropout_mask
from ..functional._state import pack_state, unpack_state
from .base import Composite, Layer, Parameters, parameter, parameter_dtype
from .recurrent import Recurrent, layer_names, step_mask

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True)
class Carried:
    """The arrays that a decoder carries from one step to the next, for B rows.

    Attributes
    ----------
    state : tuple of tuples of (B, H) arrays
        For each layer (h,), or (h, c).
    fed : (B, A) array or None
        The attentional vector of the previous step, with input feeding.
    memory, keys : (S, B, K) and (S, B, ...) arrays or None
        The memory to attend to, zero past the lengths, and its projection.
    lengths : (B,) integer array or None
    """

    state: tuple[tuple[Array, ...], ...]
    fed: Array | None
    memory: Array | None
    keys: Array | None
    lengths: Array | None

    def rows(self, indices: Array) -> Carried:
        """The rows with these indices, in this order; an index may occur more than once."""
        xp = _dispatch.namespace("Decoder", state=self.state[0][0])

        def take(array: Array | None, axis: int) -> Any:
            return None if array is None else xp.take(array, indices, axis=axis)

        return Carried(
            tuple(tuple(take(s, 0) for s in layer) for layer in self.state),
            take(self.fed, 0), take(self.memory, 1), take(self.keys, 1), take(self.lengths, 0),
        )  # fmt: skip


class _Kept(NamedTuple):
    """The values that a step saves for its backward pass."""

    before: Array  # h_{t-1} of the last layer
    extra: Array | None  # the input besides x_t: the context or the fed vector
    inputs: list[Array]  # those of the layers after the first
    saved: list[Any]  # of the cells
    norms: list[Any]  # the pullbacks of the layer norms of x W, None without
    attended: Any
    h: Array  # of the last layer
    joint: Array | None  # [c_t; h_t]
    output: Array


class _StepGradients(NamedTuple):
    """The gradients of a step, for the previous step, the memory and the products that give the weights' gradients."""

    state: tuple[tuple[Array, ...], ...]
    extra: Array
    gates: list[Array]  # of each layer's x W
    hidden: dict[str, Array]  # of W_hh and b_hh
    attentional: Array | None  # of W_c [c_t; h_t]
    query: Array
    keys: Array
    memory: Array
    v: Array | None


class Decoder(Composite):
    r"""Recurrent decoder of x_1 .. x_T over a memory h^enc_1 .. h^enc_S, the states of an encoder.

    Without attention it is the recurrent stack alone: h_t = f(x_t, h_{t-1}), and the output is h_t.

    "additive" is Bahdanau's decoder: the context of a step is computed from the state before the step, and enters it::

        e_ts = v_a^T tanh(W_a h_{t-1} + U_a h^enc_s)     alpha_t = softmax(e_t)     c_t = sum_s alpha_ts h^enc_s
        h_t = f(W_hh h_{t-1} + W_ch c_t + W_xh x_t + b_h)                           output [h_t; c_t; x_t]

    "general" and "dot" are Luong's decoders: the context is computed from the state after the step::

        e_ts = h_t^T W_a h^enc_s  or  h_t^T h^enc_s      alpha_t, c_t as above      output h~_t = tanh(W_c [c_t; h_t])

    With ``input_feeding`` the step reads [x_t; h~_{t-1}] instead of x_t, with h~_0 = 0. h_t in a score is the state of
    the last layer.

    Parameters
    ----------
    recurrent : RNN, LSTM or GRU
        The stack, in one direction and time-major, with any options of its cell except ``proj_size``. Its dropout
        between layers and its masks for each step act here too. Other dropouts and residual connections are not
        supported. Its ``input_size`` is the width of x_t, plus the width of the memory with "additive", plus
        ``attentional_size`` with input feeding: see `input_size`.
    attention : {"additive", "general", "dot"}, optional
        None for no attention.
    memory_size : int, optional
        K, the width of h^enc; needed with attention.
    attention_size : int, optional
        The rows of W_a and U_a; the hidden size by default. Only for "additive".
    attentional_size : int, optional
        The width of h~; the hidden size by default. Only for "general" and "dot".
    input_feeding : bool
        Whether a step reads h~_{t-1} too. Only for "general" and "dot".
    rng : int or numpy.random.Generator
        Where the initial parameters of the attention come from.

    Attributes
    ----------
    params : dict of str to array
        The parameters of the stack, and ``weight_query`` W_a (A, H), ``weight_keys`` U_a (A, K) and ``v`` (A,); or
        ``weight`` W_a (H, K), only for "general", and ``weight_combine`` W_c (C, K + H).
    output_size : int
        The width of the output.

    Raises
    ------
    TypeError, ValueError
        An option does not belong to the attention, or sizes do not fit.

    References
    ----------
    D. Bahdanau, K. Cho, Y. Bengio, "Neural machine translation by jointly learning to align and translate", ICLR 2015,
    appendix A.2; M.-T. Luong, H. Pham, C. D. Manning, "Effective approaches to attention-based neural machine
    translation", EMNLP 2015, sections 3.1 and 3.3.

    Examples
    --------
    >>> import numpy as np
    >>> import gpurnn
    >>> from gpurnn.layers import Decoder
    >>> decoder = Decoder(gpurnn.GRU(3 + 6, 4), "additive", memory_size=6)
    >>> x, memory = np.ones((5, 2, 3), np.float32), np.ones((7, 2, 6), np.float32)
    >>> output, weights, state = decoder(x, memory, lengths=np.array([7, 2]))
    >>> output.shape, weights.shape, state.shape
    ((5, 2, 13), (5, 2, 7), (1, 2, 4))
    """

    def __init__(
        self,
        recurrent: Recurrent,
        attention: str | None = None,
        *,
        memory_size: int | None = None,
        attention_size: int | None = None,
        attentional_size: int | None = None,
        input_feeding: bool = False,
        rng: int | np.random.Generator = 0,
    ) -> None:
        where = "Decoder"
        if not isinstance(recurrent, Recurrent):
            raise TypeError(f"{where}: recurrent is {_checks.described(recurrent)}, expected an {layer_names()}")
        for name in ("bidirectional", "batch_first", "residual", "variational_dropout", "recurrent_dropout"):
            if getattr(recurrent, name):
                raise ValueError(f"{where}: recurrent has {name}={getattr(recurrent, name)!r}, which a decoder lacks")
        if projected := getattr(recurrent.cell, "proj_size", 0):
            raise ValueError(
                f"{where}: recurrent has proj_size={projected}, expected 0: a decoder has outputs of hidden_size"
            )
        attention = _checks.choice(where, "attention", attention, (None, *SCORES))
        input_feeding = _checks.flag(where, "input_feeding", input_feeding)
        allowed = {
            "memory_size": attention is not None,
            "attention_size": attention == "additive",
            "attentional_size": attention in ("general", "dot"),
            "input_feeding": attention in ("general", "dot"),
        }
        given = {"memory_size": memory_size, "attention_size": attention_size, "attentional_size": attentional_size}
        for name, value in {**given, "input_feeding": input_feeding or None}.items():
            if value is not None and not allowed[name]:
                expected = False if name == "input_feeding" else None
                raise ValueError(f"{where}: {name} is {value!r}, expected {expected} with attention={attention!r}")
        self.recurrent, self.attention, self.input_feeding = recurrent, attention, input_feeding
        self.memory_size, self.attention_size, self.attentional_size = memory_size, attention_size, attentional_size
        H, kind = recurrent.hidden_size, parameter_dtype(where, recurrent._argument("dtype"))
        self._own = Parameters({})
        self._own_shapes: dict[str, tuple[int, ...]] = {}
        self.output_size, extra = H, 0
        if attention is not None:
            K = self.memory_size = _checks.size(where, "memory_size", memory_size)
            random, xavier = generator(where, rng), initializers.get("xavier")
            if attention == "additive":
                A = H
                if attention_size is not None:
                    A = self.attention_size = _checks.size(where, "attention_size", attention_size)
                shapes: dict[str, tuple[int, ...]] = {"weight_query": (A, H), "weight_keys": (A, K), "v": (A,)}
                extra, self.output_size = K, H + recurrent.input_size
            else:
                C = H
                if attentional_size is not None:
                    C = self.attentional_size = _checks.size(where, "attentional_size", attentional_size)
                shapes = {"weight": (H, K)} if attention == "general" else {}
                if attention == "dot" and K != H:
                    raise ValueError(f"{where}: memory_size is {K}, expected hidden_size = {H} for the dot product")
                shapes["weight_combine"] = (C, K + H)
                extra, self.output_size = C if input_feeding else 0, C

            def initial(shape: tuple[int, ...]) -> Array:
                """The initial array; a vector starts like a matrix with one row."""
                rows, columns = (1, *shape)[-2:]
                return xavier(random, (rows, columns), kind).reshape(shape)

            self._own = Parameters(
                {name: parameter(shape, kind, partial(initial, shape)) for name, shape in shapes.items()}
            )
            self._own_shapes = shapes
        self.input_size = recurrent.input_size - extra
        if self.input_size < 1:
            raise ValueError(
                f"{where}: recurrent has input_size {recurrent.input_size}, expected more than the {extra} that "
                "attention adds to x"
            )

    def _layers(self) -> dict[str, Layer]:
        return {"": self.recurrent}

    def _places(self) -> dict[str, tuple[dict[str, Array], str]]:
        return {**super()._places(), **{name: (self._own, name) for name in self._own}}

    def _taken(self) -> dict[str, Array]:
        """The parameters under all their names, ready to compute with."""
        params = {name: held[own] for name, (held, own) in self._places().items()}
        return _arrays.parameters("Decoder", params, self.recurrent._parameter_shapes() | self._own_shapes)

    def to(self, device: Any) -> Self:
        xp, moved = _dispatch.arrays_on(device), copy.copy(self)
        moved.recurrent = self.recurrent.to(xp)
        moved._own = Parameters(
            {name: _dispatch.from_numpy(xp, _dispatch.to_numpy(p)) for name, p in self._own.items()}
        )
        moved._share(self._shared())
        return moved

    to.__doc__ = Layer.to.__doc__

    @property
    def stepwise(self) -> bool:
        """Whether a step's input depends on what earlier steps read from the memory."""
        return self.attention == "additive" or self.input_feeding

    def __call__(
        self, x: Array, memory: Array | None = None, state: State = None, lengths: Array | None = None
    ) -> tuple[Array, Array | None, State]:
        """Return the outputs, the alignment and the final state, without dropout; save nothing.

        Parameters
        ----------
        x : (T, B, input_size) array
            T is at least 1.
        memory : (S, B, memory_size) array, optional
            h^enc; None without attention.
        state
            The initial state of the stack, in the form of its layer; zero by default.
        lengths : (B,) integer array, optional
            The number of positions of the memory, for each row.

        Returns
        -------
        output : (T, B, output_size) array
        weights : (T, B, S) array or None
            alpha: row t has the weights of step t.
        state
            The stack's final state.
        """
        xp, x, memory, lengths = self._take(x, memory, lengths)
        if not self.stepwise:
            y, final = self.recurrent(x, state)
            if self.attention is None:
                return y, None, final
            p = self._taken()
            context, weights = functional.attention(y, memory, lengths=lengths, **self._score(p))
            joint = xp.concat([context, y], axis=2)
            return functional.dense(joint, p["weight_combine"], activation="tanh"), weights, final
        carried = self.begin(memory, state, lengths, batch=x.shape[1])
        outputs, alignment = [], []
        for t in range(x.shape[0]):
            output, alpha, carried = self.step(x[t, ...], carried)
            outputs.append(output)
            alignment.append(alpha)
        return xp.stack(outputs), xp.stack(alignment), self._packed(xp, carried.state)

    def begin(
        self,
        memory: Array | None = None,
        state: State = None,
        lengths: Array | None = None,
        *,
        batch: int | None = None,
    ) -> Carried:
        """The arrays that the first `step` takes: the state, and the memory prepared for attention.

        Parameters
        ----------
        memory, state, lengths
            The same as in a call.
        batch : int, optional
            B, needed if there is neither a memory nor a state.
        """
        like = self.recurrent.params["weight_hh_l0"]
        xp, like, memory, lengths = _arrays.take("Decoder", {"params": like, "memory": memory}, {"lengths": lengths})
        self._check_memory(memory, lengths, None if memory is None else memory.shape[1:2])
        layers = self._unpacked(xp, state, batch if memory is None else memory.shape[1])
        B = layers[0][0].shape[0]
        fed = _dispatch.zeros(xp, (B, self.output_size), like) if self.input_feeding else None
        keys = None
        if memory is not None:
            if lengths is not None:
                steps = xp.arange(memory.shape[0], dtype=xp.int64, device=_dispatch.device(memory))
                exists = steps[:, None] < lengths[None, :]
                memory = xp.where(exists[:, :, None], memory, xp.zeros_like(memory))
            keys = _product(xp, memory, self._taken()["weight_keys"]) if self.attention == "additive" else memory
        return Carried(layers, fed, memory, keys, lengths)

    def step(self, x: Array, carried: Carried) -> tuple[Array, Array | None, Carried]:
        """Run a step on x (B, input_size); return output (B, output_size), alpha (B, S) or None, and the new state."""
        p = self._taken()
        xp, _, x = _arrays.take("Decoder", {"params": p["weight_ih_l0"], "x": x}, needed=("x",))
        B = carried.state[0][0].shape[0]
        _checks.shape("Decoder", "x", x, (B, self.input_size), "(B, input_size)")
        own = xp.matmul(x, p["weight_ih_l0"][:, : self.input_size].T)
        output, weights, carried, _ = self._step(xp, p, x, own, carried, training=False)
        return output, weights, carried

    def _step(
        self,
        xp: Any,
        p: dict[str, Array],
        x: Array,
        own: Array,
        carried: Carried,
        *,
        training: bool,
        between: Sequence[Array] = (),
        masks: Sequence[dict[str, Array]] = (),
    ) -> tuple[Array, Array | None, Carried, _Kept | None]:
        """Run a step with the parameters p, given ``own`` = W_xh x; also return what its backward pass needs.

        ``masks`` are the masks of the layers' cells in this step.
        """
        cell = self.recurrent.cell
        if masks:
            cell = replace(cell, step_masks=tuple(masks[0]))
        wing = _dispatch.wing("Decoder", x=x)
        before, W_extra = carried.state[-1][0], p["weight_ih_l0"][:, self.input_size :]
        context = weights = attended = None
        if self.attention == "additive":
            context, weights, attended = self._look(xp, p, wing, before, carried, training)
        extra = context if self.attention == "additive" else carried.fed
        entering = own if extra is None else own + xp.matmul(extra, W_extra.T)
        state, saved, norms, inputs, h = [], [], list[Any](), [], before
        for layer, previous in enumerate(carried.state):
            if layer > 0:
                if between:
                    h = h * between[layer - 1]
                entering = xp.matmul(h, p[f"weight_ih_l{layer}"].T)
                inputs.append(h)
            gain, bias, norm = p.get(f"norm_ih_l{layer}"), p.get(f"bias_ih_l{layer}"), None
            if gain is not None:
                entering, norm = _normalised(xp, cell, entering, gain)
            norms.append(norm)
            weights_of_cell = {name: p[key] for name in cell.parameters if (key := f"{name}_l{layer}") in p}
            if masks:
                weights_of_cell |= masks[layer]
            new, of_cell = wing.cell_forward(
                cell, entering if bias is None else entering + bias, previous, weights_of_cell
            )  # fmt: skip
            h = new[0]
            state.append(new)
            saved.append(of_cell)
        joint, fed = None, carried.fed
        if self.attention is None:
            output = h
        elif self.attention == "additive":
            output = xp.concat([h, context, x], axis=1)
        else:
            context, weights, attended = self._look(xp, p, wing, h, carried, training)
            joint = xp.concat([context, h], axis=1)
            output = xp.tanh(xp.matmul(joint, p["weight_combine"].T))
            fed = output if self.input_feeding else None
        kept = _Kept(before, extra, inputs, saved, norms, attended, h, joint, output) if training else None
        return output, weights, replace(carried, state=tuple(state), fed=fed), kept

    def _look(
        self, xp: Any, p: dict[str, Array], wing: Wing, h: Array, carried: Carried, training: bool
    ) -> tuple[Array, Array, Any]:
        """The context and the attention weights for the state h (B, H), and the values for the backward pass."""
        assert carried.keys is not None
        assert carried.memory is not None
        query, v = h, None
        if self.attention == "additive":
            query, v = xp.matmul(h, p["weight_query"].T), p["v"]
        elif self.attention == "general":
            query = xp.matmul(h, p["weight"])
        context, weights, saved = wing.attention_forward(
            query[None, ...], carried.keys, carried.memory, v, lengths=carried.lengths, scale=1.0, training=training
        )
        return context[0, ...], weights[0, ...], saved

    def vjp(
        self,
        x: Array,
        memory: Array | None = None,
        state: State = None,
        lengths: Array | None = None,
        rng: int | np.random.Generator | None = None,
    ) -> tuple[tuple[Array, Array | None, State], Pullback]:
        """Return ``((output, weights, state), pullback)``; the arguments are the same as in a call.

        ``pullback((doutput, dweights, dstate))``, where None means zero, returns ``((dx, dmemory, dstate0), grads)``.
        With ``rng`` the stack's dropouts act.
        """
        xp, x, memory, lengths = self._take(x, memory, lengths)
        if self.stepwise:
            return self._vjp_of_steps(xp, x, memory, state, lengths, rng)
        (y, final), pull_recurrent = self.recurrent.vjp(x, state, rng=rng)
        output, weights = y, None
        if self.attention is not None:
            p = self._taken()
            (context, weights), pull_attention = functional.attention.vjp(y, memory, lengths=lengths, **self._score(p))
            joint = xp.concat([context, y], axis=2)
            output, pull_dense = functional.dense.vjp(joint, p["weight_combine"], activation="tanh")

        def pullback(cotangents: Any) -> tuple[tuple[Array, Array | None, State], dict[str, Array]]:
            dy, dweights, dfinal = self._cotangents(cotangents, output, weights)
            own, dmemory = {}, None
            if self.attention is not None:
                djoint, dense = pull_dense(dy)
                own["weight_combine"] = dense["weight"]
                K = memory.shape[2]
                (dquery, dmemory, _), grads = pull_attention((djoint[..., :K], dweights))
                own |= grads
                dy = dquery + djoint[..., K:]
            (dx, dstate0), grads = pull_recurrent((dy, dfinal))
            grads = {**grads, **own}
            return (dx, dmemory, dstate0), self._summed(grads)

        return (output, weights, final), pullback

    def _vjp_of_steps(
        self, xp: Any, x: Array, memory: Array | None, state: State, lengths: Array | None, rng: Any
    ) -> tuple[tuple[Array, Array, State], Pullback]:
        """`vjp` if the steps must run one after another."""
        p, L, (T, B, I) = self._taken(), self.recurrent.num_layers, x.shape
        first = self.begin(memory, state, lengths)
        between: list[Array] = []
        masks: list[dict[str, Array]] = []
        if rng is not None:
            random, shape = generator("Decoder", rng), (T, B, self.recurrent.hidden_size)
            if self.recurrent.dropout > 0:
                between = [dropout_mask(x, shape, self.recurrent.dropout, mask_key(random)) for _ in range(L - 1)]
            if rates := self.recurrent.cell.drawn_masks():
                masks = [
                    {n: step_mask(n, dropout_mask(x, shape, rates[n], mask_key(random))) for n in rates}
                    for _ in range(L)
                ]
        W_own = p["weight_ih_l0"][:, :I]
        own = _product(xp, x, W_own)
        outputs, alignment, carried = [], [], first
        tape: list[_Kept] = []
        for t in range(T):
            output, weights, carried, kept = self._step(
                xp, p, x[t, ...], own[t, ...], carried, training=True, between=[mask[t, ...] for mask in between],
                masks=[{name: mask[t, ...] for name, mask in of_layer.items()} for of_layer in masks],
            )  # fmt: skip
            outputs.append(output)
            alignment.append(weights)
            tape.append(kept)  # type: ignore[arg-type]
        output, weights, final = xp.stack(outputs), xp.stack(alignment), self._packed(xp, carried.state)

        def pullback(cotangents: Any) -> tuple[tuple[Array, Array, State], dict[str, Array]]:
            doutput, dweights, dfinal = self._cotangents(cotangents, output, weights)
            if doutput is None:
                doutput = xp.zeros_like(output)
            dstate, dfed = self._unpacked(xp, dfinal, B), None
            dkeys, dmemory = xp.zeros_like(first.keys), xp.zeros_like(first.memory)
            dv: dict[str, Array] = {}
            hidden: dict[str, Array] = {}
            # The gradients of each step, the last step first, for products over all steps afterwards.
            dgates: list[list[Array]] = [[] for _ in range(L)]
            dqueries: list[Array] = []
            dattentionals: list[Array] = []
            for t in reversed(range(T)):
                step = self._step_back(
                    xp, p, tape[t], doutput[t, ...], None if dweights is None else dweights[t : t + 1, ...],
                    dstate, dfed, [mask[t, ...] for mask in between],
                )  # fmt: skip
                dstate, dfed = step.state, step.extra if self.input_feeding else None
                dkeys, dmemory = dkeys + step.keys, dmemory + step.memory
                for name, g in step.hidden.items():
                    _add(hidden, name, g)
                if step.v is not None:
                    _add(dv, "v", step.v)
                for rows, gate in zip(dgates, step.gates, strict=True):
                    rows.append(gate)
                dqueries.append(step.query)
                if step.attentional is not None:
                    dattentionals.append(step.attentional)

            def along(rows: Iterable[Any]) -> Array:
                return xp.concat(list(rows), axis=0)

            gates = [along(reversed(rows)) for rows in dgates]
            inputs = [xp.concat([xp.reshape(x, (T * B, I)), along(kept.extra for kept in tape)], axis=1)]
            inputs += [along(kept.inputs[layer] for kept in tape) for layer in range(L - 1)]
            grads = {**hidden, **dv}
            for layer in range(L):
                grads[f"weight_ih_l{layer}"] = xp.matmul(gates[layer].T, inputs[layer])
                if f"norm_ih_l{layer}" not in p:  # else `hidden` has it
                    grads[f"bias_ih_l{layer}"] = xp.sum(gates[layer], axis=0)
            dx = xp.reshape(xp.matmul(gates[0], W_own), (T, B, I))
            dquery = along(reversed(dqueries))
            if self.attention == "additive":
                dx = dx + doutput[..., -I:]
                grads["weight_query"] = xp.matmul(dquery.T, along(kept.before for kept in tape))
                S, _, K = dmemory.shape
                flat = xp.reshape(dkeys, (S * B, dkeys.shape[2]))
                grads["weight_keys"] = xp.matmul(flat.T, xp.reshape(first.memory, (S * B, K)))
                dmemory = dmemory + _product(xp, dkeys, p["weight_keys"].T)
            else:
                dattentional = along(reversed(dattentionals))
                grads["weight_combine"] = xp.matmul(dattentional.T, along(kept.joint for kept in tape))
                if self.attention == "general":
                    grads["weight"] = xp.matmul(along(kept.h for kept in tape).T, dquery)
                dmemory = dmemory + dkeys
            return (dx, dmemory, self._packed(xp, dstate)), self._summed(grads)

        return (output, weights, final), pullback

    def _step_back(
        self,
        xp: Any,
        p: dict[str, Array],
        kept: _Kept,
        doutput: Array,
        dweights: Array | None,
        dstate: tuple[tuple[Array, ...], ...],
        dfed: Array | None,
        between: Sequence[Array],
    ) -> _StepGradients:
        """The backward pass of `_step`."""
        wing, H = _dispatch.wing("Decoder", h=kept.h), self.recurrent.hidden_size
        W_extra = p["weight_ih_l0"][:, self.input_size :]
        gates: list[Array] = []
        previous: list[tuple[Array, ...]] = []
        hidden: dict[str, Array] = {}
        dattentional = None
        if self.attention == "additive":
            dh = doutput[:, :H]
        else:
            dattentional = (doutput if dfed is None else doutput + dfed) * (1 - kept.output * kept.output)
            djoint = xp.matmul(dattentional, p["weight_combine"])
            dcontext = _arrays.contiguous(djoint[:, :-H])
            dlooking, dquery, dkeys, dmemory, dv = self._look_back(xp, p, wing, kept.attended, dcontext, dweights)
            dh = djoint[:, -H:] + dlooking
        for layer in reversed(range(self.recurrent.num_layers)):
            down, *others = dstate[layer]
            dgate, dprevious, dhidden = wing.cell_backward(kept.saved[layer], (down + dh, *others))
            if (norm := kept.norms[layer]) is not None:
                dhidden = {**dhidden, "bias_ih": xp.sum(dgate, axis=0)}
                dgate, dhidden["norm_ih"] = norm(dgate)
            gates.insert(0, dgate)
            previous.insert(0, tuple(dprevious))
            for name, gradient in dhidden.items():
                _add(hidden, f"{name}_l{layer}", gradient)
            if layer > 0:
                dh = xp.matmul(dgate, p[f"weight_ih_l{layer}"])
                if between:
                    dh = dh * between[layer - 1]
        dextra = xp.matmul(gates[0], W_extra)
        if self.attention == "additive":
            dcontext = dextra + doutput[:, H : -self.input_size]
            dlooking, dquery, dkeys, dmemory, dv = self._look_back(xp, p, wing, kept.attended, dcontext, dweights)
            top, *others = previous[-1]
            previous[-1] = (top + dlooking, *others)
        return _StepGradients(tuple(previous), dextra, gates, hidden, dattentional, dquery, dkeys, dmemory, dv)

    def _look_back(
        self, xp: Any, p: dict[str, Array], wing: Wing, attended: Any, dcontext: Array, dweights: Array | None
    ) -> tuple[Array, Array, Array, Array, Array | None]:
        """The gradients of h, query, keys, memory and v of `_look`."""
        dquery, dkeys, dmemory, dv = wing.attention_backward(attended, dcontext[None, ...], dweights)
        dquery = dquery[0, ...]
        if self.attention == "dot":
            return dquery, dquery, dkeys, dmemory, None
        additive = self.attention == "additive"
        W = p["weight_query"] if additive else p["weight"].T
        return xp.matmul(dquery, W), dquery, dkeys, dmemory, dv if additive else None

    def _score(self, p: dict[str, Array]) -> dict[str, Any]:
        """The options of `gpurnn.attention`, given the parameters p."""
        return {"score": self.attention, **({"weight": p["weight"]} if self.attention == "general" else {})}

    def _cotangents(self, cotangents: Any, output: Array, weights: Array | None) -> tuple[Any, Any, Any]:
        if not isinstance(cotangents, (tuple, list)) or len(cotangents) != 3:
            raise TypeError(
                f"Decoder: the pullback was given {_checks.described(cotangents)}, expected a triple (doutput, "
                "dweights, dstate)"
            )
        doutput, dweights, dstate = cotangents
        if weights is not None:
            dweights = _arrays.cotangent("Decoder", "weights", dweights, weights)
        return _arrays.cotangent("Decoder", "output", doutput, output), dweights, dstate

    def _take(self, x: Array, memory: Array | None, lengths: Array | None) -> tuple[Any, Array, Any, Array | None]:
        """The namespace and the arrays, ready to compute with; reject arguments that do not fit."""
        where = "Decoder"
        weight = self.recurrent.params["weight_ih_l0"]
        xp, _, x, memory, lengths = _arrays.take(
            where, {"params": weight, "x": x, "memory": memory}, {"lengths": lengths}, needed=("x",)
        )
        _checks.ndim(where, "x", x, 3, "(T, B, input_size)")
        if x.shape[2] != self.input_size or x.shape[0] == 0:
            raise ValueError(
                f"{where}: x has shape {tuple(x.shape)}, expected at least one step of input_size = {self.input_size}"
            )
        self._check_memory(memory, lengths, x.shape[1:2])
        return xp, x, memory, lengths

    def _check_memory(self, memory: Array | None, lengths: Array | None, batch: tuple[int, ...] | None) -> None:
        """Reject a memory, or lengths of it, that do not fit this decoder and the ``batch``, (B,)."""
        where = "Decoder"
        if self.attention is None:
            for name, array in (("memory", memory), ("lengths", lengths)):
                if array is not None:
                    raise ValueError(f"{where}: {name} is given, expected None without attention")
            return
        _checks.given(where, memory=memory)
        assert memory is not None
        assert batch is not None
        K = self._own_shapes["weight_keys" if self.attention == "additive" else "weight_combine"][1]
        K -= 0 if self.attention == "additive" else self.recurrent.hidden_size
        _checks.ndim(where, "memory", memory, 3, "(S, B, memory_size)")
        if tuple(memory.shape[1:]) != (*batch, K):
            raise ValueError(
                f"{where}: memory has shape {tuple(memory.shape)}, expected (S, B, memory_size) = (S, {batch[0]}, {K})"
            )
        if lengths is not None:
            _checks.shape(where, "lengths", lengths, batch, "(B,)")

    def _unpacked(self, xp: Any, state: State, batch: int | None) -> tuple[tuple[Array, ...], ...]:
        """Split a state (L, B, H), or a pair of such arrays, by layers; None means zero."""
        cell, L, H = self.recurrent.cell, self.recurrent.num_layers, self.recurrent.hidden_size
        arrays: dict[str, Any] = unpack_state("Decoder", cell, "state", state)
        _, like, *given = _arrays.take("Decoder", {"params": self.recurrent.params["weight_hh_l0"], **arrays})
        for name, array in zip(arrays, given, strict=True):
            if array is not None:
                _checks.ndim("Decoder", name, array, 3, "(num_layers, B, hidden_size)")
                batch = int(array.shape[1]) if batch is None else batch
                _checks.shape("Decoder", name, array, (L, batch, H), "(num_layers, B, hidden_size)")
        if batch is None:
            raise ValueError("Decoder: state is None and so is memory, expected one of them or batch")
        whole = [_dispatch.zeros(xp, (L, batch, H), like) if a is None else a for a in given]
        return tuple(tuple(a[layer, ...] for a in whole) for layer in range(L))

    def _packed(self, xp: Any, state: tuple[tuple[Array, ...], ...]) -> State:
        return pack_state(self.recurrent.cell, tuple(xp.stack(list(parts)) for parts in zip(*state, strict=True)))


def _normalised(xp: Any, cell: Cell, entering: Array, gain: Array) -> tuple[Array, Callable[[Array], Any]]:
    """The layer norms of W_ih x (B, G*H), and their pullback, which returns the gradients of W_ih x and the weights."""
    width = entering.shape[1] // cell.gates
    ends = [0, *itertools.accumulate(gates * width for gates in cell.norm_groups)]
    columns = [slice(start, end) for start, end in itertools.pairwise(ends)]
    parts = [functional.layer_norm.vjp(entering[:, own], gain[own]) for own in columns]

    def pullback(d: Array) -> tuple[Array, Array]:
        found = [pull(d[:, own]) for own, (_, pull) in zip(columns, parts, strict=True)]
        return xp.concat([dx for dx, _ in found], axis=1), xp.concat([g["weight"] for _, g in found], axis=0)

    return xp.concat([y for y, _ in parts], axis=1), pullback


def _product(xp: Any, x: Array, weight: Array) -> Array:
    """x (T, B, n) times the transpose of a weight (m, n)."""
    return xp.reshape(xp.matmul(xp.reshape(x, (-1, x.shape[2])), weight.T), (*x.shape[:2], weight.shape[0]))


def _add(sums: dict[str, Array], name: str, value: Array) -> None:
    sums[name] = value if name not in sums else sums[name] + value
