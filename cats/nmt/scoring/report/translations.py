"""The translations of a page, side by side, with what is different from the reference marked."""

from __future__ import annotations

from collections.abc import Sequence

from cats.nmt.scoring.report.diff import Piece, difference
from cats.nmt.scoring.report.html import Html, element, foreign, joined, language_tag
from cats.nmt.scoring.report.samples import Sample, TaskSamples

_OPEN = 2  # so many languages are unfolded at first


def section(tasks: Sequence[TaskSamples]) -> Html:
    """The samples of all languages, each in a part that can be folded."""
    return joined(*(_task(task, number < _OPEN) for number, task in enumerate(tasks)))


def _task(task: TaskSamples, is_open: bool) -> Html:
    worst = sum(sample.worst for sample in task.samples)
    what = f"{len(task.samples) - worst} evenly spread lines and the {worst} worst of {task.searched:,}"
    title = element("summary", element("h3", f"{task.task} "), element("span", what, class_="soft"))
    return element("details", title, *(_sample(sample, task) for sample in task.samples), open=is_open)


def _sample(sample: Sample, task: TaskSamples) -> Html:
    title = f"Line {sample.number:,}{', one of the worst' if sample.worst else ''}"
    texts = [
        _text("source", foreign(sample.source, task.source), given=True),
        _text("reference", foreign(sample.reference, task.target), given=True),
    ]
    for name, translation in sample.translations.items():
        if translation.strip():
            pieces = difference(sample.reference, translation)
            marked = element("p", *map(_piece, pieces), lang=language_tag(task.target), dir="auto")
        else:
            marked = element("p", "(empty)", class_="soft")
        texts.append(_text(f"{name}, chrF {sample.chrf[name]:.0f}", marked))
    return element("section", element("h4", title), element("dl", *texts, class_="texts"), class_="sample")


def _text(title: str, content: Html, *, given: bool = False) -> Html:
    return element("div", element("dt", title), element("dd", content), class_="given" if given else None)


def _piece(piece: Piece) -> Html | str:
    if piece.kind == "same":
        return piece.text
    return element("ins" if piece.kind == "added" else "del", piece.text)
