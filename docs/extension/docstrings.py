"""Docstrings for autodoc: Markdown's backticks become reStructuredText, and types keep their names.

The docstrings are written to be read in a terminal. They have sections in Google's style, which
napoleon knows, and single backticks for code.
"""

import ast
import inspect
import re
import textwrap

from sphinx.pycode import ModuleAnalyzer

import jaxprune

LINK = re.compile(r"(`[^`<]+<https:[^`>]+>`_)")
CODE = re.compile(r"`([^`]+)`")
SPECIAL = re.compile(r"([*|\\]|(?<=\w)_(?!\w))")  # what reStructuredText gives a meaning


def as_rst(text):
    """A paragraph with single backticks, as reStructuredText: public names are links."""
    links_apart = LINK.split(text)
    links_apart[::2] = map(_words_and_code, links_apart[::2])
    return "".join(links_apart)


def _words_and_code(text):
    parts = CODE.split(text)
    parts[::2] = (SPECIAL.sub(r"\\\1", words) for words in parts[::2])
    parts[1::2] = map(_code, parts[1::2])
    # A null character marks where words and code touch. An escaped space separates them.
    return re.sub(r"(?<=\w)\0|\0(?=\w)", r"\\ ", "\0".join(parts)).replace("\0", "")


def _code(text):
    if text in jaxprune.__all__:
        return f":py:obj:`~jaxprune.{text}`"
    text = re.sub(r"\s*\n\s*", " ", text)  # over two lines of a list it would end
    return f"``{text}``"


def rewrite(app, what, name, obj, options, lines):
    """Rewrites the lines of a docstring in place, before napoleon reads them."""
    short = name.removeprefix("jaxprune.")
    if what == "data" and short in jaxprune._MODULE_OF:  # the docstring after an assignment
        module = f"jaxprune.{jaxprune._MODULE_OF[short]}"
        lines[:] = ModuleAnalyzer.for_module(module).find_attr_docs()["", short]
    paragraphs = re.split(r"(\n\s*\n)", "\n".join(lines))
    rewritten = (p if re.search(r"^\s*>>> ", p, re.MULTILINE) else as_rst(p) for p in paragraphs)
    lines[:] = "".join(rewritten).split("\n")
    if what in ("attribute", "data", "property"):
        # Napoleon takes a first line `words: more words` for `type: text`. This one shows nothing.
        lines.insert(0, "\\")


def signature_as_written(app, what, name, obj, options, signature, returned):
    """The annotations of a function as its source has them: `optax.Params`, not a union of six."""
    if what not in ("function", "method"):
        return None
    function = inspect.unwrap(getattr(obj, "__func__", obj))
    tree = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    if not isinstance(tree, ast.FunctionDef):
        return None
    if what == "method" and tree.args.args:
        tree.args.args.pop(0)  # self
    return f"({ast.unparse(tree.args)})", ast.unparse(tree.returns) if tree.returns else None


def setup(app):
    app.connect("autodoc-process-docstring", rewrite, priority=400)  # napoleon has 500
    app.connect("autodoc-process-signature", signature_as_written)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
