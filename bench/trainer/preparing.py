"""`python -m bench.trainer.preparing`: time and memory of `cats data prepare` on made-up text of several sizes."""

from __future__ import annotations

import datetime
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.common.command import Parser, refuse
from bench.operators import report
from cats.nmt.scoring.tables import aligned

from . import pipeline

BLOCK = 100_000  # pairs that are made up; more text repeats them
MEASURE = """
import resource, subprocess, sys
done = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(done.returncode)
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; the exit status is 0, or 2 after bad arguments."""
    parser = Parser(prog="python -m bench.trainer.preparing", description=__doc__, allow_abbrev=False)
    parser.add_argument("--pairs", type=int, nargs="+", default=[1_000_000, 5_000_000], help="sizes of the corpus")
    parser.add_argument("--out", metavar="FOLDER", type=Path, default=report.ROOT / "bench" / "results")
    options = parser.parse_args(arguments)
    if sys.platform != "linux":
        return refuse("the peak of the resident set is read as Linux gives it")
    if min(options.pairs) < 1:
        return refuse(f"--pairs must be at least 1, not {min(options.pairs)}")
    if not options.out.is_dir():
        return refuse(f"{options.out} is not a folder")
    words = sys.argv[1:] if arguments is None else list(arguments)
    results: dict[str, Any] = {
        "command": shlex.join(["python", "-m", "bench.trainer.preparing", *words]),
        "date": datetime.date.today().isoformat(),
        **report.commit(),
        "machine": report.machine(),
        "versions": report.versions(),
        "sizes": [],
    }
    with tempfile.TemporaryDirectory() as folder:
        for pairs in options.pairs:
            results["sizes"].append(measured(Path(folder) / str(pairs), pairs))
    print(markdown(results["sizes"]))
    path = options.out / f"{report.file_stem('cpu', results['date'], 'preparing')}.json"
    report.write_json(path, results)
    print(f"wrote {path}", file=sys.stderr)
    return 0


def measured(folder: Path, pairs: int) -> dict[str, Any]:
    """One size: prepared by the command itself, two tasks at four to one."""
    pipeline.write_text(folder / "block", 1, BLOCK)
    text = folder / "text"
    text.mkdir()
    for name, count in ("xa", pairs * 4 // 5), ("xb", pairs - pairs * 4 // 5):
        for side, suffix in (("en", "en"), ("xa", name)):
            block = (folder / "block" / f"train.en-xa.{side}").read_bytes()
            with (text / f"train.en-{name}.{suffix}").open("wb") as file:
                for _ in range(count // BLOCK):
                    file.write(block)
                file.writelines(block.splitlines(keepends=True)[: count % BLOCK])
    size = sum(path.stat().st_size for path in text.iterdir())
    settings = ["tokenizer.vocab_size=8000", "tokenizer.most_pairs=20000", "model.max_length=1000"]
    given = [f"--set={setting}" for setting in settings]
    command = [sys.executable, "-m", "cats", "data", "prepare", str(text), "--out", str(folder / "out"), *given]
    environment = {**os.environ, "CATS_CACHE": str(folder / "cache")}
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", MEASURE, *command], env=environment, check=True, capture_output=True)
    seconds = time.perf_counter() - start
    index = json.loads((folder / "out" / "prepared.json").read_text())
    assert sum(task["kept"] for task in index["tasks"]) == pairs
    shutil.rmtree(folder)
    return {"pairs": pairs, "text_mib": size / 2**20, "seconds": seconds, "peak_mib": int(done.stdout) / 1024}


def markdown(sizes: list[dict[str, Any]]) -> str:
    rows = [["pairs", "text, MiB", "s", "peak of the largest process, MiB"]]
    rows += [[f"{s['pairs']:,}", f"{s['text_mib']:,.0f}", f"{s['seconds']:.0f}", f"{s['peak_mib']:.0f}"] for s in sizes]
    return aligned(rows, left=0)


if __name__ == "__main__":
    raise SystemExit(main())
