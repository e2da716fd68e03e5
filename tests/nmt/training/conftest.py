"""The corpus that most tests of training use."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.nmt.common import write_toy_corpus


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """The folder of the toy corpus."""
    write_toy_corpus(tmp_path / "toy")
    return tmp_path / "toy"
