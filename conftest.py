"""Leave out the doctests of modules and pages that need a library which is not installed."""

from importlib.util import find_spec
from pathlib import Path

import pytest

MODULES = {
    "gpurnn/torch.py": "torch",
    "gpurnn/jax.py": "jax",
    "gpurnn/sktime.py": "sktime",
    "gpurnn/interop/onnx_backend.py": "onnx",
}
PAGES = {
    "docs/coming-from/keras.md": "keras",
    "docs/coming-from/onnx.md": "onnxruntime",
    "docs/coming-from/pytorch.md": "torch",
}

collect_ignore = [path for path, library in MODULES.items() if find_spec(library) is None]


def pytest_collection_modifyitems(items):
    """Skip pages here: pytest collects what `testpaths` names as a file even if `collect_ignore` has it."""
    missing = {Path(__file__).parent / path: library for path, library in PAGES.items() if find_spec(library) is None}
    for item in items:
        if item.path in missing:
            item.add_marker(pytest.mark.skip(reason=f"needs {missing[item.path]}"))
