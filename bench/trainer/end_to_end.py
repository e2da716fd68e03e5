"""`python -m bench.trainer.end_to_end`: training, making batches and translating, against others. See README.md."""

from __future__ import annotations

import argparse
import datetime
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bench.common import roofline
from bench.common.command import Parser, refuse
from bench.operators import report

from . import comparison, gpu_training, pipeline
from .comparison import JOEY, JOEY_OWN, OURS

Record = dict[str, Any]

RIVALS = report.ROOT / ".venv-rivals"
ROUNDS, QUICK_ROUNDS = 7, 3


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m bench.trainer.end_to_end",
        description="Measures cats.nmt beside JoeyNMT, Hugging Face and a plain loop: six minutes on two cores.",
        epilog="Writes <machine>-<date>-end-to-end.json to bench/results and prints Markdown.",
        allow_abbrev=False,
    )
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--quick", action="store_true", help="the small model only, few rounds: a few minutes")
    kind.add_argument("--gpu", action="store_true", help="the presets ted and base in bf16 on a CUDA device instead")
    parser.add_argument(
        "--rivals",
        metavar="FOLDER",
        type=Path,
        default=RIVALS,
        help="their virtual environment (default: .venv-rivals)",
    )
    parser.add_argument("--out", metavar="FOLDER", type=Path, help="where to write (default: bench/results)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; the exit status is 0, or 2 after bad arguments."""
    from cats import info
    from cats.nmt.errors import UserError

    options = parse(arguments)
    words = sys.argv[1:] if arguments is None else list(arguments)
    if lacking := info.missing("nmt"):
        return refuse(f"the trainer needs {', '.join(lacking)}; pip install 'cats-optim[nmt]'")
    if options.gpu and not torch.cuda.is_available():
        return refuse("--gpu needs a CUDA device, and torch finds none")
    if options.rivals != RIVALS and not options.rivals.is_dir():
        return refuse(f"--rivals: {options.rivals} is not a folder")
    out: Path = options.out or report.ROOT / "bench" / "results"
    if not out.is_dir():
        return refuse(f"{out} is not a folder")

    started = time.perf_counter()
    results: Record = {
        "command": shlex.join(["python", "-m", "bench.trainer.end_to_end", *words]),
        "date": datetime.date.today().isoformat(),
        **report.commit(),
        "machine": report.machine(),
        "versions": report.versions(),
        "device": "cuda" if options.gpu else "cpu",
    }
    try:
        with tempfile.TemporaryDirectory() as folder:
            results |= on_gpu(Path(folder)) if options.gpu else on_cpu(Path(folder), options.rivals, options.quick)
    except UserError as error:
        return refuse(str(error))
    results["targets"] = targets(results)
    results["seconds"] = time.perf_counter() - started
    print(markdown(results), end="")
    kind = "end-to-end-quick" if options.quick else "end-to-end"
    path = out / f"{report.file_stem(results['device'], results['date'], kind)}.json"
    report.write_json(path, results)
    print(f"wrote {path}", file=sys.stderr)
    return 0


def on_cpu(folder: Path, environment: Path, quick: bool) -> Record:
    """Training and translation on phrases of the CLDR, the pipeline on made-up text."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    rounds = QUICK_ROUNDS if quick else ROUNDS
    python = environment / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    contests = []
    for size in comparison.sizes(cores)[: 1 if quick else None]:
        corpus = prepared(comparison.configuration(size, None), folder / size.name)
        for part in (comparison.training, comparison.translation):
            say(f"{part.__name__}, {size.name}")
            contests.append(part(size, corpus, python, folder / size.name, rounds))
    say("pipeline")
    return {"contests": contests, "pipeline": pipeline.run(folder / "pipeline", rounds)}


def on_gpu(folder: Path) -> Record:
    peak = roofline.peaks(torch.device("cuda"))["bfloat16"]
    found = []
    for preset in gpu_training.PRESETS:
        say(preset)
        found.append(gpu_training.run(preset, folder / preset))
    return {"bfloat16_peak": peak, "gpu": found}


def prepared(config: Any, folder: Path) -> Path:
    """The corpus of a configuration, prepared for training in a new folder."""
    from cats.nmt.data.encode import EncodingSettings
    from cats.nmt.data.prepare import prepare
    from cats.nmt.training.run import load_corpus

    folder.mkdir()
    encoding = EncodingSettings(config.data, config.tokenizer, config.model.max_length)
    prepare(load_corpus(config.data), encoding, folder / "prepared", quiet=True)
    return folder / "prepared"


def say(what: str) -> None:
    print(f"{what} ..", file=sys.stderr, flush=True)


def targets(results: Record) -> list[Record]:
    """What was reached of what is asked, in the worst case."""
    asked = [("training", JOEY_OWN, 1.3), ("training", JOEY, 1.3), ("translation", JOEY, 3.0)]
    found = []
    for part, rival, bound in asked:
        cases = [
            (c["times"]["median"], contest["size"])
            for contest in results.get("contests", [])
            if contest["part"] == part
            for c in contest["contenders"]
            if c["name"] == rival
        ]
        found.append((f"{part}, × {rival}", bound, False, min(cases, default=None)))
    speeds = [(p["target"]["median"], f"{p['batch_tokens']} tokens") for p in results.get("pipeline", [])]
    found.append(("pipeline, tokens per second", 1e6, False, min(speeds, default=None)))
    idle = [(g["idle"], g["preset"]) for g in results.get("gpu", [])]
    found.append(("idle share of the GPU", 0.03, True, max(idle, default=None)))
    return [
        {
            "target": target,
            "backend": OURS,
            "value": case[0],
            "at_most": at_most,
            "bound": bound,
            "met": case[0] <= bound if at_most else case[0] >= bound,
            "worst": case[1],
        }
        for target, bound, at_most, case in found
        if case is not None
    ]


def markdown(results: Record) -> str:
    m = results["machine"]
    device = m["gpu"] if results["device"] == "cuda" else f"{m['cpu']}, {m['cores']} cores"
    lines = [report.heading(results, device)]
    units = {"training": "target tokens/s (20–80 %)", "translation": "sentences/s (20–80 %)"}
    for c in results.get("contests", []):
        rows = [(r["name"], spread(r["per_second"]), spread(r["times"])) for r in c["contenders"]]
        threads = f"{c['threads']} thread{'s' * (c['threads'] > 1)}"
        head = (f"{c['part']}, {c['size']}, {threads}", units[c["part"]], "cats is so many times as fast")
        lines += ["", *report.table(head, rows)]
        if c["missing"]:
            lines += ["", "Without a number:", ""]
            lines += [f"- {r['contender']}: {r['reason']}" for r in c["missing"]]
    if made := results.get("pipeline"):
        rows = [(p["batch_tokens"], spread(p["target"]), spread(p["both"])) for p in made]
        head = ("target tokens a batch", "target tokens/s (20–80 %)", "both sides, tokens/s")
        lines += ["", *report.table(head, rows)]
    if runs := results.get("gpu"):
        rows = [
            (
                g["preset"],
                f"{g['parameters'] / 1e6:.0f}",
                spread(g["per_second"]),
                f"{g['rate'] / 1e12:.3g}",
                f"{g['rate'] / results['bfloat16_peak']:.2f}",
                f"{g['idle']:.3f}",
            )
            for g in runs
        ]
        head = ("preset", "M parameters", "target tokens/s (20–80 %)", "TFLOP/s", "of matrix rate", "idle share")
        lines += ["", *report.table(head, rows)]
    if results["targets"]:
        lines += ["", *report.targets(results["targets"])]
    return "\n".join(lines) + "\n"


def spread(found: Record) -> str:
    return " ".join([number(found["median"]), f"({number(found['low'])}–{number(found['high'])})"])


def number(value: float) -> str:
    return f"{value:.0f}" if value >= 1000 else f"{value:.3g}"


if __name__ == "__main__":
    sys.exit(main())
