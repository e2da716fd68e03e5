"""Generated text."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.trainer import pipeline


def test_generated_text(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from cats.nmt.data.corpus_files import read_corpus

    monkeypatch.setattr(pipeline, "WORDS", 3000)
    pipeline.write_text(tmp_path / "text", 3, 400)
    corpus = read_corpus(tmp_path / "text", "en", "one-to-many", ())
    assert corpus.sizes == {"xa": 400, "xb": 400, "xc": 400}
    lengths = [len(source.split()) for task in corpus.tasks for source, _ in task.train]
    assert 17 < sum(lengths) / len(lengths) < 21 and min(lengths) >= 2 and max(lengths) <= 80
