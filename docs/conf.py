"""The site: `sphinx-build -W --keep-going docs docs/_build/html`."""

import inspect
import re
import sys
from pathlib import Path

import matplotlib as mpl
from sphinx.util.inspect import stringify_signature

import gpurnn

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

project = "gpurnn"
author = "the gpurnn developers"
copyright = "the gpurnn developers, Apache License 2.0"
version = release = gpurnn.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.viewcode",
    "numpydoc",
    "myst_parser",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
    "cells",
]
exclude_patterns = ["_build", "gallery", "**/sg_execution_times.rst", "sg_execution_times.rst"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
suppress_warnings = ["config.cache"]
# A name between single backticks in a docstring becomes a link if there is such a name.
default_role = "py:obj"

autosummary_generate = True
autosummary_ignore_module_all = False
autodoc_typehints = "none"
# The site documents the modules for these libraries without them.
autodoc_mock_imports = ["torch", "jax", "sktime"]
numpydoc_show_class_members = False
numpydoc_xref_param_type = False

sphinx_gallery_conf = {
    "examples_dirs": "gallery",
    "gallery_dirs": "examples",
    "filename_pattern": r"/plot_",
    "plot_gallery": True,
    "abort_on_example_error": True,
    "image_scrapers": ("figures.scraper",),
    "show_memory": False,
    "min_reported_time": 60,
    "remove_config_comments": True,
    "download_all_examples": False,
    "within_subsection_order": "FileNameSortKey",
}

# The copy button leaves out the prompts.
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

html_theme = "pydata_sphinx_theme"
html_title = "gpurnn"
templates_path = ["_templates"]
html_static_path = ["_static"]
html_css_files = ["gpurnn.css"]
html_show_sourcelink = False
html_theme_options = {
    "logo": {"text": "gpurnn"},
    "navbar_align": "left",
    "navigation_with_keys": False,
    "show_toc_level": 2,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": ["sphinx-version"],
}
html_sidebars = {"tutorial": [], "equations/*": [], "changelog": [], "cite": []}

mpl.use("agg")


def _absolute_values(app, what, name, obj, options, lines):
    """Escape |x| in docstrings: reStructuredText takes absolute values and norms for substitutions."""
    literal = False
    for n, line in enumerate(lines):
        if line.strip():
            literal = literal and line.startswith(" ")
        if not literal and not line.lstrip().startswith((">>>", "...")):
            parts = re.split(r"(``.*?``)", line)
            lines[n] = "".join(p if p.startswith("``") else re.sub(r"(?<!\\)\|", r"\\|", p) for p in parts)
        literal = literal or line.rstrip().endswith("::")


def _of_the_constructor(app, what, name, obj, options, signature, returns):
    """Show the constructor's signature, instead of that of ``__new__`` of a layer or of a mocked base class."""
    if what == "class" and signature in ("(*args, **given)", "(*args, **kwargs)"):
        return stringify_signature(inspect.signature(obj), show_annotation=False, show_return_annotation=False), None
    return None


def _no_last_blank_line(app, docname, source):
    """Drop the blank line that ends a doctest's output."""
    source[0] = source[0].replace("\n\n```\n", "\n```\n")


def setup(app):
    app.connect("source-read", _no_last_blank_line)
    app.connect("autodoc-process-docstring", _absolute_values, priority=900)
    app.connect("autodoc-process-signature", _of_the_constructor)
