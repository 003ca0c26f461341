"""The reference documents every public name, once."""

import collections
import pathlib
import re

import pytest

import jaxprune

ROOT = pathlib.Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs/reference").glob("*.md"))
DIRECTIVE = re.compile(r"^\.\. (?:(current)module|auto\w+):: ([\w.]+)", re.MULTILINE)


def documented():
    """How often the reference documents each public name."""
    names = []
    for page in PAGES:
        for is_module, name in DIRECTIVE.findall(page.read_text(encoding="utf-8")):
            if is_module:
                module = name
            else:
                names.append(f"{module}.{name}")
    # Classes of returned objects, which nobody needs to import, are documented too.
    return collections.Counter(name for name in names if "._" not in name)


def test_every_public_name_is_documented_once():
    modules = {"jaxprune": jaxprune, "jaxprune.plots": jaxprune.plots}
    public = [f"{name}.{x}" for name, module in modules.items() for x in module.__all__]
    expected = dict.fromkeys(public, 1)
    assert documented() == expected, "each name needs one line `.. autofunction::` or `autoclass::`"


def test_the_overview_links_every_page_of_the_reference():
    overview = (ROOT / "docs/reference/index.md").read_text(encoding="utf-8")
    for page in PAGES:
        if page.name != "index.md":
            assert f"({page.name})" in overview
            assert re.search(rf"^{page.stem}$", overview, re.MULTILINE)


def test_every_command_is_documented():
    pytest.importorskip("typer")
    from typer.main import get_command

    from jaxprune.__main__ import app

    page = (ROOT / "docs/reference/command-line.md").read_text(encoding="utf-8")
    commands = re.findall(r"^```\{command-help\} (\w+)$", page, re.MULTILINE)
    assert sorted(commands) == sorted(get_command(app).commands)
