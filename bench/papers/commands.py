"""From the tables of experiments and figures to commands, and how they are run."""

from __future__ import annotations

import glob
import shlex
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from .experiments import EXPERIMENTS
from .figures import FIGURES, Figure


@dataclass(frozen=True)
class Command:
    """A command of cats.

    words: without "cats". Those with * stand for folders that match when it is run.
    made: a folder; if it exists, the command is not needed. None: it is needed always, and continues by itself.
    """

    words: tuple[str, ...]
    made: Path | None = None

    def __str__(self) -> str:
        return shlex.join(["cats", *self.words]).replace("'", "")

    def expanded(self) -> list[str]:
        """The words, with the folders that there are for *."""
        words: list[str] = []
        for word in self.words:
            folders = sorted(path for path in glob.glob(word) if Path(path).is_dir()) if "*" in word else []
            words += folders or [word]
        return words


def commands(figures: Iterable[Figure], scale: str, out: Path, data: Path) -> list[Command]:
    """The commands of some figures, in their order: first all that is trained, each once.

    Args:
        scale: tiny or paper. out: the folder of all results. data: the folder of the corpora of the scale paper.
    """
    figures = list(figures)
    found = []
    for name in dict.fromkeys(name for figure in figures for name in figure.experiments):
        experiment, corpus = EXPERIMENTS[name], out / "corpora" / name
        if experiment.corpus and scale == "tiny":
            found.append(Command(("data", "cldr", *experiment.corpus.split(), "--out", str(corpus)), made=corpus))
        words = experiment.options(scale).format(data=data, corpus=corpus).split()
        found.append(Command((experiment.command, *words, "--out", str(out / name))))
    for figure in figures:
        folder = out / "figures" / figure.name
        found += [Command(tuple(text.format(out=out, figure=folder).split())) for text in figure.draw]
    return list(dict.fromkeys(found))


def run(command: Command) -> int:
    """Runs a command, and returns its exit status. It prints what it does."""
    if command.made is not None and command.made.exists():
        return 0
    words = command.expanded()
    print(shlex.join(["cats", *words]), flush=True)
    return subprocess.run([sys.executable, "-m", "cats", *words]).returncode


def table() -> str:
    """The Markdown table of all figures."""
    rows = ["| figure | what the paper says | read in | experiments |", "| --- | --- | --- | --- |"]
    for figure in FIGURES.values():
        rows.append(f"| {figure.name} | {figure.claim} | {figure.checked} | {', '.join(figure.experiments)} |")
    return "\n".join(rows)
