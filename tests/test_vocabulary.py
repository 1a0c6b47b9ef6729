"""Vocabularies: the numbers of symbols, unknown symbols, and decoding."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpurnn.models import CharVocabulary, LanguageModel, TokenizerVocabulary, Vocabulary, WordVocabulary
from gpurnn.optimizers import Adam


def test_symbols_come_by_frequency_then_code_point():
    assert CharVocabulary.from_text("cabbac zz!").symbols == ("\ufffd", "a", "b", "c", "z", " ", "!")
    words = WordVocabulary.from_text("b a\nb a b\n")
    assert words.symbols == ("<unk>", "b", "\n", "a")


@given(st.text())
def test_characters_come_back(text):
    vocabulary = CharVocabulary.from_text(text)
    assert vocabulary.decode(vocabulary.encode(text)) == text
    assert len(vocabulary) == 1 + len(set(text) - {"\ufffd"})


@given(st.lists(st.text(alphabet="ab\U0001f600é", min_size=1), max_size=20))
def test_words_come_back(words):
    text = " ".join(words)
    vocabulary = WordVocabulary.from_text(text)
    assert vocabulary.decode(vocabulary.encode(text)) == text


@given(st.text(), st.text())
def test_what_is_not_known_is_zero_and_nothing_else_is(known, text):
    vocabulary = CharVocabulary.from_text(known)
    codes = vocabulary.encode(text)
    assert codes.dtype == np.int32
    assert codes.tolist() == [vocabulary.symbols.index(c) if c in vocabulary.symbols else 0 for c in text]


def test_the_unknown_symbol_may_be_in_the_text():
    vocabulary = CharVocabulary.from_text("a\ufffdb\ufffd")
    assert vocabulary.symbols == ("\ufffd", "a", "b")
    assert vocabulary.encode("\ufffda").tolist() == [0, 1]
    assert WordVocabulary.from_text("a <unk> <unk> b").symbols == ("<unk>", "a", "b")


def test_lone_surrogates_are_characters():
    vocabulary = CharVocabulary.from_text("a\ud800")
    assert vocabulary.decode(vocabulary.encode("\ud800a")) == "\ud800a"


def test_lines_are_words_and_spaces_around_them_go():
    vocabulary = WordVocabulary.from_text("a b\n\nc")
    assert vocabulary.encode(" a  b \n \n c").tolist() == vocabulary.encode("a b\n\nc").tolist()
    assert vocabulary.decode(vocabulary.encode("a b\n\nc")) == "a b\n\nc"
    assert vocabulary.decode(vocabulary.encode("a <unk> d")) == "a <unk> <unk>"


@pytest.mark.parametrize("kind", [CharVocabulary, WordVocabulary])
def test_limits(kind):
    text = "a a a b b c"
    assert kind.from_text(text, max_size=2).symbols[1:] in (("a",), (" ",))
    assert len(kind.from_text(text, min_count=2)) == (4 if kind is CharVocabulary else 3)
    assert len(kind.from_text("")) == 1
    assert kind.from_text("").encode("xy z").max() == 0
    with pytest.raises(ValueError, match=f"{kind.__name__}.from_text: max_size is 0, expected at least 1"):
        kind.from_text(text, max_size=0)
    with pytest.raises(ValueError, match="min_count is 0, expected at least 1"):
        kind.from_text(text, min_count=0)


@pytest.mark.parametrize("kind", [CharVocabulary, WordVocabulary])
def test_json_round_trip(kind):
    vocabulary = kind.from_text('“naïve” \U0001f600 "text"\n\\ \u2028 \x00')
    back = Vocabulary.from_config(json.loads(json.dumps(vocabulary.config())))
    assert back == vocabulary
    assert type(back) is kind
    assert back != kind("x")
    assert CharVocabulary("ab") != WordVocabulary("ab")


def test_refusals():
    with pytest.raises(ValueError, match="symbols is empty"):
        CharVocabulary([])
    with pytest.raises(ValueError, match="symbols has 'a' more than once"):
        WordVocabulary(["<unk>", "a", "a"])
    with pytest.raises(ValueError, match="symbols holds 'ab', expected single characters"):
        CharVocabulary(["?", "ab"])
    with pytest.raises(ValueError, match=r"decode: tokens holds 3, expected whole numbers in \[0, 3\)"):
        CharVocabulary("?ab").decode(np.array([1, 3]))
    with pytest.raises(ValueError, match="tokens holds -1"):
        CharVocabulary("?ab").decode([-1])
    for tokens in ([0.7], "01", [None], [[1]], np.array([1.0]), np.array([[1]]), [True], np.array([True])):
        with pytest.raises(TypeError, match=r"decode: tokens holds .*, expected whole numbers in \[0, 3\)"):
            CharVocabulary("?ab").decode(tokens)
    with pytest.raises(TypeError, match=r"WordVocabulary\.decode: tokens is None, expected whole numbers"):
        WordVocabulary(["?"]).decode(None)
    with pytest.raises(TypeError, match=r"decode: tokens is array\(1\), expected whole numbers"):
        CharVocabulary("?ab").decode(np.array(1))
    with pytest.raises(TypeError, match="WordVocabulary: symbols is None, expected a sequence of str"):
        WordVocabulary(None)
    with pytest.raises(ValueError, match="kind is 'bytes', expected one of 'character', 'word'"):
        Vocabulary.from_config({"kind": "bytes", "symbols": ["a"]})


def test_a_large_text_is_encoded_by_table():
    text = "ab\U0010ffffc" * 1000
    vocabulary = CharVocabulary("?ab")
    assert vocabulary.encode(text).tolist() == [1, 2, 0, 0] * 1000
    assert "a" in vocabulary
    assert "z" not in vocabulary
    assert repr(vocabulary) == "<CharVocabulary of 3 symbols>"


def test_symbols_in_no_order_are_rejected():
    with pytest.raises(TypeError, match=r"CharVocabulary: symbols is .*, expected a sequence of str"):
        CharVocabulary({"a", "b"})


@pytest.mark.parametrize("config", [None, {}, {"kind": "word"}, ["word"]])
def test_what_is_no_configuration_is_rejected(config):
    with pytest.raises(
        TypeError, match=r"Vocabulary\.from_config: config is .*, expected a dict with kind and symbols"
    ):
        Vocabulary.from_config(config)


class Bytes:
    """A tokenizer that belongs to no library: its tokens are bytes."""

    vocab_size = 256

    def encode(self, text):
        return list(text.encode())

    def decode(self, tokens):
        return bytes(tokens).decode(errors="replace")


@given(st.text(), st.text(max_size=3), st.lists(st.integers(0, 255), max_size=8))
def test_any_tokenizer_is_a_vocabulary(text, before, noise):
    vocabulary = TokenizerVocabulary(Bytes())
    assert vocabulary.decode(vocabulary.encode(text)) == text
    assert vocabulary.decode([256, *vocabulary.encode(text), 256]) == text  # 256 stands for no text
    tokens = [*vocabulary.encode(text).tolist(), *noise]
    assert "".join(vocabulary.pieces(tokens, before)) == Bytes().decode(tokens)
    assert len(vocabulary) == 257


def test_pieces_end_where_characters_end():
    vocabulary, read = TokenizerVocabulary(Bytes()), []
    tokens = "é😀a".encode() + b"\xe2"
    pieces = vocabulary.pieces(read.append(token) or token for token in tokens)
    assert [(piece, len(read)) for piece in pieces] == [("é", 2), ("😀", 6), ("a", 7), ("\ufffd", 8)]


def test_sizes_of_tokenizers():
    class Method(Bytes):
        vocab_size = None

        def get_vocab_size(self):
            return 300

    class Sized(Bytes):
        def __len__(self):
            return 400

    class Silent(Bytes):
        vocab_size = None

    assert len(TokenizerVocabulary(Method())) == 301
    assert len(TokenizerVocabulary(Sized())) == 401
    with pytest.raises(TypeError, match=r"tokenizer is a .*Silent that does not say its size, expected one with len"):
        TokenizerVocabulary(Silent())


def test_what_tokenizers_may_return():
    def of(found):
        tokenizer = Bytes()
        tokenizer.encode = lambda text: found
        return TokenizerVocabulary(tokenizer).encode("x")

    assert of(np.array([3, 255], np.uint8)).tolist() == [3, 255]
    assert of(()).shape == (0,)
    with pytest.raises(
        ValueError, match=r"encode returned 256 and 0, expected numbers in \[0, 256\), as its size is 256"
    ):
        of([0, 256])
    with pytest.raises(ValueError, match="encode returned -1 and -1"):
        of([-1])
    for wrong in ([0.5], "ab", [[1]], None):
        with pytest.raises(TypeError, match=r"encode returned .*, expected whole numbers \(T,\)"):
            of(wrong)
    with pytest.raises(TypeError, match="tokenizer is a dict, expected an object with the methods encode and decode"):
        TokenizerVocabulary({})


def test_a_model_of_any_tokenizer_learns_and_writes_and_cannot_be_saved(tmp_path):
    model = LanguageModel(Bytes(), 8, 24)
    assert repr(model).startswith("LanguageModel(257 tokens, 8, 24)")
    model.fit("né " * 200, steps=60, optimizer=Adam(0.02), batch_size=4, window=12, verbose=False)
    assert model.sample(8, "né", temperature=0) == " né né"
    assert model.perplexity("né né né ") < 4
    with pytest.raises(TypeError, match=r"the tokenizer is a .*Bytes, which a file cannot hold, expected"):
        model.save(tmp_path / "m")
    assert not (tmp_path / "m").exists()
    other = LanguageModel(Bytes(), 8, 24, rng=1)
    other.load_state_dict(model.state_dict())
    assert other.sample(8, "né", temperature=0) == " né né"
