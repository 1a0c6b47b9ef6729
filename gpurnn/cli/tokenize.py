"""``gpurnn tokenize``."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .options import PathType, choice, encoding_option, flag_of, given, integer
from .run import origin_of
from .terminal import Refusal, quiet_option, refusing, say, warn
from .texts import pieces_of_all, token_file

if TYPE_CHECKING:
    from ..models import Vocabulary


@click.command(short_help="Write the tokens of texts to a file to train on.", context_settings={"show_default": True})
@click.argument("files", nargs=-1, required=True, type=PathType(), metavar="FILE...")
@click.argument("out", type=PathType(path_type=Path), metavar="OUT")
@choice("--level", ["char", "word"], "What a token is.")
@integer("--max-vocabulary", None, "The most symbols to know; rarer ones are unknown.", least=2)
@integer("--min-count", 1, "Know only symbols that occur at least this often.")
@click.option(
    "--vocabulary", "like", type=PathType(path_type=Path), metavar="FILE",
    help="Use the vocabulary of this token file or model, for example for a text to validate on.",
)  # fmt: skip
@encoding_option
@quiet_option
@click.pass_context
def tokenize(
    context: click.Context,
    /,
    files: tuple[str, ...],
    out: Path,
    level: str,
    max_vocabulary: int | None,
    min_count: int,
    like: Path | None,
    encoding: str | None,
) -> None:
    """Write the tokens of text FILEs, and their vocabulary, to the file OUT, for `gpurnn train`.

    Several FILEs become one text, in which each begins on a new line. They are read twice, piece by piece. Training
    reads from OUT only what it needs at a time. So neither the text nor its tokens need to fit into memory.

    \b
    gpurnn tokenize BOOK.txt book.tokens
    gpurnn tokenize OTHER.txt other.tokens --vocabulary book.tokens
    gpurnn train book.tokens --validation other.tokens --out my-model
    """
    from ..models import CharVocabulary, WordVocabulary
    from ..training import write_token_file

    kind: type[CharVocabulary | WordVocabulary] = CharVocabulary if level == "char" else WordVocabulary
    known: CharVocabulary | WordVocabulary | None = None
    if like is not None:
        for name in ("level", "max_vocabulary", "min_count"):
            if given(context, name):
                warn(f"{flag_of(name)} has no effect, as --vocabulary is given")
        vocabulary = _vocabulary_of(like)
        if not isinstance(vocabulary, (CharVocabulary, WordVocabulary)):
            raise Refusal(f"{like}: has a tokenizer, expected a vocabulary of characters or of words")
        known, kind = vocabulary, type(vocabulary)
    _check_replaceable(out)
    words = kind.kind == "word"
    counts: Counter[str] = Counter()
    for text in pieces_of_all(files, encoding, words):
        counts.update(kind.split(text))
    count = counts.total()
    if count < 2:
        raise Refusal(f"the text has {count} {kind.kind}s, expected at least 2")
    if known is None:
        known = kind._from_counts(counts, max_vocabulary, min_count)
    unknown = count - sum(counts[symbol] for symbol in known.symbols[1:])
    with refusing(ValueError, OSError):
        write_token_file(out, known, count, pieces_of_all(files, encoding, words))
    say(f"{out}: {count:,} {kind.kind}s, {unknown:,} of them unknown; {known!r}, {out.stat().st_size:,} bytes")


def _vocabulary_of(path: Path) -> Vocabulary:
    """The vocabulary of a token file or of a model."""
    held = token_file(str(path))
    return origin_of(path)[1].vocabulary if held is None else held.vocabulary


def _check_replaceable(out: Path) -> None:
    """Reject an existing OUT, unless it is an earlier token file, which is replaced."""
    if out.exists() and token_file(str(out)) is None:
        raise Refusal(f"{out}: is there already, and no token file; choose another name for OUT")
