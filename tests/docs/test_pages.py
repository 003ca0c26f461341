"""Users can paste the code of the documentation: every block of a page runs, in order.

Blocks that begin with ```python run in one namespace per page, and a block ```text that follows one
directly (only blank lines between them) is what it prints. Differences in whitespace do not matter,
and `...` matches anything. Blocks with `>>>` are left to doctest, and a block after the comment
`<!-- not run: REASON -->` is skipped.
"""

import contextlib
import doctest
import io
import pathlib
import re
import sys
import types

import pytest

ROOT = pathlib.Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(
    r"^(?P<not_run><!-- not run: [^>]+ -->\n+)?"
    r"^```python\n(?P<code>.*?)^```\n"
    r"(?:\n*^```text\n(?P<output>.*?)^```$)?",
    re.MULTILINE | re.DOTALL,
)
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def blocks(text):
    """(line of the code, code, expected output or None) of every block that runs."""
    for block in BLOCK.finditer(text):
        if not block["not_run"] and not block["code"].lstrip().startswith(">>>"):
            yield text.count("\n", 0, block.start("code")), block["code"], block["output"]


def run(text, name, module):
    """Runs the blocks of a page, and compares what they print."""
    for n_lines_before, code, expected in blocks(text):
        printed = io.StringIO()
        compiled = compile("\n" * n_lines_before + code, name, "exec")  # so that lines agree
        with contextlib.redirect_stdout(printed):
            exec(compiled, module.__dict__)
        if expected is not None:
            example = doctest.Example(code, expected)
            checker = doctest.OutputChecker()
            if not checker.check_output(expected, printed.getvalue(), OPTIONS):
                difference = checker.output_difference(example, printed.getvalue(), OPTIONS)
                pytest.fail(f"{name}, line {n_lines_before + 1}: {difference}", pytrace=False)


@pytest.fixture
def page_module(monkeypatch, tmp_path):
    """A module for the code of a page, in an empty working directory."""
    monkeypatch.chdir(tmp_path)
    module = types.ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", module)
    return module


WITH_CODE = [page for page in PAGES if any(blocks(page.read_text(encoding="utf-8")))]


@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_block_of_the_page_runs_and_prints_what_it_says(page, page_module):
    run(page.read_text(encoding="utf-8"), str(page), page_module)


PAGE = """
```python
x = 1
print("one", x)
```

```text
one   1
```

```python
>>> undefined
```

<!-- not run: it needs a package -->
```python
undefined
```

```python
print(x + 1)
```
"""


def test_blocks_run_in_order_and_their_output_is_compared(page_module):
    assert [code for _, code, _ in blocks(PAGE)] == ['x = 1\nprint("one", x)\n', "print(x + 1)\n"]
    run(PAGE, "page.md", page_module)
    with pytest.raises(pytest.fail.Exception, match=r"page\.md, line 3: Expected:\n +one 2\nGot:"):
        run(PAGE.replace("one   1", "one 2"), "page.md", page_module)


def test_an_error_in_a_block_has_the_line_of_the_page(page_module):
    with pytest.raises(ZeroDivisionError) as error:
        run(PAGE.replace("x + 1", "1 / 0"), "page.md", page_module)
    assert error.traceback[-1].lineno + 1 == PAGE[: PAGE.index("x + 1")].count("\n") + 1
