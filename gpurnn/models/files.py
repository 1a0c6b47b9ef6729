"""Files of models: what class a file holds, and how one of it is made from the file."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from .. import _checks, _files
from ..layers.base import Layer

if TYPE_CHECKING:
    from .base import Model
    from .kalman import LinearGaussian

KINDS: dict[str, Any] = {}
"""The classes that a file may hold, by name; ``_restored(config, parameters)`` of each makes a model."""


def write(path: str | os.PathLike[str], model: Layer, config: dict[str, Any]) -> None:
    """Write a model of one of `KINDS`: its parameters, and the configuration that it is made from."""
    kind, forms = type(model).__name__, model._forms()
    content = {"model": kind, "config": config, **({"forms": forms} if forms else {})}
    _files.write_tensors(path, f"{kind}.save", "model", content, model.state_dict())


def read(where: str, path: str | os.PathLike[str], kind: type) -> Any:
    """The model that `write` wrote to ``path``, if it is a ``kind``.

    Raises
    ------
    FileFormatError
        The file is damaged, holds something else, or its configuration and its arrays do not make a model.
    OSError
        The file does not exist or cannot be read.
    """
    _checks.path(where, "path", path)
    content, parameters = _files.read_tensors(path, "model")
    try:
        name, config = content["model"], content["config"]
        found = KINDS.get(name)
    except (KeyError, TypeError) as error:
        raise _files.FileFormatError(f"{os.fspath(path)}: damaged: it does not name its model") from error
    if found is None:
        raise _files.FileFormatError(
            f"{os.fspath(path)}: holds a {name}, which is not defined; import the module that defines it"
        )
    if not issubclass(found, kind):
        raise _files.FileFormatError(f"{os.fspath(path)}: holds a {name}, expected a {kind.__name__}")
    try:
        return found._restored(config, parameters)
    except Exception as error:
        # Whatever a configuration holds, a constructor checks it as a caller's, and raises as it does to callers.
        said = _files.reason(error)
        raise _files.FileFormatError(f"{os.fspath(path)}: its contents do not make a {name}: {said}") from error


def load(path: str | os.PathLike[str]) -> Model | LinearGaussian:
    """The model, of whatever kind, that its ``save`` wrote to ``path``; raises as `Model.from_file` does."""
    model: Model | LinearGaussian = read("load", path, Layer)
    return model
