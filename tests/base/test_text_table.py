"""Tables as text and as HTML: every character of every cell is in both, within 80 columns."""

import html.parser
import re

import pytest
from hypothesis import given, strategies as st

from jaxprune._base.text_table import WIDTH, Table, folded

WORDS = st.text("ab1_./ <&>'", min_size=0, max_size=150).map(lambda text: " ".join(text.split()))


def without_spaces(text):
    return re.sub(r"\s", "", text)


@given(WORDS, st.integers(8, 100))
def test_a_folded_text_has_all_its_characters_and_no_long_line(text, width):
    lines = folded(text, width)
    assert without_spaces("".join(lines)) == without_spaces(text)
    assert all(len(line) <= width for line in lines)
    assert all(line.startswith("  ") for line in lines[1:])


def test_a_text_is_folded_after_a_space_or_else_a_slash_or_else_anywhere():
    assert folded("a/bc/def", 80) == ["a/bc/def"]
    assert folded("a/bc/def", 7) == ["a/bc/", "  def"]
    assert folded("one a/b three", 9, "") == ["one a/b", "three"]
    assert folded("abcdefgh", 4, "") == ["abcd", "efgh"]
    assert folded("", 4) == [""]


def columns_of(text, widths):
    """The cells of a table that is not folded, by the places of its columns."""
    starts = [sum(widths[:i]) + 2 * i for i in range(len(widths))]
    return [
        [line[start : start + width] for line in text.splitlines()]
        for start, width in zip(starts, widths, strict=True)
    ]


@given(st.lists(st.tuples(WORDS, st.integers(0, 10**9), WORDS), min_size=1, max_size=4))
def test_a_table_is_at_most_80_columns_wide_and_has_all_of_its_cells(rows):
    table = Table(
        ("leaf", "weights", "note"), [(a, f"{n:,}", b) for a, n, b in rows], numbers=("weights",)
    )
    text = table.text()
    assert all(len(line) <= WIDTH for line in text.splitlines())
    table = table._without_empty()
    for column, cells in enumerate(columns_of(text, table._widths())):
        expected = [table.header[column], *(row[column] for row in table.rows)]
        assert without_spaces("".join(cells)) == without_spaces("".join(expected))


PATH = "encoder/layers_10/self_attention/query/kernel"


def test_a_long_note_is_folded_and_a_long_leaf_only_if_that_is_not_enough():
    note = "override 'encoder/.*/kernel' (2 of 12 slices)"
    assert Table(
        ("leaf", "n", "note"), [(PATH, "7", note)], numbers=("n",)
    ).text().splitlines() == [
        "leaf                                           n  note",
        "encoder/layers_10/self_attention/query/kernel  7  override 'encoder/.*/kernel'",
        "                                                  (2 of 12 slices)",
    ]
    wide = "n" * 30
    assert Table(
        ("leaf", wide, "note"), [(PATH, "7", note)], numbers=(wide,)
    ).text().splitlines() == [
        "leaf                     nnnnnnnnnnnnnnnnnnnnnnnnnnnnnn  note",
        "encoder/layers_10/                                    7  override",
        "  self_attention/query/                                  'encoder/.*/kernel' (2",
        "  kernel                                                 of 12 slices)",
    ]


def test_an_empty_column_is_left_out_of_a_table_that_is_too_wide():
    wide = Table(("leaf", "note"), [("x" * 75, "")])
    assert wide.text().split() == ["leaf", "x" * 75]
    assert wide._replace(rows=[("x" * 74, "")]).text().split() == ["leaf", "note", "x" * 74]


def test_a_table_that_may_be_split_repeats_its_first_columns():
    header = ("leaf", *(f"{k}0.0%" for k in range(10)))
    table = Table(header, [("a", *("0.123456",) * 10)], numbers=header[1:], n_fixed=1)
    lines = table.text().splitlines()
    assert [line.split()[0] for line in lines] == ["leaf", "a", "leaf", "a"]
    assert [name for line in lines[::2] for name in line.split()[1:]] == list(header[1:])
    assert all(len(line) <= WIDTH for line in lines)


class Cells(html.parser.HTMLParser):
    """The texts of an HTML table, by tag."""

    def __init__(self, text):
        super().__init__()
        self.texts, self._tags = {}, []
        self.feed(text)
        assert not self._tags

    def handle_starttag(self, tag, attributes):
        self._tags.append(tag)
        if tag in ("td", "th", "caption", "p"):
            self.texts.setdefault(tag, []).append("")

    def handle_endtag(self, tag):
        assert self._tags.pop() == tag

    def handle_data(self, data):
        self.texts[self._tags[-1]][-1] += data


@given(st.lists(st.tuples(WORDS, WORDS), max_size=3), WORDS, st.lists(WORDS, max_size=2))
def test_html_has_the_same_cells_escaped(rows, title, notes):
    texts = Cells(Table(("leaf", "<b>"), rows, title, notes).html()).texts
    assert texts["th"] == ["leaf", "<b>"]
    assert texts.get("td", []) == [cell for row in rows for cell in row]
    assert texts.get("caption", [""]) == [title]
    assert texts.get("p", []) == notes


@pytest.mark.parametrize("name, side", [("n", "right"), ("leaf", "left")])
def test_numbers_are_on_the_right(name, side):
    text = Table((name,), [("1",)], numbers=("n",)).html()
    assert text.count(f"text-align: {side};") == 2
