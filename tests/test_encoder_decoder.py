"""The encoder-decoder: PyTorch's numbers, gradients, every kind of teacher forcing, and what it learns."""

import golden
import numpy as np
import pytest
from strict_wing import plain, strict
from tolerance import assert_all_close, assert_golden, assert_same, bound, check_gradients, recurrence_terms

import gpurnn
from gpurnn import EncoderDecoder
from gpurnn.models import load
from gpurnn.training import PaddedBatches, Reinforce, Trainer, evaluate

KINDS = {
    "plain": {},
    "bridged-lstm": {"cell": "lstm", "bidirectional": True, "num_layers": 2, "encoder_layers": 1},
    "additive": {"attention": "additive", "bidirectional": True, "attention_size": 5},
    "general": {"attention": "general", "cell": "lstm", "num_layers": 2},
    "dot-fed": {"attention": "dot", "input_feeding": True, "cell": "rnn", "bridge": True},
    "additive-options": {
        "attention": "additive",
        "cell": "lstm",
        "cell_options": {"layer_norm": True, "zoneout": (0.2, 0.1)},
    },
}


def small(kind, V=6, **options):
    model = EncoderDecoder(7, V, 3, 4, **{"dtype": "float64", **KINDS[kind], **options})
    rng = np.random.default_rng(3)
    for p in model.params.values():
        p[...] = rng.normal(size=p.shape) / 2
    return model


def batch(seed=0, S=5, T=4, V=6):
    """Sources of lengths 5, 2, 1, and targets of lengths 4, 1, 3, each with its end symbol."""
    rng = np.random.default_rng(seed)
    lengths, target_lengths = np.array([S, 2, 1]), np.array([T, 1, T - 1])
    source, target = rng.integers(1, 7, (S, 3)), rng.integers(3, V, (T, 3))
    target[target_lengths - 1, np.arange(3)] = 2
    source[np.arange(S)[:, None] >= lengths] = 0
    target[np.arange(T)[:, None] >= target_lengths] = 0
    return source, (target, target_lengths), lengths


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("record", golden.family("custom", "seq2seq"), ids=lambda record: record["name"])
def test_golden(record, dtype, each_wing):
    a = golden.arrays("custom", record["name"], dtype)
    (V, E), (W, _), H = a["Esrc"].shape, a["Etgt"].shape, a["enc_Wh"].shape[1]
    model = EncoderDecoder(V, W, E, H, dtype=dtype, reset_after=True, update="state")
    names = {"source.weight": "Esrc", "target.weight": "Etgt", "output.weight": "Wo", "output.bias": "bo"}
    for part, prefix in (("encoder", "enc"), ("decoder", "dec")):
        for name, array in (("weight_ih", "Wx"), ("weight_hh", "Wh"), ("bias_ih", "bx"), ("bias_hh", "bh")):
            names[f"{part}.{name}_l0"] = f"{prefix}_{array}"
    model.load_state_dict({name: a[array] for name, array in names.items()})
    previous, expected = a["tgt"][:-1], a["tgt"][1:]
    (logits, weights), pull = model.vjp(a["src"], previous, a["src_len"])
    assert weights is None
    mask = np.arange(len(expected))[:, None] < a["tgt_len"]
    loss, pull_loss = gpurnn.cross_entropy.vjp(logits, expected, mask=mask)
    _, grads = pull((pull_loss(1.0)[0], None))
    terms = recurrence_terms(record["T"] + 8, record["N"], record["I"], record["H"], 4)
    assert_golden(logits, a["logits"], terms, "logits")
    assert_golden(np.asarray(loss), np.asarray(record["loss"]), terms, "loss")
    for name, array in names.items():
        assert_golden(grads[name], a[f"g_{array}"], terms, name)


@pytest.mark.parametrize("rng", [None, 5], ids=["evaluation", "dropout"])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients(kind, rng):
    model = small(kind, dropout=0.0 if rng is None else 0.4)
    source, (tokens, _), lengths = batch()
    previous = model._shifted(tokens)
    values = {name: p.copy() for name, p in model.params.items()}

    def run(given):
        for name, p in model.params.items():
            p[...] = given[name]
        return model.vjp(source, previous, lengths, rng)

    outputs, pull = run(values)
    outputs = [o for o in outputs if o is not None]
    draw = np.random.default_rng(1)
    cotangents = [draw.normal(size=o.shape) for o in outputs]
    given = (cotangents[0], cotangents[1] if len(cotangents) == 2 else None)
    _, grads = pull(given)
    assert_same(pull(given)[1], grads)
    check_gradients(lambda v: [o for o in run(v)[0] if o is not None], values, cotangents, grads, seed=2)


@pytest.mark.parametrize("kind", KINDS)
def test_dropout_acts_on_both_embeddings_between_layers_and_before_the_output(kind):
    model = small(kind, dropout=0.4)
    source, (tokens, _), lengths = batch()
    previous, rng = model._shifted(tokens), np.random.default_rng(5)
    drop = gpurnn.Dropout(0.4)
    (memory, final), _ = model.encoder.vjp(drop.vjp(model.source(source), rng)[0], None, lengths, rng=rng)
    y = drop.vjp(model.target(previous), rng)[0]
    looks = (memory, lengths) if model.decoder.attention else (None, None)
    (read, _, _), _ = model.decoder.vjp(y, looks[0], model._bridge(final)[0], looks[1], rng)
    assert_same(model.vjp(source, previous, lengths, 5)[0][0], model.output(drop.vjp(read, rng)[0]))


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_the_loss_and_of_the_log_likelihood(kind, each_wing):
    model = small(kind)
    source, targets, lengths = batch()
    values = {name: p.copy() for name, p in model.params.items()}

    def at(given):
        for name, p in model.params.items():
            p[...] = given[name]

    loss, state, grads = model.loss_and_gradients(source, targets, None, lengths)
    assert state is None
    assert_all_close(model.loss(source, targets, None, lengths)[0], loss, 400)
    likely, pull = model.log_likelihood_vjp(source, targets, lengths)
    assert_all_close(model.log_likelihood(source, targets, lengths), likely, 400)
    np.testing.assert_allclose(-likely.sum() / targets[1].sum(), loss, rtol=bound("float64", 400))
    nothing, total = pull(np.full(3, -1 / targets[1].sum()))
    assert nothing is None
    for name, gradient in grads.items():
        np.testing.assert_allclose(total[name], gradient, atol=1e-12)
    if each_wing == "reference":

        def losses(given):
            at(given)
            return [np.asarray(model.loss(source, targets, None, lengths)[0])]

        check_gradients(losses, values, [np.ones(())], grads, seed=2)


@pytest.mark.parametrize("kind", KINDS)
def test_padding_and_the_order_of_a_batch_change_nothing(kind):
    model = small(kind)
    source, (tokens, target_lengths), lengths = batch()
    loss, _, grads = model.loss_and_gradients(source, (tokens, target_lengths), None, lengths)
    wider = np.concatenate([source, np.full((3, 3), 6)]), np.concatenate([tokens, np.full((2, 3), 5)])
    other, _, grads_wider = model.loss_and_gradients(wider[0], (wider[1], target_lengths), None, lengths)
    turned = np.array([2, 0, 1])
    third, _, grads_turned = model.loss_and_gradients(
        source[:, turned], (tokens[:, turned], target_lengths[turned]), None, lengths[turned]
    )
    np.testing.assert_allclose([other, third], loss, rtol=bound("float64", 400))
    for name, gradient in grads.items():
        scale = np.abs(gradient).max()
        np.testing.assert_allclose(grads_wider[name], gradient, atol=scale * bound("float64", 400))
        np.testing.assert_allclose(grads_turned[name], gradient, atol=scale * bound("float64", 400))
    together = model.log_likelihood(source, (tokens, target_lengths), lengths)
    for row in range(3):
        S, T = lengths[row], target_lengths[row]
        alone = model.log_likelihood(source[:S, row : row + 1], (tokens[:T, row : row + 1], np.array([T])))
        np.testing.assert_allclose(alone, together[row], rtol=bound("float64", 400))


@pytest.mark.parametrize("kind", KINDS)
def test_free_running_reads_what_greedy_decoding_writes(kind):
    model = small(kind)
    source, (tokens, target_lengths), lengths = batch(T=6)
    written, _ = model.greedy(source, lengths, max_length=6)
    read = model._read(source, tokens, lengths, 0.0, None)
    assert (read[0] == model.begin).all()
    for row in range(3):
        ends = np.flatnonzero(written[:, row] == model.end)
        n = min(ends[0] + 1 if ends.size else len(written), len(read) - 1)
        np.testing.assert_array_equal(read[1 : n + 1, row], written[:n, row])
    # The gradients too are those of the loss with these tokens as inputs.
    loss, _, grads = model.loss_and_gradients(source, (tokens, target_lengths), None, lengths, teacher_forcing=0.0)
    mask = np.arange(6)[:, None] < target_lengths
    (logits, _), pull = model.vjp(source, read, lengths)
    expected, pull_loss = gpurnn.cross_entropy.vjp(logits, tokens, mask=mask)
    assert_same((loss, grads), (expected, pull((pull_loss(1.0)[0], None))[1]))


def test_scheduled_sampling_reads_each_target_with_its_probability():
    model = small("additive")
    rng = np.random.default_rng(0)
    B, T = 400, 6
    source, tokens = rng.integers(3, 7, (3, B)), np.full((T, B), 5)
    own = model._read(source, tokens, None, 0.0, None)
    assert (own[1:] != 5).mean() > 0.5  # enough to distinguish the two
    free = small("additive")
    free.output.params["bias"][5] = -100  # the model itself never chooses 5
    for share in (0.25, 0.75):
        read = free._read(source, tokens, None, share, np.random.default_rng(1))
        told = (read[1:] == 5).mean(axis=1)
        # Five standard deviations of a share of 400.
        assert (np.abs(told - share) < 5 * np.sqrt(share * (1 - share) / B)).all()
        assert_same(free._read(source, tokens, None, share, np.random.default_rng(1)), read)
    assert_same(free._read(source, tokens, None, 1.0, None), free._shifted(tokens))


def test_the_trainer_schedules_teacher_forcing():
    model, other = small("additive"), small("additive")
    source, (tokens, target_lengths), lengths = batch()
    sources = [source[:n, i] for i, n in enumerate(lengths)]
    targets = [tokens[:n, i] for i, n in enumerate(target_lengths)]
    data = PaddedBatches(sources, 3, targets, own_lengths=True, shuffle=False)
    seen = []

    def spy(inputs, targets, state=None, lengths=None, *, rng=None, teacher_forcing=1.0):
        seen.append(teacher_forcing)
        return EncoderDecoder.loss_and_gradients(
            model, inputs, targets, state, lengths, rng=rng, teacher_forcing=teacher_forcing
        )

    model.loss_and_gradients = spy
    model.fit(data, steps=3, optimizer=gpurnn.SGD(0.1), teacher_forcing=lambda step: 0.5**step)
    assert seen == [1.0, 0.5, 0.25]
    other.fit(data, steps=3, optimizer=gpurnn.SGD(0.1))
    assert any((p != other.params[name]).any() for name, p in model.params.items())


@pytest.mark.parametrize("kind", ["additive", "general", "dot-fed"])
def test_hypotheses_are_scored_by_likelihood_length_and_coverage(kind):
    model = small(kind)
    source, _, lengths = batch()
    found = model.beam_search(
        source, lengths, max_length=4, beam_size=5, length_penalty=0.9, coverage_penalty=0.3, best=5
    )  # fmt: skip
    assert {h.tokens[-1] == model.end for hypotheses in found for h in hypotheses} == {True, False}
    for row, hypotheses in enumerate(found):
        S, x = lengths[row], source[:, row : row + 1]
        for h in hypotheses:
            y = h.tokens[:, None], np.array([len(h.tokens)])
            (likely,) = model.log_likelihood(x, y, lengths[row : row + 1])
            looked = np.minimum(model.align(x, y, lengths[row : row + 1])[:, 0, :S].sum(axis=0), 1)
            score = likely / ((5 + len(h.tokens)) / 6) ** 0.9 + 0.3 * np.log(looked).sum()
            assert h.log_probability == pytest.approx(likely, rel=1e-12)
            assert h.score == pytest.approx(score, rel=1e-12)


@pytest.mark.parametrize("beam_size", [1, 2])
def test_what_is_cut_short_keeps_its_last_token(beam_size):
    model = small("additive")
    model.output.params["bias"][model.end] = -100
    (tokens,) = model.predict([np.array([3, 4])], max_length=3, beam_size=beam_size)
    assert len(tokens) == 3
    model.output.params["bias"][model.end] = 100
    (tokens,) = model.predict([np.array([3, 4])], max_length=3, beam_size=beam_size)
    assert len(tokens) == 0


def test_the_alignment_is_that_of_the_decoder():
    model = small("additive")
    source, targets, lengths = batch()
    weights = model.align(source, targets, lengths)
    assert weights.shape == (4, 3, 5)
    np.testing.assert_allclose(weights.sum(axis=2), 1, atol=1e-12)
    assert not weights[:, 2, 1:].any()
    with pytest.raises(ValueError, match="align: the model has no attention"):
        small("plain").align(source, targets, lengths)


@pytest.mark.parametrize("kind", KINDS)
def test_on_strict_arrays(kind, strict_namespace):
    model = small(kind, dropout=0.3)
    moved = model.to(strict_namespace)
    source, targets, lengths = batch()
    options = {"rng": 4, "teacher_forcing": 0.5}
    expected = model.loss_and_gradients(source, targets, None, lengths, **options)
    found = moved.loss_and_gradients(strict(source), strict(targets), None, strict(lengths), **options)
    assert_same(plain(found), expected)
    assert_same(
        plain(moved.sample(strict(source), strict(lengths), max_length=5, rng=1)),
        model.sample(source, lengths, max_length=5, rng=1),
    )
    likely, pull = moved.log_likelihood_vjp(strict(source), strict(targets), strict(lengths))
    expected_likely, expected_pull = model.log_likelihood_vjp(source, targets, lengths)
    assert_same(plain(likely), expected_likely)
    assert_same(plain(pull(likely)[1]), expected_pull(expected_likely)[1])
    best = moved.beam_search(strict(source), strict(lengths), max_length=4, beam_size=3)
    for a, b in zip(best, model.beam_search(source, lengths, max_length=4, beam_size=3), strict=True):
        np.testing.assert_array_equal(a[0].tokens, b[0].tokens)
    sources = [source[:n, i] for i, n in enumerate(lengths)]
    for a, b in zip(moved.predict(strict(sources)), model.predict(sources), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_holds_the_whole_model(tmp_path, kind):
    model = small(kind, dropout=0.25)
    model.save(tmp_path / "m")
    back = load(tmp_path / "m")
    assert repr(back) == repr(model)
    assert back.config() == model.config()
    assert_same(back.state_dict(), model.state_dict())
    source, targets, lengths = batch()
    assert_same(back.loss(source, targets, None, lengths), model.loss(source, targets, None, lengths))


def test_learns_to_reverse_and_looks_at_what_it_writes():
    rng = np.random.default_rng(0)
    sources = [rng.integers(3, 9, length) for length in rng.integers(1, 6, 600)]
    model = EncoderDecoder(9, 9, 12, 32, bidirectional=True, attention="additive", rng=1)
    trainer = model.fit(
        sources, [s[::-1] for s in sources], epochs=10, batch_size=30, optimizer=gpurnn.Adam(0.01),
        validation=(sources[:40], [s[::-1] for s in sources[:40]]),
    ).trainer_  # fmt: skip
    assert trainer.history[-1]["validation_loss"] < 0.05
    new = [rng.integers(3, 9, length) for length in rng.integers(1, 6, 100)]
    for beams in (1, 3):
        right = [np.array_equal(s[::-1], y) for s, y in zip(new, model.predict(new, beam_size=beams), strict=True)]
        assert np.mean(right) > 0.9
    source = np.array([3, 4, 5, 6, 7])[:, None]
    weights = model.align(source, (np.append(source[::-1], [[2]], axis=0), np.array([6])))
    assert (weights[:5, 0].argmax(axis=1) == np.arange(5)[::-1]).mean() >= 0.8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"begin": 2}, "begin and end are both 2"),
        ({"end": 9}, "end is 9, expected 1 ... target_symbols - 1 = 5"),
        ({"begin": 0}, "begin is 0"),
        ({"bidirectional": True, "bridge": False}, "bridge is False, expected True or None"),
        ({"bidirectional": True, "attention": "dot"}, "EncoderDecoder: attention is 'dot', expected 'general' or"),
        ({"attention": "cosine"}, "attention is 'cosine'"),
        ({"input_feeding": True}, "input_feeding is True, expected False"),
        ({"cell": "lstm", "leak": 0.5}, "leak is not an option of the cell 'lstm'"),
        ({"cell_options": {"peephole": True}}, "EncoderDecoder: peephole is not an option of the cell 'gru'"),
        ({"cell": "lstm", "cell_options": {"proj_size": 2}}, "EncoderDecoder: proj_size is 2, expected 0"),
        ({"dropout": 1.5}, "dropout is 1.5"),
    ],
)
def test_options_that_are_refused(options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        EncoderDecoder(7, 6, 3, 4, **options)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, s, t, n: m.loss(s, t[0]), r"targets is an array of shape .*, expected a pair \(tokens, lengths\)"),
        (lambda m, s, t, n: m.loss(s, (t[0], t[1][:2])), r"target_lengths has shape \(2,\), expected \(B,\) = \(3,\)"),
        (lambda m, s, t, n: m.loss(s, (t[0], t[1] + 1)), r"targets: lengths holds 2 ... 5, expected 0 ... T = 4"),
        (lambda m, s, t, n: m.loss(s, (t[0], -t[1])), r"targets: lengths holds -4 ... -1, expected 0 ... T = 4"),
        (
            lambda m, s, t, n: m.loss(s[:, :2], t, None, n[:2]),
            r"targets has shape \(4, 3\), expected \(T, B\) with the B = 2 of source",
        ),
        (lambda m, s, t, n: m(s[:, :2], t[0]), r"previous has shape \(4, 3\), expected \(T, B\) with the B = 2"),
        (lambda m, s, t, n: m.vjp(s[:, :2], t[0]), r"previous has shape \(4, 3\), expected \(T, B\) with the B = 2"),
        (lambda m, s, t, n: m.log_likelihood_vjp(s, t, n)[1](None), "dlog_probs is None"),
        (
            lambda m, s, t, n: m.log_likelihood_vjp(s, t, n)[1](np.ones(1)),
            r"dlog_probs has shape \(1,\), expected the shape of log_probs = \(3,\)",
        ),
        (lambda m, s, t, n: m.loss_and_gradients(s, t, None, n, teacher_forcing="1"), "teacher_forcing is '1'"),
        (
            lambda m, s, t, n: m.loss(s, t, s, n),
            "state is an array of shape .*, expected None: no batch continues another",
        ),
        (lambda m, s, t, n: m.loss_and_gradients(s, t, s, n), "state is an array of shape .*, expected None"),
        (lambda m, s, t, n: m.loss(s[0], t), r"source has shape \(3,\)"),
        (lambda m, s, t, n: m(s * 1.0, t[0], n), "source has dtype float64"),
        (lambda m, s, t, n: m(s[:0], t[0], n), r"source has shape \(0, 3\), expected at least one step"),
        (lambda m, s, t, n: m.loss_and_gradients(s, t, None, n, teacher_forcing=1.5), "teacher_forcing is 1.5"),
        (lambda m, s, t, n: m.loss_and_gradients(s, t, None, n, teacher_forcing=0.5), "rng is None"),
        (lambda m, s, t, n: m.sample(s, n, max_length=0, rng=0), "max_length is 0"),
        (lambda m, s, t, n: m.sample(s, n, max_length=1, top_p=0.0, rng=0), "top_p is 0.0"),
        (lambda m, s, t, n: m.sample(s, n, max_length=1, temperature=-1, rng=0), "temperature is -1"),
        (lambda m, s, t, n: m.beam_search(s, n, max_length=3, beam_size=2, best=3), "best is 3, expected 1 ... beam"),
        (lambda m, s, t, n: m.beam_search(s, n, max_length=3, length_penalty=-1), "length_penalty is -1"),
        (lambda m, s, t, n: m.beam_search(s, n, max_length=3, coverage_penalty=1), "expected 0 without attention"),
        (lambda m, s, t, n: m.predict([s[:, 0]], length_penalty=1), "expected none for greedy decoding"),
        (lambda m, s, t, n: m.predict(None), "sources is None"),
        (lambda m, s, t, n: m.fit([s[:, 0]], [t[0]], epochs=1), r"y\[0\] has shape \(4, 3\)"),
        (lambda m, s, t, n: m.fit([s[:, 0]], None, epochs=1), "y is None"),
    ],
)
def test_arguments_that_are_refused(call, message):
    source, targets, lengths = batch()
    with pytest.raises((TypeError, ValueError), match=message):
        call(small("plain"), source, targets, lengths)


@pytest.mark.usefixtures("each_wing")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("part", ["source.weight", "encoder.weight_hh_l0", "decoder.weight_ih_l0", "output.bias"])
def test_parameters_that_are_nan_give_no_tokens(kind, part):
    source, targets, lengths = batch()
    model = small(kind)
    model.params[part][:1] = np.nan
    if part == "source.weight":
        source[...] = np.maximum(source, 0)
        source[0, :] = 0
    blame = f"parameter {part} holds NaN or infinity"
    calls = {
        "greedy": lambda: model.greedy(source, lengths, max_length=3),
        "sample": lambda: model.sample(source, lengths, max_length=3, rng=0),
        "beam_search": lambda: model.beam_search(source, lengths, max_length=3, beam_size=2),
    }
    for name, call in calls.items():
        with pytest.raises(FloatingPointError, match=rf"{name}: the logits for source\[:, 0\] are not finite: {blame}"):
            call()
    for options in ({}, {"beam_size": 2}):
        with pytest.raises(FloatingPointError, match=rf"predict: the logits for sources\[1\] are not finite: {blame}"):
            model.predict([source[:2, 0], source[:1, 0]], **options)
    with pytest.raises(FloatingPointError, match=rf"log_likelihood: the logits are not finite: {blame}"):
        model.log_likelihood(source, targets, lengths)
    if model._looks and part != "output.bias":
        with pytest.raises(FloatingPointError, match=rf"align: the weights are not finite: {blame}"):
            model.align(source, targets, lengths)


def test_what_the_padding_of_targets_is_embedded_to_does_not_matter_to_an_alignment():
    source, (tokens, _), lengths = batch()
    model = small("additive")
    ends = np.array([1, 2, 1])
    tokens[...] = np.where(np.arange(len(tokens))[:, None] < ends, np.maximum(tokens, 1), 0)
    expected = model.align(source, (tokens, ends), lengths)
    model.params["target.weight"][0] = np.nan
    found = model.align(source, (tokens, ends), lengths)
    assert np.isnan(found).any()
    exist = np.arange(len(tokens))[:, None] < ends
    np.testing.assert_array_equal(found[exist], expected[exist])


@pytest.mark.parametrize("options", [{}, {"beam_size": 3}])
def test_the_company_of_a_source_does_not_lengthen_its_target(options):
    model = small("additive")
    model.params["output.bias"][model.end] = -100  # it never ends
    short, long = np.array([3, 4]), np.arange(20) % 4 + 3
    alone = [model.predict([s], **options)[0] for s in (short, long)]
    assert [len(y) for y in alone] == [14, 50]
    for found, expected in zip(model.predict([short, long], **options), alone, strict=True):
        np.testing.assert_array_equal(found, expected)
    assert [len(y) for y in model.predict([short, long], max_length=7, **options)] == [7, 7]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m, s, n: m.predict([s[:, 0], s[:0, 0]]), ValueError, r"predict: sources\[1\] has no tokens"),
        (lambda m, s, n: m.predict([s[:, 0], s]), ValueError, r"predict: sources\[1\] has shape"),
        (lambda m, s, n: m.predict([s[:, 0] * 1.0]), TypeError, r"predict: sources\[0\] has dtype float64"),
        (lambda m, s, n: m.predict([s[:, 0], s[:, 0] + 7]), IndexError, r"sources\[1\] holds \d+, expected 0 ... 6"),
        (lambda m, s, n: m.predict([s[:, 0]], beam_size=0), ValueError, "predict: beam_size is 0, expected at least 1"),
        (lambda m, s, n: m.predict([s[:, 0]], max_length=0), ValueError, "predict: max_length is 0, expected at least"),
        (lambda m, s, n: m.predict(7), TypeError, "predict: sources is an int, expected a sequence of arrays"),
        (lambda m, s, n: m.fit([s[:0, 0]], [s[:, 0]], epochs=1), ValueError, r"fit: X\[0\] has no tokens"),
        (lambda m, s, n: m.fit([s[:, 0]], [s[:, 0] - 9], epochs=1), IndexError, r"fit: y\[0\] holds -\d"),
        (lambda m, s, n: m.fit([s[:, 0]], [], epochs=1), ValueError, "fit: y has 0 entries, expected 1"),
        (lambda m, s, n: m.greedy(s, n * 0, max_length=2), ValueError, r"greedy: lengths\[0\] is 0, expected"),
        (lambda m, s, n: m.sample(s, n * 0, max_length=2, rng=0), ValueError, r"sample: lengths\[0\] is 0, expected"),
        (lambda m, s, n: m.beam_search(s, n * 0, max_length=2), ValueError, r"search: lengths\[0\] is 0, expected"),
        (lambda m, s, n: m.greedy(s, n + 1, max_length=2), ValueError, r"greedy: lengths\[0\] is 6, expected 1 ... S"),
        (lambda m, s, n: m.greedy(s, n[:2], max_length=2), ValueError, r"greedy: lengths has shape \(2,\), expected"),
        (lambda m, s, n: m.greedy(s, n * 1.0, max_length=2), TypeError, r"greedy: lengths has dtype float64"),
        (lambda m, s, n: m.sample(s, n, max_length=2, temperature="1", rng=0), TypeError, "temperature is '1'"),
        (lambda m, s, n: m.sample(s, n, max_length=2, top_p="1", rng=0), TypeError, "top_p is '1', expected"),
        (lambda m, s, n: m.fit([], [], epochs=1), ValueError, "fit: X is empty, expected at least one example"),
        (
            lambda m, s, n: m.beam_search(s, n, max_length=20, length_penalty=500), ValueError,
            r"beam_search: length_penalty is 500, expected one for which .* is finite at max_length = 20",
        ),
        (
            lambda m, s, n: m.predict([s[:, 0]], beam_size=2, length_penalty=1e300), ValueError,
            r"predict: length_penalty is 1e\+300, expected one for which .* is finite at max_length = 20",
        ),
        (lambda m, s, n: m.greedy(s + 7, n, max_length=2), IndexError, r"greedy: source holds \d+, expected 0 ... 6"),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("each_wing")
def test_sources_that_have_no_target(call, error, message):
    source, _, lengths = batch()
    with pytest.raises(error, match=message):
        call(small("plain"), source, lengths)


def test_no_sources_and_sources_of_one_token():
    model = small("plain")
    model.params["output.bias"][model.end] = 100
    tokens, _ = model.greedy(np.array([[3]]), max_length=10**12)  # no memory for tokens that are not written
    assert tokens.tolist() == [[model.end]]
    for most in (10**30, np.int64(2**63 - 1)):
        assert model.greedy(np.array([[3]]), max_length=most)[0].tolist() == [[model.end]]
        assert [len(y) for y in model.predict([np.array([3])], max_length=most)] == [0]
        (best,) = model.beam_search(np.array([[3]]), max_length=most, beam_size=2)
        assert best[0].tokens.tolist() == [model.end]
    assert model.predict([]) == []
    assert len(model.predict([np.array([3])], max_length=1)[0]) <= 1


def test_reinforce_raises_the_reward():
    """It learns the rewarded outputs token for token, without teacher forcing."""
    rng = np.random.default_rng(0)
    sources = [rng.integers(3, 6, 2) for _ in range(60)]
    targets = [np.append(s[::-1], 2) for s in sources]
    model = EncoderDecoder(6, 6, 8, 24, bidirectional=True, attention="additive", rng=1)
    data = PaddedBatches(sources, 30, targets, own_lengths=True)

    def reward(tokens, reference):
        return sum(a == b for a, b in zip(tokens, reference, strict=False)) / len(reference)

    policy = Reinforce(model, reward, max_length=3, baseline="leave_one_out", samples=4)
    before = evaluate(policy, data)
    Trainer(policy, data, gpurnn.Adam(0.01), steps=120, rng=3, progress=False).train()
    assert evaluate(policy, data) < min(before, -0.85)


@pytest.mark.usefixtures("each_wing")
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_past_a_length_need_not_be_a_token(kind):
    model, rng = small(kind), np.random.default_rng(0)
    source, target = rng.integers(3, 7, (4, 3)), rng.integers(3, 6, (3, 3))
    lengths, target_lengths = np.array([4, 1, 2]), np.array([1, 3, 2])
    past, past_target = (np.arange(n)[:, None] >= of for n, of in ((4, lengths), (3, target_lengths)))

    def results(nothing):
        x, y = np.where(past, nothing, source), (np.where(past_target, nothing, target), target_lengths)
        yield model(x, target[:, :], lengths)[0]
        for told in (1.0, 0.5, 0.0):
            yield model.loss_and_gradients(x, y, None, lengths, rng=1, teacher_forcing=told)
        yield model.loss(x, y, None, lengths)[0]
        yield model.log_likelihood(x, y, lengths)
        yield model.greedy(x, lengths, max_length=4)
        yield model.sample(x, lengths, max_length=4, rng=2)
        yield tuple(best[0].tokens for best in model.beam_search(x, lengths, max_length=4))
        if "attention" in KINDS[kind]:
            yield model.align(x, y, lengths)

    expected = list(results(0))
    for nothing in (-1, -100, 99):
        for a, b in zip(results(nothing), expected, strict=True):
            assert_same(a, b)
    source[0, 0] = 99
    with pytest.raises(IndexError, match="holds 99"):
        model.greedy(source, lengths, max_length=4)


def test_fit_takes_all_symbols_of_a_target_vocabulary_that_is_larger_than_the_source():
    model = EncoderDecoder(5, 40, 3, 4)
    model.fit([np.array([4]), np.array([3, 4])], [np.array([39]), np.array([38, 5])], steps=1)
    with pytest.raises(IndexError, match=r"fit: y\[0\] holds 40, expected 0 ... 39"):
        model.fit([np.array([4])], [np.array([40])], steps=1)
    with pytest.raises(IndexError, match=r"fit: X\[0\] holds 5, expected 0 ... 4"):
        model.fit([np.array([5])], [np.array([39])], steps=1)
