"""Training continued after an exception, in a copy, or for more steps gives the bits of one uninterrupted run."""

import copy
import json
import pickle

import numpy as np
import pytest
from test_training import comparable, language_model, sequences, stream, trainer
from tolerance import assert_same

from gpurnn import optimizers, schedules
from gpurnn.analysis import GradientNorms
from gpurnn.models import CharVocabulary, LanguageModel
from gpurnn.optimizers import SGD, Adam
from gpurnn.training import PaddedBatches, Reinforce, TokenStream, Trainer
from gpurnn.training import trainer as trainers

pytestmark = pytest.mark.filterwarnings("ignore:.* has no effect:UserWarning")

STEPS = 11


def whole_run(directory=None, steps=STEPS, **options):
    """A run with all that has a state: dropout, a carried state, an observing schedule, validation and patience."""
    options = {
        "optimizer": Adam(lr=0.05), "log_interval": 4, "validation": stream(seed=1), "validation_interval": 3,
        "patience": 9, "checkpoint_interval": 5, "rng": 3, "directory": directory,
        "schedule": schedules.ReduceOnPlateau(0.05, patience=1), **options,
    }  # fmt: skip
    return trainer(options.pop("model", None) or language_model(dropout=0.3), stream(), steps=steps, **options)


def assert_same_run(one, other):
    assert_same(one.model.state_dict(), other.model.state_dict())
    assert_same(one.optimizer.state_dict(), other.optimizer.state_dict())
    assert one._rng.bit_generator.state == other._rng.bit_generator.state
    assert comparable(one.history) == comparable(other.history)
    assert (one.step, one.stopped_early) == (other.step, other.stopped_early)
    for run in (one, other):
        if run.directory is not None:
            lines = (run.directory / "metrics.jsonl").read_text().splitlines()
            assert [json.loads(line) for line in lines] == run.history


# --- the speed in the metrics ---


class Clock:
    """A clock on which only steps take time, one second each."""

    now = 0.0

    def __init__(self, monkeypatch):
        monkeypatch.setattr(trainers.time, "perf_counter", lambda: self.now)

    def tick(self, *_):
        self.now += 1.0


def speeds(run):
    return [record["tokens_per_second"] for record in run.history if "tokens_per_second" in record]


@pytest.mark.parametrize("stop", range(1, 8))
def test_the_speed_is_that_of_the_time_spent_on_the_steps(tmp_path, monkeypatch, stop):
    clock = Clock(monkeypatch)

    def run():
        return trainer(language_model(), stream(), steps=7, log_interval=3, directory=tmp_path)

    def interrupted(step, *_):
        if step == stop - 1:
            part.on_gradients = clock.tick
            clock.now += 500.0  # this time is lost with the step
            raise KeyboardInterrupt
        clock.tick()

    part = run()
    part.on_gradients = interrupted
    with pytest.raises(KeyboardInterrupt):
        part.train()
    clock.now += 1000.0  # nothing trains in this time
    part.train()
    assert speeds(part) == [12.0, 12.0, 12.0]


@pytest.mark.parametrize("stop", range(1, 7))
def test_the_speed_after_resuming_is_that_of_the_steps_since(tmp_path, monkeypatch, stop):
    clock = Clock(monkeypatch)
    for steps in (stop, 7):
        run = trainer(language_model(), stream(), steps=steps, log_interval=3, directory=tmp_path)
        run.on_gradients = clock.tick
        if steps == 7:
            clock.now += 1000.0
            assert run.resume() == stop
        run.train()
    assert speeds(run) == [12.0, 12.0, 12.0]


def test_a_record_of_steps_from_before_a_resume_alone_has_no_speed(tmp_path):
    def run(steps):
        options = {"log_interval": 3, "checkpoint_interval": 5, "directory": tmp_path}
        return trainer(language_model(), stream(), steps=steps, **options)

    first = run(9)
    first.on_gradients = raiser(None, 6, Stop())
    with pytest.raises(Stop):
        first.train()
    resumed = run(5)
    assert resumed.resume() == 5
    resumed.train()
    assert [record["step"] for record in resumed.history] == [3, 5]
    assert len(speeds(resumed)) == 1


# --- after an exception ---


class Stop(Exception):
    pass


def raiser(original, at, error, after=False):
    """``original``, except that call number ``at`` raises, before or after doing its work."""
    calls = []

    def function(*arguments, **options):
        calls.append(1)
        if len(calls) == at and not after:
            raise error
        result = None if original is None else original(*arguments, **options)
        if len(calls) == at:
            raise error
        return result

    return function


def break_at(run, place, at, error):
    if place == "model, before":
        run.model.loss_and_gradients = raiser(run.model.loss_and_gradients, at, error)
    elif place == "model, after":
        run.model.loss_and_gradients = raiser(run.model.loss_and_gradients, at, error, after=True)
    elif place == "data":
        run.data.batch = raiser(run.data.batch, at, error)
    elif place == "on_gradients":
        run.on_gradients = raiser(None, at, error)
    elif place == "validation":
        run.model.loss = raiser(run.model.loss, at, error)
    elif place == "on_checkpoint":
        run.on_checkpoint = raiser(None, at, error)
    elif place == "schedule":
        schedule = copy.deepcopy(run.schedule)
        run.schedule = raiser(schedule, at, error)
        run._observer = schedule
    elif place == "observer":
        run._observer.observe = raiser(run._observer.observe, at, error)
    elif place == "metrics":
        run._folder.append_metrics = raiser(run._folder.append_metrics, at, error)
    elif place == "metrics, after":
        run._folder.append_metrics = raiser(run._folder.append_metrics, at, error, after=True)
    elif place == "flush":
        run._folder.flush_metrics = raiser(run._folder.flush_metrics, at, error)


PLACES = {
    "model, before": (1, 6, 11), "model, after": (1, 6, 11), "data": (1, 7), "on_gradients": (1, 6, 11),
    "validation": (1, 3, 12), "on_checkpoint": (1, 2, 4), "schedule": (2, 9), "observer": (1, 2),
    "metrics": (2, 3, 6), "metrics, after": (2, 3, 6), "flush": (1, 2, 4),
}  # fmt: skip


MOMENTS = [(place, at) for place, moments in PLACES.items() for at in moments]
ERRORS = [Stop(), KeyboardInterrupt(), FloatingPointError("x"), OSError(28, "full")]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The uninterrupted run."""
    run = whole_run(tmp_path_factory.mktemp("whole"))
    run.train()
    return run


@pytest.mark.parametrize(
    ("place", "at", "error"),
    [
        pytest.param(*moment, error, marks=() if m % len(ERRORS) == e else pytest.mark.slow)
        for m, moment in enumerate(MOMENTS)
        for e, error in enumerate(ERRORS)
    ],
    ids=str,
)
def test_training_goes_on_after_an_exception_as_if_nothing_had_happened(tmp_path, whole, place, at, error):
    """Each error occurs at a quarter of the moments; slow tests cover the rest."""
    part = whole_run(tmp_path / "part")
    break_at(part, place, at, error)
    with pytest.raises(type(error)):
        part.train()
    part.train()
    assert_same_run(part, whole)
    # The same after loading from disk.
    resumed = whole_run(tmp_path / "part")
    assert resumed.resume() == STEPS
    resumed.train()
    assert_same_run(resumed, whole)


@pytest.mark.parametrize("at", [1, 2, 4])
def test_training_goes_on_after_an_exception_that_comes_when_the_checkpoint_is_written(
    tmp_path, whole, monkeypatch, at
):
    part = whole_run(tmp_path / "part")
    broken = raiser(trainers.save_checkpoint, at, OSError(28, "full"), after=True)
    with monkeypatch.context() as patch:
        patch.setattr(trainers, "save_checkpoint", broken)
        with pytest.raises(OSError, match="full"):
            part.train()
    part.train()
    assert_same_run(part, whole)


@pytest.mark.parametrize("place", ["model, after", "on_gradients", "validation"])
def test_training_without_a_directory_goes_on_too(place):
    whole, part = whole_run(), whole_run()
    whole.train()
    break_at(part, place, 3, Stop())
    with pytest.raises(Stop):
        part.train()
    part.train()
    assert_same_run(part, whole)


@pytest.mark.parametrize("after", [False, True])
def test_a_torn_update_is_not_gone_on_from(tmp_path, after):
    whole, part = whole_run(tmp_path / "whole"), whole_run(tmp_path / "part")
    whole.train()
    part.optimizer.step = raiser(part.optimizer.step, 8, KeyboardInterrupt(), after)
    with pytest.raises(KeyboardInterrupt):
        part.train()
    message = r"the update of step 7 was interrupted, .*; call resume\(\), which continues from step-000000005"
    for attempt in (part, pickle.loads(pickle.dumps(copy_of(part)))):
        with pytest.raises(RuntimeError, match=message):
            attempt.train()
    assert part.resume() == 5
    part.train()
    assert_same_run(part, whole)


def copy_of(run):
    """A copy of a trainer, without the patched ``step`` of its optimizer."""
    found = copy.copy(run)
    found.optimizer = copy.copy(run.optimizer)
    found.optimizer.__dict__.pop("step", None)
    return found


def test_a_torn_update_without_a_directory_is_rejected():
    run = whole_run()
    run.optimizer.step = raiser(run.optimizer.step, 2, Stop())
    with pytest.raises(Stop):
        run.train()
    with pytest.raises(RuntimeError, match=r"half updated; build the model, the optimizer and the Trainer again"):
        run.train()


def reinforce(steps):
    vocabulary = CharVocabulary("?abc")

    class Policy:
        """Draws one token for each source."""

        def __init__(self):
            self.params = {"logits": np.zeros(4)}

        def probabilities(self):
            e = np.exp(self.params["logits"])
            return e / e.sum()

        def sample(self, source, lengths=None, *, max_length, temperature=1.0, rng):
            rng = np.random.default_rng(rng)
            B = source.shape[1]
            drawn = rng.choice(4, B, p=self.probabilities()) if temperature else np.zeros(B, int)
            return drawn[None].astype(np.int32), np.ones(B, np.int32)

        def log_likelihood_vjp(self, source, targets, lengths=None, rng=None):
            tokens = targets[0][0]
            p = self.probabilities()
            return np.log(p[tokens]), lambda d: (None, {"logits": (np.eye(4)[tokens] - p).T @ d})

    data = PaddedBatches([np.array([1, 2]), np.array([3])] * 3, 2, [np.array([2])] * 6, own_lengths=True)
    model = Reinforce(Policy(), lambda y, reference: float(y == reference), max_length=len(vocabulary))
    return Trainer(model, data, SGD(lr=0.5), steps=steps, log_interval=1, progress=False)


def test_the_state_of_a_model_is_restored_after_an_exception():
    whole, part = reinforce(8), reinforce(8)
    whole.train()
    part.on_gradients = raiser(None, 5, Stop())
    with pytest.raises(Stop):
        part.train()
    part.train()
    assert_same(part.model.params, whole.model.params)
    assert part.model.training_state() == whole.model.training_state()
    assert comparable(part.history) == comparable(whole.history)


class Counting:
    """A model whose state is one array, which every call changes and the loss depends on."""

    def __init__(self):
        self.params, self.calls = {"weight": np.zeros(2)}, np.zeros(2)

    def training_state(self):
        return {"calls": self.calls}

    def load_training_state(self, state):
        self.calls[...] = state["calls"]

    def loss(self, inputs, targets, state=None, lengths=None):
        return np.asarray(1.0), None

    def loss_and_gradients(self, inputs, targets, state=None, lengths=None, *, rng=None):
        self.calls += 1
        return np.asarray(self.calls[0]), None, {"weight": self.calls.copy()}


def test_a_state_that_a_model_changes_in_place_is_restored():
    whole, part = (trainer(Counting(), stream(), steps=6, log_interval=1) for _ in range(2))
    whole.train()
    part.on_gradients = raiser(None, 4, Stop())
    with pytest.raises(Stop):
        part.train()
    part.train()
    assert_same(part.model.params, whole.model.params)
    assert comparable(part.history) == comparable(whole.history)


# --- more steps ---

OPTIMIZERS = [
    SGD(lr=0.1, momentum=0.9), Adam(lr=0.05, amsgrad=True), optimizers.AdamW(lr=0.05), optimizers.NAdam(lr=0.05),
    optimizers.Adamax(lr=0.05), optimizers.RMSprop(lr=0.02, centered=True, momentum=0.5), optimizers.Rprop(lr=0.01),
    optimizers.Adagrad(lr=0.05, lr_decay=0.1), optimizers.Adadelta(lr=1.0),
]  # fmt: skip
SCHEDULES = [
    None, schedules.CosineWithWarmup(0.05, STEPS, 3), schedules.OneCycle(0.05, STEPS), schedules.Exponential(0.05, 0.9),
    schedules.ReduceOnPlateau(0.05, patience=1), lambda step: np.float32(0.05) / (1 + step),
]  # fmt: skip


def extended(tmp_path, how, first, steps, **options):
    """A run of ``first`` steps that is extended to ``steps``."""
    run = whole_run(tmp_path / "part", first, **copy.deepcopy(options))
    run.train()
    if how == "train":
        run.total = steps
    else:
        run = whole_run(tmp_path / "part", steps, **copy.deepcopy(options))
        assert run.resume() == first
    run.train()
    return run


@pytest.mark.parametrize("how", ["resume", "train"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda optimizer: type(optimizer).__name__)
def test_more_steps_give_the_bits_of_one_long_run_for_every_optimizer(tmp_path, how, optimizer):
    whole = whole_run(tmp_path / "whole", optimizer=copy.deepcopy(optimizer))
    whole.train()
    assert_same_run(extended(tmp_path, how, 7, STEPS, optimizer=optimizer), whole)


@pytest.mark.parametrize("how", ["resume", "train"])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: type(schedule).__name__)
def test_more_steps_give_the_bits_of_one_long_run_for_every_schedule(tmp_path, how, schedule):
    whole = whole_run(tmp_path / "whole", schedule=copy.deepcopy(schedule))
    whole.train()
    for first in range(1, STEPS):
        assert_same_run(extended(tmp_path / str(first), how, first, STEPS, schedule=schedule), whole)


def stopping(patience):
    """Options of runs of 18 steps; with a patience of 1 or 2 they stop early."""
    options = {"optimizer": SGD(lr=3.0), "schedule": None, "validation_interval": 2, "patience": patience}
    return options if patience < 3 else {**options, "validation": stream(), "optimizer": SGD(lr=0.1)}


@pytest.mark.parametrize("how", ["resume", "train"])
@pytest.mark.parametrize("patience", [1, 2, 3])
def test_more_steps_are_one_long_run_for_early_stopping(tmp_path, how, patience):
    options = stopping(patience)
    whole = whole_run(tmp_path / "whole", 18, **copy.deepcopy(options))
    whole.train()
    for first in (1, 2, 3, 4, 5, 6, 11, 12, 17):
        if first <= whole.step:
            assert_same_run(extended(tmp_path / str(first), how, first, 18, **options), whole)


def test_early_stopping_is_tried_on_runs_that_stop_and_on_runs_that_do_not(tmp_path):
    found = set()
    for patience in (1, 2, 3):
        run = whole_run(None, 18, **stopping(patience))
        run.train()
        found.add(run.stopped_early)
    assert found == {True, False}


@pytest.mark.parametrize("how", ["resume", "train"])
def test_more_epochs_of_padded_batches_are_one_long_run(tmp_path, how):
    def run(epochs, directory):
        return Trainer(
            language_model(dropout=0.2), PaddedBatches(sequences(), 2, rng=4), Adam(0.05), epochs=epochs, rng=1,
            validation=stream(seed=1), patience=1, directory=directory, progress=False, log_interval=3,
        )  # fmt: skip

    whole, part = run(5, tmp_path / "whole"), run(3, tmp_path / "part")
    whole.train()
    part.train()
    if how == "train":
        part.total = whole.total
    else:
        part = run(5, tmp_path / "part")
        part.resume()
    part.train()
    assert_same_run(part, whole)


def test_a_run_is_extended_several_times_and_ends_again_in_between(tmp_path):
    whole, part = whole_run(tmp_path / "whole"), whole_run(tmp_path / "part", 2)
    whole.train()
    for number, steps in enumerate((2, 2, 5, 7, 7, STEPS)):
        part.total = steps
        part.train()
        ended = whole_run(tmp_path / f"{number}", steps)
        ended.train()
        assert_same_run(part, ended)
        again = whole_run(tmp_path / "part", steps)
        again.resume()
        again.train()
        assert_same_run(again, ended)
        part.train()
    assert_same_run(part, whole)


def test_the_end_of_a_run_is_in_its_metrics_and_its_model(tmp_path):
    run = whole_run(tmp_path, 5, patience=1, optimizer=SGD(lr=0.3), schedule=None)
    run.train()
    assert [(r["step"], *(n for n in ("loss", "validation_loss") if n in r)) for r in run.history] == [
        (3, "validation_loss"), (4, "loss"), (5, "loss"), (5, "validation_loss")
    ]  # fmt: skip
    assert not run.stopped_early


def test_the_line_of_the_last_validation_is_last(tmp_path):
    run = whole_run(tmp_path, 6)
    run.train()
    expected = [(3, True), (4, False), (6, False), (6, True)]
    assert [(r["step"], "validation_loss" in r) for r in run.history] == expected
    resumed = whole_run(tmp_path)
    resumed.resume()
    assert [(r["step"], "validation_loss" in r) for r in resumed.history] == [(3, True), (4, False), (6, True)]


# --- copies ---


def pickled(run):
    return pickle.loads(pickle.dumps(run))


@pytest.mark.parametrize("copied", [pickled, copy.deepcopy])
@pytest.mark.parametrize("moment", ["before", "after", "on_gradients", "on_checkpoint", "between", "interrupted"])
def test_a_copy_of_a_trainer_goes_on_with_the_same_bits(tmp_path, copied, moment):
    directory = tmp_path / "part" if moment != "on_gradients" else None
    whole, part = whole_run(tmp_path / "whole"), whole_run(directory)
    whole.train()
    copies = []

    def take(*_):
        part.on_gradients = part.on_checkpoint = None
        copies.append(copied(part))

    if moment == "before":
        take()
        copies[0].train()
    elif moment == "after":
        part.train()
        take()
        copies[0].train()
    elif moment == "between":
        part.total = 7
        part.train()
        take()
        copies[0].total = STEPS
        copies[0].train()
    elif moment == "on_gradients":
        part.on_gradients = lambda step, *_: take() if step == 5 else None
        part.train()
        assert copies[0].step == 5
        copies[0].train()
    elif moment == "on_checkpoint":
        part.on_checkpoint = lambda: take() if part.step == 5 else None
        part.train()
        assert copies[0].step == 5
        copies[0].directory = copies[0]._folder = None
        copies[0].train()
        copies[0].directory = None
    else:
        part.on_gradients = raiser(None, 6, Stop())
        with pytest.raises(Stop):
            part.train()
        part.on_gradients = None
        take()
        copies[0].train()
    assert_same_run(copies[0], whole)
    assert copies[0].model is not part.model
    assert_same(
        {k: v.shape for k, v in copies[0].model.params.items()}, {k: v.shape for k, v in part.model.params.items()}
    )


def test_what_cannot_be_pickled_is_named_by_python():
    run = whole_run(schedule=lambda step: 0.1)
    with pytest.raises((pickle.PicklingError, AttributeError), match=r"<locals>.<lambda>|<lambda>"):
        pickle.dumps(run)


def test_a_trainer_that_records_gradients_is_pickled():
    run = whole_run(on_gradients=GradientNorms())
    run.train()
    assert pickled(run).on_gradients.norms == run.on_gradients.norms


# --- NumPy's scalars ---


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.float16])
def test_numpy_scalars_as_options_are_logged_and_saved(tmp_path, kind):
    for i, schedule in enumerate(
        (None, lambda step: kind(0.25), schedules.TimeBased(kind(0.25), kind(0.5)),
         schedules.CosineWithWarmup(kind(0.25), np.int32(9)), schedules.CosineWithWarmRestarts(kind(0.25), np.int64(3)),
         schedules.ReduceOnPlateau(kind(0.25), kind(0.5), np.int8(1)))
    ):  # fmt: skip

        def run(steps, i=i, schedule=schedule):
            return trainer(
                language_model(), stream(), optimizer=Adam(kind(0.25)), schedule=copy.deepcopy(schedule), steps=steps,
                clip_norm=kind(1.0), clip_value=kind(0.5), l2={"weight_hh": kind(0.25)}, log_interval=np.int64(1),
                checkpoint_interval=np.int32(2), validation=stream(seed=1), validation_interval=np.uint8(2),
                patience=np.int16(9), directory=tmp_path / str(i),
            )  # fmt: skip

        run(np.int64(3)).train()
        resumed = run(np.uint8(5))
        assert resumed.resume() == 3
        resumed.train()
        lines = (tmp_path / str(i) / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line) for line in lines] == resumed.history
        assert all(type(value) in (int, float, str) for record in resumed.history for value in record.values())


class Counted(TokenStream):
    """A user's data, with counts that are NumPy scalars."""

    def num_batches(self, epoch):
        return np.int64(len(self))

    def batch(self, epoch, index):
        found = super().batch(epoch, index)
        return type(found)(found.inputs, found.targets, found.lengths, np.int64(found.count))

    def config(self):
        return {**super().config(), "share": np.float32(0.5), "sizes": [np.int64(1), np.int64(2)]}


def test_numpy_scalars_of_data_are_logged_and_saved(tmp_path):
    def run(steps):
        data = Counted(np.random.default_rng(0).integers(0, 6, 70, dtype=np.int32), 3, 4)
        model = LanguageModel(CharVocabulary("?abcde"), 4, 5)
        return trainer(model, data, steps=steps, directory=tmp_path, log_interval=2)

    run(7).train()
    resumed = run(9)
    assert resumed.resume() == 7
    resumed.train()
    assert [record["step"] for record in resumed.history] == [2, 4, 6, 8, 9]


def test_a_schedule_that_gives_no_rate_is_named():
    with pytest.raises(ValueError, match=r"Trainer: schedule\(2\) is -1.0, expected a number of at least 0"):
        trainer(language_model(), stream(), schedule=lambda step: 1.0 - step).train()
    with pytest.raises(TypeError, match=r"Trainer: schedule\(0\) is 'x', expected a number of at least 0"):
        trainer(language_model(), stream(), schedule=lambda step: "x").train()
