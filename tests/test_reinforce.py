"""Policy gradients, against the exact gradient of J where all sequences can be counted; then a policy learns."""

import itertools
import math
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
from strict_wing import Array, plain, strict
from tolerance import assert_all_close, assert_same, check_gradients

import gpurnn
from gpurnn import GRU, Dense, Embedding, _dispatch, cross_entropy
from gpurnn.optimizers import SGD, Adam
from gpurnn.training import PaddedBatches, Reinforce, Trainer, evaluate, pad

# All combinations of options are drawn, including those without effect.
pytestmark = pytest.mark.filterwarnings("ignore:.* has no effect:UserWarning")

END, SYMBOLS = 1, (1, 2, 3)


class Translator:
    """GRU to GRU: pi(y_t | y_1 .. y_{t-1}, x) over the symbols 1 (the end), 2 and 3."""

    parts = ("embedding", "encoder", "decoder", "output")

    def __init__(self, hidden_size=3, dtype="float64"):
        self.embedding = Embedding(4, 2, dtype=dtype, rng=1)
        self.encoder = GRU(2, hidden_size, dtype=dtype, rng=2)
        self.decoder = GRU(2, hidden_size, dtype=dtype, rng=3)
        self.output = Dense(hidden_size, len(SYMBOLS), dtype=dtype, rng=4)

    @property
    def params(self):
        return {f"{part}.{n}": p for part in self.parts for n, p in getattr(self, part).params.items()}

    def to(self, xp):
        moved = Translator()
        for part in self.parts:
            setattr(moved, part, getattr(self, part).to(xp))
        return moved

    def sample(self, source, lengths=None, *, max_length, temperature=1.0, rng):
        rng, xp = np.random.default_rng(rng), _dispatch.namespace("sample", source=source)
        _, state = self.encoder(self.embedding(source), None, lengths)
        B = source.shape[1]
        token, drawn, going, counts = np.zeros(B, np.int32), [], np.ones(B, bool), np.zeros(B, np.int32)
        for _ in range(max_length):
            y, state = self.decoder(self.embedding(_dispatch.from_numpy(xp, token[None])), state)
            logits = _dispatch.to_numpy(self.output(y))[0]
            noise = rng.gumbel(size=logits.shape) if temperature else 0.0
            token = np.where(going, 1 + (logits + noise).argmax(axis=1), 0).astype(np.int32)
            drawn.append(token)
            counts += going
            going &= token != END
        return _dispatch.from_numpy(xp, np.stack(drawn)), _dispatch.from_numpy(xp, counts)

    def log_likelihood_vjp(self, source, targets, lengths=None, rng=None):
        assert rng is None  # the sampling used no dropout
        tokens, token_lengths = targets
        xp, device = _dispatch.namespace("log_likelihood", source=source), _dispatch.device(source)
        first = xp.zeros((1, tokens.shape[1]), dtype=tokens.dtype, device=device)
        x, pull_x = self.embedding.vjp(source)
        fed, pull_fed = self.embedding.vjp(xp.concat([first, tokens[:-1, :]]))
        (_, h), pull_encoder = self.encoder.vjp(x, None, lengths)
        (y, _), pull_decoder = self.decoder.vjp(fed, h)
        logits, pull_output = self.output.vjp(y)
        exists = xp.arange(tokens.shape[0], dtype=xp.int32, device=device)[:, None] < token_lengths[None, :]
        nats, pull_nats = cross_entropy.vjp(logits, tokens - 1, mask=exists, reduction="none")

        def pullback(d):
            dy, output = pull_output(pull_nats(xp.broadcast_to(-d, nats.shape))[0])
            (dfed, dh), decoder = pull_decoder((dy, None))
            (dx, _), encoder = pull_encoder((None, dh))
            one, other = pull_fed(dfed)[1], pull_x(dx)[1]
            embedding = {name: one[name] + other[name] for name in one}
            of_parts = zip(self.parts, (embedding, encoder, decoder, output), strict=True)
            return None, {f"{part}.{name}": g for part, grads in of_parts for name, g in grads.items()}

        return -xp.sum(nats, axis=0), pullback


class Scripted(Translator):
    """Samples the sequences of its script; greedy decoding is its own."""

    def sample(self, source, lengths=None, *, max_length, temperature=1.0, rng):
        if temperature == 0:
            return super().sample(source, lengths, max_length=max_length, temperature=0, rng=rng)
        assert len(self.script) == source.shape[1]
        return pad([np.array(y, np.int32) for y in self.script])


def outcomes(max_length):
    """Every sequence that can be drawn."""
    found = []
    for length in range(1, max_length + 1):
        for body in itertools.product((2, 3), repeat=length - 1):
            found += [(*body, end) for end in ((1, 2, 3) if length == max_length else (1,))]
    return found


def reward(tokens, reference):
    matches = sum(a == b for a, b in zip(tokens, reference, strict=False))
    return matches - 0.3 * abs(len(tokens) - len(reference)) + 1.5 * (tokens == reference)


SOURCES = [np.array([2, 3, 3], np.int32), np.array([3], np.int32)]
REFERENCES = [np.array([3, 1], np.int32), np.array([2, 3, 1], np.int32)]


def pairs(count):
    batch = PaddedBatches(SOURCES[:count], count, REFERENCES[:count], own_lengths=True, shuffle=False).batch(0, 0)
    return batch.inputs, batch.targets, batch.lengths


def log_likelihoods(policy, source, length, sequences):
    """log pi of every sequence given one source, and the pullback."""
    tokens = pad([np.array(y, np.int32) for y in sequences])
    repeated = np.repeat(source[:, None], len(sequences), axis=1)
    return policy.log_likelihood_vjp(repeated, tokens, np.full(len(sequences), length, np.int32))


def exact(policy, B, max_length, beta):
    """J + beta H, averaged over the sources, and its gradient, from all sequences."""
    value, sequences = 0.0, outcomes(max_length)
    grads = {name: np.zeros_like(p) for name, p in policy.params.items()}
    for source, reference in zip(SOURCES[:B], REFERENCES[:B], strict=True):
        log_p, pullback = log_likelihoods(policy, source, len(source), sequences)
        p, R = np.exp(log_p), np.array([reward(list(y), reference.tolist()) for y in sequences])
        assert p.sum() == pytest.approx(1, rel=1e-12)
        value += (p * (R - beta * log_p)).sum() / B
        # d(p log p) = p (log p + 1) d(log p)
        for name, g in pullback(p * (R - beta * (log_p + 1)) / B)[1].items():
            grads[name] += g
    return value, grads


def estimates(model, B, max_length):
    """The probability, loss and gradients of every possible draw for a batch."""
    inputs, targets, lengths = pairs(B)
    sequences = outcomes(max_length)
    log_p = [log_likelihoods(model.policy, x, len(x), sequences)[0] for x in SOURCES[:B]]
    before = model.training_state()
    for drawn in itertools.product(range(len(sequences)), repeat=B * model.samples):
        model.policy.script = [sequences[i] for i in drawn]
        model.load_training_state(before)
        loss, state, grads = model.loss_and_gradients(inputs, targets, None, lengths, rng=0)
        assert state is None
        yield math.exp(sum(log_p[k % B][i] for k, i in enumerate(drawn))), float(loss), grads


CASES = [
    (None, 1, 1, 3, 0.0),
    (None, 1, 2, 2, 0.0),
    (None, 2, 2, 1, 0.0),
    ("running_mean", 1, 2, 2, 0.0),
    ("leave_one_out", 2, 1, 2, 0.0),
    ("leave_one_out", 2, 2, 1, 0.0),
    ("leave_one_out", 3, 1, 1, 0.0),
    ("self_critical", 1, 2, 2, 0.0),
    ("self_critical", 2, 2, 1, 0.0),
    *((baseline, 2, 1, 2, 0.4) for baseline in (None, "running_mean", "leave_one_out", "self_critical")),
]


def scripted(baseline, samples, max_length, beta):
    model = Reinforce(
        Scripted(), reward, max_length=max_length, baseline=baseline, samples=samples, entropy=beta, decay=0.75
    )
    model.load_training_state({"sum": 0.6, "weight": 0.25})
    return model


@pytest.mark.parametrize(("baseline", "samples", "B", "max_length", "beta"), CASES)
def test_the_estimate_is_unbiased(baseline, samples, B, max_length, beta):
    model = scripted(baseline, samples, max_length, beta)
    J, dJ = exact(model.policy, B, max_length, beta)
    total, mean_loss, mean_grads = 0.0, 0.0, {name: np.zeros_like(p) for name, p in model.params.items()}
    magnitude = 0.0
    for p, loss, grads in estimates(model, B, max_length):
        total += p
        mean_loss += p * loss
        for name, g in grads.items():
            mean_grads[name] += p * g
            magnitude = max(magnitude, np.abs(g).max())
    assert total == pytest.approx(1, rel=1e-12)
    assert -mean_loss == pytest.approx(J, rel=1e-12)
    assert_all_close({name: -g for name, g in mean_grads.items()}, dJ, terms=2000, magnitude=magnitude)


@pytest.mark.parametrize("beta", [0.0, 0.4])
def test_the_exact_gradient_is_that_of_central_differences(beta):
    policy = Translator()
    inputs = {name: p.copy() for name, p in policy.params.items()}
    _, grads = exact(policy, 2, 2, beta)

    def outputs(values):
        for name, p in policy.params.items():
            p[...] = values[name]
        return [np.array([exact(policy, 2, 2, beta)[0]])]

    check_gradients(outputs, inputs, [np.ones(1)], grads, seed=0)


def variance(baseline, samples=1, running=0.0):
    """The variance of the estimate, summed over parameters, times the number of sequences drawn; rewards far from 0."""
    model = Reinforce(
        Scripted(), lambda y, reference: 5 + reward(y, reference), max_length=2, baseline=baseline, samples=samples
    )
    model.load_training_state({"sum": running, "weight": 1.0})
    rows = [
        (p, np.concatenate([g.ravel() for g in grads.values()])) for p, _, grads in estimates(model, B=1, max_length=2)
    ]
    mean = sum(p * g for p, g in rows)
    return samples * sum(p * float(((g - mean) ** 2).sum()) for p, g in rows)


def test_baselines_lower_the_variance():
    without = variance(None)
    for options in (("running_mean", 1, 5.0), ("leave_one_out", 2), ("self_critical",)):
        assert variance(*options) < without / 3


def test_the_running_mean_is_of_the_batches_before():
    model = scripted("running_mean", 1, 2, 0.0)
    model.load_training_state({"sum": 0.0, "weight": 0.0})
    inputs, targets, lengths = pairs(2)
    scripts = [[(3, 1), (2, 2)], [(1,), (3, 3)], [(2, 1), (2, 3)]]
    means, found = [], []
    for script in scripts:
        model.policy.script = script
        found.append(model.loss_and_gradients(inputs, targets, None, lengths, rng=0)[2])
        rewards = [reward(list(y), r.tolist()) for y, r in zip(script, REFERENCES, strict=True)]
        means.append(sum(rewards) / 2)
    for i, (script, grads) in enumerate(zip(scripts, found, strict=True)):
        weights = [0.75 ** (i - 1 - k) for k in range(i)]
        b = np.dot(weights, means[:i]) / sum(weights) if i else 0.0
        tokens = pad([np.array(y, np.int32) for y in script])
        R = np.array([reward(list(y), r.tolist()) for y, r in zip(script, REFERENCES, strict=True)])
        expected = model.policy.log_likelihood_vjp(inputs, tokens, lengths)[1](-(R - b) / 2)[1]
        assert_all_close(grads, expected, terms=100)


# --- training ---


def task(count=40, **options):
    """The first symbol of the source, and the end."""
    rng = np.random.default_rng(0)
    sources = [rng.integers(2, 4, rng.integers(1, 4), dtype=np.int32) for _ in range(count)]
    references = [np.array([x[0], END], np.int32) for x in sources]
    return PaddedBatches(sources, 20, references, own_lengths=True, **options)


def exact_match(tokens, reference):
    return tokens == reference


@pytest.mark.parametrize(
    "options",
    [{}, {"baseline": "leave_one_out", "samples": 4}, {"baseline": "self_critical", "entropy": 0.01}],
    ids=str,
)
def test_the_reward_rises(options):
    model = Reinforce(Translator(8), exact_match, max_length=4, **options)
    before = evaluate(model, task())
    run = Trainer(model, task(), Adam(0.02), steps=150, clip_norm=1.0, progress=False, rng=1)
    run.train()
    assert before > -0.6  # the likeliest sequences are seldom right
    assert evaluate(model, task()) == -1.0
    assert run.history[-1]["loss"] < -0.9 < -0.4 < run.history[0]["loss"]


@pytest.mark.parametrize("options", [{}, {"baseline": "leave_one_out", "samples": 2}], ids=str)
def test_a_resumed_run_is_the_same_run(tmp_path, options):
    def run(steps, directory):
        model = Reinforce(Translator(), reward, max_length=3, **options)
        return Trainer(model, task(), SGD(0.1), steps=steps, directory=tmp_path / directory, progress=False, rng=1)

    whole = run(9, "whole")
    whole.train()
    run(4, "cut").train()
    resumed = run(9, "cut")
    resumed.resume()
    resumed.train()
    assert_same(resumed.model.params, whole.model.params)
    assert resumed.model.training_state() == whole.model.training_state()
    assert (resumed.model.training_state()["weight"] > 0) is (not options)


def test_evaluation_is_the_reward_of_the_likeliest():
    model = Reinforce(Translator(), reward, max_length=3)
    inputs, targets, lengths = pairs(2)
    loss, state = model.loss(inputs, targets, None, lengths)
    expected = []
    for source, reference in zip(SOURCES, REFERENCES, strict=True):
        tokens = []
        while len(tokens) < 3 and END not in tokens:
            candidates = [[*tokens, symbol] for symbol in SYMBOLS]
            tokens = candidates[int(log_likelihoods(model.policy, source, len(source), candidates)[0].argmax())]
        expected.append(reward(tokens, reference.tolist()))
    assert float(loss) == pytest.approx(-np.mean(expected), rel=1e-15)
    assert state is None


def test_strict_arrays_give_the_same(strict_namespace):
    for options in ({}, {"baseline": "leave_one_out", "samples": 2, "entropy": 0.1}, {"baseline": "self_critical"}):
        policy = Translator()
        ours = Reinforce(policy, reward, max_length=3, **options)
        theirs = Reinforce(policy.to(strict_namespace), reward, max_length=3, **options)
        inputs, targets, lengths = pairs(2)
        strict_pairs = strict((inputs, targets, None, lengths))
        expected = ours.loss_and_gradients(inputs, targets, None, lengths, rng=5)
        found = theirs.loss_and_gradients(*strict_pairs, rng=5)
        assert isinstance(found[0], Array)
        assert_same(plain(found), expected)
        assert_same(plain(theirs.loss(*strict_pairs)), ours.loss(inputs, targets, None, lengths))


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_either_wing_computes_it(each_wing, dtype):
    model = Reinforce(Translator(dtype=dtype), reward, max_length=2, baseline="leave_one_out", samples=3)
    inputs, targets, lengths = pairs(2)
    loss, _, grads = model.loss_and_gradients(inputs, targets, None, lengths, rng=3)
    with gpurnn.use("reference"):
        expected_loss, _, expected = model.loss_and_gradients(inputs, targets, None, lengths, rng=3)
    assert float(loss) == float(expected_loss)
    assert all(g.dtype == dtype for g in grads.values())
    assert any(g.any() for g in grads.values())
    assert_all_close(grads, expected, terms=200)


# --- rejected arguments ---


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"policy": 3}, r"policy is an int without \['params', 'sample', 'log_likelihood_vjp'\], expected a Policy"),
        ({"reward": "bleu"}, "reward is 'bleu', expected a function of tokens and reference"),
        ({"max_length": 0}, "max_length is 0, expected at least 1"),
        ({"baseline": "mean"}, "baseline is 'mean', expected one of 'running_mean', 'leave_one_out', 'self_critical'"),
        ({"baseline": "leave_one_out"}, "samples is 1, expected at least 2, as baseline is 'leave_one_out'"),
        ({"samples": 0}, "samples is 0, expected at least 1"),
        ({"entropy": -1}, "entropy is -1, expected a number of at least 0"),
        ({"decay": 1.0}, "decay is 1.0, expected a probability"),
    ],
)
def test_options_are_refused(options, message):
    options = {"policy": Translator(), "reward": reward, "max_length": 2, **options}
    with pytest.raises((TypeError, ValueError), match=f"Reinforce: {message}"):
        Reinforce(options.pop("policy"), options.pop("reward"), **options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rng": None}, "rng is None, expected an int seed or a numpy.random.Generator"),
        ({"state": np.zeros(2)}, "state is an array of shape .*, expected None: no batch continues another"),
        ({"targets": np.zeros((2, 2), int)}, "targets is an array of shape .*, expected the pair of references"),
        ({"targets": (np.zeros((2, 2)), np.ones(2, int))}, "references has dtype float64, expected an integer dtype"),
        (
            {"targets": (np.zeros((2, 2), int), np.ones(3, int))},
            r"reference_lengths has shape \(3,\), expected \(B,\) = \(2,\)",
        ),
        ({"targets": (np.zeros((2, 3), int), np.ones(3, int))}, r"inputs has shape \(3, 2\), expected .*B = 3"),
        (
            {"targets": (np.zeros((2, 2), int), np.array([1, 3]))},
            "reference_lengths holds 1 ... 3, expected 0 ... T",
        ),
        ({"targets": (np.zeros((2, 2), int), np.array([-1, 1]))}, "reference_lengths holds -1 ... 1, expected 0 ... T"),
        ({"inputs": None}, "inputs is None, expected an array"),
        (
            {"inputs": np.zeros((3, 0), int), "targets": (np.zeros((2, 0), int), np.ones(0, int))},
            r"references has shape \(2, 0\), expected at least one",
        ),
    ],
)
def test_arguments_are_refused(change, message):
    inputs, targets, lengths = pairs(2)
    arguments = {"inputs": inputs, "targets": targets, "lengths": lengths, "rng": 0, **change}
    with pytest.raises((TypeError, ValueError), match=f"Reinforce: {message}"):
        Reinforce(Translator(), reward, max_length=2).loss_and_gradients(**arguments)


@pytest.mark.parametrize("value", [math.nan, math.inf, None, "1.5", 1j, [1.0], np.ones(2)], ids=repr)
def test_a_reward_that_is_no_number_is_refused(value):
    inputs, targets, lengths = pairs(2)
    with pytest.raises((ValueError, TypeError), match=r"Reinforce: a reward is .*, expected a finite number"):
        Reinforce(Translator(), lambda *_: value, max_length=2).loss(inputs, targets, None, lengths)


@pytest.mark.parametrize("value", [True, np.True_, 1, np.float32(1), np.array(1.0), Fraction(1), Decimal(1)], ids=repr)
def test_a_reward_is_a_number_of_any_kind(value):
    inputs, targets, lengths = pairs(2)
    assert Reinforce(Translator(), lambda *_: value, max_length=2).loss(inputs, targets, None, lengths)[0] == -1


@pytest.mark.parametrize(
    "state", [None, {}, {"sum": 1.0}, {"sum": 1.0, "weight": math.nan}, {"sum": 1.0, "weight": "a"}]
)
def test_a_state_that_is_none_of_its_own_is_refused(state):
    model = Reinforce(Translator(), reward, max_length=2)
    before = model.training_state()
    with pytest.raises((ValueError, TypeError), match=r"Reinforce.*state"):
        model.load_training_state(state)
    assert model.training_state() == before
