"""Find the gallery's pictures: the figures of the axes among an example's variables when a block of it ends.

pyplot does not know gpurnn's figures, so sphinx-gallery's own scraper, which asks pyplot, would find none.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from sphinx_gallery.scrapers import figure_rst


def scraper(block: Any, block_vars: dict[str, Any], gallery_conf: dict[str, Any]) -> str:
    """Save the images of the block. Each figure appears once, in the block that made it."""
    variables = block_vars["example_globals"]
    shown = variables.setdefault("_shown", [])
    paths = []
    for value in variables.values():
        first = value.flat[0] if isinstance(value, np.ndarray) and value.dtype == object and value.size else value
        if isinstance(first, Axes) and first.figure not in shown:
            shown.append(first.figure)
            path = next(block_vars["image_path_iterator"])
            first.figure.savefig(path, dpi=150)
            paths.append(path)
    return figure_rst(paths, gallery_conf["src_dir"])
