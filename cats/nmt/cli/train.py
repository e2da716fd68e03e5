"""`cats train`: train a model, translate the test set, write scores, a report and pictures."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from cats.nmt.cli import translate
from cats.nmt.cli.evaluate import score
from cats.nmt.cli.options import add_settings, apply_options, base_config, require_trainer
from cats.nmt.cli.parser import Parser
from cats.nmt.config.checks import is_utf8, replace_settings
from cats.nmt.config.schema import Config
from cats.nmt.config.toml import describe
from cats.nmt.errors import Stopped, UserError, command
from cats.nmt.files import is_free
from cats.nmt.screen import announce, doing

if TYPE_CHECKING:
    from cats.nmt.training.run import RunDirectory

SUMMARY = "train a model and score it; without options: eight languages in about four minutes"
HELP = """\
Train one multilingual model, translate the test set, and write scores, a report and pictures.
Without --data it trains on phrases of the Unicode CLDR (English to eight languages; nothing is downloaded).

examples:
  cats train                                        CATS on the built-in corpus
  cats train --method temperature --temperature 5   the usual baseline: sampling with T = 5
  cats train --data my/corpus --set model.d_model=512 --set train.steps=50000
  cats train --data ted --preset ted                the model and the schedule of a paper
  cats train --config runs/NAME/config.toml         repeat a run
  cats train --resume runs/NAME                     continue after Ctrl-C or a crash, bit for bit
  cats train --init-from runs/NAME --data more      fine-tune the best model of a run
  torchrun --nproc-per-node 8 -m cats train ..      8 processes, one per GPU; --max-restarts survives their death
"""
EPILOG = """\
settings for --set and --config, with their defaults:
{settings}

The run directory contains config.toml, tokenizer.model, checkpoints/, metrics.jsonl, scores.json, scores.csv,
report.md, loss.png, alpha.png, hyp/ and, if TensorBoard is installed, tensorboard/. train.steps counts from the first
update, also after --resume. Exit status: 0, 2 after bad input (one line on standard error), or 130 after Ctrl-C.
"""

# Short options for frequent settings: {option: section.key}.
SHORT = {
    "method": "method.name",
    "temperature": "sampling.temperature",
    "steps": "train.steps",
    "seed": "train.seed",
    "evaluate": "evaluate.search",
}


def add_arguments(parser: Parser) -> None:
    default = Config()
    parser.add_argument(
        "--data",
        metavar="DIR",
        help="folder of a parallel corpus (default: the built-in corpus); with --resume: where the corpus is now",
    )
    parser.add_argument(
        "--method",
        metavar="NAME",
        help=f"how tasks are weighted or drawn; cats methods lists them (default: {default.method.name})",
    )
    parser.add_argument(
        "--temperature", metavar="T", help=f"sampling temperature (default: {default.sampling.temperature:g})"
    )
    parser.add_argument("--steps", metavar="N", help=f"number of updates of the model (default: {default.train.steps})")
    parser.add_argument(
        "--evaluate",
        metavar="{beam,greedy,none}",
        help="how the test set is translated at the end; none: only the validation loss (default: beam)",
    )
    parser.add_argument("--seed", metavar="S", help=f"random seed (default: {default.train.seed})")
    add_settings(parser)
    parser.add_argument(
        "--out",
        metavar="DIR",
        help="new run directory (default: runs/CORPUS-METHOD-seedN, or the same with -2, -3, .. if there is one)",
    )
    parser.add_argument("--resume", metavar="RUN", help="continue an interrupted run with its own settings")
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")
    parser.epilog = EPILOG.format(settings=describe())


def run(args: argparse.Namespace) -> None:
    require_trainer("training")
    begun = f"continuing {args.resume}" if args.resume else f"training{f' on {args.data}' if args.data else ''}"
    doing(f"{begun}; loading PyTorch", quiet=args.quiet)
    from cats.nmt.data.monolingual import language_of
    from cats.nmt.scoring.evaluate import NothingToScoreError
    from cats.nmt.training import processes
    from cats.nmt.training.run import RunDirectory
    from cats.nmt.training.trainer import train

    config, resume = (resumed(args), True) if args.resume else (configured(args), False)
    with processes.process_group():
        if resume:
            path = Path(args.resume)
        else:
            path = Path(processes.broadcast_text(str(new_run(args.out, config)) if processes.is_main() else ""))
            # The main process looks, because it is also the one that makes the directory.
            if processes.any_process(processes.is_main() and RunDirectory(path).is_started):
                config, resume = RunDirectory(path).read_config(), True
                if processes.is_main() and not args.quiet:
                    print(f"cats: started again by torchrun; continuing {path}", file=sys.stderr)
        corpus = config.data.path or "the built-in corpus"
        doing(f"reading {corpus}; the run {'is' if resume else 'will be'} in {path}", quiet=args.quiet)
        try:
            train(config, path, resume=resume, quiet=args.quiet)
        except Stopped:
            raise
        except KeyboardInterrupt:
            again = command("train", "--resume", path)
            what = f"to resume: {again}" if RunDirectory(path).is_started else "no run was made yet"
            announce(f"cats: stopped; {what}")
            raise Stopped from None
        try:
            if processes.is_main():
                trained = RunDirectory(path).task_names()
                modelling = trained and all(map(language_of, trained))  # there is no test text
                split = "valid" if config.evaluate.search == "none" or modelling else "test"
                score(path, split, quiet=args.quiet)
        except NothingToScoreError as error:  # the model is trained all the same
            if not args.quiet:
                tokenizer = RunDirectory(path).load_tokenizer(config.tokenizer)
                print(f"\n{path}: trained, and nothing is scored: {error}")
                print(f"Try it: {translate.example(path, trained, tokenizer)}")
        except KeyboardInterrupt:
            what = f"trained but not scored; to score it: {command('evaluate', path)}"
            print(f"cats: {what}", file=sys.stderr)
            raise Stopped from None


def resumed(args: argparse.Namespace) -> Config:
    """Return the configuration of the run to resume.

    Raises:
        UserError: options would change the configuration, or the directory is an exported model or no run at all.
    """
    from cats.nmt.training.run import RunDirectory

    for name in (*SHORT, "preset", "config", "out", "init_from", "overrides"):
        if getattr(args, name) is not None:
            option = "set" if name == "overrides" else name.replace("_", "-")
            change = ""
            if option in ("steps", "evaluate", "set"):
                what = SHORT.get(option, "settings that may change, such as train.steps,")
                change = f" and change {what} in {args.resume}/config.toml"
            raise UserError(f"--resume keeps the settings of the run: leave out --{option}{change}, or start a new run")
    directory = RunDirectory(Path(args.resume))
    config = directory.read_config()
    if directory.is_exported:
        raise UserError(
            f"{directory.path} is an exported model, which cannot be resumed; resume the run itself, or start a new "
            f"run from it with --init-from {directory.path}"
        )
    return config if args.data is None else replace_settings(config, {"data.path": args.data})


def configured(args: argparse.Namespace) -> Config:
    """Return the configuration of a new run. --set wins over short options, these over --config, that over --preset."""
    config = base_config(args)
    if args.data is not None:
        config = replace_settings(config, {"data.path": args.data})
    return apply_options(config, args, SHORT, args.overrides or [])


def _or_resume(directory: RunDirectory) -> str:
    """What may be done with a folder in place of a new run: to go on with the run in it, if there is one."""
    from cats.nmt.training.metrics import read_metrics

    if not directory.is_started or directory.is_exported:
        return ""
    try:
        steps = directory.read_config().train.steps
        done = max((record["step"] for record in read_metrics(directory.metrics_file)), default=0)
    except UserError:  # damaged, or the config.toml of another program
        return ""
    resume = command("train", "--resume", directory.path)
    if done < steps:
        return f", or resume it with: {resume}"
    return (
        f"; all {steps:,} updates of that run are done: to train it further, raise train.steps in "
        f"{directory.config_file}, then {resume}"
    )


def new_run(out: str | None, config: Config) -> Path:
    """Return the directory of a new run: `out`, which must be new or empty, or an unused name in runs/.

    If torchrun has restarted the processes, it is the directory that they made before.
    """
    from cats.nmt.training.run import RunDirectory

    if out is not None:
        path = Path(out)
        if not is_utf8(out):
            raise UserError(f"{out!r} is not valid UTF-8; choose another --out")
        if not is_free(path) and not RunDirectory(path).is_of_job(config):
            raise UserError(f"{path} exists already; choose another --out{_or_resume(RunDirectory(path))}")
        return path
    data = config.data
    corpus = Path(data.path).name if data.path else f"cldr-{data.languages}-{data.sizes}"
    default = config.sampling.temperature == Config().sampling.temperature
    temperature = "" if default else f"-T{config.sampling.temperature:g}"
    name = f"{corpus}-{config.method.name.replace(':', '-')}{temperature}-seed{config.train.seed}"
    path, count = Path("runs", name), 1
    while path.exists() and not RunDirectory(path).is_of_job(config):
        count += 1
        path = Path("runs", f"{name}-{count}")
    return path
