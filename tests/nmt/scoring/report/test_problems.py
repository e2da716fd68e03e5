"""cats.nmt.scoring.report.problems: what is wrong with a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cats.nmt.scoring.report.problems import KINDS, problems
from cats.nmt.scoring.report.runs import read
from tests.nmt.scoring.report.runs import REFERENCES, TASKS, TRANSLATIONS, write_run
from tests.nmt.scoring.samples import baseline, cell


def found(path: Path) -> dict[str, str]:
    """{what: the facts} of a run."""
    result = {problem.what: problem.facts for problem in problems(read([path]).runs[0])}
    assert result.keys() <= {*KINDS}
    return result


def change(path: Path, **values: Any) -> Path:
    """Sets values in the lines of metrics.jsonl that training writes."""
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    lines = [{**line, **values} if "alpha" in line else line for line in lines]
    (path / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
    return path


def test_none(tmp_path: Path) -> None:
    assert found(write_run(tmp_path / "run")) == {}


def test_below_the_baseline(tmp_path: Path) -> None:
    groups = {"all": baseline(50.0), "lores": baseline(70.0), "hires": baseline(50.0)}
    run = write_run(tmp_path / "run", lookup={"languages": {}, "groups": groups})
    assert found(run) == {"not trained": "LoRes (chrF 60.0 against 70.0)"}


def test_off_target_beyond_the_error_of_the_identification(tmp_path: Path) -> None:
    shares = {"ar": (0.5, 0.45), "az": (0.5, 0.3), "ru": (0.05, 0.0)}
    languages = {
        task: cell(60.0, pairs=pairs, off_target=shares[task][0], off_target_references=shares[task][1])
        for task, pairs in TASKS.items()
    }
    assert found(write_run(tmp_path / "run", languages=languages)) == {"off-target": "az 50% (30%)"}


@pytest.mark.parametrize(
    ("settings", "alpha", "prior", "low"),
    [
        # Token shares times factors: the floor is a tenth of the prior, and up to 1.2 times it counts.
        ([], {"ar": 0.011, "az": 0.5, "ru": 0.489}, {"ar": 0.1, "az": 0.5, "ru": 0.4}, "ar"),
        ([], {"ar": 0.013, "az": 0.5, "ru": 0.487}, {"ar": 0.1, "az": 0.5, "ru": 0.4}, ""),
        (["method.floor=0.5"], {"ar": 0.05, "az": 0.5, "ru": 0.45}, {"ar": 0.1, "az": 0.5, "ru": 0.4}, "ar"),
        # Another method has no floor, and no prior: a thousandth of an equal weight.
        (["method.name=static"], {"ar": 1e-4, "az": 0.5, "ru": 0.5}, {}, "ar"),
        (["method.name=static"], {"ar": 1e-3, "az": 0.5, "ru": 0.5}, {}, ""),
        (["method.name=static"], {"ar": None, "az": 2.0, "ru": 2.0}, {}, "ar"),
    ],
)
def test_a_weight_at_its_floor(
    tmp_path: Path, settings: list[str], alpha: dict[str, float], prior: dict[str, float], low: str
) -> None:
    run = change(write_run(tmp_path / "run", *settings), alpha=alpha, prior=prior)
    assert found(run) == ({"weight at its floor": low} if low else {})


def test_a_weight_that_was_at_its_floor_before_is_all_right(tmp_path: Path) -> None:
    run = change(write_run(tmp_path / "run"), alpha={"ar": 0.0, "az": 0.5, "ru": 0.5})
    line = {"step": 40, "alpha": dict.fromkeys(TASKS, 1 / 3)}
    with (run / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    assert found(run) == {}


def test_training_that_did_not_end_well(tmp_path: Path) -> None:
    assert found(write_run(tmp_path / "a", "train.steps=100")) == {"not finished": "scored after 40 of 100 updates"}
    assert found(write_run(tmp_path / "b", "train.steps=100", "train.patience=2")) == {}  # it may have stopped early
    run = write_run(tmp_path / "c", "train.steps=100")
    with (run / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"step": 40, "diverged": "training diverged at update 40 (no loss)"}) + "\n")
    assert found(run) == {"diverged": "training diverged at update 40 (no loss)"}
    assert found(change(write_run(tmp_path / "d"), skipped=3)) == {"updates skipped": "3 of 40 updates"}


def test_empty_translations(tmp_path: Path) -> None:
    texts = {**TRANSLATIONS, "ru": ["", " ", *REFERENCES["ru"][2:]]}
    assert found(write_run(tmp_path / "run", translations=texts)) == {"empty translations": "ru 2 of 12"}
