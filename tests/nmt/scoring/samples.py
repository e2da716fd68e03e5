"""What several tests of scores share: scores and training records of an imaginary run."""

from __future__ import annotations

import json
import random
import struct
from pathlib import Path
from typing import Any

from cats.nmt.scoring.scores import Scores, from_json

WORDS = ["alpha", "bravo", "carol", "delta", "echo", "fox", "golf", "hotel", "india"]


def cell(chrf: float | None, nll: float | None = 1.25, **more: Any) -> dict[str, Any]:
    """A task or a group as scores.json has it."""
    return {"bleu": None if chrf is None else chrf / 2, "chrf": chrf, "nll": nll, "lines": 10, **more}


def baseline(chrf: float | None) -> dict[str, Any]:
    """A task or a group of the nearest-neighbour baseline as scores.json has it."""
    return {"chrf": chrf, "lines": 10}


def content(**changes: Any) -> dict[str, Any]:
    """The content of a scores.json: one language in HiRes and two in LoRes, one of which diverged."""
    return {
        "languages": {"ru": cell(60.04, pairs=1200), "az": cell(40.0, pairs=150), "be": cell(None, None, pairs=120)},
        "groups": {
            "all": cell(50.0, languages=["ru", "az", "be"]),
            "lores": cell(40.0, languages=["az", "be"]),
            "hires": cell(60.04, languages=["ru"]),
        },
        "lookup": {
            "languages": {"ru": baseline(55.0), "az": baseline(45.0), "be": baseline(None)},
            "groups": {"all": baseline(50.0), "lores": baseline(45.0), "hires": baseline(55.0)},
        },
        "beats_lookup": {"all": False, "lores": False, "hires": True},
        "strata": {},
        "headline": None,
        "signatures": {
            "bleu": {"ru": "tok:13a", "az": "tok:13a", "be": "tok:char"},
            "chrf": {"ru": "nc:6", "az": "nc:6"},
        },
        "corpus": "toy",
        "split": "test",
        "checkpoint": "best",
        "method": "cats",
        "temperature": 1.0,
        "steps": 40,
        "seed": 3,
        "seconds": 10.0,
        "tokens_per_second": 1234.5,
        **changes,
    }


def scores(**changes: Any) -> Scores:
    """The same as dataclasses."""
    return from_json(content(**changes))


def record(step: int) -> dict[str, Any]:
    names = ("ru", "az", "be")
    return {
        "step": step,
        "losses": {name: 3 / step + i for i, name in enumerate(names) if (step + i) % 20},  # not every task every time
        "alpha": dict(zip(names, (0.5, 0.3, 0.2), strict=True)),
        "tokens": dict.fromkeys(names, 10),
        "seconds": step / 4,
    }


def png_size(path: Path) -> tuple[int, int]:
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n") and data.endswith(b"IEND\xaeB`\x82")
    width, height = struct.unpack(">II", data[16:24])
    return width, height


def random_lines(count: int, seed: int) -> list[str]:
    """`count` lines of four to nine random words."""
    chooser = random.Random(seed)
    return [" ".join(chooser.choices(WORDS, k=chooser.randint(4, 9))) for _ in range(count)]


def worse(lines: list[str], share: float, seed: int) -> list[str]:
    """The lines with some words replaced."""
    chooser = random.Random(seed)
    return [" ".join("zulu" if chooser.random() < share else word for word in line.split()) for line in lines]


def write_scored_run(path: Path, hypotheses: dict[str, list[str]], references: list[str]) -> Path:
    """Write what `cats evaluate` leaves in a run directory: translations {task: lines} and scores."""
    (path / "hyp").mkdir(parents=True)
    for task, lines in hypotheses.items():
        for suffix, column in (("txt", lines), ("ref", references), ("src", [f"s{i}" for i in range(len(lines))])):
            (path / "hyp" / f"test.{task}.{suffix}").write_text("".join(f"{line}\n" for line in column))
    scores = content(
        languages={task: cell(50.0, lines=len(lines), pairs=1) for task, lines in hypotheses.items()},
        groups={"all": cell(50.0, languages=list(hypotheses)), "lores": cell(None, None, languages=[])},
        signatures={"bleu": dict.fromkeys(hypotheses, "nrefs:1|tok:13a|smooth:exp")},
        lookup={"languages": {}, "groups": {}},
    )
    (path / "scores.json").write_text(json.dumps(scores))
    return path
