"""Leave out the doctests of modules and pages that need a library which is not installed."""

from importlib.util import find_spec

NEEDS = {
    "gpurnn/torch.py": "torch",
    "gpurnn/jax.py": "jax",
    "gpurnn/sktime.py": "sktime",
    "gpurnn/interop/onnx_backend.py": "onnx",
    "docs/coming-from/keras.md": "keras",
    "docs/coming-from/onnx.md": "onnxruntime",
    "docs/coming-from/pytorch.md": "torch",
}

collect_ignore = [path for path, library in NEEDS.items() if find_spec(library) is None]
