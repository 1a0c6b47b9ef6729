"""The language model: PyTorch's numbers, its definition as a probability, and its files."""

import itertools
import json
import math
import re

import numpy as np
import pytest
import safetensors.numpy
from allocations import most_bytes
from golden import arrays, family
from parity import assign
from strict_wing import plain, strict
from tolerance import assert_golden, assert_same, bound, check_gradients, epsilon, recurrence_terms

from gpurnn.models import CharVocabulary, LanguageModel, WordVocabulary, language_model, load
from gpurnn.optimizers import Adam
from gpurnn.training.trainer import METRICS

LETTERS = CharVocabulary("?abcd")
OPTIONS = {
    "lstm": {},
    "gru": {"cell": "gru"},
    "gru of PyTorch": {"cell": "gru", "reset_after": True, "update": "state"},
    "rnn": {"cell": "rnn", "activation": "relu", "leak": 0.1},
    "tied": {"tied": True},
    "two layers": {"num_layers": 2, "residual": True},
    "tied gru, two layers": {"cell": "gru", "tied": True, "num_layers": 2},
}


def small(hidden=6, dtype="float64", rng=3, **options):
    return LanguageModel(LETTERS, 6 if options.get("tied") else 4, hidden, dtype=dtype, rng=rng, **options)


def tokens(T, B, seed=0, vocabulary=LETTERS):
    return np.random.default_rng(seed).integers(0, len(vocabulary), (T, B), dtype=np.int32)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("record", family("custom", "lm_tied"), ids=lambda r: r["name"])
def test_golden_tied_lstm(record, dtype):
    given = arrays("custom", record["name"], dtype)
    V, H = given["E"].shape
    T, B = given["tokens"].shape[0] - 1, given["tokens"].shape[1]
    model = LanguageModel(CharVocabulary([chr(97 + i) for i in range(V)]), H, H, tied=True, dtype=dtype)
    model.load_state_dict(
        {
            "embedding.weight": given["E"],
            "recurrent.weight_ih_l0": given["Wx"],
            "recurrent.weight_hh_l0": given["Wh"],
            "recurrent.bias_ih_l0": given["b"],
            "recurrent.bias_hh_l0": np.zeros_like(given["b"]),
            "output.bias": given["b_out"],
        }
    )
    inputs, targets, lengths = given["tokens"][:-1], given["tokens"][1:], given["lengths"]
    terms = recurrence_terms(T, B, H, H) + V
    logits, _ = model(inputs)
    exists = np.arange(T)[:, None] < lengths
    assert_golden(np.where(exists[..., None], logits, 0), np.where(exists[..., None], given["logits"], 0), terms)
    loss, _, grads = model.loss_and_gradients(inputs, targets, None, lengths)
    assert_golden(np.asarray(loss), np.asarray(record["loss"]).astype(dtype), terms, "loss")
    for ours, theirs in {
        "embedding.weight": "g_E",
        "recurrent.weight_ih_l0": "g_Wx",
        "recurrent.weight_hh_l0": "g_Wh",
        "recurrent.bias_ih_l0": "g_b",
        "recurrent.bias_hh_l0": "g_b",
        "output.bias": "g_b_out",
    }.items():
        assert_golden(grads[ours], given[theirs], terms, ours)
    assert grads.keys() == model.params.keys()


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_gradients_against_central_differences(options):
    model = small(**options)
    x, T, B = tokens(5, 3), 5, 3
    rng = np.random.default_rng(1)
    (logits, state), _ = model.vjp(x)
    pair = isinstance(state, tuple)
    start = {f"s{i}": rng.standard_normal((model.recurrent.num_layers, B, 6)) for i in range(1 + pair)}
    lengths, resets = np.array([5, 0, 3]), rng.random((T, B)) < 0.3
    weights = [rng.standard_normal(logits.shape), *(rng.standard_normal(s.shape) for s in start.values())]

    def run(inputs, vjp=False):
        moved = small(**options)
        assign(moved, {name: inputs[name] for name in moved.params})
        h = tuple(inputs[name] for name in start)
        return (moved.vjp if vjp else moved)(x, h if pair else h[0], lengths, resets)

    def outputs(inputs):
        y, s = run(inputs)
        return [y, *(s if pair else (s,))]

    inputs = {**model.params, **start}
    _, pullback = run(inputs, vjp=True)
    cotangent = tuple(weights[1:]) if pair else weights[1]
    (dx, dstate), grads = pullback((weights[0], cotangent))
    assert dx is None
    found = {**grads, **dict(zip(start, dstate if pair else (dstate,), strict=True))}
    check_gradients(outputs, inputs, weights, found, seed=2)
    assert_same(pullback((weights[0], cotangent)), ((dx, dstate), grads))


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_gradient_of_the_loss_is_that_of_central_differences_under_dropout_too(options):
    options = {**options, "dropout": 0.4, "variational_dropout": 0.2, "recurrent_dropout": 0.2}
    model, x = small(**options), tokens(6, 4)
    lengths = np.array([5, 2, 0, 1])
    loss, _, grads = model.loss_and_gradients(x[:-1], x[1:], None, lengths, rng=5)

    def outputs(inputs):
        moved = small(**options)
        assign(moved, inputs)
        return [moved.loss_and_gradients(x[:-1], x[1:], None, lengths, rng=5)[0]]

    check_gradients(outputs, dict(model.params), [np.ones(())], grads, seed=1)
    assert loss != model.loss(x[:-1], x[1:], None, lengths)[0]


def test_dropout_acts_in_three_places_and_only_with_an_rng():
    x = tokens(4, 3)
    plain, dropped = small(num_layers=2), small(num_layers=2, dropout=0.5)
    assert_same(dropped(x), plain(x))
    assert_same(dropped.vjp(x)[0], plain.vjp(x)[0])
    # Values dropped in a single step leave exact zeros, in the weights that read them and in the row they came from.
    (y, _), pullback = dropped.vjp(x[:1, :1], rng=1)
    _, grads = pullback((np.ones_like(y), None))
    before = grads["embedding.weight"][x[0, 0]] == 0
    between = np.all(grads["recurrent.weight_ih_l1"] == 0, axis=0)
    after = np.all(grads["output.weight"] == 0, axis=0)
    for zeros in (before, between, after):
        assert 0 < zeros.sum() < len(zeros)


def test_loss_is_the_mean_negative_log_probability_of_the_steps_that_exist():
    model, x = small(), tokens(5, 3)
    lengths = np.array([4, 0, 2])
    logits, state = model(x[:-1], None, lengths)
    probability = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    nats = [-math.log(probability[t, b, x[t + 1, b]]) for b in range(3) for t in range(lengths[b])]
    loss, final = model.loss(x[:-1], x[1:], None, lengths)
    assert float(loss) == pytest.approx(np.mean(nats), rel=100 * epsilon("float64"))
    assert_same(final, state)
    assert_same(model.loss_and_gradients(x[:-1], x[1:], None, lengths)[:2], (loss, final))


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_the_probabilities_of_all_texts_of_a_length_add_up_to_one(options):
    model = small(**options)
    for length in (1, 2, 3):
        texts = itertools.product(range(len(LETTERS)), repeat=length)
        total = math.fsum(math.exp(model.log_likelihood(np.array(text))) for text in texts)
        assert total == pytest.approx(1, rel=bound("float64", 125 * recurrence_terms(length, 1, 6, 6)))


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_log_likelihood_does_not_depend_on_the_window(dtype):
    model = small(dtype=dtype)
    text = "".join(np.random.default_rng(0).choice(list("abcdx"), 300))
    whole = model.log_likelihood(text, window=1000)
    # The gates forget an error in the state about as fast as new errors arise.
    limit = bound(dtype, recurrence_terms(1, 1, 6, 6)) * 300
    for window in (1, 2, 7, 299, 300):
        assert model.log_likelihood(text, window=window) == pytest.approx(whole, abs=limit)
    assert model.log_likelihood(LETTERS.encode(text)) == model.log_likelihood(text)
    assert model.perplexity(text) == pytest.approx(math.exp(-whole / 300), rel=limit)


def test_likelihood_of_a_uniform_model_is_known():
    model = small()
    model.output.params["weight"][...] = 0
    assert model.log_likelihood("abca") == pytest.approx(-4 * math.log(5), rel=10 * epsilon("float64"))
    assert model.perplexity("abca") == pytest.approx(5, rel=10 * epsilon("float64"))
    assert model.log_likelihood("") == 0
    with pytest.raises(ValueError, match="text is empty, expected at least one token"):
        model.perplexity("")


def test_the_first_token_is_predicted_from_the_unknown_symbol_and_the_state_zero():
    model = small()
    logits, state = model(np.array([[0]]))
    first = logits[0, 0] - np.log(np.exp(logits[0, 0]).sum())
    assert model.log_likelihood("b") == pytest.approx(first[2], rel=100 * epsilon("float64"))
    logits, _ = model(np.array([[2]]), state)
    second = logits[0, 0] - np.log(np.exp(logits[0, 0]).sum())
    assert model.log_likelihood("bd") == pytest.approx(first[2] + second[4], rel=100 * epsilon("float64"))
    assert model.sample(1, temperature=0) == LETTERS.symbols[1 + int(np.argmax(first[1:]))]


def test_a_prompt_too_is_read_from_the_unknown_symbol_on():
    drawn, read, unread = [], [], []
    for seed in range(20):
        model = small(rng=seed)
        model.params["output.weight"][...] *= 20
        drawn.append(model.sample(1, "a", temperature=0))
        for found, prompt in ((read, [[0], [1]]), (unread, [[1]])):
            logits, _ = model(np.array(prompt))
            found.append(LETTERS.symbols[1 + int(np.argmax(logits[-1, 0, 1:]))])
    assert drawn == read
    assert drawn != unread


def biased(logits):
    """A model that gives every token these logits, whatever came before."""
    model = LanguageModel(LETTERS, 2, 3, dtype="float64")
    model.output.params["weight"][...] = 0
    model.output.params["bias"][...] = logits
    return model


@pytest.mark.parametrize(("temperature", "top_k"), [(1.0, None), (0.5, None), (2.0, 3), (1.0, 1), (0.0, None)])
def test_samples_have_the_frequencies_of_the_softmax(temperature, top_k):
    logits = np.array([5.0, 1.0, 0.0, 2.0, -1.0])
    draws = 200 if temperature == 0 or top_k == 1 else 4000  # one symbol has the whole probability
    text = biased(logits).sample(draws, temperature=temperature, top_k=top_k, rng=0)
    kept = np.exp(logits[1:] / temperature) if temperature else (logits[1:] == 2.0).astype(float)
    if top_k is not None:
        kept[np.argsort(-logits[1:])[top_k:]] = 0
    expected = kept / kept.sum()
    found = np.array([text.count(symbol) for symbol in "abcd"]) / draws
    assert np.abs(found - expected).max() < 4 * 0.5 / math.sqrt(draws)  # four standard deviations at the widest
    assert np.all(found[expected == 0] == 0)


def test_sampling_is_the_seeds_and_goes_on_from_the_prompt():
    model = small()
    assert model.sample(50, rng=1) == model.sample(50, rng=1) == model.sample(50, rng=np.random.default_rng(1))
    assert model.sample(50, rng=1) != model.sample(50, rng=2)
    assert model.sample(0) == ""
    # The first greedy token is the likeliest after the prompt. Drawing a text in two parts changes nothing.
    greedy = model.sample(6, "abba", temperature=0)
    logits, _ = model(np.array([[0], *([n] for n in LETTERS.encode("abba"))]))
    assert greedy[0] == LETTERS.symbols[1 + int(np.argmax(logits[-1, 0, 1:]))]
    assert model.sample(3, "abba" + greedy[:3], temperature=0) == greedy[3:]


def test_a_stream_is_the_sample_symbol_by_symbol(monkeypatch):
    model, read = small(), []
    step = LanguageModel._next
    monkeypatch.setattr(LanguageModel, "_next", lambda self, tokens, *rest: read.append(1) or step(self, tokens, *rest))
    symbols = model.stream(20, "ab", temperature=0.8, top_k=3, rng=4)
    assert read == []
    first = [next(symbols), next(symbols)]
    assert len(read) == 2  # it reads no further than requested
    assert "".join([*first, *symbols]) == model.sample(20, "ab", temperature=0.8, top_k=3, rng=4)
    with pytest.raises(ValueError, match=r"LanguageModel.stream: length is -1"):
        model.stream(-1)  # before its first symbol


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"length": -1}, "length is -1, expected at least 0"),
        ({"length": 1, "temperature": -0.5}, "temperature is -0.5, expected a number of at least 0"),
        ({"length": 1, "temperature": math.nan}, "temperature is nan"),
        ({"length": 1, "top_k": 0}, "top_k is 0, expected at least 1"),
        ({"length": 1, "rng": "x"}, "rng is 'x', expected an int seed"),
        ({"length": 1.5}, "length is 1.5, expected a whole number"),
    ],
)
def test_sampling_refuses(arguments, message):
    with pytest.raises((ValueError, TypeError), match=message):
        small().sample(**arguments)
    with pytest.raises(ValueError, match="holds the unknown symbol only"):
        LanguageModel(CharVocabulary("?"), 2, 2).sample(1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tied": True, "embedding_size": 3}, "embedding_size is 3 and hidden_size 4, expected equal sizes"),
        ({"bidirectional": True}, "expected False: the backward direction would see"),
        ({"cell": "transformer"}, "cell is 'transformer', expected one of 'rnn', 'lstm', 'gru'"),
        ({"leak": 0.5}, "leak is not an option of the cell 'lstm', expected activation"),
        (
            {"cell": "gru", "leak": 0.5},
            "leak is not an option of the cell 'gru', expected activation or reset_after or update",
        ),
        ({"dropout": 1.0}, "dropout is 1.0, expected a probability"),
        ({"vocabulary": "abc"}, "vocabulary is a str, expected a CharVocabulary, a WordVocabulary or a tokenizer"),
        ({"dtype": "int32"}, "dtype is 'int32', expected float32 or float64"),
        ({"hidden_size": 0}, "hidden_size is 0, expected at least 1"),
    ],
)
def test_constructor_refuses(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        LanguageModel(**{"vocabulary": LETTERS, "embedding_size": 4, "hidden_size": 4, **options})


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros(3, np.int32), r"tokens has shape \(3,\), expected 2 axes \(T, B\)"),
        (np.zeros((3, 1)), "dtype float64, expected an integer dtype"),
        ([[1]], "is a list, expected a numpy.ndarray"),
        (np.full((2, 1), 5), "5"),
        (np.full((2, 1), -1), "-1"),
    ],
    ids=["one axis", "floats", "list", "too large", "negative"],
)
def test_calls_refuse_bad_tokens(x, message):
    for call in (small(), small().vjp):
        with pytest.raises((ValueError, TypeError, IndexError), match=message):
            call(x)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_file_holds_the_whole_model(tmp_path, options, dtype):
    model = small(dtype=dtype, **options)
    model.save(tmp_path / "model.safetensors")
    back = LanguageModel.from_file(tmp_path / "model.safetensors")
    assert back.config() == model.config()
    assert repr(back) == repr(model)
    assert_same(back.state_dict(), model.state_dict())
    assert_same(back(tokens(4, 2)), model(tokens(4, 2)))
    small(dtype=dtype, **options).save(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "model.safetensors").read_bytes()
    # It is also a plain safetensors file of the parameters.
    other = small(dtype=dtype, rng=9, **options)
    other.load(tmp_path / "model.safetensors")
    assert_same(other.state_dict(), model.state_dict())


def test_a_word_model_keeps_its_vocabulary_in_the_file(tmp_path):
    vocabulary = WordVocabulary.from_text("naïve “words”\nof a text")
    LanguageModel(vocabulary, 2, 3).save(tmp_path / "m")
    assert LanguageModel.from_file(tmp_path / "m").vocabulary == vocabulary


def test_files_that_are_no_model_are_refused(tmp_path):
    path = tmp_path / "m"
    with pytest.raises(FileNotFoundError):
        LanguageModel.from_file(path)
    small().save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="m: damaged, or not a safetensors file"):
        LanguageModel.from_file(path)
    safetensors.numpy.save_file({"w": np.ones(2)}, path)
    with pytest.raises(ValueError, match="m: a safetensors file, but not a model that gpurnn wrote"):
        LanguageModel.from_file(path)


def test_config_is_json_and_makes_the_same_model():
    model = small(tied=True, dropout=0.25, cell="gru", update="state")
    config = json.loads(json.dumps(model.config()))
    assert repr(LanguageModel.from_config(config)) == repr(model)
    assert repr(model) == (
        "LanguageModel(5 characters, 6, 6, cell='gru', tied=True, update='state', dropout=0.25, "
        f"dtype='float64')  # {model.num_parameters} parameters\n"
        "  (T, B)     tokens\n"
        "  (T, B, 6)  Embedding(5, 6, dtype='float64')\n"
        "  (T, B, 6)  GRU(6, 6, update='state', dtype='float64')\n"
        "  (T, B, 5)  tied Dense: logits"
    )


def test_tied_weights_are_one_array_and_learn_from_both_sides():
    model = small(tied=True)
    assert "output.weight" not in model.params
    assert model.num_parameters == sum(p.size for p in model.params.values())
    _, pullback = model.vjp(np.array([[1]]))
    _, grads = pullback((np.eye(5)[3].reshape(1, 1, 5), None))
    used = np.abs(grads["embedding.weight"]).sum(axis=1) > 0
    assert used.tolist() == [False, True, False, True, False]  # row 1 as the input, row 3 as the output
    before = model(np.array([[2]]))[0][0, 0, 4]
    model.params["embedding.weight"][4] += 1.0
    assert model(np.array([[2]]))[0][0, 0, 4] != before


def test_a_tied_table_starts_with_rows_of_norm_one_and_a_free_one_with_entries_of_variance_one():
    vocabulary = CharVocabulary([chr(i) for i in range(40, 540)])
    tied = LanguageModel(vocabulary, 64, 64, tied=True).params["embedding.weight"]
    free = LanguageModel(vocabulary, 64, 64).params["embedding.weight"]
    # The mean square of n = 32000 normals has the standard deviation sqrt(2 / n); the tolerance is five of them.
    assert (tied**2).sum(axis=1).mean() == pytest.approx(1, rel=5 * math.sqrt(2 / 32000))
    assert (free**2).mean() == pytest.approx(1, rel=5 * math.sqrt(2 / 32000))


def test_moving_copies_the_parameters():
    model = small()
    moved = model.to(np)
    assert_same(moved.state_dict(), model.state_dict())
    moved.params["output.bias"][...] = 7
    assert not np.any(model.params["output.bias"] == 7)
    assert moved.vocabulary is model.vocabulary


def test_the_same_seed_makes_the_same_model_in_both_precisions():
    assert_same(small(rng=1).state_dict(), small(rng=np.random.default_rng(1)).state_dict())
    wide, narrow = small(rng=1).state_dict(), small(rng=1, dtype="float32").state_dict()
    for name in wide:
        np.testing.assert_allclose(narrow[name], wide[name], rtol=epsilon("float32"))


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_shared_code_runs_on_strict_arrays(strict_namespace, tmp_path, options):
    model, x, lengths = small(dropout=0.3, **options), tokens(5, 3), np.array([4, 0, 2])
    other = model.to(strict_namespace)
    loss, state, grads = model.loss_and_gradients(x[:-1], x[1:], None, lengths, rng=1)
    found = other.loss_and_gradients(strict(x[:-1]), strict(x[1:]), None, strict(lengths), rng=1)
    assert_same(plain(found), (loss, state, grads))
    assert_same(plain(other.loss(strict(x[:-1]), strict(x[1:]))), model.loss(x[:-1], x[1:]))
    assert other.log_likelihood("abcabcd", window=3) == model.log_likelihood("abcabcd", window=3)
    assert other.perplexity(strict(np.array([1, 2]))) == model.perplexity(np.array([1, 2]))
    assert other.sample(20, "ab", rng=4) == model.sample(20, "ab", rng=4)
    assert_same(plain(other.predict(["ab", "", strict(np.array([1]))])), model.predict(["ab", "", "a"]))
    other.save(tmp_path / "m")
    assert_same(LanguageModel.from_file(tmp_path / "m").state_dict(), model.state_dict())


def test_fit_learns_a_text_or_many_and_predict_gives_what_comes_next():
    vocabulary = CharVocabulary.from_text("abc")
    model = LanguageModel(vocabulary, 4, 16, dtype="float64")
    model.fit("abc" * 60, window=9, batch_size=4, epochs=30, optimizer=Adam(0.02), validation="abc" * 20)
    assert model.trainer_.history[-1]["validation_bits_per_character"] < 0.2
    chances = model.predict(["ab", "bca", ""])
    assert chances.shape == (3, 4)
    np.testing.assert_allclose(chances.sum(axis=1), 1.0, atol=1e-12)
    assert [vocabulary.decode([c]) for c in chances[:2].argmax(axis=1)] == ["c", "b"]
    logits, _ = model(np.concatenate([[0], vocabulary.encode("ab")])[:, None])
    np.testing.assert_allclose(np.log(chances[0]) - np.log(chances[0, 0]), logits[-1, 0] - logits[-1, 0, 0], atol=1e-12)

    other = LanguageModel(vocabulary, 4, 16, dtype="float64")
    trainer = other.fit(["abc", "bca", "cab", "abcab"], batch_size=2, epochs=60, optimizer=Adam(0.02), patience=60,
                        validation=["abcabc"]).trainer_  # fmt: skip
    assert trainer.history[0]["step"] < trainer.step == 120
    assert other.sample(3, prompt="a", temperature=0) == "bca"


def test_fit_and_predict_refuse():
    model = small()
    with pytest.raises(ValueError, match="predict: texts is empty"):
        model.predict([])
    with pytest.raises(TypeError, match="fit: X is None"):
        model.fit(None, epochs=1)
    with pytest.raises(TypeError, match="y is given, expected None"):
        model.fit("abcd" * 100, ["x"], epochs=1, window=5, batch_size=2)


def test_a_file_is_read_as_the_kind_of_model_that_it_holds(tmp_path):
    class Other(LanguageModel):
        pass

    small().save(tmp_path / "m")
    assert type(load(tmp_path / "m")) is LanguageModel
    with pytest.raises(ValueError, match=r"m: holds a LanguageModel, expected a test_language_model.Other"):
        Other.from_file(tmp_path / "m")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_long_prompt_needs_no_logits_of_its_tokens(dtype):
    V, T = 3000, 2000
    model = LanguageModel(WordVocabulary([f"w{i}" for i in range(V)]), 4, 4, dtype=dtype)
    prompt = " ".join(["w1", "w2"] * (T // 2))
    of_logits = T * V * np.dtype(dtype).itemsize
    assert most_bytes(lambda: model.sample(2, prompt, top_p=0.9)) < of_logits / 10
    assert most_bytes(lambda: model.predict([prompt, "w1"])) < of_logits / 10


@pytest.mark.usefixtures("each_wing")
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_prompt_that_is_read_in_pieces_is_that_which_is_read_at_once(options, monkeypatch):
    model = small(**options)
    texts = ["abcdabcdab", "", "a", "dcba", "bb", "abcdabcd"]
    whole, drawn = model.predict(texts), model.sample(5, texts[0], rng=1)
    for i, text in enumerate(texts):
        logits, _ = model(np.concatenate([[0], LETTERS.encode(text)])[:, None])
        expected = np.exp(logits[-1, 0] - logits[-1, 0].max())
        np.testing.assert_allclose(whole[i], expected / expected.sum(), rtol=1e-12)
    for at_a_time in (1, 6, 13):
        monkeypatch.setattr(language_model, "_READ", at_a_time)
        np.testing.assert_allclose(model.predict(texts), whole, rtol=1e-12)
        assert model.sample(5, texts[0], rng=1) == drawn


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint32", "int64", "uint64"])
def test_tokens_of_each_integer_dtype_are_the_same_text(dtype):
    model = small()
    numbers = LETTERS.encode("abcd").astype(dtype)
    assert_same(model.predict([numbers, "a"]), model.predict(["abcd", "a"]))
    assert model.log_likelihood(numbers) == model.log_likelihood("abcd")
    assert model.perplexity(numbers) == model.perplexity("abcd")


def test_the_perplexity_of_a_bad_model_is_infinite():
    model = biased(1e5 * np.arange(5))
    assert model.perplexity("abcabc") == math.inf
    assert model.log_likelihood("a") == -3e5
    assert biased([0.0, -math.inf, 0.0, 0.0, 0.0]).perplexity("ba") == math.inf
    assert METRICS["perplexity"][1](1e5) == math.inf
    assert METRICS["perplexity"][1](2.0) == math.exp(2.0)
    assert METRICS["bits_per_character"][1](1e5) == pytest.approx(1e5 / math.log(2))


@pytest.mark.usefixtures("each_wing")
@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("embedding.weight", np.nan),
        ("recurrent.weight_hh_l0", np.nan),
        ("output.bias", np.nan),
        ("output.bias", np.inf),
    ],
)
def test_parameters_that_are_not_finite_give_no_tokens(part, value):
    model = small()
    model.params[part][0] = value
    blame = f"not finite: parameter {part} holds NaN or infinity"
    for options in ({}, {"temperature": 0}, {"top_k": 2}, {"top_p": 0.5}):
        with pytest.raises(FloatingPointError, match=rf"LanguageModel.sample: the logits of token 0 are {blame}"):
            model.sample(3, "ab", **options)
    with pytest.raises(FloatingPointError, match=rf"LanguageModel.predict: the logits for texts\[0\] are {blame}"):
        model.predict(["ab", "b"])
    for name in ("log_likelihood", "perplexity"):
        with pytest.raises(FloatingPointError, match=rf"LanguageModel.{name}: the logits are {blame}"):
            getattr(model, name)("ab" * 20, window=3)


def test_a_forbidden_token_is_not_drawn():
    model = biased([0.0, 0.0, -np.inf, 0.0, 0.0])
    assert set(model.sample(200)) == {"a", "c", "d"}
    assert model.predict([""])[0, 2] == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.predict("abc"), "predict: texts is a str, expected a sequence of str or of (T,) integer arrays"),
        (lambda m: m.predict(None), "predict: texts is None"),
        (lambda m: m.predict(["a", None]), "predict: texts[1] is None"),
        (lambda m: m.predict(["a", np.array([1.0])]), "predict: texts[1] has dtype float64"),
        (lambda m: m.predict(["a", np.array([1, 9])]), "predict: texts[1] holds 9, expected 0 ... 4"),
        (lambda m: m.log_likelihood(np.array([-1])), "log_likelihood: text holds -1, expected 0 ... 4"),
        (lambda m: m.sample(1, np.array([1])), "sample: prompt is an array of shape (1,), expected a str"),
        (lambda m: m.fit([], epochs=1), "fit: X is empty, expected at least one text"),
        (lambda m: m.fit(["ab", "a"], epochs=1), "fit: X[1] has 1 tokens, expected at least 2"),
        (lambda m: m.fit(["ab"], validation=["", "a"], epochs=1), "fit: validation[0] has 0 tokens, expected at least"),
        (
            lambda m: m.fit("abc", epochs=1, batch_size=2),
            "fit: X has 3 tokens, expected at least batch_size (window + 1) = 4; lower batch_size or window",
        ),
        (lambda m: m.fit("", epochs=1, batch_size=1, window=1), "fit: X has 0 tokens, expected at least"),
        (lambda m: m.fit("abcd" * 9, epochs=1, batch_size=0), "fit: batch_size is 0, expected at least 1"),
        (lambda m: m.fit("abcd" * 9, epochs=1, window=0), "fit: window is 0, expected at least 1"),
        (lambda m: m.fit(3, epochs=1), "fit: X is an int, expected a sequence of str"),
    ],
)
def test_texts_that_are_rejected_by_their_names(call, message):
    with pytest.raises((TypeError, ValueError, IndexError), match=re.escape(f"LanguageModel.{message}")):
        call(small())


def test_short_texts():
    model = small()
    assert model.log_likelihood("") == 0
    assert model.perplexity("a") == pytest.approx(math.exp(-model.log_likelihood("a")))
    assert len(model.sample(1, "")) == 1
    model.fit("ab", epochs=1, batch_size=1, window=1)
    model.fit(["ab"], epochs=1)


@pytest.mark.usefixtures("each_wing")
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_what_is_past_a_length_need_not_be_a_token(options):
    model, lengths = small(**options), np.array([3, 0, 2])
    tokens, past = np.array([[1, 2, 3], [2, 3, 4], [4, 1, 2]]), np.arange(3)[:, None] >= lengths

    def results(nothing):
        inputs, targets = np.where(past, nothing, tokens), np.where(past, nothing, tokens[::-1])
        (logits, state), pull = model.vjp(inputs, None, lengths)
        yield logits, state, pull((np.ones_like(logits), None))
        yield model(inputs, None, lengths)
        yield model.loss(inputs, targets, None, lengths)
        yield model.loss_and_gradients(inputs, targets, None, lengths, rng=1)

    for nothing in (-1, -100, 99):
        for a, b in zip(results(nothing), results(0), strict=True):
            assert_same(a, b)


def test_a_list_of_tokens_is_told_from_a_list_of_texts():
    model = LanguageModel(CharVocabulary.from_text("abc"), 3, 4)
    message = (
        r"LanguageModel\.fit: X is a list of numbers, expected texts or arrays of tokens; .* pass numpy\.asarray\(X\)"
    )
    with pytest.raises(TypeError, match=message):
        model.fit([1, 2, 3] * 100, steps=1)
