"""Links: those of Markdown that leave docs/, and public names in the text of a page.

Pages are written so that their links work on GitHub, and are translated here for the site.
"""

import os
import pathlib
import re

from docutils import nodes
from sphinx.util.nodes import make_refnode

ROOT = pathlib.Path(__file__).parents[2]
# Pages of the site that are files of the repository root.
ROOT_FILES = {"contributing": "CONTRIBUTING.md", "changelog": "CHANGELOG.md"}
PAGE_OF_ROOT_FILE = {
    "README.md": "index.md",
    **{file: f"{page}.md" for page, file in ROOT_FILES.items()},
}
LINK = re.compile(r"(?<!!)\[([^][]+)\]\(([^)#\s:]+)(#[^)\s]*)?\)")  # words, path, anchor
PUBLIC_NAME = re.compile(r"(?:jaxprune\.)?(\w+)(?:\(.*\))?", re.DOTALL)


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


def link_public_names(app, doctree, docname):
    """Links `plan` or `jaxprune.plan(...)` to the reference where a page names it first."""
    objects = app.env.domains.python_domain.objects
    linked = set()
    for literal in list(doctree.findall(nodes.literal)):
        match = PUBLIC_NAME.fullmatch(literal.astext())
        name = f"jaxprune.{match[1]}" if match else None
        if name in linked or name not in objects or objects[name].docname == docname:
            continue
        if not isinstance(literal.parent, nodes.reference | nodes.title):
            entry = objects[name]
            link = make_refnode(
                app.builder, docname, entry.docname, entry.node_id, literal.deepcopy(), name
            )
            literal.replace_self(link)
            linked.add(name)


def strip_code(app, doctree):
    """Removes the blank line that ends a doctest on GitHub's side of the fence."""
    for block in doctree.findall(nodes.literal_block):
        if block.rawsource == block.astext():  # plain code, which will be highlighted
            block.rawsource = block.rawsource.rstrip()
            block[:] = [nodes.Text(block.rawsource)]


def setup(app):
    app.connect("source-read", read_source)
    app.connect("doctree-read", strip_code)
    app.connect("doctree-resolved", link_public_names)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
