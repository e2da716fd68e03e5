"""A corpus for tests of comparisons."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.nmt.scoring.comparisons import write_repeating_corpus


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """The folder of a corpus of two languages; see `write_repeating_corpus`."""
    return write_repeating_corpus(tmp_path / "toy")
