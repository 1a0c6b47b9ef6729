"""Decoding of a model so small that all its sequences are known."""

import itertools
import math

import numpy as np
import pytest

from gpurnn.models import decoding

V, BEGIN, END, LONGEST = 4, 1, 2, 4


class Known:
    """A model of B rows. Its logits are a random function of the whole prefix, and its state is the prefixes."""

    def __init__(self, seed, B, sharpness=1.5):
        self.seed, self.B, self.sharpness = seed, B, sharpness

    def logits(self, row, prefix):
        return np.random.default_rng([self.seed, row, *prefix]).normal(size=V) * self.sharpness

    def looked(self, row, prefix):
        """The attention over three positions of the step after a prefix."""
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
        """All sequences that end within LONGEST tokens."""
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
    """The expected result is a search over lists, one row at a time, which never stops early."""
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
    # Of the two requested, the second ends a step later.
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
    # The tolerance is five standard deviations.
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
    assert decoding.draw(logits, Last()).tolist() == [3]
    assert decoding.draw(np.append(logits, [[-1e9, -np.inf]], axis=1), Last()).tolist() == [3]
    assert decoding.draw(logits, Last(), top_k=2).tolist() == [2]
    assert decoding.draw(logits, Last(), top_p=0.5).tolist() == [2]
    # 3 x 0.1 is rounded: the point may equal the total.
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


@pytest.mark.parametrize("seed", range(20))
def test_the_likeliest_are_those_of_a_stable_sort(seed):
    rng = np.random.default_rng(seed)
    for size in (1, 2, 7, 300):
        # Few distinct values make ties, including ties with the last value that belongs to the result.
        values = rng.integers(0, rng.integers(1, 9), (5, size)) / 4
        values[rng.random(values.shape) < 0.3] = -np.inf
        values[0] = -np.inf
        for k in (1, 2, 5, size, size + 3):
            expected = np.argsort(-values, axis=1, kind="stable")[:, :k]
            np.testing.assert_array_equal(decoding.likeliest(values, k), expected)


def sorted_draw(logits, rng, *, temperature=1.0, top_k=None, top_p=None):
    """A draw by its definition: sort all tokens, keep the first ones, and invert their distribution."""
    tokens = []
    for row, u in zip(logits, rng.random(len(logits)), strict=True):
        order = np.argsort(-row, kind="stable")[:top_k]
        p = np.exp((row[order] - row[order[0]]) / temperature)
        p /= p.sum()
        if top_p is not None:
            p[np.cumsum(p) - p >= top_p] = 0
        tokens.append(order[np.searchsorted(np.cumsum(p), u * p.sum(), side="right")])
    return tokens


@pytest.mark.parametrize(
    "options",
    [{"top_k": 5}, {"top_k": 1}, {"top_p": 0.3}, {"top_p": 0.999}, {"top_k": 700, "top_p": 0.8, "temperature": 3.0}],
)
@pytest.mark.parametrize("width", [0.01, 2.0])
def test_a_draw_from_the_likeliest_is_that_of_the_definition(options, width):
    """Includes a nucleus of more than 64 tokens, which takes more than one attempt to find."""
    logits = width * np.random.default_rng(1).normal(size=(40, 2000))
    found = decoding.draw(logits, np.random.default_rng(7), **options)
    assert found.tolist() == sorted_draw(logits, np.random.default_rng(7), **options)


def test_a_plain_draw_is_the_inverse_of_the_distribution_in_the_order_of_the_tokens():
    logits = np.random.default_rng(1).normal(size=(500, 30))
    expected = []
    for row, u in zip(np.exp(logits), np.random.default_rng(7).random(500), strict=True):
        expected.append(np.searchsorted(np.cumsum(row), u * row.sum(), side="right"))
    assert decoding.draw(logits, np.random.default_rng(7)).tolist() == expected
    assert decoding.draw(logits, np.random.default_rng(7), top_p=1.0, top_k=30).tolist() == expected


def test_decoding_sorts_no_vocabulary(monkeypatch):
    widths, argsort = [], np.argsort

    def counted(a, **options):
        widths.append(a.shape[-1])
        return argsort(a, **options)

    monkeypatch.setattr(np, "argsort", counted)
    logits = 3 * np.random.default_rng(0).normal(size=(4, 50_000))
    rng = np.random.default_rng(0)
    for options in ({}, {"temperature": 0}, {"top_k": 50}, {"top_p": 0.5}):
        decoding.draw(logits, rng, **options)
    decoding.beam_search(
        lambda last, state: (np.tile(logits, (len(last) // 4, 1)), None, state), None, 4, lambda state, rows: state,
        begin=BEGIN, end=END, max_length=3, beam_size=5,
    )  # fmt: skip
    assert max(widths) < 5000


class Broken(Known):
    """Gives logits that are not finite for one row, from one step on."""

    def __init__(self, value, row=1, step=1, **options):
        super().__init__(0, **options)
        self.value, self.row, self.after = value, row, step

    def logits(self, row, prefix):
        logits = super().logits(row, prefix)
        logits[END] -= 1  # so that greedy decoding continues
        if row == self.row and len(prefix) > self.after:
            logits[0] = self.value
            if self.value == -np.inf:
                logits[:] = -np.inf
        return logits


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("options", [{"temperature": 0}, {}, {"top_k": 2}, {"top_p": 0.5}])
def test_no_token_is_drawn_from_logits_that_are_not_finite(value, options):
    model = Broken(value, B=3, sharpness=0.1)
    arguments = {"begin": BEGIN, "end": END, "max_length": LONGEST, "rng": np.random.default_rng(1), **options}
    with pytest.raises(FloatingPointError, match="the logits of row 1 are not finite"):
        decoding.sample(model.step, model.start(), 3, **arguments)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_no_beam_goes_through_logits_that_are_not_finite(value):
    with pytest.raises(FloatingPointError, match="the logits of row 1 are not finite"):
        search(Broken(value, B=3, sharpness=0.1), beam_size=2)
    with pytest.raises(KeyError):
        search(Broken(value, B=3, sharpness=0.1), beam_size=2, fail=lambda row: KeyError(row))


def test_what_a_row_gives_after_its_end_is_not_read():
    class Ending(Broken):
        def logits(self, row, prefix):
            logits = super().logits(row, prefix)
            return np.array([0.0, 0.0, 50.0, 0.0]) if row == self.row and len(prefix) == 1 else logits

    tokens, lengths = decoding.sample(
        Ending(np.nan, B=3).step, Ending(np.nan, B=3).start(), 3, begin=BEGIN, end=END, max_length=LONGEST,
        rng=np.random.default_rng(1),
    )  # fmt: skip
    assert lengths[1] == 1
    assert tokens[0, 1] == END
    assert search(Ending(np.nan, B=3), beam_size=1, alpha=0.0)[1][0].tokens.tolist() == [END]


def test_each_row_has_its_own_limit():
    class Endless(Known):
        def logits(self, row, prefix):
            logits = super().logits(row, prefix)
            logits[END] = -math.inf
            return logits

    limits = np.array([3, 1, 4])
    model = Endless(0, B=3)
    arguments = {"begin": BEGIN, "end": END, "max_length": limits}
    tokens, lengths = decoding.sample(model.step, model.start(), 3, rng=np.random.default_rng(0), **arguments)
    assert lengths.tolist() == limits.tolist()
    assert tokens.shape == (4, 3)
    assert not tokens[1:, 1].any()
    together = decoding.beam_search(
        model.step, model.start(), 3, model.reorder, beam_size=3, best=2, alpha=0.7, **arguments
    )
    for row in range(3):
        alone = decoding.beam_search(
            model.step, [(row, ())], 1, model.reorder, beam_size=3, best=2, alpha=0.7, begin=BEGIN, end=END,
            max_length=int(limits[row]),
        )[0]  # fmt: skip
        assert [h.tokens.tolist() for h in together[row]] == [h.tokens.tolist() for h in alone]
        assert [h.score for h in together[row]] == [h.score for h in alone]


@pytest.mark.parametrize("seed", range(6))
def test_a_limit_of_one_row_changes_no_other(seed):
    model = Known(seed, B=3, sharpness=0.5)
    arguments = {"begin": BEGIN, "end": END, "beam_size": 2, "best": 2}
    mixed = decoding.beam_search(
        model.step, model.start(), 3, model.reorder, max_length=np.array([2, 4, 3]), **arguments
    )
    for row, limit in enumerate((2, 4, 3)):
        same = decoding.beam_search(model.step, model.start(), 3, model.reorder, max_length=limit, **arguments)[row]
        assert [h.tokens.tolist() for h in mixed[row]] == [h.tokens.tolist() for h in same]
