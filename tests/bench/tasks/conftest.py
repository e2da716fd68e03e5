"""What the tests of the commands share."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import pytest

from bench.tasks import run
from bench.tasks.problems import problems


class InThisProcess:
    """Stands for ProcessPoolExecutor."""

    def __init__(self, *arguments: Any, **options: Any) -> None: ...

    def __enter__(self) -> InThisProcess:
        return self

    def __exit__(self, *error: object) -> None: ...

    def map(self, function: Callable[..., Any], *arguments: Iterable[Any]) -> Iterable[Any]:
        return map(function, *arguments)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings of six steps, in this process."""
    monkeypatch.setattr(run, "ProcessPoolExecutor", InThisProcess)
    monkeypatch.setattr(run, "problems", lambda: {name: replace(p, steps=6) for name, p in problems().items()})
