"""What the benchmarks' tests share."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replaces torch.compile by a function that returns its argument, so that no compiler is needed."""
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
