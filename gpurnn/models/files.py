"""Files of models: `save` and `from_file`, and the class that a file holds."""

from __future__ import annotations

import os
from abc import abstractmethod
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from .. import _checks, _files
from ..layers.base import Layer

if TYPE_CHECKING:
    from typing_extensions import Self

    from .base import Model
    from .kalman import LinearGaussian

_KINDS: dict[str, Any] = {}
"""The classes that a file may hold, by `_name`; if a module defines a name again, the last one counts."""


class Saved(Layer):
    """A layer whose file holds both its configuration and its parameters, so that `from_file` needs nothing else."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        _KINDS[_name(cls)] = cls

    @classmethod
    @abstractmethod
    def _restored(cls, config: dict[str, Any], shared: dict[str, str], parameters: dict[str, NDArray[Any]]) -> Self:
        """The model from the contents of a file; ``shared`` has further places of parameters, for `Layer._share`."""

    def _content(self) -> tuple[str, Any]:
        shared, forms, fitted = self._shared(), self._forms(), self._fitted()
        content = {
            "model": _name(type(self)),
            "config": {**self.config(), **({"shared": shared} if shared else {})},
            **({"forms": forms} if forms else {}),
            **({"fitted": fitted} if fitted else {}),
        }
        return "model", content

    def _fitted(self) -> dict[str, Any]:
        """The results of a fit besides parameters, JSON-compatible."""
        return {}

    def _restore_fitted(self, fitted: dict[str, Any]) -> None:
        """The reverse of `_fitted`."""
        if fitted:
            raise ValueError(f"fitted holds {sorted(fitted)}, expected nothing")

    def _take_content(self, content: Any) -> None:
        if isinstance(content, dict) and content.get("model") == _name(type(self)):
            self._restore_fitted(content.get("fitted", {}))

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> Self:
        """The model that `save` wrote to ``path``, which may be of a subclass.

        Raises
        ------
        FileFormatError
            The file is damaged or holds something else. A `ValueError`.
        TypeError, ValueError
            ``path`` is not a path.
        OSError
            The file does not exist or cannot be read.
        """
        model: Self = _read(f"{cls.__name__}.from_file", path, cls)
        return model


def _name(kind: type) -> str:
    """The name of a class in a file: the class's name, with the module's before it unless the class is gpurnn's."""
    own = kind.__module__.partition(".")[0] == __name__.partition(".")[0]
    return kind.__name__ if own else f"{kind.__module__}.{kind.__name__}"


def _named(name: str, expected: type) -> Any:
    """The class that a file calls ``name``; None if there is none.

    A module may have another name than when the file was written, for example a script that is now imported. Then this
    is the ``expected`` class if it has the class's name, or else the only class of that name.
    """
    if name == _name(expected):
        return expected  # also if its module has defined the name again
    if "." not in name:
        from .. import models

        getattr(models, name, None)  # loading its module defines one of gpurnn's classes
    if name in _KINDS or "." not in name:
        return _KINDS.get(name)
    last = name.rpartition(".")[2]
    others = [kind for other, kind in _KINDS.items() if "." in other and kind.__name__ == last]
    return expected if expected in others else others[0] if len(others) == 1 else None


def _read(where: str, path: str | os.PathLike[str], kind: type) -> Any:
    """The model that a file holds, if it is a ``kind``.

    Raises
    ------
    FileFormatError
        The file is damaged, holds something else, or its configuration and its arrays do not make a model.
    ImportError
        The model needs a library that is not installed.
    OSError
        The file does not exist or cannot be read.
    """
    _checks.path(where, "path", path)
    content, parameters = _files.read_tensors(path, "model")
    try:
        name, config = content["model"], content["config"]
        saved = _named(name, kind)
    except (KeyError, TypeError) as error:
        raise _files.FileFormatError(f"{os.fspath(path)}: damaged: it does not name its model") from error
    if saved is None:
        raise _files.FileFormatError(
            f"{os.fspath(path)}: holds a {name}, which is not defined; import the module that defines it"
        )
    if not issubclass(saved, kind):
        raise _files.FileFormatError(f"{os.fspath(path)}: holds a {name}, expected a {_name(kind)}")
    try:
        shared = config.pop("shared", {})
        if not isinstance(shared, dict) or any(first not in parameters for first in shared.values()):
            raise ValueError(f"shared is {shared!r}, expected names of parameters by their further places")
        model = saved._restored(config, shared, parameters)
        model._restore_fitted(content.get("fitted", {}))
        return model
    except ImportError:
        raise  # the file may be sound
    except Exception as error:
        # A constructor checks a configuration as it checks a caller's arguments, and raises the same errors.
        said = _files.reason(error)
        raise _files.FileFormatError(f"{os.fspath(path)}: its contents do not make a {name}: {said}") from error


def load(path: str | os.PathLike[str]) -> Model | LinearGaussian:
    """The model of any kind that its ``save`` wrote to ``path``; it raises the errors of `Model.from_file`.

    A class that is not gpurnn's must be defined before. It is found by its module and name, or by its name alone if no
    other class has that name.
    """
    model: Model | LinearGaussian = _read("load", path, Saved)
    return model
