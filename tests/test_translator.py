"""The translator: its vocabularies, what it learns, its alignment and its score."""

import builtins
import re
import sys
from collections import Counter

import numpy as np
import pytest
from strict_wing import plain
from tolerance import assert_same

import gpurnn
from gpurnn import CharVocabulary, Translator, WordVocabulary, plots
from gpurnn.models import load

DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


def spelled(number):
    return " ".join(DIGITS[int(digit)] for digit in number)


@pytest.fixture(scope="module")
def learnt():
    """A translator that has learnt to spell numbers, and numbers that it has not seen."""
    rng = np.random.default_rng(0)
    numbers = sorted({str(n) for n in rng.integers(0, 10_000, 700)})
    rng.shuffle(numbers)
    train, new = numbers[:500], numbers[500:600]
    model = Translator.from_texts(train, [spelled(n) for n in train], 12, 32, source_level="char", rng=1)
    model.fit(train, [spelled(n) for n in train], epochs=12, batch_size=25, optimizer=gpurnn.Adam(0.01))
    return model, new


def small(**options):
    return Translator(
        CharVocabulary.from_text("abc"), WordVocabulary.from_text("one two three"), 3, 4, dtype="float64", **options
    )


def test_learns_to_spell(learnt):
    model, new = learnt
    expected = [spelled(n) for n in new]
    for options in ({}, {"beam_size": 3}, {"beam_size": 2, "coverage_penalty": 0.2}):
        assert np.mean([a == b for a, b in zip(model.predict(new, **options), expected, strict=True)]) > 0.95
    assert model.bleu(new, expected) > 95
    assert model.bleu(new, expected[::-1]) < 60


def test_the_alignment_is_the_diagonal(learnt):
    model, _ = learnt
    weights, source, target = model.alignment("4711")
    assert source == ["4", "7", "1", "1"]
    assert target == ["four", "seven", "one", "one", "<end>"]
    assert weights.shape == (5, 4)
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-5)
    assert_same(model.alignment("4711", "four seven one one"), (weights, source, target))
    other, _, told = model.alignment("4711", "one")
    assert (other.shape, told) == ((2, 4), ["one", "<end>"])
    axes = plots.alignment(weights, source, target)
    assert [label.get_text() for label in axes.get_xticklabels()] == source
    assert [label.get_text() for label in axes.get_yticklabels()] == target
    np.testing.assert_array_equal(axes.images[0].get_array(), weights)
    with pytest.raises(ValueError, match=r"weights has shape \(5, 4\), expected \(T, S\) = \(5, 3\)"):
        plots.alignment(weights, source[:3], target)


def test_symbols_are_tokens_from_three_on():
    model = small()
    symbols = model.source_vocabulary.encode("ca?").tolist()
    (tokens,) = model._encoded("test", "sources", ["ca?"], model.source_vocabulary)
    assert tokens.tolist() == [symbol + 3 for symbol in symbols]
    assert tokens[2] == 3
    data = model._batches(["ab", "c"], ["one two", ""], 2, shuffle=False, rng=0)
    targets, lengths = data.batch(0, 0).targets
    assert lengths.tolist() == [3, 1]
    assert targets[:, 1].tolist() == [2, 0, 0]
    assert targets[2, 0] == 2
    assert model.target_vocabulary.decode(targets[:2, 0] - 3) == "one two"


def test_what_is_no_symbol_is_written_as_unknown():
    model = small()
    model.output.params["bias"][1] = 100  # it writes the begin symbol forever
    assert model.predict(["a"], max_length=2) == ["<unk> <unk>"]


@pytest.mark.parametrize("options", [{}, {"attention": "general", "cell": "lstm"}, {"attention": None, "dropout": 0.5}])
def test_a_file_holds_the_whole_model(tmp_path, options):
    model = small(**options)
    model.save(tmp_path / "m")
    back = load(tmp_path / "m")
    assert type(back) is Translator
    assert repr(back) == repr(model)
    assert back.target_vocabulary == model.target_vocabulary
    assert_same(back.state_dict(), model.state_dict())
    assert back.predict(["ab", "c"]) == model.predict(["ab", "c"])


def test_repr():
    first = repr(small()).splitlines()[0]
    assert first == f"Translator(4 characters, 4 words, 3, 4, dtype='float64')  # {small().num_parameters} parameters"
    other = small(attention=None, bidirectional=False)
    assert repr(other).startswith("Translator(4 characters, 4 words, 3, 4, bidirectional=False, attention=None, dtype=")


def test_on_strict_arrays(strict_namespace):
    model = small()
    moved = model.to(strict_namespace)
    assert moved.predict(["ab", "c"], beam_size=2) == model.predict(["ab", "c"], beam_size=2)
    assert_same(plain(moved.alignment("ab", "two")[0]), model.alignment("ab", "two")[0])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: Translator("abc", m.target_vocabulary, 2, 2), "source_vocabulary is a str, expected a CharVocab"),
        (lambda m: m.predict("abc"), "predict: sources is a str, expected a sequence of str"),
        (lambda m: m.predict(["a", 5]), r"sources\[1\] is an int, expected a str"),
        (lambda m: m.predict(["a", ""]), r"predict: sources\[1\] is '', expected at least one character"),
        (lambda m: m.fit(["a", ""], ["one", "two"], epochs=1), r"fit: X\[1\] is '', expected at least one char"),
        (lambda m: m.alignment(""), r"Translator\.alignment: source is '', expected at least one character"),
        (lambda m: m.alignment(["a"]), r"Translator\.alignment: source is a list of 1, expected a str"),
        (lambda m: m.alignment("a", 3), r"Translator\.alignment: target is an int, expected a str"),
        (lambda m: m.bleu([], []), r"Translator\.bleu: sources is empty, expected at least one text"),
        (lambda m: m.bleu(["a"], [""]), r"Translator\.bleu: references hold no words, expected at least one"),
        (lambda m: m.bleu("a", ["one"]), r"Translator\.bleu: sources is a str, expected a sequence of str"),
        (lambda m: m.bleu(["a", ""], ["one", "two"]), r"sources\[1\] is '', expected at least one character"),
        (lambda m: m.fit(["a"], "b", epochs=1), "y is a str"),
        (lambda m: m.fit(["a", "b"], ["one"], epochs=1), "y has 1 entries, expected 2"),
        (lambda m: m.bleu(["a"], ["one", "two"]), "references has 2 entries, expected 1"),
        (lambda m: m.fit([], [], epochs=1), r"Translator\.fit: X is empty, expected at least one example"),
        (lambda m: Translator.from_texts(["a"], [], 2, 2), "from_texts: targets is empty, expected at least one text"),
        (lambda m: Translator.from_texts(["a"], ["b"], 2, 2, source_level="byte"), "source_level is 'byte'"),
        (lambda m: small(attention=None).alignment("a", "one"), "the model has no attention"),
    ],
)
def test_refusals(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call(small())


@pytest.mark.parametrize("blank", ["", " ", "\t \u3000"])
@pytest.mark.parametrize("options", [{}, {"beam_size": 2}])
def test_a_source_without_words_is_not_translated(blank, options):
    model = Translator.from_texts(["a b", "b"], ["x y", "y"], 8, 8)
    message = f"Translator.predict: sources[1] is {blank!r}, expected at least one word"
    with pytest.raises(ValueError, match=re.escape(message)):
        model.predict(["a b", blank], **options)


def test_targets_without_words_are_learnt():
    model = Translator.from_texts(["a", "b"], ["x", ""], 8, 16, rng=0)
    model.fit(["a", "b"] * 10, ["x", " "] * 10, epochs=30, optimizer=gpurnn.Adam(0.05))
    assert model.predict(["b", "a", "b"]) == ["", "x", ""]
    assert model.bleu(["a", "b"], ["x", ""]) == pytest.approx(100)
    weights, source, target = model.alignment("b")
    assert (weights.shape, source, target) == ((1, 1), ["b"], ["<end>"])


def test_parameters_that_are_nan_give_no_text():
    model = small()
    model.params["decoder.weight_hh_l0"][0, 0] = np.nan
    blame = "not finite: parameter decoder.weight_hh_l0 holds NaN or infinity"
    for call in (
        lambda: model.predict(["a"]),
        lambda: model.predict(["a"], beam_size=2),
        lambda: model.alignment("a"),
        lambda: model.alignment("a", "one"),
        lambda: model.bleu(["a"], ["one"]),
    ):
        with pytest.raises(FloatingPointError, match=blame):
            call()


def ngrams(words, n):
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


@pytest.mark.parametrize(
    ("predicted", "references"),
    [
        (["x"], ["x"]),
        (["x y"], ["x y"]),
        (["x y"], ["x z"]),
        (["x y z", "x"], ["x y z", "y"]),
        (["x y z w v", "x"], ["x y z w u", "x"]),
        (["x"], ["x y z w v u"]),
        ([""], ["x"]),
    ],
)
def test_bleu_of_short_texts_is_that_of_their_own_order(monkeypatch, predicted, references):
    monkeypatch.setattr(Translator, "predict", lambda self, sources, **options: predicted)
    found = small().bleu(["a"] * len(predicted), references)
    # Papineni's formula over the orders that the translations contain; a precision of 0 is smoothed as in sacrebleu.
    matches, totals = np.zeros(4), np.zeros(4)
    for text, reference in zip(predicted, references, strict=True):
        for n in range(4):
            grams, theirs = (ngrams(t.split(), n + 1) for t in (text, reference))
            matches[n] += (grams & theirs).total()
            totals[n] += grams.total()
    used = totals > 0
    if not matches.any():
        assert found == 0
        return
    zeros = np.cumsum((matches == 0) & used)
    precisions = np.where(matches > 0, matches, 0.5**zeros)[used] / totals[used]
    lengths = [sum(len(t.split()) for t in texts) for texts in (predicted, references)]
    expected = 100 * np.exp(np.log(precisions).mean()) * min(1, np.exp(1 - lengths[1] / lengths[0]))
    assert found == pytest.approx(expected)


def test_bleu_says_what_it_needs(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "sacrebleu":
            raise ImportError("not there")
        return real(name, *args, **kwargs)

    monkeypatch.delitem(sys.modules, "sacrebleu", raising=False)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"Translator.bleu: sacrebleu is not installed; pip install sacrebleu"):
        small().bleu(["a"], ["one"])
