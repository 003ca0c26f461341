"""The recipes for other libraries run, each in a process of its own, with the extra `recipes`.

Other blocks of the page run in test_pages.py. Here, a block after `<!-- not run: needs PACKAGE -->`
runs where the package is installed, and prints what the block ```text after it says. Those that go
on with names of the blocks before them get these blocks first.
"""

import doctest
import importlib.util
import os
import pathlib
import re
import subprocess
import sys

import pytest

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "guides" / "recipes.md"
BLOCK = re.compile(
    r"^<!-- not run: needs (?P<package>\w+) -->\n```python\n(?P<code>.*?)^```\n"
    r"(?:\n*^```text\n(?P<output>.*?)^```$)?",
    re.MULTILINE | re.DOTALL,
)
SHARED = {"flatbuffers": "## Exported programs"}  # packages whose block needs those of a section
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def recipes():
    text = PAGE.read_text(encoding="utf-8")
    return [(match["package"], match["code"], match["output"]) for match in BLOCK.finditer(text)]


def code_before(package):
    """The default blocks that a recipe goes on from: the first of the page, and of its section."""
    if package not in SHARED:
        return ""
    text = PAGE.read_text(encoding="utf-8")
    sections = [text[: text.index("def init(")], text[text.index(SHARED[package]) :]]
    codes = [re.search(r"^```python\n(.*?)(?:^```$|\Z)", s, re.M | re.S)[1] for s in sections]
    return "\n".join(codes)


def test_every_block_that_is_not_run_by_default_is_a_recipe():
    text = PAGE.read_text(encoding="utf-8")
    packages = [package for package, _, _ in recipes()]
    assert len(packages) == text.count("<!-- not run")
    assert len(set(packages)) == len(packages)
    assert all(code_before(package) for package in SHARED)


@pytest.mark.recipes
@pytest.mark.parametrize("package, code, output", recipes(), ids=[r[0] for r in recipes()])
def test_a_recipe_runs(package, code, output, tmp_path):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    code = code_before(package) + code
    env = {name: x for name, x in os.environ.items() if name != "XLA_FLAGS"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=env
    )
    assert done.returncode == 0, done.stderr[-3000:]
    if output is not None:
        assert doctest.OutputChecker().check_output(output, done.stdout, OPTIONS), done.stdout
