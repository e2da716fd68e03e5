"""A corpus for tests of comparisons."""

from __future__ import annotations

from pathlib import Path

import pytest

from cats.nmt.data.corpus import Corpus, Split, Task
from cats.nmt.data.corpus_files import write_corpus
from tests.nmt.scoring.comparisons import LINES


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Language xa with 12 training pairs, xb with 3; the target repeats the source."""
    split = Split(LINES, LINES, [("all", str(i % 3)) for i in range(6)])
    tasks = [
        Task("xa", "en", "xa", Split(LINES * 2, LINES * 2), split, split),
        Task("xb", "en", "xb", Split(LINES[:3], LINES[:3]), split, split),
    ]
    write_corpus(Corpus("toy", tasks), tmp_path / "toy")
    return tmp_path / "toy"
