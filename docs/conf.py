"""Builds the documentation: `python -m sphinx -W --keep-going -b html docs site`.

Nothing is downloaded during a build, and the pages need no network. Links between pages are written
as GitHub understands them; `as_on_the_site` translates those that leave this folder.
"""

import importlib.metadata
import os
import pathlib
import re

ROOT = pathlib.Path(__file__).parents[1]

project = "jaxprune"
author = "The jaxprune authors"
copyright = author
version = release = importlib.metadata.version("jaxprune")

extensions = [
    "myst_nb",  # Markdown, and notebooks written in it
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",  # docstrings in Google's style
    "sphinx_copybutton",
    "sphinx_design",
]
exclude_patterns = ["_build"]
default_role = "py:obj"  # `name` in a docstring: a link where the name is public, else code
nitpicky = True

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 4
# Executed again only when their code changes; any error ends the build.
nb_execution_mode = "cache"
nb_execution_cache_path = str(ROOT / "site" / ".jupyter_cache")
nb_execution_raise_on_error = True
nb_execution_timeout = 180
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
}
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

# Pages of the site that are files of the repository root.
ROOT_FILES = {"contributing": "CONTRIBUTING.md", "changelog": "CHANGELOG.md"}
PAGE_OF_ROOT_FILE = {file: f"{page}.md" for page, file in ROOT_FILES.items()} | {
    "README.md": "index.md"
}


LINK = re.compile(r"(?<!!)\[([^][]+)\]\(([^)#\s:]+)(#[^)\s]*)?\)")  # words, path, anchor


def as_on_the_site(text, folder, page_folder):
    """Markdown with the links of a file in `folder`, translated for a page in `page_folder`.

    A link to a file of the repository root leads to its page, a link to any other file outside
    docs/ downloads it, and a link to a folder becomes plain text.
    """

    def translated(link):
        words, path, anchor = link.groups(default="")
        target = (folder / path).resolve()
        if not target.exists() or not target.is_relative_to(ROOT):
            return link[0]
        if target.is_dir():
            return words
        name = str(target.relative_to(ROOT))
        if name in PAGE_OF_ROOT_FILE:
            target, anchor = ROOT / "docs" / PAGE_OF_ROOT_FILE[name], ""
        return f"[{words}]({os.path.relpath(target, page_folder)}{anchor})"

    return LINK.sub(translated, text)


def read_source(app, docname, source):
    page_folder = (ROOT / "docs" / docname).parent
    if docname in ROOT_FILES:
        file = ROOT / ROOT_FILES[docname]
        app.env.note_dependency(str(file))
        source[0] = as_on_the_site(file.read_text(encoding="utf-8"), ROOT, page_folder)
    else:
        source[0] = as_on_the_site(source[0], page_folder, page_folder)


def setup(app):
    app.connect("source-read", read_source)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
