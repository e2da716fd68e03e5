"""`cats translate`: translate standard input, a file or typed lines."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cats.nmt.cli.options import add_checkpoint, apply_options
from cats.nmt.cli.parser import Parser
from cats.nmt.config.schema import TYPES, Config, Decode
from cats.nmt.errors import UserError, command, nearest
from cats.nmt.files import line_blocks, output_file
from cats.nmt.screen import doing

if TYPE_CHECKING:
    from cats.nmt.data.tokenizer import Tokenizer
    from cats.nmt.model.decode import LengthLimit
    from cats.nmt.training.run import RunDirectory
    from cats.nmt.training.trained_model import TrainedModel

SUMMARY = "translate standard input, a file or typed lines with a trained model"
HELP = """\
Translate standard input or a file, one sentence per line, with a run or an exported model, or with several of them that
share a vocabulary, such as runs with other seeds: the next token then has the mean of their probabilities, and the
settings of the search are those of the first one.

examples:
  echo "Monday, 3 hours ago" | cats translate runs/NAME --to az
  cats translate runs/NAME --to ru --beam 1 < english.txt > russian.txt
  cats translate runs/NAME --to ru --input english.txt --output russian.txt --nbest 4
  cats translate runs/NAME --to ru --sample --top-p 0.9 --seed 7 < english.txt
  cats translate runs/NAME --to ru --interactive
  cats translate runs/SEED1 runs/SEED2 runs/SEED3 --to ru < english.txt
"""
BLOCK = 32  # maximum lines of a pipe per batch; larger batches delay the first output
FILE_BLOCK = 32 * BLOCK  # for files: nobody waits for single lines, and batches get lines of more similar length


def add_arguments(parser: Parser) -> None:
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="run directory, as printed by cats train, or an exported model"
    )
    parser.add_argument("--to", required=True, metavar="LANG", help="target language, such as az")
    parser.add_argument(
        "--from",
        dest="source",
        metavar="LANG",
        help="source language; required if the model distinguishes several source languages",
    )
    parser.add_argument("--input", metavar="FILE", help="read this file instead of standard input")
    parser.add_argument(
        "--output",
        metavar="FILE",
        help="write this file, after the last line is translated, instead of standard output",
    )
    parser.add_argument("--interactive", action="store_true", help="ask for lines and translate each of them")
    parser.add_argument("--beam", metavar="N", help="beam size; 1 is greedy search (default: that of the run)")
    parser.add_argument(
        "--length-penalty", metavar="X", help="above 0 favours longer translations (default: that of the run)"
    )
    parser.add_argument(
        "--penalty", metavar="{google,fairseq}", help="formula of the length penalty (default: that of the run)"
    )
    parser.add_argument(
        "--nbest", type=int, metavar="N", help="print N translations per line, as: line number, score, translation"
    )
    parser.add_argument(
        "--sample", action="store_const", const="true", help="draw translations at random instead of beam search"
    )
    parser.add_argument(
        "--temperature", metavar="T", help="with --sample: below 1 likelier, above 1 more varied translations"
    )
    parser.add_argument("--top-k", metavar="K", help="with --sample: only the K likeliest tokens")
    parser.add_argument(
        "--top-p", metavar="P", help="with --sample: only the likeliest tokens that together have probability P"
    )
    parser.add_argument("--seed", metavar="S", help="with --sample: random seed (default: 1)")
    add_checkpoint(parser)


def run(args: argparse.Namespace) -> None:
    check(args)
    doing(f"loading {', '.join(args.runs)}")
    from cats.nmt.model.decode import translations
    from cats.nmt.training.device import set_threads
    from cats.nmt.training.load_ensemble import load_together, together
    from cats.nmt.training.run import RunDirectory

    directories = [RunDirectory(Path(run)) for run in args.runs]
    trained = load_together([directory.path for directory in directories], args.checkpoint)
    for directory in directories:
        if diverged := directory.divergence():
            print(f"cats: {directory.path}: {diverged}; this is the model of {args.checkpoint}.pt", file=sys.stderr)
    config, tokenizer = trained[0].config, trained[0].tokenizer
    model = together(trained)
    source, *_ = [source_name(*each, args.source, args.to) for each in zip(directories, trained, strict=True)]
    search, limit = search_settings(args, config), length_limit(trained[0], source, args.to)
    set_threads(config.train.threads, config.model.d_model)

    def translated(lines: list[str], before: int) -> str:
        """Return the output for `lines`, which come after `before` other lines."""
        found = translations(
            model, tokenizer, lines, source, args.to, search, nbest=args.nbest or 1, lines_before=before, limit=limit
        )
        if args.nbest is None:
            return "".join(f"{best[0][0]}\n" for best in found)
        every = [(i, score, text) for i, best in enumerate(found, before + 1) for text, score in best]
        return "".join(f"{i}\t{score:.4f}\t{text}\n" for i, score, text in every)

    if args.interactive:
        for number, line in enumerate(typed_lines(f"{args.to}> ")):
            print(translated([line], number), end="", flush=True)
        return
    with contextlib.ExitStack() as files:
        lines_in = files.enter_context(open(args.input, "rb")) if args.input is not None else sys.stdin.buffer
        lines_out = files.enter_context(output_file(args.output)) if args.output is not None else sys.stdout.buffer
        before = 0
        for lines in line_blocks(lines_in, args.input or "standard input", FILE_BLOCK if args.input else BLOCK):
            lines_out.write(translated(lines, before).encode())
            lines_out.flush()
            before += len(lines)


def check(args: argparse.Namespace) -> None:
    """Raise `UserError` for options that are wrong with every run."""
    if args.interactive and (args.input is not None or args.output is not None or not sys.stdin.isatty()):
        raise UserError("--interactive needs a terminal, and no --input or --output")
    if args.nbest is not None and args.nbest < 1:
        raise UserError(f"--nbest must be at least 1, not {args.nbest}")


def search_settings(args: argparse.Namespace, config: Config) -> Decode:
    """Return the section decode of the run's configuration, changed by the options of the same names."""
    of_beam = [name for name in ("beam", "penalty", "length_penalty") if getattr(args, name) is not None]
    if args.sample and of_beam:
        option = f"--{of_beam[0].replace('_', '-')}"
        raise UserError(f"{option} is for beam search, not for translations drawn at random; leave out it or --sample")
    names = [name for name in vars(args) if f"decode.{name}" in TYPES]
    # Options of beam search ask for it, even if the run is set to sample.
    changes = ["decode.sample=false"] if of_beam else []
    search = apply_options(config, args, {name: f"decode.{name}" for name in names}, changes).decode
    for name in ("temperature", "top_k", "top_p", "seed"):
        if getattr(args, name) is not None and not search.sample:
            raise UserError(f"--{name.replace('_', '-')} is for translations drawn at random; add --sample")
    return search


def length_limit(trained: TrainedModel, source: str, target: str) -> LengthLimit | None:
    """Return how long translations may be in a direction. None: the model was not trained on it.

    Args:
        source: the tokenizer's name of the source language.
    """
    from cats.nmt.data.directions import direction, tokenizer_name

    tokenizer, origin = trained.tokenizer, trained.origin
    for task in origin.tasks:
        one, other = direction(task, set(tokenizer.languages))
        if (tokenizer_name(one, other, tokenizer), other) == (source, target):
            return origin.length_limit(task)
    return None


def source_name(directory: RunDirectory, trained: TrainedModel, source: str | None, target: str) -> str:
    """Return the tokenizer's name of the source language: `source` (of --from), or the only one for the target.

    Prints a warning if the run was not trained on the direction.

    Raises:
        UserError: the run does not know one of the languages, or needs --from to tell several sources apart.
    """
    from cats.nmt.data.corpus import ENGLISH
    from cats.nmt.data.directions import direction, source_languages, target_languages, tokenizer_name

    run, tokenizer = directory.path, trained.tokenizer
    tagged = set(tokenizer.languages)
    found = [direction(task, tagged) for task in directory.task_names(trained.origin)]
    directions = [(one, other) for one, other in found if one != other]  # without language modelling
    targets = target_languages(directions, tokenizer)
    if target not in targets:
        raise UserError(
            f"{run} does not translate to '{target}'{nearest(target, targets)}; known: {', '.join(targets)}"
        )
    known = list(dict.fromkeys(name for name, _ in directions))
    if source is None:
        sources = source_languages(directions, target)
        if tokenizer.needs_source and len(sources) > 1:
            raise UserError(f"give the language of the text with --from: {', '.join(sources)}")
        return tokenizer_name(sources[0], target, tokenizer)
    if source in ENGLISH and source not in known:
        source = ENGLISH[0]
    if known and source not in known:
        raise UserError(f"{run} does not translate from '{source}'{nearest(source, known)}; known: {', '.join(known)}")
    if known and (source, target) not in directions:
        print(f"cats: {run} was not trained to translate from {source} to {target}: zero-shot", file=sys.stderr)
    return tokenizer_name(source, target, tokenizer)


def typed_lines(prompt: str) -> Iterator[str]:
    """Ask for lines at the terminal and yield them until the end of input (Ctrl-D)."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  # gives input() the arrow keys and earlier lines
    while True:
        try:
            line = input(prompt)
            line.encode()  # a byte that is not UTF-8 arrives as a lone surrogate, which cannot be encoded
            yield line
        except EOFError:
            print()
            return
        except UnicodeError:
            print("cats: not UTF-8; type it again", file=sys.stderr)


def example(run: Path, tasks: Sequence[str], tokenizer: Tokenizer) -> str:
    """Return a command that translates with `run` in the direction of its first task."""
    from cats.nmt.data.directions import direction, source_languages

    directions = [direction(task, tokenizer.languages) for task in tasks] or [("", tokenizer.languages[0])]
    source, target = directions[0]
    ambiguous = tokenizer.needs_source and len(source_languages(directions, target)) > 1
    return command("translate", run, *(["--from", source] if ambiguous else []), "--to", target)
