"""The figures and tables of the two papers: what each one claims, which experiments it needs, and what is drawn.

A claim is in our own words. `checked` says what it rests on: "text" if the paper's text or numbers were read, "reports"
if only what others write about the paper, or our notes on it, which may be wrong about which figure shows it.
"""

from __future__ import annotations

from dataclasses import dataclass

CATS, ORDER = "CATS (Li & Gong 2021, arXiv 2104.07639)", "Order Matters (Choi et al. 2023, arXiv 2312.06134)"
TEXT, REPORTS = "text", "reports"


@dataclass(frozen=True)
class Figure:
    """A figure, a table, or a group of them that show the same on other runs.

    name: as on the command line. paper: CATS or ORDER. claim: one line. checked: TEXT or REPORTS.
    experiments: names in `experiments.EXPERIMENTS`.
    draw: commands of cats that are run afterwards. {out}/NAME is the folder of an experiment, and {figure} that of the
        figure's files. Words with * stand for all matching folders.
    tables: the files that have the result, if it is not only a picture.
    """

    name: str
    paper: str
    claim: str
    checked: str
    experiments: tuple[str, ...]
    draw: tuple[str, ...] = ()
    tables: tuple[str, ...] = ()


def _runs(experiment: str, *methods: str) -> str:
    """The run directories of some methods in an experiment of `cats compare`, with all seeds."""
    return " ".join(f"{{out}}/{experiment}/*/{method}-seed*" for method in methods)


def _plot(runs: str, options: str) -> str:
    return f"plot {runs} {options} --out {{figure}}"


def _front(experiment: str) -> str:
    return f"{{out}}/{experiment}/front.md"


_FEW = ("T=1", "T=5", "cats", "eq4")  # the methods that most figures of CATS show
_ANALYSED = "{out}/related/*/T=1-seed11 {out}/related/*/T=5-seed11 {out}/related/*/cats-seed11"
_ANALYSES = tuple(f"analyse {run}" for run in _ANALYSED.split())
_AT_RATIOS = "{out}/low-ro/*/ro-*/ratio-0.3/*-seed*"

FIGURES = {
    each.name: each
    for each in (
        Figure(
            "cats-2",
            CATS,
            "Oversampling small languages takes the model to sharper places, and gradients of large and small ones "
            "point apart.",
            REPORTS,
            ("related",),
            (*_ANALYSES, _plot(_ANALYSED, "--pictures curvature")),
        ),
        Figure(
            "cats-3",
            CATS,
            "How similar the gradients of two languages are depends on the kind of layer; the norms of the decoder "
            "differ most.",
            REPORTS,
            ("related",),
            (*_ANALYSES, _plot(_ANALYSED, "--pictures layers similarity")),
        ),
        Figure(
            "cats-4a",
            CATS,
            "With CATS the gradients of the languages are more alike than with a fixed temperature.",
            REPORTS,
            ("related",),
            (*_ANALYSES, _plot(_ANALYSED, "--pictures similarity")),
        ),
        Figure(
            "cats-4b",
            CATS,
            "CATS narrows the gap between training and validation loss of the small languages.",
            REPORTS,
            ("related",),
            (_plot(_runs("related", *_FEW), "--pictures gap"),),
        ),
        Figure(
            "cats-5",
            CATS,
            "T=1 underfits and T=5 overfits the small languages; CATS has the lowest validation loss in both groups.",
            REPORTS,
            ("related",),
            (_plot(_runs("related", *_FEW), "--pictures loss"),),
        ),
        Figure(
            "cats-6",
            CATS,
            "CATS reaches a validation BLEU of the small languages with fewer updates and tokens.",
            REPORTS,
            ("related",),
            (_plot(_runs("related", *_FEW), "--pictures bleu"),),
        ),
        Figure(
            "cats-7",
            CATS,
            "With far too many parameters (300 million on TED) fixed temperatures lose on the small languages, CATS "
            "does not.",
            TEXT,
            ("related", "wide"),
            (
                _plot(
                    _runs("related", *_FEW) + " " + _runs("wide", *_FEW), "--against model.d_model --pictures bleu nll"
                ),
            ),
        ),
        Figure(
            "cats-8",
            CATS,
            "With batches of 131,000 tokens in place of 33,000, CATS keeps its gain on the small languages.",
            TEXT,
            ("related", "large-batches"),
            (
                _plot(
                    _runs("related", *_FEW) + " " + _runs("large-batches", *_FEW),
                    "--against sampling.batch_tokens --pictures bleu nll",
                ),
            ),
        ),
        Figure(
            "cats-table-2",
            CATS,
            "TED: CATS gains 0.7 (related) and 0.4 BLEU (diverse) on the small languages over the best temperature, "
            "and loses nothing on the others.",
            TEXT,
            ("related", "diverse"),
            tables=("{out}/related/compare.md", "{out}/diverse/compare.md"),
        ),
        Figure(
            "cats-table-3",
            CATS,
            "WMT-10: CATS gains 2.2 BLEU on the small languages over T=5.",
            TEXT,
            ("wmt",),
            tables=("{out}/wmt/compare.md",),
        ),
        Figure(
            "cats-table-4",
            CATS,
            "OPUS-100: CATS gains 1.3 BLEU on the small languages over T=5, and 0.9 over CLSR, which has more "
            "parameters; CLSR is better on the large ones.",
            TEXT,
            ("opus100",),
            tables=("{out}/opus100/compare.md",),
        ),
        Figure(
            "cats-table-5",
            CATS,
            "The diverse set again (the scores suggest many-to-one): what norms without gain and bias, and CATS, add "
            "to a baseline.",
            REPORTS,
            ("many-to-one",),
            tables=("{out}/many-to-one/compare.md",),
        ),
        Figure(
            "order-1",
            ORDER,
            "Two large languages: pre-training one of them gains nothing over static ratios.",
            REPORTS,
            ("both-high",),
            tables=(_front("both-high"),),
        ),
        Figure(
            "order-2",
            ORDER,
            "One small, one large language: pre-training on the large one, then the mixture, is beyond the front of "
            "static ratios; a restart alone is not, and the training loss is worse.",
            TEXT,
            ("low-ro", "low-hi"),
            tables=(_front("low-ro"), _front("low-hi")),
        ),
        Figure(
            "order-3",
            ORDER,
            "After pre-training, the small language needs fewer of its examples for the same loss.",
            REPORTS,
            ("low-ro",),
            (_plot(_AT_RATIOS, "--pictures efficiency examples"),),
        ),
        Figure(
            "order-4",
            ORDER,
            "Fine-tuning starts from a lower loss of the small language than training from random parameters.",
            REPORTS,
            ("low-ro",),
            (_plot(_AT_RATIOS, "--pictures loss nll"),),
        ),
        Figure(
            "order-5",
            ORDER,
            "The small language overfits when it is sampled often for long; joint fine-tuning is short enough for high "
            "ratios.",
            REPORTS,
            ("low-ro",),
            (_plot("{out}/low-ro/*/ro-*/ratio-0.9/*-seed*", "--pictures loss gap"),),
        ),
        Figure(
            "order-6",
            ORDER,
            "Fine-tuning on the small language alone forgets the large one; on the mixture it does not.",
            REPORTS,
            ("forgetting", "lengths"),
            (
                _plot(_runs("forgetting", "pretrain-finetune*", "lowres-finetune*"), "--pictures forgetting"),
                _plot(_runs("lengths", "pre*"), "--against train.pretrain_steps --pictures nll"),
            ),
        ),
        Figure(
            "order-7",
            ORDER,
            "Language models: pre-training on English and fine-tuning on the mixture has the best mean loss.",
            REPORTS,
            ("lines",),
            tables=(_front("lines"),),
        ),
        Figure(
            "order-8",
            ORDER,
            "Language models: it has the best trade-off between English and the small languages, beyond temperature "
            "sampling.",
            REPORTS,
            ("lines",),
            tables=(_front("lines"),),
        ),
        Figure(
            "order-9",
            ORDER,
            "Language models: longer pre-training is better, until too few updates are left for the mixture.",
            REPORTS,
            ("lines-lengths",),
            (_plot("{out}/lines-lengths/*/*/ratio-0.5/pre*-seed*", "--against train.pretrain_steps --pictures nll"),),
            tables=(_front("lines-lengths"),),
        ),
        Figure(
            "order-10-19",
            ORDER,
            "The fronts of Figures 1 and 2 in BLEU, at other learning rates and for other pairs show the same.",
            REPORTS,
            ("low-hi-bleu", "low-ro-rate", "low-ro", "low-hi", "both-high"),
            tables=(
                _front("low-hi-bleu"),
                _front("low-ro-rate"),
                _front("low-ro"),
                _front("low-hi"),
                _front("both-high"),
            ),
        ),
        Figure(
            "order-20-25",
            ORDER,
            "Figure 3 at other ratios: the higher the ratio, the more examples pre-training saves.",
            REPORTS,
            ("low-ro", "low-hi"),
            tuple(
                f"plot {{out}}/low-{pair}/*/{pair}-*/ratio-{ratio}/*-seed* --pictures efficiency "
                f"--out {{figure}}/{pair}-{ratio}"
                for pair in ("ro", "hi")
                for ratio in (0.1, 0.3, 0.9)
            ),
        ),
        Figure(
            "order-26-28",
            ORDER,
            "A temperature that changes during the training, or adaptive weights, are not beyond the front that "
            "pre-training has.",
            REPORTS,
            ("low-ro",),
            tables=(_front("low-ro"),),
        ),
    )
}
