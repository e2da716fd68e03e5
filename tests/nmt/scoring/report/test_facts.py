"""cats.nmt.scoring.report.facts: what was trained, and in what runs differ."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

from cats.nmt.config.schema import Config
from cats.nmt.config.toml import read_config
from cats.nmt.scoring.report.facts import changed_settings, common, differing_settings, facts
from cats.nmt.scoring.report.runs import read
from tests.nmt.scoring.report.runs import write_run


def test_facts(tmp_path: Path) -> None:
    run = write_run(
        tmp_path / "a", "sampling.temperature=inf", "train.threads=2", cpu_seconds=4000.0, peak_memory=2**21
    )
    assert facts(read([run]).runs[0]) == {
        "corpus": "toy",
        "languages": "3, one-to-many",
        "training pairs": "1,370",
        "method": "cats",
        "sampling": "uniform",
        "model": "Transformer, 2 + 2 layers, width 96, 4 heads, feed-forward 192",
        "batch": "800 target tokens",
        "learning rate": "0.003, inverse-sqrt, warm-up of 150",
        "updates": "40",
        "best by validation NLL": "after 40",
        "seed": "3",
        "time": "10 s",
        "processor time": "67 min",
        "speed": "1,234 target tokens/s",
        "peak memory": "2 MiB",
        "precision": "fp32, 2 CPU threads",
        "engine": "one_pass",
    }


def test_what_the_best_model_was_chosen_by(tmp_path: Path) -> None:
    """Nothing, if nothing was validated: then it is the newest one."""
    run = write_run(tmp_path / "a", "train.validate_bleu=1", "train.best_metric=bleu")
    found = facts(read([run]).runs[0])
    assert found["best by validation BLEU"] == "after 40" and "best by validation NLL" not in found
    lines = (run / "metrics.jsonl").read_text().splitlines()
    nothing = {"step": 40, "valid": {"nll": {}, "all": None}, "best": True}
    (run / "metrics.jsonl").write_text("\n".join([*lines[:-1], json.dumps(nothing)]) + "\n")
    assert not any(title.startswith("best") for title in facts(read([run]).runs[0]))


def test_what_runs_share_and_what_differs(tmp_path: Path) -> None:
    """A setting that the method of a run does not use makes no difference."""
    one = write_run(tmp_path / "a", "method.strength=0.2")
    two = write_run(tmp_path / "b", "method.name=static", "train.lr=0.01")
    runs = read([one, two]).runs
    shared = common([*map(facts, runs)])
    assert "corpus" in shared and "method" not in shared and "learning rate" not in shared
    differing = differing_settings(runs)
    assert differing["train.lr"] == ["0.003", "0.01"] and differing["method.name"] == ['"cats"', '"static"']
    assert "method.strength" not in differing and "train.seed" not in differing


def test_changed_settings_repeat_the_run(tmp_path: Path) -> None:
    """What the page shows is a configuration file."""
    run = read([write_run(tmp_path / "a", "method.strength=0.2", "data.tasks=az,be", "train.betas=[0.8,0.9]")]).runs[0]
    text = changed_settings(run.config)
    assert {*tomllib.loads(text)} == {"data", "method", "train"}
    (tmp_path / "settings.toml").write_text(text, encoding="utf-8")
    assert read_config(tmp_path / "settings.toml") == run.config
    assert changed_settings(Config()) == ""
