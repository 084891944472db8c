"""Settings of Sphinx. Nothing is fetched while the documentation is built."""

import os
import sys
from importlib import metadata
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "Agg")

project = "pgm_energy"
author = "The pgm_energy contributors"
project_copyright = author
try:
    release = metadata.version("pgm-energy")
except metadata.PackageNotFoundError:
    release = "unknown"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["_build"]
nitpicky = False

html_theme = "furo"
html_title = "pgm_energy"
html_static_path = ["_static"]
html_show_copyright = False

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "show-inheritance": False}
python_maximum_signature_line_length = 88

napoleon_google_docstring = False
# An attribute of a result is documented once: in its class, and not again as a member.
napoleon_use_ivar = True
napoleon_use_rtype = False
napoleon_preprocess_types = False
