"""`cats evaluate`: translate and score a run's test set again."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from cats.nmt.cli import translate
from cats.nmt.cli.parser import Parser
from cats.nmt.screen import doing

if TYPE_CHECKING:
    from cats.nmt.scoring.scores import Scores

SUMMARY = "score a run again: BLEU, chrF and NLL per language, tables and pictures"
HELP = """\
Translate and score the test set of a run with its best checkpoint. scores.json, scores.csv, report.md and the pictures
are written again. The folder hyp/ of the run gets the translations, sources and references of each task, one file each,
to compute the same scores with sacreBLEU (report.md has the commands), or others:
  comet-score -s RUN/hyp/test.az.src -t RUN/hyp/test.az.txt -r RUN/hyp/test.az.ref
With another split or checkpoint, only its scores and translations are written. report.md shows the scores of other
checkpoints beside those of the best one.
"""


def add_arguments(parser: Parser) -> None:
    parser.add_argument("run", metavar="RUN", help="run directory, as printed by cats train")
    parser.add_argument(
        "--split", default="test", metavar="{test,valid,train}", help="part of the corpus to score (default: test)"
    )
    parser.add_argument(
        "--checkpoint",
        nargs="+",
        default=["best"],
        metavar="NAME",
        help="models to score: best, last, average or step-N; several are compared (default: best)",
    )
    parser.add_argument("--data", metavar="DIR", help="where the corpus of the run is now, if it was moved")


def run(args: argparse.Namespace) -> None:
    doing(f"loading {args.run}")
    from cats.nmt.scoring.tables import checkpoints_table

    names = list(dict.fromkeys(args.checkpoint))
    scores = {name: score(Path(args.run), args.split, checkpoint=name, data=args.data) for name in names}
    if len(scores) > 1:
        print(f"\n{checkpoints_table(scores)}")


def score(path: Path, split: str, *, checkpoint: str = "best", data: str | None = None, quiet: bool = False) -> Scores:
    """Score a checkpoint, print its table and, for the test set, write the report. Return the scores.

    Args:
        data: the folder of the run's corpus, if it was moved.
    """
    from cats.nmt.scoring.evaluate import evaluate
    from cats.nmt.scoring.report import markdown
    from cats.nmt.scoring.tables import scores_table
    from cats.nmt.training.run import RunDirectory

    scores = evaluate(path, split=split, checkpoint=checkpoint, data=data, quiet=quiet)
    directory = RunDirectory(path)
    reported = split == "test" and directory.scores_file().exists()
    if reported:
        markdown.write(path)  # before anything is printed, which fails if nobody reads it
    if not quiet:
        print(f"\n{scores_table(scores)}\n\n{markdown.verdict(scores)}")
    if reported and not quiet and checkpoint == "best":
        tokenizer = directory.load_tokenizer(directory.read_config().tokenizer)
        print(f"\n{path}: report.md, loss.png, alpha.png, scores.json")
        print(f"Look at it: cats report {path}")
        print(f"Try it: {translate.example(path, list(scores.model.tasks), tokenizer)}")
    return scores
