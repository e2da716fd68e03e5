"""Scores and training records of an imaginary run, for several test files."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any


def cell(chrf: float | None, nll: float | None = 1.25, **more: Any) -> dict[str, Any]:
    return {"bleu": None if chrf is None else chrf / 2, "chrf": chrf, "nll": nll, "lines": 10, **more}


def scores(**changes: Any) -> dict[str, Any]:
    return {
        "languages": {"ru": cell(60.04, pairs=1200), "az": cell(40.0, pairs=150), "be": cell(None, None, pairs=120)},
        "groups": {
            "all": cell(50.0, languages=["ru", "az", "be"]),
            "lores": cell(40.0, languages=["az", "be"]),
            "hires": cell(60.04, languages=["ru"]),
        },
        "lookup": {
            "languages": {"ru": {"chrf": 55.0}, "az": {"chrf": 45.0}, "be": {"chrf": None}},
            "groups": {"all": {"chrf": 50.0}, "lores": {"chrf": 45.0}, "hires": {"chrf": 55.0}},
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
        "method": "cats",
        "temperature": 1.0,
        "steps": 40,
        "seed": 3,
        "seconds": 10.0,
        "tokens_per_second": 1234.5,
        **changes,
    }


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
