"""The trainer learns: golden loss curves, memorizing a few pairs, and tasks that only the tag tells apart."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("sentencepiece")

from cats.nmt.config.schema import Config, Decode
from cats.nmt.config.toml import apply_overrides
from cats.nmt.data.corpus import Corpus, Split, Task
from cats.nmt.data.corpus_files import write_corpus
from cats.nmt.model import decode
from cats.nmt.training.device import default_device
from cats.nmt.training.run import RunDirectory
from cats.nmt.training.trainer import train

WORDS = ["alpha", "bravo", "carol", "delta", "echo", "fox", "golf", "hotel", "india", "jazz", "kilo", "lima"]

# The losses of the golden run on a CPU in float32 with torch 2.13.
GOLDEN = [
    4.8322,
    4.5800,
    4.4405,
    3.9460,
    3.4199,
    3.0554,
    2.7843,
    2.8295,
    2.5282,
    2.4334,
    2.3177,
    2.3568,
    2.2585,
    2.2373,
    2.0496,
    1.9333,
    1.7732,
    1.7222,
    1.4624,
    1.5316,
]

GOLDEN_BUILT_IN = [
    *(7.7713, 7.5310, 7.5510, 7.6746, 7.5644, 7.1361, 7.2239, 6.8839, 6.7064, 6.5873),
    *(6.7439, 6.3486, 6.9148, 6.4294, 5.9880, 5.9792, 5.9757, 6.6303, 6.5801, 5.8998),
]


CHANGES: dict[str, Callable[[list[str]], list[str]]] = {
    "xa": lambda words: words,
    "xb": lambda words: words[::-1],
    "xc": lambda words: [*words[1:], words[0]],
}


def write(folder: Path, **pairs: int) -> Path:
    """A corpus whose languages have the same sources, of four words each: xa copies, xb reverses, xc shifts them.

    Each language has this many training pairs and 20 test pairs. The first 20 training pairs are the validation pairs.
    """
    rng, most = random.Random(1), max(pairs.values())
    rows = [[rng.choice(WORDS) for _ in range(4)] for _ in range(most + 20)]

    def split(name: str, part: slice) -> Split:
        return Split([" ".join(row) for row in rows[part]], [" ".join(CHANGES[name](row)) for row in rows[part]])

    tasks = [
        Task(name, "en", name, *(split(name, part) for part in (slice(n), slice(min(n, 20)), slice(most, None))))
        for name, n in pairs.items()
    ]
    write_corpus(Corpus("toy", tasks), folder)
    return folder


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """32 pairs of two languages."""
    return write(tmp_path / "toy", xa=16, xb=16)


def settings(corpus: Path, *more: str) -> Config:
    model = ["d_model=32", "heads=2", "ffn=64", "encoder_layers=1", "decoder_layers=1", "dropout=0"]
    run = [f"data.path={corpus}", "tokenizer.vocab_size=60", "train.threads=1", "sampling.batch_tokens=300"]
    return apply_overrides(Config(), [*run, *(f"model.{size}" for size in model), *more])


def curve(run: Path) -> list[float]:
    """The mean training loss of every line of metrics."""
    records = map(json.loads, (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return [record["loss"] for record in records if "loss" in record]


def right(run: Path, split: str) -> dict[str, float]:
    """{task: share of the lines that greedy search translates correctly}."""
    trained = RunDirectory(run).load_model("last")
    corpus = RunDirectory(run).load_corpus(trained.config, trained.origin)
    tokenizer, model = trained.tokenizer, trained.model
    shares = {}
    for task in corpus.tasks:
        pairs = list(getattr(task, split))
        found = decode.translate(
            model, tokenizer, [source for source, _ in pairs], task.source, task.target, Decode(beam=1)
        )
        shares[task.name] = sum(ours == pair[1] for ours, pair in zip(found, pairs, strict=True)) / len(pairs)
    return shares


def test_the_golden_curve(corpus, tmp_path):
    """Shows unintended changes of initialization, batches, losses, alpha or learning rates."""
    steps = ["train.steps=60", "train.lr=3e-3", "train.warmup=20", "train.validate_every=60", "train.log_every=3"]
    train(settings(corpus, *steps, "method.inner_steps=3"), tmp_path / "run", quiet=True)
    assert curve(tmp_path / "run") == pytest.approx(GOLDEN, rel=1e-3)


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow)])
def test_a_few_pairs_are_memorized(corpus, tmp_path, seed):
    run = ["steps=300", "lr=3e-3", "warmup=30", "schedule=cosine", "label_smoothing=0", f"seed={seed}"]
    wide = ["model.d_model=64", "model.ffn=128", "model.encoder_layers=2", "model.decoder_layers=2"]
    batch = ["sampling.batch_tokens=600", "method.name=static"]
    train(settings(corpus, *wide, *batch, *(f"train.{setting}" for setting in run)), tmp_path / "run", quiet=True)
    assert curve(tmp_path / "run")[-1] < 0.05
    assert right(tmp_path / "run", "train") == {"xa": 1, "xb": 1}


def long_run(folder: Path, method: str, **pairs: int) -> Path:
    """A run of 1,200 updates on a corpus with this many pairs per language."""
    corpus = write(folder / "toy", **pairs)
    run = ["steps=1200", "lr=3e-3", "warmup=60", "schedule=cosine", "label_smoothing=0", "validate_every=1200"]
    wide = ["model.d_model=64", "model.ffn=128", "model.encoder_layers=2", "model.decoder_layers=2"]
    batch = ["sampling.batch_tokens=600", f"method.name={method}"]
    train(settings(corpus, *wide, *batch, *(f"train.{setting}" for setting in run)), folder / "run", quiet=True)
    return folder / "run"


@pytest.mark.slow
def test_the_tag_selects_what_is_done(tmp_path):
    """The model copies, reverses and shifts unseen lines, which needs correct tags, positions, masks and cache."""
    assert min(right(long_run(tmp_path, "static", xa=400, xb=400, xc=400), "test").values()) >= 0.9


@pytest.mark.slow
def test_a_task_of_twenty_sentences_beside_two_of_a_thousand(tmp_path):
    """CATS learns the large tasks, and makes progress on the small one. (A quarter of its sentences were right.)"""
    run = long_run(tmp_path, "cats", xa=1000, xb=1000, xc=20)
    found = right(run, "test")
    assert min(found["xa"], found["xb"]) >= 0.9 and right(run, "train")["xc"] >= 0.1


@pytest.mark.skipif(default_device().type != "cpu", reason="dropout draws other numbers on a GPU")
def test_the_golden_curve_of_the_built_in_corpus(tmp_path):
    """The first updates of `cats train` without options."""
    pytest.importorskip("babel")
    few = ["train.steps=20", "train.log_every=1", "train.validate_every=20", "data.valid_pairs=1"]
    train(apply_overrides(Config(), few), tmp_path / "run", quiet=True)
    assert curve(tmp_path / "run") == pytest.approx(GOLDEN_BUILT_IN, rel=1e-3)
