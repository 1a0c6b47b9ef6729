"""Decoding a model that is small enough to know all of its sequences."""

import itertools
import math

import numpy as np
import pytest

from gpurnn.models import decoding

V, BEGIN, END, LONGEST = 4, 1, 2, 4


class Known:
    """A model of B rows whose logits are a random function of the whole prefix; its state is the prefixes."""

    def __init__(self, seed, B, sharpness=1.5):
        self.seed, self.B, self.sharpness = seed, B, sharpness

    def logits(self, row, prefix):
        return np.random.default_rng([self.seed, row, *prefix]).normal(size=V) * self.sharpness

    def looked(self, row, prefix):
        """Where the step after a prefix looks, of three positions."""
        weights = np.random.default_rng([self.seed, 99, row, *prefix]).random(3)
        return weights / weights.sum()

    def start(self):
        return [(row, ()) for row in range(self.B)]

    def step(self, last, state):
        state = [(row, (*prefix, int(token))) for (row, prefix), token in zip(state, last, strict=True)]
        logits = np.array([self.logits(row, prefix) for row, prefix in state])
        return logits, np.array([self.looked(row, prefix) for row, prefix in state]), state

    @staticmethod
    def reorder(state, rows):
        return [state[row] for row in rows]

    def log_probability(self, row, tokens):
        prefix, total = (BEGIN,), 0.0
        for token in tokens:
            total += decoding.log_softmax(self.logits(row, prefix)[None])[0, token]
            prefix = (*prefix, token)
        return total

    def coverage(self, row, tokens):
        looked = sum(self.looked(row, (BEGIN, *tokens[:t])) for t in range(len(tokens)))
        return float(np.log(np.minimum(looked, 1)).sum())

    def sequences(self):
        """All that end within LONGEST tokens."""
        others = [token for token in range(V) if token != END]
        for n in range(LONGEST):
            for prefix in itertools.product(others, repeat=n):
                yield (*prefix, END)


def search(model, **options):
    return decoding.beam_search(
        model.step, model.start(), model.B, model.reorder, begin=BEGIN, end=END, max_length=LONGEST, **options
    )


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(("alpha", "beta"), [(0.0, 0.0), (0.6, 0.0), (1.0, 0.4)])
def test_a_beam_of_all_prefixes_finds_the_best_sequences(seed, alpha, beta):
    model = Known(seed, B=3)
    found = search(model, beam_size=3**LONGEST, alpha=alpha, beta=beta, best=4)
    for row in range(3):
        scored = {}
        for tokens in model.sequences():
            likely = model.log_probability(row, tokens)
            scored[tokens] = likely / ((5 + len(tokens)) / 6) ** alpha + beta * model.coverage(row, tokens)
        expected = sorted(scored, key=lambda tokens: -scored[tokens])[:4]
        assert [tuple(h.tokens.tolist()) for h in found[row]] == expected
        for hypothesis, tokens in zip(found[row], expected, strict=True):
            assert hypothesis.score == pytest.approx(scored[tokens], rel=1e-12)
            assert hypothesis.log_probability == pytest.approx(model.log_probability(row, tokens), rel=1e-12)
            assert hypothesis.tokens.dtype == np.int32


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(("alpha", "beta"), [(0.6, 0.0), (1.0, 0.4)])
@pytest.mark.parametrize("beam_size", [1, 2, 3])
def test_a_narrow_beam_keeps_its_likeliest_prefixes(seed, alpha, beta, beam_size):
    """A search written with lists, of one row, which never stops early."""
    model = Known(seed, B=2, sharpness=1.0)
    found = search(model, beam_size=beam_size, alpha=alpha, beta=beta, best=beam_size)
    for row in range(2):
        prefixes, ended = [()], []
        for _ in range(LONGEST):
            longer = sorted(
                ((*prefix, token) for prefix in prefixes for token in range(V)),
                key=lambda tokens: -model.log_probability(row, tokens),
            )
            going = [tokens for tokens in longer if tokens[-1] != END]
            prefixes = going[:beam_size]
            last = longer.index(prefixes[-1])
            ended += [tokens for tokens in longer[:last] if tokens[-1] == END]

        def score(tokens, row=row):
            likely = model.log_probability(row, tokens)
            return likely / ((5 + len(tokens)) / 6) ** alpha + beta * model.coverage(row, tokens)

        expected = sorted(ended, key=lambda tokens: -score(tokens))[:beam_size]
        missing = beam_size - len(expected)
        expected = sorted([*expected, *prefixes[:missing]], key=lambda tokens: -score(tokens))
        assert [tuple(h.tokens.tolist()) for h in found[row]] == expected


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("beam_size", [1, 2, 5])
def test_rows_do_not_see_each_other(seed, beam_size):
    together = search(Known(seed, B=4), beam_size=beam_size, best=beam_size)
    for row in range(4):
        alone = Known(seed, B=1)
        alone.start = lambda row=row: [(row, ())]
        (found,) = search(alone, beam_size=beam_size, best=beam_size)
        assert [h.tokens.tolist() for h in found] == [h.tokens.tolist() for h in together[row]]
        assert [h.score for h in found] == [h.score for h in together[row]]


@pytest.mark.parametrize("seed", range(10))
def test_a_beam_of_one_is_greedy_decoding(seed):
    model = Known(seed, B=4)
    tokens, lengths = decoding.sample(
        model.step, model.start(), 4, begin=BEGIN, end=END, max_length=LONGEST, rng=np.random.default_rng(0),
        temperature=0,
    )  # fmt: skip
    for row, (hypothesis,) in enumerate(search(model, beam_size=1, alpha=0.0)):
        np.testing.assert_array_equal(hypothesis.tokens, tokens[: lengths[row], row])


def test_what_does_not_end_is_cut_short():
    class Endless(Known):
        def logits(self, row, prefix):
            logits = super().logits(row, prefix)
            logits[END] = -math.inf
            return logits

    for hypotheses in search(Endless(0, B=2), beam_size=3, best=2):
        assert [len(h.tokens) for h in hypotheses] == [LONGEST, LONGEST]
        assert hypotheses[0].score >= hypotheses[1].score
        assert END not in hypotheses[0].tokens


def test_the_search_stops_when_nothing_can_win_any_more():
    class Certain(Known):
        steps = 0

        def logits(self, row, prefix):
            return np.array([0.0, 0.0, 9.0, 0.0])

        def step(self, last, state):
            self.steps += 1
            return super().step(last, state)

    model = Certain(0, B=2)
    search(model, beam_size=2, alpha=0.6)
    assert model.steps == 1
    # Of two that are asked for, the second ends a step later.
    search(model, beam_size=2, alpha=0.6, best=2)
    assert model.steps == 3


@pytest.mark.parametrize(
    ("options", "kept"),
    [({}, [0, 1, 2, 3]), ({"top_k": 2}, [3, 0]), ({"top_p": 0.5}, [3, 0]), ({"top_p": 0.45}, [3, 0]),
     ({"top_p": 0.4}, [3]), ({"top_k": 3, "top_p": 1.0}, [3, 0, 1]), ({"temperature": 0}, [3])],
)  # fmt: skip
def test_frequencies_are_the_probabilities_of_what_is_kept(options, kept):
    p = np.array([0.3, 0.2, 0.09, 0.41])
    n = 20_000
    drawn = decoding.draw(np.log(np.tile(p, (n, 1))), np.random.default_rng(0), **options)
    expected = np.zeros(4)
    expected[kept] = p[kept] / p[kept].sum()
    found = np.bincount(drawn, minlength=4) / n
    # Five standard deviations.
    assert (np.abs(found - expected) <= 5 * np.sqrt(expected * (1 - expected) / n)).all()


def test_the_temperature_is_that_of_the_logits():
    logits = np.array([[0.5, -1.0, 2.0]])
    n = 20_000
    drawn = decoding.draw(np.tile(logits, (n, 1)), np.random.default_rng(0), temperature=2.0)
    expected = np.exp(decoding.log_softmax(logits / 2))[0]
    assert (np.abs(np.bincount(drawn) / n - expected) <= 5 * np.sqrt(expected * (1 - expected) / n)).all()


def test_the_largest_random_number_draws_what_is_kept():
    class Last:
        def random(self, n):
            return np.full(n, np.nextafter(1.0, 0.0))

    logits = np.log(np.array([[0.1, 0.2, 0.3, 0.4]]))
    assert decoding.draw(logits, Last()).tolist() == [0]
    assert decoding.draw(logits, Last(), top_k=2).tolist() == [2]
    assert decoding.draw(logits, Last(), top_p=0.5).tolist() == [2]
    # 3 x 0.1 rounds: the point may reach the whole.
    assert decoding.draw(np.zeros((1, 3)), Last(), temperature=0.1, top_p=0.5).tolist()[0] in (1,)


def test_samples_end_with_the_end_symbol_and_are_padded():
    model = Known(1, B=300, sharpness=0.5)
    tokens, lengths = decoding.sample(
        model.step, model.start(), 300, begin=BEGIN, end=END, max_length=LONGEST, rng=np.random.default_rng(0)
    )
    assert tokens.shape == (LONGEST, 300)
    assert tokens.dtype == lengths.dtype == np.int32
    for row, n in enumerate(lengths):
        assert END not in tokens[: n - 1, row]
        assert tokens[n - 1, row] == END or n == LONGEST
        assert not tokens[n:, row].any()
    assert {1, 2, 3, 4} == set(lengths.tolist())
