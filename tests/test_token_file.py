"""Token files: their contents, writing them from texts of any size, and training that reads little of them."""

import os
import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner

import gpurnn
from gpurnn import _files, cli
from gpurnn.cli import texts
from gpurnn.models import CharVocabulary, WordVocabulary
from gpurnn.training import TokenFile, TokenStream, write_token_file

TEXT = "the naïve fox\njumps over Ω\n" * 40


def run(*arguments):
    return CliRunner().invoke(cli.cli, [str(argument) for argument in arguments])


@pytest.fixture
def tokens(tmp_path):
    path = tmp_path / "book.tokens"
    write_token_file(path, CharVocabulary.from_text(TEXT), len(TEXT), [TEXT[:7], "", TEXT[7:]])
    return path


def test_holds_the_tokens_their_vocabulary_and_a_checksum(tokens):
    file, vocabulary = TokenFile(tokens), CharVocabulary.from_text(TEXT)
    assert file.vocabulary == vocabulary
    assert file.tokens.dtype == np.uint8
    np.testing.assert_array_equal(file.tokens, vocabulary.encode(TEXT))
    content, arrays = _files.read_tensors(tokens, "token file")  # this checks the checksum
    assert content == vocabulary.config()
    np.testing.assert_array_equal(arrays["tokens"], file.tokens)


@pytest.mark.parametrize(("symbols", "dtype"), [(256, "uint8"), (257, "uint16"), (65537, "uint32")])
def test_tokens_have_the_smallest_dtype(tmp_path, symbols, dtype):
    vocabulary = WordVocabulary([f"w{i}" for i in range(symbols)])
    write_token_file(tmp_path / "x", vocabulary, 2, [f"w0 w{symbols - 1}"])
    file = TokenFile(tmp_path / "x")
    assert file.tokens.dtype == dtype
    assert file.tokens.tolist() == [0, symbols - 1]


def test_parts_have_their_own_checksum(tokens):
    file = TokenFile(tokens)
    begin, end = file[:100], file[100:]
    np.testing.assert_array_equal(np.concatenate([begin.tokens, end.tokens]), file.tokens)
    assert len({file.checksum, begin.checksum, end.checksum}) == 3


def test_stream_is_identified_by_the_checksum_it_is_given(tokens):
    file = TokenFile(tokens)
    stream = TokenStream(file.tokens, 2, 5, checksum=file.checksum)
    assert stream.config()["checksum"] == file.checksum
    assert "crc32" not in stream.config()
    rest, part = stream.split(0.5)
    assert rest.config() != part.config()


def test_what_does_not_fit_the_count_leaves_no_file(tmp_path):
    with pytest.raises(ValueError, match="write_token_file: the pieces have 3 entries, expected 4"):
        write_token_file(tmp_path / "x", CharVocabulary.from_text("abc"), 4, ["abc"])
    assert list(tmp_path.iterdir()) == []


def test_damaged_and_foreign_files_are_rejected(tokens, tmp_path):
    whole = tokens.read_bytes()
    size = 8 + int.from_bytes(whole[:8], "little")
    for damaged in (whole[:-1], whole + b"\0", whole[: size - 3], whole.replace(b'"U8"', b'"U9"'), b"text", b""):
        tokens.write_bytes(damaged)
        with pytest.raises(gpurnn.FileFormatError):
            TokenFile(tokens)
    model = tmp_path / "model"
    gpurnn.LanguageModel(CharVocabulary.from_text("abc"), 2, 3).save(model)
    with pytest.raises(gpurnn.FileFormatError, match="holds a model, expected a token file"):
        TokenFile(model)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "latin-1"])
@pytest.mark.parametrize("part", [4, 5, 7, 1000])
def test_pieces_are_the_whole_text(tmp_path, monkeypatch, encoding, part):
    monkeypatch.setattr(texts, "_PART", part)
    files = [str(tmp_path / name) for name in "abc"]
    for file, text in zip(files, ("one\r\ntwo  naïve\rx", "three\n", "  four five\r\n"), strict=True):
        with open(file, "wb") as stream:
            stream.write(text.encode(encoding))
    given = "latin-1" if encoding == "latin-1" else None
    whole = texts.read_all(files, given)
    assert "".join(texts.pieces_of_all(files, given, whole_words=False)) == whole
    pieces = list(texts.pieces_of_all(files, given, whole_words=True))
    assert [w for piece in pieces for w in WordVocabulary.split(piece)] == WordVocabulary.split(whole)


@pytest.mark.parametrize("data", [b"abc\xffdef", b"abcd\xe2\x82", b"ab\0c", b""])
def test_what_is_no_text_is_rejected_as_a_whole_text_is(tmp_path, monkeypatch, data):
    path = tmp_path / "x"
    path.write_bytes(data)
    with pytest.raises(texts.Refusal) as whole:
        texts.read(str(path))
    monkeypatch.setattr(texts, "_PART", 2)
    with pytest.raises(texts.Refusal) as pieces:
        list(texts.pieces_of_all([str(path)], None, whole_words=False))
    assert str(pieces.value) == str(whole.value)


@pytest.mark.parametrize("level", ["char", "word"])
def test_command_trains_the_model_that_the_text_gives(tmp_path, level, undrawn, monkeypatch):
    monkeypatch.setattr(cli.run, "SAMPLE_LENGTH", {"character": 5, "word": 5})
    (tmp_path / "book.txt").write_text(TEXT, encoding="utf-8")
    found = run("tokenize", "--level", level, tmp_path / "book.txt", tmp_path / "book.tokens")
    assert found.exit_code == 0, found.output
    assert f"{tmp_path / 'book.tokens'}: " in found.output
    options = ("--hidden", 6, "--batch", 4, "--window", 8, "--steps", 3, "--validation-fraction", 0, "--level", level)
    for source in ("book.txt", "book.tokens"):
        found = run("train", tmp_path / source, "--out", tmp_path / source[5:], *options)
        assert found.exit_code == 0, found.output
    models = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("txt", "tokens")]
    assert models[0] == models[1]
    assert run("train", "--out", tmp_path / "tokens", "--resume", "--steps", 5).exit_code == 0
    assert TEXT.startswith(cli.run.text_of(cli.run.run_folder(tmp_path / "tokens"), 3))  # used by gpurnn diagnose
    other = run("tokenize", tmp_path / "book.txt", tmp_path / "other", "--vocabulary", tmp_path / "tokens")
    assert other.exit_code == 0, other.output
    assert (tmp_path / "other").read_bytes() == (tmp_path / "book.tokens").read_bytes()
    assert run("tokenize", tmp_path / "book.txt", tmp_path / "book.tokens", "--min-count", 100).exit_code == 0
    changed = run("train", "--out", tmp_path / "tokens", "--resume", "--steps", 6)
    assert "the text has changed since its run was started" in changed.output


def test_command_rejects_what_it_cannot_use(tmp_path, tokens):
    (tmp_path / "book.txt").write_text(TEXT, encoding="utf-8")
    (tmp_path / "short.txt").write_text("x")
    run("tokenize", "--level", "word", tmp_path / "book.txt", tmp_path / "words")
    assert run("train", tokens, "--out", tmp_path / "model", "--steps", 1, "--hidden", 4).exit_code == 0
    for arguments, message in (
        (("tokenize", tmp_path / "book.txt", tmp_path / "book.txt"), "is there already, and no token file"),
        (("tokenize", tmp_path / "missing", tmp_path / "x"), "no such file"),
        (("tokenize", tmp_path / "short.txt", tmp_path / "x"), "the text has 1 characters, expected at least 2"),
        (("tokenize", tokens, tmp_path / "x"), "a token file, expected text"),
        (("evaluate", tmp_path / "model", tokens), "a token file, expected text"),
        (("train", tokens, tmp_path / "book.txt", "--out", tmp_path / "x"), "among several FILEs"),
        (("train", tokens, "--validation", tmp_path / "words", "--out", tmp_path / "x"), "has another vocabulary"),
    ):
        found = run(*arguments)
        assert found.exit_code == 2, found.output
        assert message in found.output
        assert not (tmp_path / "x").exists()


LONG = 2 * 10**9


@pytest.fixture
def long_tokens(tokens, tmp_path):
    """A token file of 2 GB that is sparse: the disk holds only its beginning."""
    path, whole, count = tmp_path / "long.tokens", tokens.read_bytes(), len(TEXT)
    header = whole[8 : 8 + int.from_bytes(whole[:8], "little")]
    grown = header.rstrip().replace(f"[{count}]".encode(), f"[{LONG}]".encode())
    grown = grown.replace(f"[0, {count}]".encode(), f"[0, {LONG}]".encode())
    grown += b" " * (-len(grown) % 8)
    path.write_bytes(len(grown).to_bytes(8, "little") + grown)
    os.truncate(path, 8 + len(grown) + LONG)
    return path


PEAK = """
import atexit, runpy, sys

path = sys.argv.pop()

@atexit.register
def report():
    with open("/proc/self/status") as status, open(path, "w") as file:
        file.write(next(line for line in status if line.startswith("VmHWM")).split()[1])

runpy.run_module("gpurnn", run_name="__main__")
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_training_reads_little_of_a_long_file(long_tokens, tmp_path):
    """Checks the peak memory, its own and mapped files. The system's figure for a child includes its parent's."""
    arguments = ("train", long_tokens, "--out", tmp_path / "run", "--steps", 3, "--hidden", 8)
    arguments += ("--validation-fraction", 0.000001, "--quiet")
    subprocess.run([sys.executable, "-c", PEAK, *map(str, arguments), str(tmp_path / "peak")], check=True)
    peak = 1024 * int((tmp_path / "peak").read_text())
    assert peak < 400e6, f"{peak / 1e6:.0f} MB"


WHOLE = """
import sys
from gpurnn.training import TokenFile, TokenStream

def own():
    with open("/proc/self/status") as file:
        return 1024 * int(next(line for line in file if line.startswith("RssAnon")).split()[1])

file = TokenFile(sys.argv[1])
stream = TokenStream(file.tokens, 100, 100_000, checksum=file.checksum)
before, read, most = own(), 0, 0
for index in range(len(stream)):
    batch = stream.batch(0, index)
    read += batch.inputs.astype("i4").size
    most = max(most, own() - before)
assert read > 0.99 * len(file), read
assert most < 200e6, most
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_a_whole_long_file_streams_in_bounded_memory(long_tokens):
    """Pages that were read from the file do not count: the system reclaims them when it needs them."""
    subprocess.run([sys.executable, "-c", WHOLE, str(long_tokens)], check=True)
