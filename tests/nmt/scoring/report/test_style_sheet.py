"""The colours of the page: everything that is read has enough contrast, in light and in dark."""

from __future__ import annotations

import re
from importlib.resources import files

import pytest

# Each colour of text, and what it is written on.
PAIRS = [
    *(("ink", on) for on in ("paper", "box", "warn-box", "good-box")),
    *(("soft", on) for on in ("paper", "box")),
    *(("link", "paper"), ("warn", "warn-box"), ("added", "added-box"), ("missing", "missing-box")),
]


def schemes() -> dict[str, dict[str, str]]:
    text = files("cats.nmt.scoring.report").joinpath("page.css").read_text(encoding="utf-8")
    blocks = re.findall(r":root \{([^}]*)\}", text)
    light, dark = (dict(re.findall(r"--([\w-]+): (#\w{6})", block)) for block in blocks[:2])
    return {"light": light, "dark": light | dark}


def luminance(colour: str) -> float:
    """Relative luminance of WCAG 2.1."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast(scheme: str) -> None:
    """WCAG 2.1, 1.4.3 (AA): at least 4.5 to 1."""
    colours = schemes()[scheme]
    for text, ground in PAIRS:
        low, high = sorted((luminance(colours[text]), luminance(colours[ground])))
        assert (high + 0.05) / (low + 0.05) >= 4.5, (text, ground)
