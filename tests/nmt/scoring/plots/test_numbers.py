"""The numbers of pictures as CSV."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from cats.nmt.scoring.plots import curves, methods, settings
from cats.nmt.scoring.plots.landscape import _draw_matrix
from cats.nmt.scoring.plots.numbers import COLUMNS, figure_csv
from cats.nmt.scoring.plots.runs import read_runs
from tests.nmt.scoring.plots.made import made_run

LOSS = "validation NLL, nats"


def rows(figure: Figure) -> list[tuple[str, ...]]:
    first, *others = csv.reader(figure_csv(figure).splitlines())
    assert tuple(first) == COLUMNS
    return [*map(tuple, others)]


def test_means_and_seeds_in_all_panels(tmp_path: Path) -> None:
    """Panels that have no titles of their own have those that are drawn for their row and their column."""
    runs = read_runs([made_run(tmp_path / f"seed{seed}", seed=seed, level=float(seed), chrf=50.0) for seed in (1, 2)])
    figure = methods.losses(runs)
    found = rows(figure)
    low = ("LoRes", "update", LOSS)
    assert [row for row in found if row[:3] == low and row[3] == "cats"] == [
        (*low, "cats", "20", "6"),  # the mean of 2 * (1 + 0.5 + 1) and of 2 * (2 + 0.5 + 1)
        (*low, "cats", "40", "5.5"),
    ]
    assert [row[4:] for row in found if row[:3] == low and row[3] == "cats, seed 2"] == [("20", "7"), ("40", "6.5")]
    panels = {row[:3] for row in found}
    assert panels == {(group, "update", what) for group in ("LoRes", "HiRes") for what in ("training NLL, nats", LOSS)}


def test_titles_of_rows(tmp_path: Path) -> None:
    found = rows(methods.scores(read_runs([made_run(tmp_path / "run", chrf=50.0)]), "nll"))
    assert {row[:3] for row in found} == {
        (group, axis, LOSS) for group in ("LoRes", "HiRes") for axis in ("update", "target tokens")
    }


def test_languages_of_each_method(tmp_path: Path) -> None:
    """α has a panel for each method, and the dotted line of uniform weights is no line of the data."""
    found = rows(curves.alphas(read_runs([made_run(tmp_path / "run")])))
    assert {(row[0], row[3]) for row in found} == {("cats", language) for language in ("az", "be", "ru")}


@pytest.mark.parametrize(
    ("values", "shown"), [((16, 64), ["16", "64"]), ((1000, 2000), ["1000", "2000"])], ids=["small", "large"]
)
def test_settings_that_are_numbers(values: tuple[int, int], shown: list[str], tmp_path: Path) -> None:
    key = "train.warmup"
    paths = [made_run(tmp_path / f"w{value}", f"{key}={value}", chrf=50.0) for value in values]
    found = rows(settings.against(read_runs(paths, against=key), key, "nll"))
    assert [row[4:] for row in found if row[0] == "HiRes"] == [(x, "3") for x in shown]


def test_numbers_beside_settings_that_are_none(tmp_path: Path) -> None:
    """With one value that has no place on a scale, all are in a row; the file has the values, not their places."""
    key = "sampling.temperature"
    static = "method.name=static"
    paths = [made_run(tmp_path / value, static, f"{key}={value}", chrf=50.0) for value in ("1", "5", "inf")]
    found = rows(settings.against(read_runs(paths, against=key), key, "nll"))
    assert [row[4] for row in found if row[0] == "HiRes"] == ["1.0", "5.0", "inf"]


def test_titles_of_panels_without_lines(tmp_path: Path) -> None:
    """A run without a validation has no lines in the row that has the title of the horizontal axis."""
    found = rows(methods.losses(read_runs([made_run(tmp_path / "run", steps=[10])])))
    assert {row[:3] for row in found} == {("All", "update", "training NLL, nats")}


def test_settings_that_are_no_numbers(tmp_path: Path) -> None:
    key = "model.norm"
    paths = [made_run(tmp_path / value, f"{key}={value}", chrf=50.0) for value in ("layernorm", "rmsnorm")]
    found = rows(settings.against(read_runs(paths, against=key), key, "nll"))
    assert [row[4] for row in found if row[0] == "HiRes"] == ["layernorm", "rmsnorm"]


@pytest.mark.parametrize(("names", "expected"), [(["az", "be"], ("az", "be")), ([*map(str, range(30))], ("1", "2"))])
def test_cells_of_a_matrix(names: list[str], expected: tuple[str, str]) -> None:
    """Rows and columns have their names; without room for these, they are counted. There is no diagonal."""
    figure = Figure()
    matrix = np.full((len(names), len(names)), 0.25)
    np.fill_diagonal(matrix, np.nan)
    axis = figure.subplots()
    axis.set_title("cats: cosine", loc="left")
    _draw_matrix(axis, matrix, names, "PuOr_r", -1, 1)
    found = rows(figure)
    assert found[0] == (
        "cats: cosine",
        "" if len(names) == 2 else "languages, the smallest first",
        "",
        *expected,
        "0.25",
    )
    assert len(found) == len(names) * (len(names) - 1)


def test_points_that_are_not_drawn_have_no_row() -> None:
    figure = Figure()
    figure.subplots().plot([1, 2, 3], [1.0, float("nan"), 1 / 3], label="cats")
    assert rows(figure) == [("", "", "", "cats", "1", "1"), ("", "", "", "cats", "3", "0.333333333333")]
    assert figure_csv(Figure()) == ",".join(COLUMNS) + "\n"
