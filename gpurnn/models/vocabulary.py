"""Vocabularies turn text into token numbers and back. Symbols are characters, words or a tokenizer's tokens."""

from __future__ import annotations

import operator
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence, Set
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from .. import _checks

if TYPE_CHECKING:
    from typing_extensions import Self

Tokens = NDArray[np.int32]


def check_text(where: str, text: str) -> None:
    if not isinstance(text, str):
        raise TypeError(f"{where}: text is {_checks.described(text)}, expected a str")


class Tokenizer(Protocol):
    """An object that models take instead of a `Vocabulary`: it turns texts into numbers 0 ... n - 1, and back.

    It also says n: by ``len(tokenizer)``, or by an attribute or a method ``get_vocab_size``, ``vocab_size`` or
    ``n_vocab``. A ``tokenizers.Tokenizer`` is one, and so are the tokenizers of most other libraries.
    """

    def encode(self, text: str, /) -> Any:
        """The numbers of a text: a sequence or an array of ints (T,), or an object with the attribute ``ids``."""

    def decode(self, tokens: list[int], /) -> str:
        """The text of these numbers."""


class Vocabulary(ABC):
    """The symbols of texts, numbered 0 ... V - 1; ``len`` is V.

    This is the interface that models use. Its kinds are `CharVocabulary`, `WordVocabulary` and `TokenizerVocabulary`.
    """

    kind: ClassVar[str]
    """The kind of the symbols: ``"character"``, ``"word"`` or ``"token"``."""

    metric: ClassVar[str]
    """The measure of the quality of a model of such symbols: ``"bits_per_character"`` or ``"perplexity"``."""

    start: int = 0
    """The number that a model reads before a text."""

    unknown_tokens: tuple[int, ...] = (0,)
    """The numbers that stand for no known text, and are never drawn."""

    @abstractmethod
    def __len__(self) -> int: ...

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {len(self)} symbols>"

    def _expression(self) -> str:
        """The text by which the repr of a model shows it."""
        return f"{len(self)} {self.kind}s"

    @abstractmethod
    def encode(self, text: str) -> Tokens:
        """The numbers of the symbols of ``text``, an int32 array (T,)."""

    @abstractmethod
    def decode(self, tokens: Any) -> str:
        """The text of the symbols with the numbers ``tokens``, an integer array or sequence (T,).

        Raises
        ------
        ValueError, TypeError
            A token is not a whole number, or not in [0, len(vocabulary)).
        """

    @abstractmethod
    def split(self, text: str) -> Iterable[str]:
        """The symbols that ``text`` is made of, known or not."""

    @abstractmethod
    def join(self, symbols: Iterable[str]) -> str:
        """The text that ``symbols`` make."""

    @abstractmethod
    def pieces(self, tokens: Iterable[int], before: str = "") -> Iterator[str]:
        """The parts that ``tokens`` add to the text ``before``, each once it is complete; their `join` is the text."""

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """The arguments of `from_config`: a JSON-compatible dict."""

    @staticmethod
    def from_config(config: dict[str, Any]) -> Vocabulary:
        """The vocabulary that `config` described.

        Raises
        ------
        TypeError, ValueError
            ``config`` does not describe a vocabulary.
        ImportError
            It describes a tokenizer, and the library tokenizers is not installed.
        """
        where = "Vocabulary.from_config"
        if isinstance(config, dict) and config.get("kind") == "token":
            from .tokenizer import TokenizerVocabulary

            return TokenizerVocabulary._of(config.get("tokenizer"))
        if not isinstance(config, dict) or not {"kind", "symbols"} <= config.keys():
            raise TypeError(f"{where}: config is {config!r}, expected a dict with kind and symbols")
        _checks.choice(where, "kind", config["kind"], (*_KINDS, "token"))
        return _KINDS[config["kind"]](config["symbols"])

    def _numbers(self, tokens: Any) -> list[int]:
        """The tokens to decode, as ints; reject a token that is not of this vocabulary."""
        where, expected = f"{type(self).__name__}.decode", f"expected whole numbers in [0, {len(self)})"
        if not hasattr(tokens, "__iter__") or getattr(tokens, "ndim", 1) == 0:
            raise TypeError(f"{where}: tokens is {tokens!r}, {expected}")
        numbers = []
        for token in tokens:
            try:
                numbers.append(operator.index(token))
            except TypeError as error:
                raise TypeError(f"{where}: tokens holds {token!r}, {expected}") from error
            if isinstance(token, bool):
                raise TypeError(f"{where}: tokens holds {token!r}, {expected}")
            if not 0 <= numbers[-1] < len(self):
                raise ValueError(f"{where}: tokens holds {numbers[-1]}, {expected}")
        return numbers


def vocabulary_of(where: str, name: str, value: Vocabulary | Tokenizer) -> Vocabulary:
    """A vocabulary; a tokenizer is wrapped in one."""
    if isinstance(value, Vocabulary):
        return value
    if callable(getattr(value, "encode", None)) and callable(getattr(value, "decode", None)):
        from .tokenizer import TokenizerVocabulary

        return TokenizerVocabulary(value)
    raise TypeError(
        f"{where}: {name} is {_checks.described(value)}, expected a CharVocabulary, a WordVocabulary or a tokenizer; "
        "make one with CharVocabulary.from_text(text)"
    )


class _Symbols(Vocabulary):
    """The symbols a text may be made of, numbered; number 0 is the unknown symbol, which stands for all others.

    Parameters
    ----------
    symbols : sequence of str
        The symbols in the order of their numbers, the unknown symbol first, each once.

    Raises
    ------
    TypeError
        A symbol is not a string.
    ValueError
        A symbol occurs twice, or there is none.
    """

    default_unknown: ClassVar[str]

    def __init__(self, symbols: Sequence[str]) -> None:
        if not hasattr(symbols, "__iter__") or isinstance(symbols, Set):
            raise TypeError(f"{type(self).__name__}: symbols is {symbols!r}, expected a sequence of str")
        self.symbols: tuple[str, ...] = tuple(symbols)
        for symbol in self.symbols:
            if not isinstance(symbol, str):
                raise TypeError(f"{type(self).__name__}: symbols holds {symbol!r}, expected strings")
        self._number = {symbol: number for number, symbol in enumerate(self.symbols)}
        if not self.symbols:
            raise ValueError(f"{type(self).__name__}: symbols is empty, expected the unknown symbol first")
        if len(self._number) < len(self.symbols):
            twice = Counter(self.symbols).most_common(1)[0][0]
            raise ValueError(f"{type(self).__name__}: symbols has {twice!r} more than once, expected each symbol once")

    @classmethod
    def from_text(cls, text: str, *, max_size: int | None = None, min_count: int = 1) -> Self:
        """The vocabulary of ``text``, the most frequent symbols first and equally frequent ones in code point order.

        Parameters
        ----------
        text : str
        max_size : int, optional
            Keep at most this many symbols, the unknown symbol included.
        min_count : int
            Keep only the symbols that occur at least this often.
        """
        check_text(f"{cls.__name__}.from_text", text)
        return cls._from_counts(Counter(cls.split(text)), max_size, min_count)

    @classmethod
    def _from_counts(cls, counts: Counter[str], max_size: int | None, min_count: int) -> Self:
        """`from_text`, from the count of each symbol; the unknown symbol's count is removed."""
        if max_size is not None:
            max_size = _checks.integer_at_least(f"{cls.__name__}.from_text", "max_size", max_size, 1)
        min_count = _checks.integer_at_least(f"{cls.__name__}.from_text", "min_count", min_count, 1)
        counts.pop(cls.default_unknown, None)
        frequent = sorted((s for s in counts if counts[s] >= min_count), key=lambda s: (-counts[s], s))
        return cls([cls.default_unknown, *frequent][:max_size])

    @staticmethod
    @abstractmethod
    def split(text: str) -> Iterable[str]:
        """The symbols that ``text`` is made of, known or not."""

    @staticmethod
    @abstractmethod
    def join(symbols: Iterable[str]) -> str:
        """The text that ``symbols`` make."""

    @property
    def unknown(self) -> str:
        """The symbol that stands for all that are not in the vocabulary; its number is 0."""
        return self.symbols[0]

    def __len__(self) -> int:
        return len(self.symbols)

    def __contains__(self, symbol: object) -> bool:
        return symbol in self._number

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.symbols == other.symbols

    __hash__ = None  # type: ignore[assignment]

    def encode(self, text: str) -> Tokens:
        """The numbers of the symbols of ``text``, an int32 array (T,); 0 for those that are not in the vocabulary."""
        check_text(f"{type(self).__name__}.encode", text)
        number = self._number
        return np.fromiter((number.get(symbol, 0) for symbol in self.split(text)), dtype=np.int32)

    def decode(self, tokens: Any) -> str:
        return self.join(self.symbols[number] for number in self._numbers(tokens))

    def pieces(self, tokens: Iterable[int], before: str = "") -> Iterator[str]:
        return (self.symbols[token] for token in tokens)

    def config(self) -> dict[str, Any]:
        return {"kind": self.kind, "symbols": list(self.symbols)}


class CharVocabulary(_Symbols):
    r"""The characters (Unicode code points) of a text; the unknown symbol is U+FFFD, the replacement character.

    Examples
    --------
    >>> vocabulary = CharVocabulary.from_text("abracadabra")
    >>> vocabulary.symbols
    ('\ufffd', 'a', 'b', 'r', 'c', 'd')
    >>> vocabulary.encode("bazar")
    array([2, 1, 0, 1, 3], dtype=int32)
    >>> vocabulary.decode([2, 1, 3])
    'bar'
    """

    kind = "character"
    metric = "bits_per_character"
    default_unknown = "\ufffd"

    def __init__(self, symbols: Sequence[str]) -> None:
        super().__init__(symbols)
        for symbol in self.symbols:
            if len(symbol) != 1:
                raise ValueError(f"CharVocabulary: symbols holds {symbol!r}, expected single characters")
        points = np.array([ord(symbol) for symbol in self.symbols])
        self._of_point = np.zeros(points.max() + 1, dtype=np.int32)
        self._of_point[points] = np.arange(len(self.symbols))

    @staticmethod
    def split(text: str) -> Iterable[str]:
        return text

    @staticmethod
    def join(symbols: Iterable[str]) -> str:
        return "".join(symbols)

    def encode(self, text: str) -> Tokens:
        check_text("CharVocabulary.encode", text)
        # A table look-up over the code points: a megabyte in milliseconds, where a dict takes a tenth of a second.
        points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
        known = points < len(self._of_point)
        return np.where(known, self._of_point[np.where(known, points, 0)], 0).astype(np.int32, copy=False)


class WordVocabulary(_Symbols):
    r"""The words of a text, separated by white space, and each line end as a word; the unknown symbol is ``<unk>``.

    Punctuation is part of the word that it touches, as in the tokenised corpora of the field (Penn Treebank, WikiText),
    where it stands alone because white space was put around it.

    Examples
    --------
    >>> vocabulary = WordVocabulary.from_text("the cat and the dog\n", max_size=4)
    >>> vocabulary.symbols
    ('<unk>', 'the', '\n', 'and')
    >>> vocabulary.encode("the dog and the cow")
    array([1, 0, 3, 1, 0], dtype=int32)
    >>> vocabulary.decode([1, 0, 2, 3])
    'the <unk>\nand'
    """

    kind = "word"
    metric = "perplexity"
    default_unknown = "<unk>"

    @staticmethod
    def split(text: str) -> Iterable[str]:
        return re.findall(r"\n|\S+", text)

    @staticmethod
    def join(symbols: Iterable[str]) -> str:
        return re.sub(r" ?\n ?", "\n", " ".join(symbols))


_KINDS: dict[str, type[_Symbols]] = {"character": CharVocabulary, "word": WordVocabulary}
