"""`cats compare`: the same model, data, budget and learning rate under several methods, seeds and size sets; one table.

The table has the shape of Table 2 of the CATS paper. Runs are ordinary run directories, trained by `cats train` in
processes of their own, so a comparison that was killed goes on where it stood when the same command is given again.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from cats.nmt.config.schema import Config
from cats.nmt.config.toml import apply_overrides, read_config, read_settings, to_toml
from cats.nmt.data.corpus import Corpus
from cats.nmt.data.groups import groups as groups_of
from cats.nmt.errors import UserError, nearest
from cats.nmt.files import atomic_write, read_output
from cats.nmt.scoring.bootstrap import cluster_counts, resampled_chrf
from cats.nmt.scoring.plots import new_figure, save_figure
from cats.nmt.scoring.report import read_scores
from cats.nmt.scoring.tables import TITLES

_BY_TEMPERATURE_ALONE = ["sampling.temperature_end=0", "sampling.ratios=[]", "sampling.unimax_epochs=0"]
# The temperatures are the usual baselines: plain token means over batches drawn at T. The weightings (tokens, uniform,
# cats) share one sampler, the configuration's own; tokens is again the plain token mean, so it is one more temperature.
METHODS: dict[str, list[str]] = {
    **{
        f"T={t}": ["method.name=static", "method.weights=tokens", f"sampling.temperature={t}", *_BY_TEMPERATURE_ALONE]
        for t in ("1", "5", "inf")
    },
    "tokens": ["method.name=static", "method.weights=tokens"],
    "uniform": ["method.name=static", "method.weights=uniform"],
    "cats": ["method.name=cats"],
}
# Set -> its languages and sizes, and how long to train: at T=1, 40 epochs of the small sets, 3 of the one with a giant.
SETS: dict[str, list[str]] = {
    "ted": ["data.languages=related", "data.sizes=ted", "train.steps=2700"],
    "diverse": ["data.languages=diverse", "data.sizes=ted", "train.steps=2700"],
    "wmt": ["data.languages=wmt", "data.sizes=wmt", "train.steps=1300"],
}
METRICS = ("nll", "chrf", "bleu")
RESAMPLES = 1000


@dataclass(frozen=True)
class Run:
    """One cell of the comparison."""

    set: str
    method: str
    seed: int
    path: Path
    config: Config

    @property
    def started(self) -> bool:
        return (self.path / "config.toml").exists() and (self.path / "checkpoints" / "last.pt").exists()

    @property
    def finished(self) -> bool:
        return (self.path / "scores.json").exists()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `cats compare`."""
    parser.add_argument("--sets", nargs="+", default=["ted", "wmt"], metavar="SET", help=f"of {', '.join(SETS)}")
    parser.add_argument("--data", metavar="DIR", help="compare on this corpus instead of the CLDR sets")
    parser.add_argument(
        "--methods", nargs="+", default=list(METHODS), metavar="METHOD", help=f"of {', '.join(METHODS)}"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3], metavar="SEED")
    parser.add_argument(
        "--variant",
        action="append",
        default=[],
        metavar="NAME:KEY=VALUE,..",
        help="one more method: cats with these settings, e.g. slow:method.alpha_lr=0.01",
    )
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time (default: 2)")
    parser.add_argument("--out", type=Path, default=Path("runs/compare"), help="default: runs/compare")
    parser.add_argument("--preset", metavar="NAME", help="settings that all start from; cats train --help: which")
    parser.add_argument(
        "--config", metavar="FILE", help="TOML file of settings; they win over the preset's, a set's updates over them"
    )
    parser.add_argument(
        "--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help="for every run"
    )


def main(args: argparse.Namespace) -> None:
    """Train what is missing, then write compare.json, .csv, .md and .png into ``args.out``."""
    from cats.nmt.training.run import load_corpus  # here and below: --help need not wait for it

    runs = plan(args)
    for run in runs:
        check_resumable(run)
    if args.data:
        load_corpus(runs[0].config.data)  # what is wrong with it is said once, not by every run
    execute([run for run in runs if not run.finished], args.jobs)
    summary = summarise(runs)
    atomic_write(args.out / "compare.json", json.dumps(summary, indent=1, allow_nan=False) + "\n")
    atomic_write(args.out / "compare.csv", as_csv(summary))
    text = report(summary)
    atomic_write(args.out / "compare.md", text)
    draw(summary, args.out / "compare.png")
    print(text)
    print(f"Written: {args.out}/compare.md, compare.csv, compare.json, compare.png")


def plan(args: argparse.Namespace) -> list[Run]:
    """Every run of the comparison; settings are checked here, before anything is trained."""
    methods = dict(METHODS)
    for variant in args.variant:
        name, _, settings = variant.partition(":")
        if not name or not settings or name in methods or name != Path(name).name:
            raise UserError(f"--variant {variant}: write NAME:KEY=VALUE,.. with a plain name that is not a method's")
        methods[name] = [*METHODS["cats"], *settings.split(",")]
        args.methods.append(name)
    for name in args.methods:
        if name not in methods:
            raise UserError(f"unknown method {name}{nearest(name, methods)}; known: {', '.join(methods)}")
    for name in args.sets:
        if name not in SETS:
            raise UserError(f"unknown set {name}{nearest(name, SETS)}; known: {', '.join(SETS)}")
    for option in ("methods", "sets", "seeds"):
        given = getattr(args, option)
        if len(set(given)) < len(given):
            raise UserError(f"--{option} {' '.join(map(str, given))}: one is given twice")
    base = read_settings(args.preset, args.config)
    if args.jobs < 1:
        raise UserError(f"--jobs must be at least 1, not {args.jobs}")
    threads = max(1, (os.cpu_count() or 1) // args.jobs)
    sets = (
        {Path(args.data).resolve().name: [f"data.path={args.data}"]}
        if args.data
        else {s: ["data.path=", *SETS[s]] for s in args.sets}
    )
    return [
        Run(
            name,
            method,
            seed,
            args.out / name / f"{method}-seed{seed}",
            apply_overrides(
                base,
                [*settings, f"train.threads={threads}", f"train.seed={seed}", *args.overrides, *methods[method]],
            ),
        )
        for name, settings in sets.items()
        for seed in args.seeds  # seeds outside methods: a comparison cut short has whole seeds
        for method in args.methods
    ]


def check_resumable(run: Run) -> None:
    """Refuses a directory trained with other settings; removes one that was killed while it was made."""
    if not run.path.exists():
        return
    if (run.path / "config.toml").exists() and to_toml(read_config(run.path / "config.toml")) != to_toml(run.config):
        raise UserError(f"{run.path}: a run with other settings is there; give another --out, or remove it")
    if not run.finished and not run.started:
        shutil.rmtree(run.path)


def execute(runs: list[Run], jobs: int) -> None:
    """Train and score ``runs``, ``jobs`` at a time, each in a process of its own."""
    waiting, working = list(runs), dict[subprocess.Popen[bytes], tuple[Run, float, IO[bytes]]]()
    try:
        _execute(waiting, working, jobs, len(runs))
    finally:  # none goes on alone, whatever ends this one
        for process in working:
            process.terminate()
        for process in working:
            process.wait()


def _execute(
    waiting: list[Run], working: dict[subprocess.Popen[bytes], tuple[Run, float, IO[bytes]]], jobs: int, count: int
) -> None:
    failed: list[str] = []
    done = 0
    interrupted = False
    while waiting or working:
        try:
            while waiting and len(working) < jobs and not interrupted:
                run = waiting.pop(0)
                errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  # a pipe that nobody reads would stop it when full
                working[start(run, errors)] = run, time.monotonic(), errors
            time.sleep(0.2)
        except KeyboardInterrupt:  # the runs got it too: each saves its checkpoint and ends
            interrupted = True
            waiting.clear()
        for process in [p for p in working if p.poll() is not None]:
            run, began, errors = working.pop(process)
            done += 1
            errors.seek(0)
            said = errors.read().decode(errors="replace").strip()
            errors.close()
            if process.returncode == 0:
                print(f"[{done}/{count}] {run.path}: {time.monotonic() - began:.0f} s", file=sys.stderr)
            elif not interrupted:
                failed.append(f"{run.path}: {said.splitlines()[-1] if said else f'exit {process.returncode}'}")
                print(f"[{done}/{count}] failed: {failed[-1]}", file=sys.stderr)
    if interrupted:
        print("cats: stopped; the same command goes on from here", file=sys.stderr)
        raise KeyboardInterrupt
    if failed:
        raise UserError(f"{len(failed)} of {count} runs failed; the first: {failed[0]}")


def start(run: Run, errors: IO[bytes]) -> subprocess.Popen[bytes]:
    """The process that trains and scores ``run``, from its last checkpoint if there is one; it writes to ``errors``."""
    if run.started:
        where = ["--resume", str(run.path)]
    else:
        configuration = run.path.parent / f"{run.path.name}.toml"
        configuration.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(configuration, to_toml(run.config))
        where = ["--config", str(configuration), "--out", str(run.path)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(run.config.train.threads)}
    command = [sys.executable, "-m", "cats", "train", "--quiet", *where]
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=errors)


def count_matrices(runs: list[Run], corpus: Corpus) -> dict[str, dict[int, dict[str, np.ndarray]]]:
    """{method: {seed: {language: chrF counts per cluster}}} of the runs of one set, from their translations."""
    lines = {task.name: task.test.rows(corpus.headline) for task in corpus.tasks}
    tasks = [task for task in corpus.tasks if lines[task.name]]
    clusters = {
        task.name: [task.test.meta[i][1] if task.test.meta else task.test.source[i] for i in lines[task.name]]
        for task in tasks
    }
    index = {name: i for i, name in enumerate(sorted({c for names in clusters.values() for c in names}))}
    result: dict[str, dict[int, dict[str, np.ndarray]]] = {}
    for run in runs:
        counts = {}
        for task in tasks:
            path = run.path / "hyp" / f"test.{task.name}.txt"
            hypotheses = read_output(path)
            chosen = lines[task.name]
            counts[task.name] = cluster_counts(
                [hypotheses[i] for i in chosen],
                [task.test.target[i] for i in chosen],
                clusters[task.name],
                index,
            )
        result.setdefault(run.method, {})[run.seed] = counts
    return result


def summarise(runs: list[Run]) -> dict[str, Any]:
    """Everything the table and the picture show: scores per seed, bootstrap intervals, regret."""
    from cats.nmt.training.run import load_corpus

    sets: dict[str, Any] = {}
    samples: dict[str, dict[str, dict[str, np.ndarray]]] = {}  # set -> method -> group -> resampled chrF
    for name in dict.fromkeys(run.set for run in runs):
        here = [run for run in runs if run.set == name]
        corpus = load_corpus(here[0].config.data)
        scored = [task.name for task in corpus.tasks if task.test.rows(corpus.headline)]
        members = groups_of(corpus.sizes, here[0].config.evaluate)
        groups = {g: [t for t in names if t in scored] for g, names in members.items()}
        groups = {g: names for g, names in groups.items() if names}
        by_language = resampled_chrf(count_matrices(here, corpus), RESAMPLES)
        samples[name] = {
            method: {g: np.mean([values[t] for t in tasks], axis=0) for g, tasks in groups.items()}
            for method, values in by_language.items()
        }
        scores = {run: read_scores(run.path) for run in here}
        for run, result in scores.items():
            if any(result["groups"][g][m] is None for g in groups for m in METRICS):
                raise UserError(f"{run.path}: a score is missing (did it diverge?); leave this method out")
        methods: dict[str, Any] = {}
        for method in dict.fromkeys(run.method for run in here):
            mine = [scores[run] for run in here if run.method == method]
            methods[method] = {
                "groups": {g: {m: [s["groups"][g][m] for s in mine] for m in METRICS} for g in groups},
                "languages": {t: {m: [s["languages"][t][m] for s in mine] for m in METRICS} for t in scored},
                "chrf_interval": {g: interval(values) for g, values in samples[name][method].items()},
                "seeds": [run.seed for run in here if run.method == method],
                "seconds": [s["seconds"] for s in mine],
            }
        sets[name] = {
            "pairs": corpus.sizes,
            "groups": {g: names for g, names in groups.items() if g != "all"},
            "lookup": scores[here[0]]["lookup"]["groups"],
            "methods": methods,
        }
    return {
        "seeds": sorted({run.seed for run in runs}),
        "settings": to_toml(runs[0].config),
        "sets": sets,
        "regret": regrets(sets, samples),
    }


def interval(values: np.ndarray) -> list[float]:
    """The 95 % percentile interval."""
    low, high = np.percentile(values, [2.5, 97.5])
    return [float(low), float(high)]


def regrets(sets: dict[str, Any], samples: dict[str, dict[str, dict[str, np.ndarray]]]) -> dict[str, Any]:
    """Worst regret per method: chrF lost to the best temperature, in the worst of the sets and of their groups.

    A method that is everywhere at least as good as the best temperature has a worst regret of zero or less. Resamples
    choose their best temperature anew.
    """
    cells = [(s, g) for s in sets for g in sets[s]["groups"]]
    baselines = [m for m in next(iter(samples.values())) if m.startswith("T=")]
    if not baselines:
        return {}
    result = {}
    for method in next(iter(samples.values())):
        regret = {
            (s, g): max(np.mean(sets[s]["methods"][b]["groups"][g]["chrf"]) for b in baselines)
            - np.mean(sets[s]["methods"][method]["groups"][g]["chrf"])
            for s, g in cells
        }
        resampled = [np.max([samples[s][b][g] for b in baselines], axis=0) - samples[s][method][g] for s, g in cells]
        worst = max(regret, key=lambda cell: regret[cell])
        result[method] = {
            "worst": float(regret[worst]),
            "interval": interval(np.max(resampled, axis=0)),
            "where": f"{worst[0]} {worst[1]}",
            "cells": {f"{s} {g}": float(value) for (s, g), value in regret.items()},
        }
    return result


def spread(values: list[float], digits: int) -> str:
    """Mean and standard deviation over seeds."""
    deviation = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{deviation}"


def _number(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.1f}"


def as_csv(summary: dict[str, Any]) -> str:
    """compare.csv: a row for every set, method, seed and language or group."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["set", "method", "seed", "name", *METRICS])
    for name, result in summary["sets"].items():
        for method, scores in result["methods"].items():
            for cell, values in (*scores["languages"].items(), *scores["groups"].items()):
                for i, seed in enumerate(scores["seeds"]):
                    writer.writerow([name, method, seed, TITLES.get(cell, cell), *(values[m][i] for m in METRICS)])
    return text.getvalue()


def report(summary: dict[str, Any]) -> str:
    """compare.md: per set the group averages and the chrF of every language, then the regret."""
    lines = []
    for name, result in summary["sets"].items():
        pairs = ", ".join(f"{task} {count:,}" for task, count in result["pairs"].items())
        seeds = len(next(iter(result["methods"].values()))["seconds"])
        lines += [f"## {name}", "", f"Training pairs: {pairs}. Mean ± standard deviation over {seeds} seed(s).", ""]
        groups = ["all", *result["groups"]]
        lines.append(
            "| method | " + " | ".join(f"{TITLES[g]} {m}" for m in ("NLL", "chrF", "BLEU") for g in groups) + " |"
        )
        lines.append("| --- |" + " ---: |" * (3 * len(groups)))
        for method, scores in result["methods"].items():
            cells = [spread(scores["groups"][g][m], 3 if m == "nll" else 1) for m in METRICS for g in groups]
            lines.append(f"| {method} | " + " | ".join(cells) + " |")
        lookup = ["" if m == "nll" else _number(result["lookup"][g][m]) for m in METRICS for g in groups]
        lines += [f"| lookup | {' | '.join(lookup)} |", "", "chrF by language:", ""]
        tasks = [task for names in result["groups"].values() for task in names]
        lines += ["| method | " + " | ".join(tasks) + " |", "| --- |" + " ---: |" * len(tasks)]
        for method, scores in result["methods"].items():
            cells = [spread(scores["languages"][t]["chrf"], 1) for t in tasks]
            lines.append(f"| {method} | " + " | ".join(cells) + " |")
        lines.append("")
    if summary["regret"]:
        lines += [
            "## Worst regret",
            "",
            "chrF lost to the best temperature, in the worst of set and group; 95 % interval by bootstrap over",
            "seeds and clusters of test lines.",
            "",
            "| method | worst regret | interval | where |",
            "| --- | ---: | :---: | --- |",
        ]
        for method, value in summary["regret"].items():
            low, high = value["interval"]
            lines.append(f"| {method} | {value['worst']:.1f} | {low:.1f} to {high:.1f} | {value['where']} |")
        lines.append("")
    return "\n".join(lines)


def draw(summary: dict[str, Any], path: Path) -> None:
    """compare.png: LoRes against HiRes chrF, a panel per set; small dots are seeds, bars 95 % intervals of the mean."""
    panels = {name: r for name, r in summary["sets"].items() if {"lores", "hires"} <= r["groups"].keys()}
    if not panels:
        return
    figure, axes = new_figure(len(panels))
    for axis, (name, result) in zip(axes, panels.items(), strict=True):
        for number, (method, scores) in enumerate(result["methods"].items()):
            groups, bars = scores["groups"], scores["chrf_interval"]
            x, y = np.mean(groups["lores"]["chrf"]), np.mean(groups["hires"]["chrf"])
            colour = f"C{number}"
            axis.plot(groups["lores"]["chrf"], groups["hires"]["chrf"], ".", color=colour, alpha=0.4)
            axis.plot([bars["lores"][0], bars["lores"][1]], [y, y], color=colour, alpha=0.5, lw=1)
            axis.plot([x, x], [bars["hires"][0], bars["hires"][1]], color=colour, alpha=0.5, lw=1)
            marker, size = ("*", 12) if method == "cats" else ("o", 7)
            axis.plot([x], [y], marker, ms=size, color=colour, label=method)
        axis.set_title(name)
        axis.set_xlabel("LoRes chrF")
        axis.set_ylabel("HiRes chrF")
    axes[0].legend(frameon=False)
    save_figure(figure, path)
