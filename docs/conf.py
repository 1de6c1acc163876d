"""Sphinx configuration; `make docs` builds with warnings as errors and without network."""

import re
import warnings

# OpenMMLab's packages warn of their own dependencies when autodoc imports them.
warnings.filterwarnings("ignore")

project = "MMPlus"
author = "the MMPlus authors"
copyright = author
release = "0.1.0"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
source_suffix = {".md": "markdown"}
# Folders below results/ hold the records of runs, tables among them that pages include.
exclude_patterns = ["_build", "results/*/**"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False

html_theme = "furo"
html_title = "MMPlus"
html_static_path = ["_static"]


def keep_returns_whole(app, what, name, obj, options, lines):
    """Stop napoleon from reading what stands before a colon in "Returns:" as a type."""
    for place, line in enumerate(lines[:-1]):
        if line.strip() == "Returns:":
            lines[place + 1] = re.sub(r"^( *)", r"\1: ", lines[place + 1], count=1)


def setup(app):
    """Connect the hook before napoleon's."""
    app.connect("autodoc-process-docstring", keep_returns_whole, priority=400)
