"""The folder of an exported model. What `cats export` does with it is tested in tests/nmt/cli/test_export.py."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("sentencepiece")

import torch
from safetensors import safe_open

from cats.nmt.config.schema import Config
from cats.nmt.data.tokenizer import Tokenizer
from cats.nmt.model.transformer import Transformer
from cats.nmt.training import export
from cats.nmt.training.run import RunDirectory, TrainedModel

WORDS = ["alpha", "bravo", "carol", "delta", "echo", "fox", "golf", "hotel"]


def test_tied_weights_are_exported_once(tmp_path: Path) -> None:
    tokenizer = Tokenizer.train(WORDS, ["az"], 40)

    def tied() -> Transformer:
        model = Transformer(tokenizer.vocab_size, 16, 2, 16, 1, 1, 0.0)
        model.decoder_embedding = model.embedding
        return model

    model, other = tied(), tied()
    export.write(tmp_path / "model", TrainedModel(Config(), tokenizer, model, "d"), ["az"])
    with safe_open(tmp_path / "model" / "model.safetensors", "pt") as file:
        assert len(list(file.keys())) == len(model.state_dict()) - 1
    assert RunDirectory(tmp_path / "model").read_weights(other)["digest"] == "d"
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in model.state_dict().items())
