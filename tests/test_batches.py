"""Batches of sequences: padding, and targets with lengths of their own."""

import itertools
import sys

import numpy as np
import pytest
from strict_wing import Array, plain, strict
from tolerance import assert_same

from gpurnn.training import PaddedBatches, TokenStream, pad


def pairs(count=9, seed=0):
    """Sources (T, 2) of floats and targets (T',) of ints, with independent lengths."""
    rng = np.random.default_rng(seed)
    sources = [rng.standard_normal((rng.integers(1, 7), 2)) for _ in range(count)]
    return sources, [rng.integers(1, 9, rng.integers(1, 7), dtype=np.int32) for _ in range(count)]


# --- padding ---


def test_padding_is_zero_past_the_length():
    padded, lengths = pad([np.array([[1.0, 2.0]]), np.empty((0, 2)), np.array([[3.0, 4.0], [5.0, 6.0]])])
    assert_same(padded, np.array([[[1.0, 2.0], [0, 0], [3.0, 4.0]], [[0, 0], [0, 0], [5.0, 6.0]]]))
    assert_same(lengths, np.array([1, 0, 2], np.int32))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ([], "pad: arrays is empty, expected at least one sequence"),
        (3, "pad: arrays is an int, expected a sequence of arrays"),
        ([None], r"pad: arrays\[0\] is None, expected an array"),
        ([np.array(3)], r"pad: arrays\[0\] has shape \(\), expected \(T, ...\), steps first"),
        ([np.zeros(2), np.zeros(2, int)], r"pad: arrays\[1\] has dtype int64, expected float64 as arrays\[0\] has"),
        ([np.zeros((2, 3)), np.zeros((2, 4))], r"pad: arrays\[1\] has shape \(2, 4\), expected that of arrays\[0\]"),
    ],
)
def test_padding_refuses(arrays, message):
    with pytest.raises((TypeError, ValueError), match=message):
        pad(arrays)


def test_integers_of_several_dtypes_are_taken_together():
    values = [[1, 2, 3], [4, 5], [6, 7, 8, 9]]
    mixed = [np.array(v, dtype) for v, dtype in zip(values, ("int8", ">u4", "uint64"), strict=True)]
    same = [np.array(v) for v in values]
    assert_same(pad(mixed), pad(same))
    for targets, options in (
        (None, {}), (mixed, {}), (mixed, {"own_lengths": True}), ([np.int8(1), np.uint8(2), 3], {"per_sequence": True}),
    ):  # fmt: skip
        targets = targets and [np.asarray(t) for t in targets]
        wide = targets and [t.astype("int64") for t in targets]
        data, expected = (PaddedBatches(a, 2, b, **options) for a, b in ((mixed, targets), (same, wide)))
        assert data.config() == expected.config()
        for index in range(2):
            batch, right = data.batch(0, index), expected.batch(0, index)
            assert_same((batch.inputs, batch.targets, batch.lengths), (right.inputs, right.targets, right.lengths))
    with pytest.raises(ValueError, match=r"sequences\[1\] holds 9223372036854775808, expected at most 2\*\*63 - 1"):
        PaddedBatches([np.array([1, 2]), np.array([2**63, 1], "uint64")], 2)
    with pytest.raises(TypeError, match=r"sequences\[1\] has dtype float64, expected int8 as sequences\[0\] has"):
        PaddedBatches([mixed[0], np.ones(3)], 2)


# --- targets with lengths of their own ---


def test_targets_may_have_lengths_of_their_own():
    sources, targets = pairs()
    data = PaddedBatches(sources, 4, targets, own_lengths=True, rng=3)
    found = []
    for index in range(len(data)):
        batch = data.batch(1, index)
        padded, target_lengths = batch.targets
        assert padded.shape == (max(target_lengths), batch.inputs.shape[1])
        assert batch.inputs.shape[0] == max(batch.lengths)
        assert batch.count == sum(target_lengths)
        assert target_lengths.dtype == np.int32
        for b, (length, target_length) in enumerate(zip(batch.lengths, target_lengths, strict=True)):
            assert not padded[target_length:, b].any()
            found.append((batch.inputs[:length, b].tolist(), padded[:target_length, b].tolist()))
    expected = [(s.tolist(), t.tolist()) for s, t in zip(sources, targets, strict=True)]
    assert sorted(found) == sorted(expected)
    assert found != expected  # an epoch is shuffled


def test_targets_and_their_lengths_are_of_the_library_of_the_sequences(strict_namespace):
    sources, targets = pairs()
    ours = PaddedBatches(sources, 4, targets, own_lengths=True).batch(2, 1)
    theirs = PaddedBatches(strict(sources), 4, strict(targets), own_lengths=True).batch(2, 1)
    assert all(isinstance(a, Array) for a in (theirs.inputs, *theirs.targets, theirs.lengths))
    assert_same(plain((theirs.inputs, *theirs.targets, theirs.lengths)), (ours.inputs, *ours.targets, ours.lengths))


@pytest.mark.parametrize(
    ("targets", "options", "message"),
    [
        (None, {"own_lengths": True}, "own_lengths is True but targets is None"),
        ([np.ones(3)], {"own_lengths": True, "per_sequence": True}, "per_sequence and own_lengths are both True"),
        ([np.ones(0)], {"own_lengths": True}, r"targets\[0\] has shape \(0,\), expected at least 1 step"),
        ([np.array(1)], {"own_lengths": True}, r"targets\[0\] has shape \(\), expected at least 1 step"),
        ([np.ones(3)], {}, r"targets\[0\] has shape \(3,\), expected 2 steps, .*, for targets of other lengths pass"),
    ],
)
def test_targets_that_do_not_fit_are_refused(targets, options, message):
    with pytest.raises(ValueError, match=message):
        PaddedBatches([np.array([1, 2])], 2, targets, **options)


# --- a budget of tokens ---


def examples(count=60, seed=0):
    """Sequences (T, 1) that each repeat a number of their own, with that number as target."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 12, count)
    return [np.full((n, 1), float(i)) for i, n in enumerate(lengths)], [np.array(float(i)) for i in range(count)]


def epoch_of(data, epoch):
    return [data.batch(epoch, index) for index in range(data.num_batches(epoch))]


@pytest.mark.parametrize("budget", [11, 24, 60, 10_000])
@pytest.mark.parametrize("shuffle", [True, False])
def test_batches_stay_within_the_budget_and_hold_every_sequence_once(budget, shuffle):
    sequences, targets = examples()
    data = PaddedBatches(sequences, targets=targets, per_sequence=True, token_budget=budget, shuffle=shuffle)
    batches = epoch_of(data, 2)
    assert len(batches) == len(data)
    shapes = [batch.inputs.shape[:2] for batch in batches]
    assert all(budget >= T * B for T, B in shapes)
    assert sorted(float(t) for batch in batches for t in batch.targets) == [float(t) for t in targets]
    for batch in batches:
        assert_same(batch.inputs[0, :, 0], batch.targets)
    # A batch holds as many as fit: the shortest sequence of the next longer batch would exceed the budget.
    by_length = sorted(batches, key=lambda batch: (max(batch.lengths), min(batch.lengths), -len(batch.lengths)))
    for batch, following in itertools.pairwise(by_length):
        assert max(batch.lengths) <= min(following.lengths)
        assert (len(batch.lengths) + 1) * min(following.lengths) > budget
    sizes = [batch.lengths.tolist() for batch in batches]
    assert (sizes == [batch.lengths.tolist() for batch in by_length]) is (not shuffle or len(batches) == 1)


def chosen(data, epoch):
    return [tuple(batch.targets.tolist()) for batch in epoch_of(data, epoch)]


def test_dynamic_batches_are_those_of_the_seed_and_the_epoch():
    sequences, targets = examples()

    def data(rng=1, **options):
        return PaddedBatches(sequences, targets=targets, per_sequence=True, token_budget=24, rng=rng, **options)

    assert chosen(data(), 3) == chosen(data(), 3)
    asked_before = data()
    chosen(asked_before, 0)
    assert chosen(asked_before, 3) == chosen(data(), 3)
    assert chosen(data(), 3) != chosen(data(rng=2), 3)
    # The batches themselves differ, not only their order: sequences of equal length are exchanged.
    assert set(map(frozenset, chosen(data(), 3))) != set(map(frozenset, chosen(data(), 4)))
    assert chosen(data(shuffle=False), 3) == chosen(data(shuffle=False), 4)


def test_a_budget_counts_the_longer_of_inputs_and_targets():
    sources, targets = pairs(40)
    data = PaddedBatches(sources, targets=targets, own_lengths=True, token_budget=18)
    for batch in epoch_of(data, 0):
        assert len(batch.lengths) * max(batch.inputs.shape[0], batch.targets[0].shape[0]) <= 18
    assert sum(batch.count for batch in epoch_of(data, 0)) == sum(len(t) for t in targets)


@pytest.mark.parametrize("options", [{"batch_size": 7}, {"token_budget": 24}])
@pytest.mark.parametrize("own_lengths", [True, False])
def test_the_padding_share_is_what_is_padding(options, own_lengths):
    sources, targets = pairs(30, seed=1)
    if not own_lengths:
        targets = [np.ones(len(s)) for s in sources]
    data = PaddedBatches(sources, targets=targets, own_lengths=own_lengths, **options)
    for epoch in (0, 1):
        held = padded = 0
        for batch in epoch_of(data, epoch):
            parts = [(batch.inputs, batch.lengths), *([batch.targets] if own_lengths else [])]
            held += sum(int(lengths.sum()) for _, lengths in parts)
            padded += sum(array.shape[0] * array.shape[1] for array, _ in parts)
        assert data.padding_share(epoch) == pytest.approx(1 - held / padded, rel=1e-12)
    if "batch_size" in options:
        assert len({data.padding_share(epoch) for epoch in range(5)}) > 1


def test_similar_lengths_leave_less_padding():
    sequences, targets = examples(200)
    fixed = PaddedBatches(sequences, 10, targets, per_sequence=True)
    dynamic = PaddedBatches(sequences, targets=targets, per_sequence=True, token_budget=80)
    assert dynamic.padding_share() < 0.06 < 0.35 < fixed.padding_share()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "batch_size is None and token_budget is None, expected exactly one of the two"),
        ({"batch_size": 2, "token_budget": 9}, "batch_size is 2 and token_budget is 9, expected exactly one"),
        ({"token_budget": 0}, "token_budget is 0, expected at least 1"),
        ({"token_budget": 8.0}, "token_budget is 8.0, expected a whole number"),
        ({"token_budget": 3}, r"token_budget is 3, expected at least 4, the steps of sequences\[1\]"),
    ],
)
def test_budgets_that_do_not_fit_are_refused(options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        PaddedBatches([np.ones((n, 1)) for n in (2, 4)], targets=[np.ones(n) for n in (2, 4)], **options)


# --- positions that an epoch does not have ---


@pytest.mark.parametrize("wrong", [-1, 3, 10**30, 1.0, None, True])
@pytest.mark.parametrize("kind", ["stream", "padded"])
def test_a_batch_that_an_epoch_has_not_is_rejected(kind, wrong):
    tokens = np.arange(20)
    data = TokenStream(tokens, 2, 3) if kind == "stream" else PaddedBatches([tokens[:4]] * 5, 2)
    assert len(data) == 3
    with pytest.raises((ValueError, TypeError, IndexError), match=rf"\.batch: index is {wrong}, expected"):
        data.batch(0, wrong)


@pytest.mark.parametrize("wrong", [-1, 1.0, None, True, "1"])
def test_an_epoch_is_a_whole_number(wrong):
    tokens = np.arange(20)
    stream, padded = TokenStream(tokens, 2, 3), PaddedBatches([tokens[:4]] * 5, 2)
    for call in (
        lambda: stream.batch(wrong, 0),
        lambda: padded.batch(wrong, 0),
        lambda: padded.num_batches(wrong),
        lambda: padded.padding_share(wrong),
    ):
        with pytest.raises((ValueError, TypeError), match=rf"\.\w+: epoch is {wrong!r}, expected"):
            call()


WEIGHTED = [np.ones((3, 2)), np.ones((1, 2)), np.ones((2, 2))]


def test_weights_of_steps_are_padded_like_targets():
    targets = [np.zeros(len(s), int) for s in WEIGHTED]
    data = PaddedBatches(WEIGHTED, 2, targets, weights=[[1, 2, 3], [0.5], [0, 1]], shuffle=False)
    first, second = data.batch(0, 0), data.batch(0, 1)
    np.testing.assert_array_equal(first.weights, [[1, 0.5], [2, 0], [3, 0]])
    assert (first.count, second.count) == (6.5, 1.0)
    assert PaddedBatches(WEIGHTED, 2, targets).batch(0, 0).weights is None


def test_weights_of_sequences():
    data = PaddedBatches(
        WEIGHTED, 3, [np.zeros(()) for _ in WEIGHTED], per_sequence=True, weights=(True, 0, 2.5), shuffle=False
    )
    np.testing.assert_array_equal(data.batch(0, 0).weights, [1, 0, 2.5])
    assert data.batch(0, 0).count == 3.5


def test_weights_are_part_of_what_data_are():
    targets = [np.zeros(()) for _ in WEIGHTED]
    one, other = (PaddedBatches(WEIGHTED, 3, targets, per_sequence=True, weights=w) for w in ([1, 1, 1], [1, 1, 2]))
    assert one.config() != other.config()


@pytest.mark.parametrize(
    ("weights", "error", "message"),
    [
        ([1, 2], ValueError, "weights has 2 entries, expected 3"),
        ([1, "a", 2], TypeError, r"weights\[1\] holds <U1 values, expected numbers"),
        ([1, -2, 2], ValueError, r"weights\[1\] holds -2.0, expected finite numbers of at least 0"),
        ([1, np.nan, 2], ValueError, r"weights\[1\] holds nan, expected finite numbers"),
        ([1, np.inf, 2], ValueError, r"weights\[1\] holds inf, expected finite numbers"),
        ([1, [1, 2], 2], ValueError, r"weights\[1\] has shape \(2,\), expected \(\)"),
        ([0, 0, 0], ValueError, "weights are all zero"),
        (
            [1, np.ma.masked, 2],
            ValueError,
            r"weights\[1\] has masked entries, expected numbers only; 0 leaves a target out",
        ),
        ([1, np.ma.masked_array(1, mask=True), 2], ValueError, r"weights\[1\] has masked entries"),
    ],
)
def test_what_is_no_weight_is_rejected(weights, error, message):
    with pytest.raises(error, match=f"^PaddedBatches: {message}"):
        PaddedBatches(WEIGHTED, 3, [np.zeros(()) for _ in WEIGHTED], per_sequence=True, weights=weights)


def test_weights_with_targets_of_other_lengths_are_rejected():
    with pytest.raises(ValueError, match="weights and own_lengths are both given"):
        PaddedBatches(WEIGHTED, 3, WEIGHTED, own_lengths=True, weights=[1, 1, 1])


def test_a_split_parts_the_sequences():
    sequences = [np.full((i % 3 + 1, 1), i) for i in range(20)]
    data = PaddedBatches(sequences, 4, [np.array(i) for i in range(20)], per_sequence=True, weights=range(20), rng=3)
    rest, part = data.split(0.25, rng=1)
    assert (rest.num_examples, part.num_examples, len(rest), len(part)) == (15, 5, 4, 2)
    assert (rest.shuffle, part.shuffle) == (True, False)

    def labels(data):
        batches = [data.batch(0, index) for index in range(len(data))]
        for batch in batches:
            np.testing.assert_array_equal(batch.inputs[0, :, 0], batch.targets)
            np.testing.assert_array_equal(batch.weights, batch.targets)
        return [int(t) for batch in batches for t in batch.targets]

    assert sorted(labels(rest) + labels(part)) == list(range(20))
    assert labels(part) == sorted(labels(part))
    assert labels(part) == labels(data.split(0.25, rng=1)[1]) != labels(data.split(0.25, rng=2)[1])
    assert sorted(labels(data)) == list(range(20))


@pytest.mark.parametrize(("share", "sizes"), [(0.01, (4, 1)), (0.99, (1, 4))])
def test_no_part_of_a_split_is_empty(share, sizes):
    parts = PaddedBatches([np.ones(2, int)] * 5, 2).split(share)
    assert tuple(part.num_examples for part in parts) == sizes


@pytest.mark.parametrize("rng", range(5))
def test_a_split_has_its_share_of_each_class(rng):
    classes = np.random.default_rng(rng).permutation(np.repeat([0, 1, 2], [70, 25, 5]))
    data = PaddedBatches([np.full(1, i) for i in range(100)], 100, list(classes), per_sequence=True)
    rest, part = data.split(0.2, rng=rng)
    assert np.bincount(part.batch(0, 0).targets).tolist() == [14, 5, 1]
    assert sorted(np.concatenate([b.batch(0, 0).inputs[0] for b in (rest, part)])) == list(range(100))
    assert any((part.batch(0, 0).inputs != data.split(0.2, rng=9)[1].batch(0, 0).inputs).ravel())


def test_what_cannot_be_split_is_rejected():
    data = PaddedBatches([np.ones(2, int)] * 5, 2)
    for share in (0, 1, -0.5, 1.5):
        with pytest.raises(ValueError, match=r"^PaddedBatches.split: share is .*, expected a number in \(0, 1\)"):
            data.split(share)
    with pytest.raises(ValueError, match="there is only one sequence"):
        PaddedBatches([np.ones(2, int)], 2).split(0.5)


def test_masked_weights_of_steps_are_not_read_as_numbers():
    weights = [np.ma.masked_array(np.ones(len(s)), mask=np.arange(len(s)) == 0) for s in WEIGHTED]
    with pytest.raises(ValueError, match=r"PaddedBatches: weights\[0\] has masked entries"):
        PaddedBatches(WEIGHTED, 3, [np.zeros(len(s)) for s in WEIGHTED], weights=weights)


# --- tokens in a file ---


def test_checksum_does_not_depend_on_the_pieces(monkeypatch):
    tokens = np.arange(1000, dtype=np.int32)
    whole = TokenStream(tokens, 2, 5).config()
    monkeypatch.setattr("gpurnn.training.data._PIECE", 7)
    assert TokenStream(tokens, 2, 5).config() == whole
    assert TokenStream(tokens[::-1], 2, 5).config() != whole


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_file_larger_than_its_share_of_memory_streams(tmp_path):
    """2 GB of mapped tokens: their checksum and the batches of a shard take a few MB of the process's memory."""
    path, count = tmp_path / "tokens.npy", 1 << 30
    tokens = np.lib.format.open_memmap(path, "w+", np.int16, (count,))
    tokens[:: 1 << 20] = 7  # the rest is a hole in the file
    tokens.flush()
    del tokens

    def anonymous():
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) for line in file if line.startswith("RssAnon")) / 1024

    stream = TokenStream(np.load(path, mmap_mode="r"), 32, 100)
    before = anonymous()
    assert stream.config()["tokens"] == count
    for index in range(0, len(stream), len(stream) // 50):
        stream.shard(0, index, 1, 4).inputs.sum()
    assert anonymous() - before < 64
