"""The recurrent language model: embedding, recurrent stack, output head, and the probabilities of texts."""

from __future__ import annotations

import copy
import json
import math
import os
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _checks, _dispatch, _files, functional, layers, losses
from .._op import Pullback
from .._random import generator
from ..layers.base import Array, Layer
from .vocabulary import Vocabulary

if TYPE_CHECKING:
    from typing_extensions import Self

State = Any

FORMAT = "gpurnn language model, version 1"

_CELLS: dict[str, Any] = {"rnn": layers.RNN, "lstm": layers.LSTM, "gru": layers.GRU}
_CELL_OPTIONS = {"rnn": ("activation", "leak"), "lstm": (), "gru": ("reset_after", "update")}


class LanguageModel(Layer):
    r"""Recurrent language model: the probability of each token given all before it.

    With E the embedding table and w_t the token numbers::

        h_t = recurrent stack(E[w_t], h_{t-1})
        P(w_{t+1} = v | w_1 .. w_t) = softmax(W h_t + b)_v
        P(w_1 .. w_T) = prod_t P(w_t | w_1 .. w_{t-1})

    Nothing is known of what precedes w_1, so it is predicted from the unknown symbol and the state zero.

    Parameters
    ----------
    vocabulary : Vocabulary
        Of V symbols; a `CharVocabulary` or a `WordVocabulary`.
    embedding_size, hidden_size : int
    num_layers : int
        Layers of the recurrent stack.
    cell : {"lstm", "gru", "rnn"}
    tied : bool
        W is E itself, as in Press and Wolf; ``embedding_size`` must equal ``hidden_size``. Its gradient is the sum of
        the two.
    dropout : float
        Rate of the dropout on the embedded tokens, between the layers and before the output head.
    variational_dropout, recurrent_dropout, residual, init
        Those of `gpurnn.LSTM` and its kin.
    bidirectional : bool
        Must be False.
    dtype : "float32" or "float64"
    rng : int or numpy.random.Generator
        Where the initial parameters come from.
    **cell_options
        ``activation`` and ``leak`` of `gpurnn.RNN`, ``reset_after`` and ``update`` of `gpurnn.GRU`.

    Attributes
    ----------
    params : dict of str to array
        ``embedding.weight`` (V, E), ``recurrent.weight_ih_l0``, ..., ``output.weight`` (V, H) unless tied, and
        ``output.bias`` (V,).

    Raises
    ------
    ValueError, TypeError
        An option is out of its range or unknown, a tied model has two widths, or ``bidirectional`` is asked for.

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
    >>> logits, (h, c) = model(np.array([[1], [2], [3]]))
    >>> logits.shape, h.shape
    ((3, 1, 9), (1, 1, 16))
    >>> bool(model.perplexity("hello") > 1)
    True
    >>> len(model.sample(5, prompt="he", rng=0))
    5
    """

    stateful = True

    def __init__(
        self,
        vocabulary: Vocabulary,
        embedding_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        cell: str = "lstm",
        tied: bool = False,
        dropout: float = 0.0,
        variational_dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        residual: bool = False,
        init: Any = None,
        bidirectional: bool = False,
        dtype: Any = "float32",
        rng: int | np.random.Generator = 0,
        **cell_options: Any,
    ) -> None:
        where = "LanguageModel"
        if not isinstance(vocabulary, Vocabulary):
            raise TypeError(
                f"{where}: vocabulary is a {type(vocabulary).__qualname__}, expected a CharVocabulary or a "
                "WordVocabulary; make one with CharVocabulary.from_text(text)"
            )
        _checks.choice(where, "cell", cell, tuple(_CELLS))
        for name in cell_options:
            if name not in _CELL_OPTIONS[cell]:
                known = " or ".join(_CELL_OPTIONS[cell]) or "none"
                raise TypeError(f"{where}: {name} is not an option of the cell {cell!r}, expected {known}")
        if bidirectional:
            raise ValueError(
                f"{where}: bidirectional is {bidirectional!r}, expected False: the backward direction would see the "
                "very tokens that are to be predicted"
            )
        if tied and embedding_size != hidden_size:
            raise ValueError(
                f"{where}: embedding_size is {embedding_size} and hidden_size {hidden_size}, expected equal sizes, "
                "as tied=True makes the embedding the output weight too"
            )
        _checks.integer_at_least(where, "embedding_size", embedding_size, 1)
        random = generator(where, rng)
        self.vocabulary = vocabulary
        self.cell, self.tied = cell, bool(tied)
        self.dropout = _checks.fraction(where, "dropout", dropout)
        recurrent_options = {
            "variational_dropout": variational_dropout,
            "recurrent_dropout": recurrent_dropout,
            "residual": residual,
            **cell_options,
        }
        size = len(vocabulary)
        # A tied table also makes logits: N(0, 1/E), rows of norm 1, keeps those in the range of the hidden state.
        self.embedding = layers.Embedding(
            size, embedding_size, init="normal" if tied else None, dtype=dtype, rng=random
        )
        self.recurrent = _CELLS[cell](
            embedding_size, hidden_size, num_layers, dropout=dropout, dtype=dtype, rng=random,
            **({} if init is None else {"init": init}), **recurrent_options,
        )  # fmt: skip
        self.output = layers.Dense(hidden_size, size, dtype=dtype, rng=random)
        if tied:
            del self.output.params["weight"]
        self._config = {
            "embedding_size": self.embedding.embedding_dim,
            "hidden_size": self.recurrent.hidden_size,
            "num_layers": self.recurrent.num_layers,
            "cell": cell,
            "tied": self.tied,
            "dropout": self.dropout,
            **recurrent_options,
            "dtype": np.dtype(dtype).name,
        }

    @property
    def params(self) -> dict[str, Array]:  # type: ignore[override]
        """The parameters of the parts, each name behind that of its part and a dot."""
        parts = {"embedding": self.embedding, "recurrent": self.recurrent, "output": self.output}
        return {f"{part}.{name}": p for part, layer in parts.items() for name, p in layer.params.items()}

    def to(self, xp: Any) -> Self:
        """This model with its parameters copied to the array library ``xp``."""
        moved = copy.copy(self)
        for part in ("embedding", "recurrent", "output"):
            setattr(moved, part, getattr(self, part).to(xp))
        return moved

    def config(self) -> dict[str, Any]:
        """What `from_config` makes the model from, its parameters aside: a dict that JSON can hold."""
        return {**self._config, "vocabulary": self.vocabulary.config()}

    @classmethod
    def from_config(cls, config: dict[str, Any], *, rng: int | np.random.Generator = 0) -> Self:
        """The model that `config` described, with new parameters."""
        options = {name: value for name, value in config.items() if name != "vocabulary"}
        return cls(Vocabulary.from_config(config["vocabulary"]), **options, rng=rng)

    def __call__(
        self, tokens: Array, state: State = None, lengths: Array | None = None, resets: Array | None = None
    ) -> tuple[Array, State]:
        """The logits of the token after each, and the final state, without dropout; nothing is saved.

        Parameters
        ----------
        tokens : (T, B) integer array
        state, lengths, resets
            As of `gpurnn.LSTM` and its kin.

        Returns
        -------
        logits : (T, B, V) array
        state
            To go on from.
        """
        self._check_tokens(tokens)
        y, state = self.recurrent(self.embedding(tokens), state, lengths, resets)
        return functional.dense(y, self._output_weight(), self.output.params["bias"]), state

    def vjp(
        self,
        tokens: Array,
        state: State = None,
        lengths: Array | None = None,
        resets: Array | None = None,
        rng: int | np.random.Generator | None = None,
    ) -> tuple[tuple[Array, State], Pullback]:
        """``((logits, state), pullback)``, with ``pullback((dlogits, dstate))`` returning ``((None, dstate0), grads)``.

        With ``rng`` dropout acts; without it these are the gradients of evaluation mode.
        """
        self._check_tokens(tokens)
        random = None if rng is None else generator("LanguageModel", rng)
        x, pull_embedding = self.embedding.vjp(tokens)
        x, pull_dropped_input = self._drop(x, random)
        (y, final), pull_recurrent = self.recurrent.vjp(x, state, lengths, resets, random)
        y, pull_dropped_output = self._drop(y, random)
        weight = self._output_weight()
        logits, pull_output = functional.dense.vjp(y, weight, self.output.params["bias"])

        def pullback(cotangents: Any) -> tuple[tuple[None, State], dict[str, Array]]:
            dlogits, dfinal = functional.cotangent_pair("LanguageModel", cotangents)
            functional.check_cotangent("LanguageModel", "logits", dlogits, logits)
            dy, output = pull_output(dlogits)
            (dx, dstate), recurrent = pull_recurrent((pull_dropped_output(dy), dfinal))
            _, embedding = pull_embedding(pull_dropped_input(dx))
            if self.tied:
                embedding["weight"] = embedding["weight"] + output.pop("weight")
            grads = {"embedding": embedding, "recurrent": recurrent, "output": output}
            flat = {f"{part}.{name}": g for part, own in grads.items() for name, g in own.items()}
            return (None, dstate), {name: flat[name] for name in self.params}

        return (logits, final), pullback

    @staticmethod
    def _check_tokens(tokens: Array) -> None:
        _checks.given("LanguageModel", tokens=tokens)
        _dispatch.namespace("LanguageModel", tokens=tokens)
        _checks.integer("LanguageModel", "tokens", tokens)
        _checks.ndim("LanguageModel", "tokens", tokens, 2, "(T, B)")

    def _output_weight(self) -> Array:
        return self.embedding.params["weight"] if self.tied else self.output.params["weight"]

    def _drop(self, x: Array, rng: np.random.Generator | None) -> tuple[Array, Any]:
        """x after dropout, and the function that takes dy to dx."""
        if rng is None or self.dropout == 0:
            return x, lambda dy: dy
        y, pullback = functional.dropout.vjp(x, self.dropout, rng)
        return y, lambda dy: pullback(dy)[0]

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
        return losses.cross_entropy(logits, targets, mask=_mask(inputs, lengths)), state

    def loss_and_gradients(
        self,
        inputs: Array,
        targets: Array,
        state: State = None,
        lengths: Array | None = None,
        *,
        rng: int | np.random.Generator | None = None,
    ) -> tuple[Array, State, dict[str, Array]]:
        """What `loss` returns, and the gradients of the loss by parameter name. With ``rng`` dropout acts."""
        (logits, final), pullback = self.vjp(inputs, state, lengths, rng=rng)
        loss, pull_loss = losses.cross_entropy.vjp(logits, targets, mask=_mask(inputs, lengths))
        dlogits, _ = pull_loss(1.0)
        _, grads = pullback((dlogits, None))
        return loss, final, grads

    def log_likelihood(self, text: str | Array, *, window: int = 512) -> float:
        """log P(w_1 .. w_T) = sum_t log P(w_t | w_1 .. w_{t-1}), the natural logarithm.

        Parameters
        ----------
        text : str or (T,) integer array
            The text, or its tokens. Of any length: it is read in windows, the state handed on.
        window : int
            Steps that are held in memory at a time. The result does not depend on it, rounding aside.

        Returns
        -------
        float
            In nats; 0 for an empty text.
        """
        window = _checks.integer_at_least("LanguageModel.log_likelihood", "window", window, 1)
        tokens = self._tokens("log_likelihood", text)
        before = np.concatenate([np.zeros(1, tokens.dtype), tokens[:-1]])
        xp = self._namespace()
        total, state = 0.0, None
        for start in range(0, tokens.shape[0], window):
            inputs, targets = (_dispatch.from_numpy(xp, t[start : start + window, None]) for t in (before, tokens))
            logits, state = self(inputs, state)
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
        """
        tokens = self._tokens("perplexity", text)
        if tokens.shape[0] == 0:
            raise ValueError("LanguageModel.perplexity: text is empty, expected at least one token")
        return math.exp(-self.log_likelihood(tokens, window=window) / tokens.shape[0])

    def sample(
        self,
        length: int,
        prompt: str = "",
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        rng: int | np.random.Generator = 0,
    ) -> str:
        r"""A text that goes on from ``prompt``, each token drawn from P(w_t | prompt, w_1 .. w_{t-1}).

        Parameters
        ----------
        length : int
            How many tokens to draw.
        prompt : str
            What comes before; not part of the result.
        temperature : float
            \tau in P_v \propto exp(logit_v / \tau). Below 1 likely tokens become likelier; 0 takes the likeliest.
        top_k : int, optional
            Draw from the k likeliest tokens only.
        rng : int or numpy.random.Generator
            The same seed draws the same text.

        Returns
        -------
        str
            Without the unknown symbol, which is never drawn.

        Raises
        ------
        ValueError
            An argument is out of its range, or the vocabulary has no symbol but the unknown one.
        """
        where = "LanguageModel.sample"
        length = _checks.integer_at_least(where, "length", length, 0)
        if not 0.0 <= temperature < math.inf:
            raise ValueError(f"{where}: temperature is {temperature!r}, expected a number of at least 0")
        if top_k is not None:
            top_k = _checks.integer_at_least(where, "top_k", top_k, 1)
        if len(self.vocabulary) < 2:
            raise ValueError(f"{where}: the vocabulary holds the unknown symbol only, expected another to draw")
        random = generator(where, rng)
        xp = self._namespace()
        read = np.concatenate([np.zeros(1, np.int32), self.vocabulary.encode(prompt)])
        state = None
        drawn: list[int] = []
        for _ in range(length):
            logits, state = self(_dispatch.from_numpy(xp, read[:, None]), state)
            token = _draw(_dispatch.to_numpy(logits[-1, 0, :]).astype(np.float64), temperature, top_k, random)
            drawn.append(token)
            read = np.array([token], np.int32)
        return self.vocabulary.decode(drawn)

    def _tokens(self, method: str, text: str | Array) -> np.ndarray[Any, Any]:
        if isinstance(text, str):
            return self.vocabulary.encode(text)
        where = f"LanguageModel.{method}"
        _dispatch.namespace(where, text=text)
        _checks.ndim(where, "text", text, 1, "(T,)")
        _checks.integer(where, "text", text)
        return _dispatch.to_numpy(text)

    def _namespace(self) -> Any:
        return _dispatch.namespace("LanguageModel", params=self.embedding.params["weight"])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the whole model, configuration, vocabulary and parameters, to a safetensors file, atomically."""
        import safetensors.numpy

        # One key, because safetensors writes several in no fixed order, and equal models are to make equal files.
        metadata = {FORMAT: json.dumps(self.config())}
        _files.write_atomically(path, safetensors.numpy.save(self.state_dict(), metadata))

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> Self:
        """The model that `save` wrote to ``path``.

        Raises
        ------
        ValueError
            The file is damaged or holds something else.
        OSError
            It cannot be read.
        """
        import safetensors

        try:
            with safetensors.safe_open(path, framework="numpy") as file:
                metadata = file.metadata() or {}
                if FORMAT not in metadata:
                    raise ValueError(f"{path}: a safetensors file, but not a language model that this gpurnn can read")
                parameters = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
        except safetensors.SafetensorError as error:
            raise ValueError(f"{path}: damaged, or not a safetensors file ({error})") from error
        model = cls.from_config(json.loads(metadata[FORMAT]))
        model.load_state_dict(parameters)
        return model

    def _describe(self) -> str:
        defaults = {"num_layers": 1, "cell": "lstm", "tied": False, "dropout": 0.0, "variational_dropout": 0.0}
        defaults |= {"recurrent_dropout": 0.0, "residual": False, "dtype": "float32"}
        sizes = {"embedding_size", "hidden_size"}
        told = [f"{n}={v!r}" for n, v in self._config.items() if n not in sizes and (n, v) not in defaults.items()]
        symbols = f"{len(self.vocabulary)} {self.vocabulary.kind}s"
        return ", ".join([symbols, str(self.embedding.embedding_dim), str(self.recurrent.hidden_size), *told])


def _mask(tokens: Array, lengths: Array | None) -> Array | None:
    """(T, B) bools, True at the steps that exist; None if all do."""
    if lengths is None:
        return None
    xp = _dispatch.namespace("LanguageModel", tokens=tokens, lengths=lengths)
    steps = xp.arange(tokens.shape[0], dtype=lengths.dtype, device=_dispatch.device(tokens))
    return steps[:, None] < lengths[None, :]


def _draw(logits: np.ndarray[Any, Any], temperature: float, top_k: int | None, rng: np.random.Generator) -> int:
    """One token from softmax(logits / temperature), the unknown symbol and all but the ``top_k`` likeliest left out."""
    likeliest = np.argsort(-logits[1:], kind="stable")[:top_k] + 1
    if temperature == 0:
        return int(likeliest[0])
    chances = np.exp((logits[likeliest] - logits[likeliest[0]]) / temperature)
    bounds = np.cumsum(chances)
    return int(likeliest[np.searchsorted(bounds, rng.random() * bounds[-1], side="right")])
