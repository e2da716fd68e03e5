"""Tables in HTML. The script of the page makes their columns sortable; without it they are plain tables."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from cats.nmt.scoring.report.html import Child, Html, element, joined

Rows = Iterable[Sequence[Child]]


def table(title: str, columns: Sequence[str], rows: Rows, *, totals: Rows = (), left: int = 1) -> Html:
    """A table in a box of its own, which scrolls if the table is wider than the page.

    Args:
        title: what the table shows, for readers that hear the page.
        rows: the first cell of each is its name.
        totals: rows that stay at the end when the others are sorted.
        left: the number of columns of text. The others are numbers, which the first number in a cell is sorted by.
    """
    heads = [element("th", name, scope="col", class_=_class(i, left)) for i, name in enumerate(columns)]
    parts = [
        element("thead", element("tr", *heads)),
        element("tbody", *(_row(row, left) for row in rows)),
    ]
    if ends := [_row(row, left) for row in totals]:
        parts.append(element("tfoot", *ends))
    # A box that scrolls must be reachable with the keyboard, and then needs a name.
    return element("div", element("table", *parts), class_="box", role="region", aria_label=title, tabindex=0)


def markdown(text: str) -> Html:
    """The Markdown that cats writes: headings, paragraphs, tables and **bold** or *emphasised* words."""
    parts: list[Html] = []
    title = ""
    for block in re.split(r"\n{2,}", text.strip()):
        lines = block.splitlines()
        if heading := re.fullmatch(r"#+ (.*)", block):
            title = heading[1]
            parts.append(element("h3", title))
        elif len(lines) > 1 and re.fullmatch(r"[|:\- ]+", lines[1]):
            first, rule, *rest = ([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines)
            left = sum(not cell.endswith(":") for cell in rule)
            rows = [[_words(cell) for cell in row] for row in rest]
            parts.append(table(title, first, rows, left=left))
        else:
            parts.append(element("p", _words(" ".join(lines))))
    return joined(*parts)


def _words(text: str) -> Html:
    """Text with its bold and emphasised words."""
    parts = re.split(r"(\*\*.+?\*\*|\*\S(?:[^*]*\S)?\*)", text.replace(r"\|", "|"))
    marked = [
        element("strong", p[2:-2]) if p.startswith("**") else element("em", p[1:-1]) if i % 2 else p
        for i, p in enumerate(parts)
    ]
    return joined(*marked)


def _row(cells: Sequence[Child], left: int) -> Html:
    first, *rest = cells
    return element(
        "tr",
        element("th", first, scope="row"),
        *(element("td", cell, class_=_class(i, left)) for i, cell in enumerate(rest, start=1)),
    )


def _class(column: int, left: int) -> str | None:
    return None if column < left else "number"
