"""A training run of this command line: how it begins, what it keeps on the disk, and how it is resumed."""

from __future__ import annotations

import hashlib
import math
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .options import computing_on, flag_of
from .settings import OPTIMIZERS, can_be_given, options_of
from .terminal import (
    Failure,
    Refusal,
    interruption,
    out_of_memory,
    progress_of,
    refusing,
    say,
    sentence,
    warn,
    warnings_said,
)
from .texts import STDIN, decoded, joined, read, read_bytes, token_file

if TYPE_CHECKING:
    from ..distributed import Communicator
    from ..models import LanguageModel, Vocabulary
    from ..optimizers import Optimizer
    from ..training import TokenFile, TokenStream, Trainer
    from ..training.directory import RunDirectory

RUN, MODEL, METRICS, CURVE, SAMPLE = "run.json", "model.safetensors", "metrics.jsonl", "loss.png", "sample.txt"

PIPED = "text.txt"
"""The name under which a run keeps the text that came from stdin."""

TOKENIZER = "tokenizer.json"
"""The name under which a run keeps the tokenizer of --level bpe."""

DEMO_TEXT = "python-reference.txt"

SAMPLE_LENGTH = {"character": 2000, "word": 400, "token": 500}

LEAST_WINDOW = 16
"""A short text is read in fewer lanes rather than in windows of fewer steps than this."""


@dataclass
class Run:
    """A training run; `held_run` reads what `new_run` wrote."""

    folder: RunDirectory
    files: list[str]
    options: dict[str, Any]
    text: str | TokenFile
    validation: str | TokenFile | None
    resumed: bool
    origin: dict[str, str] | None = None
    """The model that training begins with: its path, and the SHA-256 of its file."""
    more: list[int] = field(default_factory=list)
    """The steps at which the run ends after it was made longer, in order."""
    longer: dict[str, int] = field(default_factory=dict)
    """The ``steps`` or ``epochs`` to which it is to be made longer now."""
    piped: bytes | None = None
    """The bytes from stdin, to be written to the directory."""
    replaces: bool = False
    """Whether the run in the directory is to be deleted, once it is sure that this one can begin."""


def names_of(files: Sequence[str], options: dict[str, Any]) -> list[str]:
    """The names of the files that a run keeps so that it can be resumed: a text from stdin, a tokenizer."""
    piped = STDIN in (*files, options["validation"])
    return [*([PIPED] if piped else []), *([TOKENIZER] if options["level"] == "bpe" else [])]


def run_folder(out: Path, *names: str, **details: Any) -> RunDirectory:
    """``out`` as the directory of a run of this command line, which also writes ``names``."""
    from ..training.directory import RunDirectory

    return RunDirectory(out, [MODEL, CURVE, SAMPLE, *names], details)


def check_new(folder: RunDirectory) -> None:
    """Reject, before any work, a directory that holds a run, or files in the way of one."""
    from ..training.checkpoint import checkpoints

    out = folder.path
    with refusing(ValueError, OSError):
        if folder.belongs_to_a_run():
            with folder.locked(new=False):  # if a run is under way, this reports it
                pass
            held = folder.read() or {}
            if "command" in held:
                raise Refusal(_made_by_another(folder, held))
        if folder.belongs_to_a_run() or checkpoints(out / "checkpoints"):
            raise Refusal(
                f"{out}: already holds a run; add --resume to resume it, --replace to replace it, or choose another "
                "directory"
            )
        folder.check_new()


def remove_run(folder: RunDirectory) -> None:
    """Delete the files that a run wrote to its directory, and nothing else; the caller holds the lock."""
    from ..training.checkpoint import checkpoints, is_of_run

    held = folder.read()
    if held is None:
        raise Refusal(f"{folder.path}: holds no run that --replace could replace; choose another directory")
    found = checkpoints(folder.path / "checkpoints")
    others = [path.name for path in found if not is_of_run(path, held["run"])]
    if others:
        raise Refusal(
            f"{folder.path / 'checkpoints'}: {others[0]} is damaged or not of the run; move it away, or choose another "
            "directory"
        )
    for stale in _written_files(folder):
        stale.unlink(missing_ok=True)


def _written_files(folder: RunDirectory) -> list[Path]:
    """The files except run.json that a new run, and the run already in its directory, write there."""
    from ..training.checkpoint import checkpoints

    held = folder.read() or {}
    kept = names_of(held["files"], held["options"]) if {"files", "options"} <= held.keys() else []
    names = dict.fromkeys([METRICS, *folder.names, *kept])
    return [*checkpoints(folder.path / "checkpoints"), *(folder.path / name for name in names)]


def _made_by_another(folder: RunDirectory, held: dict[str, Any]) -> str:
    """The message for a directory of `gpurnn fit` or `gpurnn forecast`."""
    return f"{folder.path}: holds what gpurnn {held['command']} made; choose another directory"


def new_run(
    folder: RunDirectory, files: list[str], options: dict[str, Any], origin: dict[str, str] | None = None
) -> Run:
    """A new run, to be written to ``folder``."""
    sources = [*files, *([] if options["validation"] is None else [options["validation"]])]
    if sources.count(STDIN) > 1:
        raise Refusal(f"{STDIN} is given {sources.count(STDIN)} times; stdin can be read only once")
    piped = read_bytes(STDIN, options["encoding"]) if STDIN in sources else None
    text, validation, digest = _texts(folder, files, options, piped)
    options = {**options, **_options_of_tokens(text)}
    folder.details |= {"files": files, "sha256": digest, "options": options, "from": origin, "more": []}
    return Run(folder, files, options, text, validation, resumed=False, origin=origin, piped=piped)


def check_replaceable(run: Run) -> None:
    """Reject a run that reads a file of the run that it replaces, since that file is deleted."""
    held = run.folder.read() or {}
    if "command" in held:
        raise Refusal(_made_by_another(run.folder, held))
    sources = [
        *run.files,
        run.options["validation"],
        run.options["tokenizer"],
        *([run.origin["path"]] if run.origin else []),
    ]
    deleted = {path.resolve() for path in _written_files(run.folder)}
    for source in sources:
        path = Path(source or "").resolve()
        path = path / MODEL if path.is_dir() else path
        if path in deleted:
            raise Refusal(f"{path}: is of the run that --replace deletes; move it away, or choose another directory")


def _texts(
    folder: RunDirectory, files: list[str], options: dict[str, Any], piped: bytes | None = None
) -> tuple[str | TokenFile, str | TokenFile | None, str]:
    """The text to train on, the validation text if it is separate, and a digest of both."""
    encoding = options["encoding"]

    def one(file: str) -> str | TokenFile:
        if file != STDIN and (tokens := token_file(file)) is not None:
            return tokens
        if file != STDIN:
            return read(file, encoding)
        return decoded(file, read_bytes(str(folder.path / PIPED), encoding) if piped is None else piped, encoding)

    parts = [one(file) for file in files]
    texts = [part for part in parts if isinstance(part, str)]
    if len(texts) < len(parts) > 1:
        raise Refusal("a token file is given among several FILEs, expected it alone; gpurnn tokenize takes several")
    text = joined(texts) if texts else parts[0]
    validation = None if options["validation"] is None else one(options["validation"])
    contents = [part if part is None or isinstance(part, str) else part.checksum for part in (text, validation)]
    return text, validation, hashlib.sha256(f"{len(text)}\0{contents[0]}{contents[1]}".encode()).hexdigest()


def _options_of_tokens(text: str | TokenFile) -> dict[str, Any]:
    """The options of `gpurnn train` that a token file decides."""
    return {} if isinstance(text, str) else options_of_vocabulary(text.vocabulary)


def text_of(folder: RunDirectory, symbols: int) -> str:
    """The text that the run in a directory was trained on; for a token file, only its first ``symbols`` symbols."""
    run = read_run(folder)
    text = _texts(folder, run["files"], {**run["options"], "validation": None})[0]
    return text if isinstance(text, str) else text.vocabulary.decode(text.tokens[:symbols])


def read_run(folder: RunDirectory) -> dict[str, Any]:
    """The settings that the run in a directory was started with."""
    with refusing(ValueError, OSError):
        run = folder.read()
    path = folder.path / RUN
    if run is None:
        raise Refusal(f"{folder.path}: no run to resume in there")
    if not {"files", "sha256", "options", "from", "more"} <= run.keys():
        raise Refusal(f"{path}: its run was not started by gpurnn train, or was ended before it had read its text")
    files, origin, more = run["files"], run["from"], run["more"]
    if not isinstance(files, list) or not files or not all(isinstance(file, str) for file in files):
        raise Refusal(f"{path}: damaged: its files are {files!r}, expected a list of paths")
    _check_options(path, run["options"])
    if origin is not None and not (
        isinstance(origin, dict)
        and origin.keys() == {"path", "sha256"}
        and all(isinstance(v, str) for v in origin.values())
    ):
        raise Refusal(f"{path}: damaged: from is {origin!r}, expected a path and a SHA-256")
    if not isinstance(more, list) or not all(type(end) is int and end > 0 for end in more) or more != sorted(set(more)):
        raise Refusal(f"{path}: damaged: more is {more!r}, expected numbers of steps that rise")
    return run


def _check_options(path: Path, held: Any) -> None:
    """Reject the options of a run if `gpurnn train` does not take their names and values."""
    known = options_of([])
    if not isinstance(held, dict) or held.keys() != known.keys():
        raise Refusal(f"{path}: damaged, or of another version of gpurnn: its options are not those of gpurnn train")
    for name, value in held.items():
        if not can_be_given(name, value, known[name]):
            raise Refusal(f"{path}: damaged: {flag_of(str(name))} cannot be {value!r}")


def held_run(out: Path, files: list[str], given: dict[str, Any], origin: Path | None = None) -> Run:
    """The run in ``out``, made longer if ``given`` says so; reject any other change of its settings."""
    folder = run_folder(out)
    run = read_run(folder)
    if files and files != run["files"]:
        raise Refusal(f"{out}: its run was started with the files {' '.join(run['files'])}; they cannot be changed")
    if origin is not None and (run["from"] is None or str(origin.resolve()) != run["from"]["path"]):
        started = "without --from" if run["from"] is None else f"from {run['from']['path']}"
        raise Refusal(f"{out}: its run was started {started}; it cannot be changed")
    changed = {name: value for name, value in given.items() if run["options"][name] != value}
    longer: dict[str, int] = {name: changed.pop(name) for name in ("steps", "epochs") if name in changed}
    for name, value in changed.items():
        flag, held = flag_of(name), run["options"][name]
        raise Refusal(f"{out}: its run was started with {flag} {held}; it cannot be changed to {value}")
    if longer.keys() == {"steps", "epochs"}:
        warn(f"--epochs {longer.pop('epochs')} has no effect, as --steps is given too")
    text, validation, digest = _texts(folder, run["files"], run["options"])
    if digest != run["sha256"]:
        raise Refusal(f"{out}: the text has changed since its run was started, so it cannot be resumed")
    return Run(folder, run["files"], run["options"], text, validation, True, run["from"], run["more"], longer)


def origin_of(path: Path) -> tuple[dict[str, str], LanguageModel]:
    """The model to begin with, from its directory or file, and before it the entry ``from`` of run.json for it."""
    from ..models import LanguageModel

    file = path / MODEL if path.is_dir() else path
    with refusing(ValueError, OSError, ImportError):
        model = LanguageModel.from_file(file)
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
    return {"path": str(path.resolve()), "sha256": digest}, model


def options_of_model(model: LanguageModel) -> dict[str, Any]:
    """The options of `gpurnn train` that make such a model."""
    from ..models.base import CELL_OPTIONS

    config = model.config()
    of_cell = {name: config[name] for name in CELL_OPTIONS if config[name] is not None}
    return {
        **options_of_vocabulary(model.vocabulary), "cell": config["cell"],
        "option": {**of_cell, **(config["cell_options"] or {})}, "embedding": config["embedding_size"],
        "hidden": config["hidden_size"], "layers": config["num_layers"], "tied": config["tied"],
        "dtype": config["dtype"],
    }  # fmt: skip


def options_of_vocabulary(vocabulary: Vocabulary) -> dict[str, Any]:
    """The options of `gpurnn train` that make such a vocabulary."""
    return {
        "level": {"character": "char", "word": "word", "token": "bpe"}[vocabulary.kind],
        "tokenizer": None, "max_vocabulary": None, "min_count": 1,
    }  # fmt: skip


def _vocabulary(run: Run, text: str) -> Vocabulary:
    """The vocabulary of a new model: made from the text, or the tokenizer that is given or that the run began with."""
    from ..models import CharVocabulary, TokenizerVocabulary, WordVocabulary

    options, kept = run.options, run.folder.path / TOKENIZER
    if options["level"] != "bpe":
        kind = CharVocabulary if options["level"] == "char" else WordVocabulary
        return kind.from_text(text, max_size=options["max_vocabulary"], min_count=options["min_count"])
    file = kept if run.resumed and kept.exists() else options["tokenizer"]
    with refusing(ValueError, OSError, ImportError):
        if file is not None:
            return TokenizerVocabulary.from_file(file)
        if options["max_vocabulary"] is not None and options["max_vocabulary"] < 257:
            raise Refusal(
                f"--max-vocabulary is {options['max_vocabulary']}, expected at least 257 with --level bpe: the 256 "
                "bytes, and what precedes a text"
            )
        return TokenizerVocabulary.from_text(text, max_size=options["max_vocabulary"], min_count=options["min_count"])


def _model(run: Run, text: str | TokenFile, rng: Any) -> LanguageModel:
    """The model to train, with its initial parameters."""
    from ..models import LanguageModel

    options = run.options
    if run.origin is None:
        vocabulary = _vocabulary(run, text) if isinstance(text, str) else text.vocabulary
        if len(vocabulary) < 2:
            raise Refusal(
                f"no {vocabulary.kind} occurs --min-count {options['min_count']} times, so there is none to learn"
            )
        with refusing(ValueError, TypeError):
            return LanguageModel(
                vocabulary, options["embedding"], options["hidden"], options["layers"], cell=options["cell"],
                cell_options=options["option"], tied=options["tied"], dropout=options["dropout"],
                dtype=options["dtype"], rng=rng,
            )  # fmt: skip
    written = run.folder.path / MODEL
    if run.resumed and written.exists():
        base = origin_of(written)[1]
    else:
        found, base = origin_of(Path(run.origin["path"]))
        if found != run.origin:
            raise Refusal(f"{run.origin['path']}: the model has changed since the run was started with it")
    if base.dropout == options["dropout"]:
        return base
    model = LanguageModel.from_config({**base.config(), "dropout": options["dropout"]})
    model.load_state_dict(base.state_dict())
    return model


def carry_out(run: Run, device: str = "cpu", processes: Communicator | None = None) -> None:
    """Train, and write everything to the directory of the run."""
    from ..distributed import Communicator

    processes = Communicator() if processes is None else processes
    if device == "cuda" and processes.size > 1:
        device = f"cuda:{processes.local_rank}"
    with computing_on(device) as xp:
        _carry_out(run, xp, processes)


def _carry_out(run: Run, xp: Any, processes: Communicator) -> None:
    import numpy as np

    from ..training import Trainer
    from ..training.checkpoint import checkpoints
    from ..training.directory import RunDirectoryError

    out, options, text, validation = run.folder.path, run.options, run.text, run.validation
    if validation is None:
        cut = round(len(text) * (1 - options["validation_fraction"]))
        text, validation = text[:cut], text[cut:]
        if len(validation) < 2 and not (options["patience"] or options["validate_every"]):
            validation = ""  # the text is too short to hold out a part
    parameter_rng, training_rng = np.random.default_rng(options["seed"]).spawn(2)
    model = _model(run, text, parameter_rng).to(xp)
    vocabulary = model.vocabulary
    if not validation and (options["patience"] or options["validate_every"]):
        raise Refusal("--patience and --validate-every need a text to validate on, but --validation-fraction is 0")
    data = _stream(xp, vocabulary, text, options, "to train on", LEAST_WINDOW)
    held_out = _stream(xp, vocabulary, validation, options, "to validate on", options["window"]) if validation else None
    ends = [options["steps"] or options["epochs"] * len(data), *run.more]
    if run.longer:
        end = run.longer.get("steps") or run.longer["epochs"] * len(data)
        if end < ends[-1]:
            ((name, value),) = run.longer.items()
            raise Refusal(
                f"{out}: its run has {ends[-1]:,} steps; {flag_of(name)} {value} can make it longer, but not shorter"
            )
        if end > ends[-1]:
            ends.append(end)
            run.folder.details = {"more": ends[1:]}
    with warnings_said():
        trainer = Trainer(
            model, data, _optimizer(options), steps=ends[-1], schedule=_schedule(options, ends),
            clip_norm=options["clip"], clip_value=options["clip_value"], l2=options["l2"],
            validation=held_out, validation_interval=options["validate_every"], patience=options["patience"],
            directory=run.folder, checkpoint_interval=options["checkpoint_every"], log_interval=options["log_every"],
            metric=vocabulary.metric, rng=training_rng, communicator=processes, shards=options["shards"],
            on_checkpoint=lambda: model.save(out / MODEL),
            **progress_of(lambda: trainer.total),
        )  # fmt: skip
    new = not (run.resumed or run.replaces)
    with ExitStack() as stack:
        processes.first("gpurnn", lambda: stack.enter_context(directory_taken(run.folder, new=new)))
        if run.resumed:
            # A kill may have come before the first checkpoint.
            if checkpoints(out / "checkpoints"):
                with warnings_said(), refusing(ValueError, OSError):
                    step = trainer.resume()
                if trainer.stopped_early and run.longer:
                    raise Refusal(
                        f"{out}: its run stopped early at step {step:,}, as --patience {options['patience']} asks; "
                        f"continue from its model in a new run, with --from {shlex.quote(str(out))}"
                    )
                say(f"resuming at step {step:,} of {trainer.total:,}")
            elif (out / MODEL).exists():
                raise Refusal(f"{out}: holds the {MODEL} of a run whose checkpoints are gone; choose another directory")
        else:
            processes.first("gpurnn", lambda: _begin(run, vocabulary))
            kind = "character" if isinstance(text, str) else vocabulary.kind
            say(f"{len(text):,} {kind}s to train on, {len(validation):,} to validate on; {vocabulary!r}")
            say(f"{model!r}")
            _say_what_was_adapted(options, data, ends[-1])
            _warn_of_unknown(model, text)
        try:
            trainer.train()
        except KeyboardInterrupt:
            again = f"gpurnn {click.get_current_context().info_name} --out {shlex.quote(str(out))} --resume"
            raise interruption(f"interrupted; step {trainer.saved_step} is kept. Resume with: {again}") from None
        except MemoryError as error:
            cure = "lower --batch, --window, --hidden or --layers"
            raise Failure(f"{out_of_memory(error)}; {cure}, and add --replace") from error
        except (FloatingPointError, OSError, RunDirectoryError) as error:
            raise Failure(sentence(error)) from error
        if processes.rank == 0:
            model.save(out / MODEL)  # early stopping goes back to parameters that are older than the last checkpoint
            _report(out, model, trainer, options["seed"], text, validation)


def _begin(run: Run, vocabulary: Vocabulary) -> None:
    """Take the directory for a new run."""
    from .. import _files
    from ..models import TokenizerVocabulary

    with refusing(ValueError, OSError):
        if run.replaces:
            remove_run(run.folder)
        run.folder.begin(anew=True)
        if run.piped is not None:
            _files.write_atomically(run.folder.path / PIPED, run.piped)
        if isinstance(vocabulary, TokenizerVocabulary):
            # When the run is resumed, another version of tokenizers might train a different tokenizer.
            _files.write_atomically(run.folder.path / TOKENIZER, vocabulary.tokenizer.to_str(pretty=True).encode())


def _say_what_was_adapted(options: dict[str, Any], data: TokenStream, steps: int) -> None:
    """Say which options were lowered for a short text, and whether the warmup exceeds the run."""
    said = []
    if data.steps < options["window"]:
        said.append(f"--window {data.steps} instead of {options['window']}")
    if data.batch_size < options["batch"]:
        said.append(f"--batch {data.batch_size} instead of {options['batch']}")
    if said:
        many = "" if steps >= 100 else f", in {steps} steps; give --steps for more"
        warn(f"the text is short: training with {' and '.join(said)}{many}")
    if options["schedule"] == "cosine" and options["warmup"] >= steps:
        warn(f"--warmup {options['warmup']} is longer than the run: the rate rises over all of its {steps} steps")


def _warn_of_unknown(model: LanguageModel, text: str | TokenFile) -> None:
    """Say how much of a text is missing from the vocabulary of a model that was trained on another text."""
    import numpy as np

    if not isinstance(text, str):  # its vocabulary is the model's
        return
    tokens = model.vocabulary.encode(text)
    unknown = int(np.isin(tokens, model.vocabulary.unknown_tokens).sum())
    if unknown > 0.01 * len(tokens):
        warn(
            f"{unknown:,} of {len(tokens):,} {model.vocabulary.kind}s are not in the vocabulary, and are learnt as one "
            "unknown symbol"
        )


@contextmanager
def directory_taken(folder: RunDirectory, *, new: bool) -> Iterator[None]:
    """Hold the lock of a run's directory; reject a directory whose lock is not free."""
    with ExitStack() as stack:
        with refusing(ValueError, OSError):
            stack.enter_context(folder.locked(new=new))
        yield


def _stream(
    xp: Any, vocabulary: Vocabulary, text: str | TokenFile, options: dict[str, Any], purpose: str, least: int
) -> TokenStream:
    """``text`` as a stream of at most ``--batch`` lanes, in windows of at most ``--window`` steps.

    A short text is read in fewer lanes rather than in windows of fewer than ``least`` steps.
    """
    import numpy as np

    from .. import _dispatch
    from ..training import TokenStream

    if not isinstance(text, str) and text.vocabulary != vocabulary:
        raise Refusal(
            f"the token file {purpose} has another vocabulary than the model; write it again with gpurnn tokenize "
            "--vocabulary"
        )
    tokens, checksum = (vocabulary.encode(text), None) if isinstance(text, str) else (text.tokens, text.checksum)
    if len(tokens) < 2:
        raise Refusal(f"the text {purpose} has {len(tokens)} {vocabulary.kind}s, expected at least 2")
    lanes = min(options["batch"], max(1, len(tokens) // (min(options["window"], least) + 1)))
    window = min(options["window"], len(tokens) // lanes - 1)
    if xp is not np:
        tokens = _dispatch.from_numpy(xp, tokens)
    return TokenStream(tokens, lanes, window, checksum=checksum)


def _optimizer(options: dict[str, Any]) -> Optimizer:
    from .. import optimizers

    kind: Callable[..., Optimizer] = getattr(optimizers, OPTIMIZERS[options["optimizer"]])
    return kind(lr=options["lr"])


def _schedule(options: dict[str, Any], ends: Sequence[int]) -> Callable[[int], float] | None:
    """The learning rate of a run that ends at the first of ``ends``, and was then made longer up to the others.

    Each part has a cosine of its own. Its first update still has the last rate of the part before, because a checkpoint
    at the end of that part already stores this rate.
    """
    from .. import schedules

    if options["schedule"] == "constant":
        return None
    parts, begin = [], 0
    for end in ends:
        steps = end - begin
        cosine = schedules.CosineWithWarmup(options["lr"], steps, min(options["warmup"], steps - 1))
        parts.append((begin, end, cosine))
        begin = end

    def rate(step: int) -> float:
        begin, _, cosine = next((part for part in parts if step <= part[1]), parts[-1])
        return cosine(step - begin)

    return rate


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


def load_model(directory: Path) -> LanguageModel:
    from ..models import LanguageModel

    path = directory / MODEL
    if not path.exists():
        raise Refusal(f"{directory}: no model in there ({MODEL}); gpurnn train makes one")
    with refusing(ValueError, OSError, ImportError):
        return LanguageModel.from_file(path)


def make_directory(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Refusal(sentence(error)) from error


def _report(
    out: Path,
    model: LanguageModel,
    trainer: Trainer,
    seed: int,
    text: str | TokenFile,
    validation: str | TokenFile,
) -> None:
    """Draw the loss curve, write a sample, and say where everything is."""
    from .. import _files

    unit = model.vocabulary.metric
    losses = []
    for name, where, contents in ((unit, "training", text), (f"validation_{unit}", "validation", validation)):
        values = [record[name] for record in trainer.history if name in record]
        if values and model.vocabulary.kind == "token" and isinstance(contents, str):
            # Perplexities of different tokens cannot be compared.
            bits = math.log2(values[-1]) * len(model.vocabulary.encode(contents)) / len(contents)
            losses.append(f"{bits:.3f} bits per character in {where}")
        elif values:
            losses.append(f"{values[-1]:.3f} {unit.replace('_', ' ')} in {where}")
    ended = f"stopped early at step {trainer.step:,}" if trainer.stopped_early else f"{trainer.step:,} steps"
    say(f"{ended}: {', '.join(losses)}")
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
        curve = "loss curve  none: matplotlib is not installed; pip install matplotlib"
    say(f"model       {out / MODEL}")
    say(curve)
    say(f"metrics     {out / METRICS}")
    say(f"sample      {out / SAMPLE}")
    say(f"write more  gpurnn generate {shlex.quote(str(out))}")
