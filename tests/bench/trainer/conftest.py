"""What the tests of the trainer's benchmarks share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from bench.trainer.cats_trainer import configuration, prepared

from .common import TINY


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the built-in corpus, prepared for TINY."""
    pytest.importorskip("babel")
    pytest.importorskip("sentencepiece")
    return prepared(configuration(TINY, None), tmp_path_factory.mktemp("corpus") / "tiny")


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """Restores torch's number of threads."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
