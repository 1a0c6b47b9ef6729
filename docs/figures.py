"""What the gallery's pictures are: the figures that an example's variables hold when a block of it ends.

gpurnn's pictures are `matplotlib.figure.Figure`s that pyplot does not know of, so sphinx-gallery's own scraper, which
asks pyplot, would find none.
"""

from __future__ import annotations

from typing import Any

from sphinx_gallery.scrapers import figure_rst


def scraper(block: Any, block_vars: dict[str, Any], gallery_conf: dict[str, Any]) -> str:
    """The images of the block: each figure once, in the block that made it."""
    from matplotlib.figure import Figure

    variables = block_vars["example_globals"]
    shown = variables.setdefault("_shown", set())
    paths = []
    for value in variables.values():
        if isinstance(value, Figure) and id(value) not in shown:
            shown.add(id(value))
            path = next(block_vars["image_path_iterator"])
            value.savefig(path, dpi=150)
            paths.append(path)
    return figure_rst(paths, gallery_conf["src_dir"])
