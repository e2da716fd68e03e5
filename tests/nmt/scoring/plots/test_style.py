"""The style of all pictures."""

from __future__ import annotations

import math
import sys

import pytest

from cats.nmt.errors import UserError
from cats.nmt.scoring.plots import style


def test_labels_keep_a_distance_and_move_as_little_as_possible() -> None:
    assert style._spread([0.2, 0.5, 0.9], 0.05) == [0.2, 0.5, 0.9]
    close = style._spread([0.5, 0.5, 0.51], 0.06)
    assert math.isclose(close[1] - close[0], 0.06) and math.isclose(close[2] - close[1], 0.06)
    assert math.isclose(sum(close) / 3, (0.5 + 0.5 + 0.51) / 3)  # moved as far up as down
    low = style._spread([0.0, 0.0], 0.06)
    assert low[0] >= 0.03 and math.isclose(low[1] - low[0], 0.06)
    high = style._spread([1.0, 1.0], 0.06)
    assert math.isclose(high[1], 1.0) and math.isclose(high[0], 0.94)
    assert style._spread([], 0.06) == []


def test_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UserError, match=r"pip install 'cats-optim\[nmt\]'"):
        style.new_figure(1)
