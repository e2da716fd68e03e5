"""Options that several commands share, and the configuration that they set."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterable
from pathlib import Path

from cats import info
from cats.extras import install
from cats.nmt.cli.parser import Parser
from cats.nmt.config.checks import replace_settings
from cats.nmt.config.schema import Config
from cats.nmt.config.toml import apply_overrides, presets, read_settings
from cats.nmt.errors import UserError


def add_settings(parser: Parser) -> None:
    """Add --preset, --config, --set and --init-from."""
    parser.add_argument(
        "--preset",
        metavar="NAME",
        help=f"settings to start from: {', '.join(presets())}; --config and other options win over them",
    )
    parser.add_argument("--config", metavar="FILE", help="TOML file of settings; other options win over it")
    parser.add_argument(
        "--set", dest="overrides", action="append", metavar="SECTION.KEY=VALUE", help="change any setting"
    )
    parser.add_argument(
        "--init-from", metavar="RUN", help="start from the best model of another run, with its model settings"
    )


def base_config(args: argparse.Namespace) -> Config:
    """Return the settings of --preset and --config. If only --init-from is given, the model settings are the run's."""
    config = read_settings(args.preset, args.config)
    if args.init_from is None:
        return config
    from cats.nmt.training.run import RunDirectory  # imported here because it is slow to import

    other = RunDirectory(Path(args.init_from)).read_config()
    if not args.config and args.preset is None:
        config = dataclasses.replace(config, model=other.model, tokenizer=other.tokenizer)
    return replace_settings(config, {"train.init_from": args.init_from})


def add_corpus(parser: Parser) -> None:
    """Add DIR, --source and --direction."""
    parser.add_argument("dir", metavar="DIR", help="folder of parallel text")
    parser.add_argument("--source", metavar="LANG", help="the language that all tasks have in common (default: en)")
    parser.add_argument(
        "--direction",
        metavar="{one-to-many,many-to-one,many-to-many}",
        help="which side that language is on (default: one-to-many)",
    )


def corpus_config(args: argparse.Namespace, base: Config) -> Config:
    """Return `base` with the corpus that DIR, --source and --direction name."""
    config = replace_settings(base, {"data.path": args.dir})
    return apply_options(config, args, {"source": "data.source", "direction": "data.direction"})


def apply_options(
    config: Config, args: argparse.Namespace, settings: dict[str, str], overrides: Iterable[str] = ()
) -> Config:
    """Return `config` changed by the options in `settings` ({option: section.key}) that the user gave, and `overrides`.

    Raises:
        UserError: an option or an override is wrong. The message names the option that was typed.
    """
    given = {name: setting for name, setting in settings.items() if getattr(args, name) is not None}
    changes = [f"{setting}={getattr(args, name)}" for name, setting in given.items()]
    try:
        return apply_overrides(config, [*changes, *overrides])
    except UserError as error:
        for name, setting in given.items():
            if str(error).startswith(f"{setting} "):
                raise UserError(f"--{name.replace('_', '-')}: {error}") from None
        raise


def add_checkpoint(parser: Parser) -> None:
    """Add --checkpoint."""
    parser.add_argument(
        "--checkpoint",
        default="best",
        metavar="NAME",
        help="model to use: best, last, average or step-N (default: best)",
    )


def require_trainer(purpose: str) -> None:
    """Raise `UserError` if a package that the trainer needs is not installed."""
    if packages := info.missing("nmt"):
        raise UserError(f"{purpose} needs {', '.join(packages)}; install with: {install('nmt')}")
