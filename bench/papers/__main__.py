"""`python -m bench.papers`: the figures and tables of two papers, made on the built-in corpus or on the user's text."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from bench.common.command import Parser, refuse

from .commands import Command, commands, run, table
from .figures import FIGURES, Figure

STOPPED = 130  # the exit status of a command that Ctrl-C has ended


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command. Returns 0, 2 if the arguments are wrong or a command of cats failed, or 130 after Ctrl-C."""
    parser = Parser(
        prog="python -m bench.papers",
        description="Trains what figures and tables of the CATS paper and of Order Matters need, and draws them. What "
        "is trained already is not trained again, also for other figures; after an interruption, the same command "
        "continues.",
        epilog="docs/papers.md says what the figures show, and which text the scale paper needs.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "figures", nargs="+", metavar="FIGURE", help="their names, such as cats-2; all; or list, which prints the names"
    )
    parser.add_argument(
        "--scale",
        choices=("tiny", "paper"),
        default="tiny",
        help="tiny: the built-in corpus, on two cores; paper: the papers' sizes, on the text in --data (default: tiny)",
    )
    parser.add_argument(
        "--data", type=Path, default=Path("corpora"), metavar="DIR", help="scale paper: the corpora (default: corpora)"
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="folder of the runs and the figures (default: runs/papers-SCALE)"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the commands, and run nothing")
    options = parser.parse_args(arguments)
    if options.figures == ["list"]:
        print(table())
        return 0
    names = list(FIGURES) if options.figures == ["all"] else options.figures
    for name in names:
        if name not in FIGURES:
            return refuse(f"no figure {name}; there are {', '.join(FIGURES)}")
    chosen = [FIGURES[name] for name in names]
    out = options.out or Path("runs") / f"papers-{options.scale}"
    needed = commands(chosen, options.scale, out, options.data)
    if options.dry_run:
        print("\n".join(map(str, needed)))
        return 0
    return run_all(needed, chosen, out)


def run_all(needed: Sequence[Command], figures: Sequence[Figure], out: Path) -> int:
    """Runs the commands, and says where the figures are. One that fails is stepped over: others may not need it."""
    failed: list[Command] = []
    try:
        for command in needed:
            status = run(command)
            if status == STOPPED:
                return STOPPED
            if status:
                failed.append(command)
    except KeyboardInterrupt:
        return STOPPED
    for figure in figures:
        pictures = [str(out / "figures" / figure.name)] if figure.draw else []
        print(f"{figure.name}: {', '.join([*pictures, *(text.format(out=out) for text in figure.tables)])}")
    if failed:
        return refuse(f"{len(failed)} of {len(needed)} commands failed; the first: {failed[0]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
