"""The documents: every path that they name exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest


def named_paths(text: str) -> set[str]:
    """The targets of local links, and all paths in backticks: words with a slash or with the suffix of a file."""
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)  # commands, which other tests run
    links = {link for link in re.findall(r"\]\(([^)#\s]+)", text) if "://" not in link}
    words = set(re.findall(r"`([^`\s]+)`", text))
    return links | {word for word in words if "/" in word or word.endswith((".py", ".md", ".toml", ".txt"))}


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md"])
def test_every_path_in_a_document_exists(document: str, root: Path) -> None:
    paths = named_paths((root / document).read_text(encoding="utf-8"))
    assert paths and not sorted(path for path in paths if not (root / path).exists())


@pytest.mark.parametrize(
    "document",
    ["bench/README.md", "cats/nmt/README.md", "csrc/README.md", "docs/data.md", "docs/results.md", "docs/scaling.md"],
)
def test_every_link_in_a_folders_document_exists(document: str, root: Path) -> None:
    """Links only: these documents also name files of a run directory or of a corpus in backticks."""
    path = root / document
    links = [link for link in re.findall(r"\]\(([^)#\s]+)", path.read_text(encoding="utf-8")) if "://" not in link]
    assert not [link for link in links if not (path.parent / link).exists()]


def test_paths_are_found() -> None:
    text = "`a/b.py` and `c.md`, [a link](d#part), [far](https://e.org/f), `name.attribute`\n```\n`g/h.py`\n```\n"
    assert named_paths(text) == {"a/b.py", "c.md", "d"}
