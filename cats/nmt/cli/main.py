"""The command ``cats``. What a command needs is imported when it runs: help and errors come without waiting for it."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import errno
import io
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NoReturn

from cats.nmt.errors import UserError, nearest

if TYPE_CHECKING:
    from cats.nmt.config.schema import Config
    from cats.nmt.data.tokenizer import Tokenizer

MAIN_HELP = """\
Multilingual translation with Curvature Aware Task Scaling: train, score, translate, compare.

commands:
  train       train a model and score it: eight languages in about five minutes with no option at all
  evaluate    score a run again: BLEU, chrF and NLL per language, tables and pictures
  translate   translate standard input, a file or what you type with a trained model
  export      a trained model as a folder to pass on: safetensors, tokenizer, settings
  average     the mean of a run's newest models, often better than each
  significance  is one run better than another, or would other test lines have said otherwise?
  compare     several methods and seeds on one corpus, and one table
  data        write the built-in corpus, or look at any corpus
  info        versions, devices, backends, and what is missing for the rest

examples:
  cats train
  cats train --data my/corpus --method static --temperature 5 --steps 20000
  echo "Monday, 3 hours ago" | cats translate runs/NAME --to az

"cats COMMAND --help" says more.
"""

TRAIN_HELP = """\
Train one multilingual model, then translate the test set and write scores, a report and pictures.
Without --data it trains on phrases of the Unicode CLDR (English to eight languages; nothing is downloaded).

examples:
  cats train                                        CATS on the built-in corpus
  cats train --method static --temperature 5        the usual baseline: sampling with T = 5
  cats train --data my/corpus --set model.d_model=512 --set train.steps=50000
  cats train --data ted --preset ted                the model and the schedule of a paper
  cats train --config runs/NAME/config.toml         the same run again
  cats train --resume runs/NAME                     go on after Ctrl-C or a crash, bit for bit
  cats train --init-from runs/NAME --data more      fine-tune the best model of a run
  torchrun --nproc-per-node 8 -m cats train ..      with 8 processes, one for each GPU
"""

SETTINGS_HELP = """\
settings for --set and --config, with their defaults:
{settings}

The run directory holds config.toml, tokenizer.model, checkpoints/, metrics.jsonl, scores.json, scores.csv, report.md,
loss.png, alpha.png, hyp/ and, where TensorBoard is installed, tensorboard/. train.steps counts from the first update,
also after --resume. Exit status: 0, 2 after bad input (one line on standard error), 130 after Ctrl-C.
"""

EVALUATE_HELP = """\
Translate and score the test set of a run with its best checkpoint; write scores.json, scores.csv, report.md and the
pictures again. Its hyp/ holds each task's translations, sources and references, a file each, for other scorers:
  comet-score -s RUN/hyp/test.az.src -t RUN/hyp/test.az.txt -r RUN/hyp/test.az.ref
With another split or checkpoint only its scores and translations are written; scores of other checkpoints than the best
stand beside those in report.md.
"""

TRANSLATE_HELP = """\
Translate standard input or a file, a sentence per line, with a run or an exported model.

examples:
  echo "Monday, 3 hours ago" | cats translate runs/NAME --to az
  cats translate runs/NAME --to ru --beam 1 < english.txt > russian.txt
  cats translate runs/NAME --to ru --input english.txt --output russian.txt --nbest 4
  cats translate runs/NAME --to ru --sample --top-p 0.9 --seed 7 < english.txt
  cats translate runs/NAME --to ru --interactive
"""

EXPORT_HELP = """\
Write the model of a run to a folder to pass on: model.safetensors, tokenizer.model and config.toml.

examples:
  cats export runs/NAME my-model
  echo "Monday, 3 hours ago" | cats translate my-model --to az
"""

AVERAGE_HELP = """\
Write checkpoints/average.pt: the mean of the parameters of a run's newest models, kept while it trained with
--set train.keep=N, or of the checkpoints that are given.

examples:
  cats average runs/NAME --last 5
  cats evaluate runs/NAME --checkpoint average
"""

SIGNIFICANCE_HELP = """\
Test whether run B is better than run A: paired bootstrap resampling and approximate randomisation of BLEU and chrF,
per language and for the group averages, on the translations that cats evaluate left in their folders.
p-values are two-sided, and not corrected for how many there are.

examples:
  cats significance runs/BASELINE runs/NEW
"""

COMPARE_HELP = """\
Train several methods with several seeds on the same corpora and budget, and write one table and one picture.
Killed or stopped, the same command goes on where it was.
"""

CLDR_HELP = """\
Write the built-in corpus as parallel text, to look at or to train something else on: phrases of the Unicode CLDR,
English to each language of a set.
"""

INSPECT_HELP = """\
Show which tasks a folder of parallel text holds: pairs, lengths, imbalance, and what was left out on reading, and why.

{layouts}
"""

PREPARE_HELP = """\
Train the tokenizer and turn text into tokens, once, with several processes, into a folder that can be trained on here
or elsewhere. Killed or stopped, the same command goes on where it was. Training on a large folder of text does the same
by itself, into $CATS_CACHE or the cache folder of the user.

examples:
  cats data prepare my/corpus --out prepared --preset base
  cats train --data prepared --preset base
"""

INFO_HELP = """\
Show versions, devices, the backends of the operators with the reason where one cannot be used, and missing extras.
"""

DATA_HELP = """\
Look at corpora and write the built-in one.

commands:
  data cldr      write the built-in corpus as parallel text: train.en-xx.en, train.en-xx.xx, ...
  data inspect   how many pairs of which languages a folder holds, and what is left out
  data prepare   turn text into tokens, once, for training

"cats data COMMAND --help" says more.
"""

# Options that have a name of their own -> the setting they stand for.
SHORTHANDS = {
    "method": "method.name",
    "temperature": "sampling.temperature",
    "steps": "train.steps",
    "seed": "train.seed",
}
BLOCK = 32  # lines translated at a time, at most


class Parser(argparse.ArgumentParser):
    """Reports misuse as `UserError` and keeps the line breaks of its texts."""

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(
            prog=prog,
            description=description,
            formatter_class=partial(argparse.RawDescriptionHelpFormatter, max_help_position=28, width=110),
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {self.prog} --help")

    def parse(self, arguments: Sequence[str]) -> argparse.Namespace:
        """The parsed arguments; an unknown option is named with the nearest known one."""
        for argument in arguments:
            option = argument.partition("=")[0]
            if option == "--":
                break
            if option.startswith("--") and option not in self._option_string_actions:
                self.error(f"unknown option '{option}'{nearest(option, self._option_string_actions)}")
        known, unknown = self.parse_known_args(arguments)
        for argument in unknown:
            kind = "unknown option" if argument.startswith("-") else "unexpected argument"
            self.error(f"{kind} '{argument}'")
        return known


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Returns:
        The exit status: 0, 2 after bad input or misuse, 130 after Ctrl-C, 141 when nobody reads the output any more.
    """
    _open_streams()
    try:
        status = _run(sys.argv[1:] if arguments is None else list(arguments))
        sys.stdout.flush()
        return status
    except UserError as error:
        return _complain(str(error))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # As after "| head". The interpreter flushes once more at exit, and that must not complain either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return _complain(f"{where}the disk is full; free some space and start again")
        if not where:
            raise
        return _complain(f"{where}{error.strerror}")
    except ModuleNotFoundError as error:
        from cats.info import EXTRAS

        extra = next((name for name, modules in EXTRAS.items() if error.name in modules), None)
        if extra is None:
            raise
        return _complain(f"this needs {error.name}; install it with: pip install 'cats-optim[{extra}]'")


def _open_streams() -> None:
    """Standard streams that the caller closed read and write nothing; what a locale cannot show is shown escaped."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _complain(message: str) -> int:
    print(f"cats: {message}", file=sys.stderr)
    return 2


def _run(arguments: list[str]) -> int:
    """Finds the command, parses its options, runs it; asked for nothing, it prints what could be asked for."""
    name, rest = (arguments[0] if arguments else ""), arguments[1:]
    if name == "--version":
        from cats import __version__

        print(f"cats {__version__}")
        return 0
    text, commands, prog = MAIN_HELP, COMMANDS, "cats"
    if name == "data":
        name, rest = (rest[0] if rest else ""), rest[1:]
        text, commands, prog = DATA_HELP, DATA_COMMANDS, "cats data"
    if name in ("", "-h", "--help"):
        print(text, end="")
        return 0 if name else 2
    if name not in commands:
        known = [*commands, *(["data"] if commands is COMMANDS else [])]
        kind = "option" if name.startswith("-") else "command"
        raise UserError(f"unknown {kind} '{name}'{nearest(name, known)}; see {prog} --help")
    description, add_arguments, run = commands[name]
    parser = Parser(f"{prog} {name}", description)
    add_arguments(parser)
    run(parser.parse(rest))
    return 0


def _train_arguments(parser: Parser) -> None:
    from cats.nmt.config.schema import Config
    from cats.nmt.config.toml import describe

    default = Config()
    parser.add_argument("--data", metavar="DIR", help="folder of a parallel corpus (default: the built-in one)")
    parser.add_argument("--method", metavar="{cats,static}", help=f"default: {default.method.name}")
    parser.add_argument(
        "--temperature", metavar="T", help=f"of the sampling (default: {default.sampling.temperature:g})"
    )
    parser.add_argument("--steps", metavar="N", help=f"updates of the model (default: {default.train.steps})")
    parser.add_argument("--seed", metavar="S", help=f"default: {default.train.seed}")
    _settings_arguments(parser)
    parser.add_argument("--out", metavar="DIR", help="new run directory (default: runs/CORPUS-METHOD-SEED)")
    parser.add_argument("--resume", metavar="RUN", help="go on with an interrupted run, with the settings it has")
    parser.add_argument("--quiet", action="store_true", help="say nothing but errors")
    parser.epilog = SETTINGS_HELP.format(settings=describe())


def _settings_arguments(parser: Parser) -> None:
    from cats.nmt.config.toml import presets

    parser.add_argument(
        "--preset", metavar="NAME", help=f"settings of {', '.join(presets())}; a --config and options win"
    )
    parser.add_argument("--config", metavar="FILE", help="TOML file of settings; options given beside it win")
    parser.add_argument("--set", dest="overrides", action="append", metavar="SECTION.KEY=VALUE", help="any setting")
    parser.add_argument("--init-from", metavar="RUN", help="start from the best model of a run, and with its shape")


def _train(args: argparse.Namespace) -> None:
    from cats.info import missing

    if packages := missing("nmt"):
        raise UserError(f"training needs {', '.join(packages)}; install with: pip install 'cats-optim[nmt]'")
    from cats.nmt.training import processes
    from cats.nmt.training.run import RunDirectory
    from cats.nmt.training.trainer import train

    if args.resume:
        given = [
            name
            for name in (*SHORTHANDS, "data", "preset", "config", "out", "init_from", "overrides")
            if getattr(args, name) is not None
        ]
        if given:
            option = "set" if given[0] == "overrides" else given[0].replace("_", "-")
            raise UserError(f"--resume keeps the settings of the run: leave out --{option}, or start a new run")
        run = Path(args.resume)
        config = RunDirectory(run).read_config()
        if RunDirectory(run).is_exported:
            raise UserError(f"{run} is an exported model, which cannot be trained further; go on with the run itself")
    else:
        config = _configured(args)
    with processes.process_group():
        if not args.resume:
            run = Path(processes.broadcast_text(str(_new_run(args.out, config)) if processes.is_main() else ""))
        train(config, run, resume=bool(args.resume), quiet=args.quiet)
        try:
            if processes.is_main():
                _score(run, "test", args.quiet)
        except KeyboardInterrupt:
            print(f"cats: trained but not scored; to go on: cats evaluate {run}", file=sys.stderr)
            raise


def _configured(args: argparse.Namespace) -> Config:
    """The settings that `cats train` was given: --preset, --config, the options with names of their own, --set."""
    from cats.nmt.config.schema import replace_settings
    from cats.nmt.config.toml import apply_overrides

    config = _base(args)
    if args.data is not None:
        config = replace_settings(config, {"data.path": args.data})
    named = [
        f"{setting}={getattr(args, name)}" for name, setting in SHORTHANDS.items() if getattr(args, name) is not None
    ]
    return apply_overrides(config, [*named, *(args.overrides or [])])


def _base(args: argparse.Namespace) -> Config:
    """The settings of --preset and --config, or else the shape of --init-from."""
    from cats.nmt.config.schema import replace_settings
    from cats.nmt.config.toml import read_run_config, read_settings

    config = read_settings(args.preset, args.config)
    if args.init_from is None:
        return config
    there = read_run_config(Path(args.init_from))
    if not args.config and args.preset is None:
        config = dataclasses.replace(config, model=there.model, tokenizer=there.tokenizer)
    return replace_settings(config, {"train.init_from": args.init_from})


def _new_run(out: str | None, config: Config) -> Path:
    """The directory of a new run: ``out``, which must be new or empty, or a free name under runs/."""
    from cats.nmt.config.schema import Config, is_utf8

    if out is not None:
        run = Path(out)
        if not is_utf8(out):
            raise UserError(f"{out!r} is not valid UTF-8; choose another --out")
        if run.exists() and not (run.is_dir() and not any(run.iterdir())):
            go_on = f", or go on with: cats train --resume {run}" if (run / "config.toml").is_file() else ""
            raise UserError(f"{run} exists already; choose another --out{go_on}")
        return run
    data = config.data
    corpus = Path(data.path).name if data.path else f"cldr-{data.languages}-{data.sizes}"
    usual = config.sampling.temperature == Config().sampling.temperature
    temperature = "" if usual else f"-T{config.sampling.temperature:g}"
    name = f"{corpus}-{config.method.name}{temperature}-seed{config.train.seed}"
    run, count = Path("runs", name), 1
    while run.exists():
        count += 1
        run = Path("runs", f"{name}-{count}")
    return run


def _score(run: Path, split: str, quiet: bool, checkpoint: str = "best") -> dict[str, Any]:
    """Evaluates a run, writes its report and prints the table."""
    from cats.nmt.scoring import report, tables
    from cats.nmt.scoring.evaluate import evaluate
    from cats.nmt.training.run import RunDirectory

    scores = evaluate(run, split=split, checkpoint=checkpoint, quiet=quiet)
    if not quiet:
        print(f"\n{tables.scores_table(scores)}\n\n{report.verdict(scores)}")
    if split == "test" and RunDirectory(run).scores_file().exists():
        report.write(run)
        if not quiet and checkpoint == "best":
            directory = RunDirectory(run)
            tokenizer = directory.load_tokenizer(directory.read_config().tokenizer)
            print(f"\n{run}: report.md, loss.png, alpha.png, scores.json")
            print(f"Try it: cats translate {run} {_direction(list(scores['languages']), tokenizer)}")
    return scores


def _evaluate_arguments(parser: Parser) -> None:
    parser.add_argument("run", metavar="RUN", help="run directory, as cats train prints it")
    parser.add_argument("--split", default="test", metavar="{test,valid,train}", help="default: test")
    parser.add_argument(
        "--checkpoint",
        nargs="+",
        default=["best"],
        metavar="NAME",
        help="best, last, average or step-N, or several to be compared (default: best)",
    )


def _evaluate(args: argparse.Namespace) -> None:
    from cats.nmt.scoring import tables

    names = list(dict.fromkeys(args.checkpoint))
    scores = {name: _score(Path(args.run), args.split, quiet=False, checkpoint=name) for name in names}
    if len(scores) > 1:
        print(f"\n{tables.checkpoints_table(scores)}")


def _checkpoint_argument(parser: Parser) -> None:
    parser.add_argument(
        "--checkpoint", default="best", metavar="NAME", help="best, last, average or step-N (default: best)"
    )


def _translate_arguments(parser: Parser) -> None:
    parser.add_argument("run", metavar="RUN", help="run directory, as cats train prints it, or an exported model")
    parser.add_argument("--to", required=True, metavar="LANG", help="target language, such as az")
    parser.add_argument(
        "--from",
        dest="source",
        metavar="LANG",
        help="source language; checked, and needed where the run has several that it tells apart",
    )
    parser.add_argument("--input", metavar="FILE", help="read this file instead of standard input")
    parser.add_argument(
        "--output", metavar="FILE", help="write this file, when all is done, instead of standard output"
    )
    parser.add_argument("--interactive", action="store_true", help="ask for a line, translate it, and so on")
    parser.add_argument("--beam", metavar="N", help="beam size; 1 is greedy search (default: that of the run)")
    parser.add_argument("--length-penalty", metavar="X", help="above 0 favours longer ones (default: the run's)")
    parser.add_argument("--penalty", metavar="{google,fairseq}", help="its formula (default: the run's)")
    parser.add_argument("--nbest", type=int, metavar="N", help="so many per line, as: line number, score, translation")
    parser.add_argument("--sample", action="store_const", const="true", help="draw them at random: no beam search")
    parser.add_argument("--temperature", metavar="T", help="--sample: below 1 likelier, above 1 more varied")
    parser.add_argument("--top-k", metavar="K", help="--sample: only from the K likeliest tokens")
    parser.add_argument("--top-p", metavar="P", help="--sample: only from the likeliest tokens of probability P")
    parser.add_argument("--seed", metavar="S", help="--sample: of the draws (default: 1)")
    _checkpoint_argument(parser)


def _translate(args: argparse.Namespace) -> None:
    from cats.nmt.config.schema import TYPES
    from cats.nmt.config.toml import apply_overrides
    from cats.nmt.files import atomic_file
    from cats.nmt.model import decode
    from cats.nmt.training.run import RunDirectory, set_threads

    if args.interactive and (args.input or args.output or not sys.stdin.isatty()):
        raise UserError("--interactive is for a terminal, without --input and --output")
    if args.output and not Path(args.output).resolve().parent.is_dir():
        raise UserError(f"{args.output}: its folder is not there; make it, or choose another --output")
    if args.nbest is not None and args.nbest < 1:
        raise UserError(f"--nbest must be at least 1, not {args.nbest}")
    run = RunDirectory(Path(args.run))
    trained = run.load_model(args.checkpoint)
    config, tokenizer, model = trained.config, trained.tokenizer, trained.model
    pairs = [_languages(name, tokenizer.languages) for name in run.task_names()]
    targets = _targets(pairs, tokenizer)
    if args.to not in targets:
        known = ", ".join(targets)
        raise UserError(f"{args.run} does not translate to '{args.to}'{nearest(args.to, targets)}: {known}")
    from_ = _source_language(args.run, args.source, args.to, pairs, tokenizer)
    names = [name for name in vars(args) if f"decode.{name}" in TYPES and getattr(args, name) is not None]
    given = [f"decode.{name}={getattr(args, name)}" for name in names]
    if "sample" not in names and {"beam", "penalty", "length_penalty"}.intersection(names):
        given.append("decode.sample=false")  # a search is asked for, whatever the run does by itself
    search = apply_overrides(config, given).decode
    for name in ("temperature", "top_k", "top_p", "seed"):
        if name in names and not search.sample:
            raise UserError(f"--{name.replace('_', '-')} is for translations drawn at random: add --sample")
    set_threads(config.train.threads, config.model.d_model)

    def translated(lines: list[str], before: int) -> str:
        found = decode.translations(
            model,
            tokenizer,
            lines,
            from_,
            args.to,
            **dataclasses.asdict(search),
            nbest=args.nbest or 1,
            before=before,
        )
        if args.nbest is None:
            return "".join(f"{best[0][0]}\n" for best in found)
        every = [(i, score, text) for i, best in enumerate(found, before + 1) for text, score in best]
        return "".join(f"{i}\t{score:.4f}\t{text}\n" for i, score, text in every)

    if args.interactive:
        for number, line in enumerate(_asked(f"{args.to}> ")):
            print(translated([line], number), end="", flush=True)
        return
    with contextlib.ExitStack() as files:
        # A file is there at once: more of it at a time means batches of like lengths.
        most = BLOCK * 32 if args.input else BLOCK
        source = files.enter_context(open(args.input, "rb")) if args.input else sys.stdin.buffer
        target = files.enter_context(atomic_file(args.output)) if args.output else sys.stdout.buffer
        before = 0
        for lines in _blocks(source, args.input or "standard input", most):
            target.write(translated(lines, before).encode())
            target.flush()
            before += len(lines)


def _languages(task: str, targets: list[str]) -> tuple[str, str]:
    """Source and target of a task, which is called by its target if its source is English, else source-target.

    Both may have hyphens, so the known targets tell where one ends.
    """
    from cats.nmt.data.corpus import ENGLISH

    if task in targets:
        return ENGLISH[0], task
    target = max((t for t in targets if task.endswith(f"-{t}")), key=len, default=task.rpartition("-")[2])
    return task.removesuffix(f"-{target}"), target


def _source_language(
    run: str, source: str | None, target: str, pairs: list[tuple[str, str]], tokenizer: Tokenizer
) -> str:
    """The source language by the name that the tokenizer has for it; one that is not given is told from the tasks.

    Refuses a source language that a run does not know, and tells of a direction that it was not trained on.
    """
    from cats.nmt.data.corpus import ENGLISH

    known = list(dict.fromkeys(first for first, _ in pairs))
    if source is not None:
        source = ENGLISH[0] if source in ENGLISH and source not in known else source
        if known and source not in known:
            raise UserError(f"{run} does not translate from '{source}'{nearest(source, known)}: {', '.join(known)}")
        if known and (source, target) not in pairs:
            print(f"cats: {run} was not trained to translate from {source} to {target}: zero-shot", file=sys.stderr)
    else:
        fitting = [first for first, second in pairs if second == target] or known or [ENGLISH[0]]
        if tokenizer.needs_source and len(fitting) > 1:
            raise UserError(f"say which language the text is in, with --from: {', '.join(fitting)}")
        source = fitting[0]
    names = ENGLISH if source == ENGLISH[0] else (source,)
    return next((name for name in names if tokenizer.translates(name, target)), source)


def _targets(pairs: list[tuple[str, str]], tokenizer: Tokenizer) -> list[str]:
    """The languages that a run translates into; where sources are tagged, a tag alone does not tell."""
    if not pairs or tokenizer.tags.of == "target":
        return tokenizer.languages
    return list(dict.fromkeys(second for _, second in pairs))


def _direction(tasks: list[str], tokenizer: Tokenizer) -> str:
    """The options with which `cats translate` takes the first task's direction."""
    pairs = [_languages(name, tokenizer.languages) for name in tasks] or [("", tokenizer.languages[0])]
    source, target = pairs[0]
    several = tokenizer.needs_source and len([first for first, second in pairs if second == target]) > 1
    return f"--from {source} --to {target}" if several else f"--to {target}"


def _asked(prompt: str) -> Iterator[str]:
    """The lines that are typed, until the end of input (Ctrl-D)."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  # arrow keys and earlier lines
    while True:
        try:
            line = input(prompt)
            line.encode()  # a byte that is not UTF-8 may come as half of a surrogate pair
            yield line
        except EOFError:
            print()
            return
        except UnicodeError:
            print("cats: not UTF-8; type it again", file=sys.stderr)


def _blocks(stream: IO[bytes], name: str = "standard input", most: int = BLOCK) -> Iterator[list[str]]:
    """The lines of a stream as they come: `most` at a time, or fewer where no more are there yet."""
    count, rest, block = 0, b"", list[str]()
    while True:
        chunk = stream.read1(1 << 16)  # type: ignore[attr-defined]
        *lines, rest = (rest + chunk).split(b"\n")
        if not chunk and rest:
            lines = [rest]
        for line in lines:
            count += 1
            try:
                text = line.decode().removesuffix("\r")
            except UnicodeDecodeError as error:
                if block:
                    yield block
                where = f"{name}, line {count}, byte {error.start + 1}"
                raise UserError(f"{where}: not UTF-8; convert it, for example with iconv") from None
            block.append(text.removeprefix("\ufeff") if count == 1 else text)
            if len(block) == most:
                yield block
                block = []
        if block:
            yield block
            block = []
        if not chunk:
            return


def _cldr_arguments(parser: Parser) -> None:
    from cats.nmt.config.schema import Data

    default = Data()
    parser.add_argument("--out", required=True, metavar="DIR", help="new or empty folder to write to")
    parser.add_argument("--languages", metavar="{related,diverse,wmt}", help=f"default: {default.languages}")
    parser.add_argument("--sizes", metavar="{ted,wmt}", help=f"training pairs per language (default: {default.sizes})")
    parser.add_argument("--seed", metavar="S", help=f"default: {default.seed}")


def _cldr(args: argparse.Namespace) -> None:
    from cats.nmt.config.schema import Config
    from cats.nmt.config.toml import apply_overrides
    from cats.nmt.data.corpus import write_corpus

    names = ("languages", "sizes", "seed")
    given = [f"data.{name}={getattr(args, name)}" for name in names if getattr(args, name) is not None]
    data = apply_overrides(Config(), given).data
    out = Path(args.out)
    if out.is_dir() and any(out.iterdir()):
        raise UserError(f"{out} is not empty; choose another --out")
    from cats.nmt.data.cldr.generate import generate

    corpus = generate(data.languages, data.sizes, data.seed)
    write_corpus(corpus, out)
    pairs = ", ".join(f"{name} {size:,}" for name, size in corpus.sizes.items())
    print(f"{out}: training pairs {pairs}\nTrain on it: cats train --data {out}")


def _inspect_arguments(parser: Parser) -> None:
    from cats.nmt.data import layouts

    _corpus_arguments(parser)
    parser.description = INSPECT_HELP.format(
        layouts=str(layouts.__doc__).partition("\n\n")[2].strip("\n").replace("``", "")
    )


def _corpus_arguments(parser: Parser) -> None:
    parser.add_argument("dir", metavar="DIR", help="folder of parallel text")
    parser.add_argument("--source", metavar="LANG", help="the language all tasks have in common (default: en)")
    parser.add_argument("--direction", metavar="{one-to-many,many-to-one,many-to-many}", help="default: one-to-many")


def _corpus_config(args: argparse.Namespace, base: Config) -> Config:
    from cats.nmt.config.schema import replace_settings
    from cats.nmt.config.toml import apply_overrides

    named = [f"data.{name}={value}" for name in ("source", "direction") if (value := getattr(args, name)) is not None]
    config = replace_settings(base, {"data.path": args.dir})
    return apply_overrides(config, [*named, *(getattr(args, "overrides", None) or [])])


def _inspect(args: argparse.Namespace) -> None:
    import math

    from cats.nmt.config.schema import Config
    from cats.nmt.data.corpus import SPLITS
    from cats.nmt.scoring.tables import TITLES, aligned
    from cats.nmt.training.run import load_corpus

    corpus = load_corpus(_corpus_config(args, Config()).data)
    rows = [["task", "group", *SPLITS, "characters/line", "longest"]]
    for task in sorted(corpus.tasks, key=lambda task: (len(task.train), task.name)):
        group = TITLES["lores" if task.name in corpus.groups["lores"] else "hires"]
        counts = [f"{len(getattr(task, split)):,}" for split in SPLITS]
        characters = longest = 0
        for pair in task.train if task.train.readable else ():
            characters += len(pair[1])
            longest = max(longest, *map(len, pair))
        lengths = [f"{characters / len(task.train):.1f}", f"{longest:,}"] if characters else ["", ""]
        rows.append([task.name, group, *counts, *lengths])
    rows += [[task.name, "zero-shot", "", "", f"{len(task.test):,}", "", ""] for task in corpus.zero_shot]
    print(aligned(rows, left=2))
    total = sum(corpus.sizes.values())
    entropy = -sum(size / total * math.log(size / total) for size in corpus.sizes.values())
    even = math.log(len(corpus.sizes))
    print(f"\n{total:,} training pairs; entropy of their distribution {entropy:.2f} nats, of an even one {even:.2f}")
    for notice in corpus.notices:
        print(notice)


def _prepare_arguments(parser: Parser) -> None:
    _corpus_arguments(parser)
    parser.add_argument("--out", required=True, metavar="DIR", help="new folder, or one that was left unfinished")
    parser.add_argument("--processes", type=int, default=0, metavar="N", help="that encode (default: one a core)")
    _settings_arguments(parser)


def _prepare(args: argparse.Namespace) -> None:
    from cats.info import missing

    if packages := missing("nmt"):
        raise UserError(f"preparing needs {', '.join(packages)}; install with: pip install 'cats-optim[nmt]'")
    from cats.nmt.data import prepare
    from cats.nmt.training import warmstart
    from cats.nmt.training.run import load_corpus

    if args.processes < 0:
        raise UserError(f"--processes must be at least 0, not {args.processes}")
    config, out = _corpus_config(args, _base(args)), Path(args.out)
    corpus = load_corpus(config.data)
    try:
        tokenizer = warmstart.tokenizer(corpus, config)
        prepare.prepare(corpus, config, out, tokenizer=tokenizer, processes=args.processes)
    except KeyboardInterrupt:
        print("cats: stopped; the same command goes on from here", file=sys.stderr)
        raise
    found = prepare.load(out, config)
    for task, shard in found.shards.items():
        reasons = "".join(f", {count:,} {reason}" for reason, count in found.left_out.get(task, {}).items())
        print(f"{task}: {len(shard):,} pairs, {len(shard.tokens):,} tokens{reasons}")
    for notice in corpus.notices:
        print(notice)
    names = [name for name in ("preset", "config", "init_from") if getattr(args, name)]
    given = "".join(f" --{name.replace('_', '-')} {getattr(args, name)}" for name in names)
    given += "".join(f" --set {override}" for override in args.overrides or [])
    print(f"Train on it: cats train --data {out}{given}")


def _average_arguments(parser: Parser) -> None:
    parser.add_argument("run", metavar="RUN", help="run directory, as cats train prints it")
    parser.add_argument("--last", type=int, metavar="N", help="so many of the newest that are kept (default: all)")
    parser.add_argument("--checkpoints", nargs="+", metavar="FILE", help="these instead, such as best.pt of some runs")


def _average(args: argparse.Namespace) -> None:
    from cats.nmt.training import checkpoint
    from cats.nmt.training.run import RunDirectory

    run = RunDirectory(Path(args.run))
    if not run.checkpoints.is_dir():
        raise UserError(f"{args.run} is no run directory: it holds no checkpoints")
    paths = [Path(file) for file in args.checkpoints or ()] or run.kept_checkpoints()
    if args.last is not None:
        if args.checkpoints:
            raise UserError("--last is for the models that the run has kept: leave it out, or --checkpoints")
        if not 1 <= args.last <= max(1, len(paths)):
            raise UserError(f"--last {args.last}: {args.run} has kept {len(paths)} models")
        paths = paths[-args.last :]
    if not paths:
        raise UserError(f"{args.run} has kept no models: train with --set train.keep=5, or give --checkpoints")
    average = run.checkpoint("average")
    checkpoint.save(average, checkpoint.average(paths))
    print(f"{average}: the mean of {', '.join(path.name for path in paths)}")


def _export_arguments(parser: Parser) -> None:
    parser.add_argument("run", metavar="RUN", help="run directory, as cats train prints it")
    parser.add_argument("dir", metavar="DIR", help="new or empty folder to write to")
    _checkpoint_argument(parser)


def _export(args: argparse.Namespace) -> None:
    from cats.nmt.training import export
    from cats.nmt.training.run import RunDirectory

    run, out = RunDirectory(Path(args.run)), Path(args.dir)
    trained = run.load_model(args.checkpoint)
    export.write(out, trained, run.task_names())
    print(f"{out}: {', '.join(sorted(path.name for path in out.iterdir()))}")
    print(f"Try it: cats translate {out} {_direction(RunDirectory(out).task_names(), trained.tokenizer)}")


def _significance_arguments(parser: Parser) -> None:
    parser.add_argument("first", metavar="RUN_A", help="run directory, evaluated")
    parser.add_argument("second", metavar="RUN_B", help="another one, on the same test lines")
    parser.add_argument("--seed", type=int, default=1, metavar="S", help="of the random draws (default: 1)")
    parser.add_argument("--out", metavar="FILE", help="write the numbers as JSON too")


def _significance(args: argparse.Namespace) -> None:
    import json

    from cats.nmt.files import atomic_write
    from cats.nmt.scoring import significance

    if args.seed < 0:
        raise UserError(f"--seed must be at least 0, not {args.seed}")
    rows = significance.compare(Path(args.first), Path(args.second), args.seed)
    if lone := significance.unshared(Path(args.first), Path(args.second)):
        print(f"cats: left out, tasks of one run only: {', '.join(lone)}", file=sys.stderr)
    if args.out:
        found = {"first": args.first, "second": args.second, "seed": args.seed, "tests": rows}
        atomic_write(args.out, json.dumps(found, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    print(f"A = {args.first}\nB = {args.second}\n\n{significance.table(rows)}")


def _compare_arguments(parser: Parser) -> None:
    from cats.nmt.scoring import compare

    compare.add_arguments(parser)


def _compare(args: argparse.Namespace) -> None:
    from cats.nmt.scoring import compare

    compare.main(args)


def _info(_args: argparse.Namespace) -> None:
    from cats.info import describe

    print(describe())


Command = tuple[str, Callable[[Parser], None], Callable[[argparse.Namespace], None]]  # description, options, action
COMMANDS: dict[str, Command] = {
    "train": (TRAIN_HELP, _train_arguments, _train),
    "evaluate": (EVALUATE_HELP, _evaluate_arguments, _evaluate),
    "translate": (TRANSLATE_HELP, _translate_arguments, _translate),
    "average": (AVERAGE_HELP, _average_arguments, _average),
    "export": (EXPORT_HELP, _export_arguments, _export),
    "significance": (SIGNIFICANCE_HELP, _significance_arguments, _significance),
    "compare": (COMPARE_HELP, _compare_arguments, _compare),
    "info": (INFO_HELP, lambda parser: None, _info),
}
DATA_COMMANDS: dict[str, Command] = {
    "cldr": (CLDR_HELP, _cldr_arguments, _cldr),
    "inspect": (INSPECT_HELP, _inspect_arguments, _inspect),
    "prepare": (PREPARE_HELP, _prepare_arguments, _prepare),
}
