"""The HTML page of `cats report`: one file without references to others, for one or several runs.

It reads like a page without its script, which sorts tables and unfolds what is folded before printing. Its policy
(Content-Security-Policy) allows this script only, and nothing from elsewhere.
"""

from __future__ import annotations

import base64
import hashlib
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

import cats
from cats.nmt.scoring.report import facts, samples, score_tables, translations
from cats.nmt.scoring.report.html import Html, element, joined
from cats.nmt.scoring.report.markdown import sacrebleu_commands
from cats.nmt.scoring.report.pictures import Picture, draw
from cats.nmt.scoring.report.problems import KINDS, all_problems
from cats.nmt.scoring.report.runs import Content, ReportedRun
from cats.nmt.scoring.report.sortable import markdown, table

MOST_TRANSLATIONS = 8  # of runs, side by side
MOST_UNFOLDED = 8  # runs in a table that is unfolded at first

Section = tuple[str, Html]  # title and content


def page(content: Content, title: str, command: Sequence[str], *, lines: int) -> str:
    """The text of the page.

    Args:
        command: the words of the command that makes it.
        lines: how many test lines of each language are shown.

    Raises:
        UserError: a file of translations is missing or changed, or matplotlib is missing.
    """
    runs, by_corpus = content.runs, dict[str, list[ReportedRun]]()
    for run in runs:
        by_corpus.setdefault(run.scores.run.corpus, []).append(run)
    several = len(by_corpus) > 1
    sections = [("Warnings", _warnings(content))]
    if runs:
        sections.append(("What was trained", _trained(runs)))
    sections += [(f"Scores on {name}" if several else "Scores", _scores(found)) for name, found in by_corpus.items()]
    sections += [(f"Comparison {each.name}", markdown(each.tables)) for each in content.comparisons]
    sections += [(f"Trade-off fronts {each.name}", markdown(each.tables)) for each in content.fronts]
    if drawn := draw(content):
        sections.append(("Pictures", element("div", *map(_figure, drawn), class_="pictures")))
    for name, found in by_corpus.items():
        if shown := _translations(found, lines):
            sections.append((f"Translations of {name}" if several else "Translations", shown))
    sections.append(("To reproduce it", _commands(content, command)))
    return _document(title, _summary(content), sections)


def _document(title: str, summary: str, sections: Sequence[Section]) -> str:
    here = Path(__file__)
    style, script = (here.with_name(name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; "
        f"script-src 'sha256-{digest}'"
    )
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("link", rel="icon", href="data:,"),  # or browsers ask the server for one
        element("title", title),
        element("style", Html(style)),
    )
    links = [element("li", element("a", name, href=f"#part-{i}")) for i, (name, _) in enumerate(sections)]
    parts = [
        element(
            "section",
            element("h2", name, id=f"part-{i}-title"),
            part,
            id=f"part-{i}",
            aria_labelledby=f"part-{i}-title",
        )
        for i, (name, part) in enumerate(sections)
    ]
    body = element(
        "body",
        element("header", element("h1", title), element("p", summary)),
        element("nav", element("ul", *links), aria_label="Parts of the page"),
        element("main", *parts),
        element("footer", element("p", f"Made by cats {cats.__version__}. The page needs no network.")),
        element("script", Html(script)),
    )
    return f"<!DOCTYPE html>\n{element('html', head, body, lang='en').markup}\n"


def _summary(content: Content) -> str:
    """One sentence on what the page is about."""
    runs = content.runs
    if not runs:
        sets = dict.fromkeys(front.set for each in content.fronts for front in each.fronts.fronts)
        return f"Trade-off fronts on {', '.join(sets)}."
    corpora = ", ".join(dict.fromkeys(run.scores.run.corpus for run in runs))
    if len(runs) == 1:
        scores = runs[0].scores.run
        updates = f"{scores.steps:,} updates, " if scores.steps else ""  # an exported model does not say it
        return f"A run of method {scores.method} on {corpora}, {updates}seed {scores.seed}."
    return f"{len(runs)} runs of {len({run.method for run in runs})} methods on {corpora}."


def _warnings(content: Content) -> Html:
    """What a reader must know before the scores: each kind of problem, with the runs that have it and the facts."""
    found: dict[tuple[str, str], dict[str, str]] = {}
    for name, problem in all_problems(content):
        found.setdefault((problem.what, problem.meaning), {})[name] = problem.facts
    if not found:
        text = "None. Every group beats the nearest-neighbour baseline."
        if not content.runs:
            return element("p", "None.", class_="good")
        if any(gain is None for run in content.runs for gain in run.scores.gains.values()):
            text = "None. But not all groups were compared with the nearest-neighbour baseline."
        return element("p", text, class_="good")
    items = [
        element("li", element("strong", what), f": {meaning}", element("dl", *_terms(by_run)))
        for (what, meaning), by_run in sorted(found.items(), key=lambda item: KINDS.index(item[0][0]))
    ]
    return element("ul", *items, class_="problems")


def _trained(runs: Sequence[ReportedRun]) -> Html:
    """The facts that all runs share, then what they differ in."""
    each = [facts.facts(run) for run in runs]
    shared = facts.common(each)
    parts = [element("dl", *_terms(shared), class_="facts")]
    if len(runs) == 1:
        return joined(*parts)
    titles = [title for title in dict.fromkeys(title for found in each for title in found) if title not in shared]
    rows = [[run.name, *(found.get(title, "") for title in titles)] for run, found in zip(runs, each, strict=True)]
    parts.append(_folded("What differs", table("What differs", ["run", *titles], rows, left=len(titles) + 1), runs))
    if settings := facts.differing_settings(runs):
        rows = [[run.name, *(values[i] for values in settings.values())] for i, run in enumerate(runs)]
        columns = ["run", *settings]
        differing = table("Settings that differ", columns, rows, left=len(columns))
        parts.append(_folded("Settings that differ", differing, runs))
    return joined(*parts)


def _folded(title: str, content: Html, runs: Sequence[ReportedRun]) -> Html:
    """A part that can be folded; it is folded at first if there are many runs."""
    return element("details", element("summary", element("h3", title)), content, open=len(runs) <= MOST_UNFOLDED)


def _terms(found: Mapping[str, str]) -> list[Html]:
    return [part for title, text in found.items() for part in (element("dt", title), element("dd", text))]


def _scores(runs: Sequence[ReportedRun]) -> Html:
    strata = {run.scores.headline for run in runs if run.scores.headline}
    lines = f"the test lines of stratum {', '.join(sorted(strata))}" if strata else "the test lines"
    text = (
        f"BLEU and chrF, on {lines}: higher is better. NLL, in nats per target token on all test lines: lower is "
        "better. Groups are means over their languages."
    )
    if len(runs) == 1:
        return joined(element("p", text), score_tables.of_one_run(runs[0]))
    means = score_tables.seed_means(runs)
    parts = [element("h3", "Means over the seeds, ± standard deviation"), means] if means else []
    return joined(element("p", text), *parts, element("h3", "Each run"), score_tables.of_runs(runs))


def _figure(picture: Picture) -> Html:
    box = element("div", picture.svg, class_="box", role="region", aria_label=picture.title, tabindex=0)
    caption = element("figcaption", element("strong", picture.title), f". {picture.text}")
    return element("figure", box, caption)


def _translations(runs: Sequence[ReportedRun], lines: int) -> Html | None:
    shown = _side_by_side(runs)
    found = samples.choose(shown, lines) if lines else []
    if not found:
        return None
    legend = joined(
        "Marked is what a translation has ",
        element("ins", "in addition"),
        " to the reference, and what it ",
        element("del", "lacks"),
        ". Other words can be right, too. chrF is that of the line.",
    )
    left_out = len(runs) - len(shown)
    note = f"Not shown: {left_out} of the runs. There is the first seed of each method, of {MOST_TRANSLATIONS} at most."
    return joined(element("p", legend), element("p", note) if left_out else None, translations.section(found))


def _side_by_side(runs: Sequence[ReportedRun]) -> list[ReportedRun]:
    """The runs whose translations are shown: all, or the first seed of the first methods."""
    if len(runs) <= MOST_TRANSLATIONS:
        return list(runs)
    first: dict[str, ReportedRun] = {}
    for run in runs:
        first.setdefault(run.method, run)
    return list(first.values())[:MOST_TRANSLATIONS]


def _commands(content: Content, command: Sequence[str]) -> Html:
    """How to train the runs again, to compute their scores with another program, and to make this page."""
    runs, parts = content.runs, list[Html]()
    if runs:
        train = [
            shlex.join(["cats", "train", "--config", str(run.path / "config.toml"), "--out", f"{run.path}-again"])
            for run in runs
        ]
        parts += [
            element("p", "Train again, with the same settings and seeds:"),
            _code(train),
            element("p", "Translate and score again:"),
            _code([shlex.join(["cats", "evaluate", str(run.path)]) for run in runs]),
        ]
        if sacrebleu := sacrebleu_commands(runs[0].scores):
            text = f"Compute BLEU and chrF with sacreBLEU's own command, here for {runs[0].scores.scored_tasks[0]}:"
            parts += [element("p", text), _code([shlex.join(["cd", str(runs[0].path)]), *sacrebleu])]
    parts += [element("p", "Make this page:"), _code([shlex.join(command)])]
    for run in runs:
        summary = element("summary", f"Settings of {run.name} that are not the defaults")
        parts.append(element("details", summary, _code([facts.changed_settings(run.config) or "# none"])))
    for each in content.fronts:
        summary = element("summary", f"Settings of the first run of {each.name}")
        parts.append(element("details", summary, _code([each.fronts.settings])))
    return joined(*parts)


def _code(lines: Sequence[str]) -> Html:
    return element("pre", element("code", "\n".join(lines)), tabindex=0)
