"""Pictures of the loss landscape, of made-up numbers."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from cats.nmt.scoring.plots import landscape
from cats.nmt.scoring.plots.runs import NothingToDraw, Runs, read_runs
from cats.nmt.scoring.plots.style import new_figure
from cats.nmt.training.landscape import TABLES, KindSimilarity, LandscapeRecord, LandscapeSettings, add_record
from cats.nmt.training.run import RunDirectory
from tests.nmt.scoring.plots.made import TASKS, lines_of, made_run, names_at_the_right

T1 = ("method.name=static", "sampling.temperature=1")


def matrix(beside: list[float]) -> np.ndarray:
    """3×3 with 1 on the diagonal; beside: az-be, az-ru, be-ru."""
    result = np.eye(3)
    result[np.triu_indices(3, 1)] = beside
    return np.maximum(result, result.T)


def analysed(path: Path, *settings: str, seed: int = 1, level: float) -> Path:
    """A run with measurements after 10 and 20 updates, and one of another split.

    The largest eigenvalue of az, be and ru is level · (1, 3, 5) + step. The cosines are level · (.1, .2, .3), for D.EA
    half of it; magnitude similarity is .5 everywhere.
    """
    run = made_run(path, *settings, seed=seed, chrf=50.0)
    (run / "checkpoints").mkdir()
    table = dict.fromkeys(TASKS, 1.0)
    for step, split in ((10, "valid"), (20, "valid"), (30, "train")):
        cosines = [level * each for each in (0.1, 0.2, 0.3)]
        kinds = {
            "all": KindSimilarity(matrix(cosines), matrix([0.5] * 3)),
            "D.EA": KindSimilarity(matrix([each / 2 for each in cosines]), matrix([0.5] * 3)),
            "E.SA": KindSimilarity(matrix([np.nan] * 3), matrix([0.5] * 3)),
        }
        record = LandscapeRecord(
            step=step,
            checkpoint="",
            model=str(step),
            settings=LandscapeSettings(split),
            tasks=["ru", "az", "be"],
            tokens=dict.fromkeys(TASKS, 100),
            **{name: table for name in TABLES if name != "largest"},
            largest={task: level * (1 + 2 * i) + step for i, task in enumerate(TASKS)},
            interference=np.zeros((3, 3)),
            kinds={name: turned(each) for name, each in kinds.items()},
        )
        add_record(RunDirectory(run), record)
    return run


def turned(similarity: KindSimilarity) -> KindSimilarity:
    """In the order ru, az, be."""
    order = np.ix_([2, 0, 1], [2, 0, 1])
    return KindSimilarity(similarity.cosine[order], similarity.magnitude[order])


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    """cats with two seeds at levels 1 and 2, T=1 at level 3, and a run that was not analysed."""
    return read_runs(
        [
            analysed(tmp_path / "cats-seed1", level=1.0),
            analysed(tmp_path / "cats-seed2", seed=2, level=2.0),
            analysed(tmp_path / "T=1-seed1", *T1, level=3.0),
            made_run(tmp_path / "rlw-seed1", "method.name=rlw"),
        ]
    )


def test_curvature_and_alignment(runs: Runs) -> None:
    figure = landscape.curvature(runs)
    low, high, low_cosine, high_cosine = figure.axes
    assert [axis.get_title(loc="left") for axis in figure.axes] == ["LoRes", "HiRes", "", ""]
    # LoRes are az and be, with a mean of 2 · level; the seeds of cats have a mean level of 1.5.
    assert lines_of(low) == {"cats": [[10, 13.0], [20, 23.0]], "T=1": [[10, 16.0], [20, 26.0]]}
    assert lines_of(high)["cats"] == [[10, 17.5], [20, 27.5]]
    # az has the cosines .1 and .2 with the others, be .1 and .3, ru .2 and .3.
    assert lines_of(low_cosine)["T=1"] == [[10, 0.525], [20, 0.525]]
    assert lines_of(high_cosine)["cats"] == [[10, 0.375], [20, 0.375]]
    assert names_at_the_right(high) == ["T=1", "cats"]


def test_similarity_of_each_two_languages(runs: Runs) -> None:
    figure = landscape.similarity(runs)
    titles = [axis.get_title(loc="left") for axis in figure.axes]
    assert titles == [f"{method}: {what}" for method in ("cats", "T=1") for what in ("cosine", "magnitude similarity")]
    cats, _, t1, magnitude = figure.axes
    assert [label.get_text() for label in cats.get_yticklabels()] == TASKS  # the smallest first
    assert [text.get_text() for text in cats.texts] == [".15", ".30", ".15", ".45", ".30", ".45"]
    assert [text.get_text() for text in t1.texts] == [".30", ".60", ".30", ".90", ".60", ".90"]
    assert {text.get_text() for text in magnitude.texts} == {".50"}
    assert cats.images[0].get_clim() == t1.images[0].get_clim() == (-0.9, 0.9)
    assert np.isnan(cats.images[0].get_array().filled(np.nan)).sum() == 3  # the diagonal


def test_many_names_fit_into_the_picture(tmp_path: Path) -> None:
    run = analysed(tmp_path / "cats-seed1", level=1.0)
    names, square = [f"name{i}" for i in range(8)], np.full((8, 8), 0.5)
    file = RunDirectory(run).landscape_file
    record = landscape.read_landscape(file)[0]
    file.unlink()
    tables = {name: dict.fromkeys(names, 1.0) for name in TABLES}
    kinds = {"all": KindSimilarity(square, square)}
    changes = {"tasks": names, "tokens": dict.fromkeys(names, 1), "interference": square, "kinds": kinds, **tables}
    add_record(RunDirectory(run), dataclasses.replace(record, **changes))
    figure = landscape.similarity(dataclasses.replace(read_runs([run]), groups={"all": names}))
    figure.draw_without_rendering()
    for axis in figure.axes:
        box = axis.get_tightbbox()
        assert box is not None and box.y0 >= 0 and box.y1 <= figure.bbox.y1


def test_layers(runs: Runs) -> None:
    cosine, magnitude = landscape.layers(runs).axes
    assert [label.get_text() for label in cosine.get_xticklabels()] == ["E.SA", "D.EA"]
    assert lines_of(cosine)["T=1"][1] == [1, 0.3] and np.isnan(lines_of(cosine)["T=1"][0][1])
    assert lines_of(magnitude)["cats"] == [[0, 0.5], [1, 0.5]]
    assert names_at_the_right(magnitude) == ["cats", "T=1"] or names_at_the_right(magnitude) == ["T=1", "cats"]


def test_a_kind_of_layer_that_only_one_method_has(tmp_path: Path) -> None:
    """As CLSR, which is the last one: the name of the other method is at the last kind that it has."""
    plain, routed = analysed(tmp_path / "cats-seed1", level=1.0), analysed(tmp_path / "T=1-seed1", *T1, level=3.0)
    for record in landscape.read_landscape(RunDirectory(routed).landscape_file):
        kinds = {**record.kinds, "CLSR": KindSimilarity(matrix([0.9] * 3), matrix([0.9] * 3))}
        add_record(RunDirectory(routed), dataclasses.replace(record, kinds=kinds))
    magnitude = landscape.layers(read_runs([plain, routed])).axes[1]
    assert names_at_the_right(magnitude) == ["T=1", "cats"]
    assert all(np.isfinite(text.xy).all() for text in magnitude.texts)  # type: ignore[attr-defined]


def test_numbers_in_the_cells() -> None:
    _, (axis,) = new_figure(1)
    landscape._draw_matrix(axis, np.array([[np.nan, -0.001], [-0.05, 1.0]]), ["az", "be"], "PuOr_r", -1.0, 1.0)
    assert [text.get_text() for text in axis.texts] == [".00", "-.05", "1.00"]


def test_nothing_to_draw(tmp_path: Path) -> None:
    runs = read_runs([made_run(tmp_path / "run")])
    for picture in (landscape.curvature, landscape.similarity, landscape.layers):
        with pytest.raises(NothingToDraw, match="make it with cats analyse RUN"):
            picture(runs)
    single = analysed(tmp_path / "single", level=1.0)
    directory = RunDirectory(single)
    records = landscape.read_landscape(directory.landscape_file)
    directory.landscape_file.unlink()
    one = {"all": KindSimilarity(np.ones((1, 1)), np.ones((1, 1)))}
    add_record(directory, dataclasses.replace(records[0], tasks=["az"], interference=np.zeros((1, 1)), kinds=one))
    alone = read_runs([single])
    curve, without_pairs = landscape.curvature(alone).axes  # and no panel for HiRes
    assert lines_of(curve) == {"cats": [[10, 11.0]]} and names_at_the_right(curve) == ["cats"]
    assert lines_of(without_pairs) == {} and all(x == int(x) for x in curve.get_xticks())
    for picture in (landscape.similarity, landscape.layers):
        with pytest.raises(NothingToDraw, match="two languages"):
            picture(alone)
