"""Builds the documentation: `python -m sphinx -W --keep-going -b html docs site`.

Nothing is downloaded during a build, and the pages need no network.
"""

import importlib.metadata
import pathlib
import sys

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "docs" / "extension"))

project = "jaxprune"
author = "The jaxprune authors"
copyright = author
version = release = importlib.metadata.version("jaxprune")

extensions = [
    "myst_nb",  # Markdown, and notebooks written in it
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",  # docstrings in Google's style
    "sphinx_copybutton",
    "commands",  # these three are in docs/extension
    "docstrings",
    "links",
]
exclude_patterns = ["_build"]

nitpicky = True  # a link that leads nowhere is an error, except to the types of other libraries
nitpick_ignore_regex = [("py:(class|obj|func|data|exc)", r"(?!jaxprune\.\w+$).*")]
add_module_names = False
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 80
python_display_short_literal_types = True
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_use_ivar = True  # attributes as a list; `:members:` would document them again
napoleon_use_rtype = False

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 4
# Executed again only when their code changes; any error ends the build.
nb_execution_mode = "cache"
nb_execution_raise_on_error = True
nb_execution_timeout = 600  # seconds for a cell, on a busy machine
nb_merge_streams = True

html_theme = "sphinx_book_theme"
html_title = "jaxprune"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {
    "use_download_button": False,
    "use_fullscreen_button": False,
    "show_toc_level": 2,
    "navbar_persistent": [],  # the search field is in the sidebar
    "show_prev_next": True,
}
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True


def setup(app):
    # Beside the pages, as the other files that Sphinx keeps between two builds.
    app.config.nb_execution_cache_path = str(app.outdir / ".jupyter_cache")
