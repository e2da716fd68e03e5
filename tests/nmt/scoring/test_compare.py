"""`cats compare`: the plan, resuming, the table, the regret."""

from __future__ import annotations

import argparse
import csv
import json
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("sacrebleu")

from cats.nmt.config.toml import apply_overrides, read_config, to_toml
from cats.nmt.data.corpus import Corpus, Split, Task, write_corpus
from cats.nmt.errors import UserError
from cats.nmt.scoring import compare

LINES = [f"line number {word}" for word in ("one", "two", "three", "four", "five", "six")]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Language xa with 12 training pairs, xb with 3; the target repeats the source."""
    split = Split(LINES, LINES, [("all", str(i % 3)) for i in range(6)])
    tasks = [
        Task("xa", "en", "xa", Split(LINES * 2, LINES * 2), split, split),
        Task("xb", "en", "xb", Split(LINES[:3], LINES[:3]), split, split),
    ]
    write_corpus(Corpus("toy", tasks), tmp_path / "toy")
    return tmp_path / "toy"


def arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    compare.add_arguments(parser)
    return parser.parse_args(words)


def finish(run: compare.Run, hypotheses: dict[str, list[str]], chrf: dict[str, float]) -> None:
    """Leave in the run directory what a trained and scored run leaves there, as far as the comparison reads it."""
    (run.path / "hyp").mkdir(parents=True)
    (run.path / "config.toml").write_text(to_toml(run.config), encoding="utf-8")
    for task, lines in hypotheses.items():
        (run.path / "hyp" / f"test.{task}.txt").write_text("".join(f"{x}\n" for x in lines), encoding="utf-8")
    cells = {task: {"nll": 1.0, "chrf": value, "bleu": 10.0} for task, value in chrf.items()}
    groups = {"lores": cells["xb"], "hires": cells["xa"]}
    groups["all"] = {m: (cells["xa"][m] + cells["xb"][m]) / 2 for m in ("nll", "chrf", "bleu")}
    scores = {"languages": cells, "groups": groups, "lookup": {"groups": groups}, "seconds": 1.0}
    (run.path / "scores.json").write_text(json.dumps(scores), encoding="utf-8")


def test_the_plan_compares_like_with_like(tmp_path):
    runs = compare.plan(arguments("--out", str(tmp_path), "--seeds", "1", "2", "--set", "train.lr=1e-3"))
    assert len(runs) == 2 * 6 * 2
    assert len({run.path for run in runs}) == len(runs)
    for run in runs:
        assert run.config.train.lr == 1e-3
        assert run.config.train.seed == run.seed
    ted = {run.method: run.config for run in runs if run.set == "ted" and run.seed == 1}
    assert ted["cats"].sampling == ted["uniform"].sampling == ted["tokens"].sampling  # weightings share one sampler
    assert ted["T=5"].sampling.temperature == 5
    assert len({(c.model, c.train, c.tokenizer, c.data, c.sampling.batch_tokens) for c in ted.values()}) == 1


def test_all_start_from_a_preset_and_a_file(tmp_path):
    (tmp_path / "mine.toml").write_text("[train]\nsteps = 9\nlr = 7e-4\n")
    words = [
        "--out",
        str(tmp_path),
        "--preset",
        "ted",
        "--config",
        str(tmp_path / "mine.toml"),
        "--set",
        "train.lr=1e-4",
    ]
    for run in compare.plan(arguments(*words, "--data", str(tmp_path))):
        assert (run.config.model.norm, run.config.train.steps, run.config.train.lr) == ("scalenorm", 9, 1e-4)


def test_a_variant_is_cats_with_other_settings(tmp_path):
    words = ["--out", str(tmp_path), "--methods", "T=1", "--variant", "slow:method.alpha_lr=0.01,method.inner_steps=3"]
    slow = next(run for run in compare.plan(arguments(*words)) if run.method == "slow")
    assert (slow.config.method.name, slow.config.method.alpha_lr, slow.config.method.inner_steps) == ("cats", 0.01, 3)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--methods", "catz"], r"unknown method catz.*cats"),
        (["--sets", "tad"], r"unknown set tad.*ted"),
        (["--jobs", "0"], r"--jobs must be at least 1"),
        (["--variant", "cats:method.alpha_lr=1"], r"NAME:KEY=VALUE"),
        (["--variant", "new"], r"NAME:KEY=VALUE"),
        (["--set", "train.lrr=1"], r"train\.lr"),
        (["--seeds", "1", "1"], r"--seeds .*twice"),
        (["--methods", "T=1", "T=5", "T=1"], r"--methods T=1 T=5 T=1: one is given twice"),
        (["--sets", "ted", "ted"], r"--sets .*twice"),
        (["--variant", "../x:method.alpha_lr=1"], r"a plain name"),
        (["--variant", "a:method.alpha_lr=1", "--variant", "a:method.alpha_lr=2"], r"NAME:KEY=VALUE"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_trained(tmp_path, words, message):
    with pytest.raises(UserError, match=message):
        compare.plan(arguments("--out", str(tmp_path / "out"), *words))
    assert not (tmp_path / "out").exists()


def test_a_run_with_other_settings_is_not_mistaken_for_this_one(corpus, tmp_path):
    words = ["--data", str(corpus), "--out", str(tmp_path / "out"), "--methods", "T=1", "--seeds", "1"]
    (run,) = compare.plan(arguments(*words))
    finish(run, {"xa": LINES, "xb": LINES}, {"xa": 1.0, "xb": 1.0})
    compare.check_resumable(run)
    (other,) = compare.plan(arguments(*words, "--set", "train.steps=7"))
    with pytest.raises(UserError, match="other settings"):
        compare.check_resumable(other)


def test_a_run_killed_before_its_first_checkpoint_starts_anew(corpus, tmp_path):
    words = ["--data", str(corpus), "--out", str(tmp_path / "out"), "--methods", "T=1", "--seeds", "1"]
    (run,) = compare.plan(arguments(*words))
    run.path.mkdir(parents=True)
    (run.path / "config.toml").write_text(to_toml(run.config), encoding="utf-8")
    compare.check_resumable(run)
    assert not run.path.exists()


@pytest.fixture
def finished(corpus: Path, tmp_path: Path) -> list[compare.Run]:
    """T=1 is right on xa (HiRes) and wrong on xb, T=5 the other way round, cats right on both; two seeds."""
    wrong = ["zzz"] * 6
    outputs = {"T=1": (LINES, wrong), "T=5": (wrong, LINES), "cats": (LINES, LINES)}
    words = ["--data", str(corpus), "--out", str(tmp_path / "out"), "--seeds", "1", "2", "--methods", *outputs]
    runs = compare.plan(arguments(*words))
    for run in runs:
        xa, xb = outputs[run.method]
        score = {id(LINES): 100.0, id(wrong): 0.0}
        finish(run, {"xa": xa, "xb": xb}, {"xa": score[id(xa)], "xb": score[id(xb)]})
    return runs


def test_middle_groups_are_in_the_tables(finished):
    for run in finished:  # the same runs, as another configuration groups them
        config = apply_overrides(run.config, ["evaluate.lores_below=5", "evaluate.hires_from=1000"])
        object.__setattr__(run, "config", config)
        scores = json.loads((run.path / "scores.json").read_text())
        for groups in scores["groups"], scores["lookup"]["groups"]:
            groups["midres"] = groups.pop("hires")
        (run.path / "scores.json").write_text(json.dumps(scores))
    summary = compare.summarise(finished)
    assert summary["sets"]["toy"]["groups"] == {"lores": ["xb"], "midres": ["xa"]}
    assert summary["regret"]["T=5"]["where"] == "toy midres"
    rows = list(csv.DictReader(compare.as_csv(summary).splitlines()))
    assert len(rows) == 3 * 2 * (2 + 3)  # methods, seeds, two languages and three groups
    assert {(r["seed"], r["chrf"]) for r in rows if (r["method"], r["name"]) == ("T=1", "MidRes")} == {
        ("1", "100.0"),
        ("2", "100.0"),
    }
    assert "| method | All NLL | LoRes NLL | MidRes NLL | All chrF |" in compare.report(summary)


def test_regret_is_against_the_best_temperature_of_each_group(finished):
    summary = compare.summarise(finished)
    regret = summary["regret"]
    assert regret["T=1"]["worst"] == 100.0 and regret["T=1"]["where"] == "toy lores"
    assert regret["T=5"]["worst"] == 100.0 and regret["T=5"]["where"] == "toy hires"
    assert regret["cats"]["worst"] == 0.0
    # the bootstrap works on the translations themselves, and agrees
    assert regret["T=1"]["interval"] == pytest.approx([100.0, 100.0])
    assert regret["cats"]["interval"] == pytest.approx([0.0, 0.0])
    result = summary["sets"]["toy"]
    assert result["groups"] == {"lores": ["xb"], "hires": ["xa"]}
    assert result["methods"]["T=1"]["groups"]["lores"]["chrf"] == [0.0, 0.0]


def test_the_finished_comparison_is_written_without_training(finished, tmp_path, capsys, monkeypatch):
    def never(run: compare.Run) -> Any:
        raise AssertionError(f"{run.path} is finished")

    monkeypatch.setattr(compare, "start", never)
    words = ["--out", str(tmp_path / "out"), "--seeds", "1", "2", "--methods", "T=1", "T=5", "cats"]
    compare.main(arguments("--data", str(tmp_path / "toy"), *words))
    text = (tmp_path / "out" / "compare.md").read_text(encoding="utf-8")
    assert text in capsys.readouterr().out
    row = next(line for line in text.splitlines() if line.startswith("| T=1 |"))
    assert [cell.strip() for cell in row.split("|")[2:-1]] == [
        *["1.000 ± 0.000"] * 3,
        *["50.0 ± 0.0", "0.0 ± 0.0", "100.0 ± 0.0"],
        *["10.0 ± 0.0"] * 3,
    ]
    assert json.loads((tmp_path / "out" / "compare.json").read_text(encoding="utf-8"))["seeds"] == [1, 2]
    assert (tmp_path / "out" / "compare.png").read_bytes().startswith(b"\x89PNG")


def test_no_lookup_to_compare_with(finished):
    for run in finished:
        scores = json.loads((run.path / "scores.json").read_text())
        scores["lookup"]["groups"] = {g: {"nll": None, "chrf": None, "bleu": None} for g in ("all", "lores", "hires")}
        (run.path / "scores.json").write_text(json.dumps(scores))
    assert "| lookup |  |  |  | n/a | n/a | n/a | n/a | n/a | n/a |" in compare.report(compare.summarise(finished))


def test_a_carriage_return_is_no_line(finished):
    before = compare.summarise(finished)["regret"]
    for run in finished:
        path = run.path / "hyp" / "test.xa.txt"
        first, rest = path.read_bytes().split(b"\n", 1)
        path.write_bytes(first + b"\r\n" + rest)
    assert compare.summarise(finished)["regret"]["T=5"]["worst"] == before["T=5"]["worst"]


def test_a_missing_score_names_the_run(finished):
    path = finished[0].path / "scores.json"
    scores = json.loads(path.read_text(encoding="utf-8"))
    scores["groups"]["lores"]["nll"] = None
    path.write_text(json.dumps(scores), encoding="utf-8")
    with pytest.raises(UserError, match=f"{finished[0].path}: a score is missing"):
        compare.summarise(finished)


def test_runs_are_trained_in_processes_and_failures_named(corpus, tmp_path):
    small = ["d_model=16", "heads=2", "ffn=16", "encoder_layers=1", "decoder_layers=1"]
    quick = ["train.steps=4", "train.warmup=2", "tokenizer.vocab_size=60", "sampling.batch_tokens=40", "decode.beam=1"]
    sets = [f"--set=model.{x}" for x in small] + [f"--set={x}" for x in quick]
    words = ["--data", str(corpus), "--out", str(tmp_path / "out"), "--seeds", "1", "--methods", "T=1", *sets]
    (run,) = compare.plan(arguments(*words))
    compare.execute([run], jobs=1)
    assert run.finished
    assert read_config(run.path / "config.toml") == run.config

    (corpus / "test.en-xa.en").write_bytes(b"\xff\n" * 6)
    (second,) = compare.plan(arguments(*[*words[:4], "--seeds", "2", *words[6:]]))
    with pytest.raises(UserError, match=r"1 of 1 runs failed; .*T=1-seed2.*UTF-8"):
        compare.execute([second], jobs=1)


def program(path: Path, text: str) -> str:
    """A program in place of Python, which runs are started with."""
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_a_run_may_say_more_than_a_pipe_holds(corpus, tmp_path, monkeypatch):
    (run,) = compare.plan(arguments("--data", str(corpus), "--out", str(tmp_path), "--seeds", "1", "--methods", "T=1"))
    text = "yes 'a warning' | head -c 1000000 >&2; echo the end >&2; exit 3"
    monkeypatch.setattr(sys, "executable", program(tmp_path / "python", text))
    with pytest.raises(UserError, match=r"1 of 1 runs failed; the first: .*T=1-seed1: the end"):
        compare.execute([run], jobs=1)


def test_no_run_goes_on_alone(corpus, tmp_path, monkeypatch):
    words = ["--data", str(corpus), "--out", str(tmp_path), "--seeds", "1", "2", "--methods", "T=1"]
    monkeypatch.setattr(sys, "executable", program(tmp_path / "python", "exec sleep 60"))
    start, started = compare.start, []

    def second_fails(*arguments):
        if started:
            raise UserError("the disk is full")
        started.append(start(*arguments))
        return started[0]

    monkeypatch.setattr(compare, "start", second_fails)
    with pytest.raises(UserError, match="the disk is full"):
        compare.execute(compare.plan(arguments(*words)), jobs=2)
    assert started[0].returncode is not None
