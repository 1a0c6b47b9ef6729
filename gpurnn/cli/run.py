"""A training run of this command line: how it is begun, what of it is on the disk, and how it is resumed."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .settings import OPTIMIZERS, can_be_given, options_of
from .terminal import Failure, Interrupted, Refusal, refusing, say, sentence, warnings_said
from .texts import read, read_all

if TYPE_CHECKING:
    from ..models import LanguageModel, Vocabulary
    from ..optimizers import Optimizer
    from ..training import TokenStream, Trainer
    from ..training.directory import RunDirectory

RUN, MODEL, METRICS, CURVE, SAMPLE = "run.json", "model.safetensors", "metrics.jsonl", "loss.png", "sample.txt"


DEMO_TEXT = "python-reference.txt"


SAMPLE_LENGTH = {"character": 2000, "word": 400}


@dataclass
class Run:
    """A training run; `held_run` reads what `new_run` wrote."""

    folder: RunDirectory
    files: list[str]
    options: dict[str, Any]
    text: str
    validation: str | None
    resumed: bool


def _texts(files: list[str], options: dict[str, Any]) -> tuple[str, str | None, str]:
    """The text to train on, that to validate on if it is apart, and a digest of both."""
    text = read_all(files)
    validation = None if options["validation"] is None else read(options["validation"])
    return text, validation, hashlib.sha256(f"{len(text)}\0{text}{validation}".encode()).hexdigest()


def run_folder(out: Path, **details: Any) -> RunDirectory:
    """``out`` as the directory of a run of this command line."""
    from ..training.directory import RunDirectory

    names = [MODEL, CURVE, SAMPLE, *([DEMO_TEXT] if details.get("demo") else [])]
    return RunDirectory(out, names, details)


def check_new(folder: RunDirectory) -> None:
    """Reject, before any work, a directory that holds a run, or files in the way of one."""
    from ..training.checkpoint import checkpoints

    out = folder.path
    with refusing(ValueError, OSError):
        if folder.belongs_to_a_run():
            with folder.locked(new=False):  # where a run is under way, that is what is to be said
                pass
        if folder.belongs_to_a_run() or checkpoints(out / "checkpoints"):
            raise Refusal(f"{out}: already holds a run; add --resume to go on with it, or choose another directory")
        folder.check_new()


def new_run(folder: RunDirectory, files: list[str], options: dict[str, Any]) -> Run:
    """A run that is to go to ``folder``."""
    text, validation, digest = _texts(files, options)
    folder.details |= {"files": files, "sha256": digest, "options": options}
    return Run(folder, files, options, text, validation, resumed=False)


def read_run(folder: RunDirectory) -> dict[str, Any]:
    """What the run in a directory was started with."""
    with refusing(ValueError, OSError):
        run = folder.read()
    if run is None:
        raise Refusal(f"{folder.path}: no run to resume in there")
    if not {"files", "sha256", "options"} <= run.keys():
        raise Refusal(
            f"{folder.path / RUN}: its run was not started by gpurnn train, or not got as far as reading its text"
        )
    files = run["files"]
    if not isinstance(files, list) or not files or not all(isinstance(file, str) for file in files):
        raise Refusal(f"{folder.path / RUN}: damaged: its files are {files!r}, expected a list of paths")
    _check_options(folder.path / RUN, run["options"])
    return run


def _check_options(path: Path, held: Any) -> None:
    """Reject options of a run that are not those that `gpurnn train` takes."""
    known = options_of([])
    if not isinstance(held, dict) or held.keys() != known.keys():
        raise Refusal(f"{path}: damaged, or of another version of gpurnn: its options are not those of gpurnn train")
    for name, value in held.items():
        if not can_be_given(name, value, known[name]):
            raise Refusal(f"{path}: damaged: --{str(name).replace('_', '-')} cannot be {value!r}")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The sound lines of the metrics of a run; none if there is no file."""
    from .. import _metrics

    if not path.exists():
        return []
    with warnings_said(), refusing(ValueError, OSError):
        found = _metrics.read(path)
    if found.cut:
        say(f"gpurnn: warning: {path}: its last line is cut off and left out", err=True)
    return found.records


def held_run(out: Path, files: list[str], given: dict[str, Any]) -> Run:
    """The run in ``out``; reject ``files`` and ``given`` options that differ from its own."""
    folder = run_folder(out)
    run = read_run(folder)
    if files and files != run["files"]:
        raise Refusal(f"{out}: its run was started with the files {' '.join(run['files'])}; they cannot be changed")
    for name, value in given.items():
        held = run["options"].get(name)
        if held != value:
            flag = "--" + name.replace("_", "-")
            raise Refusal(f"{out}: its run was started with {flag} {held}; it cannot be changed to {value}")
    text, validation, digest = _texts(run["files"], run["options"])
    if digest != run["sha256"]:
        raise Refusal(f"{out}: the text has changed since its run was started, so it cannot be resumed")
    return Run(folder, run["files"], run["options"], text, validation, resumed=True)


def load_model(directory: Path) -> LanguageModel:
    from ..models import LanguageModel

    path = directory / MODEL
    if not path.exists():
        raise Refusal(f"{directory}: no model in there ({MODEL}); gpurnn train makes one")
    with refusing(ValueError, OSError):
        return LanguageModel.from_file(path)


def make_directory(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Refusal(sentence(error)) from error


def carry_out(run: Run) -> None:
    """Train, and write everything to the directory of the run."""
    import numpy as np

    from ..models import CharVocabulary, LanguageModel, WordVocabulary
    from ..training import Trainer
    from ..training.checkpoint import checkpoints
    from ..training.directory import RunDirectoryError

    out, options, text, validation = run.folder.path, run.options, run.text, run.validation
    kind = CharVocabulary if options["level"] == "char" else WordVocabulary
    if validation is None:
        cut = round(len(text) * (1 - options["validation_fraction"]))
        text, validation = text[:cut], text[cut:]
    vocabulary = kind.from_text(text, max_size=options["max_vocabulary"], min_count=options["min_count"])
    if len(vocabulary) < 2:
        raise Refusal(
            f"no {vocabulary.kind} occurs --min-count {options['min_count']} times, so there is none to learn"
        )
    if not validation and (options["patience"] or options["validate_every"]):
        raise Refusal("--patience and --validate-every need a text to validate on, but --validation-fraction is 0")
    data = _stream(vocabulary, text, options, "to train on", options["batch"])
    held_out = _stream(vocabulary, validation, options, "to validate on", 1) if validation else None
    parameter_rng, training_rng = np.random.default_rng(options["seed"]).spawn(2)
    with refusing(ValueError):
        model = LanguageModel(
            vocabulary, options["embedding"], options["hidden"], options["layers"], cell=options["cell"],
            tied=options["tied"], dropout=options["dropout"], dtype=options["dtype"], rng=parameter_rng,
        )  # fmt: skip
    steps = options["steps"] or options["epochs"] * len(data)
    trainer = Trainer(
        model, data, _optimizer(options), steps=steps, schedule=_schedule(options, steps),
        clip_norm=options["clip"], clip_value=options["clip_value"], l2=options["l2"],
        validation=held_out, validation_interval=options["validate_every"], patience=options["patience"],
        directory=run.folder, checkpoint_interval=options["checkpoint_every"], log_interval=options["log_every"],
        metric=vocabulary.metric, rng=training_rng, on_checkpoint=lambda: model.save(out / MODEL),
    )  # fmt: skip
    with _directory_taken(run.folder, new=not run.resumed):
        if run.resumed:
            # A kill may have come before the first checkpoint.
            if checkpoints(out / "checkpoints"):
                with warnings_said(), refusing(ValueError, OSError):
                    step = trainer.resume()
                say(f"resuming at step {step:,} of {trainer.total:,}")
            elif (out / MODEL).exists():
                raise Refusal(f"{out}: holds the {MODEL} of a run whose checkpoints are gone; choose another directory")
        else:
            with refusing(ValueError, OSError):
                run.folder.begin()
            say(f"{len(text):,} characters to train on, {len(validation):,} to validate on; {vocabulary!r}")
            say(f"{model!r}")
        try:
            trainer.train()
        except KeyboardInterrupt:
            again = f"gpurnn {click.get_current_context().info_name} --out {shlex.quote(str(out))} --resume"
            raise Interrupted(f"interrupted; step {trainer.saved_step} is kept. Go on with: {again}") from None
        except (FloatingPointError, OSError, RunDirectoryError) as error:
            raise Failure(sentence(error)) from error
        model.save(out / MODEL)  # early stopping goes back to parameters that are older than the last checkpoint
        _report(out, model, trainer, options["seed"])


@contextmanager
def _directory_taken(folder: RunDirectory, *, new: bool) -> Iterator[None]:
    """Hold the lock of a run's directory; reject one that cannot be had."""
    with ExitStack() as stack:
        with refusing(ValueError, OSError):
            stack.enter_context(folder.locked(new=new))
        yield


def _stream(vocabulary: Vocabulary, text: str, options: dict[str, Any], purpose: str, least_lanes: int) -> TokenStream:
    """``text`` as a stream of at most ``--batch`` lanes; refuse one that is too short for ``least_lanes``."""
    from ..training import TokenStream

    tokens = vocabulary.encode(text)
    batch, window = options["batch"], options["window"]
    lanes = min(batch, len(tokens) // (window + 1))
    if lanes < least_lanes:
        product = f"--batch {batch} times (--window {window} + 1)" if least_lanes > 1 else f"--window {window} + 1"
        raise Refusal(
            f"the text {purpose} has {len(tokens):,} {vocabulary.kind}s, expected at least "
            f"{least_lanes * (window + 1):,}: {product}"
        )
    return TokenStream(tokens, lanes, window)


def _optimizer(options: dict[str, Any]) -> Optimizer:
    from .. import optimizers

    kind: Callable[..., Optimizer] = getattr(optimizers, OPTIMIZERS[options["optimizer"]])
    return kind(lr=options["lr"])


def _schedule(options: dict[str, Any], steps: int) -> Callable[[int], float] | None:
    from .. import schedules

    if options["schedule"] == "constant":
        return None
    return schedules.CosineWithWarmup(options["lr"], steps, min(options["warmup"], steps - 1))


def _report(out: Path, model: LanguageModel, trainer: Trainer, seed: int) -> None:
    """Draw the loss curve, write a sample, and say where everything is."""
    from .. import _files

    unit = model.vocabulary.metric
    told = []
    for name, where in ((unit, "training"), (f"validation_{unit}", "validation")):
        found = [record[name] for record in trainer.history if name in record]
        told += [f"{found[-1]:.3f} {unit.replace('_', ' ')} in {where}"] if found else []
    ended = f"stopped early at step {trainer.step:,}" if trainer.stopped_early else f"{trainer.step:,} steps"
    say(f"{ended}: {', '.join(told)}")
    sample = model.sample(SAMPLE_LENGTH[model.vocabulary.kind], "\n", temperature=0.7, rng=seed)
    _files.write_atomically(out / SAMPLE, f"{sample}\n".encode())
    try:
        from ..plots import loss_curve

        if any("loss" in record for record in trainer.history):
            loss_curve(trainer.history, out / CURVE)
            curve = f"loss curve  {out / CURVE}"
        else:
            curve = f"loss curve  none: {out / METRICS} holds no loss"
    except ImportError:
        curve = "loss curve  none: matplotlib is not installed; pip install 'gpurnn[plot]'"
    say(f"model       {out / MODEL}")
    say(curve)
    say(f"metrics     {out / METRICS}")
    say(f"sample      {out / SAMPLE}")
    say(f"write more  gpurnn generate {shlex.quote(str(out))}")
