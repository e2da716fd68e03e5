"""The style of all pictures."""

from __future__ import annotations

import math
import sys
import xml.etree.ElementTree as ET
from itertools import pairwise
from pathlib import Path

import pytest
from matplotlib.text import Text

from cats.nmt.config.sections.method import METHODS
from cats.nmt.errors import UserError
from cats.nmt.scoring.grid.methods import DEFAULT, NAMED
from cats.nmt.scoring.plots import style
from tests.nmt.scoring.samples import png_size


def test_every_known_method_has_a_style_of_its_own() -> None:
    names = {*(name for name in METHODS if ":" not in name), *NAMED, *DEFAULT, "T=3"} - {"pretrain"}
    assert style.method_style("pretrain") == style.method_style("pretrain-finetune")
    found = {name: style.method_style(name) for name in names}
    pairs = {(each.colour, each.marker) for each in found.values()}
    assert len(pairs) == len(found), "add the new name at the end of _PLACES"
    usual = [found[name] for name in DEFAULT]  # these are often in one picture: not even the colours repeat
    assert len({each.colour for each in usual}) == len({each.marker for each in usual}) == len(usual)
    assert all(each.filled and each.dash == "-" for each in found.values())


@pytest.mark.parametrize(
    ("form", "base", "dash"),
    [
        ("T=3r", "T=3", "--"),
        ("T=infr", "T=inf", "--"),
        ("cats-r", "cats", "--"),
        ("cats-staged", "cats", "-."),
        ("chi-square-ibr-fixed", "chi-square-ibr", ":"),
    ],
)
def test_a_form_of_a_method_has_its_colour_with_other_dashes(form: str, base: str, dash: str) -> None:
    ours, plain = style.method_style(form), style.method_style(base)
    assert (ours.colour, ours.marker) == (plain.colour, plain.marker)
    assert (ours.dash, ours.filled) == (dash, False)


def test_forms_of_forms_and_settings_keep_the_colour() -> None:
    styles = [style.method_style(f"cats{more}") for more in ("", "-r", "-fixed", "-r-fixed", ", model.d_model=96")]
    assert len({each.colour for each in styles}) == 1
    assert len({str(each.dash) for each in styles}) == len(styles)
    # A name that only ends in r is no form of another one.
    assert style.method_style("mirror").filled and style.method_style("chi-square-ibr").filled


def test_colours_are_the_same_in_every_process() -> None:
    colours = {"slow": "#56B4E9", "T=1.7": "#009E73", "a name with ü": "#E69F00"}
    assert {name: style.method_colour(name) for name in colours} == colours


def test_text_is_readable_on_white() -> None:
    for colour in [*style.COLOURS, "white"]:
        text = style.text_colour(colour)
        rgb = [int(text[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in rgb]
        luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
        assert 1.05 / (luminance + 0.05) >= 4.49, colour  # 4.5, and the rounding to whole 1/255
    assert style.text_colour("#0072B2") == "#0072b2"  # it is dark enough as it is


def test_both_files_are_written_and_the_svg_is_the_same_each_time(tmp_path: Path) -> None:
    def drawn(path: Path) -> list[Path]:
        figure, (axis,) = style.new_figure(1)
        axis.plot([0, 1], [1, 2], label="cats")
        axis.set_xlabel("update & token")
        style.label_ends(axis)
        return style.save_figure(figure, path)

    first, again = drawn(tmp_path / "lr=0.5"), drawn(tmp_path / "again.png")
    assert [path.name for path in (*first, *again)] == ["lr=0.5.png", "lr=0.5.svg", "again.png", "again.svg"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again.png", "again.svg", "lr=0.5.png", "lr=0.5.svg"]
    assert png_size(first[0])[0] == pytest.approx(style.WIDTH * 150)
    assert first[1].read_bytes() == again[1].read_bytes()
    texts = [element.text for element in ET.parse(first[1]).iter("{http://www.w3.org/2000/svg}text")]
    assert {"cats", "update & token"} <= {*texts}  # text, not outlines of letters


def test_an_older_picture_is_kept_if_drawing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figure, _ = style.new_figure(1)
    style.save_figure(figure, tmp_path / "a")
    before = (tmp_path / "a.png").read_bytes()

    def fail(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(figure, "savefig", fail)
    with pytest.raises(MemoryError):
        style.save_figure(figure, tmp_path / "a")
    assert (tmp_path / "a.png").read_bytes() == before


def test_labels_keep_a_distance_and_move_as_little_as_possible() -> None:
    assert style._spread([0.2, 0.5, 0.9], 0.05) == [0.2, 0.5, 0.9]
    close = style._spread([0.5, 0.5, 0.51], 0.06)
    assert math.isclose(close[1] - close[0], 0.06) and math.isclose(close[2] - close[1], 0.06)
    assert math.isclose(sum(close) / 3, (0.5 + 0.5 + 0.51) / 3)  # moved as far up as down
    low = style._spread([0.0, 0.0], 0.06)
    assert low[0] >= 0.03 and math.isclose(low[1] - low[0], 0.06)
    high = style._spread([1.0, 1.0], 0.06)
    assert math.isclose(high[1], 1.0) and math.isclose(high[0], 0.94)
    assert style._spread([], 0.06) == []
    many = style._spread([0.5] * 101, 0.06)  # no room
    assert many[0] == pytest.approx(0.03) and many[-1] == pytest.approx(1.0)


def test_names_at_the_ends_of_many_lines_do_not_overlap() -> None:
    names = [f"method {i}" for i in range(20)]
    figure, (axis,) = style.new_figure(1, labels=len(names))
    for i, name in enumerate(names):
        look = style.method_style(name)
        axis.plot([0, 1], [9 - i / 100, 1 + i / 1000], color=look.colour, label=name, **look.mark)
    axis.plot([0, 1], [0, 0], label="_not named")
    axis.set_ylim(2, 8)  # all lines end below the picture
    style.label_ends(axis)
    figure.draw_without_rendering()
    boxes = [style.Box(*Text.get_window_extent(text).extents) for text in axis.texts]
    assert [text.get_text() for text in axis.texts] == names  # from the bottom to the top, in the order of the ends
    assert all(one.top <= other.bottom + 1 for one, other in pairwise(boxes))
    leaders = [line for line in axis.get_lines() if line.get_label() == "_leader"]
    assert [line.get_marker() for line in leaders] == [style.method_style(name).marker for name in names]
    assert all(line.get_ydata()[0] == 0 for line in leaders)  # they start at the lower edge


def test_names_of_points_do_not_overlap() -> None:
    figure, (axis,) = style.new_figure(1)
    points = {name: (1.0, 1.0 + i / 1000) for i, name in enumerate(["cats", "T=1", "T=inf", "uniform"])}
    points["alone"] = (2.0, 2.0)
    for name, (x, y) in points.items():
        axis.plot([x], [y], **style.method_style(name).mark)
    style.label_points(axis, points)
    figure.draw_without_rendering()
    boxes = [style.Box(*Text.get_window_extent(text).extents) for text in axis.texts]
    assert sorted(text.get_text() for text in axis.texts) == sorted(points)
    centres = [axis.transData.transform(point) for point in points.values()]
    for i, box in enumerate(boxes):
        assert not any(box.overlap(other) for other in boxes[:i])
        assert not any(box.left < x < box.right and box.bottom < y < box.top for x, y in centres)


def test_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UserError, match=r"pip install '\.\[nmt\]'"):
        style.new_figure(1)
