"""Figures of matplotlib as SVG inside an HTML page."""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from cats.nmt.scoring.report.html import Html

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SVG, _LINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
_HREF = f"{{{_LINK}}}href"
# What matplotlib's <style> sets, and the font that the texts were laid out for, with one of the same widths.
_STYLE = "stroke-linejoin: round; font-family: 'DejaVu Sans', Verdana, sans-serif"
_COORDINATES = ("d", "points", "transform", "x", "y")
_REFERENCE = re.compile(r"url\(#([^)]+)\)")


def inline(figure: Figure, number: int, title: str, text: str) -> Html:
    """The figure as an element <svg> with a title and a description, which are read aloud.

    Its text stays text. What would reach beyond the picture, or is of no use in a page, is removed: the rule for all
    elements of the page in matplotlib's <style>, the metadata, ids that other pictures have too, and most decimals.

    Args:
        number: of the picture; no other one on the page has it.
    """
    from matplotlib import rc_context

    buffer = io.BytesIO()
    with rc_context({"svg.hashsalt": "cats", "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    root = ElementTree.fromstring(buffer.getvalue())
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{{{_SVG}}}style", f"{{{_SVG}}}metadata"):
                parent.remove(child)
    _rename_ids(root, f"picture{number}-")
    for part in root.iter():
        for name in _COORDINATES:
            if value := part.get(name):
                part.set(name, " ".join(re.sub(r"(\.\d\d)\d+", r"\1", value).split()))
        if style := part.get("style"):
            part.set("style", re.sub(r"font-family: [^;]*; ", "", style))
        for space in ("text", "tail"):
            if not (getattr(part, space) or "").strip():
                setattr(part, space, None)
    for name in ("width", "height", "version"):  # the page gives the size
        root.attrib.pop(name, None)
    ids = {"title": f"picture{number}-title", "desc": f"picture{number}-text"}
    root.attrib.update({"role": "img", "aria-labelledby": " ".join(ids.values()), "style": _STYLE})
    for place, (tag, content) in enumerate((("title", title), ("desc", text))):
        part = ElementTree.Element(f"{{{_SVG}}}{tag}", {"id": ids[tag]})
        part.text = content
        root.insert(place, part)
    return Html(_written(root))


def _rename_ids(root: ElementTree.Element, prefix: str) -> None:
    """Gives ids that are referred to a prefix, and removes the others."""
    used = set()
    for part in root.iter():
        for name, value in part.attrib.items():
            if name == _HREF and value.startswith("#"):  # an image is in the picture itself: data:..
                used.add(value.removeprefix("#"))
                part.set(name, f"#{prefix}{value.removeprefix('#')}")
            elif "url(#" in value:
                used.update(_REFERENCE.findall(value))
                part.set(name, _REFERENCE.sub(rf"url(#{prefix}\1)", value))
    for part in root.iter():
        if (found := part.attrib.pop("id", "")) in used:
            part.set("id", prefix + found)


def _written(root: ElementTree.Element) -> str:
    """The markup, with the names of elements as HTML wants them: without prefixes."""
    ElementTree.register_namespace("", _SVG)
    ElementTree.register_namespace("xlink", _LINK)
    return ElementTree.tostring(root, encoding="unicode", short_empty_elements=True)
