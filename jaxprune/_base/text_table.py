"""Tables of reports: as text for terminals of 80 columns, and as HTML for notebooks."""

import html
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

WIDTH = 80
# Characters that a column keeps when it is made narrower, in a table that can't be split or can.
_LEAST, _LEAST_OF_SPLIT = 16, 40
_GAP = "  "


class Table(NamedTuple):
    """A table with a title and notes.

    Attributes:
      header: the names of the columns.
      rows: one string per column.
      title: the line above; no line if it is empty.
      notes: lines below.
      numbers: the names of the columns that are aligned on the right.
      flexible: the names of the columns whose cells may be folded where the table is too wide.
      n_fixed: how many columns at the left are repeated where the others do not fit side by side; 0
        for a table that is never split.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""
    notes: Sequence[str] = ()
    numbers: Sequence[str] = ()
    flexible: Sequence[str] = ("leaf", "note")
    n_fixed: int = 0

    def text(self) -> str:
        """The table as text: at most 80 columns, where cells that can be folded allow it.

        Example:
          >>> table = Table(("leaf", "weights"), [("a/kernel", "12"), ("b", "3")], "two leaves")
          >>> print(table._replace(numbers=("weights",)).text())
          two leaves
          leaf      weights
          a/kernel       12
          b               3
        """
        lines = folded(self.title) if self.title else []
        for part in self._without_empty()._parts():
            lines += part
        return "\n".join([*lines, *(line for note in self.notes for line in folded(note))])

    def html(self) -> str:
        """The table as HTML, with all text escaped.

        Example:
          >>> Table(("leaf",), [("<a>",)]).html().count("&lt;a&gt;")
          1
        """
        styles = list(map(self._style, self.header))

        def row(tag: str, cells: Sequence[str]) -> str:
            pairs = zip(cells, styles, strict=True)
            return "".join(
                f"<{tag} style='{style}'>{html.escape(cell)}</{tag}>" for cell, style in pairs
            )

        style = "caption-side: top; text-align: left; color: inherit"
        caption = f"<caption style='{style}'>{html.escape(self.title)}</caption>"
        body = "".join(f"<tr>{row('td', cells)}</tr>" for cells in self.rows)
        head = f"<thead><tr>{row('th', self.header)}</tr></thead>"
        table = f"<table>{caption if self.title else ''}{head}<tbody>{body}</tbody></table>"
        return table + "".join(f"<p>{html.escape(note)}</p>" for note in self.notes)

    def _style(self, name: str) -> str:
        """The style of the HTML cells of a column."""
        side = "right" if name in self.numbers else "left"
        lines = "" if name in self.flexible else "; white-space: nowrap"
        return f"text-align: {side}; vertical-align: top; padding: 0.1em 0.6em{lines}"

    def _without_empty(self) -> "Table":
        """The table, without flexible columns that are empty if it is too wide."""
        if _total(self._natural_widths()) <= WIDTH:
            return self
        columns = [
            i
            for i, name in enumerate(self.header)
            if name not in self.flexible or any(row[i] for row in self.rows)
        ]
        rows = [[row[i] for i in columns] for row in self.rows]
        return self._replace(header=[self.header[i] for i in columns], rows=rows)

    def _natural_widths(self) -> list[int]:
        """The width of each column if nothing is folded."""
        columns = zip(self.header, *self.rows, strict=True)
        return [max(map(len, column)) for column in columns]

    def _widths(self) -> list[int]:
        """The width of each column, after the flexible ones have given way.

        The last flexible column gives way alone if that is enough, else the widest one at a time.
        """
        widths = self._natural_widths()
        flexible = [i for i, name in enumerate(self.header) if name in self.flexible]
        least = _LEAST_OF_SPLIT if self.n_fixed else _LEAST
        excess = _total(widths) - WIDTH
        if flexible and 0 < excess <= widths[flexible[-1]] - least:
            widths[flexible[-1]] -= excess
        while flexible and _total(widths) > WIDTH:
            widest = max(flexible, key=lambda i: (widths[i], i))
            if widths[widest] <= least:
                break
            widths[widest] -= 1
        return widths

    def _parts(self) -> Iterator[list[str]]:
        """The lines of the table, in several parts if it is split."""
        widths = self._widths()
        columns = list(range(len(self.header)))
        fixed, others = columns[: self.n_fixed], columns[self.n_fixed :]
        while others:
            n = len(others)
            while (
                self.n_fixed and n > 1 and _total([widths[i] for i in fixed + others[:n]]) > WIDTH
            ):
                n -= 1
            part, others = fixed + others[:n], others[n:]
            yield self._lines(part, widths)

    def _lines(self, columns: Sequence[int], widths: Sequence[int]) -> list[str]:
        lines = []
        for row in (self.header, *self.rows):
            cells = [folded(row[i], widths[i], "  " if i == 0 else "") for i in columns]
            for k in range(max(map(len, cells))):
                texts = [cell[k] if k < len(cell) else "" for cell in cells]
                aligned = [
                    self._aligned(i, text, widths[i])
                    for i, text in zip(columns, texts, strict=True)
                ]
                lines.append(_GAP.join(aligned).rstrip())
        return lines

    def _aligned(self, column: int, text: str, width: int) -> str:
        return text.rjust(width) if self.header[column] in self.numbers else text.ljust(width)


def folded(text: str, width: int = WIDTH, indent: str = "  ") -> list[str]:
    """The lines of a text that is folded after spaces, and after slashes in long words.

    Args:
      text: without line breaks.
      width: the most characters in a line. A part of a word that is longer is cut.
      indent: what all lines but the first start with.

    Example:
      >>> folded("the leaf encoder/layer/query", 12)
      ['the leaf', '  encoder/', '  layer/', '  query']
    """
    lines = [""]
    for word in _words(text, width - len(indent)):
        if len((lines[-1] + word).rstrip()) > width and lines[-1].strip():
            lines.append(indent)
        while len((lines[-1] + word).rstrip()) > width:
            room = width - len(lines[-1])
            lines[-1], word = lines[-1] + word[:room], word[room:]
            lines.append(indent)
        lines[-1] += word
    return [line.rstrip() for line in lines]


def _words(text: str, width: int) -> Iterator[str]:
    """The parts of a text that stay together, each with the space or slash behind it."""
    for word in re.findall(r"[^ ]* ?", text):
        yield from [word] if len(word.rstrip()) <= width else re.findall("[^/]*/?", word)


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + len(_GAP) * (len(widths) - 1)
