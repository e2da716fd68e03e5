"""The presets."""

from __future__ import annotations

import tomllib
from types import SimpleNamespace

import pytest
import torch

from cats.nmt.config.schema import Config
from cats.nmt.config.toml import presets, read_config, read_preset, to_toml


def written(tmp_path, text: str):
    path = tmp_path / "config.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_preset_tiny_is_the_default():
    assert read_preset("tiny") == Config()
    text = presets()["tiny"].read_text(encoding="utf-8")
    assert {f"{section}.{key}" for section, keys in tomllib.loads(text).items() for key in keys} >= {
        "model.d_model",
        "train.steps",
    }


@pytest.mark.parametrize("name", presets())
def test_a_preset_says_where_it_is_from_and_can_be_written_back(name, tmp_path):
    """It sets every size of the model: a change of the defaults must not change a published model."""
    text = presets()[name].read_text(encoding="utf-8")
    assert text.startswith("# ")
    sizes = {"d_model", "heads", "ffn", "encoder_layers", "decoder_layers", "dropout"}
    assert sizes <= tomllib.loads(text)["model"].keys() and "vocab_size" in tomllib.loads(text)["tokenizer"]
    assert read_config(written(tmp_path, to_toml(read_preset(name)))) == read_preset(name)


# Parameters in millions, of the whole model or without its embeddings, as given in their papers.
PUBLISHED = {"ted": (31.5, False), "opus100": (110, True), "order-matters-3": (55, True), "wide-300m": (300, True)}


@pytest.mark.parametrize("name", presets())
def test_the_model_of_a_preset_has_its_published_size(name):
    from cats.nmt.training.trained_model import build_model

    config = read_preset(name)
    with torch.device("meta"):
        model = build_model(config.model, SimpleNamespace(vocab_size=config.tokenizer.vocab_size, pad_id=0))
    count = sum(p.numel() for p in model.parameters())
    tables = {"tied": 1, "decoder-tied": 2, "separate": 3}[config.model.embeddings]
    body = count - tables * config.tokenizer.vocab_size * config.model.d_model
    assert {p.device.type for p in model.parameters()} == {"meta"} and body > 0
    if name in PUBLISHED:
        expected, whole = PUBLISHED[name]
        assert (count if whole else body) / 1e6 == pytest.approx(expected, rel=0.01)
