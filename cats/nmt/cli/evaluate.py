"""`cats evaluate`: translate and score a run's test set again."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cats.nmt.cli import translate
from cats.nmt.cli.parser import Parser
from cats.nmt.errors import UserError, command
from cats.nmt.files import is_free
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

Several runs with one vocabulary, such as those of other seeds, are scored as one model, as cats translate uses them.
Their scores and translations go to the folder --out, which cats significance compares with a run.

examples:
  cats evaluate runs/NAME
  cats evaluate runs/NAME --checkpoint best last average
  cats evaluate runs/SEED1 runs/SEED2 runs/SEED3 --out runs/ensemble
"""


def add_arguments(parser: Parser) -> None:
    parser.add_argument("runs", metavar="RUN", nargs="+", type=Path, help="run directory, as printed by cats train")
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
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for the scores of several runs as one model")


def run(args: argparse.Namespace) -> None:
    check_out(args.runs, args.out)
    doing(f"loading {', '.join(map(str, args.runs))}")
    from cats.nmt.scoring.tables import checkpoints_table

    names = list(dict.fromkeys(args.checkpoint))
    if args.out is None:
        scores = {name: score(args.runs[0], args.split, checkpoint=name, data=args.data) for name in names}
    else:
        scores = {name: score_together(args.runs, args.out, args.split, name, args.data) for name in names}
    if len(scores) > 1:
        print(f"\n{checkpoints_table(scores)}")


def check_out(runs: Sequence[Path], out: Path | None) -> None:
    """Raise `UserError` unless several runs that differ have a folder for their scores, in which nothing gets lost."""
    from cats.nmt.scoring.members import has_members

    if out is None:
        if len(runs) > 1:
            raise UserError("several runs are scored as one model; give a folder for its scores with --out")
        return
    if len(runs) == 1:
        raise UserError("--out is for several runs that are scored as one model; the scores of one run are kept in it")
    for number, path in enumerate(runs):
        if path.resolve() in (other.resolve() for other in runs[:number]):
            raise UserError(f"{path} is named twice; name runs that differ")
    if not is_free(out) and not has_members(out, runs):
        raise UserError(f"{out} exists already, and has not the scores of these runs; choose another --out")


def score_together(runs: Sequence[Path], out: Path, split: str, checkpoint: str, data: str | None) -> Scores:
    """Score several runs as one model, print its table and return its scores."""
    from cats.nmt.scoring.evaluate import evaluate
    from cats.nmt.scoring.report.markdown import verdict
    from cats.nmt.scoring.tables import scores_table

    scores = evaluate(runs[0], split=split, checkpoint=checkpoint, data=data, others=runs[1:], out=out)
    print(f"\n{scores_table(scores)}\n\n{verdict(scores)}")
    if (split, checkpoint) == ("test", "best"):
        print(f"\n{out}: scores.json, scores.csv, hyp/\nCompare it: {command('significance', runs[0], out)}")
    return scores


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
        print(f"Look at it: {command('report', path)}")
        print(f"Try it: {translate.example(path, list(scores.model.tasks), tokenizer)}")
    return scores
