"""Exports a trained model as a folder that `transformers` loads, without a need for that library here.

The model becomes one of two classes. Both have the norms before the sub-layers, a norm after the last layer, biases and
ReLU, as ours:

* Pegasus has no norm after the embeddings, as our default.
* MBart has one, as our `model.embedding_norm`.

Marian's layers have their norms after the sub-layers, and M2M100 has other sinusoids, which are not ours in another
order. The two classes here take the encodings of the positions from the file: Pegasus as a frozen table, MBart as a
learnt one. So they get our sinusoids as they are.

The tokenizer is Marian's, which calls sentencepiece, as ours does. A line begins with the tag of the target language,
written as `>>az<<`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cats.nmt.config.schema import Config
from cats.nmt.data.corpus import ENGLISH
from cats.nmt.data.directions import direction, tokenizer_name
from cats.nmt.data.tokenizer import Tokenizer
from cats.nmt.errors import UserError
from cats.nmt.files import atomic_write
from cats.nmt.model.transformer import Attention, DecoderLayer, EncoderLayer, FeedForward, Transformer, sinusoids
from cats.nmt.training.export import filled
from cats.nmt.training.trained_model import TrainedModel

# Here hypotheses are ranked by log probability / ((5 + length) / 6)^p, in transformers by log probability / length^q.
# The penalties grow alike at a length L if q = p L / (L + 5). This is for L = 15 pieces.
_SLOPE = 15 / (15 + 5)
_MBART_OFFSET = 2  # MBart's table of positions has two unused rows before the first position
_FILES = (
    *("source.spm", "target.spm", "vocab.json", "tokenizer_config.json", "config.json", "generation_config.json"),
    *("README.md", "model.safetensors"),
)


def write(out: Path, trained: TrainedModel, tasks: Sequence[str], card: str = "") -> None:
    """Writes a model to a new or empty folder.

    Args:
        tasks: the names of the tasks that it was trained on.
        card: the text of README.md, such as that of ``cats.nmt.scoring.model_card``. Empty: only ``usage``.

    Raises:
        UserError: a setting of the run cannot be expressed, the folder is not empty, or it cannot be written.
    """
    from safetensors.torch import save

    config, tokenizer = trained.config, trained.tokenizer
    directions = _directions(tokenizer, tasks)
    _refuse(config, tokenizer, directions)
    source, target = directions[0]
    source = tokenizer_name(source, target, tokenizer)
    several = len({other for _, other in directions}) > 1
    start = tokenizer.bos_id if several else tokenizer.start(target)
    special = {**_special_ids(tokenizer), "decoder_start_token_id": start}
    own = tokenizer.models.get(source, tokenizer)  # with a model per language, that of the only source language
    texts = {
        "vocab.json": _json(_vocabulary(tokenizer)),
        "tokenizer_config.json": _json(_tokenizer_config(config, tokenizer)),
        "config.json": _json({**_model_config(config, tokenizer), **special}),
        "generation_config.json": _json({**_generation_config(config, tokenizer), **special}),
        "README.md": card or usage(out, trained, tasks),
    }
    with filled(out, _FILES):
        atomic_write(out / "source.spm", own.serialized())
        atomic_write(out / "target.spm", tokenizer.serialized())
        for name, text in texts.items():
            atomic_write(out / name, text)
        # Written last: a folder that has this file is complete.
        atomic_write(out / "model.safetensors", save(parameters(trained.model, config), {"format": "pt"}))


def approximations(config: Config) -> list[str]:
    """Sentences on what `transformers` does differently from ``cats.nmt.model.decode``, with this configuration."""
    found = []
    if config.decode.beam > 1 and config.decode.penalty == "google" and config.decode.length_penalty:
        found.append(
            "transformers has the length penalty of decode.penalty=fairseq only, so its beam search may rank "
            "hypotheses of different lengths in another order"
        )
    return found


def _refuse(config: Config, tokenizer: Tokenizer, directions: Sequence[tuple[str, str]]) -> None:
    """Raises `UserError` for settings that the classes of `transformers` cannot express."""
    reason = ""
    if config.model.norm not in ("layernorm", "layernorm-plain"):
        reason = (
            f"model.norm={config.model.norm}: its translation models with norms before the sub-layers have LayerNorm"
        )
    elif config.model.clsr:
        reason = "model.clsr: it has no language-specific routing"
    elif tokenizer.tags.source == "replace-eos":
        reason = "tokenizer.source_tag=replace-eos: its tokenizers of this kind end a source with </s>"
    elif tokenizer.models and len({source for source, _ in directions}) != 1:
        reason = "tokenizer.per_language with several source languages: its tokenizers of this kind have one for all"
    elif clash := [tag for tag in map(_tag, tokenizer.languages) if tag in tokenizer.pieces()]:
        reason = f"the piece {clash[0]} of the vocabulary, which is the name of a tag there"
    if reason:
        raise UserError(f"transformers cannot express {reason}; leave out --to")


def parameters(model: Transformer, config: Config) -> dict[str, Tensor]:
    """The parameters by their names in `transformers`: fp32, on the CPU, no two of them share memory."""
    found: dict[str, Tensor] = {}
    source, target = model.source_embedding or model.embedding, model.embedding
    found["model.shared.weight"] = target.weight
    if config.model.embeddings != "tied":  # there all matrices are one, or none are
        found["model.encoder.embed_tokens.weight"] = source.weight
        found["model.decoder.embed_tokens.weight"] = target.weight
        found["lm_head.weight"] = (model.output or target).weight
    mbart = config.model.embedding_norm
    table = sinusoids(_positions(config), config.model.d_model)
    if mbart:
        table = torch.cat([table.new_zeros(_MBART_OFFSET, table.shape[1]), table])
    found["final_logits_bias"] = torch.zeros(1, target.num_embeddings)
    for side, layers, embedding_norm, last in (
        ("encoder", model.encoder, model.source_norm, model.encoder_norm),
        ("decoder", model.decoder, model.target_norm, model.decoder_norm),
    ):
        found[f"model.{side}.embed_positions.weight"] = table
        if mbart:
            found |= _norm(f"model.{side}.layernorm_embedding", embedding_norm, model)
        found |= _norm(f"model.{side}.layer_norm", last, model)
        for number, layer in enumerate(layers):
            found |= _layer(f"model.{side}.layers.{number}", layer, model)
    return {name: tensor.detach().float().cpu().clone().contiguous() for name, tensor in found.items()}


def _layer(name: str, layer: nn.Module, model: Transformer) -> dict[str, Tensor]:
    assert isinstance(layer, EncoderLayer | DecoderLayer)
    found = {
        **_attention(f"{name}.self_attn", layer.attention),
        **_norm(f"{name}.self_attn_layer_norm", layer.attention_norm, model),
        **_feed_forward(name, layer.ffn),
        **_norm(f"{name}.final_layer_norm", layer.ffn_norm, model),
    }
    if isinstance(layer, DecoderLayer):
        found |= _attention(f"{name}.encoder_attn", layer.cross)
        found |= _norm(f"{name}.encoder_attn_layer_norm", layer.cross_norm, model)
    return found


def _attention(name: str, attention: Attention) -> dict[str, Tensor]:
    """Our keys and values come from one matrix, the keys from its first half."""
    found = {}
    for kind in ("weight", "bias"):
        key, value = getattr(attention.key_value, kind).chunk(2)
        found[f"{name}.q_proj.{kind}"] = getattr(attention.query, kind)
        found[f"{name}.k_proj.{kind}"], found[f"{name}.v_proj.{kind}"] = key, value
        found[f"{name}.out_proj.{kind}"] = getattr(attention.out, kind)
    return found


def _feed_forward(name: str, ffn: FeedForward) -> dict[str, Tensor]:
    first, last = ffn[0], ffn[2]
    return {
        f"{name}.{there}.{kind}": getattr(here, kind)
        for there, here in (("fc1", first), ("fc2", last))
        for kind in ("weight", "bias")
    }


def _norm(name: str, norm: nn.Module, model: Transformer) -> dict[str, Tensor]:
    """A norm without gain and bias has gain 1 and bias 0."""
    assert isinstance(norm, nn.LayerNorm)
    width = model.embedding.embedding_dim
    gain, bias = (torch.ones(width), torch.zeros(width)) if norm.weight is None else (norm.weight, norm.bias)
    return {f"{name}.weight": gain, f"{name}.bias": bias}


def _positions(config: Config) -> int:
    """The length of the table of positions: enough for a source of `decode.max_length` pieces with tag and end."""
    return max(config.decode.max_length, config.model.max_length) + 2


def _model_config(config: Config, tokenizer: Tokenizer) -> dict[str, Any]:
    """The content of config.json."""
    model = config.model
    kind, name = ("mbart", "MBart") if model.embedding_norm else ("pegasus", "Pegasus")
    return {
        "architectures": [f"{name}ForConditionalGeneration"],
        "model_type": kind,
        "is_encoder_decoder": True,
        "vocab_size": tokenizer.vocab_size,
        "d_model": model.d_model,
        **{f"{side}_attention_heads": model.heads for side in ("encoder", "decoder")},
        **{f"{side}_ffn_dim": model.ffn for side in ("encoder", "decoder")},
        "encoder_layers": model.encoder_layers,
        "decoder_layers": model.decoder_layers,
        "activation_function": "relu",
        "dropout": model.dropout,
        "attention_dropout": model.attention_dropout,
        "activation_dropout": model.activation_dropout,
        "scale_embedding": True,
        "tie_word_embeddings": model.embeddings == "tied",
        "max_position_embeddings": _positions(config),
        "dtype": "float32",
    }


def _special_ids(tokenizer: Tokenizer) -> dict[str, int]:
    return {
        "pad_token_id": tokenizer.pad_id,
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": tokenizer.eos_id,
        "forced_eos_token_id": tokenizer.eos_id,
    }


def _generation_config(config: Config, tokenizer: Tokenizer) -> dict[str, Any]:
    """The content of generation_config.json."""
    decode = config.decode
    return {
        "num_beams": decode.beam,
        "length_penalty": decode.length_penalty * (_SLOPE if decode.penalty == "google" else 1),
        "max_new_tokens": config.model.max_length,  # no target of the training was longer
        "suppress_tokens": [i for i in range(tokenizer.first_piece) if i != tokenizer.eos_id],
    }


def _tokenizer_config(config: Config, tokenizer: Tokenizer) -> dict[str, Any]:
    """The content of tokenizer_config.json."""
    return {
        "tokenizer_class": "MarianTokenizer",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "extra_special_tokens": [*map(_tag, tokenizer.languages)],
        "split_special_tokens": True,  # the text "</s>" in a line is text
        "model_max_length": _positions(config),
    }


def _vocabulary(tokenizer: Tokenizer) -> dict[str, int]:
    """{piece: id}; the tags as Marian's tokenizer expects them.

    In a line, ">>ru<<" is text there, too, unless the model has a piece for none of its characters.
    """
    tags = {tokenizer.tag(language): _tag(language) for language in tokenizer.languages}
    return {tags.get(i, piece): i for i, piece in enumerate(tokenizer.pieces())}


def _tag(language: str) -> str:
    return f">>{language}<<"


def usage(out: Path, trained: TrainedModel, tasks: Sequence[str]) -> str:
    """How to translate with the folder `out`, as Markdown. The arguments are those of ``write``."""
    config, tokenizer = trained.config, trained.tokenizer
    directions = _directions(tokenizer, tasks)
    (source, target), tags, name = directions[0], tokenizer.tags, out.resolve().name
    source = tokenizer_name(source, target, tokenizer)
    text = "Monday" if tags.source == "none" else f"{_tag(target if tags.of == 'target' else source)} Monday"
    known = ", ".join(map(_tag, tokenizer.languages))
    about = [] if tags.source == "none" else [f"A line begins with the tag of its {tags.of} language: {known}."]
    options = ""
    if tags.target and len({other for _, other in directions}) > 1:
        about.append("The decoder starts with the tag of the target language.")
        options = f', decoder_start_token_id=tokenizer.convert_tokens_to_ids("{_tag(target)}")'
    lines = [
        *about,
        "",
        "```python",
        "from transformers import AutoModelForSeq2SeqLM, AutoTokenizer",
        "",
        f'tokenizer = AutoTokenizer.from_pretrained("{name}")',
        f'model = AutoModelForSeq2SeqLM.from_pretrained("{name}")',
        f'inputs = tokenizer(["{text}"], return_tensors="pt", padding=True)',
        f"print(tokenizer.batch_decode(model.generate(**inputs{options}), skip_special_tokens=True))",
        "```",
        *(f"\nNote: {sentence}." for sentence in approximations(config)),
        "",
    ]
    return "\n".join(lines)


def _directions(tokenizer: Tokenizer, tasks: Sequence[str]) -> list[tuple[str, str]]:
    """The directions of the tasks, at least one."""
    found = [direction(task, {*tokenizer.languages}) for task in tasks]
    directions = [(one, other) for one, other in found if one != other]  # without language modelling
    return directions or [(ENGLISH[0], tokenizer.languages[0])]  # models of earlier versions do not name them


def _json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, ensure_ascii=False, indent=1) + "\n"
