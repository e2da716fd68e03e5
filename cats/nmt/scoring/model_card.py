"""The model card of an exported model, README.md: its training text, its scores, and what it is not for.

The lines at the top are those that the Hugging Face Hub reads.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from cats import __version__
from cats.nmt.config.checks import format_value
from cats.nmt.config.schema import Config
from cats.nmt.data.directions import direction
from cats.nmt.files import as_text
from cats.nmt.scoring import tables
from cats.nmt.scoring.report.markdown import verdict
from cats.nmt.scoring.scores import Scores
from cats.nmt.training.origin import settings_of
from cats.nmt.training.trained_model import TrainedModel

_UNICODE = "https://www.unicode.org/license.txt"


def text(
    name: str, trained: TrainedModel, tasks: Sequence[str], scores: Scores | None, *, library: str, use: str
) -> str:
    """The text of README.md.

    Args:
        name: the name of the model.
        tasks: the names of the tasks that it was trained on.
        scores: those of the exported checkpoint; None: it was not evaluated.
        library: the program that loads the folder, as the Hub names it.
        use: how to translate with the folder, as Markdown.
    """
    config = trained.config
    directions = [direction(task, {*trained.tokenizer.languages}) for task in tasks]
    directions = [(source, target) for source, target in directions if source != target]  # no language modelling
    sources, targets = ([*dict.fromkeys(side)] for side in zip(*directions, strict=True)) if directions else ([], [])
    size = sum(parameter.numel() for parameter in trained.model.parameters())
    lines = ["---", f"library_name: {library}", "pipeline_tag: translation", "language:"]
    lines += [f"- {json.dumps(language)}" for language in sorted({*sources, *targets, *trained.tokenizer.languages})]
    if not config.data.path:
        lines += ["license: other", "license_name: unicode-3.0", f"license_link: {_UNICODE}"]
    lines += ["---", "", f"# {as_text(name)}", ""]
    lines += [f"A Transformer with {size:,} parameters, trained and exported with cats-optim {__version__}."]
    if directions:
        lines += [f"It translates from {', '.join(sources)} into {', '.join(targets)}."]
    lines += ["", "## Use", "", use.strip(), "", "## Training text", "", *_data(config), ""]
    if trained.origin.corpus:
        rows = [["task", "training pairs", "validation pairs", "test pairs"]]
        rows += [[task, *(f"{count:,}" for count in counts)] for task, counts in trained.origin.corpus.items()]
        lines += [tables.aligned(rows, left=1), ""]
    lines += ["## Scores", "", *_scores(scores), "", "## Limits", "", *_limits(config, scores), "", "## Training", ""]
    lines += ["All settings have their defaults, except these:", "", "```toml", *_changed(config), "```", ""]
    return "\n".join(lines)


def _data(config: Config) -> list[str]:
    if config.data.path:
        folder = as_text(Path(config.data.path).name)
        return [f"The parallel text in the folder `{folder}`. Say here where it comes from, and under which licence."]
    lines = [
        f"The built-in corpus with `data.languages={config.data.languages}` and `data.sizes={config.data.sizes}`:",
        "short phrases such as dates, durations and names of countries, made from the Unicode CLDR, which the package",
        f"babel contains. CLDR is under the [Unicode License v3]({_UNICODE}), © Unicode, Inc.",
    ]
    if config.data.sizes == "noisy":
        lines += ["In two of the languages half of the training translations are wrong, on purpose."]
    return lines


def _scores(scores: Scores | None) -> list[str]:
    if scores is None:
        return ["This checkpoint was not evaluated."]
    lines = "all lines" if scores.headline is None else f"the lines of stratum {scores.headline}"
    return [
        tables.scores_table(scores),
        "",
        f"Checkpoint {scores.run.checkpoint}, seed {scores.run.seed}. BLEU and chrF are sacreBLEU's, on {lines} of the",
        f"{scores.run.split} text. NLL is in nats per target token. Groups are means over their languages.",
        "",
        verdict(scores),
    ]


def _limits(config: Config, scores: Scores | None) -> list[str]:
    if scores is not None and scores.is_below_baseline:
        return ["- The model is not trained, see above: its translations are of no use."]
    domain = "text like its training text" if config.data.path else "phrases of the kind above, not free text"
    return [
        f"- It can translate {domain}. Elsewhere it makes fluent mistakes. Scores of other text are not known.",
        "- Languages with few training pairs are translated worse, see above.",
        f"- Lines of more than {config.decode.max_length} pieces are cut.",
        "- It may repeat its training text, with its errors and prejudices. Its output is not filtered.",
    ]


def _changed(config: Config) -> list[str]:
    """The settings that differ from the defaults. The place of the corpus on this machine is left out."""
    default = settings_of(Config())
    changed = {name: value for name, value in settings_of(config).items() if value != default[name]}
    changed.pop("data.path", None)
    return [f"{name} = {format_value(value)}" for name, value in changed.items()]
