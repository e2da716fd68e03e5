"""Writes the programs of examples/ into the page that asks for them with ``<!-- generated-examples -->``.

Their docstrings are Markdown: a title, what the program shows, how to run it, and what it prints.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent.parent.parent / "examples"


def programs() -> list[str]:
    """The names of the programs, in the order of examples/README.md."""
    return re.findall(r"\]\((\w+\.py)\)", (FOLDER / "README.md").read_text(encoding="utf-8"))


def section(program: str) -> str:
    text = (FOLDER / program).read_text(encoding="utf-8")
    title, _, words = (ast.get_docstring(ast.parse(text)) or "").partition("\n")
    code = text.split('"""', 2)[2].strip()
    return f"## {program}\n\n**{title}**\n{words}\n\n```python\n{code}\n```\n"


def on_page_markdown(markdown: str, **_: Any) -> str:
    return markdown.replace("<!-- generated-examples -->", "\n".join(map(section, programs())))
