"""cats.nmt.scoring.hypotheses: changed scores and translations are noticed."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("sacrebleu")

from cats.nmt.errors import UserError
from cats.nmt.scoring import hypotheses
from cats.nmt.scoring.scores import read_scores, write_scores
from tests.nmt.scoring.samples import random_lines, write_scored_run


def mutated(data: bytes, chooser: random.Random) -> bytes:
    """The data with a bit changed, or some bytes removed, doubled, inserted or overwritten."""
    at, changed = chooser.randrange(len(data)), bytearray(data)
    match chooser.choice(["bit", "remove", "double", "insert", "overwrite"]):
        case "bit":
            changed[at] ^= 1 << chooser.randrange(8)
        case "remove":
            del changed[at : at + chooser.randint(1, 40)]
        case "double":
            changed[at:at] = data[at : at + 20]
        case "insert":
            changed[at:at] = chooser.randbytes(chooser.randint(1, 4))
        case _:
            changed[at] = 0
    return bytes(changed)


@pytest.mark.parametrize("count", [100, pytest.param(2000, marks=pytest.mark.slow)])
def test_mutations_are_noticed(tmp_path: Path, count: int) -> None:
    """A change is refused in one line, unless the scores stay the same, as with other whitespace in scores.json."""
    lines = random_lines(5, 1)
    run = write_scored_run(tmp_path / "run", {"az": lines, "be": lines}, lines)
    scores = replace(read_scores(run), files=hypotheses.digests(run, "test", "best"))
    write_scores(run / "scores.json", scores)
    files = [run / "scores.json", *(run / "hyp").iterdir()]
    chooser = random.Random(2)
    for _ in range(count):
        file = chooser.choice(files)
        whole = file.read_bytes()
        if (changed := mutated(whole, chooser)) == whole:
            continue
        file.write_bytes(changed)
        try:
            found = read_scores(run)
            for task, part in itertools.product(("az", "be"), ("src", "ref", "txt")):
                hypotheses.read(run, found, task, part)
            assert file.name == "scores.json" and found == scores
        except UserError as error:
            assert "\n" not in str(error)
        file.write_bytes(whole)
