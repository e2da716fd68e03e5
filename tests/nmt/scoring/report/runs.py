"""Scored runs of an imaginary corpus with texts that would break a careless page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cats.nmt.config.schema import Config
from cats.nmt.config.toml import apply_overrides, to_toml
from cats.nmt.files import write_checked_json
from cats.nmt.scoring.report.page import page
from cats.nmt.scoring.report.runs import read
from tests.nmt.scoring.samples import baseline, cell, content, record

TASKS = {"ar": 20, "az": 150, "ru": 1200}  # training pairs
HOSTILE = "<script>document.title = 'hacked'; console.error('hacked')</script>"
BREAKING = "</dd></dl></section><img src=x onerror=\"console.error('hacked')\"> & \x00\u202e\x07"
LONG = "Donaudampfschiffahrt" * 20  # one word, wider than any page
REFERENCES = {
    "ar": ["الهند أو بولندا", "صربيا وأوكرانيا", "6 كيلوواط و12 مليلتر"] * 4,
    "az": ["Belçika və Yaponiya", "ivrit və polyak", "7 avro", "fars (İtaliya)"] * 3,
    "ru": ["раз два три", "четыре пять", "шесть семь восемь девять"] * 4,
}
TRANSLATIONS = {
    "ar": [HOSTILE, "صربيا وأوكرانيا", "6 كيلوواط و12 Euro", *REFERENCES["ar"][3:]],
    "az": [BREAKING, LONG, "7 avro", "farsça (İtaliya)", *REFERENCES["az"][4:]],
    "ru": REFERENCES["ru"],
}


def write_run(path: Path, *overrides: str, translations: dict[str, list[str]] | None = None, **changes: Any) -> Path:
    """Writes what the training and the scoring of a run leave behind, without checkpoints.

    Args:
        overrides: of its settings.
        translations: the translations of each task, else TRANSLATIONS.
        changes: of scores.json.
    """
    (path / "hyp").mkdir(parents=True)
    config = apply_overrides(Config(), ["train.seed=3", "train.steps=40", "train.lr=0.003", *overrides])
    (path / "config.toml").write_text(to_toml(config), encoding="utf-8")
    lines = [{**record(step), "alpha": dict.fromkeys(TASKS, 1 / 3), "engine": "one_pass"} for step in range(10, 41, 10)]
    lines.append({"step": 40, "valid": {"nll": dict.fromkeys(TASKS, 1.5), "all": 1.5}, "best": True})
    (path / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
    found = translations or TRANSLATIONS
    for task, texts in found.items():
        columns = {
            "txt": texts,
            "ref": REFERENCES[task],
            "src": [HOSTILE, *(f"source {i}" for i in range(1, len(texts)))],
        }
        for suffix, column in columns.items():
            text = "".join(f"{line}\n" for line in column)
            (path / "hyp" / f"test.{task}.{suffix}").write_text(text, encoding="utf-8")
    groups = {"all": list(TASKS), "lores": ["ar", "az"], "hires": ["ru"]}
    scores = content(
        languages={
            task: {**cell(60.0, pairs=pairs, off_target=0.0, off_target_references=0.0), "lines": len(found[task])}
            for task, pairs in TASKS.items()
        },
        groups={group: cell(60.0, languages=tasks) for group, tasks in groups.items()},
        lookup={"languages": {}, "groups": dict.fromkeys(groups, baseline(50.0))},
        method=config.method.name,
        seed=config.train.seed,
        signatures={},
    )
    write_checked_json(path / "scores.json", {**scores, **changes})
    return path


def write_three(folder: Path) -> None:
    """Writes two seeds of cats and a run of another method. The names of runs are hostile, too."""
    write_run(folder / "cats-seed3")
    write_run(folder / "cats-seed4", "train.seed=4")
    write_run(folder / "<b>'&\"", "method.name=static")


def page_of_three(folder: Path) -> str:
    """The page about them."""
    return page(read([folder]), "<title> & more", ["cats", "report", "a b"], lines=6)
