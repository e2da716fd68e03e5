"""cats.nmt.scoring.report.sortable: tables, and the Markdown of cats as HTML."""

from __future__ import annotations

from cats.nmt.scoring.report.html import element
from cats.nmt.scoring.report.sortable import markdown, table
from cats.nmt.scoring.tables import aligned


def test_a_table_has_heads_names_and_totals() -> None:
    text = table("What", ["language", "chrF"], [["<az>", "1.0"]], totals=[["All", element("b", "2")]]).markup
    assert text == (
        '<div class="box" role="region" aria-label="What" tabindex="0"><table>'
        '<thead><tr><th scope="col">language</th><th scope="col" class="number">chrF</th></tr></thead>'
        '<tbody><tr><th scope="row">&lt;az&gt;</th><td class="number">1.0</td></tr></tbody>'
        '<tfoot><tr><th scope="row">All</th><td class="number"><b>2</b></td></tr></tfoot></table></div>'
    )


def test_markdown() -> None:
    rows = [["language", "group", "chrF"], ["a|z", "", "1.0*"], ["**All**", "<b>", "2"]]
    found = markdown(
        f"## ted & more\n\nOne line,\n*another*; p < 0.05 and * marks it.\n\n{aligned(rows, left=2)}\n"
    ).markup
    assert found.startswith(
        "<h3>ted &amp; more</h3><p>One line, <em>another</em>; p &lt; 0.05 and * marks it.</p>"
        '<div class="box" role="region" aria-label="ted &amp; more" tabindex="0"><table>'
    )
    assert '<th scope="col">group</th><th scope="col" class="number">chrF</th>' in found
    assert '<th scope="row">a|z</th><td></td><td class="number">1.0*</td>' in found
    assert '<th scope="row"><strong>All</strong></th><td>&lt;b&gt;</td><td class="number">2</td>' in found
    assert "---" not in found
