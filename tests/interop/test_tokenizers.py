"""Tokenizers of the tokenizers library as vocabularies: tokens, texts, files, the command line, and damaged files."""

from __future__ import annotations

import functools
import json
import math
import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gpurnn
from gpurnn import _files
from gpurnn.models import TokenizerVocabulary, load

tokenizers = pytest.importorskip("tokenizers")

MUTATED = Path(__file__).with_name("mutated_tokenizers.py")

TEXT = "die Größe der Wörter – naïve café, Straße und Öl; 雪が降る 😀.\n" * 30


@functools.cache
def byte_pairs():
    return TokenizerVocabulary.from_text(TEXT, max_size=300)


def word_pieces():
    """A tokenizer that lowers letters, knows few words, adds special tokens, truncates and pads."""
    words = ["[UNK]", "[CLS]", "the", "cat", "and", "do", "##g", "bird"]
    model = tokenizers.models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.normalizer = tokenizers.normalizers.Lowercase()
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.decoder = tokenizers.decoders.WordPiece()
    tokenizer.add_special_tokens(words[:2])
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing("[CLS] $A", None, [("[CLS]", 1)])
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=50)
    return tokenizer


def metaspace():
    """A Unigram tokenizer as SentencePiece makes it: a space is part of the token after it."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.Unigram())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    tokenizer.decoder = tokenizers.decoders.Metaspace()
    trainer = tokenizers.trainers.UnigramTrainer(
        vocab_size=40, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(["the cat and the dog and the bird"] * 9, trainer)
    return tokenizer


@given(st.text())
def test_bytes_give_every_text_back(text):
    vocabulary = byte_pairs()
    assert vocabulary.decode(vocabulary.encode(text)) == text


@given(st.lists(st.integers(0, 299), max_size=30), st.text(max_size=5))
def test_pieces_are_the_text_and_end_where_characters_end(tokens, before):
    vocabulary = byte_pairs()
    text = vocabulary.decode([*vocabulary.encode(before), *tokens])
    assert before + "".join(vocabulary.pieces(tokens, before)) == text


def test_a_character_comes_as_soon_as_its_last_byte_does():
    plain = TokenizerVocabulary.from_text("", max_size=257)
    tokens = plain.encode("é😀a").tolist()
    assert len(tokens) == 7
    read = []
    pieces = plain.pieces(read.append(token) or token for token in tokens)
    assert [(piece, len(read)) for piece in pieces] == [("é", 2), ("😀", 6), ("a", 7)]
    assert list(plain.pieces(tokens[:4])) == ["é", "\ufffd"]  # at the end, an incomplete character is shown as such


def test_training_is_deterministic_and_says_what_it_needs():
    code = (
        "from gpurnn.models import TokenizerVocabulary; import hashlib;"
        f"v = TokenizerVocabulary.from_text({TEXT!r}, max_size=330);"
        "print(hashlib.sha256(v.tokenizer.to_str().encode()).hexdigest())"
    )
    found = {subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout for _ in range(2)}
    assert len(found) == 1
    with pytest.raises(ValueError, match="from_text: max_size is 256, expected at least 257"):
        TokenizerVocabulary.from_text(TEXT, max_size=256)
    assert len(TokenizerVocabulary.from_text("abab" * 9, min_count=100)) == 257


def test_the_numbers_are_the_tokenizers_own_and_one_more_begins_a_text():
    tokenizer = word_pieces()
    model = gpurnn.LanguageModel(tokenizer, 4, 8)
    vocabulary = model.vocabulary
    assert isinstance(vocabulary, TokenizerVocabulary)
    assert len(vocabulary) == tokenizer.get_vocab_size() + 1 == vocabulary.start + 1
    plain = tokenizers.Tokenizer.from_str(tokenizer.to_str())
    plain.no_truncation()
    plain.no_padding()
    text = "the CAT and a Zebra and the dog"
    expected = plain.encode(text, add_special_tokens=False).ids
    assert vocabulary.encode(text).tolist() == expected  # neither cut, nor padded, nor with [CLS]
    assert tokenizer.to_str() == word_pieces().to_str()  # the caller's own is unchanged
    assert vocabulary.unknown_tokens == (tokenizer.token_to_id("[UNK]"), vocabulary.start)
    logits, _ = model(np.array([[vocabulary.start]]))
    first = logits[0, 0, expected[0]] - np.log(np.exp(logits[0, 0].astype(float)).sum())
    assert model.log_likelihood(np.array(expected[:1])) == pytest.approx(first, rel=1e-5)
    assert repr(model).startswith(f"LanguageModel({len(vocabulary)} tokens, 4, 8)")


def test_what_stands_for_no_text_is_not_drawn():
    tokenizer = word_pieces()
    model = gpurnn.LanguageModel(tokenizer, 4, 8)
    unknown = tokenizer.token_to_id("[UNK]")
    for token in (unknown, model.vocabulary.start):
        model.output.params["bias"][token] = 100
    model.output.params["bias"][tokenizer.token_to_id("cat")] = 50
    assert model.sample(3, "the", temperature=0) == " cat cat cat"


def test_a_sample_continues_the_prompt_with_the_space_between():
    model = gpurnn.LanguageModel(metaspace(), 4, 8)
    tokens = model.vocabulary.encode("the dog").tolist()
    assert "".join(model.vocabulary.pieces(tokens, "and")) == " the dog"
    assert "".join(model.vocabulary.pieces(tokens)) == "the dog"
    assert "".join(model.stream(20, "and", rng=3)) == model.sample(20, "and", rng=3)


def test_a_file_holds_the_tokenizer(tmp_path):
    for tokenizer in (byte_pairs(), word_pieces(), metaspace()):
        model = gpurnn.LanguageModel(tokenizer, 4, 8, rng=1)
        model.save(tmp_path / "m")
        back = load(tmp_path / "m")
        assert back.vocabulary == model.vocabulary
        assert repr(back) == repr(model)
        assert back.sample(30, "the", rng=2) == model.sample(30, "the", rng=2)
        assert back.perplexity("the dog") == model.perplexity("the dog")
        assert pickle.loads(pickle.dumps(model)).vocabulary == model.vocabulary
    assert gpurnn.LanguageModel(word_pieces(), 4, 8).vocabulary != byte_pairs()


def test_a_file_needs_the_library_and_says_so(tmp_path, monkeypatch):
    gpurnn.LanguageModel(byte_pairs(), 4, 8).save(tmp_path / "m")
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ImportError, match=r"tokenizers is not installed; pip install 'gpurnn\[text\]'"):
        load(tmp_path / "m")


def test_a_model_learns_tokens():
    text = "one two three four five six seven. " * 60
    model = gpurnn.LanguageModel(TokenizerVocabulary.from_text(text, max_size=290), 8, 24)
    model.fit(text, steps=120, optimizer=gpurnn.Adam(0.02), batch_size=4, window=16, verbose=False)
    assert model.sample(4, "one two three", temperature=0) == " four five six seven"
    assert "perplexity" in model.trainer_.history[-1]


def test_a_translator_of_tokens(tmp_path):
    digits = ["null", "eins", "zwei", "drei"]
    rng = np.random.default_rng(0)
    numbers = ["".join(map(str, rng.integers(0, 4, rng.integers(1, 4)))) for _ in range(150)]
    words = [" ".join(digits[int(d)] for d in number) for number in numbers]
    model = gpurnn.Translator.from_texts(
        numbers, words, 8, 24, source_level="char", target_level="bpe", max_size=300, rng=1
    )
    model.fit(numbers, words, epochs=12, batch_size=16, optimizer=gpurnn.Adam(0.02), verbose=False)
    assert model.predict(["201", "3"]) == ["zwei null eins", "drei"]
    weights, _, symbols = model.alignment("201")
    assert "".join(symbols) == "zwei null eins<end>"
    assert weights.shape == (len(symbols), 3)
    model.save(tmp_path / "m")
    assert load(tmp_path / "m").predict(["201"]) == ["zwei null eins"]
    model.output.params["bias"][1] = 100  # the begin symbol, which is not a token of the tokenizer
    assert model.predict(["2"], max_length=3) == [""]


# ---- The command line


def run(*arguments, code=0):
    from click.testing import CliRunner

    from gpurnn import cli

    result = CliRunner().invoke(cli.cli, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result


SMALL = ["--embedding", "4", "--hidden", "6", "--batch", "4", "--window", "10", "--steps", "6", "--log-every", "2"]


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


def test_the_command_line_trains_a_tokenizer_and_a_model(text, tmp_path):
    out = tmp_path / "run"
    said = run("train", text, "--out", out, *SMALL, "--level", "bpe", "--max-vocabulary", 300).stdout
    kept = TokenizerVocabulary.from_file(out / "tokenizer.json")
    assert len(kept) == 300
    model = load(out / "model.safetensors")
    assert model.vocabulary == kept
    written = run("generate", out, "--length", 25, "--prompt", "die", "--seed", 3).stdout
    assert written == "die" + model.sample(25, "die", temperature=0.7, rng=3) + "\n"
    report = json.loads(run("evaluate", out, text, "--json").stdout)
    bits = -model.log_likelihood(TEXT) / math.log(2)
    (found,) = report["files"]
    assert found["bits_per_character"] == pytest.approx(bits / len(TEXT))
    assert found["bits_per_byte"] == pytest.approx(bits / len(TEXT.encode()))
    assert (report["symbol"], report["metric"]) == ("token", "bits_per_character")
    assert (found["symbols"], found["unknown"]) == (len(kept.encode(TEXT)), 0)
    line = run("evaluate", out, text).stdout
    assert re.fullmatch(r"\d+\.\d{4} bits per character, \d+\.\d{4} per byte \([\d,]+ tokens\)\n", line)
    last = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()][-1]
    validation = TEXT[round(len(TEXT) * 0.95) :]
    shown = math.log2(last["validation_perplexity"]) * len(kept.encode(validation)) / len(validation)
    assert f"{shown:.3f} bits per character in validation" in said


def test_a_run_is_resumed_with_the_tokenizer_that_it_began_with(text, tmp_path):
    out, file = tmp_path / "run", tmp_path / "mine.json"
    word_pieces().save(str(file))
    run("train", text, "--out", out, *SMALL, "--tokenizer", file)
    file.unlink()
    run("train", "--out", out, "--resume", "--steps", 9)
    model = load(out / "model.safetensors")
    assert model.vocabulary == gpurnn.LanguageModel(word_pieces(), 4, 6).vocabulary
    said = run("evaluate", out, text).stderr
    assert "the tokenizer does not give it back, so these are the bits of another text" in said
    run("train", text, "--out", tmp_path / "more", "--from", out, "--steps", 3)
    assert load(tmp_path / "more" / "model.safetensors").vocabulary == model.vocabulary
    run("train", text, "--out", out, *SMALL, "--replace")
    assert not (out / "tokenizer.json").exists()


def test_what_the_command_line_rejects(text, tmp_path, monkeypatch):
    out, file = tmp_path / "run", tmp_path / "mine.json"
    for arguments, message in (
        (["--tokenizer", file], f"{file}: no such file or directory"),
        (["--tokenizer", text], f"{text}: damaged, or no tokenizer: it is no JSON"),
        (["--tokenizer", file, "--level", "word"], "--tokenizer and --level word are given, expected one of them"),
        (
            ["--level", "bpe", "--max-vocabulary", 100],
            "--max-vocabulary is 100, expected at least 257 with --level bpe",
        ),
    ):
        assert message in run("train", text, "--out", out, *SMALL, *arguments, code=2).stderr
        assert not out.exists()
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    assert "tokenizers is not installed" in run("train", text, "--out", out, "--level", "bpe", code=2).stderr
    assert not out.exists()


# ---- Damaged and hostile files


def replaces(count):
    part = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
    return {"type": "Sequence", "normalizers": [part] * count}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: [], r"tokenizer is a list of 0, expected a dict that describes a model"),
        (lambda d: {**d, "model": None}, "expected a dict that describes a model"),
        (lambda d: {**d, "model": {**d["model"], "type": "Pickle"}}, "is none that tokenizers .* can read"),
        (
            lambda d: {**d, "model": {**d["model"], "vocab": {"a": 4294967295}, "merges": []}},
            "expected numbers without large gaps",
        ),
        (lambda d: {**d, "model": {**d["model"], "vocab": {}, "merges": []}}, "tokenizer has no tokens"),
        (lambda d: {**d, "model": {**d["model"], "vocab": {"a": -1}, "merges": []}}, "is none that tokenizers"),
        (lambda d: {**d, "model": {**d["model"], "merges": [["q", "nowhere"]]}}, "is none that tokenizers"),
        (
            lambda d: {**d, "model": {"type": "Unigram", "unk_id": None, "vocab": [["x" * 10**6, 0.0]]}},
            "has a token of 1,000,000 characters, expected at most 1,024",
        ),
        (
            lambda d: {**d, "model": {**d["model"], "continuing_subword_prefix": "##"}},
            r"merges\[0\] has '.*' for its second part, expected one that begins with '##'",
        ),
        (lambda d: {**d, "normalizer": replaces(40)}, r"make a text 1,099,511,627,776 times as long"),
        (lambda d: {**d, "normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}}, "tokeniz"),
        (
            lambda d: {
                **d,
                "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated", "invert": False},
            },
            "is none that tokenizers",
        ),
    ],
)
def test_hostile_tokenizers_are_rejected(tmp_path, change, message):
    path = tmp_path / "t.json"
    path.write_text(json.dumps(change(json.loads(byte_pairs().tokenizer.to_str()))))
    with pytest.raises(gpurnn.FileFormatError, match=rf"(?s){re.escape(str(path))}: .*{message}"):
        TokenizerVocabulary.from_file(path)


def test_a_models_file_with_a_hostile_tokenizer_is_rejected(tmp_path):
    model = gpurnn.LanguageModel(byte_pairs(), 4, 8)
    document = json.loads(byte_pairs().tokenizer.to_str())
    for change, message in (
        ({"normalizer": replaces(40)}, "make a text 1,099,511,627,776 times as long"),
        ({"model": {"type": "WordLevel", "vocab": {"a": 0, "b": 2**31}, "unk_token": "a"}}, "without large gaps"),
        ({"model": {"type": "WordLevel", "vocab": {"a": 0, "b": 1}, "unk_token": "a"}}, "embedding.weight"),
    ):
        config = {**model.config(), "vocabulary": {"kind": "token", "tokenizer": {**document, **change}}}
        content = {"model": "LanguageModel", "config": config}
        _files.write_tensors(tmp_path / "m", "test", "model", content, model.state_dict())
        with pytest.raises(gpurnn.FileFormatError, match=f"its contents do not make a LanguageModel: .*{message}"):
            load(tmp_path / "m")


@pytest.mark.parametrize(
    "make", [lambda: byte_pairs().tokenizer, word_pieces, metaspace], ids=["bpe", "wordpiece", "unigram"]
)
def test_no_mutation_of_a_file_crashes_hangs_or_fills_the_memory(tmp_path, make):
    make().save(str(tmp_path / "good.json"))
    arguments = [sys.executable, MUTATED, tmp_path / "good.json", "200", tmp_path / "bad.json", "0"]
    done = subprocess.run(list(map(str, arguments)), capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert 0 < found["read"] < 200
    assert found["megabytes"] < 400
