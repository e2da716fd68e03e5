"""What several tests of comparisons share: how to plan runs, and to make up what they leave behind."""

from __future__ import annotations

import json
from pathlib import Path

from cats.nmt.cli import compare
from cats.nmt.cli.parser import Parser
from cats.nmt.config.toml import to_toml
from cats.nmt.data.corpus import Corpus, Split, Task
from cats.nmt.data.corpus_files import write_corpus
from cats.nmt.scoring.grid.runs import Run
from tests.nmt.scoring.samples import cell, content

LINES = [f"line number {word}" for word in ("one", "two", "three", "four", "five", "six")]


def planned(*words: str) -> list[Run]:
    """The runs that `cats compare` makes of these options, without controls unless they are among them."""
    parser = Parser("cats compare", "")
    compare.add_arguments(parser)
    controls = [] if "--controls" in words else ["--controls", "none"]
    return compare.planned(parser.parse([*words, *controls]))


def finish(run: Run, hypotheses: dict[str, list[str]], chrf: dict[str, float]) -> None:
    """Leave in the run directory what a trained and scored run leaves there, as far as the comparison reads it."""
    (run.path / "hyp").mkdir(parents=True)
    (run.path / "config.toml").write_text(to_toml(run.config), encoding="utf-8")
    for task, lines in hypotheses.items():
        for suffix, column in ("txt", lines), ("ref", LINES):
            (run.path / "hyp" / f"test.{task}.{suffix}").write_text("".join(f"{x}\n" for x in column), encoding="utf-8")
    cells = {task: cell(value, 1.0, bleu=10.0, pairs=1) for task, value in chrf.items()}
    members = {"all": ["xa", "xb"], "lores": ["xb"], "hires": ["xa"]}
    means = {group: sum(chrf[name] for name in names) / len(names) for group, names in members.items()}
    groups = {g: cell(means[g], 1.0, bleu=10.0, languages=names) for g, names in members.items()}
    scores = content(languages=cells, groups=groups, lookup={"languages": {}, "groups": groups})
    (run.path / "scores.json").write_text(json.dumps(scores), encoding="utf-8")


def write_repeating_corpus(folder: Path) -> Path:
    """Write language xa with 12 training pairs and xb with 3. The target repeats the source."""
    split = Split(LINES, LINES, [("all", str(i % 3)) for i in range(6)])
    tasks = [
        Task("xa", "en", "xa", Split(LINES * 2, LINES * 2), split, split),
        Task("xb", "en", "xb", Split(LINES[:3], LINES[:3]), split, split),
    ]
    write_corpus(Corpus("toy", tasks), folder)
    return folder


def finished_runs(corpus: Path, out: Path) -> list[Run]:
    """T=1 is right on xa (HiRes) and wrong on xb, T=5 the other way round, cats right on both; two seeds."""
    wrong = ["zzz"] * 6
    outputs = {"T=1": (LINES, wrong), "T=5": (wrong, LINES), "cats": (LINES, LINES)}
    words = ["--data", str(corpus), "--out", str(out), "--seeds", "1", "2", "--methods", *outputs]
    runs = planned(*words)
    for run in runs:
        xa, xb = outputs[run.method]
        score = {id(LINES): 100.0, id(wrong): 0.0}
        finish(run, {"xa": xa, "xb": xb}, {"xa": score[id(xa)], "xb": score[id(xb)]})
    return runs
