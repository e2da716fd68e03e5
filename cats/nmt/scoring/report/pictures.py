"""The pictures of a page, as SVG."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from cats.nmt.scoring.plots import curves, landscape, methods
from cats.nmt.scoring.plots.comparison import comparison_figure
from cats.nmt.scoring.plots.front import fronts_figure
from cats.nmt.scoring.plots.runs import NothingToDraw, Runs
from cats.nmt.scoring.plots.style import without_formulas
from cats.nmt.scoring.report.html import Html
from cats.nmt.scoring.report.runs import Content
from cats.nmt.scoring.report.svg import inline

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_OF_LANGUAGES = "A line for each language, from dark to light with growing training data; LoRes orange, HiRes blue."
_OF_METHODS = "A line for each method, the mean over its seeds; thin lines are the seeds."
Draw = Callable[[Runs], "Figure"]
_LANDSCAPE: list[tuple[str, str, Draw]] = [  # of runs that cats analyse has measured
    (
        "Curvature and alignment",
        "The largest Hessian eigenvalue of the languages, and the cosine of their gradients with those of the others.",
        landscape.curvature,
    ),
    ("Similarity of the gradients", "Of each two languages, at the last measurement.", landscape.similarity),
    ("Similarity by kind of layer", "Means over the pairs of languages, at the last measurement.", landscape.layers),
]


class Picture(NamedTuple):
    """A picture, its title, and a text that says what it shows."""

    title: str
    text: str
    svg: Html


def draw(content: Content) -> list[Picture]:
    """The pictures that the runs have data for.

    Raises:
        UserError: matplotlib is missing.
    """
    with without_formulas():
        return [
            Picture(title, text, inline(figure, number, title, text))
            for number, (title, text, figure) in enumerate(_figures(content))
        ]


def _figures(content: Content) -> Iterator[tuple[str, str, Figure]]:
    for each in content.comparisons:
        figure = comparison_figure(each.comparison)
        if figure is not None:
            text = "Marks are means over the seeds, bars their 95 % intervals, small dots the seeds."
            yield f"chrF of LoRes and HiRes, {each.name}", text, figure
    for found in content.fronts:
        text = (
            "Large marks are means over the seeds, small dots the seeds. The curve is the front of static ratios; the "
            "numbers are the shares of the low side. What is worse on both sides is shaded."
        )
        yield f"Trade-off fronts, {found.name}", text, fronts_figure(found.fronts)
    for corpus, runs in content.drawn:
        for title, text, picture in _of_one(runs) if len(runs.runs) == 1 else _of_several():
            try:
                yield title + (f", {corpus}" if len(content.drawn) > 1 else ""), text, picture(runs)
            except NothingToDraw:  # the runs were trained without what it shows
                continue


def _of_one(runs: Runs) -> list[tuple[str, str, Draw]]:
    """Titles, texts and functions of the pictures of one run, with a line for each language."""
    (run,) = runs.runs
    scores = run.scores
    assert scores is not None, "only runs with scores are reported"
    return [
        ("Loss", f"{_OF_LANGUAGES} Lower is better.", lambda runs: curves.loss_figure(run.records, scores)),
        ("Weights of the languages", f"α, as a share of the total. {_OF_LANGUAGES}", curves.alphas),
        ("Validation BLEU", "Means of the groups. Higher is better.", partial(methods.scores, measure="bleu")),
        ("Validation chrF", "Means of the groups. Higher is better.", partial(methods.scores, measure="chrf")),
        ("Sentence pairs seen", _OF_LANGUAGES, curves.examples),
        *_LANDSCAPE,
    ]


def _of_several() -> list[tuple[str, str, Draw]]:
    """The same of several runs, with a line for each method."""
    return [
        ("Loss", f"{_OF_METHODS} Lower is better.", methods.losses),
        ("Validation BLEU", f"{_OF_METHODS} Higher is better.", partial(methods.scores, measure="bleu")),
        ("Validation chrF", f"{_OF_METHODS} Higher is better.", partial(methods.scores, measure="chrf")),
        ("Generalisation gap", f"Training minus validation loss. {_OF_METHODS}", methods.gap),
        ("Weights of the languages", f"α, as a share of the total. {_OF_LANGUAGES}", curves.alphas),
        ("Sentence pairs seen", _OF_LANGUAGES, curves.examples),
        *_LANDSCAPE,
    ]
