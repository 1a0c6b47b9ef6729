"""Vocabularies: what they number, what they do not know, and the way back."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpurnn.models import CharVocabulary, Vocabulary, WordVocabulary


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
