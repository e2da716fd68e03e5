"""Models in folders for `transformers`: what is written, and that the library loads it and translates the same."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("sentencepiece")

import torch
from safetensors.torch import load_file
from torch import nn

from cats.nmt.config.schema import Config
from cats.nmt.config.toml import apply_overrides
from cats.nmt.data.batch import collate
from cats.nmt.data.tokenizer import Tags, Tokenizer
from cats.nmt.errors import UserError
from cats.nmt.model.decode import translate
from cats.nmt.model.transformer import Transformer
from cats.nmt.training import huggingface
from cats.nmt.training.origin import Origin
from cats.nmt.training.trained_model import TrainedModel

LINES = ["the cat sat on the mat", "a bat", "the mat, the cat and the bat", "on the mat of the bat", "cats", "a hat"]
ODD = [
    "a  bat ",
    "</s> <pad> <unk>",
    "<2ru> cat",
    "the >>the<< cat",
    "☃☃ bat ☃",
    "tab\there",
    "a▁bat",
    "é\u00a0e",
    "",
    " ",
]
SMALL = ["model.d_model=32", "model.heads=4", "model.ffn=48", "model.encoder_layers=2", "model.decoder_layers=1"]


def trained(*settings: str) -> TrainedModel:
    """A model of these settings with random parameters, of which none has its initial value."""
    config = apply_overrides(Config(), [*SMALL, *settings])
    tags = Tags.from_settings(config.tokenizer)
    upper = [*map(str.upper, LINES)]
    tokenizer = Tokenizer.train(LINES + upper, ["az", *(["en"] if tags.of == "source" else []), "ru"], 80, tags)
    if config.tokenizer.per_language:
        models = {name: Tokenizer.train(upper, [name], 50) for name in ("az", "ru")}
        tokenizer = Tokenizer.union({"en": Tokenizer.train(LINES, ["en"], 50), **models}, ["az", "ru"], tags)
    torch.manual_seed(0)
    m = config.model
    model = Transformer(
        *(tokenizer.vocab_size, m.d_model, m.heads, m.ffn, m.encoder_layers, m.decoder_layers, m.dropout),
        norm=m.norm,
        embedding_norm=m.embedding_norm,
        embeddings=m.embeddings,
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return TrainedModel(config, tokenizer, model.eval(), Origin("d"))


def test_every_parameter_is_in_the_file_once(tmp_path: Path) -> None:
    model = trained()
    huggingface.write(tmp_path / "model", model, ["az", "ru"])
    found = load_file(tmp_path / "model" / "model.safetensors")
    extra = {"final_logits_bias", "model.encoder.embed_positions.weight", "model.decoder.embed_positions.weight"}
    ours = sorted(float(p.detach().double().square().sum()) for p in (*model.model.parameters(),))
    theirs = [float(p.double().square().sum()) for name, p in found.items() if name not in extra]
    # Sums of squares, because keys and values are one matrix here and two there.
    assert sum(ours) == pytest.approx(sum(theirs), rel=1e-12)
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["architectures"] == ["PegasusForConditionalGeneration"] and config["decoder_start_token_id"] == 2
    vocabulary = json.loads((tmp_path / "model" / "vocab.json").read_text())
    assert list(vocabulary.values()) == [*range(model.tokenizer.vocab_size)] and vocabulary[">>ru<<"] == 5


@pytest.mark.parametrize(
    "setting, reason",
    [
        ("model.norm=rmsnorm", "model.norm=rmsnorm"),
        ("model.norm=scalenorm", "model.norm=scalenorm"),
        ("model.clsr=0.3", "model.clsr"),
        ("tokenizer.source_tag=replace-eos", "tokenizer.source_tag=replace-eos"),
        ("tokenizer.per_language=true", "tokenizer.per_language with several source languages"),
    ],
)
def test_what_cannot_be_expressed_is_refused(tmp_path: Path, setting: str, reason: str) -> None:
    with pytest.raises(UserError, match=f"^transformers cannot express {reason}: .*; leave out --to$"):
        huggingface.write(tmp_path / "model", trained(setting), ["az", "de-ru"])
    assert not (tmp_path / "model").exists()


def test_a_failed_export_leaves_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface, "parameters", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        huggingface.write(tmp_path / "model", trained(), ["az", "ru"])
    assert [*(tmp_path / "model").iterdir()] == []


def test_the_current_folder_is_named_in_the_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    huggingface.write(Path("."), trained(), ["az", "ru"])
    assert 'AutoTokenizer.from_pretrained("here")' in Path("README.md").read_text()


@pytest.fixture
def loaded(tmp_path: Path) -> Callable[[TrainedModel], tuple[Any, Any]]:
    """Exports a model and loads it with transformers. Returns its tokenizer and its model."""
    transformers = pytest.importorskip("transformers", minversion="5.24")

    def load(model: TrainedModel) -> tuple[Any, Any]:
        huggingface.write(tmp_path / "model", model, ["az", "ru"])
        found, about = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "model", output_loading_info=True)
        assert not about["missing_keys"] and not about["unexpected_keys"]
        return transformers.AutoTokenizer.from_pretrained(tmp_path / "model"), found

    return load


@pytest.mark.slow  # importing transformers takes seconds
@pytest.mark.filterwarnings("ignore")  # of transformers itself
@pytest.mark.parametrize(
    "settings",
    [
        [],
        ["model.embeddings=decoder-tied", "model.norm=layernorm-plain"],
        ["model.embeddings=separate", "tokenizer.source_tag=none", "tokenizer.target_tag=true"],
        ["model.embedding_norm=true", "tokenizer.target_tag=true", "tokenizer.tag_of=source"],
        ["model.embedding_norm=true", "model.embeddings=decoder-tied", "tokenizer.per_language=true"],
    ],
    ids=" ".join,
)
def test_transformers_has_the_same_pieces_and_logits(
    loaded: Any,
    settings: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    ours = trained(*settings)
    tokenizer, model = loaded(ours)
    tags = ours.tokenizer.tags
    tag = "" if tags.source == "none" else ">>ru<< " if tags.of == "target" else ">>en<< "
    assert tokenizer([tag + line for line in LINES + ODD]).input_ids == ours.tokenizer.encode_source(
        LINES + ODD, "en", "ru"
    )
    targets = ours.tokenizer.encode_target([*map(str.upper, LINES)], "ru")
    assert tokenizer.batch_decode(targets, skip_special_tokens=True) == ours.tokenizer.decode(targets)
    batch = tokenizer([tag + line for line in LINES], return_tensors="pt", padding=True)
    rows = collate(ours.tokenizer.encode_source(LINES, "en", "ru"), targets, [ours.tokenizer.start("ru")] * len(LINES))
    assert torch.equal(batch.input_ids, rows.source)
    with torch.no_grad():
        theirs = model(**batch, decoder_input_ids=rows.target_in).logits
        expected = ours.model(rows.source, rows.target_in)
    real = rows.target_in != 0
    torch.testing.assert_close(theirs[real], expected[real], rtol=0, atol=1e-5)  # the logits are up to 10

    # The example of README.md works, and does what cats translate does.
    (example,) = re.findall(r"^```python\n(.*?)^```", (tmp_path / "model" / "README.md").read_text(), re.M | re.S)
    names: dict[str, Any] = {}
    monkeypatch.chdir(tmp_path)
    exec(example.replace("Monday", LINES[0]).replace("**inputs", "**inputs, num_beams=1, max_new_tokens=24"), names)
    assert names["inputs"].input_ids.tolist() == ours.tokenizer.encode_source(LINES[:1], "en", "az")
    greedy = apply_overrides(ours.config, ["decode.beam=1"]).decode
    whole = translate(ours.model, ours.tokenizer, LINES[:1], "en", "az", greedy)[0].strip()
    shown = ast.literal_eval(capsys.readouterr().out)[0]
    assert shown and whole.startswith(shown)  # it may be cut: a model with random parameters need not end


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("norm", ["false", "true"], ids=["Pegasus", "MBart"])
def test_transformers_translates_the_same(loaded: Any, norm: str) -> None:
    """A model that is trained to copy (az) and to reverse (ru), with greedy and beam search."""
    ours = trained(f"model.embedding_norm={norm}", "decode.penalty=fairseq", "decode.length_penalty=1")
    tokens = ours.tokenizer
    sources = tokens.encode_source(LINES, "en", "az") + tokens.encode_source(LINES, "en", "ru")
    targets = tokens.encode_target(LINES, "az") + [[*r[-2::-1], r[-1]] for r in tokens.encode_target(LINES, "ru")]
    batch = collate(sources, targets, [tokens.bos_id] * len(sources))
    optimizer = torch.optim.Adam(ours.model.parameters(), lr=5e-3)
    for _ in range(60):
        logits = ours.model(batch.source, batch.target_in)
        nn.functional.cross_entropy(logits.flatten(0, 1), batch.target_out.flatten(), ignore_index=0).backward()
        optimizer.step()
        optimizer.zero_grad()
    tokenizer, model = loaded(ours)
    found = set()
    for language in ("az", "ru"):
        for beam in (1, 4):
            settings = apply_overrides(ours.config, [f"decode.beam={beam}"]).decode
            expected = translate(ours.model, tokens, LINES, "en", language, settings)
            expected = [line.strip() for line in expected]  # transformers removes spaces at the ends
            inputs = tokenizer([f">>{language}<< {line}" for line in LINES], return_tensors="pt", padding=True)
            output = model.generate(**inputs, num_beams=beam)
            assert tokenizer.batch_decode(output, skip_special_tokens=True) == expected
            found |= {*expected}
    assert len(found) > 6 and set(LINES) & found  # it has learnt something
