"""This project's side of the comparison: the models that are measured, and the trainer of cats.nmt."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .baselines import Job

CHECK_UPDATES = 3
BEAM, LENGTH = 4, 24


@dataclass(frozen=True)
class Size:
    """A model with its batches. updates: how many a contender makes in one turn."""

    name: str
    settings: tuple[str, ...]
    threads: int
    updates: int


def sizes(cores: int) -> list[Size]:
    """The demo's model on one thread, as in the demo, and a model of 6.2 million parameters on all cores."""
    small = (
        "tokenizer.vocab_size=4000",
        "model.d_model=256",
        "model.heads=4",
        "model.ffn=1024",
        "model.encoder_layers=3",
        "model.decoder_layers=3",
        "sampling.batch_tokens=1000",
    )
    return [Size("demo", (), 1, 15), Size("small", small, cores, 2)]


def configuration(size: Size, corpus: Path | None) -> Any:
    """Settings that all contenders support: mean over tokens, constant learning rate, sampling by corpus size."""
    from cats.nmt.config.schema import Config
    from cats.nmt.config.toml import apply_overrides

    settings = [
        *size.settings,
        "method.name=static",
        "method.weights=tokens",
        "sampling.temperature=1",
        "train.lr=3e-4",
        "train.warmup=0",
        "train.schedule=constant",
        f"train.threads={size.threads}",
    ]
    return apply_overrides(Config(), [*settings, *([f"data.path={corpus}"] if corpus else [])])


def prepared(config: Any, folder: Path) -> Path:
    """Prepares the corpus of a configuration for training, in a new folder."""
    from cats.nmt.data.encode import EncodingSettings
    from cats.nmt.data.prepare import prepare
    from cats.nmt.training.load_corpus import load_corpus

    folder.mkdir()
    encoding = EncodingSettings(config.data, config.tokenizer, config.model.max_length)
    prepare(load_corpus(config.data), encoding, folder / "prepared", quiet=True)
    return folder / "prepared"


class CatsTrainer:
    """The trainer of cats.nmt, and what the baselines need to know about it. Its updates include making the batches."""

    def __init__(self, size: Size, prepared: Path, folder: Path) -> None:
        from cats.nmt.training.device import set_threads
        from cats.nmt.training.run import RunDirectory
        from cats.nmt.training.trainer import Trainer

        self.size, self.config = size, configuration(size, prepared)
        set_threads(self.config.train.threads, self.config.model.d_model)
        self.trainer = Trainer(self.config, folder, resume=False, quiet=True)
        self.tokenizer = RunDirectory(folder).load_tokenizer(self.config.tokenizer)
        self.trainer.model.train()

    def batches(self, count: int) -> list[list[Tensor]]:
        """The batches (source, target_in, target_out) of the first updates."""
        found = [self.trainer.training.batch(self.trainer.sampler.batch(step)) for step in range(count)]
        return [[batch.source, batch.target_in, batch.target_out] for batch in found]

    def check(self, batch: list[Tensor]) -> list[float]:
        """NLL of the batch per token, before and after CHECK_UPDATES updates without dropout."""
        dropouts = [module for module in self.trainer.model.modules() if isinstance(module, nn.Dropout)]
        for module in dropouts:
            module.p = 0.0
        found = [self.nll(batch)]
        for _ in range(CHECK_UPDATES):
            self.trainer.update()
        found.append(self.nll(batch))
        for module in dropouts:
            module.p = self.config.model.dropout
        return found

    def nll(self, batch: list[Tensor]) -> float:
        source, target_in, target_out = batch
        real = target_out != self.tokenizer.pad_id
        with torch.no_grad():
            logits = self.trainer.model(source, target_in)[real]
        return float(nn.functional.cross_entropy(logits, target_out[real]))

    def train(self, count: int) -> float:
        """Seconds of this many updates."""
        start = time.perf_counter()
        for _ in range(count):
            self.trainer.update()
        return time.perf_counter() - start

    def job(self, text: Path | None) -> Job:
        """What a baseline must know. text: where `write_ids` wrote the training text."""
        config, tokenizer = self.config, self.tokenizer
        model = config.model
        return Job(
            vocab_size=tokenizer.vocab_size,
            first_piece=tokenizer.first_piece,
            pad_id=tokenizer.pad_id,
            bos_id=tokenizer.bos_id,
            eos_id=tokenizer.eos_id,
            d_model=model.d_model,
            heads=model.heads,
            ffn=model.ffn,
            encoder_layers=model.encoder_layers,
            decoder_layers=model.decoder_layers,
            dropout=model.dropout,
            smoothing=config.train.label_smoothing,
            lr=config.train.lr,
            betas=config.train.betas,
            clip=config.train.clip,
            batch_tokens=config.sampling.batch_tokens,
            threads=self.size.threads,
            beam=BEAM,
            length=LENGTH,
            text=None if text is None else str(text),
        )

    def write_ids(self, path: Path) -> None:
        """Writes the training text as ids without eos, for a baseline's own batches.

        The files are <path>.source and <path>.target.
        """
        training = self.trainer.training
        with path.with_suffix(".source").open("w") as source, path.with_suffix(".target").open("w") as target:
            for task in training.shards:
                for file, rows in zip((source, target), training.rows(task), strict=True):
                    file.writelines(" ".join(map(str, row[:-1])) + "\n" for row in rows)
