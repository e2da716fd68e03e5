"""The page of three runs, for the tests that read it and the one that looks at it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.nmt.scoring.report.runs import page_of_three, write_three


@pytest.fixture(scope="session")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page about `write_three`, in the folder of the runs. Tests must not change them."""
    folder = tmp_path_factory.mktemp("page")
    write_three(folder)
    path = folder / "page.html"
    path.write_text(page_of_three(folder), encoding="utf-8")
    return path
