"""`python -m bench.engines`: what a step that moves α costs, and whole training, beside plain training and TorchJD."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from bench.common import results
from bench.common.command import Parser, refuse
from bench.common.results import ResultFiles, provenance


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m bench.engines",
        description="Measures time and peak memory of every engine beside plain training and TorchJD, on one thread "
        "of the CPU. This takes about twelve minutes.",
        epilog="Prints Markdown, and writes <machine>-<date>-engines.json, .md and .png to bench/results.",
        allow_abbrev=False,
    )
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--quick", action="store_true", help="only the demo's model, K = 2 and 8: a minute")
    kind.add_argument("--gpu", action="store_true", help="the presets ted and base in bf16 on a CUDA device instead")
    parser.add_argument("--out", metavar="FOLDER", type=Path, help="where to write files (default: bench/results)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command. Returns 0, 1 if a result of the library was wrong, or 2 if the arguments are."""
    from cats import info
    from cats.extras import install

    options = parse(arguments)
    if lacking := info.missing("nmt"):
        return refuse(f"the models are the trainer's, which needs {', '.join(lacking)}; {install('nmt')}")
    if options.gpu and not torch.cuda.is_available():
        return refuse("--gpu needs a CUDA device, and torch finds none")
    out: Path = options.out or results.FOLDER
    if not out.is_dir():
        return refuse(f"{out} is not a folder")

    from . import picture, run, tables, targets, workload
    from .records import EngineResults

    started = time.perf_counter()
    torch.set_num_threads(1)
    source = provenance("bench.engines", arguments)
    device = torch.device("cuda" if options.gpu else "cpu")
    sizes = workload.gpu() if options.gpu else workload.cpu()
    if options.quick:
        sizes = [replace(sizes[0], tasks=(2, 8))]
    stem = source.file_stem(device.type, "engines-quick" if options.quick else "engines")
    files = ResultFiles(out, stem, source, tables.markdown)
    found = EngineResults(device.type, [run.model(size) for size in sizes], [], [], 0.0)
    for size in sizes:
        for tasks in size.tasks:
            found.outer_steps.append(run.outer_step(size, tasks, device))
            files.update(replace(found, seconds=time.perf_counter() - started))
    found = replace(found, targets=targets.evaluate(found), seconds=time.perf_counter() - started)
    files.finish(found)
    picture.draw(source, found, out / f"{stem}.png")
    wrong = [r for step in found.outer_steps for r in step.refused if r.wrong]
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
