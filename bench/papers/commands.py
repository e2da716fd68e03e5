"""From the tables of experiments and figures to commands, and how they are run."""

from __future__ import annotations

import glob
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .experiments import EXPERIMENTS
from .figures import FIGURES, Figure


@dataclass(frozen=True)
class Command:
    """A command of cats.

    words: without "cats". Those with * stand for folders that match when it is run.
    made: the folder that it makes, one of the words. If it exists, the command is not needed. None: it is needed
        always, and continues by itself.
    """

    words: tuple[str, ...]
    made: Path | None = None

    def __str__(self) -> str:
        # For a shell, which shall find the folders that * stands for.
        return " ".join(
            "*".join(part and shlex.quote(part) for part in word.split("*")) for word in ("cats", *self.words)
        )

    def expanded(self) -> list[str]:
        """The words, with the folders that there are for *."""
        words: list[str] = []
        for word in self.words:
            pattern = "*".join(map(glob.escape, word.split("*")))
            folders = sorted(path for path in glob.glob(pattern) if Path(path).is_dir()) if "*" in word else []
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
        words = _words(experiment.options(scale), data=data, corpus=corpus)
        found.append(Command((experiment.command, *words, "--out", str(out / name))))
    for figure in figures:
        folder = out / "figures" / figure.name
        found += [Command(_words(text, out=out, figure=folder)) for text in figure.draw]
    return list(dict.fromkeys(found))


def _words(text: str, **folders: Path) -> tuple[str, ...]:
    """The words of a text, with the folders in place of their names in braces. A folder may have spaces in its name."""
    return tuple(word.format(**folders) for word in text.split())


def run(command: Command) -> int:
    """Runs a command, and returns its exit status. It prints what it does."""
    made, words = command.made, command.expanded()
    if made is None:
        return _call(words)
    if made.exists():
        return 0
    # Under another name until it is complete: a command that was stopped is needed again.
    making = made.with_name(f"{made.name}.making")
    shutil.rmtree(making, ignore_errors=True)
    status = _call([str(making) if word == str(made) else word for word in words])
    if not status:
        making.rename(made)
    return status


def _call(words: Sequence[str]) -> int:
    print(shlex.join(["cats", *words]), flush=True)
    return subprocess.run([sys.executable, "-m", "cats", *words]).returncode


def table() -> str:
    """The Markdown table of all figures."""
    rows = ["| figure | what the paper says | read in | experiments |", "| --- | --- | --- | --- |"]
    for figure in FIGURES.values():
        rows.append(f"| {figure.name} | {figure.claim} | {figure.checked} | {', '.join(figure.experiments)} |")
    return "\n".join(rows)
