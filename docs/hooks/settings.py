"""Writes what the code knows about the trainer's settings, presets and methods into the pages that ask for it.

A page asks with a comment, such as ``<!-- generated: settings -->``.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from cats.nmt.config.checks import format_value, type_name
from cats.nmt.config.schema import SECTIONS, TYPES
from cats.nmt.config.toml import presets
from cats.nmt.methods.catalogue import CATALOGUE, FAMILIES


def settings() -> str:
    """A table for each section of the configuration: all settings with default, meaning and type."""
    lines: list[str] = []
    for section, cls in SECTIONS.items():
        lines += [
            f"## [{section}]",
            "",
            str(cls.__doc__).replace("``", "`"),
            "",
            *_row("setting and default", "meaning"),
        ]
        for field in dataclasses.fields(cls):
            name = f"{section}.{field.name}"
            kind = f"{type_name(TYPES[name])}{_values(field)}"
            lines += _row(
                f"`{name}`<br>`{format_value(field.default)}`", f"{_text(field.metadata['help'])}<br>*{kind}*"
            )[:1]
        lines.append("")
    return "\n".join(lines)


def _row(*cells: str) -> list[str]:
    """A line of a table, and the line that follows the first one."""
    return [f"| {' | '.join(cells)} |", f"|{' --- |' * len(cells)}"]


def _text(words: str) -> str:
    """Plain text as Markdown in a table."""
    return words.replace("<", "&lt;").replace("|", "\\|").replace("*", "\\*")


def _values(field: dataclasses.Field[Any]) -> str:
    """Which values of its type a setting may have, where not all of them."""
    if field.name == "name":  # of the method: there are many, and `cats methods` describes them
        return ""
    if choices := field.metadata["choices"]:
        return f": {', '.join(f'`{choice}`' for choice in choices)}"
    return f", {_text(field.metadata['need'].text)}" if field.metadata["need"] else ""


def all_presets() -> str:
    """For each preset the comment at the top of its file, and what it sets."""
    parts = []
    for name, path in presets().items():
        text = path.read_text(encoding="utf-8")
        top = re.match(r"(?:#.*\n)*", text)
        assert top is not None
        words = re.sub(r"^# ?", "", top[0], flags=re.MULTILINE)
        parts.append(f"## {name}\n\n{words}\n```toml\n{text[top.end() :].strip()}\n```\n")
    return "\n".join(parts)


def methods() -> str:
    """A table of all methods for each family."""
    lines: list[str] = []
    for family in FAMILIES:
        lines += [f"### {family[0].upper()}{family[1:]}", "", *_row("method", "what it does", "needs; cost", "source")]
        for method in CATALOGUE:
            if method.family == family:
                texts = map(_text, (method.what, f"{method.needs}; {method.cost}", method.paper))
                lines += _row(f"`{method.name}`", *texts)[:1]
        lines.append("")
    return "\n".join(lines)


GENERATED = {"settings": settings, "presets": all_presets, "methods": methods}


def on_page_markdown(markdown: str, **_: Any) -> str:
    return re.sub(r"^<!-- generated: (\w+) -->$", lambda match: GENERATED[match[1]](), markdown, flags=re.MULTILINE)
