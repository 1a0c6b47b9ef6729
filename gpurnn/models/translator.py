"""The translator: texts in, texts out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from .. import _arrays, _checks, _dispatch
from .._contract import Array
from ..cells import Activation, CellOptions, Update
from .encoder_decoder import EncoderDecoder
from .tokenizer import TokenizerVocabulary
from .vocabulary import CharVocabulary, Tokenizer, Vocabulary, WordVocabulary, vocabulary_of

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

RESERVED = 3
"""The number of tokens that are not symbols: padding, begin and end. Symbol n of a vocabulary is token n + 3."""

_LEVELS: dict[str, Callable[..., Vocabulary]] = {
    "char": CharVocabulary.from_text,
    "word": WordVocabulary.from_text,
    "bpe": TokenizerVocabulary.from_text,
}


class TranslatorOptions(TypedDict, total=False):
    """The options of `Translator` that `Translator.from_texts` passes on."""

    num_layers: int
    encoder_layers: int | None
    cell: str
    bidirectional: bool
    attention: str | None
    attention_size: int | None
    input_feeding: bool
    bridge: bool | None
    activation: Activation | None
    leak: float | None
    reset_after: bool | None
    update: Update | None
    cell_options: CellOptions | None
    dropout: float
    begin: int
    end: int
    init: Any
    dtype: Any
    rng: int | np.random.Generator


class Translator(EncoderDecoder):
    r"""An encoder-decoder between texts: a source and a target vocabulary, and attention by default.

    The network reads tokens: 0 is padding, 1 begins and 2 ends a text, and symbol n of a vocabulary is token n + 3. So
    3 stands for all unknown characters or words.

    Parameters
    ----------
    source_vocabulary, target_vocabulary : Vocabulary or tokenizer
        Each may be of characters, of words or of a tokenizer's tokens; `from_texts` makes them. Tokenizers are
        those that `LanguageModel` takes.
    embedding_size, hidden_size : int
    bidirectional : bool
        Whether the encoder reads in both directions.
    attention : {"additive", "general", "dot"} or None
    num_layers, encoder_layers, cell, attention_size, input_feeding, bridge, activation, leak, reset_after, update,
    cell_options, dropout, begin, end, init, dtype, rng
        As in `EncoderDecoder`.

    Raises
    ------
    ValueError, TypeError
        As in `EncoderDecoder`, or a vocabulary is not one.

    Examples
    --------
    >>> import gpurnn
    >>> pairs = {"1": "one", "2": "two", "12": "one two", "21": "two one", "11": "one one", "22": "two two"}
    >>> model = gpurnn.Translator.from_texts(
    ...     list(pairs), list(pairs.values()), 8, 24, source_level="char", target_level="word")
    >>> model = model.fit(list(pairs), list(pairs.values()), epochs=60, batch_size=3, optimizer=gpurnn.Adam(0.01))
    >>> model.predict(["12", "2"])
    ['one two', 'two']
    >>> weights, source, target = model.alignment("12")
    >>> weights.shape, source, target
    ((3, 2), ['1', '2'], ['one', 'two', '<end>'])
    """

    def __init__(
        self,
        source_vocabulary: Vocabulary | Tokenizer,
        target_vocabulary: Vocabulary | Tokenizer,
        embedding_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        encoder_layers: int | None = None,
        cell: str = "gru",
        bidirectional: bool = True,
        attention: str | None = "additive",
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
        self.source_vocabulary: Vocabulary = vocabulary_of("Translator", "source_vocabulary", source_vocabulary)
        self.target_vocabulary: Vocabulary = vocabulary_of("Translator", "target_vocabulary", target_vocabulary)
        super().__init__(
            len(self.source_vocabulary) + RESERVED, len(self.target_vocabulary) + RESERVED, embedding_size, hidden_size,
            num_layers, encoder_layers=encoder_layers, cell=cell, bidirectional=bidirectional, attention=attention,
            attention_size=attention_size, input_feeding=input_feeding, bridge=bridge, activation=activation, leak=leak,
            reset_after=reset_after, update=update, cell_options=cell_options, dropout=dropout, begin=begin, end=end,
            init=init, dtype=dtype, rng=rng,
        )  # fmt: skip

    @classmethod
    def from_texts(
        cls,
        sources: Sequence[str],
        targets: Sequence[str],
        embedding_size: int,
        hidden_size: int,
        *,
        source_level: str = "word",
        target_level: str = "word",
        max_size: int | None = None,
        min_count: int = 1,
        **options: Unpack[TranslatorOptions],
    ) -> Self:
        """A translator with the vocabularies of some texts.

        Parameters
        ----------
        sources, targets : sequence of str
        embedding_size, hidden_size : int
        source_level, target_level : {"char", "word", "bpe"}
            The kind of the symbols; "bpe" is byte pair encoding, as `TokenizerVocabulary.from_text` trains it.
        max_size, min_count
            Limits of both vocabularies, as in their ``from_text``.
        **options
            As in `Translator`.
        """
        vocabularies = []
        for name, texts, level in (("sources", sources, source_level), ("targets", targets, target_level)):
            _check_texts("Translator.from_texts", name, texts)
            if len(texts) == 0:
                raise ValueError(f"Translator.from_texts: {name} is empty, expected at least one text")
            _checks.choice("Translator.from_texts", f"{name[:-1]}_level", level, tuple(_LEVELS))
            joined = {"char": "", "word": " ", "bpe": "\n"}[level].join(texts)
            vocabularies.append(_LEVELS[level](joined, max_size=max_size, min_count=min_count))
        return cls(vocabularies[0], vocabularies[1], embedding_size, hidden_size, **options)

    @_checks.lists_options
    def predict(  # type: ignore[override]  # texts in place of tokens
        self,
        sources: Sequence[str],
        *,
        beam_size: int = 1,
        max_length: int | None = None,
        batch_size: int = 256,
        length_penalty: float | None = None,
        coverage_penalty: float | None = None,
    ) -> list[str]:
        """The translation of each text: greedy, or by a beam search.

        Parameters
        ----------
        sources : sequence of str
            Each has at least one symbol of the source vocabulary's kind; with words, it is not just white space.
        beam_size : int
            1 for greedy decoding.
        max_length, batch_size, length_penalty, coverage_penalty
            As in `EncoderDecoder.predict`.

        Returns
        -------
        list of str

        Raises
        ------
        ValueError, TypeError, FloatingPointError
            As in `EncoderDecoder.sample`.
        """
        tokens = self._encoded("Translator.predict", "sources", sources, self.source_vocabulary, least=1)
        predicted = super().predict(
            tokens, beam_size=beam_size, max_length=max_length, batch_size=batch_size, length_penalty=length_penalty,
            coverage_penalty=coverage_penalty,
        )  # fmt: skip
        return [self.target_vocabulary.decode(self._symbols(y)) for y in predicted]

    def alignment(self, source: str, target: str | None = None) -> tuple[Array, list[str], list[str]]:
        """The attention weights of a translation of a text; `gpurnn.plots.alignment` draws them.

        Parameters
        ----------
        source : str
        target : str, optional
            A translation of it; by default the model's own.

        Returns
        -------
        weights : (T, S) array
            alpha: row t belongs to symbol t of the target.
        source_symbols, target_symbols : lists of S and T str
            The latter with ``"<end>"`` at their end.

        Raises
        ------
        ValueError
            The model has no attention, or the source has no symbols.
        FloatingPointError
            A parameter is NaN or infinite.
        """
        where = "Translator.alignment"
        x = self._tokens(where, "source", source, self.source_vocabulary, least=1)
        if target is None:
            (target,) = self.predict([source])
        _check_text(where, "target", target)
        xp = _dispatch.namespace(where, source=x)
        y = np.append(self.target_vocabulary.encode(target) + np.int32(RESERVED), np.int32(self.end))
        lengths = _dispatch.from_numpy(xp, np.array([len(y)], np.int32))
        weights = self.align(x[:, None], (_dispatch.from_numpy(xp, y[:, None]), lengths))
        symbols = list(self.source_vocabulary.split(source)), list(self.target_vocabulary.split(target))
        return weights[:, 0, :], symbols[0], [*symbols[1], "<end>"]

    def bleu(
        self,
        sources: Sequence[str],
        references: Sequence[str],
        *,
        beam_size: int = 1,
        max_length: int | None = None,
        batch_size: int = 256,
        length_penalty: float | None = None,
        coverage_penalty: float | None = None,
    ) -> float:
        """The corpus BLEU, from 0 to 100, of the translations of some texts, as sacrebleu computes it.

        BLEU is the brevity penalty times the geometric mean of the precisions of n-grams, n = 1 ... 4. If no
        translation has 4 words, it is the mean over the n that occur (sacrebleu's effective order): equal texts score
        100 however short they are.

        Parameters
        ----------
        sources, references : sequence of str
            At least one text, and a reference translation of each.
        beam_size, max_length, batch_size, length_penalty, coverage_penalty
            As in `predict`.

        Raises
        ------
        ImportError
            sacrebleu is not installed.
        ValueError, TypeError, FloatingPointError
            There are no texts, the references hold no words, or as in `predict`.

        References
        ----------
        K. Papineni et al., "BLEU: a method for automatic evaluation of machine translation", ACL 2002; M. Post, "A
        call for clarity in reporting BLEU scores", WMT 2018.
        """
        try:
            import sacrebleu
        except ImportError as error:
            raise ImportError("Translator.bleu: sacrebleu is not installed; pip install sacrebleu") from error
        where = "Translator.bleu"
        _check_texts(where, "sources", sources)
        _check_texts(where, "references", references)
        if len(sources) == 0:
            raise ValueError(f"{where}: sources is empty, expected at least one text")
        if len(references) != len(sources):
            raise ValueError(f"{where}: references has {len(references)} entries, expected {len(sources)}")
        if not any(reference.split() for reference in references):
            raise ValueError(f"{where}: references hold no words, expected at least one")
        predicted = self.predict(
            sources, beam_size=beam_size, max_length=max_length, batch_size=batch_size, length_penalty=length_penalty,
            coverage_penalty=coverage_penalty,
        )  # fmt: skip
        return float(sacrebleu.corpus_bleu(predicted, [list(references)], use_effective_order=True).score)

    def _encoded(
        self, where: str, name: str, texts: Sequence[str], vocabulary: Vocabulary, *, least: int = 0
    ) -> list[Array]:
        _check_texts(where, name, texts)
        return [self._tokens(where, f"{name}[{i}]", text, vocabulary, least=least) for i, text in enumerate(texts)]

    def _tokens(self, where: str, name: str, text: str, vocabulary: Vocabulary, *, least: int) -> Array:
        """The tokens of one text; reject a text that has fewer than ``least``."""
        _check_text(where, name, text)
        numbers = vocabulary.encode(text)
        if len(numbers) < least:
            raise ValueError(f"{where}: {name} is {text!r}, expected at least one {vocabulary.kind}")
        xp = _dispatch.namespace(where, params=self.output.params["weight"])
        return _dispatch.from_numpy(xp, numbers + np.int32(RESERVED))

    def _symbols(self, tokens: NDArray[np.int32]) -> NDArray[np.int32]:
        """Numbers of the target vocabulary; a token that is not a symbol, which a poor model may write, is unknown."""
        return np.where(tokens < RESERVED, np.int32(self.target_vocabulary.start), tokens - np.int32(RESERVED))

    def _batches(self, X: Any, y: Any, batch_size: int, *, shuffle: bool, rng: int | np.random.Generator) -> Any:
        sources = self._encoded("Translator.fit", "X", X, self.source_vocabulary, least=1)
        texts = self._encoded("Translator.fit", "y", y, self.target_vocabulary)
        return super()._batches(sources, texts, batch_size, shuffle=shuffle, rng=rng)


def _check_texts(where: str, name: str, texts: Any) -> None:
    """Reject anything but a sequence of texts."""
    for i, text in enumerate(_arrays.entries(where, name, texts, "a sequence of str")):
        _check_text(where, f"{name}[{i}]", text)


def _check_text(where: str, name: str, text: Any) -> None:
    if not isinstance(text, str):
        raise TypeError(f"{where}: {name} is {_checks.described(text)}, expected a str")
