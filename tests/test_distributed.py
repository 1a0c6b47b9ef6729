"""Training on several processes: the bits of shards, matching sums, errors that end all, kills and resumes.

The communicator of these tests is made of threads; tests marked slow start processes with mpiexec and torchrun.
"""

import contextlib
import copy
import io
import itertools
import json
import os
import random
import re
import shlex
import subprocess
import sys
import sysconfig
import threading
import time
import types
from pathlib import Path

import numpy as np
import pytest

import gpurnn
from gpurnn import distributed
from gpurnn.cli.terminal import Refusal, one_of_several
from gpurnn.cli.train import train as cli
from gpurnn.distributed.communicator import _OF_MPI as OF_MPI
from gpurnn.distributed.communicator import _wait_until_read as wait_until_read
from gpurnn.training import CheckpointError, PaddedBatches, TokenStream, Trainer


class Threads(distributed.Communicator):
    """One of several threads, which exchange values through a shared list."""

    def __init__(self, rank, size, shared):
        self.rank, self.size, self._shared = rank, size, shared

    def all_gather(self, value):
        values, barrier = self._shared
        values[self.rank] = value
        barrier.wait(20)
        every = list(values)
        barrier.wait(20)
        return every

    def all_to_all(self, parts, sizes):
        received = [of_rank[self.rank] for of_rank in self.all_gather(list(parts))]
        assert [part.size for part in received] == list(sizes)
        return received

    def all_gather_array(self, part, sizes):
        parts = self.all_gather(part)
        assert [part.size for part in parts] == list(sizes)
        return np.concatenate(parts)

    def _sum(self, flat):
        return np.sum(self.all_gather(flat), axis=0, dtype=flat.dtype)


def on_threads(size, function):
    """The results, or the exceptions, of ``function(communicator)`` on each of ``size`` threads."""
    shared = ([None] * size, threading.Barrier(size))
    results = [None] * size

    def run(rank):
        try:
            results[rank] = function(Threads(rank, size, shared))
        except Exception as error:
            results[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def tree(values):
    """The sum of the halves, by definition."""
    if len(values) == 1:
        return values[0]
    half = 1 << ((len(values) - 1).bit_length() - 1)
    return tree(values[:half]) + tree(values[half:])


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("shards", [1, 2, 3, 4, 6, 7, 8])
def test_sum_over_shards_has_the_bits_of_the_tree(size, shards):
    rng = np.random.default_rng(shards)
    leaves = [
        {"a": rng.normal(size=(3, 5)).astype("float32"), "b": rng.normal(size=4), "c": np.float32(rng.normal(size=()))}
        for _ in range(shards)
    ]

    def summed(communicator):
        sums = distributed.ShardSum(communicator, shards)
        for shard in distributed.own_shards(communicator, shards):
            sums.add(shard, leaves[shard])
        return sums.total(leaves[0])

    expected = {name: tree([leaf[name] for leaf in leaves]) for name in leaves[0]}
    for result in on_threads(size, summed):
        assert not isinstance(result, Exception), result
        for name, value in expected.items():
            assert result[name].dtype == value.dtype
            np.testing.assert_array_equal(result[name], value)


def test_shards_share_out_all_rows():
    stream = TokenStream(np.arange(100), 7, 3)
    whole = stream.batch(0, 1)
    parts = [stream.shard(0, 1, s, 3) for s in range(3)]
    np.testing.assert_array_equal(np.concatenate([p.inputs for p in parts], axis=1), whole.inputs)
    np.testing.assert_array_equal(np.concatenate([p.targets for p in parts], axis=1), whole.targets)
    assert sum(p.count for p in parts) == whole.count
    assert [stream.shard(0, 0, s, 9) is None for s in range(9)].count(True) == 2


def test_shards_of_padded_batches_have_their_own_lengths_and_counts():
    sequences = [np.arange(1, n + 1) for n in (5, 2, 7, 3, 4)]
    data = PaddedBatches(sequences, 5, shuffle=False)
    whole, parts = data.batch(0, 0), [data.shard(0, 0, s, 2) for s in range(2)]
    assert [p.inputs.shape for p in parts] == [(4, 2), (6, 3)]
    assert sum(p.count for p in parts) == whole.count
    np.testing.assert_array_equal(np.concatenate([p.lengths for p in parts]), whole.lengths)


def small(communicator, shards=None, to=np, **options):
    rng = np.random.default_rng(0)
    sequences = [to.asarray(rng.normal(size=(n, 2))) for n in rng.integers(1, 6, 11)]
    labels = [to.asarray(n % 2) for n in range(11)]
    model = gpurnn.SequenceClassifier(
        2,
        5,
        2,
        2,
        bidirectional=True,
        dtype="float64",
        dropout=0.3,
        variational_dropout=0.2,
        recurrent_dropout=0.2,
        rng=1,
    ).to(to)
    data = PaddedBatches(sequences, 4, labels, per_sequence=True)
    trainer = Trainer(
        model, data, gpurnn.Adam(0.01), clip_norm=1.0, progress=False, communicator=communicator, shards=shards,
        **{"steps": 6, "validation": data, "rng": 2, **options},
    )  # fmt: skip
    return model, trainer


def trained(communicator, shards=None, **options):
    model, trainer = small(communicator, shards, **options)
    trainer.train()
    return dict(model.params), [r["validation_loss"] for r in trainer.history if "validation_loss" in r], trainer


@pytest.mark.parametrize(("accumulated", "sizes"), [(1, (3, 4)), (2, (2,))])
def test_shards_give_the_bits_of_one_process_and_whole_batches_up_to_rounding(accumulated, sizes):
    options = {"gradient_accumulation_steps": accumulated, "steps": 4}
    alone, losses, _ = trained(None, shards=4, **options)
    whole, of_whole, _ = trained(None, **options)
    for size in sizes:
        for params, found, _ in on_threads(size, lambda c: trained(c, shards=4, **options)):
            assert found == losses
            for name in alone:
                np.testing.assert_array_equal(params[name], alone[name])
    for name in alone:
        np.testing.assert_allclose(whole[name], alone[name], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(of_whole, losses, rtol=1e-9)


def test_sums_of_the_transport_give_one_process_up_to_rounding():
    whole, losses, _ = trained(None)
    results = on_threads(3, trained)
    for params, found, _ in results:
        np.testing.assert_allclose(found, losses, rtol=1e-9)
        for name in whole:
            np.testing.assert_allclose(params[name], whole[name], rtol=1e-9, atol=1e-12)


def examples(kind):
    """A model of a class, and data for its ``fit``."""
    rng = np.random.default_rng(0)
    inputs = [rng.normal(size=(n, 2)) for n in rng.integers(2, 7, 11)]
    tokens = [rng.integers(1, 9, n) for n in rng.integers(1, 7, 11)]
    options = {"dtype": "float64", "rng": 1}
    letters = gpurnn.CharVocabulary.from_text("abcdef")
    return {
        "EncoderDecoder": lambda: (gpurnn.EncoderDecoder(9, 9, 4, 5, **options), tokens, [t[::-1] for t in tokens]),
        "Forecaster": lambda: (gpurnn.Forecaster(5, 4, **options), [np.sin(np.arange(13.0))], None),
        "LanguageModel": lambda: (gpurnn.LanguageModel(letters, 4, 5, **options), "abcdeffedcbabcdef" * 9, None),
        "SequenceClassifier": lambda: (gpurnn.SequenceClassifier(2, 5, 2, **options), inputs, [0, 1] * 5 + [0]),
        "SequenceGenerator": lambda: (
            gpurnn.SequenceGenerator(2, 5, 9, **options), rng.normal(size=(11, 2)), tokens
        ),
        "SequenceRegressor": lambda: (gpurnn.SequenceRegressor(2, 5, 1, **options), inputs, [len(x) for x in inputs]),
        "SequenceTagger": lambda: (
            gpurnn.SequenceTagger(2, 5, 2, **options), inputs, [(x[:, 0] > 0).astype(int) for x in inputs]
        ),
        "Translator": lambda: (
            gpurnn.Translator(letters, letters, 4, 5, **options), ["abc", "de", "f"] * 4, ["cba", "ed", "f"] * 4
        ),
    }[kind]()  # fmt: skip


MODELS = [
    name for name, found in ((name, getattr(gpurnn, name)) for name in dir(gpurnn))
    if isinstance(found, type) and issubclass(found, gpurnn.models.Model)
]  # fmt: skip


@pytest.mark.parametrize("kind", MODELS)
def test_fit_of_every_model_shares_out_its_batches(kind):
    def fitted(communicator, shards):
        model, X, y = examples(kind)
        model.fit(
            X, y, steps=4, batch_size=4, validation_split=0.3, communicator=communicator, shards=shards, verbose=False
        )
        return dict(model.params)

    whole, alone = fitted(None, None), fitted(None, 3)
    for shards, expected, rtol in ((3, alone, 0), (None, whole, 1e-9)):
        for found in on_threads(2, lambda c, shards=shards: fitted(c, shards)):
            assert not isinstance(found, Exception), found
            for name, values in expected.items():
                np.testing.assert_allclose(found[name], values, rtol=rtol, atol=1e-12 if rtol else 0)
    for name, values in whole.items():
        np.testing.assert_allclose(alone[name], values, rtol=1e-9, atol=1e-12)


def with_dropout(kind):
    """A model that draws random numbers, its data and options."""
    rng = np.random.default_rng(0)
    if kind == "zoneout":
        vocabulary = gpurnn.CharVocabulary.from_text("abcdef")
        model = gpurnn.LanguageModel(
            vocabulary, 3, 4, dtype="float64", dropout=0.2, cell_options={"zoneout": (0.3, 0.2)}, rng=1
        )
        return model, TokenStream(rng.integers(0, 7, 120), 7, 5), {"gradient_checkpoint_every": 2}
    sources = [rng.integers(1, 9, n) for n in rng.integers(1, 7, 11)]
    model = gpurnn.EncoderDecoder(
        9, 9, 5, 4, num_layers=2, attention="additive", dropout=0.3, dtype="float64", rng=1
    )  # its decoder goes step by step
    data = PaddedBatches(sources, 7, [np.append(s[::-1], 0) for s in sources], own_lengths=True)
    return model, data, {"teacher_forcing": 0.5}


@pytest.mark.parametrize("kind", ["zoneout", "scheduled sampling"])
def test_dropout_is_that_of_a_row_of_the_whole_batch(kind):
    """Several processes and shards make the same random draws as one process does with the whole batch."""

    def steps(communicator, shards=None):
        model, data, options = with_dropout(kind)
        trainer = Trainer(
            model, data, gpurnn.SGD(0.1), steps=2, progress=False, communicator=communicator, shards=shards, **options
        )
        trainer.train()
        return dict(model.params)

    whole = steps(None)
    for found in [steps(None, 3), *on_threads(3, steps), *on_threads(2, lambda c: steps(c, 4))]:
        assert not isinstance(found, Exception), found
        for name in whole:
            np.testing.assert_allclose(found[name], whole[name], rtol=1e-9, atol=1e-12)


def drawn(communicator):
    """The step, and the first number its rng draws, for each shard that this process computes."""
    model, trainer = small(communicator, 4, steps=3)
    compute, draws = model.loss_and_gradients, []

    def watched(*args, rng, **kwargs):
        draws.append((trainer.step, copy.deepcopy(rng).random()))
        return compute(*args, rng=rng, **kwargs)

    model.loss_and_gradients = watched
    trainer.train()
    return draws


def test_randomness_of_a_shard_follows_from_its_step_and_number():
    alone = drawn(None)
    # No two draws are alike, in steps or in shards. The last step has only three rows, so one shard is empty.
    assert len({draw for _, draw in alone}) == len(alone) == 4 + 4 + 3
    for size in (2, 3):
        assert sorted(itertools.chain(*on_threads(size, drawn))) == sorted(alone)


@pytest.mark.filterwarnings("ignore:Trainer. shards=2 leaves 1 of 3 processes without work")
def test_process_without_work_takes_part():
    alone, losses, _ = trained(None, shards=2)
    for params, found, _ in on_threads(3, lambda c: trained(c, shards=2)):
        assert found == losses
        np.testing.assert_array_equal(params["output.weight"], alone["output.weight"])


def test_resumes_on_another_number_of_processes(tmp_path):
    whole, losses, _ = trained(None, shards=4)

    def begun(communicator):
        _, trainer = small(communicator, 4, directory=tmp_path / "run", checkpoint_interval=2)
        trainer.total = 4
        trainer.train()

    assert on_threads(4, begun) == [None] * 4

    def resumed(communicator):
        model, trainer = small(communicator, 4, directory=tmp_path / "run", resume=True)
        assert trainer.step == 4
        trainer.train()
        return dict(model.params), [r["validation_loss"] for r in trainer.history if "validation_loss" in r]

    for params, found in on_threads(2, resumed):
        assert found == losses
        for name in whole:
            np.testing.assert_array_equal(params[name], whole[name])


def test_run_without_shards_resumes_on_as_many_processes_only(tmp_path):
    def begun(communicator, resume=False):
        _, trainer = small(communicator, directory=tmp_path / "run", resume=resume, steps=1)
        trainer.train()

    assert on_threads(2, begun) == [None, None]
    expected = r"a run without shards on 2 processes, but here there are 1; only a run with shards resumes on another"
    with pytest.raises(CheckpointError, match=expected):
        begun(None, resume=True)


def test_an_error_of_one_process_ends_all():
    def failing(communicator):
        model, trainer = small(communicator, 3)
        compute = model.loss_and_gradients

        def broken(*args, **kwargs):
            if communicator.rank == 1 and trainer.step == 2:
                raise OSError("the disk is gone")
            return compute(*args, **kwargs)

        model.loss_and_gradients = broken
        trainer.train()

    results = on_threads(3, failing)
    assert [type(r) for r in results] == [RuntimeError, OSError, RuntimeError]
    assert str(results[0]) == "Trainer: process 1 of 3 ended with OSError: the disk is gone"


def differing(communicator, what):
    """`small`, where only process 1 has the options ``what``."""
    own = dict(what) if communicator.rank == 1 else {}
    steps, parameters = own.pop("steps", 6), own.pop("parameters", None)
    model, trainer = small(communicator, own.pop("shards", None), **own)
    trainer.total = steps
    if parameters is not None:
        model.params["output.bias"][...] = parameters
    trainer.train()


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ({"steps": 5}, "total is 6 in process 0 and 5 in process 1"),
        ({"callbacks": (print,)}, "the number of callbacks is 0 in process 0 and 1 in process 1"),
        ({"on_gradients": print}, "whether there is an on_gradients is False in process 0 and True in process 1"),
        ({"validation_interval": 2}, "validation_interval is None in process 0 and 2 in process 1"),
        ({"validation": None}, r"validation is {.*} in process 0 and None in process 1"),
        ({"gradient_accumulation_steps": 2, "steps": 6}, "gradient_accumulation_steps is None in process 0 and 2 in"),
        ({"shards": 2}, "shards is None in process 0 and 2 in process 1"),
        ({"schedule": lambda step: 0.1}, r"learning_rate is None in process 0 and \[0.1, 0.1, 0.1\] in process 1"),
        ({"rng": 7}, r"the crc32 of the state of rng is \d+ in process 0 and \d+ in process 1"),
        ({"parameters": 1.0}, r"the crc32 of the parameters is \d+ in process 0 and \d+ in process 1"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_trainers_that_differ_are_rejected_in_all_processes(what, message):
    for found in on_threads(2, lambda c: differing(c, what)):
        assert isinstance(found, ValueError), found
        assert re.match(f"Trainer: {message}", str(found)), found


@pytest.mark.parametrize("shards", [None, 2])
def test_processors_that_differ_are_rejected_with_shards(monkeypatch, shards):
    """The bits would differ from those of one process."""
    own = threading.local()
    monkeypatch.setattr(gpurnn._dispatch, "computing", lambda array: f"native ({own.instructions})")

    def on_another(communicator):
        own.instructions = ("avx512", "avx2")[communicator.rank]
        trained(communicator, shards, steps=1)

    first, second = on_threads(2, on_another)
    if shards is None:
        assert (first, second) == (None, None)
    else:
        expected = "Trainer: what computes is native (avx512) in process 0 and native (avx2) in process 1, expected the"
        assert str(first).startswith(expected)
        assert str(second) == str(first)


def test_process_that_resumes_alone_is_rejected_in_all(tmp_path):
    def begun(communicator):
        small(communicator, directory=tmp_path / "run", resume=communicator.rank == 1)[1].train()

    for found in on_threads(2, begun):
        assert isinstance(found, ValueError), found
        assert "the call is train() in process 0 and resume=True in process 1" in str(found)


def test_trains_on_with_a_state_and_a_directory(tmp_path):
    """In a second call of `train`, the processes exchange the recurrent state at the same moments."""

    def streamed(communicator, directory):
        model = gpurnn.LanguageModel(gpurnn.CharVocabulary.from_text("abcdef"), 3, 4, dtype="float64", rng=1)
        trainer = Trainer(
            model, TokenStream(np.arange(120) % 7, 4, 5), steps=3, progress=False, communicator=communicator,
            directory=None if directory is None else tmp_path / directory, shards=4,
        )  # fmt: skip
        trainer.train()
        trainer.total = 7
        trainer.train()
        return dict(model.params)

    alone = streamed(None, None)
    for params in on_threads(2, lambda c: streamed(c, "run")):
        assert not isinstance(params, Exception), params
        for name, values in alone.items():
            np.testing.assert_array_equal(params[name], values)


def test_checkpoint_that_cannot_be_written_ends_all(tmp_path):
    def failing(communicator):
        model = gpurnn.LanguageModel(gpurnn.CharVocabulary.from_text("abcdef"), 3, 4, rng=1)
        trainer = Trainer(
            model, TokenStream(np.arange(120) % 7, 4, 5), steps=6, progress=False, communicator=communicator,
            directory=tmp_path / "run", checkpoint_interval=2,
        )  # fmt: skip
        folder = trainer._folder

        def full():
            if trainer.step == 2:
                raise OSError("the disk is full")

        if communicator.rank == 0:
            folder.flush_metrics = full
        trainer.train()

    results = on_threads(2, failing)
    assert [type(r) for r in results] == [OSError, RuntimeError]
    assert str(results[1]) == "Trainer: process 0 of 2 ended with OSError: the disk is full"


def test_an_exit_of_one_process_ends_all():
    def leaving(trainer):
        raise SystemExit(3)

    def trained_or_left(communicator):
        try:
            trained(communicator, 2, callbacks=leaving)
        except SystemExit as left:
            return left.code

    code, error = on_threads(2, trained_or_left)
    assert code == 3
    assert str(error) == "Trainer: process 0 of 2 ended with SystemExit: 3"


def test_process_0_alone_calls_functions_and_its_stop_ends_all():
    calls = []

    def stopping(communicator):
        def callback(trainer):
            calls.append((communicator.rank, trainer.step))
            trainer.stop()

        _, trainer = small(communicator, 2, callbacks=callback, on_log=lambda r: calls.append(communicator.rank))
        trainer.train()
        return trainer.step

    assert on_threads(2, stopping) == [3, 3]
    assert (0, 3) in calls
    assert all(rank == 0 for rank in (c if isinstance(c, int) else c[0] for c in calls))


def test_an_error_of_a_callback_ends_all():
    def callback(trainer):
        raise LookupError("no such metric")

    results = on_threads(2, lambda c: trained(c, 2, callbacks=callback))
    assert [type(r) for r in results] == [LookupError, RuntimeError]


def test_process_0_ends_all_from_a_line_of_the_metrics():
    """The stop reaches all processes, even if no moment of agreement follows at once."""

    def stopping(communicator):
        _, trainer = small(communicator, 2, log_interval=2, on_log=lambda record: trainer.stop())
        trainer.train()
        return trainer.step

    assert on_threads(2, stopping) == [2, 2]


def test_interrupt_of_one_process_after_all_were_asked_waits_for_the_next_time():
    def interrupted(communicator):
        _, trainer = small(communicator, 2)
        ask, asked = trainer._is_to_end, []

        def late(event):
            answer = ask(event)
            asked.append(answer)
            if communicator.rank == 1 and trainer.step == 2:
                event.set()
            return answer

        trainer._is_to_end = late
        try:
            trainer.train()
        except KeyboardInterrupt:
            return trainer.step, asked

    assert on_threads(2, interrupted) == [(3, [False, False, False, True, True])] * 2


def test_failure_in_the_middle_of_a_sum_is_not_told_to_those_who_wait_in_it():
    """The process raises at once, so that its end ends the others."""

    def failing(communicator):
        def full(flat):
            raise MemoryError("no room for a sum")

        if communicator.rank == 1:
            communicator._sum = full
        try:
            trained(communicator)
        except MemoryError:
            assert communicator.broken
            communicator._shared[1].abort()  # as MPI does
            raise

    assert [type(found) for found in on_threads(2, failing)] == [threading.BrokenBarrierError, MemoryError]


@pytest.mark.parametrize("shards", [None, 3])
def test_gradient_of_another_shape_is_rejected_in_all_processes(shards):
    """The transposed gradient has as many entries as the parameter, so it would fit into the sum."""

    def broken(communicator):
        model, trainer = small(communicator, shards)
        compute = model.loss_and_gradients

        def transposed(*args, **kwargs):
            *found, grads = compute(*args, **kwargs)
            return *found, {**grads, "output.weight": grads["output.weight"].T}

        if communicator.rank == 1:
            model.loss_and_gradients = transposed
        trainer.train()

    error, cause = on_threads(2, broken)
    assert isinstance(cause, ValueError)
    assert str(cause).startswith("Trainer: grads['output.weight'] has shape (10, 2), expected the parameter's shape")
    assert str(error) == f"Trainer: process 1 of 2 ended with ValueError: {cause}"


@pytest.mark.parametrize(("shards", "expected"), [(None, 4), (2, 5)])
def test_exchanges_of_a_step(shards, expected):
    """All losses, their sums (two exchanges with shards), whether the step succeeded, and whether to end."""

    def exchanges(communicator, steps):
        _, trainer = small(communicator, shards, steps=steps, validation=None, log_interval=100)
        gather, count = communicator.all_gather, itertools.count()
        communicator.all_gather = lambda value: next(count) < 0 or gather(value)
        trainer.train()
        return next(count)

    (few, _), (many, _) = (on_threads(2, lambda c, steps=steps: exchanges(c, steps)) for steps in (1, 2))
    assert many - few == expected


def test_scans_go_from_either_end():
    def scanned(communicator):
        own = f"{communicator.rank}"
        return [communicator.scan(own, str.__add__, backward=backward) for backward in (False, True)]

    assert on_threads(4, scanned) == [[None, "321"], ["0", "32"], ["01", "3"], ["012", None]]


def test_all_reduce_sums_by_dtype():
    def summed(communicator):
        arrays = [np.full((2, 3), communicator.rank + 1.0), np.full(4, communicator.rank, "float32")]
        return communicator.all_reduce(arrays)

    for a, b in on_threads(3, summed):
        np.testing.assert_array_equal(a, np.full((2, 3), 6.0))
        np.testing.assert_array_equal(b, np.full(4, 3, "float32"))
        assert b.dtype == "float32"


def test_sums_in_16_bits_on_the_wire():
    rng = np.random.default_rng(0)
    parts = [rng.normal(size=(3, 50)).astype("float32") for _ in range(3)]
    special = np.array([np.nan, np.inf, 3e38, 0.0, -0.0], "float32")

    def summed(communicator):
        sent = []
        exchange = communicator.all_to_all
        communicator.all_to_all = lambda parts, sizes: (
            sent.extend(part.nbytes for part in parts) or exchange(parts, sizes)
        )
        communicator.wire_dtype = "bfloat16"
        a, b, c = communicator.all_reduce([parts[communicator.rank], special, np.ones(2)])
        return a, b, c, sum(sent)

    results = on_threads(3, summed)
    for a, b, c, sent in results:
        assert (a.dtype, a.shape, c.dtype) == ("float32", (3, 50), "float64")
        # Each addend and the sum are rounded to eight bits.
        bound = 2.0**-8 * (np.sum(np.abs(parts), axis=0) + np.abs(np.sum(parts, axis=0))) * 1.01
        error = np.abs(a - np.sum(parts, axis=0, dtype="float64"))
        assert (error <= bound).all()
        assert error.max() > 1e-3  # it does travel in 16 bits
        np.testing.assert_array_equal(b, [np.nan, np.inf, np.inf, 0.0, 0.0])
        np.testing.assert_array_equal(c, [3.0, 3.0])
        assert sent == 2 * (150 + 5)
        np.testing.assert_array_equal(a, results[0][0])


def test_rounding_to_16_bits_is_to_nearest_and_even():
    from gpurnn.distributed.communicator import _of_upper_halves, _upper_halves

    unit = 2.0**-7  # the unit of bfloat16 above 1
    values = {1 + 0.5 * unit: 1.0, 1 + 1.5 * unit: 1 + 2 * unit, 1 + 0.51 * unit: 1 + unit, -1 - 0.49 * unit: -1.0}
    found = _of_upper_halves(_upper_halves(np.array([*values], "float32")))
    np.testing.assert_array_equal(found, [*values.values()])


def test_a_wire_dtype_that_is_none_is_rejected():
    alone = distributed.Communicator()
    alone.wire_dtype = "float16"
    with pytest.raises(ValueError, match=r"all_reduce: wire_dtype is 'float16', expected one of 'bfloat16'"):
        alone.all_reduce([np.ones(2, "float32")])


def test_what_cannot_be_sharded_is_rejected():
    class Data:
        carries_state = False

        def __len__(self):
            return 1

        def batch(self, epoch, index): ...

        def config(self):
            return {}

    model, _ = small(None)
    with pytest.raises(TypeError, match=r"Trainer: data is .* without \['shard'\]"):
        Trainer(model, Data(), steps=1, shards=2)
    with pytest.raises(TypeError, match=r"communicator is an int, expected a gpurnn\.distributed\.Communicator"):
        Trainer(model, PaddedBatches([np.ones((1, 2))], 1, [np.array(0)], per_sequence=True), steps=1, communicator=3)


def test_alone_without_a_launcher(monkeypatch):
    for name in (*OF_MPI, "RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    alone = distributed.communicator()
    assert (type(alone), alone.rank, alone.size) == (distributed.Communicator, 0, 1)


# --- sequences cut over processes ---


def chunks(size, T):
    """The steps of each process: uneven, and none for the second process if there are more than two."""
    cuts = sorted([0, *(T * r * r // (size * size) for r in range(1, size)), T])
    if size > 2:
        cuts[1] = cuts[2]
    return [slice(a, b) for a, b in itertools.pairwise(cuts)]


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("dtype", ["float64", "complex128"])
@pytest.mark.parametrize("shared", [False, True])
def test_linear_scan_over_processes(size, dtype, shared):
    rng = np.random.default_rng(0)

    def drawn(*shape):
        z = rng.normal(size=shape)
        return (z + 1j * rng.normal(size=shape) if dtype == "complex128" else z).astype(dtype)

    T, B, N = 23, 2, 3
    a, b, h0, dh = drawn(*((N,) if shared else (T, B, N))) / 2, drawn(T, B, N), drawn(B, N), drawn(T, B, N)
    h, pullback = gpurnn.linear_scan.vjp(a, b, h0)
    (da, db, dh0), _ = pullback(dh)

    def part(communicator):
        own = chunks(size, T)[communicator.rank]
        found, back = distributed.linear_scan.vjp(a if shared else a[own], b[own], h0, communicator=communicator)
        return own, found, back(dh[own])[0]

    for own, found, (da_own, db_own, dh0_own) in on_threads(size, part):
        np.testing.assert_allclose(found, h[own], rtol=1e-12)
        np.testing.assert_allclose(da_own, da if shared else da[own], rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(db_own, db[own], rtol=1e-12)
        np.testing.assert_allclose(dh0_own, dh0, rtol=1e-12)


@pytest.mark.parametrize("name", ["linear_scan", "diagonal", "dense"])
def test_product_of_many_steps_that_overflows_leaves_states_of_zero(name):
    """The states are zero before the first input, and the gradients after the last output."""
    T, N = 60, 2
    b, dh = np.zeros((T, 1, N), "float32"), np.zeros((T, 1, N), "float32")
    b[-1], dh[0] = 1, 1
    a = np.full(N, 1e20, "float32")
    A, one = np.diag(a) if name == "dense" else a, np.eye(N, dtype="float32")

    def scanned(x, **options):
        module = distributed if options else gpurnn
        if name == "linear_scan":
            h, back = module.linear_scan.vjp(a, x, **options)
            return h, lambda dh: back(dh)[0][1]
        (y, _), back = module.ssm.vjp(x, A, one, one, **options)
        return y, lambda dy: back((dy, None))[0][0]

    h, back = scanned(b)
    expected = back(dh)
    assert not np.any(h[:-1])

    def part(communicator):
        own = slice(20 * communicator.rank, 20 * communicator.rank + 20)
        found, back = scanned(b[own], communicator=communicator)
        return own, found, back(dh[own])

    for own, found, gradient in on_threads(3, part):
        np.testing.assert_array_equal(found, h[own])
        np.testing.assert_array_equal(gradient, expected[own])


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("kind", ["diagonal", "complex", "dense"])
@pytest.mark.parametrize("output_state", ["after", "before"])
def test_ssm_over_processes(size, kind, output_state):
    rng = np.random.default_rng(1)
    T, B, I, N, O = 19, 2, 2, 3, 2
    i = 1j if kind == "complex" else 0
    A = rng.normal(size=(N, N) if kind == "dense" else N) / 2 + (i * rng.normal(size=N) / 2 if i else 0)
    weights = [rng.normal(size=s) + (i * rng.normal(size=s) if i else 0) for s in ((N, I), (O, N))]
    x, D, state = rng.normal(size=(T, B, I)), rng.normal(size=(O, I)), rng.normal(size=(B, N)).astype(A.dtype)
    dy, dlast = rng.normal(size=(T, B, O)), rng.normal(size=(B, N)).astype(A.dtype)
    (y, last), pullback = gpurnn.ssm.vjp(x, A, *weights, D, state, output_state=output_state)
    (dx, dstate), gradients = pullback((dy, dlast))

    def part(communicator):
        own = chunks(size, T)[communicator.rank]
        (found, end), back = distributed.ssm.vjp(
            x[own], A, *weights, D, state, output_state=output_state, communicator=communicator
        )
        return own, found, end, back((dy[own], dlast))

    for own, found, end, ((dx_own, dstate_own), of_all) in on_threads(size, part):
        np.testing.assert_allclose(found, y[own], rtol=1e-11, atol=1e-13)
        np.testing.assert_allclose(end, last, rtol=1e-11)
        np.testing.assert_allclose(dx_own, dx[own], rtol=1e-11, atol=1e-13)
        np.testing.assert_allclose(dstate_own, dstate, rtol=1e-11, atol=1e-13)
        assert of_all.keys() == gradients.keys()
        for name, gradient in gradients.items():
            np.testing.assert_allclose(of_all[name], gradient, rtol=1e-11, atol=1e-13)


# --- CuPy arrays ---


class Mpi:
    """mpi4py's communicator, made of threads. It records the arrays that it sums."""

    def __init__(self, threads):
        self._threads, self.summed = threads, []

    def Get_rank(self):
        return self._threads.rank

    def Get_size(self):
        return self._threads.size

    def allgather(self, value):
        return self._threads.all_gather(value)

    def Allreduce(self, place, array):
        self.summed.append(type(array).__module__.partition(".")[0])
        if isinstance(array, np.ndarray):
            array[...] = np.sum(self.allgather(array.copy()), axis=0)
        else:
            array.set(np.sum(self.allgather(array.get()), axis=0))

    def bcast(self, value, root):
        return self._threads.broadcast(value, root)

    def Alltoallv(self, sent, received):
        self._exchange(sent[0], received[0], lambda values: self._threads.all_to_all(
            np.split(values, np.cumsum(sent[1])[:-1]), received[1]
        ))  # fmt: skip

    def Allgatherv(self, sent, received):
        self._exchange(sent, received[0], lambda values: [self._threads.all_gather_array(values, received[1])])

    def _exchange(self, sent, received, exchange):
        self.summed.append(type(sent).__module__.partition(".")[0])
        on_host = isinstance(sent, np.ndarray)
        found = np.concatenate(exchange(sent.copy() if on_host else sent.get()))
        if on_host:
            received[...] = found
        else:
            received.set(found)


class Nccl:
    """NCCL between threads. It records its calls, and exchanges the memory at the addresses it is given."""

    available = True
    NCCL_SUM, NCCL_UINT8, NCCL_FLOAT32, NCCL_FLOAT64 = 0, 1, 7, 8

    def __init__(self):
        self.identities, self.calls, self.threads = 0, {}, {}
        self.own = threading.local()

    def get_unique_id(self):
        self.identities += 1
        return tuple(range(128))

    def NcclCommunicator(self, size, identity, rank):
        assert identity == tuple(range(128))
        assert size == self.threads[rank].size
        self.calls[rank] = []
        self.own.ring = Ring(self, rank)
        return self.own.ring

    def groupStart(self):
        self.own.ring.begin()

    def groupEnd(self):
        self.own.ring.end()


def at(address, count, kind):
    """The CuPy array at the address that NCCL is given."""
    import cupy

    dtype = np.dtype({1: "uint8", 7: "float32", 8: "float64"}[kind])
    memory = cupy.cuda.UnownedMemory(address, count * dtype.itemsize, None, 0)
    return cupy.ndarray((count,), dtype, cupy.cuda.MemoryPointer(memory, 0))


class Ring:
    def __init__(self, nccl, rank):
        self._calls, self._threads = nccl.calls[rank], nccl.threads[rank]

    def allReduce(self, sent, received, count, kind, operation, stream):
        values = at(sent, count, kind).get()
        self._calls.append((sent == received, values.tolist(), kind, operation, stream))
        at(received, count, kind).set(np.sum(self._threads.all_gather(values), axis=0))

    def allGather(self, sent, received, count, kind, stream):
        whole = at(received, count * self._threads.size, kind)
        own = at(sent, count, kind)
        self._calls.append(
            ("gather", (own.data.ptr - whole.data.ptr) // own.dtype.itemsize, own.get().tolist(), stream)
        )
        whole.set(np.concatenate(self._threads.all_gather(own.get())))

    def begin(self):
        self._sent, self._received = {}, {}

    def send(self, address, count, kind, other, stream):
        self._sent[other] = (address, count, kind)
        self._calls.append(("send", other, count, kind, stream))

    def recv(self, address, count, kind, other, stream):
        self._received[other] = (address, count, kind)
        self._calls.append(("recv", other, count, kind, stream))

    def end(self):
        """Data to send is read when the group ends, not before."""
        every = self._threads.all_gather({other: at(*sent).get() for other, sent in self._sent.items()})
        assert {rank for rank, sent in enumerate(every) if self._threads.rank in sent} == self._received.keys()
        for other, received in self._received.items():
            at(*received).set(every[other][self._threads.rank])
        self._calls.append("end")

    def abort(self):
        self._calls.append("abort")


@pytest.fixture
def mpi(monkeypatch):
    """mpi4py without MPI."""
    names = types.SimpleNamespace(IN_PLACE="in place", COMM_TYPE_SHARED="shared", __file__="")
    monkeypatch.setitem(sys.modules, "mpi4py", types.SimpleNamespace(MPI=names))
    return names


@pytest.fixture
def nccl(mpi, monkeypatch):
    import cupy

    found = Nccl()
    monkeypatch.setattr(cupy.cuda, "nccl", found, raising=False)
    monkeypatch.setitem(sys.modules, "cupy.cuda.nccl", found)
    return found


def through_nccl(nccl, threads):
    nccl.threads[threads.rank] = threads
    return distributed.NCCLCommunicator(Mpi(threads))


@pytest.mark.gpu
def test_nccl_sums_one_buffer_of_each_dtype_on_the_current_stream(nccl):
    import cupy

    values = {
        "a": np.arange(6, dtype="float32").reshape(2, 3), "b": np.arange(4.0), "c": np.float32([[7]]),
        "d": np.array([1 + 2j, 3j]), "e": np.arange(3),
    }  # fmt: skip

    def summed(threads):
        communicator = through_nccl(nccl, threads)
        arrays = [cupy.asarray(value) * (threads.rank + 1) for value in values.values()]
        with cupy.cuda.Stream() as stream:
            found = communicator.all_reduce(arrays)
            again = communicator.all_reduce(arrays[:1])
        assert all(type(array) is cupy.ndarray for array in found)
        assert communicator._comm.summed == ["numpy"]  # the integers
        return [array.get() for array in found], again[0].get(), stream.ptr

    for rank, result in enumerate(on_threads(2, summed)):
        assert not isinstance(result, Exception), result
        found, again, stream = result
        for value, array in zip(values.values(), found, strict=True):
            assert array.dtype == value.dtype
            np.testing.assert_array_equal(array, 3 * value)
        np.testing.assert_array_equal(again, 3 * values["a"])
        a, b, c, d = (((rank + 1) * values[name]).ravel() for name in "abcd")
        # Summed in place: one buffer for each dtype, in the order of the arrays. A complex number is two numbers.
        buffers = [([*a, *c], 7), (b, 8), (d.view("float64"), 8), (a, 7)]
        assert nccl.calls[rank] == [(True, list(buffer), kind, 0, stream) for buffer, kind in buffers]
    assert nccl.identities == 1
    assert stream != 0


@pytest.mark.gpu
@pytest.mark.parametrize("size", [1, 2, 3])
def test_nccl_sums_over_shards_where_they_are(nccl, monkeypatch, size):
    import cupy

    rng = np.random.default_rng(0)
    shards = 5
    leaves = [
        {"a": rng.normal(size=(2, 3)).astype("float32"), "b": rng.normal(size=4), "c": np.float32([rng.normal()])}
        for _ in range(shards)
    ]

    def summed(threads):
        communicator = through_nccl(nccl, threads)
        with cupy.cuda.Stream() as stream:
            sums = distributed.ShardSum(communicator, shards)
            for shard in distributed.own_shards(communicator, shards):
                sums.add(shard, {name: cupy.asarray(value) for name, value in leaves[shard].items()})
            total = sums.total({name: cupy.asarray(value) for name, value in leaves[0].items()})
        assert communicator._comm.summed == []
        return {name: value.get() for name, value in total.items()}, stream.ptr

    with monkeypatch.context() as patched:
        patched.setattr(gpurnn._dispatch, "to_numpy", None)  # nothing may be copied to the host
        patched.setattr(gpurnn._dispatch, "from_numpy", None)
        results = on_threads(size, summed)
    expected = {name: tree([leaf[name] for leaf in leaves]) for name in leaves[0]}
    for rank, result in enumerate(results):
        assert not isinstance(result, Exception), result
        for name, value in expected.items():
            assert result[0][name].dtype == value.dtype
            np.testing.assert_array_equal(result[0][name], value)
        if size == 1:
            continue
        # Process 0 of 2 has the sum of the shards 0 and 1. Process 1 has the sum of 2 and 3, and separately 4.
        stream = result[1]
        kept = {2: (1, 2), 3: (1, 2, 2)}[size]
        own, calls = kept[rank], []
        for entries, kind in ((7, 7), (4, 8)):
            widths = [entries * (r + 1) // size - entries * r // size for r in range(size)]
            for other in set(range(size)) - {rank}:
                calls.append(("send", other, own * widths[other], kind, stream))
                calls.append(("recv", other, kept[other] * widths[rank], kind, stream))
            calls.append("end")
            flat = expected["b"] if kind == 8 else np.concatenate([expected["a"].ravel(), expected["c"]])
            begin = sum(widths[:rank])
            calls.append(("gather", rank * max(widths), [*flat[begin : begin + widths[rank]]], stream))
        found = [(*c[:2], c[2][: len(e[2])], c[3]) if c[0] == "gather" else c
                 for c, e in zip(nccl.calls[rank], calls, strict=True)]  # fmt: skip
        assert found == calls


@pytest.mark.gpu
def test_nccl_sums_in_16_bits_where_they_are(nccl, monkeypatch):
    import cupy

    parts = np.random.default_rng(0).normal(size=(2, 9)).astype("float32")

    def summed(threads):
        communicator = through_nccl(nccl, threads)
        communicator.wire_dtype = "bfloat16"
        (found,) = communicator.all_reduce([cupy.asarray(parts[threads.rank])])
        return found

    def on_host(threads):
        threads.wire_dtype = "bfloat16"
        return threads.all_reduce([parts[threads.rank]])[0]

    with monkeypatch.context() as patched:
        patched.setattr(gpurnn._dispatch, "to_numpy", None)
        found = on_threads(2, summed)
    for one, expected in zip(found, on_threads(2, on_host), strict=True):
        assert isinstance(one, cupy.ndarray), one
        np.testing.assert_array_equal(one.get(), expected)
    # Process 0 sums four of the nine numbers and process 1 five, in two bytes each.
    sent = [(call[0], call[2]) for call in nccl.calls[0] if call[0] in ("send", "recv")]
    assert sent == [("send", 10), ("recv", 8)]


@pytest.mark.gpu
def test_abort_of_nccl_comes_before_that_of_mpi(nccl, monkeypatch):
    import cupy

    def aborted(threads):
        communicator = through_nccl(nccl, threads)
        communicator.all_reduce([cupy.ones(2)])
        communicator._comm.Abort = lambda code: nccl.calls[threads.rank].append(f"Abort({code})")
        communicator.abort()

    monkeypatch.setattr(os, "_exit", lambda code: None)
    on_threads(2, aborted)
    assert all(calls[1:] == ["abort", "Abort(1)"] for calls in nccl.calls.values())


@pytest.mark.gpu
@pytest.mark.parametrize("takes_cuda", [True, False])
def test_mpi_sums_cupy_arrays_where_it_can(mpi, monkeypatch, takes_cuda):
    import cupy

    monkeypatch.setattr(distributed.communicator.__globals__["ctypes"], "CDLL", lambda path: library)
    library = types.SimpleNamespace(MPIX_Query_cuda_support=lambda: int(takes_cuda))
    order, own = [], threading.local()
    synchronize = types.SimpleNamespace(synchronize=lambda: order.append(len(own.communicator._comm.summed)))
    monkeypatch.setattr(cupy.cuda, "get_current_stream", lambda: synchronize)

    def summed(threads):
        own.communicator = communicator = distributed.MPICommunicator(Mpi(threads))
        (found,) = communicator.all_reduce([cupy.full((2, 2), threads.rank + 1.0)])
        sums = distributed.ShardSum(communicator, 2)
        sums.add(threads.rank, {"a": cupy.full((2, 2), threads.rank + 1.0)})
        of_shards = sums.total({"a": found})["a"]
        np.testing.assert_array_equal(of_shards.get(), found.get())
        return found.get(), communicator._comm.summed

    for result in on_threads(2, summed):
        assert not isinstance(result, Exception), result
        np.testing.assert_array_equal(result[0], np.full((2, 2), 3.0))
        assert result[1] == ["cupy" if takes_cuda else "numpy"] * 3
    # The stream is synchronised before each call.
    assert sorted(order) == ([0, 0, 1, 1, 2, 2] if takes_cuda else [])


@pytest.mark.gpu
@pytest.mark.parametrize("shards", [None, 3])
def test_trains_cupy_arrays_over_nccl(nccl, shards):
    import cupy

    def trained_on_gpu(communicator):
        model, trainer = small(communicator, shards, to=cupy, steps=2, validation=None)
        trainer.train()
        return {name: p.get() for name, p in model.params.items()}

    alone, _, _ = trained(None, steps=2)
    one = trained_on_gpu(None) if shards else {}
    for params in on_threads(2, lambda threads: trained_on_gpu(through_nccl(nccl, threads))):
        assert not isinstance(params, Exception), params
        for name, values in alone.items():
            np.testing.assert_allclose(params[name], values, rtol=1e-9, atol=1e-12)
            if shards:
                np.testing.assert_array_equal(params[name], one[name])
    each_step = 1 if shards is None else 4  # one sum; or a send, a receive, their end, and a gather
    assert [len(calls) for calls in nccl.calls.values()] == [2 * each_step] * 2


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("name", ["mingru", "minlstm"])
def test_minimal_cells_over_processes(size, name):
    rng = np.random.default_rng(2)
    T, B, I, H = 19, 2, 3, 4
    rows = {"mingru": 2, "minlstm": 3}[name] * H
    x, w, b, state = (rng.normal(size=shape) for shape in ((T, B, I), (rows, I), rows, (B, H)))
    dy, dlast = rng.normal(size=(T, B, H)), rng.normal(size=(B, H))
    whole, cut = getattr(gpurnn, name), getattr(distributed, name)
    (y, last), pullback = whole.vjp(x, w, b, state)
    (dx, dstate), gradients = pullback((dy, dlast))

    def part(communicator):
        own = chunks(size, T)[communicator.rank]
        (found, end), back = cut.vjp(x[own], w, b, state if communicator.rank == 0 else None, communicator=communicator)
        return own, found, end, back((dy[own], dlast))

    for own, found, end, ((dx_own, dstate_own), of_all) in on_threads(size, part):
        np.testing.assert_allclose(found, y[own], rtol=1e-12)
        np.testing.assert_allclose(end, last, rtol=1e-12)
        np.testing.assert_allclose(dx_own, dx[own], rtol=1e-11, atol=1e-13)
        np.testing.assert_allclose(dstate_own, dstate, rtol=1e-11, atol=1e-13)
        assert of_all.keys() == gradients.keys()
        for key, gradient in gradients.items():
            np.testing.assert_allclose(of_all[key], gradient, rtol=1e-11, atol=1e-13)


def test_kubernetes_files_of_the_guide_fit_together():
    yaml = pytest.importorskip("yaml")
    guide = Path(__file__).parents[1] / "docs" / "guides" / "processes.md"
    if not guide.exists():
        pytest.skip("the documentation is not there")
    blocks = re.findall(r"```yaml\n(.*?)```", guide.read_text(), re.DOTALL)
    service, job, of_mpi = (document for block in blocks for document in yaml.safe_load_all(block))
    assert (service["apiVersion"], service["kind"], service["spec"]["clusterIP"]) == ("v1", "Service", "None")
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job")
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    name, domain = job["metadata"]["name"], service["metadata"]["name"]
    assert service["spec"]["selector"] == {"job-name": name}
    assert (spec["completionMode"], pod["subdomain"], pod["restartPolicy"]) == ("Indexed", domain, "Never")
    (words,) = (shlex.split(argument) for argument in pod["containers"][0]["args"])
    given = {word: words[i + 1] for i, word in enumerate(words) if word.startswith("--") and i + 1 < len(words)}
    assert spec["completions"] == spec["parallelism"] == int(given["--nnodes"])
    assert (given["--node-rank"], given["--master-addr"]) == ("$JOB_COMPLETION_INDEX", f"{name}-0.{domain}")
    assert (of_mpi["apiVersion"], of_mpi["kind"]) == ("kubeflow.org/v2beta1", "MPIJob")
    launcher, worker = (of_mpi["spec"]["mpiReplicaSpecs"][kind] for kind in ("Launcher", "Worker"))
    command = launcher["template"]["spec"]["containers"][0]["command"]
    assert all(isinstance(word, str) for word in command)
    assert int(command[command.index("-n") + 1]) == worker["replicas"] * of_mpi["spec"]["slotsPerWorker"]
    for one in (pod, worker["template"]["spec"]):
        mounts = {mount["name"] for container in one["containers"] for mount in container["volumeMounts"]}
        assert mounts == {volume["name"] for volume in one["volumes"]}
    for arguments in (words[words.index("gpurnn") + 1 :], command[command.index("gpurnn") + 1 :]):
        assert cli.make_context("gpurnn", arguments[1:]).params["shards"] == 8


@pytest.mark.parametrize(
    ("rank", "error", "signalled", "code", "message"),
    [
        (0, KeyboardInterrupt(), False, 130, "gpurnn: interrupted\n"),
        (1, KeyboardInterrupt(), False, 130, "gpurnn: interrupted\n"),
        (0, Refusal("no such option"), False, 2, "gpurnn: no such option\n"),
        (1, MemoryError("no room"), False, 1, "gpurnn: no room\n"),
        (1, RuntimeError("a process is gone"), True, 1, ""),  # its launcher reports it
    ],
)
def test_error_that_the_others_were_not_told_of_ends_them(monkeypatch, capsys, rank, error, signalled, code, message):
    """The others wait for this process, and without ending them it would wait for them at its end."""

    def slept(seconds):
        if signalled:
            raise KeyboardInterrupt

    class Aborted(BaseException):
        pass

    def abort(code):
        raise Aborted(code)

    processes = distributed.Communicator()
    processes.rank, processes.size, processes.abort = rank, 2, abort
    monkeypatch.setattr("time.sleep", slept)
    with pytest.raises(Aborted) as aborted, one_of_several(processes):
        raise error
    assert aborted.value.args == (code,)
    assert capsys.readouterr().err == message


# --- processes ---

TOGETHER = Path(__file__).with_name("trained_together.py")
MPIEXEC = Path(sysconfig.get_path("scripts")) / "mpiexec"
needs_mpi = pytest.mark.skipif(not MPIEXEC.exists(), reason="mpiexec is not installed next to this Python")


def command(size, *arguments):
    return [MPIEXEC, "-n", str(size), sys.executable, "-W", "ignore", TOGETHER, *arguments]


def started(size, *arguments):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [str(part) for part in command(size, *arguments)], env=environment, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip


def result(size, path, *arguments):
    process = started(size, arguments[0], path, *arguments[1:])
    errors = process.communicate(timeout=120)[1]
    assert process.returncode == 0, errors
    return json.loads(path.read_text())


@pytest.mark.slow
@needs_mpi
@pytest.mark.parametrize("model", ["language_model", "classifier", "translator"])
def test_processes_of_mpi(model, tmp_path):
    one, *several = (result(size, tmp_path / f"{size}.json", model, "shards=4") for size in (1, 2, 3, 4))
    for other in several:
        assert {digest for digest, *_ in other["every"]} == {one["every"][0][0]}
        assert other["history"] == one["history"]
    if model == "translator":
        plain, whole = (result(size, tmp_path / "plain.json", model) for size in (3, 1))
        for name, values in whole["values"].items():
            np.testing.assert_allclose(plain["values"][name], values, rtol=1e-3, atol=1e-5)
        halves = result(3, tmp_path / "halves.json", model, "wire=bfloat16")
        assert len({digest for digest, *_ in halves["every"]}) == 1
        assert halves["every"][0][0] != plain["every"][0][0]
        losses, of_halves = ([r["loss"] for r in found["history"] if "loss" in r] for found in (whole, halves))
        assert of_halves == pytest.approx(losses, rel=0.01)


def ranks_of(out):
    """The processes that train and write to ``out``, without their launchers."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = path.read_bytes().decode(errors="replace").split("\0")
            if words[0] == sys.executable and str(out) in words:
                found.append(int(path.parent.name))
    return found


@pytest.mark.slow
@needs_mpi
def test_killed_processes_resume_on_another_number_with_the_same_bits(tmp_path):
    """A random rank is killed at a random moment, twenty times, and the run resumes on another number of processes."""
    steps = 150  # more than the twenty kills take
    whole = result(1, tmp_path / "whole.json", "language_model", "shards=4", f"steps={steps}")
    choice = random.Random(0)
    arguments = ("language_model", tmp_path / "out.json", "shards=4", f"steps={steps}", f"directory={tmp_path / 'run'}")
    for _ in range(20):
        size = choice.choice([1, 2, 4])
        moment = f"kill={choice.randrange(size)},{choice.randint(1, 5)},{choice.random()}"
        process = started(size, *arguments, "resume=1", moment)
        process.communicate(timeout=60)
        assert process.returncode != 0
        while ranks_of(arguments[1]):  # the launcher may end before the processes that it kills
            time.sleep(0.05)
    assert not arguments[1].exists()
    last = result(2, tmp_path / "out.json", arguments[0], *arguments[2:], "resume=1")
    assert last["every"][0][0] == whole["every"][0][0]
    assert last["history"] == whole["history"]


@pytest.mark.slow
@needs_mpi
def test_process_that_fails_ends_all(tmp_path):
    process = started(3, "classifier", tmp_path / "out.json", "shards=3", "fail=1")
    errors = process.communicate(timeout=20)[1]
    assert process.returncode != 0
    assert "OSError: the disk is gone" in errors


GPURNN = Path(sysconfig.get_path("scripts")) / "gpurnn"


def gpurnn_train(size, *arguments, check=True):
    launcher = [] if size is None else [str(MPIEXEC), "-n", str(size)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    found = subprocess.run(
        [*launcher, str(GPURNN), "train", *map(str, arguments)], env=environment, capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip
    assert not check or found.returncode == 0, found.stderr
    return found


@pytest.fixture
def book(tmp_path):
    path = tmp_path / "book.txt"
    path.write_text("the quick brown fox jumps over the lazy dog. " * 100)
    return path


@pytest.mark.slow
@needs_mpi
def test_command_gives_the_same_model_on_any_number_of_processes(book, tmp_path):
    options = ("--shards", 4, "--hidden", 16, "--window", 20, "--checkpoint-every", 5)
    gpurnn_train(None, book, "--out", tmp_path / "whole", *options, "--steps", 20)
    first = gpurnn_train(2, book, "--out", tmp_path / "cut", *options, "--steps", 20)
    assert first.stdout.count("20 steps:") == 1
    model = "model.safetensors"
    assert (tmp_path / "cut" / model).read_bytes() == (tmp_path / "whole" / model).read_bytes()
    for size, out in ((3, "cut"), (None, "whole")):
        gpurnn_train(size, "--out", tmp_path / out, "--resume", "--steps", 30)
    assert (tmp_path / "cut" / model).read_bytes() == (tmp_path / "whole" / model).read_bytes()


@pytest.mark.slow
@needs_mpi
def test_command_says_once_what_is_wrong(book, tmp_path):
    gpurnn_train(None, book, "--out", tmp_path / "run", "--steps", 2, "--hidden", 8)
    taken = gpurnn_train(2, book, "--out", tmp_path / "run", check=False)
    assert (taken.returncode, taken.stderr.count("already holds a run")) == (2, 1)
    missing = gpurnn_train(3, tmp_path / "missing.txt", "--out", tmp_path / "other", check=False)
    assert missing.returncode != 0
    assert missing.stderr.count("missing.txt: no such file or directory") == 1
    piped = gpurnn_train(2, "-", "--out", tmp_path / "other", check=False)
    assert piped.returncode != 0
    assert "only one of 2 processes could read it" in piped.stderr


@pytest.mark.skipif(os.name != "posix", reason="asks a pipe of POSIX")
@pytest.mark.parametrize("is_read", [True, False])
def test_before_all_are_ended_the_launcher_reads_the_error(is_read, monkeypatch):
    """When a process ends all, Hydra loses what it has not read. The process waits for it, but not forever."""
    reader, writer = os.pipe()
    times, slept = itertools.count(), []
    with open(reader, "rb", buffering=0) as launcher, open(writer, "w", encoding="utf-8") as stderr:
        print("LookupError", file=stderr, flush=True)
        monkeypatch.setattr(time, "sleep", lambda _: slept.append(launcher.read(100) if is_read else b""))
        monkeypatch.setattr(time, "monotonic", lambda: next(times) / 10)
        wait_until_read(stderr)
        monkeypatch.undo()
    assert slept == [b"LookupError\n"] if is_read else len(slept) > 5
    wait_until_read(stderr)  # closed
    wait_until_read(io.StringIO())


RAISING = """
import sys
from gpurnn import distributed
processes = distributed.communicator()
assert distributed.communicator() is processes
if sys.argv[1] == "alone":
    if processes.rank == 1:
        raise LookupError("no such file")
    processes.barrier()
else:
    processes.first("script", lambda: [][0])
"""


@pytest.mark.slow
@needs_mpi
@pytest.mark.parametrize("what", ["alone", "told"])
def test_exception_that_nobody_catches_ends_all(what):
    found = subprocess.run(
        [str(MPIEXEC), "-n", "3", sys.executable, "-c", RAISING, what], capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip
    assert found.returncode != 0
    if what == "alone":
        assert found.stderr.count("LookupError: no such file") == 1
    else:  # each process reports its error before another one ends it
        assert found.stderr.count("Traceback") == 3
        assert found.stderr.count("RuntimeError: script: process 0 of 3 ended with IndexError") == 2
