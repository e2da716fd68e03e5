"""The report of a run: report.md, with loss.png and alpha.png beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cats.nmt.config.toml import read_config, to_toml
from cats.nmt.errors import UserError
from cats.nmt.files import atomic_write
from cats.nmt.scoring import plots, tables
from cats.nmt.scoring.tables import TITLES
from cats.nmt.training.metrics import read_metrics


def write(run: Path) -> None:
    """Writes report.md, loss.png and alpha.png of an evaluated run.

    Raises:
        UserError: the run is not evaluated, a file of it is damaged, matplotlib is missing, or the disk is full.
    """
    scores = read_scores(run)
    records = read_metrics(run / "metrics.jsonl")
    atomic_write(run / "report.md", markdown(run, scores, records))
    plots.draw_loss(records, scores, run / "loss.png")
    plots.draw_alpha(records, scores, run / "alpha.png")


def read_scores(run: Path, name: str = "scores.json") -> dict[str, Any]:
    """The run's scores.json, or another file of scores."""
    try:
        scores = json.loads((run / name).read_text(encoding="utf-8"))
        if not isinstance(scores, dict) or not {"languages", "groups", "lookup", "seconds"} <= scores.keys():
            raise ValueError("not what evaluate writes")
    except FileNotFoundError:
        raise UserError(f"{run} holds no {name}; make it with: cats evaluate {run}") from None
    except ValueError:
        raise UserError(f"{run}/{name} is damaged; make it anew with: cats evaluate {run}") from None
    return scores


def markdown(run: Path, scores: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> str:
    """The text of report.md."""
    best = max((r["step"] for r in records if r.get("best")), default=None)
    speed = scores["tokens_per_second"]
    facts = [
        f"corpus {scores['corpus']}",
        f"method {scores['method']}, temperature {scores['temperature']}",
        f"{scores['steps']:,} updates" + (f", best by validation NLL after {best:,}" if best is not None else ""),
        f"seed {scores['seed']}",
    ]
    if speed:
        facts.append(f"{scores['seconds']:,.0f} s of training at {speed:,.0f} target tokens/s")
    headline = scores["headline"]
    basis = f"the {scores['split']} lines of stratum {headline}" if headline else f"all {scores['split']} lines"
    signatures = _signatures(scores["signatures"])
    lines = [
        f"# {run.resolve().name}",
        "",
        *[f"- {fact}" for fact in facts],
        "",
        tables.scores_table(scores),
        "",
        verdict(scores),
        "",
        f"BLEU and chrF are on {basis}; NLL is in nats per target token over all {scores['split']} lines, without",
        f"smoothing. Groups are macro-averages; {_grouping(run)}.",
        "",
        "## More scores",
        "",
        tables.more_scores_table(scores),
        "",
        "PPL is exp(NLL). Off-target is the share of lines that are not in the target language, by script and, among",
        "languages of one script, by character n-grams; what it says of the references themselves is its error.",
        "",
    ]
    if scores.get("zero_shot", {}):
        lines += ["## Zero-shot", "", "Directions without training text; they have no part in the averages.", ""]
        lines += [tables.zero_shot_table(scores), ""]
    others = {path.name.split(".")[1]: path.name for path in sorted(run.glob("scores.*.json"))}
    others = {name: file for name, file in others.items() if name not in ("train", "valid")}
    if others:
        checkpoints = {"best": scores, **{name: read_scores(run, file) for name, file in others.items()}}
        lines += ["## Checkpoints", "", tables.checkpoints_table(checkpoints), ""]
    if scores["strata"]:
        lines += ["## By stratum", "", tables.strata_table(scores), ""]
    lines += ["## Training", "", "![loss per language](loss.png)", "", "![alpha per language](alpha.png)", ""]
    lines += ["## Signatures", "", *[f"- {line}" for line in signatures], ""]
    lines += ["## Settings", "", "```toml", to_toml(read_config(run / "config.toml")).rstrip(), "```", ""]
    return "\n".join(lines)


def verdict(scores: Mapping[str, Any]) -> str:
    """Whether the model beats the lookup baseline, in one line."""
    below = [group for group, beats in scores["beats_lookup"].items() if beats is False]
    if not any(beats is not None for beats in scores["beats_lookup"].values()):
        return "No lookup (the nearest training sentence, digits replaced) to compare with: too much training text."
    if not below:
        beaten = [TITLES[group] for group, beats in scores["beats_lookup"].items() if beats]
        where = (
            "every group" if len(beaten) == len(scores["beats_lookup"]) else f"{', '.join(beaten)}; the rest has none"
        )
        return f"Beats lookup (the nearest training sentence, digits replaced) in {where}."
    cells = [
        f"{TITLES[g]} (chrF {scores['groups'][g]['chrf']:.1f} against {scores['lookup']['groups'][g]['chrf']:.1f})"
        for g in below
    ]
    return f"Below lookup in {', '.join(cells)}: not trained."


def _grouping(run: Path) -> str:
    """What makes a language LoRes, in words."""
    given = read_config(run / "config.toml").evaluate
    if given.lores or given.midres or given.hires:
        return "which language is in which was configured"
    bound = f"{given.lores_below:,}" if given.lores_below else "the mean"
    high = f", HiRes those with at least {given.hires_from:,}" if given.hires_from else ""
    return f"LoRes are the languages with fewer training pairs than {bound}{high}"


def _signatures(signatures: Mapping[str, Mapping[str, str]]) -> list[str]:
    """One line per signature, with the languages that have it where they are not all."""
    lines = []
    titles = {"bleu": "BLEU", "bleu_13a": "BLEU with 13a", "chrf": "chrF", "chrfpp": "chrF++", "spbleu": "spBLEU"}
    for metric, by_language in signatures.items():
        names: dict[str, list[str]] = {}
        for language, signature in by_language.items():
            names.setdefault(signature, []).append(language)
        for signature, languages in names.items():
            where = f" ({', '.join(languages)})" if len(names) > 1 else ""
            lines.append(f"{titles[metric]}{where}: `{signature}`")
    return lines
