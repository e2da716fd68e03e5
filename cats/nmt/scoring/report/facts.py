"""What was trained, and how: a few lines of text about each run, and the settings in which runs differ."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from cats.nmt.config.checks import format_value
from cats.nmt.config.schema import FIELDS, Config, value_of
from cats.nmt.scoring.grid.methods import unused_settings
from cats.nmt.scoring.report.markdown import chosen_model
from cats.nmt.scoring.report.runs import ReportedRun

Facts = Mapping[str, str]  # {title: what}


def facts(run: ReportedRun) -> Facts:
    """What was trained, in the order to read it in. What was not recorded is left out."""
    config, scores = run.config, run.scores
    model, train = config.model, config.train
    chosen = chosen_model(run.records, train)
    layers = f"{model.encoder_layers} + {model.decoder_layers} layers"
    found = {
        "corpus": scores.run.corpus,
        "languages": f"{len(scores.pairs):,}, {config.data.direction}",
        "training pairs": f"{sum(scores.pairs.values()):,}",
        "method": " ".join([config.method.name, *config.method.options]),
        "sampling": _sampling(config),
        "model": f"Transformer, {layers}, width {model.d_model}, {model.heads} heads, feed-forward {model.ffn}",
        "parameters": "" if run.parameters is None else f"{run.parameters:,}",
        "batch": f"{config.sampling.batch_tokens:,} {config.sampling.budget} tokens",
        "learning rate": f"{train.lr:g}, {train.schedule}, warm-up of {train.warmup:,}",
        "updates": f"{scores.run.steps:,}" if scores.run.steps else "",  # an exported model does not say it
        **({chosen[0]: f"after {chosen[1]:,}"} if chosen else {}),
        "seed": str(train.seed),
        **_machine(run),
    }
    return {title: text for title, text in found.items() if text}


def common(runs: Sequence[Facts]) -> Facts:
    """The facts that all runs share."""
    first = runs[0]
    return {title: text for title, text in first.items() if all(other.get(title) == text for other in runs)}


def differing_settings(runs: Sequence[ReportedRun]) -> dict[str, list[str]]:
    """{"section.key": the value of each run} of the settings in which the runs differ.

    A setting that the method of a run does not use is empty.
    """
    unused = [unused_settings(run.config) for run in runs]
    values = {
        name: [
            "" if name in not_used else format_value(value_of(run.config, name))
            for run, not_used in zip(runs, unused, strict=True)
        ]
        for name in FIELDS
    }
    return {name: texts for name, texts in values.items() if len({*texts} - {""}) > 1}


def changed_settings(config: Config) -> str:
    """The settings that are not the defaults, as TOML."""
    default, lines, section = Config(), list[str](), ""
    for name in FIELDS:
        value = value_of(config, name)
        if value != value_of(default, name):
            here, key = name.split(".")
            if here != section:
                lines += ["", f"[{here}]"] if lines else [f"[{here}]"]
                section = here
            lines.append(f"{key} = {format_value(value)}")
    return "\n".join(lines)


def _sampling(config: Config) -> str:
    """How the sentences of a batch are drawn."""
    sampling = config.sampling
    if sampling.ratios:
        return f"ratios {', '.join(f'{ratio:g}' for ratio in sampling.ratios)}"
    if sampling.unimax_epochs:
        return f"UniMax, at most {sampling.unimax_epochs:g} passes"
    text = "uniform" if math.isinf(sampling.temperature) else f"temperature {sampling.temperature:g}"
    if sampling.temperature_end:
        text += f" to {sampling.temperature_end:g}"
    if sampling.first_temperature:
        text = f"temperature {sampling.first_temperature:g}, after {config.train.pretrain_steps:,} updates {text}"
    return text


def _machine(run: ReportedRun) -> Facts:
    """Time, speed and memory."""
    scores, train = run.scores.run, run.config.train
    engines = [record["engine"] for record in run.records if record.get("engine")]
    threads = f", {train.threads} CPU thread{'s' * (train.threads > 1)}" if train.threads else ""
    return {
        "time": "" if scores.seconds is None else _duration(scores.seconds),
        "processor time": "" if scores.cpu_seconds is None else _duration(scores.cpu_seconds),
        "speed": "" if scores.tokens_per_second is None else f"{scores.tokens_per_second:,.0f} target tokens/s",
        "peak memory": "" if not scores.peak_memory else f"{scores.peak_memory / 2**20:,.0f} MiB",
        "precision": f"{train.precision}{threads}",
        "engine": str(engines[-1]) if engines else "",
    }


def _duration(seconds: float) -> str:
    if seconds < 600:
        return f"{seconds:,.0f} s"
    return f"{seconds / 60:,.0f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"
