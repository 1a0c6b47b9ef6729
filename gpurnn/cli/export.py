"""``gpurnn export``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .options import PathType
from .run import MODEL, run_folder
from .tables import details_of
from .terminal import Refusal, quiet_option, refusing, say


@click.command(short_help="Write a model as an ONNX file.")
@click.argument("model", type=PathType(path_type=Path), metavar="MODEL")
@click.argument("out", type=PathType(path_type=Path), metavar="OUT.onnx")
@quiet_option
def export(model: Path, out: Path) -> None:
    """Write the model in MODEL as ONNX, which other programs can run.

    MODEL is a directory of gpurnn train, demo or fit, or a file that a model's `save` wrote. The ONNX model of gpurnn
    fit takes the features as they are in the table, and gives the target in its own units.

    \b
    gpurnn export my-model my-model.onnx
    gpurnn export classifier.safetensors classifier.onnx
    """
    if out.exists():
        raise Refusal(f"{out}: is there already; choose another OUT.onnx, or move it away")
    from .. import models
    from ..interop import to_onnx

    with refusing(ValueError, OSError, ImportError):
        found = models.load(model / MODEL if model.is_dir() else model)
        held = run_folder(model).read() if model.is_dir() else None
        if held is not None and held.get("command") == "fit":
            _with_scales(found, details_of(model, "fit"))
        written = to_onnx(found, out)
    values = [value.name for value in written.graph.input], [value.name for value in written.graph.output]
    say(f"model       {out}: {', '.join(values[0])} to {', '.join(values[1])}")


def _with_scales(model: Any, details: dict[str, Any]) -> None:
    """Store the details of `gpurnn fit` in a model: the scales of features and target, or the names of classes."""
    import numpy as np

    from ..models.examples import Labels

    learnt = {**model._learnt, "input_mean": np.asarray(details["mean"]), "input_std": np.asarray(details["std"])}
    if details["classes"]:
        learnt["labels"] = Labels(np.asarray(details["classes"], object))
    else:  # its targets were scaled before the model scaled them
        mean, std = (np.asarray(learnt.get(name, default)) for name, default in (("mean", 0.0), ("std", 1.0)))
        learnt |= {"mean": mean * details["target_std"] + details["target_mean"], "std": std * details["target_std"]}
        learnt["target_dtype"] = "float64"  # as `gpurnn predict` computes
    model._learnt = learnt
