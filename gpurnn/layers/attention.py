"""Multi-head attention as a layer, and the parts of a Transformer: positions, and the block that it stacks."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np

from .. import _arrays, _checks, _dispatch, functional, initializers
from .._contract import Array
from .._op import Pullback
from .._random import generator
from ..functional import _multi_head
from ..functional._activations import sigmoid, sigmoid_slope
from ..functional._state import check_sequence, cotangent_pair
from .base import Chain, Composite, Layer, Parameters, parameter, parameter_dtype
from .dense import Dense
from .dropout import Dropout
from .layer_norm import LayerNorm


class MultiHeadAttention(Layer):
    """Multi-head attention: y = W_o [head_1 ... head_n] + b_o; see `gpurnn.multi_head_attention`.

    It also returns its attention weights, so `Sequential` cannot run it; use `TransformerBlock` there.

    Parameters
    ----------
    features : int
        E, the size of queries and y, and by default of keys and values.
    num_heads : int
        n, a divisor of E.
    bias : bool
    causal : bool
        Whether a query sees no keys later than itself.
    key_size, value_size : int, optional
        The sizes of keys and of values; E by default.
    batch_first : bool
        Whether query, keys, values and y are (B, T, ...) instead of (T, B, ...).
    init : str or initializer
        How each of W_q, W_k, W_v and W_o starts: a name or a function of `gpurnn.initializers`. Biases start at zero.
    dtype : "float32" or "float64"
    rng : int or numpy.random.Generator
        Where the initial weights come from.

    Attributes
    ----------
    params : dict of str to array
        ``in_proj_weight`` (3*E, E), ``in_proj_bias`` (3*E,), ``out_proj.weight`` (E, E) and ``out_proj.bias`` (E,). If
        the size of keys or values is not E, ``q_proj_weight`` (E, E), ``k_proj_weight`` (E, key_size) and
        ``v_proj_weight`` (E, value_size) replace the first. The names are those of `torch.nn.MultiheadAttention`.

    Raises
    ------
    TypeError, ValueError
        A size is below 1, num_heads does not divide features, or init or dtype is unknown.

    References
    ----------
    A. Vaswani et al., "Attention is all you need", NIPS 2017, section 3.2.

    Examples
    --------
    >>> import numpy as np
    >>> import gpurnn
    >>> layer = gpurnn.MultiHeadAttention(8, 2, causal=True)
    >>> layer
    MultiHeadAttention(8, 2, causal=True)  # 288 parameters
    >>> y, weights = layer(np.ones((5, 3, 8), np.float32))
    >>> y.shape, weights.shape
    ((5, 3, 8), (3, 2, 5, 5))
    """

    def __init__(
        self,
        features: int,
        num_heads: int,
        bias: bool = True,
        *,
        causal: bool = False,
        key_size: int | None = None,
        value_size: int | None = None,
        batch_first: bool = False,
        init: str | initializers.Initializer = "xavier",
        dtype: Any = "float32",
        rng: int | np.random.Generator = 0,
    ) -> None:
        where = "MultiHeadAttention"
        self.features = _checks.size(where, "features", features)
        self.num_heads = _checks.size(where, "num_heads", num_heads)
        if self.features % self.num_heads:
            raise ValueError(f"{where}: num_heads is {num_heads}, expected a divisor of features = {features}")
        self.causal = _checks.flag(where, "causal", causal)
        self.bias = _checks.flag(where, "bias", bias)
        self.key_size, self.value_size = (
            self.features if size is None else _checks.size(where, name, size)
            for name, size in (("key_size", key_size), ("value_size", value_size))
        )
        self.batch_first = _checks.flag(where, "batch_first", batch_first)
        kind, random, initialise = parameter_dtype(where, dtype), generator(where, rng), initializers.get(init)
        F = self.features

        def blocks(shape: tuple[int, int]) -> Array:
            return np.concatenate([initialise(random, (F, shape[1]), kind) for _ in range(shape[0] // F)])

        params = {}
        if self.key_size == self.value_size == F:
            shapes = {"in_proj_weight": (3 * F, F)}
        else:
            shapes = {
                "q_proj_weight": (F, F),
                "k_proj_weight": (F, self.key_size),
                "v_proj_weight": (F, self.value_size),
            }
        for biased, of_projection in (("in_proj_", shapes), ("out_proj.", {"out_proj.weight": (F, F)})):
            for name, shape in of_projection.items():
                params[name] = parameter(shape, kind, partial(blocks, shape))
            if self.bias:
                rows = sum(rows for rows, _ in of_projection.values())
                params[f"{biased}bias"] = parameter((rows,), kind, partial(np.zeros, rows, kind))
        self.params = Parameters(params)

    def __call__(
        self,
        query: Array,
        keys: Array | None = None,
        values: Array | None = None,
        *,
        key_padding_mask: Array | None = None,
        attn_mask: Array | None = None,
    ) -> tuple[Array, Array]:
        """Return ``(y, weights)``; save nothing. Results and errors are those of `gpurnn.multi_head_attention`."""
        return functional.multi_head_attention(
            query, keys, values, **self._arguments(), key_padding_mask=key_padding_mask, attn_mask=attn_mask
        )

    def vjp(
        self,
        query: Array,
        keys: Array | None = None,
        values: Array | None = None,
        rng: int | np.random.Generator | None = None,
        *,
        key_padding_mask: Array | None = None,
        attn_mask: Array | None = None,
    ) -> tuple[tuple[Array, Array], Pullback]:
        """Return ``((y, weights), pullback)``, with the ``pullback((dy, dweights))`` of `gpurnn.multi_head_attention`.

        The gradients of the parameters have the names of ``params``; ``rng`` is not used.
        """
        outputs, pull = functional.multi_head_attention.vjp(
            query, keys, values, **self._arguments(), key_padding_mask=key_padding_mask, attn_mask=attn_mask
        )

        def pullback(cotangents: Any) -> tuple[tuple[Array, Array | None, Array | None], dict[str, Array]]:
            inputs, gradients = pull(cotangents)
            return inputs, {name: gradients[name.replace(".", "_")] for name in self.params}

        return outputs, pullback

    def _self_attention_vjp(self, x: Array, key_padding_mask: Array | None) -> tuple[Array, Pullback]:
        """y alone and its pullback, from ``dy`` to ``(dx, grads)``, so that a wing need not make the weights."""
        (y, _), pull = _multi_head.attend(
            x, **self._arguments(), key_padding_mask=key_padding_mask, with_weights=False, training=True
        )

        def pullback(dy: Array) -> tuple[Array, dict[str, Array]]:
            (dx, _, _), gradients = pull((dy, None))
            return dx, {name: gradients[name.replace(".", "_")] for name in self.params}

        return y, pullback

    def _arguments(self) -> dict[str, Any]:
        return {
            "num_heads": self.num_heads,
            "causal": self.causal,
            "batch_first": self.batch_first,
            **{name.replace(".", "_"): p for name, p in self.params.items()},
        }

    def _argument(self, name: str) -> Any:
        by_default = name in ("key_size", "value_size") and getattr(self, name) == self.features
        return None if by_default else super()._argument(name)


class PositionalEncoding(Layer):
    """Sinusoidal positions, added to the input: y_t = x_t + p_t.

    p_t,2i = sin(t / 10000^(2i/E)) and p_t,2i+1 = cos(t / 10000^(2i/E)), t = 0 ... T - 1. Self-attention alone does not
    know the order of the steps.

    References
    ----------
    A. Vaswani et al., "Attention is all you need", NIPS 2017, section 3.5.

    Examples
    --------
    >>> import numpy as np
    >>> import gpurnn
    >>> positions = gpurnn.PositionalEncoding()
    >>> positions
    PositionalEncoding()  # 0 parameters
    >>> positions(np.zeros((3, 1, 4)))[:, 0].round(2)
    array([[ 0.  ,  1.  ,  0.  ,  1.  ],
           [ 0.84,  0.54,  0.01,  1.  ],
           [ 0.91, -0.42,  0.02,  1.  ]])
    """

    batch_first = False

    def __init__(self) -> None:
        self.params = Parameters({})

    def __call__(self, x: Array) -> Array:
        """Return y (T, B, E) for x (T, B, E).

        Raises
        ------
        TypeError, ValueError
            x is not a (T, B, E) array of float32 or float64.
        """
        where = "PositionalEncoding"
        xp, x = _arrays.take(where, {"x": x}, needed=("x",))
        _checks.ndim(where, "x", x, 3, "(T, B, E)")
        T, _, E = x.shape
        device = _dispatch.device(x)
        # In float32 the angles of late positions would have errors of thousandths.
        steps = xp.arange(T, dtype=xp.float64, device=device)
        rates = xp.exp(xp.arange(0, E, 2, dtype=xp.float64, device=device) * (-math.log(10000) / max(E, 1)))
        angles = steps[:, None] * rates[None, :]
        pairs = xp.stack([xp.sin(angles), xp.cos(angles)], axis=-1)
        p = xp.reshape(pairs, (T, 2 * rates.shape[0]))[:, :E]
        return x + xp.expand_dims(xp.astype(p, x.dtype), axis=1)

    def vjp(self, x: Array, rng: int | np.random.Generator | None = None) -> tuple[Array, Pullback]:
        """Return ``(y, pullback)``; ``pullback(dy)`` returns ``(dx, {})``, and ``rng`` is not used."""
        y = self(x)
        xp = _dispatch.namespace("PositionalEncoding", y=y)

        def pullback(dy: Array | None) -> tuple[Array, dict[str, Array]]:
            dy = _arrays.cotangent("PositionalEncoding", "y", dy, y)
            return xp.zeros_like(y) if dy is None else dy, {}

        return y, pullback

    def _widths(self, given: int | None) -> tuple[int | None, int | None]:
        return None, given


def _gelu_vjp(xp: Any, a: Array) -> tuple[Array, Pullback]:
    """The Gaussian error linear unit in its tanh form, 0.5 a (1 + tanh(sqrt(2/pi) (a + 0.044715 a^3)))."""
    # (1 + tanh(t)) / 2 is sigma(2 t), which keeps its digits where the sum cancels. It is 0 or 1 beyond these bounds,
    # where the squares might overflow.
    near = xp.clip(a, -30.0, 30.0)
    squares = near * near
    twice = 2 * math.sqrt(2 / math.pi) * near * (1 + 0.044715 * squares)
    share = sigmoid(xp, twice)

    def pullback(dy: Array) -> tuple[Array, dict[str, Array]]:
        slope = 2 * math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * squares)
        return dy * (share + near * sigmoid_slope(xp, twice) * slope), {}

    return a * share, pullback


class TransformerBlock(Composite):
    """Transformer block, pre-norm: self-attention and a feed-forward network, each added to its input.

    ::

        z = x + dropout(multi_head_attention(layer_norm(x)))
        y = z + dropout(W_2 g(W_1 layer_norm(z) + b_1) + b_2)

    Causal blocks after an `Embedding` and a `PositionalEncoding`, followed by a `LayerNorm` and a `Dense`, form a
    language model. A block can replace a recurrent layer in `Sequential`, but remembers nothing from call to call: the
    state that it takes and returns is always None.

    Parameters
    ----------
    features : int
        E, the size of x and y.
    num_heads : int
        A divisor of E.
    hidden_size : int, optional
        Rows of W_1; 4 E by default.
    causal : bool
        Whether a step sees no later steps.
    activation : {"relu", "gelu"}
        g; the Gaussian error linear unit in its tanh form.
    dropout : float
        The rate of the dropout on the terms that are added to x and to z.
    init : str or initializer
        How every weight matrix starts: a name or a function of `gpurnn.initializers`. Biases start at zero.
    dtype : "float32" or "float64"
    rng : int or numpy.random.Generator
        Where the initial weights come from.

    Attributes
    ----------
    params : dict of str to array
        ``self_attn.in_proj_weight``, ..., ``linear1.weight`` (hidden_size, E), ``linear2.weight`` (E, hidden_size),
        ``norm1.weight``, ...: the names of `torch.nn.TransformerEncoderLayer`, whose ``norm_first=True`` this is.

    Raises
    ------
    TypeError, ValueError
        A size is below 1, num_heads does not divide features, a rate is out of [0, 1), or activation, init or dtype is
        unknown.

    References
    ----------
    A. Vaswani et al., "Attention is all you need", NIPS 2017, sections 3.3 and 5.4; R. Xiong et al., "On layer
    normalization in the Transformer architecture", ICML 2020 (pre-norm); D. Hendrycks, K. Gimpel, "Gaussian error
    linear units" (2016).

    Examples
    --------
    >>> import numpy as np
    >>> import gpurnn
    >>> model = gpurnn.Sequential(
    ...     gpurnn.Embedding(50, 16),
    ...     gpurnn.PositionalEncoding(),
    ...     gpurnn.TransformerBlock(16, 2, causal=True, dropout=0.1),
    ...     gpurnn.LayerNorm(16),
    ...     gpurnn.Dense(16, 50),
    ... )
    >>> model
    Sequential(
      0: Embedding(50, 16)  # 800 parameters
      1: PositionalEncoding()  # 0 parameters
      2: TransformerBlock(16, 2, causal=True, dropout=0.1)  # 3,280 parameters
      3: LayerNorm(16)  # 32 parameters
      4: Dense(16, 50)  # 850 parameters
    )  # 4,962 parameters
    >>> logits, (state,) = model(np.array([[1], [2], [3]]))
    >>> logits.shape, state
    ((3, 1, 50), None)
    """

    stateful = True
    batch_first = False

    parts = ("self_attn", "linear1", "linear2", "norm1", "norm2")

    def __init__(
        self,
        features: int,
        num_heads: int,
        hidden_size: int | None = None,
        *,
        causal: bool = False,
        activation: str = "relu",
        dropout: float = 0.0,
        init: str | initializers.Initializer = "xavier",
        dtype: Any = "float32",
        rng: int | np.random.Generator = 0,
    ) -> None:
        where = "TransformerBlock"
        self.features = _checks.size(where, "features", features)
        self.num_heads = _checks.size(where, "num_heads", num_heads)
        if self.features % self.num_heads:
            raise ValueError(f"{where}: num_heads is {num_heads}, expected a divisor of features = {features}")
        self.hidden_size = 4 * self.features
        if hidden_size is not None:
            self.hidden_size = _checks.size(where, "hidden_size", hidden_size)
        self.activation = _checks.choice(where, "activation", activation, ("relu", "gelu"))
        self.causal = _checks.flag(where, "causal", causal)
        self.dropout = _checks.fraction(where, "dropout", dropout)
        self._dropped = Dropout(self.dropout)
        options: dict[str, Any] = {"init": init, "dtype": parameter_dtype(where, dtype), "rng": generator(where, rng)}
        self.self_attn = MultiHeadAttention(self.features, self.num_heads, causal=self.causal, **options)
        # The dense layer computes an activation's derivative from its value, which works for relu but not for gelu.
        inner = "relu" if self.activation == "relu" else "identity"
        self.linear1 = Dense(self.features, self.hidden_size, activation=inner, **options)
        self.linear2 = Dense(self.hidden_size, self.features, **options)
        self.norm1, self.norm2 = (LayerNorm(self.features, dtype=options["dtype"]) for _ in range(2))

    def __call__(
        self, x: Array, state: None = None, lengths: Array | None = None, resets: Array | None = None
    ) -> tuple[Array, None]:
        """Return the output and None; save nothing.

        Parameters
        ----------
        x : (T, B, E) array
            Has the dtype of the parameters.
        state, resets : None
            None, because a block has no state.
        lengths : (B,) integer array, optional
            The number of steps of each sequence, in any order, zero allowed. x is not read past it.

        Returns
        -------
        y : (T, B, E) array
            Exactly zero past a sequence's length.
        state : None

        Raises
        ------
        TypeError, ValueError
            Arrays or dtypes are unsupported or mixed, shapes or lengths do not fit, or there is a state or resets.
        """
        return self.vjp(x, state, lengths, resets)[0]

    def vjp(
        self,
        x: Array,
        state: None = None,
        lengths: Array | None = None,
        resets: Array | None = None,
        rng: int | np.random.Generator | None = None,
    ) -> tuple[tuple[Array, None], Pullback]:
        """Return ``((y, None), pullback)``; ``pullback((dy, None))`` returns ``((dx, None), grads)``.

        The first four arguments are those of a call. Without ``rng`` there is no dropout.
        """
        where = "TransformerBlock"
        xp, x, lengths = self._take(x, state, lengths, resets)
        random = None if rng is None else generator(where, rng)
        exists = padding = None
        if lengths is not None:
            steps = xp.arange(x.shape[0], dtype=xp.int64, device=_dispatch.device(x))
            exists = steps[:, None] < lengths[None, :]
            padding = ~xp.permute_dims(exists, (1, 0))

        def existing(array: Array) -> Array:
            if exists is None:
                return array
            return xp.where(exists[:, :, None], array, _dispatch.zeros(xp, (1, 1, 1), array))

        # Values past the lengths must not reach a product either.
        x = existing(x)
        attend, transform = Chain(), Chain()
        a = attend("norm1", self.norm1.vjp(x))
        a = attend("self_attn", self.self_attn._self_attention_vjp(a, padding))
        z = x + attend(None, self._dropped.vjp(a, random))
        a = transform("norm2", self.norm2.vjp(z))
        a = transform("linear1", self.linear1.vjp(a))
        if self.activation == "gelu":
            a = transform(None, _gelu_vjp(xp, a))
        a = transform("linear2", self.linear2.vjp(a))
        y = existing(z + transform(None, self._dropped.vjp(a, random)))

        def pullback(cotangents: Any) -> tuple[tuple[Array, None], dict[str, Array]]:
            dy, dstate = cotangent_pair(where, cotangents)
            dy = _arrays.cotangent(where, "y", dy, y)
            if dstate is not None:
                raise TypeError(f"{where}: dstate is {_checks.described(dstate)}, expected None: a block has no state")
            dz = existing(xp.zeros_like(y) if dy is None else dy)
            d, of_transform = transform.pull(dz)
            dz = dz + d
            d, of_attend = attend.pull(dz)
            return (dz + d, None), self._named({**of_attend, **of_transform})

        return (y, None), pullback

    def _take(self, x: Array, state: Any, lengths: Array | None, resets: Any) -> tuple[Any, Array, Array | None]:
        """The namespace, x and the lengths, ready to compute with; reject arguments that a block cannot take."""
        where = "TransformerBlock"
        for name, value in (("state", state), ("resets", resets)):
            if value is not None:
                raise TypeError(
                    f"{where}: {name} is {_checks.described(value)}, expected None: a block has no state, it attends "
                    "to the steps of one call"
                )
        arrays = {"params": self.norm1.params["weight"], "x": x}
        xp, _, x, lengths = _arrays.take(where, arrays, {"lengths": lengths}, needed=("x",))
        _checks.ndim(where, "x", x, 3, "(T, B, features)")
        if x.shape[2] != self.features:
            raise ValueError(f"{where}: x has shape {tuple(x.shape)}, expected features = {self.features} at its end")
        check_sequence(where, x, lengths)
        _dispatch.wing(where, x=x).check_lengths(where, lengths, x.shape[0])
        return xp, x, lengths

    def _widths(self, given: int | None) -> tuple[int | None, int | None]:
        return self.features, self.features

    def _argument(self, name: str) -> Any:
        by_default = name == "hidden_size" and self.hidden_size == 4 * self.features
        return None if by_default else super()._argument(name)
