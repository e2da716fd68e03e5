"""report.md of a run, with loss.png and alpha.png beside it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cats.nmt.config.schema import Config, Evaluate, Train
from cats.nmt.config.toml import to_toml
from cats.nmt.data.corpus import SPLITS
from cats.nmt.files import as_text, atomic_write
from cats.nmt.scoring import tables
from cats.nmt.scoring.plots.curves import draw_alpha, draw_loss
from cats.nmt.scoring.scores import TITLES, Scores, read_scores
from cats.nmt.training.metrics import best_validation, read_metrics
from cats.nmt.training.run import RunDirectory

_METRIC_TITLES = {
    "nll": "NLL",
    "bleu": "BLEU",
    "bleu_13a": "BLEU with 13a",
    "chrf": "chrF",
    "chrfpp": "chrF++",
    "spbleu": "spBLEU",
}
_BASELINE = (
    "the nearest-neighbour baseline (the translation of the nearest training sentence, with its numbers replaced)"
)


def write(run: Path) -> None:
    """Writes report.md, loss.png and alpha.png of an evaluated run.

    Raises:
        UserError: the run is not evaluated, one of its files is damaged, matplotlib is missing, or the disk is full.
    """
    directory = RunDirectory(run)
    scores = read_scores(run)
    records = read_metrics(directory.metrics_file)
    checkpoints = {"best": scores, **_other_checkpoints(run)}
    page = text(as_text(run.resolve().name), scores, checkpoints, records, directory.read_config())
    atomic_write(directory.report_file, page)
    draw_loss(records, scores, directory.loss_plot)
    draw_alpha(records, scores, directory.alpha_plot)


def verdict(scores: Scores) -> str:
    """One sentence on whether the model beats the nearest-neighbour baseline."""
    gains = {group: gain for group, gain in scores.gains.items() if gain is not None}
    if all(cell.quality.chrf is None for cell in scores.model.groups.values()):
        return f"Not compared with {_BASELINE}: nothing was translated."
    if not gains:
        return f"Not compared with {_BASELINE}: there is too much training text, or the settings leave it out."
    below = [group for group, gain in gains.items() if gain <= 0]
    if not below:
        if len(gains) == len(scores.gains):
            return f"Beats {_BASELINE} in every group."
        return f"Beats {_BASELINE} in {', '.join(TITLES[group] for group in gains)}; the other groups have no baseline."
    ours, theirs = scores.model.groups, scores.nearest_neighbour.groups
    chrf = [f"{TITLES[g]} (chrF {ours[g].quality.chrf:.1f} against {theirs[g].quality.chrf:.1f})" for g in below]
    return f"Below the nearest-neighbour baseline in {', '.join(chrf)}: the model is not trained."


def text(
    name: str,
    scores: Scores,
    checkpoints: Mapping[str, Scores],
    records: Sequence[Mapping[str, Any]],
    config: Config,
) -> str:
    """The text of report.md.

    Args:
        name: name of the run.
        scores: the scores of the best checkpoint on the test split.
        checkpoints: the scores of all evaluated checkpoints, the best one included.
        records: the lines of metrics.jsonl.
        config: the settings of the run.
    """
    split, headline = scores.run.split, scores.headline
    basis = f"the {split} lines of stratum {headline}" if headline else f"all {split} lines"
    lines = [
        f"# {name}",
        "",
        *[f"- {fact}" for fact in _facts(scores, records, config)],
        "",
        tables.scores_table(scores),
        "",
        verdict(scores),
        "",
        f"BLEU and chrF are computed on {basis}. NLL is in nats per target token over all {split} lines, without label",
        f"smoothing. Groups are macro-averages. {_grouping(config.evaluate)}.",
        "",
        "## More scores",
        "",
        tables.more_scores_table(scores),
        "",
        "PPL is exp(NLL). Off-target is the share of lines that are not in the target language. Scripts tell languages",
        "apart, and character n-grams those that share a script. The same share of the references shows the error.",
        "",
    ]
    if scores.zero_shot:
        lines += [
            "## Zero-shot",
            "",
            "Directions without training text, scored on all their lines. They are not part of the averages.",
            "",
        ]
        lines += [tables.zero_shot_table(scores), ""]
    if len(checkpoints) > 1:
        lines += ["## Checkpoints", "", tables.checkpoints_table(checkpoints), ""]
    if scores.strata:
        lines += ["## By stratum", "", tables.strata_table(scores), ""]
    lines += ["## Training", "", "![loss per language](loss.png)", "", "![alpha per language](alpha.png)", ""]
    lines += ["## Signatures", "", *[f"- {line}" for line in _signatures(scores.signatures)], "", *_commands(scores)]
    lines += ["## Settings", "", "```toml", to_toml(config).rstrip(), "```", ""]
    return "\n".join(lines)


def _other_checkpoints(run: Path) -> dict[str, Scores]:
    """The scores of the checkpoints beside the best one on the test split, by name of the checkpoint."""
    files = {path.name.split(".")[1]: path.name for path in sorted(run.glob("scores.*.json"))}
    return {name: read_scores(run, file) for name, file in files.items() if name not in SPLITS}


def chosen_model(records: Sequence[Mapping[str, Any]], settings: Train) -> tuple[str, int] | None:
    """What best.pt was chosen by, such as "best by validation NLL", and its updates. None: nothing was validated."""
    best = best_validation(records)
    if best is None or not best["valid"].get("nll"):
        return None
    return f"best by validation {_METRIC_TITLES[settings.best_metric]}", best["step"]


def _facts(scores: Scores, records: Sequence[Mapping[str, Any]], config: Config) -> list[str]:
    """What was trained, how long and how fast."""
    run = scores.run
    chosen = chosen_model(records, config.train)
    updates = f"{run.steps:,} updates" + (f", {chosen[0]} after {chosen[1]:,}" if chosen else "")
    facts = [
        f"corpus {run.corpus}",
        f"method {run.method}, temperature {run.temperature}",
        *([updates] if run.steps else []),  # an exported model does not say how long it was trained
        f"seed {run.seed}",
    ]
    if run.seconds and run.tokens_per_second:
        facts.append(f"{run.seconds:,.0f} s of training at {run.tokens_per_second:,.0f} target tokens/s")
    if run.peak_memory:
        facts.append(f"at most {run.peak_memory / 2**20:,.0f} MiB")
    return facts


def _grouping(settings: Evaluate) -> str:
    """A sentence on which languages are LoRes."""
    if settings.lores or settings.midres or settings.hires:
        return "The languages of each group are set in the configuration"
    bound = f"{settings.lores_below:,}" if settings.lores_below else "the mean"
    high = f", HiRes those with at least {settings.hires_from:,}" if settings.hires_from else ""
    return f"LoRes are the languages with fewer training pairs than {bound}{high}"


def _signatures(signatures: Mapping[str, Mapping[str, str]]) -> list[str]:
    """One line for each signature. Its languages are named if they are not all."""
    lines = []
    for metric, by_language in signatures.items():
        names: dict[str, list[str]] = {}
        for language, signature in by_language.items():
            names.setdefault(signature, []).append(language)
        for signature, languages in names.items():
            where = f" ({', '.join(languages)})" if len(names) > 1 else ""
            lines.append(f"{_METRIC_TITLES[metric]}{where}: `{signature}`")
    return lines


def sacrebleu_commands(scores: Scores) -> list[str]:
    """The lines of shell that compute BLEU and chrF of the first task again, in the run directory.

    Empty if no task has lines to score.
    """
    if not scores.scored_tasks:
        return []
    task = scores.scored_tasks[0]
    tokenizer = scores.bleu_tokenizer(task) or "13a"
    reference, translation, stratum = (
        shlex.quote(f"hyp/{scores.run.split}.{task}.{suffix}") for suffix in ("ref", "txt", "stratum")
    )
    commands = list[str]()
    if scores.headline:
        select = f"paste {stratum} {{}} | sed -n $'s/^{scores.headline}\\t//p' > {{}}"
        commands = [select.format(reference, "ref"), select.format(translation, "txt")]
        reference, translation = "ref", "txt"
    return [*commands, f"sacrebleu {reference} -i {translation} -m bleu chrf --tokenize {tokenizer}"]


def _commands(scores: Scores) -> list[str]:
    """The lines on how to compute BLEU and chrF of the first task again with sacreBLEU's command line."""
    commands = sacrebleu_commands(scores)
    if not commands:
        return []
    where = f", from the lines that `.stratum` marks as {scores.headline}" if scores.headline else ""
    what = f"the files in `hyp/`{where}, for example for {scores.scored_tasks[0]}"
    return [f"sacreBLEU's command line computes the same scores from {what}:", "", "```bash", *commands, "```", ""]
