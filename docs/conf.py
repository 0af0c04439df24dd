"""Configuration of the documentation: ``python -m sphinx -W --keep-going docs docs/_build``."""

import os
import sys
import warnings
from pathlib import Path

os.environ.setdefault("SCIPY_ARRAY_API", "1")
sys.path.insert(0, str(Path(__file__).parent))

import skood  # noqa: E402

project = "skood"
author = "the skood developers"
release = version = skood.__version__
html_title = f"skood {release}"

extensions = [
    "generate",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "numpydoc",
    "myst_parser",
    "sphinx_design",
    "sphinx_copybutton",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build", "_templates"]
templates_path = ["_templates"]
# What stands in single backticks in docstrings is code.
default_role = "literal"

# One page an object, with its methods on it.
autosummary_generate = True
numpydoc_show_class_members = False
autodoc_typehints = "none"

myst_enable_extensions = ["colon_fence", "dollarmath", "deflist"]
myst_heading_anchors = 3
# Prompts stay out of what is copied.
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

html_theme = "pydata_sphinx_theme"
html_theme_options = {
    "show_toc_level": 2,
    "navigation_with_keys": False,
    "navbar_align": "left",
    # Code side by side needs the width.
    "secondary_sidebar_items": {"**": ["page-toc"], "coming_from": []},
    "show_prev_next": True,
}
html_sidebars = {page: [] for page in ("start", "api", "benchmarks", "coming_from", "changes")}
html_static_path = []
html_show_sourcelink = False

sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "gallery",
    # Every script runs; an error in one is an error of the build.
    "filename_pattern": ".*",
    "abort_on_example_error": True,
    "remove_config_comments": True,
    "show_memory": False,
    "download_all_examples": False,
    "within_subsection_order": "generate.ExampleOrder",
    "backreferences_dir": None,
    "min_reported_time": 1,
}
warnings.filterwarnings("ignore", category=UserWarning, module="skood")
