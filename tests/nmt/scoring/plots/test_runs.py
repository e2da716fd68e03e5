"""The runs that are drawn together."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cats.nmt.errors import UserError
from cats.nmt.scoring.plots.runs import NothingToDraw, first_tasks, read_runs
from tests.nmt.scoring.plots.made import made_run, write_metrics

STATIC = "method.name=static"


def named(tmp_path: Path, against: str = "") -> list[str]:
    """The methods of all runs in the folder, by the names of the runs."""
    return [run.method for run in read_runs(sorted(tmp_path.iterdir()), against=against).runs]


def test_names_of_folders_as_compare_writes_them(tmp_path: Path) -> None:
    made_run(tmp_path / "T=3r-seed2", STATIC, "sampling.temperature=3", seed=2)
    made_run(tmp_path / "cats-fixed-seed1", STATIC, "method.token_weights=1,1,2")
    made_run(tmp_path / "cats-fixed-seed2", STATIC, "method.token_weights=1,2,2", seed=2)
    made_run(tmp_path / "my-seed1", seed=7)  # not the seed of the run: the name of the folder means something else
    assert named(tmp_path) == ["T=3r", "cats-fixed", "cats-fixed", "cats"]


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        (("method.name=cats",), "cats"),
        ((STATIC, "sampling.temperature=5"), "T=5"),
        ((STATIC, "sampling.temperature=inf"), "T=inf"),
        ((STATIC, "sampling.temperature=3", "train.restart=true", "train.pretrain_steps=10"), "T=3r"),
        ((STATIC, "method.weights=uniform"), "uniform"),
        ((STATIC, "method.token_weights=1,1,2"), "fixed weights"),
        ((STATIC, "sampling.ratios=1,1,2"), "static"),
        (("train.restart=true", "train.pretrain_steps=10"), "cats-r"),
        (("train.restart=true", "train.pretrain_steps=10", "sampling.first_temperature=1"), "cats-staged"),
        (("method.name=restart", "train.restart=true", "train.pretrain_steps=10"), "restart"),
    ],
)
def test_names_from_the_settings(settings: tuple[str, ...], name: str, tmp_path: Path) -> None:
    made_run(tmp_path / "run", *settings)
    assert named(tmp_path) == [name]


def test_settings_that_differ_are_named(tmp_path: Path) -> None:
    made_run(tmp_path / "a", "model.d_model=32")
    made_run(tmp_path / "b", "model.d_model=64")
    made_run(tmp_path / "c", "model.d_model=64", "evaluate.lines=5", "train.threads=2", "train.validate_bleu=2", seed=2)
    made_run(tmp_path / "d", STATIC)
    assert named(tmp_path) == ["cats, d_model=32", "cats, d_model=64", "cats, d_model=64", "T=3"]
    assert named(tmp_path, against="model.d_model") == ["cats", "cats", "cats", "T=3"]


def test_variants_of_compare_keep_their_names_against_a_setting(tmp_path: Path) -> None:
    """Unless the names of the folders show the setting, or are those of several methods."""
    size, form = "model.d_model", "method.simplex=lagrangian"
    for folder, d_model in (("small", 32), ("large", 64)):
        for method, settings in (("cats", ()), ("eq4", (form,)), (f"w{d_model}", ("method.simplex=softmax",))):
            made_run(tmp_path / folder / f"{method}-seed1", f"{size}={d_model}", *settings)
    runs = read_runs(
        [path for folder in ("small", "large") for path in sorted((tmp_path / folder).iterdir())], against=size
    )
    assert [run.method for run in runs.runs] == ["cats", "eq4", "cats, simplex=softmax"] * 2
    mixed = [tmp_path / "large" / "cats-seed1", made_run(tmp_path / "other" / "cats-seed1", form, f"{size}=64")]
    found = read_runs([tmp_path / "small" / "cats-seed1", *mixed], against=size)
    assert [run.method for run in found.runs] == [*["cats, simplex=proximal"] * 2, "cats, simplex=lagrangian"]


def test_settings_that_follow_from_that_of_the_axis(tmp_path: Path) -> None:
    size = "model.d_model"
    for folder, d_model, steps, simplex in (
        ("a", 32, 100, "proximal"),
        ("b", 64, 50, "proximal"),
        ("c", 64, 50, "softmax"),
    ):
        made_run(tmp_path / folder, f"{size}={d_model}", f"train.steps={steps}", f"method.simplex={simplex}")
    made_run(tmp_path / "d", STATIC, f"{size}=64", "train.steps=50")
    runs = read_runs(sorted(tmp_path.iterdir()), against=size)
    assert [run.method for run in runs.runs] == [
        "cats, simplex=proximal",
        "cats, simplex=proximal",
        "cats, simplex=softmax",
        "T=3",
    ]
    assert runs.notices == ["train.steps: differ too where model.d_model does"]


def test_many_settings_that_differ_are_named_by_the_folder(tmp_path: Path) -> None:
    made_run(tmp_path / "a")
    made_run(tmp_path / "b", "model.d_model=32", "model.ffn=32", "model.encoder_layers=1")
    assert named(tmp_path) == ["cats, a", "cats, b"]


def test_groups_are_those_of_the_scores(tmp_path: Path) -> None:
    paths = [made_run(tmp_path / "a"), made_run(tmp_path / "b", chrf=50.0, seed=2)]
    runs = read_runs(paths)
    assert runs.groups == {"lores": ["az", "be"], "hires": ["ru"]} and runs.tasks == ["az", "be", "ru"]
    assert runs.panels == {"LoRes": ["az", "be"], "HiRes": ["ru"]}
    assert read_runs(paths[:1]).panels == {"All": ["az", "be", "ru"]}  # nothing tells their sizes


def test_runs_that_cannot_be_drawn(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="none: no such folder"):
        read_runs([tmp_path / "none"])
    new, good = made_run(tmp_path / "new", steps=[]), made_run(tmp_path / "good")
    with pytest.raises(UserError, match="new has no metrics yet: there is nothing to draw"):
        read_runs([new])
    assert read_runs([new, good]).notices == [f"{new} has no metrics yet; left out"]
    other = made_run(tmp_path / "other")
    write_metrics(other, [{"step": 10, "losses": {"de": 1.0}, "alpha": {"de": 1.0}}])
    with pytest.raises(UserError, match=r"other was trained on other languages \(de\) than .*good \(az, be, ru\)"):
        read_runs([good, other])
    assert len(read_runs([good, tmp_path / "new" / ".." / "good"]).runs) == 1


def test_scores_that_cannot_be_read_are_left_out(tmp_path: Path) -> None:
    """They may be of an older version; the losses can be drawn all the same."""
    run = made_run(tmp_path / "run")
    (run / "scores.json").write_text("")
    runs = read_runs([run])
    assert runs.runs[0].scores is None and runs.panels == {"All": ["az", "be", "ru"]}
    (notice,) = runs.notices
    assert "scores.json is damaged or of an older version" in notice and notice.endswith("; its scores are left out")


def test_settings_beside_the_runs_are_no_runs(tmp_path: Path) -> None:
    run, settings = made_run(tmp_path / "T=1.5-seed1"), tmp_path / "T=1.5-seed1.toml"
    settings.write_text("")
    assert len(read_runs([run, settings]).runs) == 1 and read_runs([run, settings]).notices == []
    later = tmp_path / "T=1.5-seed2.toml"
    later.write_text("")
    notice = f"{tmp_path / 'T=1.5-seed2'} has not begun yet"
    assert read_runs([run, settings, later]).notices == [f"{notice}; left out"]
    with pytest.raises(UserError, match=re.escape(f"{notice}: there is nothing to draw")):
        read_runs([later])


def test_tasks_that_are_trained_first(tmp_path: Path) -> None:
    pre = "train.pretrain_steps=10"
    run = made_run(tmp_path / "a", "train.pretrain=hires,be", pre, chrf=50.0)
    assert first_tasks(read_runs([run])) == ["be", "ru"]
    with pytest.raises(NothingToDraw, match=r"train\.pretrain"):
        first_tasks(read_runs([made_run(tmp_path / "b")]))
