"""Reads the code blocks of Markdown documents, runs the Python ones, and checks the commands of cats in the others."""

from __future__ import annotations

import re
import shlex
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from cats.nmt.cli.main import COMMANDS, DATA_COMMANDS
from cats.nmt.cli.parser import Parser
from cats.nmt.config.schema import Config
from cats.nmt.config.toml import apply_overrides, presets
from cats.nmt.methods import options

# A block is a fence with the language, or the comment of a page that no reader sees: <!-- setup: .. -->
BLOCKS = re.compile(
    r"^(?P<indent> *)```(?P<language>[^\n]*)\n(?P<code>.*?)^(?P=indent)``` *$|^<!-- setup:(?P<setup>.*?)^-->",
    re.MULTILINE | re.DOTALL,
)
# "python no-run": it is compiled only, because it needs what is not here, and the text around it says what.
LANGUAGES = {"python", "python no-run", "bash", "text", "toml", "json", "bibtex", "cpp", "yaml", "setup"}


@dataclass(frozen=True)
class Block:
    """A code block of a document."""

    language: str
    code: str
    line: int  # of its first line of code in the document, from 1


def blocks(text: str) -> list[Block]:
    """All code blocks of a document, in order.

    Raises:
        ValueError: a block without a language or with one that nothing is known about: it would escape the tests.
    """
    found = []
    for match in BLOCKS.finditer(text):
        if match["setup"] is not None:
            language, code, start = "setup", match["setup"], match.start("setup")
        else:
            language, code, start = match["language"], textwrap.dedent(match["code"]), match.start("code")
        line = text.count("\n", 0, start) + 1
        if language not in LANGUAGES:
            raise ValueError(f"line {line}: a block with the language '{language}'; known: {sorted(LANGUAGES)}")
        found.append(Block(language, code, line))
    if len(re.findall(r"^ *```", text, re.MULTILINE)) != 2 * sum(block.language != "setup" for block in found):
        raise ValueError("a code block does not end")
    return found


def run_python(document: str, found: list[Block]) -> dict[str, Any]:
    """Runs the setup and the Python blocks of a document in order, in one namespace, and returns that."""
    names: dict[str, Any] = {"__name__": document}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for block in found:
            if block.language in ("setup", "python", "python no-run"):
                # The empty lines make the line numbers of a traceback those of the document.
                code = compile("\n" * (block.line - 1) + block.code, document, "exec")
                if block.language != "python no-run":
                    exec(code, names)
    return names


def commands(code: str) -> Iterator[list[str]]:
    """The words of each command of cats in a shell block, from the name of the command of cats on."""
    for line in code.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>()")
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if not set(word) <= set("|&;<>()"):
                words.append(word)
                continue
            start = next((i for i, each in enumerate(words) if each.rpartition("/")[2] == "cats"), None)
            # "cats" must be the program or a module of Python; elsewhere it is the name of a folder or of a method.
            if start is not None and (start == 0 or words[start - 1] == "-m"):
                yield words[start + 1 :]
            words = []


def check_command(words: list[str]) -> None:
    """Parses a command of cats, its preset and its settings. Nothing is run, and no file needs to be there.

    Raises:
        UserError: what cats would say about the command.
        KeyError: there is no such command.
        SystemExit: the command asks for help.
    """
    name, rest = words[0], words[1:]
    if words == ["--help"]:
        return
    known = COMMANDS
    if name == "data":
        known, name, rest = DATA_COMMANDS, rest[0], rest[1:]
    parser = Parser(f"cats {name}", "")
    known[name].add_arguments(parser)
    if rest == ["--help"]:
        return
    args = parser.parse(rest)
    overrides = list(getattr(args, "overrides", None) or [])
    if getattr(args, "preset", None):
        assert args.preset in presets(), f"no preset {args.preset}"
    if name == "train" and args.method:
        overrides.append(f"method.name={args.method}")
    config = apply_overrides(Config(), overrides)
    options.check(config.method.name, config.method.options)
