"""Curricula: which examples an epoch has, and training over epochs with different numbers of batches."""

import math

import numpy as np
import pytest
from tolerance import assert_same

from gpurnn.models import CharVocabulary, LanguageModel
from gpurnn.optimizers import SGD
from gpurnn.training import CheckpointError, Curriculum, PaddedBatches, TokenStream, Trainer

LENGTHS = [3, 9, 5, 2, 7, 4, 8, 3, 6, 2, 5]


def sequences():
    rng = np.random.default_rng(0)
    return [rng.integers(0, 4, length, dtype=np.int32) for length in LENGTHS]


def language_model():
    return LanguageModel(CharVocabulary("?abc"), 3, 4, dropout=0.3, dtype="float64")


class Watched(PaddedBatches):
    """Records which batches were requested."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.asked = []

    def batch(self, epoch, index):
        self.asked.append((epoch, index))
        return super().batch(epoch, index)


def growing(**options):
    """Epochs of 2, 3, 4, 4 and then always 5 batches: sequences of at most 3, 4, 5, 6, 8, 8, ... tokens."""
    return Watched(sequences(), 2, curriculum=Curriculum(3, 1.25, maximum=8), **options)


@pytest.mark.parametrize("epoch", range(6))
def test_an_epoch_has_all_that_is_easy_enough_and_nothing_else(epoch):
    data = growing()
    limit = min(8, 3 + 1.25 * epoch)
    found = []
    for index in range(data.num_batches(epoch)):
        batch = data.batch(epoch, index)
        found += [length + 1 for length in batch.lengths.tolist()]  # the last token is not an input
    assert sorted(found) == sorted(length for length in LENGTHS if length <= limit)
    assert data.num_batches(epoch) == math.ceil(len(found) / 2)


def test_the_length_is_that_of_the_curriculums_end():
    assert len(growing()) == 5
    assert len(PaddedBatches(sequences(), 2, curriculum=Curriculum(3, 1))) == 6


def test_the_number_of_batches_follows_the_budget_too():
    data = PaddedBatches(sequences(), token_budget=12, curriculum=Curriculum(3, 1))
    for epoch in range(8):
        batches = [data.batch(epoch, index) for index in range(data.num_batches(epoch))]
        assert sum(len(batch.lengths) for batch in batches) == sum(length <= 3 + epoch for length in LENGTHS)
        with pytest.raises(IndexError):
            data.batch(epoch, len(batches))


def test_difficulty_is_any_function():
    def difficulty(sequence, target):
        return float(target) - sequence[0, 0]

    inputs = [np.full((2, 1), float(i)) for i in range(6)]
    targets = [np.array(value) for value in (3.0, 1.0, 7.0, 4.0, 4.0, 6.0)]  # difficulties 3, 0, 5, 1, 0, 1
    data = PaddedBatches(
        inputs, 9, targets, per_sequence=True, shuffle=False, curriculum=Curriculum(0, 2, 4, difficulty)
    )
    found = [data.batch(epoch, 0).inputs[0, :, 0].tolist() for epoch in range(4)]
    assert found == [[1, 4], [1, 3, 4, 5], [0, 1, 3, 4, 5], [0, 1, 3, 4, 5]]


def test_an_epoch_without_a_curriculum_is_what_one_at_the_end_of_it_is():
    plain, data = PaddedBatches(sequences(), 2), PaddedBatches(sequences(), 2, curriculum=Curriculum(3, 9))
    for index in range(6):
        assert_same(data.batch(4, index).inputs, plain.batch(4, index).inputs)


# --- training ---

SIZES = [2, 3, 4, 4, 5, 5]
ASKED = [(epoch, index) for epoch, size in enumerate(SIZES) for index in range(size)]


def test_training_takes_every_batch_of_every_epoch():
    data = growing()
    run = Trainer(language_model(), data, SGD(0.1), epochs=6, progress=False, log_interval=1)
    run.train()
    assert [data.num_batches(epoch) for epoch in range(6)] == SIZES
    assert data.asked == ASKED
    assert run.step == run.total == sum(SIZES)
    # The epoch in a line is the progress at the end of the step.
    expected = [epoch + (index + 1) / SIZES[epoch] for epoch, index in ASKED]
    assert [record["epoch"] for record in run.history] == pytest.approx(expected, rel=1e-15)


@pytest.mark.parametrize("increment", [0.1, 1 / 3, 1, 2.5, 7, 1e9])
@pytest.mark.parametrize("maximum", [2, 3.7, 5, 8, 100])
def test_the_steps_of_epochs_are_those_of_each(increment, maximum):
    data = PaddedBatches(sequences(), 2, curriculum=Curriculum(2, increment, maximum))
    for epochs in (0, 1, 2, 3, 17, 70):
        run = Trainer(language_model(), data, SGD(0.1), epochs=epochs, progress=False)
        assert run.total == sum(data.num_batches(epoch) for epoch in range(epochs))


@pytest.mark.parametrize("curriculum", [None, Curriculum(3, 1, 5), Curriculum(3, 1e-3)])
def test_very_many_epochs_are_not_counted_one_by_one(curriculum):
    data, counted = PaddedBatches(sequences(), 2, curriculum=curriculum), []
    count = data._count

    def noted(admitted):
        counted.append(1)
        assert len(counted) < 10_000
        return count(admitted)

    data._count = noted
    run = Trainer(language_model(), data, SGD(0.1), epochs=10**9, progress=False)
    assert len(data) * 10**9 - 10**5 < run.total <= len(data) * 10**9
    stream = TokenStream(sequences()[1], 2, 2)
    assert Trainer(language_model(), stream, SGD(0.1), epochs=10**9, progress=False).total == len(stream) * 10**9


def test_validation_once_an_epoch_is_at_the_end_of_each():
    validation = PaddedBatches(sequences(), 20)
    run = Trainer(language_model(), growing(), SGD(0.1), steps=16, validation=validation, progress=False)
    run.train()
    found = [(r["step"], r["epoch"]) for r in run.history if "validation_loss" in r]
    assert found == [(2, 1), (5, 2), (9, 3), (13, 4), (16, 4.6)]


@pytest.mark.parametrize("stop", [1, 2, 5, 7, 13, 20])
@pytest.mark.parametrize("size", [{"batch_size": 2}, {"token_budget": 16}])
def test_a_resumed_run_goes_on_in_the_same_place(tmp_path, stop, size):
    def run(steps, directory):
        data = Watched(sequences(), curriculum=Curriculum(3, 1.25, maximum=8), **size)
        return Trainer(
            language_model(), data, SGD(0.1), steps=steps, directory=tmp_path / directory, progress=False,
            validation=PaddedBatches(sequences(), 20), log_interval=3, rng=4,
        )  # fmt: skip

    whole = run(22, "whole")
    whole.train()
    run(stop, "cut").train()
    resumed = run(22, "cut")
    assert resumed.resume() == stop
    resumed.train()
    assert resumed.data.asked == whole.data.asked[stop:]
    assert_same(resumed.model.state_dict(), whole.model.state_dict())


def test_another_curriculum_is_another_run(tmp_path):
    def run(curriculum):
        data = PaddedBatches(sequences(), 2, curriculum=curriculum)
        return Trainer(language_model(), data, SGD(0.1), steps=3, directory=tmp_path, progress=False)

    run(Curriculum(3, 1, 8)).train()
    hardest_first = Curriculum(3, 1, 8, lambda sequence, _: 10 - sequence.shape[0])
    for other in (None, Curriculum(3, 1), Curriculum(3, 2, 8), Curriculum(4, 1, 8), hardest_first):
        with pytest.raises(CheckpointError, match=r"belongs to a run whose data\.curriculum is"):
            run(other).resume()
    assert run(Curriculum(3, 1, 8)).resume() == 3


def test_resuming_walks_back_too(tmp_path):
    trainer = Trainer(language_model(), growing(), SGD(0.1), steps=4, directory=tmp_path, progress=False)
    trainer.train()
    trainer.step = 1
    assert trainer._position() == (0, 1, 2)
    trainer.step = 9
    assert trainer._position() == (3, 0, 4)


def test_data_of_ones_own_need_not_count_by_epoch():
    class Own:
        carries_state = True

        def __init__(self):
            self.stream = TokenStream(np.arange(20) % 4, 2, 3)
            self.asked = []

        def __len__(self):
            return len(self.stream)

        def batch(self, epoch, index):
            self.asked.append((epoch, index))
            return self.stream.batch(epoch, index)

        def config(self):
            return self.stream.config()

    data = Own()
    Trainer(language_model(), data, SGD(0.1), epochs=2, progress=False).train()
    assert data.asked == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]


def test_an_epoch_without_batches_is_refused():
    class Empty(PaddedBatches):
        def num_batches(self, epoch):
            return 2 - epoch

    data = Empty(sequences(), 6)
    with pytest.raises(ValueError, match="Empty: epoch 2 has 0 batches, expected at least 1"):
        Trainer(language_model(), data, SGD(0.1), steps=9, progress=False).train()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Curriculum(-1, 1), "Curriculum: start is -1, expected a number of at least 0"),
        (lambda: Curriculum(1, 0), "Curriculum: increment is 0, expected a positive number"),
        (lambda: Curriculum(1, math.inf), "Curriculum: increment is inf, expected a finite number"),
        (lambda: Curriculum(5, 1, 4), "Curriculum: maximum is 4.0, expected at least start = 5.0"),
        (lambda: Curriculum(5, 1, math.nan), "Curriculum: maximum is nan, expected a positive number"),
        (lambda: Curriculum(5, 1, 9, "length"), "Curriculum: difficulty is 'length', expected a function"),
        (lambda: Curriculum(5, 1)(-1), "Curriculum: epoch is -1, expected at least 0"),
        (
            lambda: PaddedBatches(sequences(), 2, curriculum=Curriculum(1, 1)),
            "PaddedBatches: curriculum has start 1.0, expected at least 2, the difficulty of the easiest sequence",
        ),
        (lambda: PaddedBatches(sequences(), 2, curriculum=3), "curriculum is 3, expected a Curriculum"),
        (
            lambda: PaddedBatches(sequences(), 2, curriculum=Curriculum(1, 1, 9, lambda *_: math.nan)),
            r"PaddedBatches: curriculum's difficulty of sequences\[0\] is nan, expected a finite number",
        ),
        (
            lambda: PaddedBatches(sequences(), 2, curriculum=Curriculum(1, 1, 9, lambda *_: None)),
            r"PaddedBatches: curriculum's difficulty of sequences\[0\] is None, expected a finite number",
        ),
    ],
)
def test_refusals(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make()
