"""`python -m bench`: the operators against their rivals and the machine's limit. README.md here says how to read it."""

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

from .common import roofline
from .common.command import Parser, refuse
from .operators import cases, overhead, report, run, step, targets
from .operators.baselines import usable

Record = dict[str, Any]


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m bench",
        description="Measures cats.ops on this machine: on the CPU, about 15 minutes on two cores.",
        epilog="Writes <machine>-<date>.json and .png to bench/results and prints Markdown. With --only they are "
        "written only where --out says.",
        allow_abbrev=False,
    )
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--quick", action="store_true", help="fewer and smaller cases: two minutes")
    kind.add_argument("--gpu", action="store_true", help="the suite of the GPU: ten minutes")
    kind.add_argument("--step", action="store_true", help="an outer step of cats.CATS on the demo model instead")
    parser.add_argument("--only", metavar="SUBSTRING", default="", help='only cases with this in the name, "dots K=8"')
    parser.add_argument("--out", metavar="FOLDER", type=Path, help="where to write (default: bench/results)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; the exit status is 0, 1 if a backend gave a wrong result, or 2 after bad arguments."""
    options = parse(arguments)
    words = sys.argv[1:] if arguments is None else list(arguments)
    if options.gpu and not torch.cuda.is_available():
        return refuse("--gpu needs a CUDA device, and torch finds none")
    out: Path | None = options.out or (None if options.only else report.ROOT / "bench" / "results")
    if out is not None and not out.is_dir():
        return refuse(f"{out} is not a folder")
    if options.step and options.only:
        return refuse("--only chooses cases, and --step has none")
    suite = cases.gpu() if options.gpu else cases.quick() if options.quick else cases.cpu()
    if not any(options.only in f"{op} {w.name}" for w in suite for op in w.operators):
        return refuse(f"no case has {options.only!r} in its name; one is {suite[0].operators[0]} {suite[0].name!r}")

    date = datetime.date.today().isoformat()
    results: Record = {
        "command": shlex.join(["python", "-m", "bench", *words]),
        "date": date,
        **report.commit(),
        "machine": report.machine(),
        "versions": report.versions(),
    }
    started = time.perf_counter()
    if options.step:
        return step_command(results, out, started)
    device = torch.device("cuda" if options.gpu else "cpu")
    with tempfile.TemporaryDirectory() as cache:
        # Compile times are those of a first compilation, not of what an earlier run left on the disk.
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
        peaks = roofline.peaks(device)
        found = run.run_suite(suite, device, options.only, 1.0 if options.quick else 2.0 if options.gpu else 4.0, peaks)
        whole = not options.only
        calls = overhead.calls(device) if whole else []
        compilations = overhead.compilations(device) if whole and not options.quick else []
    fits = run.linear_fits(found)
    results |= {
        "device": device.type,
        "peaks": peaks,
        "cases": found,
        "fits": fits,
        "calls": calls,
        "call_lines": overhead.lines(calls),
        "compilations": compilations,
        "targets": targets.evaluate(device.type, found, fits, calls),
        "seconds": time.perf_counter() - started,
    }
    print(report.markdown(results), end="")
    if out is not None:
        stem = report.file_stem(
            device.type, date, "-".join(filter(None, ("quick" * options.quick, "part" * (not whole))))
        )
        report.write_json(out / f"{stem}.json", results)
        report.roofline(results, out / f"{stem}.png")
        print(f"wrote {out / stem}.json and .png", file=sys.stderr)
    wrong = [(c["name"], r) for c in found for r in c["refused"] if r["kind"] == run.BACKEND]
    for name, r in wrong:
        print(f"bench: {name}: backend {r['contender']}: {r['reason']}", file=sys.stderr)
    return 1 if wrong else 0


def step_command(results: Record, out: Path | None, started: float) -> int:
    from cats import info

    if lacking := info.missing("nmt"):
        return refuse(f"--step trains the demo model and needs {', '.join(lacking)}; pip install 'cats-optim[nmt]'")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    measured = step.run(usable(device))
    results |= {"device": device.type, "step": measured, "seconds": time.perf_counter() - started}
    rows = []
    for b in measured["backends"]:
        whole, part = b["step_seconds"], b["operators_seconds"]
        spread = f"{whole['low'] * 1e3:.1f}–{whole['high'] * 1e3:.1f}"
        rows.append((b["name"], f"{whole['median'] * 1e3:.1f} ({spread})", f"{part['median'] * 1e3:.2f}"))
    print(
        f"Outer step of the demo model, K = {measured['tasks']}, {measured['tensors']} tensors, "
        f"P = {measured['elements']:,}, {measured['steps']} steps each:\n"
    )
    print("\n".join(report.table(("backend", "backward + step, ms (20–80 %)", "of it combine_dots, ms"), rows)))
    if out is not None:
        path = out / f"{report.file_stem(device.type, results['date'], 'step')}.json"
        report.write_json(path, results)
        print(f"wrote {path}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
