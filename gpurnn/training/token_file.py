"""Tokens in a file that is mapped into memory, so that a corpus larger than memory can be trained on."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _checks, _files

if TYPE_CHECKING:
    from ..models import Vocabulary

KIND, NAME = "token file", "tokens"


class TokenFile:
    """The tokens of a file that `write_token_file` or ``gpurnn tokenize`` wrote, and the vocabulary that numbers them.

    The file is mapped into memory: opening it reads only its header, and a `TokenStream` over its tokens reads only the
    windows that are asked for. The checksum is the one that the file states; it is not verified.

    Parameters
    ----------
    path : path

    Attributes
    ----------
    tokens : (n,) array of unsigned ints, read-only
    vocabulary : gpurnn.models.Vocabulary
    checksum : str
        Identifies the tokens; for ``TokenStream(checksum=)``.

    Raises
    ------
    FileFormatError
        The file is damaged, or holds something else.
    OSError
        It does not exist or cannot be read.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> from gpurnn.models import CharVocabulary
    >>> from gpurnn.training import TokenFile, TokenStream, write_token_file
    >>> folder = tempfile.TemporaryDirectory()
    >>> path = pathlib.Path(folder.name, "book.tokens")
    >>> write_token_file(path, CharVocabulary.from_text("hello"), 10, ["hel", "lo", "hello"])
    >>> file = TokenFile(path)
    >>> len(file), file.vocabulary
    (10, <CharVocabulary of 5 symbols>)
    >>> TokenStream(file.tokens, 2, 3, checksum=file.checksum)
    TokenStream(10 tokens, batch_size=2, steps=3)
    >>> del file
    >>> folder.cleanup()
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        from ..models import Vocabulary

        _checks.path("TokenFile", "path", path)
        content, self.tokens, self.checksum = _files.mapped_tensor(path, KIND, NAME)
        self.vocabulary: Vocabulary = Vocabulary.from_config(content)

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, part: slice) -> TokenFile:
        """A contiguous part of the tokens, which is not read either."""
        first, end, _ = part.indices(len(self))
        found = copy.copy(self)
        found.tokens, found.checksum = self.tokens[first:end], f"{self.checksum} {first}:{end}"
        return found

    def __repr__(self) -> str:
        return f"<TokenFile of {len(self):,} {self.vocabulary.kind}s>"


def write_token_file(path: str | os.PathLike[str], vocabulary: Vocabulary, count: int, texts: Iterable[str]) -> None:
    """Write the tokens of texts, one after another, to a file for `TokenFile`; only one text is in memory at a time.

    Parameters
    ----------
    path : path
        It is replaced once all is written.
    vocabulary : gpurnn.models.Vocabulary
        The tokens are stored as the smallest unsigned integers that hold its numbers.
    count : int
        The number of tokens in all texts.
    texts : iterable of str
        Pieces of a text, none of them cut within a symbol.

    Raises
    ------
    ValueError
        The texts have more or fewer tokens than ``count``; no file is written.
    OSError
        The file cannot be written.
    """
    dtype = np.min_scalar_type(len(vocabulary) - 1)
    pieces: Any = (vocabulary.encode(text) for text in texts)
    _files.write_long_tensor(path, "write_token_file", KIND, vocabulary.config(), NAME, dtype, count, pieces)
