"""A model that several tests train."""

from __future__ import annotations

from bench.trainer.cats_trainer import Size

TINY = Size(
    "tiny",
    ("tokenizer.vocab_size=600", "model.d_model=32", "model.ffn=48", "model.dropout=0.2", "sampling.batch_tokens=150"),
    threads=1,
    updates=2,
)
