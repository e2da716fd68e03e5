"""Measures the data pipeline alone, on generated text: the built-in corpus has short phrases only."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch

from bench.common import measure

from .records import PipelineRate

WORDS = 50_000
TASKS, PAIRS = 8, 12_000
BATCH_TOKENS = (800, 5000, 25_000)
SECONDS = 1.0  # the length of a sample


def write_text(folder: Path, tasks: int, pairs: int) -> None:
    """Writes a corpus with this many tasks, and this many pairs for each.

    Words are random letters, and their frequencies follow Zipf's law. Sentences are as long as those of talks: 19 words
    on average.
    """
    rng = np.random.default_rng(1)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    words = ["".join(rng.choice(letters, length)) for length in rng.integers(2, 10, WORDS)]
    frequency = 1 / np.arange(8, WORDS + 8)
    frequency /= frequency.sum()

    def write(path: Path, lengths: np.ndarray) -> None:
        drawn = iter(rng.choice(WORDS, lengths.sum(), p=frequency).tolist())
        with path.open("w") as file:
            file.writelines(" ".join(words[next(drawn)] for _ in range(length)) + "\n" for length in lengths)

    folder.mkdir(parents=True)
    for target in "abcdefghijklmnopqrstuvwxyz"[:tasks]:
        lengths = np.clip(rng.lognormal(2.8, 0.6, pairs), 2, 80).astype(int)
        write(folder / f"train.en-x{target}.en", lengths)
        write(folder / f"train.en-x{target}.x{target}", np.clip(lengths + rng.integers(-2, 3, pairs), 1, 80))


def run(folder: Path, samples: int) -> list[PipelineRate]:
    """Measures drawing and padding batches from a prepared folder, on one core, without a model."""
    from cats.nmt.config.schema import Config
    from cats.nmt.config.toml import apply_overrides
    from cats.nmt.data.dataset import TokenDataset
    from cats.nmt.data.encode import EncodingSettings
    from cats.nmt.data.prepare import prepare
    from cats.nmt.data.prepared import read_prepared
    from cats.nmt.data.sampler import Mixture, Sampler
    from cats.nmt.training.load_corpus import load_corpus

    write_text(folder / "text", TASKS, PAIRS)
    settings = ["tokenizer.vocab_size=8000", "tokenizer.most_pairs=10000", f"data.path={folder / 'text'}"]
    config = apply_overrides(Config(), settings)
    corpus = load_corpus(config.data)
    encoding = EncodingSettings(config.data, config.tokenizer, config.model.max_length)
    prepare(corpus, encoding, folder / "prepared", quiet=True)
    ready = read_prepared(folder / "prepared", encoding)
    directions = {task.name: (task.source, task.target) for task in corpus.tasks}
    tokens = TokenDataset(ready.shards, directions, ready.tokenizer, torch.device("cpu"))
    lengths = tokens.lengths()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    found = []
    for batch_tokens in BATCH_TOKENS:
        sampler = Sampler(lengths, mixture=Mixture(3.0), batch_tokens=batch_tokens, seed=1)
        rates: dict[str, list[float]] = {"target": [], "both": []}
        step = 0
        for _ in range(samples):
            made = []
            start = time.perf_counter()
            while (passed := time.perf_counter() - start) < SECONDS:
                chosen = sampler.batch(step)
                tokens.batch(chosen)
                made.append(chosen)
                step += 1
            counts = sum(lengths[task][rows].sum(0) for chosen in made for task, rows in chosen.items())
            rates["target"].append(float(counts[1] / passed))
            rates["both"].append(float(counts.sum() / passed))
        target, both = (measure.summary(rates[kind]) for kind in ("target", "both"))
        found.append(PipelineRate(batch_tokens, target, both))
    torch.set_num_threads(threads)
    return found
