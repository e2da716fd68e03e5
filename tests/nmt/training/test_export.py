"""The folder of an exported model. What `cats export` does with it is tested in tests/nmt/cli/test_export.py."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("sentencepiece")

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from cats.nmt.config.schema import Config
from cats.nmt.data.tokenizer import Tokenizer
from cats.nmt.errors import UserError
from cats.nmt.model.transformer import Transformer
from cats.nmt.training import export, export_file
from cats.nmt.training.origin import Origin, settings_of
from cats.nmt.training.run import RunDirectory
from cats.nmt.training.trained_model import TrainedModel, with_tied

WORDS = ["alpha", "bravo", "carol", "delta", "echo", "fox", "golf", "hotel"]


def test_tied_weights_are_exported_once(tmp_path: Path) -> None:
    tokenizer = Tokenizer.train(WORDS, ["az"], 40)

    def tied() -> Transformer:
        model = Transformer(tokenizer.vocab_size, 16, 2, 16, 1, 1, 0.0)
        model.decoder_embedding = model.embedding
        return model

    model, other = tied(), tied()
    export.write(tmp_path / "model", TrainedModel(Config(), tokenizer, model, Origin("d")), ["az"])
    with safe_open(tmp_path / "model" / "model.safetensors", "pt") as file:
        assert len(list(file.keys())) == len(model.state_dict()) - 1
    parameters, origin, _ = RunDirectory(tmp_path / "model").read_model()
    assert origin == Origin("d", settings=settings_of(Config()))
    other.load_state_dict(with_tied(parameters, other))
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in model.state_dict().items())


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small exported model."""
    folder = tmp_path_factory.mktemp("exported")
    parameters = {"weight": torch.arange(12.0).reshape(3, 4), "scale": torch.tensor(2.0)}
    export_file.write(folder / "model.safetensors", parameters, Origin("d", {"az": [1, 2, 3]}, "t", {"a.b": 1}), ["az"])
    return folder / "model.safetensors"


def test_an_exported_file_is_read_as_written(exported: Path) -> None:
    parameters, origin = export_file.read(exported)
    assert origin == Origin("d", {"az": [1, 2, 3]}, "t", {"a.b": 1}) and export_file.task_names(exported) == ["az"]
    assert torch.equal(parameters["weight"], torch.arange(12.0).reshape(3, 4)) and parameters["scale"] == 2.0


def test_every_changed_byte_of_an_exported_file_is_noticed(exported: Path, tmp_path: Path) -> None:
    """Spaces at the end of the header are the only bytes without a meaning."""
    content = exported.read_bytes()
    meaning = len(content[: 8 + int.from_bytes(content[:8], "little")].rstrip(b" "))
    header = 8 + int.from_bytes(content[:8], "little")
    file = tmp_path / "model.safetensors"
    for place in (*range(meaning), *range(header, len(content))):
        file.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(UserError, match=r"model\.safetensors is damaged or not an exported model"):
            export_file.read(file)


@pytest.mark.parametrize(
    "about",
    [{"tasks": "["}, {"tasks": "3"}, {"tasks": "[3]"}, {"tasks": "[" * 100_000}, {"tasks": "9" * 10_000}],
)
def test_names_of_tasks_of_another_type(tmp_path: Path, about: dict[str, str]) -> None:
    save_file({"weight": torch.zeros(1)}, tmp_path / "model.safetensors", about)
    with pytest.raises(UserError, match="is damaged or not an exported model"):
        export_file.task_names(tmp_path / "model.safetensors")


@pytest.mark.parametrize("origin", ["[", "3", "[]", '{"digest": 3}', '{"settings": [1]}', "[" * 100_000])
def test_an_origin_of_another_type(tmp_path: Path, origin: str) -> None:
    save_file({"weight": torch.zeros(1)}, tmp_path / "model.safetensors", {"origin": origin})
    with pytest.raises(UserError, match="is damaged or not an exported model"):
        export_file.read(tmp_path / "model.safetensors")


def test_a_model_that_an_earlier_version_exported(tmp_path: Path) -> None:
    save_file({"weight": torch.ones(2)}, tmp_path / "model.safetensors", {"format": "pt", "digest": "d"})
    parameters, origin = export_file.read(tmp_path / "model.safetensors")
    assert origin == Origin("d") and torch.equal(parameters["weight"], torch.ones(2))
    assert export_file.task_names(tmp_path / "model.safetensors") == []
