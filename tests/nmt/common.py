"""What several tests of the trainer share: a toy corpus, settings of a small and fast run, and how to read one."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import torch

from cats.nmt.config.schema import Config
from cats.nmt.config.toml import apply_overrides
from cats.nmt.data.corpus import Corpus, Split, Task
from cats.nmt.data.corpus_files import write_corpus
from cats.nmt.training import checkpoint

WORDS = ["alpha", "bravo", "carol", "delta", "echo", "fox", "golf", "hotel", "india", "jazz", "kilo", "lima"]


def split(count: int, seed: int, turn: bool) -> Split:
    """`count` pairs of four random words. The target is the source, with its words reversed if `turn` is set."""
    rng = random.Random(seed)
    rows = [[rng.choice(WORDS) for _ in range(4)] for _ in range(count)]
    return Split([" ".join(row) for row in rows], [" ".join(row[::-1] if turn else row) for row in rows])


def write_toy_corpus(folder: Path) -> None:
    """Two languages that only the tag tells apart: xa copies the source (200 pairs), xb reverses it (40 pairs)."""
    tasks = [
        Task("xa", "en", "xa", split(200, 1, False), split(20, 2, False), split(20, 3, False)),
        Task("xb", "en", "xb", split(40, 4, True), split(20, 5, True), split(20, 6, True)),
    ]
    write_corpus(Corpus("toy", tasks), folder)


def settings(corpus: Path, *more: str) -> Config:
    """30 updates of a small model; `more` are overrides."""
    small = ["model.d_model=32", "model.heads=2", "model.ffn=64", "model.encoder_layers=1", "model.decoder_layers=1"]
    run = [
        "train.steps=30",
        "train.validate_every=10",
        "train.warmup=10",
        "train.threads=1",
        "sampling.batch_tokens=150",
    ]
    base = [f"data.path={corpus}", "tokenizer.vocab_size=60", "method.inner_steps=3"]
    return apply_overrides(Config(), [*base, *small, *run, *more])


def metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, without the values that depend on the clock or the machine."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    for line in lines:
        line.pop("seconds", None)
        line.pop("cpu_seconds", None)
        line.pop("tokens_per_second", None)
        line.pop("peak_memory", None)
    return lines


def final_state(run: Path) -> dict[str, Any]:
    """The last checkpoint, without the values that depend on the clock or on the free memory."""
    state = checkpoint.load(run / "checkpoints" / "last.pt")
    for clock in ("seconds", "cpu_seconds", "logged_at"):
        state.pop(clock)
    optimizer = state["optimizer"]
    optimizer["param_groups"][0].pop("multitask")  # the next entry once more, as bytes
    return state


def assert_same(left: Any, right: Any, where: str = "state") -> None:
    """Asserts equality bit for bit, through dicts and lists. nan equals nan. Tensors may be on different devices."""
    if isinstance(left, torch.Tensor):
        assert left.dtype == right.dtype and torch.equal(left.cpu(), right.cpu()), where
    elif isinstance(left, dict):
        assert left.keys() == right.keys(), where
        for key in left:
            assert_same(left[key], right[key], f"{where}.{key}")
    elif isinstance(left, list | tuple):
        assert len(left) == len(right), where
        for i, (one, other) in enumerate(zip(left, right, strict=True)):
            assert_same(one, other, f"{where}[{i}]")
    else:
        assert left == right or (left != left and right != right), where


def write_short_corpus(folder: Path) -> Path:
    """The same languages with 60 and 20 pairs; returns the folder."""
    tasks = [
        Task("xa", "en", "xa", split(60, 1, False), split(10, 2, False), split(5, 3, False)),
        Task("xb", "en", "xb", split(20, 4, True), split(10, 5, True), split(5, 6, True)),
    ]
    write_corpus(Corpus("toy", tasks), folder)
    return folder


def short(corpus: Path, *more: str) -> Config:
    """60 updates: many epochs of the small task, with dropout, checkpoints at odd updates, and kept models."""
    usual = ["train.steps=60", "train.validate_every=20", "train.save_every=7", "train.keep=2", "model.dropout=0.2"]
    return settings(corpus, *usual, "sampling.batch_tokens=60", *more)


def assert_same_runs(one: Path, other: Path) -> None:
    """Asserts that two runs wrote the same metrics and checkpoints."""
    assert metrics(one) == metrics(other)
    assert_same(final_state(one), final_state(other))
    names = sorted(path.name for path in (one / "checkpoints").iterdir())
    assert sorted(path.name for path in (other / "checkpoints").iterdir()) == names
    for name in set(names) - {"previous.pt"}:  # it depends on where the run was stopped
        left, right = (checkpoint.load(run / "checkpoints" / name) for run in (one, other))
        assert_same(left["model"], right["model"], name)
    assert not list(other.rglob(".*.tmp"))
