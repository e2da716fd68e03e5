"""`python -m bench.trainer.preparing`: time and memory of `cats data prepare` on generated text of several sizes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from bench.common import results
from bench.common.command import Parser, refuse
from bench.common.results import ResultFiles, provenance

from . import pipeline
from .records import Prepared, PreparingResults
from .tables import preparing_markdown

BLOCK = 100_000  # pairs that are generated; a larger corpus repeats them
MEASURE = """
import resource, subprocess, sys
done = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(done.returncode)
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command. Returns 0, or 2 if the arguments are wrong."""
    parser = Parser(
        prog="python -m bench.trainer.preparing",
        description="Measures time and memory of `cats data prepare` on generated text. This takes about ten minutes "
        "on two cores, and 4 GiB of disk.",
        epilog="Prints Markdown, and writes <machine>-<date>-preparing.json and .md to bench/results.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--pairs",
        metavar="N",
        type=int,
        nargs="+",
        default=[1_000_000, 5_000_000],
        help="sizes of the corpus, in pairs",
    )
    parser.add_argument(
        "--out",
        metavar="FOLDER",
        type=Path,
        default=results.FOLDER,
        help="where to write the files (default: bench/results)",
    )
    options = parser.parse_args(arguments)
    if sys.platform != "linux":
        return refuse("this needs Linux, which reports the peak of the resident set of a process")
    if min(options.pairs) < 1:
        return refuse(f"--pairs must be at least 1, not {min(options.pairs)}")
    if not options.out.is_dir():
        return refuse(f"{options.out} is not a folder")
    source = provenance("bench.trainer.preparing", arguments)
    files = ResultFiles(options.out, source.file_stem("cpu", "preparing"), source, preparing_markdown)
    found = PreparingResults([])
    with tempfile.TemporaryDirectory() as folder:
        for pairs in options.pairs:
            found.sizes.append(measured(Path(folder) / str(pairs), pairs))
            files.update(found)
    files.finish(found)
    return 0


def measured(folder: Path, pairs: int) -> Prepared:
    """Prepares a corpus of one size with the command itself. It has two tasks, one four times as large as the other."""
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
    return Prepared(pairs, size / 2**20, seconds, int(done.stdout) / 1024)


if __name__ == "__main__":
    sys.exit(main())
