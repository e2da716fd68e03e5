"""The page of three runs, for the tests that read it and the one that looks at it."""

from __future__ import annotations

from pathlib import Path

import pytest

from cats.nmt.scoring.report.page import page
from cats.nmt.scoring.report.runs import read
from tests.nmt.scoring.report.runs import write_run


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page about two seeds of cats and another method. Names of runs are hostile, too."""
    folder = tmp_path_factory.mktemp("page")
    names = {"cats-seed3": [], "cats-seed4": ["train.seed=4"], "<b>'&\"": ["method.name=static"]}
    paths = [write_run(folder / name, *settings) for name, settings in names.items()]
    path = folder / "page.html"
    path.write_text(page(read(paths), "<title> & more", ["cats", "report", "a b"], lines=6), encoding="utf-8")
    return path
