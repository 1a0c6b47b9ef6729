"""The directive `cell` shows an equation's definition and its kernel side by side, cut from their sources.

``{cell} lstm`` shows the functions `forward` and `backward` of `reference/cells/lstm.py` next to the struct of
`kernels/cells/lstm.cuh`. The options ``definition``, a file and its functions, and ``kernel``, a file, name others.
"""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.util.docutils import SphinxDirective

ROOT = Path(__file__).parents[1]


def definition(path: Path, names: list[str]) -> str:
    """Return the source of the functions ``names`` of a file."""
    source = path.read_text(encoding="utf-8")
    functions = {f.name: f for f in ast.parse(source).body if isinstance(f, ast.FunctionDef)}
    return "\n\n\n".join(ast.get_source_segment(source, functions[name]) or "" for name in names)


def kernel(path: Path) -> str:
    """Return a kernel's file from its first template on, without the includes before it and any exports after it."""
    source = path.read_text(encoding="utf-8")
    return source[source.index("template <") :].partition("\n}  // namespace\n")[0].rstrip()


class Cell(SphinxDirective):
    required_arguments = 1
    option_spec: ClassVar = {"definition": directives.unchanged, "kernel": directives.unchanged}

    def run(self) -> list[nodes.Node]:
        name = self.arguments[0]
        defined = self.options.get("definition", f"reference/cells/{name}.py forward backward")
        reference, *functions = defined.split()
        struct = self.options.get("kernel", f"kernels/cells/{name}.cuh")
        tabs = nodes.container(classes=["gpurnn-sides"])
        for title, code, language in (
            (reference, definition(ROOT / reference, functions), "python"),
            (struct, kernel(ROOT / struct), "cuda"),
        ):
            self.env.note_dependency(str(ROOT / title))
            side = nodes.container(classes=["gpurnn-side"])
            side += nodes.paragraph("", "", nodes.literal("", title))
            side += nodes.literal_block(code, code, language=language)
            tabs += side
        return [tabs]


def setup(app: Any) -> dict[str, Any]:
    app.add_directive("cell", Cell)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
