"""The encoder-decoder: one sequence in, another of any length out."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import _arrays, _checks, _dispatch, layers, losses
from .._contract import Array, State
from .._op import Pullback
from .._random import generator, mask_key
from ..cells import CELLS, Activation, CellOptions, Update
from ..functional._attention import SCORES
from ..functional._dropout import dropout_mask
from ..functional._state import cotangent_pair, pack_state, unpack_state
from ..layers.base import Chain
from ..layers.decoder import Carried
from . import decoding
from .base import Model, check_numbers, existing, not_finite, recurrent, without_padding


class EncoderDecoder(Model):
    r"""Encoder-decoder: P(y_1 .. y_T | x_1 .. x_S), token by token, for sequences of different lengths.

    With E and E' the embeddings of the source and the target tokens::

        h^enc_s = encoder(E[x_s], h^enc_{s-1})                    in both directions, if bidirectional
        h_0     = h^enc_S, or tanh(W_b h^enc_S + b_b)             the bridge
        o_t     = decoder(E'[y_{t-1}], h_{t-1}, h^enc)            see `gpurnn.layers.Decoder`
        P(y_t | y_1 .. y_{t-1}, x) = softmax(W_o o_t + b_o)

    Token 0 is padding, which fills the steps past the end of a sequence. The decoder reads ``begin`` before y_1, and y
    ends with ``end``, which the model predicts like any other token.

    Parameters
    ----------
    source_symbols, target_symbols : int
        The number of tokens, including the reserved ones.
    embedding_size, hidden_size : int
        hidden_size is the width of the encoder, in each direction, and of the decoder.
    num_layers : int
        Layers of the decoder.
    encoder_layers : int, optional
        Layers of the encoder; ``num_layers`` by default.
    cell : {"gru", "lstm", "rnn"}
    bidirectional : bool
        Whether the encoder reads in both directions.
    attention : {"additive", "general", "dot"}, optional
        Bahdanau's decoder, or one of Luong's two; None: no attention, so the decoder knows the source only by h_0.
        "dot" needs an encoder of one direction, whose outputs are as wide as the decoder's.
    attention_size : int, optional
        Width of the additive score; hidden_size by default.
    input_feeding : bool
        For Luong's attention: whether the attentional state h~_{t-1} is part of the input of step t.
    bridge : bool, optional
        Whether h_0 is computed by W_b from all final states of the encoder. By default only if it must be: if the
        encoder is bidirectional, or has another number of layers.
    activation, leak, reset_after, update
        Options of the cell: the first two of `gpurnn.RNN`, the others of `gpurnn.GRU`. None: the cell's default.
    cell_options : dict, optional
        Any options of the cell by name, such as ``{"layer_norm": True}``, in the encoder and the decoder: those of its
        layer, `gpurnn.RNN`, `gpurnn.LSTM` or `gpurnn.GRU`, except ``proj_size``.
    dropout : float
        Rate of the dropout on the embedded tokens, between layers, and before W_o.
    begin, end : int
        Target tokens.
    init : str, initializer or pair, optional
        The initializers of the recurrent layers, as in `gpurnn.GRU`.
    dtype : "float32" or "float64"
    rng : int or numpy.random.Generator
        Where the initial parameters come from.

    Attributes
    ----------
    params : dict of str to array
        ``source.weight``, ``encoder.weight_ih_l0``, ..., ``bridge.weight`` and ``bridge.bias`` if there is one,
        ``target.weight``, ``decoder.weight_ih_l0``, ..., ``output.weight`` and ``output.bias``.

    Raises
    ------
    ValueError, TypeError
        An option is out of its range or unknown, or conflicts with another.

    References
    ----------
    I. Sutskever, O. Vinyals, Q. Le, "Sequence to sequence learning with neural networks", NIPS 2014; K. Cho et al.,
    "Learning phrase representations using RNN encoder-decoder for statistical machine translation", EMNLP 2014; for
    the attention see `gpurnn.layers.Decoder`.

    Examples
    --------
    Sequences to be reversed:

    >>> import numpy as np
    >>> import gpurnn
    >>> rng = np.random.default_rng(0)
    >>> sources = [rng.integers(3, 7, length) for length in rng.integers(1, 4, 200)]
    >>> model = gpurnn.EncoderDecoder(7, 7, 8, 24, bidirectional=True, attention="additive")
    >>> model
    EncoderDecoder(7, 7, 8, 24, bidirectional=True, attention='additive')  # 14,407 parameters
      (S, B)      source tokens
      (S, B, 8)   Embedding(7, 8)
      (S, B, 48)  GRU(8, 24, bidirectional=True)
      (1, B, 24)  Dense(48, 24, activation='tanh'): the decoder's initial state
      (T, B)      target tokens, each the one before that to be predicted
      (T, B, 8)   Embedding(7, 8)
      (T, B, 80)  Decoder(GRU(56, 24), attention='additive', memory_size=48)
      (T, B, 7)   Dense(80, 7): logits
    >>> model = model.fit(sources, [s[::-1] for s in sources], epochs=25, optimizer=gpurnn.Adam(0.01))
    >>> model.predict([np.array([3, 4, 5])])
    [array([5, 4, 3], dtype=int32)]
    """

    _loss = "cross_entropy"
    _stack = "encoder"

    def __init__(
        self,
        source_symbols: int,
        target_symbols: int,
        embedding_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        encoder_layers: int | None = None,
        cell: str = "gru",
        bidirectional: bool = False,
        attention: str | None = None,
        attention_size: int | None = None,
        input_feeding: bool = False,
        bridge: bool | None = None,
        activation: Activation | None = None,
        leak: float | None = None,
        reset_after: bool | None = None,
        update: Update | None = None,
        cell_options: CellOptions | None = None,
        dropout: float = 0.0,
        begin: int = 1,
        end: int = 2,
        init: Any = None,
        dtype: Any = "float32",
        rng: int | np.random.Generator = 0,
    ) -> None:
        where = "EncoderDecoder"
        source_symbols = _checks.size(where, "source_symbols", source_symbols)
        target_symbols = _checks.size(where, "target_symbols", target_symbols, 3)
        for name, token in (("begin", begin), ("end", end)):
            if not 1 <= _checks.integer_at_least(where, name, token, 1) < target_symbols:
                raise ValueError(
                    f"{where}: {name} is {token}, expected 1 ... target_symbols - 1 = {target_symbols - 1}"
                )
        if begin == end:
            raise ValueError(f"{where}: begin and end are both {begin}, expected two tokens")
        embedding_size = _checks.size(where, "embedding_size", embedding_size)
        num_layers = _checks.size(where, "num_layers", num_layers)
        encoder_layers = num_layers if encoder_layers is None else encoder_layers
        encoder_layers = _checks.size(where, "encoder_layers", encoder_layers)
        bidirectional = _checks.flag(where, "bidirectional", bidirectional)
        input_feeding = _checks.flag(where, "input_feeding", input_feeding)
        bridge = None if bridge is None else _checks.flag(where, "bridge", bridge)
        attention = _checks.choice(where, "attention", attention, (None, *SCORES))
        cell = _checks.choice(where, "cell", cell, tuple(CELLS))  # a decoder takes steps by hand
        if attention_size is not None:
            attention_size = _checks.size(where, "attention_size", attention_size)
        self._dropped = layers.Dropout(_checks.fraction(where, "dropout", dropout))
        if isinstance(cell_options, Mapping) and cell_options.get("proj_size"):
            raise ValueError(
                f"{where}: proj_size is {cell_options['proj_size']!r}, expected 0: "
                "encoder and decoder have outputs of hidden_size"
            )
        random = generator(where, rng)
        options = {"dropout": dropout, "init": init, "dtype": dtype, "rng": random}
        own_options = {"activation": activation, "leak": leak, "reset_after": reset_after, "update": update}
        self.begin, self.end = int(begin), int(end)
        self.source = layers.Embedding(source_symbols, embedding_size, dtype=dtype, rng=random)
        self.encoder = recurrent(
            where, cell, embedding_size, hidden_size, encoder_layers, own_options, cell_options,
            bidirectional=bidirectional, **options,
        )  # fmt: skip
        D, H = self.encoder.num_directions, self.encoder.hidden_size
        fits = D == 1 and encoder_layers == num_layers
        if bridge is False and not fits:
            raise ValueError(
                f"{where}: bridge is False, expected True or None: the encoder's final state is of "
                f"{encoder_layers * D} layers and directions, the decoder's initial state of {num_layers} layers"
            )
        if attention == "dot" and bidirectional:
            raise ValueError(
                f"{where}: attention is 'dot', expected 'general' or 'additive' as bidirectional is True: the "
                f"encoder's outputs have {D * H} features, the decoder's {H}"
            )
        self.bridge: layers.Dense | None = None
        count = self.encoder.cell.states
        if not fits or bridge:
            sizes = count * encoder_layers * D * H, count * num_layers * H
            self.bridge = layers.Dense(*sizes, activation="tanh", dtype=dtype, rng=random)
        self.target = layers.Embedding(target_symbols, embedding_size, dtype=dtype, rng=random)
        extra = D * H if attention == "additive" else H if input_feeding else 0
        self.decoder = layers.Decoder(
            recurrent(
                where, cell, embedding_size + extra, hidden_size, num_layers, own_options, cell_options, **options
            ),
            attention, memory_size=None if attention is None else D * H, attention_size=attention_size,
            input_feeding=input_feeding, rng=random,
        )  # fmt: skip
        self.output = layers.Dense(self.decoder.output_size, target_symbols, dtype=dtype, rng=random)
        parts = ("source", "encoder", "bridge", "target", "decoder", "output")
        self.parts = tuple(part for part in parts if getattr(self, part) is not None)
        self.source_symbols, self.target_symbols = source_symbols, target_symbols
        self.embedding_size, self.num_layers, self.dropout = embedding_size, num_layers, self._dropped.rate
        self.attention, self.attention_size, self.input_feeding = attention, attention_size, input_feeding

    def _argument(self, name: str) -> Any:
        # None if the default gives the same.
        layers, decoder_layers = self.encoder.num_layers, self.num_layers
        if name == "encoder_layers":
            return None if layers == decoder_layers else layers
        if name == "bridge":
            made = self.bridge is not None
            return None if made == (self.encoder.bidirectional or layers != decoder_layers) else made
        return super()._argument(name)

    # ---- The model as a function of batches --------------------------------------------------------------------------

    def __call__(self, source: Array, previous: Array, lengths: Array | None = None) -> tuple[Array, Array | None]:
        """The logits of each target token and the alignment, without dropout; nothing is saved.

        Parameters
        ----------
        source : (S, B) integer array
            S at least 1.
        previous : (T, B) integer array
            The decoder's inputs: ``begin``, y_1, ..., y_{T-1}.
        lengths : (B,) integer array, optional
            The lengths of the sources.

        Returns
        -------
        logits : (T, B, V) array
            Row t holds the logits of y_{t+1}; row 0 those of y_1.
        weights : (T, B, S) array or None
            alpha, the attention weights. None without attention.
        """
        source, previous = self._take_pair(source, "previous", previous, lengths)
        outputs, weights = self._decode(source, previous, lengths)
        return self.output(outputs), weights

    def _decode(self, source: Array, previous: Array, lengths: Array | None) -> tuple[Array, Array | None]:
        """The decoder's outputs, from which `output` computes the logits, and the alignment."""
        memory, state = self._encode(source, lengths)
        outputs, weights, _ = self.decoder(self.target(previous), memory, state, lengths if self._looks else None)
        return outputs, weights

    def vjp(
        self,
        source: Array,
        previous: Array,
        lengths: Array | None = None,
        rng: int | np.random.Generator | None = None,
    ) -> tuple[tuple[Array, Array | None], Pullback]:
        """``((logits, weights), pullback)``, with ``pullback((dlogits, dweights))`` returning ``(None, grads)``.

        With ``rng`` dropout acts; without it these are the gradients of evaluation mode.
        """
        where = "EncoderDecoder"
        source, previous = self._take_pair(source, "previous", previous, lengths)
        random = None if rng is None else generator(where, rng)
        reading, written, head = Chain(), Chain(), Chain()
        x = reading("source", self.source.vjp(source))
        x = reading(None, self._dropped.vjp(x, random))
        (memory, final), pull_encoder = self.encoder.vjp(x, None, lengths, rng=random)
        initial, pull_bridge = self._bridge(final)
        y = written("target", self.target.vjp(previous))
        y = written(None, self._dropped.vjp(y, random))
        looks = self._looks
        (output, weights, _), pull_decoder = self.decoder.vjp(
            y, memory if looks else None, initial, lengths if looks else None, random
        )
        logits = head("output", self.output.vjp(head(None, self._dropped.vjp(output, random))))

        def pullback(cotangents: Any) -> tuple[None, dict[str, Array]]:
            dlogits, dweights = cotangent_pair(where, cotangents)
            dlogits = _arrays.cotangent(where, "logits", dlogits, logits)
            doutput, grads = head.pull(dlogits)
            (dy, dmemory, dinitial), grads["decoder"] = pull_decoder((doutput, dweights, None))
            dfinal, grads["bridge"] = pull_bridge(dinitial)
            (dx, _), grads["encoder"] = pull_encoder((dmemory, dfinal))
            return None, self._named({**grads, **written.pull(dy)[1], **reading.pull(dx)[1]})

        return (logits, weights), pullback

    @property
    def _looks(self) -> bool:
        return self.decoder.attention is not None

    def _encode(self, source: Array, lengths: Array | None) -> tuple[Array | None, State]:
        """The memory that the decoder attends to, None without attention, and its initial state."""
        source = self._take_tokens("source", source, lengths)
        memory, final = self.encoder(self.source(source), None, lengths)
        return memory if self._looks else None, self._bridge(final)[0]

    def _bridge(self, final: State) -> tuple[State, Pullback]:
        """The decoder's initial state, from the encoder's final one."""
        if self.bridge is None:
            return final, lambda dinitial: (dinitial, {})
        cell = self.encoder.cell
        arrays: list[Any] = list(unpack_state("EncoderDecoder", cell, "state", final).values())
        xp = _dispatch.namespace("EncoderDecoder", state=arrays[0])
        n, B, H = arrays[0].shape
        # (B, all states): layer by layer and direction by direction, first all h, then all c.
        rows = xp.concat([xp.reshape(xp.permute_dims(a, (1, 0, 2)), (B, n * H)) for a in arrays], axis=1)
        made, pull = self.bridge.vjp(rows)
        L = self.decoder.recurrent.num_layers

        def split(whole: Array, count: int) -> list[Array]:
            parts = [whole[:, i * count * H : (i + 1) * count * H] for i in range(len(arrays))]
            return [xp.permute_dims(xp.reshape(part, (B, count, H)), (1, 0, 2)) for part in parts]

        def pullback(dinitial: Any) -> tuple[State, dict[str, Array]]:
            given = list(unpack_state("EncoderDecoder", cell, "dstate", dinitial).values())
            flat = xp.concat([xp.reshape(xp.permute_dims(d, (1, 0, 2)), (B, L * H)) for d in given], axis=1)
            drows, grads = pull(flat)
            return pack_state(cell, tuple(split(drows, n))), grads

        return pack_state(cell, tuple(split(made, L))), pullback

    def _take_tokens(self, name: str, tokens: Array, lengths: Array | None = None) -> Array:
        """Tokens without padding, ready to compute with."""
        where = "EncoderDecoder"
        _, _, tokens = _arrays.take(where, {"params": self.output.params["weight"]}, {name: tokens}, needed=(name,))
        _checks.ndim(where, name, tokens, 2, "(S, B)" if name == "source" else "(T, B)")
        if tokens.shape[0] == 0:
            raise ValueError(f"{where}: {name} has shape {tuple(tokens.shape)}, expected at least one step")
        return without_padding(where, tokens, lengths)

    def _take_pair(self, source: Array, name: str, tokens: Array, lengths: Array | None = None) -> tuple[Array, Array]:
        """Sources and target tokens, ready to compute with; reject those that do not fit each other."""
        source, tokens = self._take_tokens("source", source, lengths), self._take_tokens(name, tokens)
        if tokens.shape[1] != source.shape[1]:
            raise ValueError(
                f"EncoderDecoder: {name} has shape {tuple(tokens.shape)}, expected (T, B) with the B = "
                f"{source.shape[1]} of source"
            )
        return source, tokens

    # ---- Losses ------------------------------------------------------------------------------------------------------

    def loss(
        self, inputs: Array, targets: tuple[Array, Array], state: None = None, lengths: Array | None = None
    ) -> tuple[Array, None]:
        """The mean cross-entropy -log P(y_t | y_1 .. y_{t-1}, x), in nats, over the target tokens, and None.

        Parameters
        ----------
        inputs : (S, B) integer array
            The sources.
        targets : pair of (T, B) and (B,) integer arrays
            y, each with its end symbol, and their lengths, including the end symbol.
        state : None
        lengths : (B,) integer array, optional
            The lengths of the sources.
        """
        _checks.no_state("EncoderDecoder", state)
        tokens, mask = self._targets(inputs, targets)
        logits, _ = self(inputs, self._shifted(tokens), lengths)
        return losses.cross_entropy(logits, tokens, mask=mask), None

    def loss_and_gradients(
        self,
        inputs: Array,
        targets: tuple[Array, Array],
        state: None = None,
        lengths: Array | None = None,
        *,
        rng: int | np.random.Generator | None = None,
        teacher_forcing: float = 1.0,
    ) -> tuple[Array, None, dict[str, Array]]:
        """The results of `loss`, and its gradients by parameter name. With ``rng`` dropout acts.

        Parameters
        ----------
        teacher_forcing : float
            The probability, for each step of each sequence, that the decoder reads the target y_{t-1}. Otherwise it
            reads its own likeliest token, computed without dropout. 1 is teacher forcing, 0 is free running, and
            values between are scheduled sampling (Bengio et al. 2015). A token has no gradient, so
            the gradients are exactly those of the loss given the tokens that were read.
        """
        _checks.no_state("EncoderDecoder", state)
        tokens, mask = self._targets(inputs, targets)
        random = None if rng is None else generator("EncoderDecoder", rng)
        previous = self._read(inputs, tokens, lengths, teacher_forcing, random)
        (logits, _), pullback = self.vjp(inputs, previous, lengths, random)
        loss, pull_loss = losses.cross_entropy.vjp(logits, tokens, mask=mask)
        dlogits, _ = pull_loss(1.0)
        _, grads = pullback((dlogits, None))
        return loss, None, grads

    def log_likelihood(self, source: Array, targets: tuple[Array, Array], lengths: Array | None = None) -> Array:
        """log P(y | x) = sum_t log P(y_t | y_1 .. y_{t-1}, x) of each target (B,), in nats; arguments as in `loss`.

        Raises
        ------
        FloatingPointError
            The logits of a target are NaN or infinite.
        """
        tokens, mask = self._targets(source, targets)
        logits, _ = self(source, self._shifted(tokens), lengths)
        xp = _dispatch.namespace("EncoderDecoder", logits=logits)
        if not bool(xp.all(xp.isfinite(xp.max(logits, axis=-1)) | ~mask)):  # minus infinity is a probability of 0
            raise not_finite("EncoderDecoder.log_likelihood", "the logits", self.params)
        return -xp.sum(losses.cross_entropy(logits, tokens, mask=mask, reduction="none"), axis=0)

    def log_likelihood_vjp(
        self,
        source: Array,
        targets: tuple[Array, Array],
        lengths: Array | None = None,
        rng: int | np.random.Generator | None = None,
    ) -> tuple[Array, Callable[[Array], tuple[None, dict[str, Array]]]]:
        """`log_likelihood`, and the pullback from its gradient (B,) to ``(None, grads)``. With ``rng`` dropout acts."""
        tokens, mask = self._targets(source, targets)
        (logits, _), pull = self.vjp(source, self._shifted(tokens), lengths, rng)
        xp = _dispatch.namespace("EncoderDecoder", logits=logits)
        nats, pull_nats = losses.cross_entropy.vjp(logits, tokens, mask=mask, reduction="none")
        likely = -xp.sum(nats, axis=0)

        def pullback(dlog_probs: Array) -> tuple[None, dict[str, Array]]:
            _checks.given("EncoderDecoder", dlog_probs=dlog_probs)
            dlog_probs = _arrays.cotangent("EncoderDecoder", "log_probs", dlog_probs, likely)
            dlogits, _ = pull_nats(xp.zeros_like(nats) - dlog_probs[None, :])
            _, grads = pull((dlogits, None))
            return None, grads

        return likely, pullback

    def _targets(self, source: Array, targets: Any) -> tuple[Array, Any]:
        """The target tokens and which of them exist."""
        if not isinstance(targets, (tuple, list)) or len(targets) != 2:
            raise TypeError(
                f"EncoderDecoder: targets is {_checks.described(targets)}, expected a pair (tokens, lengths)"
            )
        tokens, lengths = targets
        _, tokens = self._take_pair(source, "targets", tokens)
        _, _, lengths = _arrays.take(
            "EncoderDecoder", integers={"targets": tokens, "target_lengths": lengths}, needed=("target_lengths",)
        )
        _checks.shape("EncoderDecoder", "target_lengths", lengths, (tokens.shape[1],), "(B,)")
        _dispatch.wing("EncoderDecoder", targets=tokens).check_lengths(
            "EncoderDecoder.targets", lengths, tokens.shape[0]
        )
        where = "EncoderDecoder.targets"
        return without_padding(where, tokens, lengths), existing(where, tokens, lengths)

    def _shifted(self, tokens: Array) -> Array:
        """Decoder inputs under teacher forcing: begin, y_1, ..., y_{T-1}."""
        xp = _dispatch.namespace("EncoderDecoder", tokens=tokens)
        first = xp.full_like(tokens[:1, ...], self.begin)
        return xp.concat([first, tokens[:-1, ...]], axis=0)

    def _read(
        self, source: Array, tokens: Array, lengths: Array | None, share: float, rng: np.random.Generator | None
    ) -> Array:
        """Decoder inputs under scheduled sampling with probability ``share`` of the target."""
        where = "EncoderDecoder.loss_and_gradients"
        share = _checks.probability(where, "teacher_forcing", share)
        target = self._shifted(tokens)
        if share == 1.0:
            return target
        if share > 0.0 and rng is None:
            raise ValueError(f"{where}: rng is None, expected a seed or a Generator for teacher_forcing = {share}")
        xp = _dispatch.namespace(where, tokens=tokens)
        memory, state = self._encode(source, lengths)
        carried = self.decoder.begin(memory, state, lengths if self._looks else None, batch=tokens.shape[1])
        read = [target[0, ...]]
        fed: Any = None
        if rng is not None and share > 0.0:
            like = self.output.params["weight"]
            fed = dropout_mask(like, (*tokens.shape, 1), share, mask_key(rng))[:, :, 0] == 0  # where it would drop
        for t in range(1, tokens.shape[0]):
            output, _, carried = self.decoder.step(self.target(read[-1][None, ...])[0, ...], carried)
            token = xp.astype(xp.argmax(self.output(output), axis=-1), xp.int64)
            if fed is not None:
                token = xp.where(fed[t, ...], target[t, ...], token)
            read.append(token)
        return xp.stack(read)

    # ---- Decoding ----------------------------------------------------------------------------------------------------

    def _steps(self, where: str, source: Array, lengths: Array | None) -> tuple[decoding.Step, Carried]:
        """The model as a step for `decoding`, and the initial state."""
        source = self._take_tokens("source", source)
        if lengths is not None:
            _, _, lengths = _arrays.take(where, integers={"source": source, "lengths": lengths})
            _checks.shape(where, "lengths", lengths, tuple(source.shape[1:]), "(B,)")
            for i, length in enumerate(_dispatch.to_numpy(lengths).tolist()):
                if not 1 <= length <= source.shape[0]:
                    raise ValueError(f"{where}: lengths[{i}] is {length}, expected 1 ... S = {source.shape[0]}")
        source = without_padding(where, source, lengths)
        check_numbers(where, "source", source, self.source.num_embeddings, IndexError)
        memory, state = self._encode(source, lengths)
        xp = _dispatch.namespace(where, source=source)

        def step(
            last: NDArray[np.int32], carried: Carried
        ) -> tuple[NDArray[np.float64], NDArray[np.float64] | None, Carried]:
            tokens = _dispatch.from_numpy(xp, last)
            output, weights, carried = self.decoder.step(self.target(tokens[None, :])[0, ...], carried)
            logits = _dispatch.to_numpy(self.output(output)).astype(np.float64)
            looked = None if weights is None else _dispatch.to_numpy(weights).astype(np.float64)
            return logits, looked, carried

        return step, self.decoder.begin(memory, state, lengths if self._looks else None, batch=source.shape[1])

    def greedy(self, source: Array, lengths: Array | None = None, *, max_length: int) -> tuple[Array, Array]:
        """The likeliest token at each step; arguments, results and errors as in `sample`."""
        where = "EncoderDecoder.greedy"
        max_length = _limit(where, max_length)
        return self._sample(where, source, lengths, max_length, self._fail(where), np.random.default_rng(0), 0.0)

    def sample(
        self,
        source: Array,
        lengths: Array | None = None,
        *,
        max_length: int,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        rng: int | np.random.Generator,
    ) -> tuple[Array, Array]:
        r"""A target for each source, each token drawn from P(y_t | y_1 .. y_{t-1}, x).

        Parameters
        ----------
        source : (S, B) integer array
        lengths : (B,) integer array, optional
            The lengths of the sources.
        max_length : int
            The largest number of tokens of a target; one that has not ended by then ends there, without an end symbol.
        temperature : float
            \tau in P_v \propto exp(logit_v / \tau); 0 takes the likeliest.
        top_k : int, optional
            Draw from the k likeliest tokens only.
        top_p : float, optional
            Draw from the nucleus only: the fewest tokens whose probabilities reach p (Holtzman et al. 2020).
        rng : int or numpy.random.Generator

        Returns
        -------
        tokens : (T, B) int32 array
            0 past the end symbol.
        lengths : (B,) int32 array
            Including the end symbol.

        Raises
        ------
        ValueError, TypeError
            An argument is out of its range, or a source has no tokens.
        FloatingPointError
            A parameter is NaN or infinite, so that the tokens have no probabilities.
        """
        where = "EncoderDecoder.sample"
        max_length = _limit(where, max_length)
        decoding.check_sampling(where, temperature, top_k, top_p)
        random, fail = generator(where, rng), self._fail(where)
        return self._sample(where, source, lengths, max_length, fail, random, temperature, top_k=top_k, top_p=top_p)

    def _fail(self, where: str, names: Sequence[str] | None = None) -> decoding.Fail:
        """The error for logits of a source that are not finite; ``names`` are the caller's names of the sources."""
        return lambda row: not_finite(
            where, f"the logits for {f'source[:, {row}]' if names is None else names[row]}", self.params
        )

    def _sample(
        self,
        where: str,
        source: Array,
        lengths: Array | None,
        max_length: int | NDArray[np.int64],
        fail: decoding.Fail,
        rng: np.random.Generator,
        temperature: float,
        **options: Any,
    ) -> tuple[Array, Array]:
        step, carried = self._steps(where, source, lengths)
        tokens, counts = decoding.sample(
            step, carried, source.shape[1], begin=self.begin, end=self.end, max_length=max_length, rng=rng,
            temperature=temperature, fail=fail, **options,
        )  # fmt: skip
        xp = _dispatch.namespace(where, source=source)
        return _dispatch.from_numpy(xp, tokens), _dispatch.from_numpy(xp, counts)

    def beam_search(
        self,
        source: Array,
        lengths: Array | None = None,
        *,
        max_length: int,
        beam_size: int = 4,
        length_penalty: float = 0.6,
        coverage_penalty: float = 0.0,
        best: int = 1,
    ) -> list[list[decoding.Hypothesis]]:
        """The best targets for each source that a beam search finds, the best first.

        Hypotheses are compared by log P(y|x) / lp(y) + cp(x, y) with lp = ((5 + T) / 6)^length_penalty and
        cp = coverage_penalty sum_s log min(sum_t alpha_ts, 1), of Wu et al. 2016, section 7.

        Parameters
        ----------
        source, lengths, max_length
            As in `sample`.
        beam_size : int
            The number of prefixes that are continued at each length.
        length_penalty, coverage_penalty : float
            At least 0. The latter is for models with attention.
        best : int
            The number of hypotheses to return for each source, at most ``beam_size``.

        Returns
        -------
        list of lists of Hypothesis
            With the attributes ``tokens`` (T,), including the end symbol, ``log_probability`` and ``score``.

        Raises
        ------
        ValueError, TypeError, FloatingPointError
            As in `sample`.
        """
        where = "EncoderDecoder.beam_search"
        max_length = _limit(where, max_length)
        return self._beam_search(
            where, source, lengths, max_length, self._fail(where), beam_size=beam_size, length_penalty=length_penalty,
            coverage_penalty=coverage_penalty, best=best,
        )  # fmt: skip

    def _beam_search(
        self,
        where: str,
        source: Array,
        lengths: Array | None,
        max_length: int | NDArray[np.int64],
        fail: decoding.Fail,
        *,
        beam_size: int,
        length_penalty: float = 0.6,
        coverage_penalty: float = 0.0,
        best: int = 1,
    ) -> list[list[decoding.Hypothesis]]:
        beam_size = _checks.integer_at_least(where, "beam_size", beam_size, 1)
        alpha = _checks.non_negative(where, "length_penalty", length_penalty)
        beta = _checks.non_negative(where, "coverage_penalty", coverage_penalty)
        if not 1 <= _checks.integer_at_least(where, "best", best, 1) <= beam_size:
            raise ValueError(f"{where}: best is {best}, expected 1 ... beam_size = {beam_size}")
        if beta and not self._looks:
            raise ValueError(f"{where}: coverage_penalty is {beta}, expected 0 without attention")
        xp = _dispatch.namespace(where, source=source, lengths=lengths)
        step, carried = self._steps(where, source, lengths)
        most = int(np.max(max_length, initial=1))
        if alpha * math.log((5 + most) / 6) > math.log(np.finfo(np.float64).max):
            raise ValueError(
                f"{where}: length_penalty is {length_penalty!r}, expected one for which ((5 + max_length) / 6)^"
                f"length_penalty is finite at max_length = {most}"
            )
        return decoding.beam_search(
            step, carried, source.shape[1], lambda c, rows: c.rows(_dispatch.from_numpy(xp, rows)),
            begin=self.begin, end=self.end, max_length=max_length, beam_size=beam_size, alpha=alpha, beta=beta,
            best=best, fail=fail,
            source_lengths=None if lengths is None else _dispatch.to_numpy(lengths).astype(np.int64),
        )  # fmt: skip

    def align(self, source: Array, targets: tuple[Array, Array], lengths: Array | None = None) -> Array:
        """alpha (T, B, S): the attention weight of source token s for target token t. Arguments as in `loss`.

        Raises
        ------
        ValueError
            The model has no attention.
        FloatingPointError
            A parameter is NaN or infinite, and so is the alignment.
        """
        where = "EncoderDecoder.align"
        if not self._looks:
            raise ValueError(f"{where}: the model has no attention, expected one with an alignment")
        tokens, exist = self._targets(source, targets)
        _, weights = self._decode(source, self._shifted(tokens), lengths)
        assert weights is not None
        xp = _dispatch.namespace(where, weights=weights)
        if bool(xp.any(exist & ~xp.all(xp.isfinite(weights), axis=-1))):
            raise not_finite(where, "the weights", self.params)
        return weights

    # ---- Examples ----------------------------------------------------------------------------------------------------

    @_checks.lists_options
    def predict(
        self,
        sources: Sequence[Array],
        *,
        beam_size: int = 1,
        max_length: int | None = None,
        batch_size: int = 256,
        length_penalty: float | None = None,
        coverage_penalty: float | None = None,
    ) -> list[NDArray[np.int32]]:
        """The target of each source, without its end symbol: greedy, or by a beam search.

        Parameters
        ----------
        sources : sequence of (S_i,) integer arrays
            Their lengths may differ.
        beam_size : int
            1 for greedy decoding.
        max_length : int, optional
            By default, for each source, twice its own length and ten more.
        batch_size : int
            The number of sources decoded at a time.
        length_penalty, coverage_penalty : float, optional
            As in `beam_search`, with its defaults; for a ``beam_size`` above 1.

        Returns
        -------
        list of (T_i,) int32 NumPy arrays

        Raises
        ------
        ValueError, TypeError, FloatingPointError
            As in `sample`.
        """
        from ..training.data import pad

        where = f"{type(self).__name__}.predict"
        sources = self._take_examples(where, "sources", sources, self.source.num_embeddings)
        beam_size = _checks.integer_at_least(where, "beam_size", beam_size, 1)
        penalties = {"length_penalty": length_penalty, "coverage_penalty": coverage_penalty}
        options: dict[str, Any] = {name: value for name, value in penalties.items() if value is not None}
        if options and beam_size == 1:
            raise TypeError(f"{where}: {sorted(options)} are given, expected none for greedy decoding (beam_size = 1)")
        batch_size = _checks.integer_at_least(where, "batch_size", batch_size, 1)
        limits = np.array([2 * int(s.shape[0]) + 10 for s in sources], np.int64)
        if max_length is not None:
            limits[:] = _limit(where, max_length)
        # Sources of similar length go together, so that there is little padding.
        order = sorted(range(len(sources)), key=lambda i: int(sources[i].shape[0]))
        sequences: list[Any] = [None] * len(sources)
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            padded, lengths = pad([sources[i] for i in chosen])
            fail = self._fail(where, [f"sources[{i}]" for i in chosen])
            if beam_size == 1:
                drawn = self._sample(where, padded, lengths, limits[chosen], fail, np.random.default_rng(0), 0.0)
                tokens, ends = map(_dispatch.to_numpy, drawn)
                rows = [tokens[: ends[lane], lane] for lane in range(len(chosen))]
            else:
                best = self._beam_search(
                    where, padded, lengths, limits[chosen], fail, beam_size=beam_size, **options
                )  # fmt: skip
                rows = [hypotheses[0].tokens for hypotheses in best]
            for i, row in zip(chosen, rows, strict=True):
                sequences[i] = row[:-1] if row[-1] == self.end else row
        return sequences

    def _take_examples(self, where: str, name: str, examples: Any, symbols: int, least: int = 1) -> list[Array]:
        """Examples, ready to compute with; reject all but arrays (n,) of at least ``least`` of ``symbols`` tokens."""
        examples = _arrays.entries(where, name, examples, "a sequence of arrays")
        taken = []
        for i, example in enumerate(examples):
            entry, like = f"{name}[{i}]", {"params": self.output.params["weight"]}
            _, _, tokens = _arrays.take(where, like, {entry: example}, needed=(entry,))
            taken.append(tokens)
            _checks.ndim(where, entry, tokens, 1, "(T,)")
            if tokens.shape[0] < least:
                raise ValueError(f"{where}: {entry} has no tokens, expected at least {least}")
            check_numbers(where, entry, tokens, symbols, IndexError)
        return taken

    def _batches(
        self, X: Sequence[Array], y: Any, batch_size: int, *, shuffle: bool, rng: int | np.random.Generator
    ) -> Any:
        """Pairs of source and target; the end symbol is added to the targets, which the caller passes without it."""
        from ..training import PaddedBatches

        where = f"{type(self).__name__}.fit"
        X = self._take_examples(where, "X", X, self.source.num_embeddings)
        if len(X) == 0:
            raise ValueError(f"{where}: X is empty, expected at least one example")
        y = self._take_examples(where, "y", y, self.target.num_embeddings, least=0)
        if len(y) != len(X):
            raise ValueError(f"{where}: y has {len(y)} entries, expected {len(X)}")
        ended = []
        for target in y:
            xp = _dispatch.namespace(where, targets=target)
            end = xp.full((1,), self.end, dtype=target.dtype, device=_dispatch.device(target))
            ended.append(xp.concat([target, end]))
        return PaddedBatches(X, batch_size, ended, own_lengths=True, shuffle=shuffle, rng=rng)

    def _shapes(self) -> list[tuple[Any, ...]]:
        E, H, size = self.source.embedding_dim, self.encoder.hidden_size, self.output.out_features
        L, width = self.decoder.recurrent.num_layers, self.encoder.num_directions * H
        initial = "the encoder's final state" if self.bridge is None else self.bridge
        return [
            ("(S, B)", "source tokens"),
            (f"(S, B, {E})", self.source),
            (f"(S, B, {width})", self.encoder),
            (f"({L}, B, {H})", initial, "the decoder's initial state"),
            ("(T, B)", "target tokens, each the one before that to be predicted"),
            (f"(T, B, {E})", self.target),
            (f"(T, B, {self.decoder.output_size})", self.decoder),
            (f"(T, B, {size})", self.output, "logits"),
        ]


def _limit(where: str, max_length: int) -> int:
    """The largest number of tokens of a target, capped to int64: a limit above that is as good as none."""
    return min(_checks.integer_at_least(where, "max_length", max_length, 1), np.iinfo(np.int64).max)
