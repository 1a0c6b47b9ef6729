"""Tokenizers of other libraries as vocabularies, and byte pair encoding by the library tokenizers."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _checks, _files
from .vocabulary import Tokenizer, Tokens, Vocabulary, check_text

if TYPE_CHECKING:
    from typing_extensions import Self

_SIZE = 4096
"""The number of symbols that `TokenizerVocabulary.from_text` makes by default."""

_BYTES = 256

_PART = 2**20
"""The number of characters that are passed to the training of a tokenizer at a time."""

_LARGEST_FILE = 100_000_000
"""The largest number of bytes of a tokenizer's file. A larger one would not fit into the header of a model's file."""

_MOST_GAPS = 1024
"""The largest number of unused token numbers. A network has a row of parameters for each."""

_LONGEST_TOKEN = 1024
"""The most characters of a token. The library stores Unigram tokens in a tree, and a deep one overflows the stack."""

_MOST_GROWTH = 1000
"""The largest factor by which the replacements of a tokenizer may lengthen a text."""

_SIZES = ("__len__", "get_vocab_size", "vocab_size", "n_vocab")
"""The names by which tokenizers give their number of tokens, in the order in which they are tried."""


class TokenizerVocabulary(Vocabulary):
    r"""The tokens of a tokenizer: one of the library tokenizers, or any object that encodes and decodes.

    The numbers of the tokens are the tokenizer's own, 0 ... n - 1. One more, n, stands for the start of a text. So the
    vocabulary has n + 1 entries. A tokenizer of the library tokenizers is copied. The copy adds no special tokens to a
    text, cuts and pads nothing, and draws nothing at random (BPE dropout), so that the tokens are those of the text. A
    file of the model holds it as JSON.

    Parameters
    ----------
    tokenizer : tokenizers.Tokenizer or `gpurnn.models.Tokenizer`
        Any other object must also give only the text's own tokens; a model with it can be trained, but not saved.

    Attributes
    ----------
    tokenizer
        The object that encodes and decodes.

    Raises
    ------
    TypeError
        There is no ``encode``, no ``decode``, or no size.
    ValueError
        The tokenizer has no tokens, numbers far larger than their count, or replacements that make a text more than a
        thousand times as long.

    Notes
    -----
    The unknown token of a tokenizer that has one (WordPiece, WordLevel) is never drawn.

    The library tokenizers takes about 130 bytes of memory for each character that it encodes at a time.

    References
    ----------
    R. Sennrich, B. Haddow, A. Birch, "Neural machine translation of rare words with subword units", ACL 2016; A.
    Radford et al., "Language models are unsupervised multitask learners", 2019 (on bytes).

    Examples
    --------
    Any object will do; the tokens of this one are bytes:

    >>> from gpurnn.models import LanguageModel, TokenizerVocabulary
    >>> class Bytes:
    ...     vocab_size = 256
    ...     def encode(self, text):
    ...         return list(text.encode())
    ...     def decode(self, tokens):
    ...         return bytes(tokens).decode(errors="replace")
    >>> vocabulary = TokenizerVocabulary(Bytes())
    >>> len(vocabulary), vocabulary.encode("né")
    (257, array([110, 195, 169], dtype=int32))
    >>> list(vocabulary.pieces([110, 195, 169]))
    ['n', 'é']
    >>> model = LanguageModel(Bytes(), 8, 16)
    >>> isinstance(model.sample(5, "n"), str)
    True
    """

    kind = "token"
    metric = "perplexity"

    def __init__(self, tokenizer: Tokenizer) -> None:
        where = type(self).__name__
        for method in ("encode", "decode"):
            if not callable(getattr(tokenizer, method, None)):
                raise TypeError(
                    f"{where}: tokenizer is {_checks.described(tokenizer)}, expected an object with the methods encode "
                    "and decode"
                )
        if _is_of_tokenizers(tokenizer):
            with _blaming(f"{where}: tokenizer cannot be copied"):
                document = json.loads(tokenizer.to_str())  # type: ignore[attr-defined]
            self._restore(where, document)
            return
        self.tokenizer: Any = tokenizer
        self.start = _size(where, tokenizer)
        self.unknown_tokens = (self.start,)

    def _restore(self, where: str, document: Any) -> None:
        """Take the tokenizer that the JSON of one of the library tokenizers describes."""
        self.tokenizer = _made(where, document)
        self.start = _count(where, self.tokenizer)
        unknown = _unknown(document["model"], self.tokenizer)
        self.unknown_tokens = (self.start,) if unknown is None else (unknown, self.start)

    @classmethod
    def _of(cls, document: Any) -> Self:
        vocabulary = cls.__new__(cls)
        vocabulary._restore(cls.__name__, document)
        return vocabulary

    @classmethod
    def from_text(cls, text: str, *, max_size: int | None = None, min_count: int = 1) -> Self:
        """Byte pair encoding, trained on ``text``: the 256 bytes, and merges of the most frequent pairs.

        Any text can be encoded in these tokens, and they decode to it exactly. This needs the library tokenizers.

        Parameters
        ----------
        text : str
        max_size : int, optional
            Make at most this many tokens, including the start of a text; 4096 by default, and at least 257.
        min_count : int
            Make tokens only of pairs that occur at least this often, and at least twice.

        Raises
        ------
        ImportError
            tokenizers is not installed.
        """
        where = f"{cls.__name__}.from_text"
        max_size = _SIZE if max_size is None else _checks.integer_at_least(where, "max_size", max_size, _BYTES + 1)
        min_count = _checks.integer_at_least(where, "min_count", min_count, 1)
        check_text(where, text)
        library = _library(where)
        tokenizer = library.Tokenizer(library.models.BPE())
        tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = library.decoders.ByteLevel()
        trainer = library.trainers.BpeTrainer(
            vocab_size=max_size - 1, min_frequency=max(min_count, 2), show_progress=False,
            initial_alphabet=library.pre_tokenizers.ByteLevel.alphabet(),
        )  # fmt: skip
        with _blaming(f"{where}: text cannot be read by tokenizers"):
            tokenizer.train_from_iterator((text[i : i + _PART] for i in range(0, len(text), _PART)), trainer)
        return cls(tokenizer)

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> Self:
        """The vocabulary of a ``tokenizer.json``, as the library tokenizers writes it.

        Parameters
        ----------
        path : path
            A file of at most 100 MB.

        Raises
        ------
        FileFormatError
            The file is damaged, too large, or holds no tokenizer. A `ValueError`.
        ImportError
            tokenizers is not installed.
        OSError
            The file does not exist or cannot be read.
        """
        where = f"{cls.__name__}.from_file"
        _checks.path(where, "path", path)
        with _files.open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size > _LARGEST_FILE:
                raise _files.FileFormatError(
                    f"{os.fspath(path)}: has {size:,} bytes, expected a tokenizer of at most {_LARGEST_FILE:,}"
                )
            data = file.read(size)
        try:
            document = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise _files.FileFormatError(
                f"{os.fspath(path)}: damaged, or no tokenizer: it is no JSON ({_files.reason(error)})"
            ) from error
        try:
            return cls._of(document)
        except ValueError as error:
            raise _files.FileFormatError(f"{os.fspath(path)}: {_files.reason(error)}") from error

    @property
    def _has_file(self) -> bool:
        """Whether a file can hold the tokenizer."""
        return _is_of_tokenizers(self.tokenizer)

    def __len__(self) -> int:
        return self.start + 1

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TokenizerVocabulary) or self._has_file != other._has_file:
            return False
        return self.config() == other.config() if self._has_file else bool(self.tokenizer == other.tokenizer)

    __hash__ = None  # type: ignore[assignment]

    def encode(self, text: str) -> Tokens:
        where = f"{type(self).__name__}.encode"
        check_text(where, text)
        if self._has_file:
            with _blaming(f"{where}: text cannot be encoded"):
                found = self.tokenizer.encode(text, add_special_tokens=False)
        else:
            found = self.tokenizer.encode(text)
        tokens = np.asarray(getattr(found, "ids", found))
        if tokens.size == 0:
            return np.zeros(0, np.int32)
        if tokens.ndim != 1 or tokens.dtype.kind not in "iu":
            raise TypeError(
                f"{where}: the tokenizer's encode returned {_checks.described(found)}, expected whole numbers (T,)"
            )
        if tokens.min() < 0 or tokens.max() >= self.start:
            raise ValueError(
                f"{where}: the tokenizer's encode returned {int(tokens.max())} and {int(tokens.min())}, expected "
                f"numbers in [0, {self.start}), as its size is {self.start}"
            )
        return tokens.astype(np.int32)

    def decode(self, tokens: Any) -> str:
        return self._text([number for number in self._numbers(tokens) if number != self.start])

    def _text(self, tokens: list[int]) -> str:
        if not self._has_file:
            return self.tokenizer.decode(tokens)
        with _blaming(f"{type(self).__name__}.decode: tokens cannot be decoded"):
            return str(self.tokenizer.decode(tokens, skip_special_tokens=False))

    def split(self, text: str) -> Iterable[str]:
        return [self._text([token]) for token in self.encode(text).tolist()]

    def join(self, symbols: Iterable[str]) -> str:
        return "".join(symbols)

    def pieces(self, tokens: Iterable[int], before: str = "") -> Iterator[str]:
        # The text that a token adds depends on the tokens before it: a space, or the end of a character that they
        # began. An incomplete character, or bytes that make none, decode to U+FFFD, and wait. The last complete piece
        # stays as the context, so a step takes no longer in a long text.
        held: list[int] = self.encode(before).tolist()
        said, last = len(self._text(held)), 0
        for token in tokens:
            held.append(int(token))
            text = self._text(held)
            complete = text.rstrip("\ufffd")
            if len(complete) > said:
                yield text[said : len(complete)]
                said = len(complete)
            if complete == text:
                held, last = held[last:], len(held) - last
                said = len(self._text(held))
        rest = self._text(held)[said:]
        if rest:
            yield rest

    def config(self) -> dict[str, Any]:
        """The arguments of `from_config`: a JSON-compatible dict.

        Raises
        ------
        TypeError
            The tokenizer is not one of the library tokenizers.
        """
        if not self._has_file:
            raise TypeError(
                f"{type(self).__name__}.config: the tokenizer is {_checks.described(self.tokenizer)}, which a file "
                "cannot hold, expected a tokenizers.Tokenizer; keep the model's state_dict() instead, and load it into "
                "a model with the same tokenizer"
            )
        return {"kind": self.kind, "tokenizer": json.loads(self.tokenizer.to_str())}


def _library(where: str) -> Any:
    try:
        import tokenizers
    except ImportError as error:
        raise ImportError(f"{where}: tokenizers is not installed; pip install 'gpurnn[text]'") from error
    return tokenizers


def _is_of_tokenizers(value: Any) -> bool:
    library = sys.modules.get("tokenizers")
    return library is not None and isinstance(value, library.Tokenizer)


@contextmanager
def _blaming(what: str) -> Iterator[None]:
    """Turn an error of the library tokenizers into a ValueError: also its panics, which are not an `Exception`."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError):
        raise
    except BaseException as error:
        raise ValueError(f"{what}: {error}") from error


def _made(where: str, document: Any) -> Any:
    """The tokenizer that JSON describes, without the settings that add, cut, pad or vary the text's own tokens."""
    library = _library(where)
    if not isinstance(document, dict) or not isinstance(document.get("model"), dict):
        raise ValueError(f"{where}: tokenizer is {_checks.described(document)}, expected a dict that describes a model")
    growth = math.prod(_growths([document.get(part) for part in ("normalizer", "pre_tokenizer", "decoder")]))
    if growth > _MOST_GROWTH:
        raise ValueError(
            f"{where}: tokenizer has replacements that may make a text {growth:,} times as long, expected at most "
            f"{_MOST_GROWTH:,} times"
        )
    _check_model(where, document["model"])
    model = {**document["model"], **({"dropout": None} if "dropout" in document["model"] else {})}
    changed = {**document, "model": model, "truncation": None, "padding": None, "post_processor": None}
    with _blaming(f"{where}: tokenizer is none that tokenizers {library.__version__} can read"):
        return library.Tokenizer.from_str(json.dumps(changed))


def _check_model(where: str, model: dict[str, Any]) -> None:
    """Reject a model that ends the process in tokenizers 0.23 instead of raising an error."""
    entries = model.get("vocab")
    if isinstance(entries, list):  # Unigram: each is a token and its score
        entries = [entry[0] for entry in entries if isinstance(entry, list) and entry]
    tokens = entries if isinstance(entries, (list, dict)) else ()
    longest = max((len(token) for token in tokens if isinstance(token, str)), default=0)
    if longest > _LONGEST_TOKEN:
        raise ValueError(
            f"{where}: tokenizer has a token of {longest:,} characters, expected at most {_LONGEST_TOKEN:,}"
        )
    prefix, merges = model.get("continuing_subword_prefix"), model.get("merges")
    if isinstance(prefix, str) and isinstance(merges, list):
        for i, merge in enumerate(merges):
            parts = merge.split(" ") if isinstance(merge, str) else merge
            second = parts[-1] if isinstance(parts, list) and parts else None
            if isinstance(second, str) and not second.startswith(prefix):
                raise ValueError(
                    f"{where}: tokenizer's merges[{i}] has {second[:50]!r} for its second part, expected one that "
                    f"begins with {prefix[:50]!r}, as its continuing_subword_prefix says"
                )


def _growths(part: Any) -> Iterator[int]:
    """The largest factor by which each replacement in the JSON of a tokenizer lengthens a text."""
    if isinstance(part, dict):
        if part.get("type") == "Replace":
            pattern = part.get("pattern")
            # A regular expression may match between any two characters.
            string = pattern.get("String") if isinstance(pattern, dict) else None
            length = len(str(part.get("content", "")))
            yield max(1, -(-length // len(string))) if isinstance(string, str) and string else 1 + length
        part = list(part.values())
    if isinstance(part, list):
        for entry in part:
            yield from _growths(entry)


def _count(where: str, tokenizer: Any) -> int:
    """One more than the largest number of a token."""
    with _blaming(f"{where}: tokenizer cannot list its tokens"):
        numbers = tokenizer.get_vocab(with_added_tokens=True).values()
    if not numbers:
        raise ValueError(f"{where}: tokenizer has no tokens, expected at least one")
    size = max(numbers) + 1
    if size > len(numbers) + _MOST_GAPS:
        raise ValueError(
            f"{where}: tokenizer has {len(numbers):,} tokens with numbers up to {size - 1:,}, expected numbers without "
            "large gaps"
        )
    return int(size)


def _unknown(model: dict[str, Any], tokenizer: Any) -> int | None:
    """The number of the unknown token, None if there is none."""
    if model.get("unk_token") is not None:
        number = tokenizer.token_to_id(model["unk_token"])
        return None if number is None else int(number)
    return model.get("unk_id")


def _size(where: str, tokenizer: Any) -> int:
    """The number of tokens that a tokenizer of any library reports."""
    for name in _SIZES:
        said = getattr(tokenizer, name, None)
        if said is not None:
            return _checks.size(where, f"tokenizer's {name}", said() if callable(said) else said)
    raise TypeError(
        f"{where}: tokenizer is {_checks.described(tokenizer)} that does not say its size, expected one with len(), or "
        f"with {', '.join(_SIZES[1:])}"
    )
