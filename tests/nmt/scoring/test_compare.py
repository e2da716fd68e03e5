"""cats.nmt.scoring.compare: results, regret, tables and picture of a comparison."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("sacrebleu")

from cats.nmt.cli.main import main
from cats.nmt.config.toml import apply_overrides
from cats.nmt.errors import UserError
from cats.nmt.scoring import compare, grid, tables
from cats.nmt.scoring.grid import Run
from tests.nmt.scoring.comparisons import LINES, finish, planned


@pytest.fixture
def finished(corpus: Path, tmp_path: Path) -> list[Run]:
    """T=1 is right on xa (HiRes) and wrong on xb, T=5 the other way round, cats right on both; two seeds."""
    wrong = ["zzz"] * 6
    outputs = {"T=1": (LINES, wrong), "T=5": (wrong, LINES), "cats": (LINES, LINES)}
    words = ["--data", str(corpus), "--out", str(tmp_path / "out"), "--seeds", "1", "2", "--methods", *outputs]
    runs = planned(*words)
    for run in runs:
        xa, xb = outputs[run.method]
        score = {id(LINES): 100.0, id(wrong): 0.0}
        finish(run, {"xa": xa, "xb": xb}, {"xa": score[id(xa)], "xb": score[id(xb)]})
    return runs


def test_middle_groups_are_in_the_tables(finished):
    for run in finished:  # the same runs with other groups
        config = apply_overrides(run.config, ["evaluate.lores_below=5", "evaluate.hires_from=1000"])
        object.__setattr__(run, "config", config)
        scores = json.loads((run.path / "scores.json").read_text())
        for groups in scores["groups"], scores["lookup"]["groups"]:
            groups["midres"] = groups.pop("hires")
        (run.path / "scores.json").write_text(json.dumps(scores))
    summary = compare.summarise(finished)
    assert summary.sets["toy"].groups == {"lores": ["xb"], "midres": ["xa"]}
    assert summary.regret["T=5"].where == "toy midres"
    rows = list(csv.DictReader(tables.comparison_csv(summary).splitlines()))
    assert len(rows) == 3 * 2 * (2 + 3)  # methods, seeds, two languages and three groups
    assert {(r["seed"], r["chrf"]) for r in rows if (r["method"], r["name"]) == ("T=1", "MidRes")} == {
        ("1", "100.0"),
        ("2", "100.0"),
    }
    assert "| method | All NLL | LoRes NLL | MidRes NLL | All chrF |" in tables.comparison_tables(summary)


def test_regret_is_against_the_best_temperature_of_each_group(finished):
    summary = compare.summarise(finished)
    regret = summary.regret
    assert regret["T=1"].worst == 100.0 and regret["T=1"].where == "toy lores"
    assert regret["T=5"].worst == 100.0 and regret["T=5"].where == "toy hires"
    assert regret["cats"].worst == 0.0
    # The bootstrap uses the translations themselves, and agrees.
    assert regret["T=1"].interval == pytest.approx([100.0, 100.0])
    assert regret["cats"].interval == pytest.approx([0.0, 0.0])
    result = summary.sets["toy"]
    assert result.groups == {"lores": ["xb"], "hires": ["xa"]}
    assert result.methods["T=1"].groups["lores"].chrf == [0.0, 0.0]


def test_the_finished_comparison_is_written_without_training(finished, tmp_path, capsys, monkeypatch):
    def never(run: Run) -> Any:
        raise AssertionError(f"{run.path} is finished")

    monkeypatch.setattr(grid, "start", never)
    words = ["--out", str(tmp_path / "out"), "--seeds", "1", "2", "--methods", "T=1", "T=5", "cats"]
    assert main(["compare", "--data", str(tmp_path / "toy"), *words]) == 0
    text = (tmp_path / "out" / "compare.md").read_text(encoding="utf-8")
    assert text in capsys.readouterr().out
    row = next(line for line in text.splitlines() if line.startswith("| T=1 |"))
    assert [cell.strip() for cell in row.split("|")[2:-1]] == [
        *["1.000 ± 0.000"] * 3,
        *["50.0 ± 0.0", "0.0 ± 0.0", "100.0 ± 0.0"],
        *["10.0 ± 0.0"] * 3,
    ]
    summary = json.loads((tmp_path / "out" / "compare.json").read_text(encoding="utf-8"))
    assert list(summary) == ["seeds", "settings", "sets", "regret"] and summary["seeds"] == [1, 2]
    assert list(summary["sets"]["toy"]) == ["pairs", "groups", "lookup", "methods"]
    assert list(summary["sets"]["toy"]["methods"]["cats"]) == [
        *("groups", "languages", "chrf_interval", "seeds", "seconds")
    ]
    assert list(summary["regret"]["cats"]) == ["worst", "interval", "where", "cells"]
    assert summary["sets"]["toy"]["lookup"]["lores"]["chrf"] == 0.0
    assert (tmp_path / "out" / "compare.png").read_bytes().startswith(b"\x89PNG")


def test_no_baseline_to_compare_with(finished):
    for run in finished:
        scores = json.loads((run.path / "scores.json").read_text())
        scores["lookup"]["groups"] = {g: {"nll": None, "chrf": None, "bleu": None} for g in ("all", "lores", "hires")}
        (run.path / "scores.json").write_text(json.dumps(scores))
    assert "| nearest neighbour |  |  |  | n/a | n/a | n/a | n/a | n/a | n/a |" in tables.comparison_tables(
        compare.summarise(finished)
    )


def test_a_carriage_return_is_no_line(finished):
    before = compare.summarise(finished).regret
    for run in finished:
        path = run.path / "hyp" / "test.xa.txt"
        first, rest = path.read_bytes().split(b"\n", 1)
        path.write_bytes(first + b"\r\n" + rest)
    assert compare.summarise(finished).regret["T=5"].worst == before["T=5"].worst


def test_a_missing_score_names_the_run(finished):
    path = finished[0].path / "scores.json"
    scores = json.loads(path.read_text(encoding="utf-8"))
    scores["groups"]["lores"]["nll"] = None
    path.write_text(json.dumps(scores), encoding="utf-8")
    with pytest.raises(UserError, match=f"{finished[0].path}: a score is missing"):
        compare.summarise(finished)
