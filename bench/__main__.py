"""`python -m bench`: the operators against the best baselines and the roofline. README.md explains the results."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from .common import results, roofline
from .common.command import Parser, refuse
from .common.results import Provenance, ResultFiles, provenance
from .operators import cases, host, overhead, picture, run, step, tables, targets
from .operators.backends import usable
from .operators.contender import BACKEND
from .operators.records import HostResults, OperatorResults, StepResults


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m bench",
        description="Measures the operators of cats.ops on this machine. On the CPU this takes about ten minutes with "
        "two cores.",
        epilog="Prints Markdown, and writes <machine>-<date>.json, .md, .png and .svg to bench/results; the first two "
        "after every case. With --only, files are written only if --out is given.",
        allow_abbrev=False,
    )
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--quick", action="store_true", help="fewer and smaller cases: two minutes")
    kind.add_argument("--gpu", action="store_true", help="the cases for a CUDA device: ten minutes")
    kind.add_argument(
        "--step", action="store_true", help="steps of cats.CATS that also update α, on the demo model, instead"
    )
    kind.add_argument(
        "--overhead",
        action="store_true",
        help="the host's part of a call on a GPU, measured without one, instead: a minute",
    )
    parser.add_argument(
        "--only", metavar="TEXT", default="", help='measure only cases with this text in their name, such as "dots K=8"'
    )
    parser.add_argument("--out", metavar="FOLDER", type=Path, help="where to write files (default: bench/results)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command. Returns 0, 1 if a backend's result was wrong, or 2 if the arguments are."""
    options = parse(arguments)
    if options.gpu and not torch.cuda.is_available():
        return refuse("--gpu needs a CUDA device, and torch finds none")
    out: Path | None = options.out or (None if options.only else results.FOLDER)
    if out is not None and not out.is_dir():
        return refuse(f"{out} is not a folder")
    if options.only and (options.step or options.overhead):
        return refuse(f"--only chooses cases, but {'--step' if options.step else '--overhead'} has no cases")
    suite = cases.gpu() if options.gpu else cases.quick() if options.quick else cases.cpu()
    if not any(options.only in f"{op} {w.name}" for w in suite for op in w.operators):
        example = f"{suite[0].operators[0]} {suite[0].name!r}"
        return refuse(f"no case has {options.only!r} in its name; a name is, for example, {example}")
    source = provenance("bench", arguments)
    if options.step:
        return measure_step(source, out)
    return measure_host(source, out) if options.overhead else measure_operators(source, suite, options, out)


def measure_operators(source: Provenance, suite: cases.Suite, options: argparse.Namespace, out: Path | None) -> int:
    """Measures and prints the cases of a suite. Returns the exit status."""
    started = time.perf_counter()
    device = torch.device("cuda" if options.gpu else "cpu")
    whole = not options.only
    stem = source.file_stem(device.type, "-".join(filter(None, ("quick" * options.quick, "part" * (not whole)))))
    files = ResultFiles(out, stem, source, tables.markdown)
    budget = 1.0 if options.quick else 2.0 if options.gpu else 4.0
    with tempfile.TemporaryDirectory() as cache:
        # An empty cache, so that compile times do not depend on earlier runs.
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
        peaks = roofline.peaks(device)
        measured = OperatorResults(device.type, peaks, [], [], [], [], [], [], 0.0)
        for case in run.run_suite(suite, device, options.only, budget, peaks):
            measured.cases.append(case)
            files.update(replace(measured, seconds=time.perf_counter() - started))
        calls = overhead.calls(device) if whole else []
        compilations = overhead.compilations(device) if whole and not options.quick else []
    found = measured.cases
    fits = run.linear_fits(found)
    measured = replace(
        measured,
        fits=fits,
        calls=calls,
        call_lines=overhead.lines(calls),
        compilations=compilations,
        targets=targets.evaluate(device.type, found, fits, calls),
        seconds=time.perf_counter() - started,
    )
    files.finish(measured)
    if out is not None:
        picture.draw(source, measured, out / f"{stem}.png")
    wrong = [(case.name, r) for case in found for r in case.refused if r.kind == BACKEND]
    for name, r in wrong:
        print(f"bench: {name}: backend {r.contender}: {r.reason}", file=sys.stderr)
    return 1 if wrong else 0


def measure_step(source: Provenance, out: Path | None) -> int:
    """Measures and prints steps of cats.CATS on the demo model. Returns the exit status."""
    from cats import info
    from cats.extras import install

    if lacking := info.missing("nmt"):
        return refuse(f"--step trains the demo model and needs {', '.join(lacking)}; {install('nmt')}")
    started = time.perf_counter()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    times = step.run(usable(device))
    measured = StepResults(device.type, times, time.perf_counter() - started)
    ResultFiles(out, source.file_stem(device.type, "step"), source, tables.step_markdown).finish(measured)
    return 0


def measure_host(source: Provenance, out: Path | None) -> int:
    """Measures and prints the host's part of calls on a GPU. Returns the exit status."""
    started = time.perf_counter()
    calls = host.calls()
    measured = HostResults("cpu", calls, host.evaluate(calls), time.perf_counter() - started)
    ResultFiles(out, source.file_stem("cpu", "overhead"), source, tables.host_markdown).finish(measured)
    return 0


if __name__ == "__main__":
    sys.exit(main())
