"""cats.nmt.scoring.compare: results, regret, tables and picture of a comparison."""

from __future__ import annotations

import csv
import dataclasses
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("sacrebleu")

from cats.nmt.config.toml import apply_overrides
from cats.nmt.data.corpus import Split
from cats.nmt.data.corpus_files import read_corpus, write_corpus
from cats.nmt.errors import UserError
from cats.nmt.scoring.compare import baseline, tables
from cats.nmt.scoring.compare import summarise as summarise_module
from cats.nmt.scoring.compare.results import Comparison
from cats.nmt.scoring.compare.summarise import summarise
from cats.nmt.scoring.grid.runs import Run
from tests.nmt.scoring.comparisons import LINES, finish, finished_runs, planned
from tests.nmt.scoring.samples import cell, content


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
        for group, average in scores["groups"].items():
            below = run.method == "T=5" or (run.method == "cats" and group == "lores")
            average["chrf"] = 40.0 if below else 60.0
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
    rows = [line for line in text.split("BLEU by language")[0].splitlines() if line.startswith(("| T=", "| cats"))]
    assert [row.split(" | ")[-2:] for row in rows] == [["1.00", "1.00 |"], ["1.00", "1.00 |"], ["1.10", "1.10 |"]]
    assert "time on the clock" in text


def test_the_time_of_the_processor_is_compared_if_all_runs_have_it(finished):
    for number, run in enumerate(finished):
        path = run.path / "scores.json"
        factor = {"T=1": 1.0, "T=5": 1.2, "cats": 1.1}[run.method]
        measured = {"seconds": 100.0 + 50 * number, "cpu_seconds": factor * 80, "peak_memory": 2**30}
        path.write_text(json.dumps({**json.loads(path.read_text()), **measured}))
    text = tables.comparison_tables(summarise(finished))
    assert "relative to T=1, which took 80 s" in text and "time of the processor" in text
    rows = [line for line in text.split("BLEU by language")[0].splitlines() if line.startswith(("| T=", "| cats"))]
    assert [row.split(" | ")[-2] for row in rows] == ["1.00", "1.20", "1.10"]
    path.write_text(json.dumps({**json.loads(path.read_text()), "cpu_seconds": None}))
    assert "time on the clock" in tables.comparison_tables(summarise(finished))


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


def record(run: Run, nll: dict[str, float], tokens: dict[str, int], *examples: dict[str, int | None]) -> None:
    """Leave in metrics.jsonl that a run saw these tokens twice, and had this validation NLL at its best.

    examples: the sentence pairs of the first line, and of the second.
    """
    lines: list[dict[str, Any]] = [{"step": step, "tokens": tokens, "seconds": 1.0} for step in (1, 2)]
    for line, pairs in zip(lines, examples, strict=False):
        line["examples"] = pairs
    valid = [{"step": 1, "valid": {"nll": {name: 9.0 for name in nll}, "all": 9.0}, "best": True}]
    valid += [{"step": 2, "valid": {"nll": nll, "all": 1.0}, "best": True}]
    valid += [{"step": 3, "valid": {"nll": {name: 0.0 for name in nll}, "all": 0.0}, "best": False}]
    text = "".join(f"{json.dumps(line)}\n" for line in [*lines, *valid])
    (run.path / "metrics.jsonl").write_text(text)


def test_differences_are_to_the_method_with_the_best_validation_nll_that_is_not_cats(finished):
    for run in finished:
        nll = {"T=1": {"xa": 1.0, "xb": 3.0}, "T=5": {"xa": 1.5, "xb": 2.0}, "cats": {"xa": 0.5, "xb": 0.5}}[run.method]
        record(run, nll, {"xa": 1500 * run.seed, "xb": 500})
    summary = summarise(finished)
    result = summary.sets["toy"]
    assert result.baseline == "T=5"  # 1.75 against 2.0
    assert result.methods["T=1"].validation == [2.0, 2.0] and result.methods["T=5"].differences == {}
    apart = result.methods["T=1"].differences
    assert (apart["lores"].chrf, apart["hires"].chrf, apart["all"].chrf) == (-100.0, 100.0, 0.0)
    # No seed and no line differs, so each p-value is that of one in all resamples, times the two methods (Holm).
    assert apart["lores"].p_holm == pytest.approx(2 / 2001) and apart["all"].p_holm == 1.0
    assert result.methods["cats"].tokens == {"xa": 4500.0, "xb": 1000.0}  # the mean of 3,000 and 6,000
    text = tables.comparison_tables(summary)
    assert "the difference to T=5: it has the best validation NLL" in text
    assert "| -100.0 (-100.0 to -100.0)* | 0.001 |" in text
    tokens = text.partition("Target tokens seen in training, in thousands:\n\n")[2].splitlines()
    assert tokens[:3] == ["| method | xb | xa |", "| --- | ---: | ---: |", "| T=1 | 1 | 4 |"]
    row = next(r for r in csv.DictReader(tables.summary_csv(summary).splitlines()) if r["group"] == "LoRes")
    assert (row["method"], row["seeds"], row["chrf"], row["difference"]) == ("T=1", "2", "0.0", "-100.0")
    assert (row["validation"], row["regret_temperatures"], row["tokens"]) == ("2.0", "100.0", "1000.0")
    next(run for run in finished if run.method == "T=1").directory.scores_file().unlink()
    text = tables.comparison_tables(summarise(finished))
    assert "of the methods with 2 seeds that do not use" in text and "With one seed (T=1), intervals" in text
    assert "\nWhere a method has one seed, the intervals say nothing about other seeds.\n\n| method" in text
    assert "| -100.0 (-100.0 to -100.0) | 0.001 |" in text  # not marked: it is of the test lines alone


def test_the_user_may_name_the_baseline(finished):
    for run in finished:
        record(
            run, dict.fromkeys(("xa", "xb"), {"T=1": 1.0, "T=5": 2.0, "cats": 3.0}[run.method]), {"xa": 10, "xb": 10}
        )
    assert summarise(finished).sets["toy"].baseline == "T=1"
    summary = summarise(finished, "cats")
    result = summary.sets["toy"]
    assert (result.baseline, result.methods["cats"].differences) == ("cats", {})
    assert (
        result.methods["T=1"].differences.keys()
        == result.methods["T=5"].differences.keys()
        == {"all", "lores", "hires"}
    )
    text = tables.comparison_tables(summary)
    assert "and the difference to cats.\n" in text and "best validation NLL" not in text
    assert Comparison.from_json(json.loads(json.dumps(summary.to_json()))).to_json() == summary.to_json()
    without = [run for run in finished if run.method != "cats"]
    text = tables.comparison_tables(summarise(without, "cats"))  # it is not finished there
    assert "the difference to T=1: it has the best validation NLL" in text


@pytest.mark.parametrize(
    "settings", ["method.name=target-projection", "model.max_length=20", "tokenizer.vocab_size=90"]
)
def test_a_method_that_is_validated_on_other_lines_is_not_the_baseline(finished, settings):
    runs = [
        dataclasses.replace(run, config=apply_overrides(run.config, [settings])) if run.method == "T=5" else run
        for run in finished
    ]
    for run in runs:
        low = {"T=1": 2.0, "T=5": 0.1, "cats": 1.0}[run.method]
        record(run, {"xa": low, "xb": low}, {"xa": 1, "xb": 1})
    summary = summarise(runs)
    result = summary.sets["toy"]
    assert (result.baseline, result.other_validation) == ("T=1", ["T=5"])
    text = tables.comparison_tables(summary)
    assert "| T=5 | 0.100 (other lines) |" in text and "The validation NLL of T=5 is of other lines" in text
    values = {row["method"]: row["validation"] for row in csv.DictReader(tables.summary_csv(summary).splitlines())}
    assert values.keys() == {"T=1", "T=5", "cats"} and values["T=5"] == ""
    assert Comparison.from_json(summary.to_json()) == summary
    # The settings of the text that is trained on change nothing.
    cleaned = [dataclasses.replace(r, config=apply_overrides(r.config, ["data.max_ratio=2"])) for r in finished[:1]]
    result = summarise([*cleaned, *finished[1:]]).sets["toy"]
    assert (result.baseline, result.other_validation) == ("T=5", [])


def test_the_table_of_bleu_has_marks_and_verdicts(finished, monkeypatch):
    for run in finished:
        nll = {"T=1": {"xa": 1.0, "xb": 3.0}, "T=5": {"xa": 1.5, "xb": 2.0}, "cats": {"xa": 0.5, "xb": 0.5}}[run.method]
        record(run, nll, {"xa": 1500, "xb": 500})
        path = run.path / "scores.json"
        scores = json.loads(path.read_text())
        for kind in ("languages", "groups"):
            for each in scores[kind].values():
                each["bleu"] = each["chrf"]
        for name in ("xa", "xb"):
            scores["lookup"]["languages"][name] = cell(1.0, None, bleu=2.0, lines=6)
        # Lines of three words have no BLEU with words.
        scores["signatures"] = {"bleu": dict.fromkeys(("xa", "xb"), "nrefs:1|tok:char")}
        path.write_text(json.dumps({**scores, "seconds": 10.0 * run.seed, "peak_memory": 2**30}))
    summary = summarise(finished)
    apart = summary.sets["toy"].methods["cats"].bleu_differences
    assert apart.keys() == {"xa", "xb", "all", "lores", "hires"}
    # No seed and no line differs, so each p-value is that of one in all resamples, times the two methods (Holm).
    assert (apart["xa"].bleu, apart["xa"].p_holm) == (100.0, pytest.approx(2 / 2001))
    assert (apart["xb"].bleu, apart["xb"].p_holm, apart["all"].bleu) == (0.0, 1.0, 50.0)

    def rows() -> list[str]:
        _, _, after = tables.comparison_tables(summary).partition("BLEU by language. Bold: ")
        assert "\n†: better than T=5, the baseline, with p < 0.05" in after
        assert "\nIn parentheses: chrF is below that of the nearest-neighbour baseline" in after
        return after.split("\n\n")[1].splitlines()

    assert rows() == [
        "| method | xb | xa | LoRes | HiRes | All | time | memory |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        "| T=1 | (0.0) | **100.0**† | 0.0 | **100.0**† | 50.0 | 1.00 | 1.00 |",
        "| T=5 | **100.0** | (0.0) | **100.0** | (0.0) | 50.0 | 1.00 | 1.00 |",
        "| cats | **100.0** | **100.0**† | **100.0** | **100.0**† | **100.0**† | 1.00 | 1.00 |",
        "| nearest neighbour | 2.0 | 2.0 | 10.0 | 10.0 | 10.0 |  |  |",
    ]
    found = {(r["method"], r["group"]): r for r in csv.DictReader(tables.summary_csv(summary).splitlines())}
    assert found["cats", "xa"]["bleu_difference"] == "100.0" and found["cats", "xa"]["chrf_low"] == ""
    assert found["T=5", "All"]["bleu_p_holm"] == "" and found["cats", "xa"]["tokens"] == "3000.0"
    kept = summary.to_json()["sets"]["toy"]
    assert kept["methods"]["T=1"]["bleu_differences"]["xa"]["bleu"] == 100.0
    assert kept["lookup_languages"]["xa"]["bleu"] == 2.0

    methods = summary.sets["toy"].methods
    same = {"toy": replace(summary.sets["toy"], methods=dict.fromkeys(methods, methods["T=1"]))}
    _, _, after = tables.comparison_tables(replace(summary, sets=same)).partition("BLEU by language. Bold: ")
    assert "**" not in after.partition("chrF by language")[0]  # all methods are the best
    single = {"toy": replace(summary.sets["toy"], methods={**methods, "T=1": replace(methods["T=1"], seeds=[1])})}
    _, _, after = tables.comparison_tables(replace(summary, sets=single)).partition("BLEU by language. Bold: ")
    of_one_seed, others = re.findall(r"\n\| (?:T=1|cats) \|.*", after.partition("chrF by language")[0])
    assert "†" not in of_one_seed and "†" in others

    monkeypatch.setattr(tables, "_MOST_COLUMNS", 1)
    methods["T=1"].untrained.append(2)
    methods["T=5"].untrained.extend([1, 2])
    assert rows()[:1] + rows()[-2:] == [
        "| language | T=1 (not trained: seed 2) | T=5 (not trained) | cats | nearest neighbour |",
        "| time | 1.00 | 1.00 | 1.00 |  |",
        "| memory | 1.00 | 1.00 | 1.00 |  |",
    ]
    verdicts = {
        (r["method"], r["seed"]): r["not_trained"] for r in csv.DictReader(tables.comparison_csv(summary).splitlines())
    }
    assert [verdicts["T=1", "1"], verdicts["T=1", "2"], verdicts["cats", "1"]] == ["false", "true", "false"]


def test_without_plain_training_cost_is_relative_to_the_first_method(finished):
    for run in finished:
        path = run.path / "scores.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "seconds": 50.0, "peak_memory": 2**30}))
    text = tables.comparison_tables(summarise([run for run in finished if run.method != "T=1"]))
    assert "relative to T=5, which took 50 s and 1,024 MiB." in text


def test_examples_seen_are_shown_where_all_runs_of_a_set_have_them(finished):
    for run in finished:
        record(run, {"xa": 1.0, "xb": 1.0}, {"xa": 900, "xb": 50}, {"xa": 1000 * run.seed}, {"xa": 1000, "xb": 50})
    summary = summarise(finished)
    assert summary.sets["toy"].methods["cats"].examples == {"xa": 2500.0, "xb": 50.0}  # the mean of 2,000 and 3,000
    text = tables.comparison_tables(summary)
    shown = text.partition("Examples seen in training, in thousands of sentence pairs:\n\n")[2].splitlines()
    assert shown[:3] == ["| method | xb | xa |", "| --- | ---: | ---: |", "| T=1 | 0.1 | 2.5 |"]
    assert "Target tokens" not in text
    row = next(r for r in csv.DictReader(tables.summary_csv(summary).splitlines()) if r["group"] == "LoRes")
    assert (row["tokens"], row["examples"]) == ("100.0", "50.0")
    for examples in [({"xa": 5},), ({"xa": 5}, {"xa": None})]:  # one line lacks them, or does not know their number
        record(finished[0], {"xa": 1.0, "xb": 1.0}, {"xa": 900, "xb": 50}, *examples)
        summary = summarise(finished)
        assert summary.sets["toy"].methods[finished[0].method].examples == {}
        text = tables.comparison_tables(summary)
        assert "Target tokens seen in training, in thousands:" in text and "Examples seen" not in text


def test_tables_of_a_part_say_what_is_missing(finished):
    for run in finished:
        if run.method == "cats" or (run.method, run.seed) == ("T=5", 2):
            (run.path / "scores.json").unlink()
    summary = summarise(finished)
    result = summary.sets["toy"]
    assert result.not_run == ["cats"] and result.methods["T=5"].missing == [2]
    assert (result.methods["T=1"].seeds, result.methods["T=5"].seeds) == ([1, 2], [1])
    text = tables.comparison_tables(summary)
    rows = {line.split(" | ")[0].strip("| "): line.split(" | ")[1] for line in text.splitlines() if " | " in line}
    assert "| T=1 | 2 of 2 |" in text and "| T=5 | 1 of 2 |" in text and rows["cats"] == "not finished"
    assert summary.regret.keys() == summary.regret_of_all.keys() == {"T=1", "T=5"}
    for run in finished:
        (run.path / "scores.json").unlink(missing_ok=True)
    with pytest.raises(UserError, match=r"no run of .* is finished: there is nothing to compare yet"):
        summarise(finished)


def test_a_name_may_have_a_bar(finished):
    renamed = [dataclasses.replace(run, method="a|b") if run.method == "cats" else run for run in finished]
    rows = [row for row in tables.comparison_tables(summarise(renamed)).splitlines() if "a" in row and "|b |" in row]
    assert len(rows) >= 3 and all(row.startswith(r"| a\|b |") for row in rows)


def test_runs_with_all_lines_and_with_headline_lines_give_one_table(finished, corpus):
    read = read_corpus(corpus)
    tasks = []
    for task in read.tasks:  # half of the test lines are in the headline stratum
        meta = [("new-pair" if i % 2 else "seen", str(i % 3)) for i in range(6)]
        tasks.append(dataclasses.replace(task, test=Split(task.test.source, task.test.target, meta)))
    shutil.rmtree(corpus)
    write_corpus(dataclasses.replace(read, tasks=tasks), corpus)
    for run in finished:
        run.directory.write_config(apply_overrides(run.config, ["evaluate.strata=all"]))
    whole = summarise(finished)
    for run in finished[::2]:
        run.directory.write_config(run.config)
        for path in (run.path / "hyp").iterdir():
            path.write_text("".join(path.read_text().splitlines(keepends=True)[1::2]))
    assert summarise(finished).to_json() == whole.to_json()


def test_a_comparison_is_read_again(finished):
    """From compare.json, also one of an older version, which had fewer fields."""
    one = summarise(finished)
    written = json.loads(json.dumps(one.to_json(), allow_nan=False))
    again = Comparison.from_json(written)
    assert again.sets["toy"].methods == one.sets["toy"].methods and again.regret == one.regret
    assert tables.comparison_tables(again) == tables.comparison_tables(one)
    for method in written["sets"]["toy"]["methods"].values():
        del method["cpu_seconds"], method["examples"], method["trials"], method["differences"]
    del written["regret_of_all"]
    assert tables.comparison_csv(Comparison.from_json(written)) == tables.comparison_csv(one)


def test_noisy_languages_are_left_out_of_groups_of_their_own(finished, monkeypatch):
    monkeypatch.setattr(summarise_module._Set, "noisy", ("xa",))
    groups = ["evaluate.lores=[]", "evaluate.hires=xa,xb"]
    for run in finished:
        object.__setattr__(run, "config", apply_overrides(run.config, groups))
        scores = json.loads((run.path / "scores.json").read_text())
        scores["groups"] = {g: {**scores["groups"]["all"]} for g in ("all", "hires")}
        (run.path / "scores.json").write_text(json.dumps(scores))
    summary = summarise(finished)
    assert summary.sets["toy"].groups == {"hires": ["xa", "xb"], "hires-clean": ["xb"]}
    assert [summary.sets["toy"].methods[m].groups["hires-clean"].chrf[0] for m in ("T=1", "T=5")] == [0.0, 100.0]
    assert summary.regret["T=1"].where == "toy hires-clean"
    assert "HiRes, clean chrF" in tables.comparison_tables(summary)


def test_the_chosen_settings_are_in_the_tables(corpus, tmp_path):
    runs = planned(
        "--data",
        str(corpus),
        "--out",
        str(tmp_path / "out"),
        "--seeds",
        "1",
        "--methods",
        "T=1",
        "--lr",
        "1e-3",
        "3e-3",
        "6e-3",
    )
    finish(runs[0], {"xa": LINES, "xb": LINES}, {"xa": 100.0, "xb": 100.0})
    for trial, nll in zip(runs[0].trials, (2.0, 1.5, None), strict=True):
        trial.run.path.mkdir(parents=True)
        if nll is None:
            (trial.run.path / "metrics.jsonl").write_text('{"step": 9, "diverged": "training diverged"}\n')
            continue
        groups = {g: cell(None, nll, languages=["ru"]) for g in ("all", "lores", "hires")}
        (trial.run.path / "scores.valid.json").write_text(json.dumps(content(groups=groups)))
    found = summarise(runs).sets["toy"].methods["T=1"]
    assert found.chosen == {"train.lr": "0.003"}
    assert [(trial.settings["train.lr"], trial.validation) for trial in found.trials] == [
        ("0.001", 2.0),
        ("0.003", 1.5),
        ("0.006", None),
    ]
    row = next(line for line in tables.comparison_tables(summarise(runs)).splitlines() if "train.lr=0.003" in line)
    assert [text.strip() for text in row.strip("|").split("|")] == ["T=1", "train.lr=0.003", "1.500", "3", "1"]
