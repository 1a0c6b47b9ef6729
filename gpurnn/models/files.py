"""Files of models: what class a file holds, and how one of it is made from the file."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from .. import _checks, _files
from ..layers.base import Layer

if TYPE_CHECKING:
    from .base import Model
    from .kalman import LinearGaussian

_KINDS: dict[str, Any] = {}
"""The classes that a file may hold, by `_name`; ``_restored(config, parameters)`` of each makes a model."""


def register(kind: type) -> None:
    """Let files hold a class; of a name that its module defines again, the last."""
    _KINDS[_name(kind)] = kind


def _name(kind: type) -> str:
    """What a file calls a class: gpurnn's by its name, any other by its module and name."""
    own = kind.__module__.partition(".")[0] == __name__.partition(".")[0]
    return kind.__name__ if own else f"{kind.__module__}.{kind.__name__}"


def _named(name: str, expected: type) -> Any:
    """The class that a file calls ``name``; None if there is none.

    A module may have another name than when the file was written, as a script has that is now imported: then it is the
    ``expected`` class if that has the name, or the only class of it.
    """
    if name == _name(expected):
        return expected  # also where its module has defined the name again
    if name in _KINDS or "." not in name:
        return _KINDS.get(name)
    last = name.rpartition(".")[2]
    others = [kind for other, kind in _KINDS.items() if "." in other and kind.__name__ == last]
    return expected if expected in others else others[0] if len(others) == 1 else None


def write(path: str | os.PathLike[str], model: Layer, config: dict[str, Any]) -> None:
    """Write a model of a registered class: its parameters, and the configuration that it is made from."""
    kind, forms = type(model), model._forms()
    content = {"model": _name(kind), "config": config, **({"forms": forms} if forms else {})}
    _files.write_tensors(path, f"{kind.__name__}.save", "model", content, model.state_dict())


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
        found = _named(name, kind)
    except (KeyError, TypeError) as error:
        raise _files.FileFormatError(f"{os.fspath(path)}: damaged: it does not name its model") from error
    if found is None:
        raise _files.FileFormatError(
            f"{os.fspath(path)}: holds a {name}, which is not defined; import the module that defines it"
        )
    if not issubclass(found, kind):
        raise _files.FileFormatError(f"{os.fspath(path)}: holds a {name}, expected a {_name(kind)}")
    try:
        return found._restored(config, parameters)
    except Exception as error:
        # Whatever a configuration holds, a constructor checks it as a caller's, and raises as it does to callers.
        said = _files.reason(error)
        raise _files.FileFormatError(f"{os.fspath(path)}: its contents do not make a {name}: {said}") from error


def load(path: str | os.PathLike[str]) -> Model | LinearGaussian:
    """The model, of whatever kind, that its ``save`` wrote to ``path``; raises as `Model.from_file` does.

    A class that is not gpurnn's has to be defined before: it is found by its module and name, or by its name alone if
    there is no other.
    """
    model: Model | LinearGaussian = read("load", path, Layer)
    return model
