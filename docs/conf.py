"""Sphinx configuration; `make docs` builds with warnings as errors and without network."""

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
