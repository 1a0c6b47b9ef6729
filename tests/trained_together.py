"""Trains a small model as one of several processes, and writes a digest of it: run under ``mpiexec`` by a test.

trained_together.py MODEL OUT.json [shards=S] [steps=N] [directory=DIR] [resume=1] [fail=RANK] [stop=STEP]
    [kill=RANK,STEPS,SHARE] [wire=bfloat16]

``kill`` kills a rank after it has taken STEPS steps and the given SHARE of another step's time.
"""

import hashlib
import json
import os
import signal
import sys
import threading
import time

import numpy as np

import gpurnn
from gpurnn import distributed
from gpurnn.training import PaddedBatches, TokenStream, Trainer


def language_model():
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 11, 1200)
    vocabulary = gpurnn.CharVocabulary.from_text("abcdefghij")
    model = gpurnn.LanguageModel(vocabulary, 6, 10, dropout=0.3, rng=1)
    return model, TokenStream(tokens, 7, 12), TokenStream(tokens[:300], 5, 12)


def classifier():
    rng = np.random.default_rng(0)
    sequences = [rng.normal(size=(n, 3)).astype("float32") for n in rng.integers(1, 9, 43)]
    labels = [np.array(n % 3) for n in range(43)]
    model = gpurnn.SequenceClassifier(3, 8, 3, bidirectional=True, pooling="attention", dropout=0.2, rng=1)
    data = PaddedBatches(sequences, 10, labels, per_sequence=True)  # the last batch has 3 rows
    return model, data, PaddedBatches(sequences[:11], 4, labels[:11], per_sequence=True, shuffle=False)


def translator():
    rng = np.random.default_rng(0)
    sources = [rng.integers(1, 9, n) for n in rng.integers(1, 7, 30)]
    targets = [np.append(s[::-1], 0) for s in sources]
    model = gpurnn.EncoderDecoder(9, 9, 5, 8, attention="additive", dropout=0.2, rng=1)
    data = PaddedBatches(sources, 8, targets, own_lengths=True)
    return model, data, None


class Death:
    def __init__(self, steps, share):
        self.steps, self.share, self.batches, self.times = int(steps), float(share), set(), []

    def __call__(self, batch):
        if batch in self.batches:
            return
        self.batches.add(batch)
        self.times.append(time.monotonic())
        if len(self.times) == 1 + self.steps:
            delay = self.share * (self.times[-1] - self.times[-2])
            threading.Timer(delay, os.kill, (os.getpid(), signal.SIGKILL)).start()


def main(name, out, **options):
    communicator = distributed.communicator()
    communicator.wire_dtype = options.get("wire")
    model, data, validation = {f.__name__: f for f in (language_model, classifier, translator)}[name]()
    failing = int(options.get("fail", -1)) == communicator.rank
    victim, *moment = options.get("kill", "-1").split(",")
    death = Death(*moment) if int(victim) == communicator.rank else None

    class Watched(type(data)):
        def shard(self, epoch, index, number, shards):
            if failing and index == 2:
                raise OSError("the disk is gone")
            if death is not None:
                death((epoch, index))
            return super().shard(epoch, index, number, shards)

    data.__class__ = Watched
    called = []
    trainer = Trainer(
        model, data, gpurnn.Adam(0.01), steps=int(options.get("steps", 12)), clip_norm=0.5, l2=1e-3, rng=3,
        validation=validation, validation_interval=None if validation is None else 5, progress=True, log_interval=4,
        communicator=communicator, shards=int(options["shards"]) if "shards" in options else None,
        directory=options.get("directory"), checkpoint_interval=3, resume="resume" in options,
        callbacks=lambda trainer: called.append(trainer.step) or ("stop" in options and trainer.stop()),
        on_checkpoint=lambda: called.append("saved"),
    )  # fmt: skip
    trainer.train()
    history = [{k: v for k, v in r.items() if k != "tokens_per_second"} for r in trainer.history]
    digest = hashlib.sha256(b"".join(np.ascontiguousarray(p).tobytes() for p in model.params.values())).hexdigest()
    every = communicator.all_gather((digest, len(called), trainer.step))
    if communicator.rank == 0:
        values = {name: p.astype(float).ravel().tolist() for name, p in model.params.items()}
        with open(out, "w") as file:
            json.dump({"every": every, "history": history, "values": values}, file)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], **dict(argument.split("=", 1) for argument in sys.argv[3:]))
