"""The model that the settings of a run describe, new or trained."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from cats.nmt.config import schema
from cats.nmt.config.schema import Config
from cats.nmt.data.tokenizer import Tokenizer
from cats.nmt.model.transformer import Transformer
from cats.nmt.training.origin import Origin


@dataclass(frozen=True)
class TrainedModel:
    """A model of a run and what is needed to use it.

    Attributes:
        config: the settings of the run.
        tokenizer: the one that the model was trained with.
        model: in evaluation mode, on the default device.
        origin: what it was trained with.
        step: the updates that it was trained for; None if its file does not say so, as that of an average.
    """

    config: Config
    tokenizer: Tokenizer
    model: Transformer
    origin: Origin
    step: int | None = None


def build_model(settings: schema.Model, tokenizer: Tokenizer, *, checkpoint_activations: bool = False) -> Transformer:
    """A new model with random parameters. checkpoint_activations: see ``Transformer``."""
    return Transformer(
        tokenizer.vocab_size,
        settings.d_model,
        settings.heads,
        settings.ffn,
        settings.encoder_layers,
        settings.decoder_layers,
        settings.dropout,
        tokenizer.pad_id,
        norm=settings.norm,
        embedding_norm=settings.embedding_norm,
        embeddings=settings.embeddings,
        attention_dropout=settings.attention_dropout,
        activation_dropout=settings.activation_dropout,
        checkpoint_activations=checkpoint_activations,
        language_tags=[tokenizer.tag(language) for language in tokenizer.languages] if settings.clsr else (),
        language_budget=settings.clsr,
    )


def with_tied(parameters: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The parameters of `model` with all their names. An exported model has those that are tied only once."""
    first: dict[int, str] = {}
    found = dict(parameters)
    for name, tensor in model.state_dict().items():
        other = first.setdefault(tensor.data_ptr(), name)
        if other in parameters:
            found.setdefault(name, parameters[other])
    return found
