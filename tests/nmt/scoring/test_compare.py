"""cats.nmt.scoring.compare: results, regret, tables and picture of a comparison."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

pytest.importorskip("sacrebleu")

from cats.nmt.config.toml import apply_overrides
from cats.nmt.errors import UserError
from cats.nmt.scoring.compare import baseline, tables
from cats.nmt.scoring.compare.summarise import summarise
from cats.nmt.scoring.grid.runs import Run
from tests.nmt.scoring.comparisons import finished_runs


@pytest.fixture
def finished(corpus: Path, tmp_path: Path) -> list[Run]:
    """The runs of a finished comparison; see `finished_runs`."""
    return finished_runs(corpus, tmp_path / "out")


def test_middle_groups_are_in_the_tables(finished):
    for run in finished:  # the same runs with other groups
        config = apply_overrides(run.config, ["evaluate.lores_below=5", "evaluate.hires_from=1000"])
        object.__setattr__(run, "config", config)
        scores = json.loads((run.path / "scores.json").read_text())
        for groups in scores["groups"], scores["lookup"]["groups"]:
            groups["midres"] = groups.pop("hires")
        (run.path / "scores.json").write_text(json.dumps(scores))
    summary = summarise(finished)
    assert summary.sets["toy"].groups == {"lores": ["xb"], "midres": ["xa"]}
    assert summary.regret["T=5"].where == "toy midres"
    rows = list(csv.DictReader(tables.comparison_csv(summary).splitlines()))
    assert len(rows) == 3 * 2 * (2 + 3)  # methods, seeds, two languages and three groups
    assert {(r["seed"], r["chrf"]) for r in rows if (r["method"], r["name"]) == ("T=1", "MidRes")} == {
        ("1", "100.0"),
        ("2", "100.0"),
    }
    assert "| method | All NLL | LoRes NLL | MidRes NLL | All chrF |" in tables.comparison_tables(summary)


def test_many_languages_have_a_row_each(finished, monkeypatch):
    summary = summarise(finished)
    low, high = "0.0 ± 0.0", "100.0 ± 0.0"

    def by_language() -> list[list[str]]:
        _, _, after = tables.comparison_tables(summary).partition("chrF by language:\n\n")
        rows = [line.strip("| ").split(" | ") for line in after.partition("\n\n")[0].splitlines()]
        return [rows[0], *rows[2:]]

    assert by_language() == [["method", "xb", "xa"], ["T=1", low, high], ["T=5", high, low], ["cats", high, high]]
    monkeypatch.setattr(tables, "_MOST_COLUMNS", 1)
    heading = ["language", "T=1", "T=5", "cats"]
    assert by_language() == [heading, ["xb", low, high, high], ["xa", high, low, high]]


def test_regret_is_against_the_best_temperature_of_each_group(finished):
    summary = summarise(finished)
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


def test_the_baseline_is_computed_once_if_no_run_has_it(finished, monkeypatch):
    before = summarise(finished).sets["toy"].nearest_neighbour
    assert before["lores"].quality.chrf == 0.0  # that of the run, which is made up
    for run in finished:
        scores = json.loads((run.path / "scores.json").read_text())
        scores["lookup"]["groups"] = {g: {"nll": None, "chrf": None, "bleu": None} for g in ("all", "lores", "hires")}
        (run.path / "scores.json").write_text(json.dumps(scores))
    # All sentences of the test text are in the training text of xa, half of them in that of xb.
    result = summarise(finished).sets["toy"].nearest_neighbour
    assert result["hires"].quality.chrf == 100.0 and 0 < result["lores"].quality.chrf < 100
    monkeypatch.setattr(baseline, "translate", None)
    assert summarise(finished).sets["toy"].nearest_neighbour["lores"].quality == result["lores"].quality
    (finished[0].path.parent / "nearest-neighbour.json").write_text("{}")
    with pytest.raises(TypeError):  # it is computed again
        summarise(finished)


def test_methods_that_are_not_trained_are_named(finished):
    assert all(method.untrained == [] for method in summarise(finished).sets["toy"].methods.values())
    (empty,) = (run for run in finished if (run.method, run.seed) == ("T=1", 2))
    for task in ("xa", "xb"):
        (empty.path / "hyp" / f"test.{task}.txt").write_text("\n" * 6)
    for run in finished:
        scores = json.loads((run.path / "scores.json").read_text())
        for group, cell in scores["groups"].items():
            below = run.method == "T=5" or (run.method == "cats" and group == "lores")
            cell["chrf"] = 40.0 if below else 60.0
            scores["lookup"]["groups"][group]["chrf"] = 50.0
        (run.path / "scores.json").write_text(json.dumps(scores))
    summary = summarise(finished)
    assert {name: method.untrained for name, method in summary.sets["toy"].methods.items()} == {
        "T=1": [2],  # empty
        "T=5": [1, 2],  # below in every group
        "cats": [],  # below in one group
    }
    assert "\nNot trained: T=1 (seed 2); T=5 (seed 1, 2). There" in tables.comparison_tables(summary)


def test_time_and_memory_are_relative_to_plain_training(finished):
    assert "memory" not in tables.comparison_tables(summarise(finished))  # runs of an older version
    for run in finished:
        path = run.path / "scores.json"
        scores, factor = json.loads(path.read_text()), {"T=1": 1.0, "T=5": 1.0, "cats": 1.1}[run.method]
        measured = {"seconds": factor * (100 + run.seed), "peak_memory": int(factor * 2**30)}
        path.write_text(json.dumps({**scores, **measured}))
    text = tables.comparison_tables(summarise(finished))
    assert "BLEU | time | memory |" in text and "relative to T=1, which took 102 s and 1,024 MiB." in text
    rows = [line for line in text.split("chrF by language")[0].splitlines() if line.startswith(("| T=", "| cats"))]
    assert [row.split(" | ")[-2:] for row in rows] == [["1.00", "1.00 |"], ["1.00", "1.00 |"], ["1.10", "1.10 |"]]


def test_a_carriage_return_is_no_line(finished):
    before = summarise(finished).regret
    for run in finished:
        path = run.path / "hyp" / "test.xa.txt"
        first, rest = path.read_bytes().split(b"\n", 1)
        path.write_bytes(first + b"\r\n" + rest)
    assert summarise(finished).regret["T=5"].worst == before["T=5"].worst


def test_a_missing_score_names_the_run(finished):
    path = finished[0].path / "scores.json"
    scores = json.loads(path.read_text(encoding="utf-8"))
    scores["groups"]["lores"]["nll"] = None
    path.write_text(json.dumps(scores), encoding="utf-8")
    with pytest.raises(UserError, match=f"{finished[0].path}: a score is missing"):
        summarise(finished)


def test_other_test_lines_than_those_of_the_corpus_are_refused(finished):
    path = finished[0].path / "hyp" / "test.xb.ref"
    path.write_text(path.read_text().replace("one", "other"))
    message = rf"{finished[0].path} was scored on other test lines of xb .* restore it, or give another --out"
    with pytest.raises(UserError, match=message):
        summarise(finished)


def test_translations_of_other_lines_are_refused(finished):
    path = finished[0].path / "hyp" / "test.xb.txt"
    path.write_text(path.read_text() + "more\n")
    message = r"test\.xb\.txt has 7 lines instead of 6: it was changed; make it again with: cats evaluate "
    with pytest.raises(UserError, match=message):
        summarise(finished)


def test_scores_that_lack_a_task_name_the_run(finished):
    path = finished[1].path / "scores.json"
    scores = json.loads(path.read_text(encoding="utf-8"))
    del scores["languages"]["xb"], scores["groups"]["lores"]
    scores["groups"]["all"]["languages"] = ["xa"]
    path.write_text(json.dumps(scores), encoding="utf-8")
    with pytest.raises(UserError, match=rf"{finished[1].path}/scores\.json lacks lores, xb; make it again"):
        summarise(finished)
