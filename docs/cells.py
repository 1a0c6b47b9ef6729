"""The directive `cell` shows an equation's definition and its kernel side by side, cut from their sources.

``{cell} lstm`` shows the functions `forward` and `backward` of `reference/cells/lstm.py` next to the struct of
`kernels/cells/lstm.cuh`.
"""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

ROOT = Path(__file__).parents[1]


def definition(path: Path, names: tuple[str, ...]) -> str:
    """Return the source of the functions ``names`` of a file."""
    source = path.read_text(encoding="utf-8")
    functions = {f.name: f for f in ast.parse(source).body if isinstance(f, ast.FunctionDef)}
    return "\n\n\n".join(ast.get_source_segment(source, functions[name]) or "" for name in names)


def struct(path: Path) -> str:
    """Return a kernel's file from its first template on, without the includes before it."""
    source = path.read_text(encoding="utf-8")
    return source[source.index("template <") :].rstrip()


class Cell(SphinxDirective):
    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        name = self.arguments[0]
        reference, kernel = ROOT / f"reference/cells/{name}.py", ROOT / f"kernels/cells/{name}.cuh"
        for path in (reference, kernel):
            self.env.note_dependency(str(path))
        tabs = nodes.container(classes=["gpurnn-sides"])
        for title, code, language in (
            (f"reference/cells/{name}.py", definition(reference, ("forward", "backward")), "python"),
            (f"kernels/cells/{name}.cuh", struct(kernel), "cuda"),
        ):
            side = nodes.container(classes=["gpurnn-side"])
            side += nodes.paragraph("", "", nodes.literal("", title))
            side += nodes.literal_block(code, code, language=language)
            tabs += side
        return [tabs]


def setup(app: Any) -> dict[str, Any]:
    app.add_directive("cell", Cell)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
