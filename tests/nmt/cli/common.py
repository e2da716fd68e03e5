"""A tiny corpus, settings for a tiny run, and standard input for the tests of the commands."""

from __future__ import annotations

import random
from pathlib import Path

from cats.nmt.data.corpus import Corpus, Split, Task
from cats.nmt.data.corpus_files import write_corpus

WORDS = ["alpha", "bravo", "carol", "delta", "echo", "fox", "golf", "hotel"]
TINY = [
    "tokenizer.vocab_size=70",
    "model.d_model=16",
    "model.heads=2",
    "model.ffn=32",
    "model.encoder_layers=1",
    "model.decoder_layers=1",
    "train.steps=20",
    "train.lr=3e-3",
    "train.warmup=5",
    "train.validate_every=10",
    "train.threads=1",
    "sampling.batch_tokens=100",
    "decode.beam=2",
]
SET = [argument for setting in TINY for argument in ("--set", setting)]


def split(count: int, seed: int) -> Split:
    """`count` random pairs; the target is the source in capitals."""
    chooser = random.Random(seed)
    source = [" ".join(chooser.choices(WORDS, k=chooser.randint(1, 6))) for _ in range(count)]
    return Split(source, [line.upper() for line in source])


def write_toy(path: Path) -> Path:
    """Write a corpus of two tasks, az with 60 training pairs and be with 20, and return its folder."""
    sizes = {"az": 60, "be": 20}
    tasks = [Task(name, "en", name, split(n, n), split(8, 5), split(10, 6)) for name, n in sizes.items()]
    write_corpus(Corpus("toy", tasks), path)
    return path


class Input:
    """Standard input that arrives in chunks, as from a slow pipe."""

    def __init__(self, *chunks: bytes) -> None:
        self.buffer, self.chunks = self, list(chunks)

    def read1(self, _size: int) -> bytes:
        return self.chunks.pop(0) if self.chunks else b""
