"""Compiles the kernels of many cells together for the host executor. Most of a compilation is reading the headers."""

from __future__ import annotations

import collections
import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from gpurnn.kernels import host
from gpurnn.kernels.host.build import KERNEL_FLAGS
from gpurnn.kernels.launch import Kernel, Module

AT_ONCE = 12
"""The number of modules in a compilation."""


class _Unlaunched:
    """A stand-in for `Bound` that launches nothing."""

    def __call__(self, *values: Any) -> None:
        pass

    def each(self, rows: Any) -> None:
        pass


def asked_for(call: Callable[[], object]) -> dict[Module, dict[str, None]]:
    """The kernels that a call would launch, by module. None is launched, so the call's results are meaningless."""
    kernels: dict[Module, dict[str, None]] = collections.defaultdict(dict)

    def bind(kernel: Kernel, *args: Any, **options: Any) -> _Unlaunched:
        kernels[kernel.module][kernel.name] = None
        return _Unlaunched()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Kernel, "bind", bind)
        call()
    return kernels


@contextlib.contextmanager
def compiled_together(call: Callable[[], object]) -> Iterator[None]:
    """Within the context, the host executor has exactly the kernels of ``call``, compiled into few libraries."""
    kernels = asked_for(call)
    alike = collections.defaultdict(list)
    for module in kernels:
        if "plain" not in module._libraries:
            alike[module.source, module.include, tuple(module.defines.items())].append(module)
    made: dict[Module, host.Library] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(KERNEL_FLAGS, "plain", ("-O0",))  # optimising would take longer than they run
        for (source, include, defines), group in alike.items():
            for some in (group[k : k + AT_ONCE] for k in range(0, len(group), AT_ONCE)):
                names = [name for module in some for name in kernels[module]]
                proofs = dict.fromkeys(proof for module in some for proof in module.proofs)
                library = host.Library(source, names, dict(defines), "plain", include=include, proofs=[*proofs])
                made |= dict.fromkeys(some, library)
        for module, library in made.items():
            patch.setitem(module._libraries, "plain", library)
        yield
