"""`python -m bench.trainer.end_to_end`: training, data pipeline and translation, compared with other software."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from bench.common import results, roofline
from bench.common.command import Parser, refuse
from bench.common.machine import ROOT, cores
from bench.common.results import ResultFiles, provenance
from bench.common.targets import TargetResult, judge

from . import comparison, gpu_training, pipeline
from .cats_trainer import configuration, prepared, sizes
from .comparison import JOEY, JOEY_OWN, OURS
from .records import EndToEndResults
from .tables import end_to_end_markdown

BASELINES = ROOT / ".venv-baselines"
ROUNDS, QUICK_ROUNDS = 7, 3


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m bench.trainer.end_to_end",
        description="Measures cats.nmt beside JoeyNMT, Hugging Face and a plain loop. This takes about six minutes on "
        "two cores.",
        epilog="Prints Markdown, and writes <machine>-<date>-end-to-end.json and .md to bench/results.",
        allow_abbrev=False,
    )
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--quick", action="store_true", help="only the demo's model, and fewer rounds: two minutes")
    kind.add_argument("--gpu", action="store_true", help="the presets ted and base in bf16 on a CUDA device instead")
    parser.add_argument(
        "--baselines",
        metavar="FOLDER",
        type=Path,
        default=BASELINES,
        help="the virtual environment with JoeyNMT and Hugging Face (default: .venv-baselines)",
    )
    parser.add_argument("--out", metavar="FOLDER", type=Path, help="where to write the files (default: bench/results)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command. Returns 0, or 2 if the arguments are wrong."""
    from cats import info
    from cats.extras import install
    from cats.nmt.errors import UserError

    options = parse(arguments)
    if lacking := info.missing("nmt"):
        return refuse(f"the trainer needs {', '.join(lacking)}; {install('nmt')}")
    if options.gpu and not torch.cuda.is_available():
        return refuse("--gpu needs a CUDA device, and torch finds none")
    if options.baselines != BASELINES and not options.baselines.is_dir():
        return refuse(f"--baselines: {options.baselines} is not a folder")
    out: Path = options.out or results.FOLDER
    if not out.is_dir():
        return refuse(f"{out} is not a folder")

    started = time.perf_counter()
    source = provenance("bench.trainer.end_to_end", arguments)
    kind = "end-to-end-quick" if options.quick else "end-to-end"
    stem = source.file_stem("cuda" if options.gpu else "cpu", kind)
    files = ResultFiles(out, stem, source, end_to_end_markdown)
    try:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            parts = on_gpu(folder) if options.gpu else on_cpu(folder, options.baselines, options.quick)
            for measured in parts:
                files.update(replace(measured, seconds=time.perf_counter() - started))
    except UserError as error:
        return refuse(str(error))
    files.finish(replace(measured, targets=targets(measured), seconds=time.perf_counter() - started))
    return 0


def on_cpu(folder: Path, environment: Path, quick: bool) -> Iterator[EndToEndResults]:
    """Measures training and translation on phrases of the CLDR, and the data pipeline on generated text.

    Yields:
        The results so far, after each part.
    """
    rounds = QUICK_ROUNDS if quick else ROUNDS
    python = environment / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    found = EndToEndResults("cpu")
    for size in sizes(cores())[: 1 if quick else None]:
        corpus = prepared(configuration(size, None), folder / size.name)
        for part in (comparison.training, comparison.translation):
            _progress(f"{part.__name__}, {size.name}")
            found.contests.append(part(size, corpus, python, folder / size.name, rounds))
            yield found
    _progress("pipeline")
    found.pipeline.extend(pipeline.run(folder / "pipeline", rounds))
    yield found


def on_gpu(folder: Path) -> Iterator[EndToEndResults]:
    """Measures training of presets in bf16.

    Yields:
        The results so far, after each preset.
    """
    found = EndToEndResults("cuda", bfloat16_peak=roofline.peaks(torch.device("cuda"))["bfloat16"])
    for preset in gpu_training.PRESETS:
        _progress(preset)
        found.gpu.append(gpu_training.run(preset, folder / preset))
        yield found


def _progress(what: str) -> None:
    print(f"{what} ..", file=sys.stderr, flush=True)


def targets(measured: EndToEndResults) -> list[TargetResult]:
    """The worst case's value for each target; no entry where nothing was measured."""
    found = []
    for part, baseline, bound in (("training", JOEY_OWN, 1.3), ("training", JOEY, 1.3), ("translation", JOEY, 3.0)):
        speeds = [
            (c.times.median, comparison.size)
            for comparison in measured.contests
            if comparison.part == part
            for c in comparison.contenders
            if c.name == baseline
        ]
        found.append((f"{part}, × {baseline}", bound, False, min(speeds, default=None)))
    rates = [(p.target.median, f"{p.batch_tokens} tokens") for p in measured.pipeline]
    found.append(("pipeline, tokens per second", 1e6, False, min(rates, default=None)))
    idle = [(g.idle, g.preset) for g in measured.gpu]
    found.append(("idle share of the GPU", 0.03, True, max(idle, default=None)))
    return [
        judge(target, OURS, case[0], bound, at_most, case[1])
        for target, bound, at_most, case in found
        if case is not None
    ]


if __name__ == "__main__":
    sys.exit(main())
