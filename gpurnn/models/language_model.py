"""The recurrent language model: embedding, recurrent stack, output head, and the probabilities of texts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _arrays, _checks, _dispatch, functional, layers, losses
from .._contract import Array, State
from .._op import Pullback
from .._random import generator
from ..cells import Activation, CellOptions, Update
from ..functional._activations import activate
from ..functional._state import cotangent_pair
from ..layers.base import Chain, without
from .base import Model, check_numbers, existing, not_finite, recurrent, without_padding
from .decoding import check_sampling, draw, require_finite
from .pooling import LastPooling
from .vocabulary import Tokenizer, Vocabulary, vocabulary_of

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from .fit_options import FitOptions


_ROWS = 1024
"""The smallest number of rows of logits that are computed at a time, if there are that many."""

_BATCH, _WINDOW, _LEAST_WINDOW = 32, 64, 16
"""The defaults of batch_size and window in `LanguageModel.fit`, and the smallest window that it chooses."""

_READ = 65536
"""The most tokens, including padding, that `LanguageModel.predict` and `LanguageModel.sample` read at a time."""


class LanguageModel(Model):
    r"""Recurrent language model: the probability of each token given all before it.

    With E the embedding table and w_t the token numbers::

        h_t = recurrent stack(E[w_t], h_{t-1})
        P(w_{t+1} = v | w_1 .. w_t) = softmax(W h_t + b)_v
        P(w_1 .. w_T) = prod_t P(w_t | w_1 .. w_{t-1})

    Nothing is known before w_1. So it is predicted from the state zero and the vocabulary's ``start``, which is the
    unknown symbol for characters and words.

    Parameters
    ----------
    vocabulary : Vocabulary or tokenizer
        V symbols: a `CharVocabulary` or a `WordVocabulary`. Or a ``tokenizers.Tokenizer``, or another object with
        ``encode``, ``decode`` and a size, which the model wraps in a `TokenizerVocabulary`.
    embedding_size, hidden_size : int
    num_layers : int
        Layers of the recurrent stack.
    cell : {"lstm", "gru", "rnn", "indrnn", "mingru", "minlstm"}
    tied : bool
        W is E itself, as in Press and Wolf; ``embedding_size`` must equal ``hidden_size``, or the ``proj_size`` among
        ``cell_options``. Its gradient is the sum of the two.
    activation, leak, reset_after, update
        Options of the cell: the first two of `gpurnn.RNN`, the others of `gpurnn.GRU`. None: the cell's default.
    cell_options : dict, optional
        Any options of the cell by name, such as ``{"peephole": True, "layer_norm": True}``: those of its layer,
        `gpurnn.RNN`, `gpurnn.LSTM` or `gpurnn.GRU`.
    dropout : float
        Rate of the dropout on the embedded tokens, between the layers and before the output head.
    variational_dropout, recurrent_dropout, residual, init
        As in `gpurnn.LSTM`.
    bidirectional : bool
        Must be False.
    dtype : "float32" or "float64"
    rng : int or numpy.random.Generator
        Where the initial parameters come from.

    Attributes
    ----------
    params : dict of str to array
        ``embedding.weight`` (V, E), ``recurrent.weight_ih_l0``, ..., ``output.weight`` (V, H) unless tied, and
        ``output.bias`` (V,).

    Raises
    ------
    ValueError, TypeError
        An option is out of its range or unknown, a tied model has two widths, or ``bidirectional`` is True.

    References
    ----------
    T. Mikolov et al., "Recurrent neural network based language model", Interspeech 2010;
    O. Press, L. Wolf, "Using the output embedding to improve language models", EACL 2017 (tied weights).

    Examples
    --------
    >>> import numpy as np
    >>> from gpurnn.models import CharVocabulary, LanguageModel
    >>> model = LanguageModel(CharVocabulary.from_text("hello world"), 8, 16)
    >>> model
    LanguageModel(9 characters, 8, 16)  # 1,889 parameters
      (T, B)      tokens
      (T, B, 8)   Embedding(9, 8)
      (T, B, 16)  LSTM(8, 16)
      (T, B, 9)   Dense(16, 9): logits
    >>> logits, (h, c) = model(np.array([[1], [2], [3]]))
    >>> logits.shape, h.shape
    ((3, 1, 9), (1, 1, 16))
    >>> bool(model.perplexity("hello") > 1)
    True
    >>> len(model.sample(5, prompt="he", rng=0))
    5
    """

    stateful = True
    parts = ("embedding", "recurrent", "output")
    _loss = "cross_entropy"

    def __init__(
        self,
        vocabulary: Vocabulary | Tokenizer,
        embedding_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        cell: str = "lstm",
        tied: bool = False,
        activation: Activation | None = None,
        leak: float | None = None,
        reset_after: bool | None = None,
        update: Update | None = None,
        cell_options: CellOptions | None = None,
        dropout: float = 0.0,
        variational_dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        residual: bool = False,
        init: Any = None,
        bidirectional: bool = False,
        dtype: Any = "float32",
        rng: int | np.random.Generator = 0,
    ) -> None:
        where = "LanguageModel"
        vocabulary = vocabulary_of(where, "vocabulary", vocabulary)
        if _checks.flag(where, "bidirectional", bidirectional):
            raise ValueError(
                f"{where}: bidirectional is {bidirectional!r}, expected False: the backward direction would see the "
                "very tokens that are to be predicted"
            )
        tied = _checks.flag(where, "tied", tied)
        embedding_size = _checks.size(where, "embedding_size", embedding_size)
        projected = cell_options.get("proj_size", 0) if isinstance(cell_options, Mapping) else 0
        if tied and embedding_size != (projected or hidden_size):
            raise ValueError(
                f"{where}: embedding_size is {embedding_size} and {'proj_size' if projected else 'hidden_size'} "
                f"{projected or hidden_size}, expected equal sizes, "
                "as tied=True makes the embedding the output weight too"
            )
        random = generator(where, rng)
        self.vocabulary: Vocabulary = vocabulary
        self.embedding_size, self.tied = embedding_size, tied
        self._dropped = layers.Dropout(_checks.fraction(where, "dropout", dropout))
        self.dropout = self._dropped.rate
        recurrent_options: dict[str, Any] = {
            "variational_dropout": variational_dropout,
            "recurrent_dropout": recurrent_dropout,
            "residual": residual,
        }
        size = len(vocabulary)
        # A tied table also makes logits: N(0, 1/E), rows of norm 1, keeps those in the range of the hidden state.
        self.embedding = layers.Embedding(
            size, embedding_size, init="normal" if tied else None, dtype=dtype, rng=random
        )
        self.recurrent = recurrent(
            where, cell, embedding_size, hidden_size, num_layers,
            {"activation": activation, "leak": leak, "reset_after": reset_after, "update": update}, cell_options,
            dropout=dropout, init=init, dtype=dtype, rng=random, **recurrent_options,
        )  # fmt: skip
        self.cell = self.recurrent.cell.name
        self.output = layers.Dense(self.recurrent.output_size, size, dtype=dtype, rng=random)
        if tied:
            self.output.params = without(self.output.params, "weight")

    def __call__(
        self, tokens: Array, state: State = None, lengths: Array | None = None, resets: Array | None = None
    ) -> tuple[Array, State]:
        """The logits of the token after each token, and the final state, without dropout; nothing is saved.

        Parameters
        ----------
        tokens : (T, B) integer array
        state, lengths, resets
            As in `gpurnn.LSTM`.

        Returns
        -------
        logits : (T, B, V) array
        state
            The final state, to continue from.
        """
        tokens = self._take_tokens(tokens, lengths)
        y, state = self.recurrent(self.embedding(tokens), state, lengths, resets)
        return functional.dense(y, self._output_weight(), self.output.params["bias"]), state

    def vjp(
        self,
        tokens: Array,
        state: State = None,
        lengths: Array | None = None,
        resets: Array | None = None,
        rng: int | np.random.Generator | None = None,
        *,
        checkpoint_every: int | str | None = None,
        state_after: int | None = None,
    ) -> tuple[tuple[Array, State], Pullback]:
        """``((logits, state), pullback)``, with ``pullback((dlogits, dstate))`` returning ``((None, dstate0), grads)``.

        With ``rng`` dropout acts; without it these are the gradients of evaluation mode. ``checkpoint_every`` and
        ``state_after`` are options of the recurrent layers, as in `gpurnn.LSTM`.
        """
        random = None if rng is None else generator("LanguageModel", rng)
        (y, final), pull_hidden = self._hidden(
            tokens, state, lengths, resets, random, checkpoint_every=checkpoint_every, state_after=state_after
        )
        y, pull_dropped_output = self._dropped.vjp(y, random)
        weight = self._output_weight()
        logits, pull_output = functional.dense.vjp(y, weight, self.output.params["bias"])

        def pullback(cotangents: Any) -> tuple[tuple[None, State], dict[str, Array]]:
            dlogits, dfinal = cotangent_pair("LanguageModel", cotangents)
            dlogits = _arrays.cotangent("LanguageModel", "logits", dlogits, logits)
            dy, output = pull_output(dlogits)
            dstate, hidden = pull_hidden(pull_dropped_output(dy)[0], dfinal)
            return (None, dstate), self._gradients(hidden, output)

        return (logits, final), pullback

    def _hidden(
        self,
        tokens: Array,
        state: State,
        lengths: Array | None,
        resets: Array | None,
        rng: np.random.Generator | None,
        **options: Any,
    ) -> tuple[tuple[Array, State], Any]:
        """The layers below the output head: (y, state), and ``pull(dy, dstate) -> dstate0, grads`` by part."""
        tokens = self._take_tokens(tokens, lengths)
        below = Chain()
        x = below("embedding", self.embedding.vjp(tokens))
        x = below(None, self._dropped.vjp(x, rng))
        outputs, pull_recurrent = self.recurrent.vjp(x, state, lengths, resets, rng, **options)

        def pull(dy: Array | None, dfinal: State) -> tuple[State, dict[str, dict[str, Array]]]:
            (dx, dstate), recurrent = pull_recurrent((dy, dfinal))
            return dstate, {**below.pull(dx)[1], "recurrent": recurrent}

        return outputs, pull

    def _gradients(self, hidden: dict[str, dict[str, Array]], output: dict[str, Array]) -> dict[str, Array]:
        """The gradients by parameter, from those of the parts below the output head and of the head."""
        grads = {**hidden, "output": output}
        if self.tied:
            grads["embedding"] = {"weight": hidden["embedding"]["weight"] + output["weight"]}
            grads["output"] = {"bias": output["bias"]}
        return self._named(grads)

    @staticmethod
    def _take_tokens(tokens: Array, lengths: Array | None) -> Array:
        """Tokens without padding, ready to compute with."""
        _, tokens = _arrays.take("LanguageModel", integers={"tokens": tokens}, needed=("tokens",))
        _checks.ndim("LanguageModel", "tokens", tokens, 2, "(T, B)")
        return without_padding("LanguageModel", tokens, lengths)

    def _output_weight(self) -> Array:
        return self.embedding.params["weight"] if self.tied else self.output.params["weight"]

    def loss(
        self, inputs: Array, targets: Array, state: State = None, lengths: Array | None = None
    ) -> tuple[Array, State]:
        """The mean cross-entropy -log P(target), in nats, over the steps that exist, and the final state.

        Parameters
        ----------
        inputs, targets : (T, B) integer arrays
            w_t and w_{t+1}.
        state, lengths
            As in a call.

        Returns
        -------
        loss : 0-d array
        state
        """
        logits, state = self(inputs, state, lengths)
        return losses.cross_entropy(logits, targets, mask=existing("LanguageModel", inputs, lengths)), state

    def loss_and_gradients(
        self,
        inputs: Array,
        targets: Array,
        state: State = None,
        lengths: Array | None = None,
        *,
        rng: int | np.random.Generator | None = None,
        checkpoint_every: int | str | None = None,
        state_after: int | None = None,
    ) -> tuple[Array, State, dict[str, Array]]:
        """The results of `loss`, and the gradients of the loss by parameter name. With ``rng`` dropout acts.

        Logits and their gradients are computed for about 1024 rows at a time, so those of all steps are never in memory
        together.

        Parameters
        ----------
        inputs : (T, B) integer array
        targets : (S, B) integer array
            Targets of the last S steps, S <= T. Only these steps count.
        state, lengths, rng
            As in `loss` and `vjp`.
        checkpoint_every : int or "sqrt", optional
            As in `gpurnn.LSTM`. The gradients are the same to the last bit.
        state_after : int, optional
            Return the state after this many steps, instead of the state after all steps.

        Returns
        -------
        loss : 0-d array
        state
        grads : dict of str to array
        """
        where = "LanguageModel.loss_and_gradients"
        inputs = self._take_tokens(inputs, lengths)
        _checks.given(where, targets=targets)
        xp = _dispatch.namespace(where, inputs=inputs, targets=targets)
        _checks.ndim(where, "targets", targets, 2, "(S, B)")
        T, B = inputs.shape
        S = targets.shape[0]
        if S > T or targets.shape[1] != B:
            raise ValueError(
                f"{where}: targets has shape {tuple(targets.shape)}, expected (S, B) with S <= T = {T} and B = {B}"
            )
        random = None if rng is None else generator("LanguageModel", rng)
        (y, final), pull_hidden = self._hidden(
            inputs, state, lengths, None, random, checkpoint_every=checkpoint_every, state_after=state_after
        )
        exist = existing(where, inputs, lengths)
        dropped, pull_dropped = self._dropped.vjp(y[T - S :, ...] if S < T else y, random)
        loss, dlast, output = self._loss_of_rows(dropped, targets, None if exist is None else exist[T - S :, :])
        dy, _ = pull_dropped(dlast)
        if S < T:
            dy = xp.concat([_dispatch.zeros(xp, (T - S, *y.shape[1:]), y), dy], axis=0)
        _, hidden = pull_hidden(dy, None)
        return loss, final, self._gradients(hidden, output)

    def _loss_of_rows(self, y: Array, targets: Array, exist: Array | None) -> tuple[Array, Array, dict[str, Array]]:
        """The mean cross-entropy of the logits for y, and its gradients by y and by the output head's parameters."""
        xp = _dispatch.namespace("LanguageModel", y=y)
        weight, bias = self._output_weight(), self.output.params["bias"]
        S, B = targets.shape
        count = xp.asarray(float(max(S * B, 1)), dtype=y.dtype, device=_dispatch.device(y))
        if exist is not None:
            count = xp.maximum(xp.sum(xp.astype(exist, y.dtype)), xp.ones_like(count))
        nats, dy = [], _dispatch.zeros(xp, tuple(y.shape), y)
        output: dict[str, Array] = {}
        length = -(-_ROWS // max(B, 1))
        for start in range(0, max(S, 1), length):
            some = slice(start, min(start + length, S))
            logits, pull_output = functional.dense.vjp(y[some, ...], weight, bias)
            rows, pull_loss = losses.cross_entropy.vjp(
                logits, targets[some, :], mask=None if exist is None else exist[some, :], reduction="none"
            )
            dlogits, _ = pull_loss(xp.ones_like(rows) / count)
            dy[some, ...], of_rows = pull_output(dlogits)
            output = {name: output[name] + g if output else g for name, g in of_rows.items()}
            nats.append(rows)
        return xp.asarray(xp.sum(xp.concat(nats, axis=0)) / count), dy, output

    @_checks.lists_options
    def fit(self, X: Any, y: None = None, *, window: int | None = None, **options: Unpack[FitOptions]) -> Self:
        """Train on a text, by truncated backpropagation through time, or on many, each from beginning to end.

        Parameters
        ----------
        X : str, (n,) integer array, a list of such, or Data
            One text or its tokens; or several texts that are independent of each other.
        y : None
            Every token is the target of those before it.
        window : int, optional
            k, the steps that gradients go back through, if there is one text. By default 64, or less in a text that is
            too short for 64; the ``batch_size`` is then smaller too, unless it is given.
        **options
            As in `Model.fit`; its ``validation`` is like X.

        Returns
        -------
        self
            Its attribute ``trainer_`` is the `gpurnn.Trainer` of this run; its ``history`` has the losses.
        """
        batch_size, rng = options.pop("batch_size", None), options.get("rng", 0)
        data = self._texts("X", X, batch_size, window, shuffle=True, rng=rng)
        if options.get("validation") is not None:
            validation = self._texts("validation", options["validation"], batch_size, window, shuffle=False, rng=0)
            options["validation"] = validation
        options.setdefault("metric", self.vocabulary.metric)
        return super().fit(data, y, **options)

    def _texts(
        self,
        name: str,
        texts: Any,
        batch_size: int | None,
        window: int | None,
        *,
        shuffle: bool,
        rng: int | np.random.Generator,
    ) -> Any:
        """The batches of one text or of several, which the caller calls ``name``."""
        from ..training import PaddedBatches, TokenStream

        where = "LanguageModel.fit"
        one = isinstance(texts, str) or _arrays.is_single(texts)
        if window is not None and not one and name == "X":
            _checks.warn(where, f"window={window} has no effect, as {name} holds several texts or batches")
        if hasattr(texts, "batch"):
            return texts
        _checks.given(where, **{name: texts})
        if batch_size is not None:
            batch_size = _checks.integer_at_least(where, "batch_size", batch_size, 1)
        if window is not None:
            window = _checks.integer_at_least(where, "window", window, 1)
        xp = self._namespace()
        if one:
            tokens = self._tokens("fit", name, texts)
            count = tokens.shape[0]
            if batch_size is None:
                # A short text is read in fewer lanes, not in windows of fewer than `_LEAST_WINDOW` steps.
                batch_size = min(_BATCH, max(1, count // (min(window or _WINDOW, _LEAST_WINDOW) + 1)))
            if window is None:
                window = min(_WINDOW, max(1, count // batch_size - 1))
            if count < batch_size * (window + 1):
                raise ValueError(
                    f"{where}: {name} has {count} tokens, expected at least batch_size (window + 1) = "
                    f"{batch_size * (window + 1)}; lower batch_size or window, or give a list of texts"
                )
            return TokenStream(_dispatch.from_numpy(xp, tokens), batch_size, window)
        sequences = []
        for entry, tokens in self._each("fit", name, texts):
            if tokens.shape[0] < 2:
                raise ValueError(f"{where}: {entry} has {tokens.shape[0]} tokens, expected at least 2")
            sequences.append(_dispatch.from_numpy(xp, tokens))
        return PaddedBatches(sequences, _BATCH if batch_size is None else batch_size, shuffle=shuffle, rng=rng)

    def predict(self, texts: Sequence[str | Array]) -> Array:
        """P(w | w_1 .. w_T): the probabilities of the next token after each text.

        Parameters
        ----------
        texts : sequence of str or of (T,) integer arrays
            Their lengths may differ, and be zero.

        Returns
        -------
        (N, V) array
            A row for each text, of the dtype of the parameters.

        Raises
        ------
        ValueError, TypeError
            There are no texts, or one is neither a str nor tokens.
        FloatingPointError
            A parameter is NaN or infinite, so that there are no probabilities.
        """
        from ..training import pad

        where = "LanguageModel.predict"
        _checks.given(where, texts=texts)
        read = [self._begun(tokens) for _, tokens in self._each("predict", "texts", texts)]
        # Texts of similar length go together, so that there is little padding.
        order = sorted(range(len(read)), key=lambda i: len(read[i]))
        xp = self._namespace()
        rows: list[Any] = [None] * len(read)
        while order:
            count = 1
            while count < len(order) and (count + 1) * len(read[order[count]]) <= _READ:
                count += 1
            chosen, order = order[:count], order[count:]
            tokens, lengths = pad([read[i] for i in chosen])
            logits, _ = self._next(tokens, lengths if count > 1 else None)
            bad = np.flatnonzero(_dispatch.to_numpy(~xp.isfinite(xp.max(logits, axis=-1))))
            if len(bad):
                raise not_finite(where, f"the logits for texts[{min(chosen[row] for row in bad)}]", self.params)
            for lane, i in enumerate(chosen):
                rows[i] = logits[lane, ...]
        return activate(xp, "softmax", xp.stack(rows))

    def _next(
        self, tokens: np.ndarray[Any, Any], lengths: np.ndarray[Any, Any] | None = None, state: State = None
    ) -> tuple[Array, State]:
        """The logits (B, V) of the next token after each text of tokens (T, B), and the state after it.

        Only the logits of the last step are computed, and a text of more than `_READ` tokens is read in pieces. Texts
        with ``lengths`` are read at once.
        """
        xp = self._namespace()
        counts = None if lengths is None else _dispatch.from_numpy(xp, lengths)
        for start in range(0, tokens.shape[0], _READ):
            x = self.embedding(_dispatch.from_numpy(xp, tokens[start : start + _READ, :]))
            y, state = self.recurrent(x, state, counts)
        last = y[-1, ...] if counts is None else LastPooling()(y, counts)
        return functional.dense(last, self._output_weight(), self.output.params["bias"]), state

    def log_likelihood(self, text: str | Array, *, window: int = 512) -> float:
        """log P(w_1 .. w_T) = sum_t log P(w_t | w_1 .. w_{t-1}), the natural logarithm.

        Parameters
        ----------
        text : str or (T,) integer array
            The text or its tokens, of any length: it is read in windows, and the state is passed on.
        window : int
            Steps that are in memory at a time. The result does not depend on it, except for rounding.

        Returns
        -------
        float
            In nats; 0 for an empty text.

        Raises
        ------
        FloatingPointError
            The logits are NaN or infinite.
        """
        return self._log_likelihood("log_likelihood", self._tokens("log_likelihood", "text", text), window)

    def _log_likelihood(self, method: str, tokens: np.ndarray[Any, Any], window: int) -> float:
        where = f"LanguageModel.{method}"
        window = _checks.integer_at_least(where, "window", window, 1)
        before = self._begun(tokens)[:-1]
        xp = self._namespace()
        total, state = 0.0, None
        for start in range(0, tokens.shape[0], window):
            inputs, targets = (_dispatch.from_numpy(xp, t[start : start + window, None]) for t in (before, tokens))
            logits, state = self(inputs, state)
            if not bool(xp.all(xp.isfinite(xp.max(logits, axis=-1)))):  # minus infinity is a probability of 0
                raise not_finite(where, "the logits", self.params)
            nats = losses.cross_entropy(logits, targets, reduction="none")
            total -= float(_dispatch.to_numpy(nats).sum(dtype=np.float64))
        return total

    def perplexity(self, text: str | Array, *, window: int = 512) -> float:
        """P(w_1 .. w_T)^(-1/T): how many tokens the model chooses between on average, each equally likely.

        Parameters
        ----------
        text, window
            As in `log_likelihood`.

        Raises
        ------
        ValueError
            The text is empty.
        FloatingPointError
            The logits are NaN or infinite.
        """
        tokens = self._tokens("perplexity", "text", text)
        if tokens.shape[0] == 0:
            raise ValueError("LanguageModel.perplexity: text is empty, expected at least one token")
        return losses.perplexity(-self._log_likelihood("perplexity", tokens, window) / tokens.shape[0])

    def sample(
        self,
        length: int,
        prompt: str = "",
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        rng: int | np.random.Generator = 0,
    ) -> str:
        r"""A text that continues ``prompt``, each token drawn from P(w_t | prompt, w_1 .. w_{t-1}).

        Parameters
        ----------
        length : int
            The number of tokens to draw.
        prompt : str
            The text before; not part of the result.
        temperature : float
            \tau in P_v \propto exp(logit_v / \tau). Below 1 likely tokens become likelier; 0 takes the likeliest.
        top_k : int, optional
            Draw from the k likeliest tokens only.
        top_p : float, optional
            Draw from the nucleus only: the fewest tokens whose probabilities reach p (Holtzman et al. 2020).
        rng : int or numpy.random.Generator
            The same seed draws the same text.

        Returns
        -------
        str
            Without the unknown symbol, which is never drawn. Bytes of a tokenizer's tokens that make no character are
            U+FFFD.

        Raises
        ------
        ValueError
            An argument is out of its range, or the vocabulary has no symbol but the unknown one.
        FloatingPointError
            A parameter is NaN or infinite, so that the tokens have no probabilities.
        """
        symbols = self._drawn("LanguageModel.sample", length, prompt, temperature, top_k, top_p, rng)
        return self.vocabulary.join(symbols)

    def stream(
        self,
        length: int,
        prompt: str = "",
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        rng: int | np.random.Generator = 0,
    ) -> Iterator[str]:
        """The symbols of `sample`, each as soon as it is drawn; for tokens, pieces of text as soon as a character ends.

        Parameters
        ----------
        length, prompt, temperature, top_k, top_p, rng
            As in `sample`.

        Returns
        -------
        iterator of str
            Characters, words or pieces of text. ``vocabulary.join`` of them is the text that `sample` returns.

        Raises
        ------
        ValueError, TypeError, FloatingPointError
            As in `sample`; the last one is raised during iteration.

        Examples
        --------
        >>> from gpurnn.models import CharVocabulary, LanguageModel
        >>> model = LanguageModel(CharVocabulary.from_text("hello"), 8, 16)
        >>> "".join(model.stream(5, "he", rng=0)) == model.sample(5, "he", rng=0)
        True
        """
        return self._drawn("LanguageModel.stream", length, prompt, temperature, top_k, top_p, rng)

    def _drawn(
        self,
        where: str,
        length: int,
        prompt: str,
        temperature: float,
        top_k: int | None,
        top_p: float | None,
        rng: int | np.random.Generator,
    ) -> Iterator[str]:
        """The symbols that are drawn after ``prompt``; the arguments are checked at once."""
        length = _checks.integer_at_least(where, "length", length, 0)
        check_sampling(where, temperature, top_k, top_p)
        drawable = np.delete(np.arange(len(self.vocabulary)), self.vocabulary.unknown_tokens)
        if not len(drawable):
            raise ValueError(f"{where}: the vocabulary holds the unknown symbol only, expected another to draw")
        random = generator(where, rng)
        if not isinstance(prompt, str):
            raise TypeError(f"{where}: prompt is {_checks.described(prompt)}, expected a str")

        def tokens() -> Iterator[int]:
            read = self._begun(self.vocabulary.encode(prompt))
            state, drawn = None, 0

            def fail(row: int) -> Exception:
                return not_finite(where, f"the logits of token {drawn}", self.params)

            for _ in range(length):
                logits, state = self._next(read[:, None], None, state)
                values = _dispatch.to_numpy(logits).astype(np.float64)
                require_finite(values, np.ones(1, bool), fail)
                values = values[:, drawable]
                token = int(drawable[draw(values, random, temperature=temperature, top_k=top_k, top_p=top_p)[0]])
                drawn += 1
                yield token
                read = np.array([token], np.int32)

        return self.vocabulary.pieces(tokens(), prompt)

    def _each(self, method: str, name: str, texts: Any) -> list[tuple[str, np.ndarray[Any, Any]]]:
        """The name and the tokens of each of several texts."""
        where = f"LanguageModel.{method}"
        texts = _arrays.entries(where, name, texts, "a sequence of str or of (T,) integer arrays")
        if len(texts) == 0:
            raise ValueError(f"{where}: {name} is empty, expected at least one text")
        if all(isinstance(token, Integral) for token in texts):
            raise TypeError(
                f"{where}: {name} is a list of numbers, expected texts or arrays of tokens; for the tokens of one text "
                f"pass numpy.asarray({name})"
            )
        names = [f"{name}[{i}]" for i in range(len(texts))]
        return [(entry, self._tokens(method, entry, text)) for entry, text in zip(names, texts, strict=True)]

    def _tokens(self, method: str, name: str, text: str | Array) -> np.ndarray[Any, Any]:
        if isinstance(text, str):
            return self.vocabulary.encode(text)
        where = f"LanguageModel.{method}"
        _, tokens = _arrays.take(where, integers={name: text}, needed=(name,))
        _checks.ndim(where, name, tokens, 1, "(T,)")
        check_numbers(where, name, tokens, len(self.vocabulary), IndexError)
        return _dispatch.to_numpy(tokens).astype(np.int32, copy=False)

    def _begun(self, tokens: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """The tokens, with the vocabulary's ``start`` before them."""
        return np.concatenate([np.array([self.vocabulary.start], np.int32), tokens])

    def _namespace(self) -> Any:
        return _dispatch.namespace("LanguageModel", params=self.embedding.params["weight"])

    def _shapes(self) -> list[tuple[Any, ...]]:
        embedding, hidden, size = self.embedding.embedding_dim, self.recurrent.output_size, len(self.vocabulary)
        return [
            ("(T, B)", "tokens"),
            (f"(T, B, {embedding})", self.embedding),
            (f"(T, B, {hidden})", self.recurrent),
            (f"(T, B, {size})", "tied Dense" if self.tied else self.output, "logits"),
        ]
