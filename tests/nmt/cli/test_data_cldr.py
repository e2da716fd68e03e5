"""`cats data cldr`."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("sentencepiece")
pytest.importorskip("sacrebleu")

from cats.nmt.cli.main import main
from cats.nmt.data.corpus_files import read_corpus


def test_data_cldr(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("babel")
    assert main(["data", "cldr", "--out", str(tmp_path / "corpus"), "--sizes", "noisy", "--languages", "diverse"]) == 0
    said = capsys.readouterr().out
    assert f"Train on it: cats train --data {tmp_path / 'corpus'}" in said
    assert "data.sizes = noisy: half of the training targets of bg and fr are shuffled\n" in said
    corpus = read_corpus(tmp_path / "corpus")
    assert all(f"{name} {size:,}" in said for name, size in corpus.sizes.items()) and len(corpus.tasks) == 8
