"""The Transformer: section model."""

from __future__ import annotations

from dataclasses import dataclass

from cats.nmt.config.setting import FRACTION, LAYERS, LENGTH, WIDTH, between, setting


@dataclass(frozen=True)
class Model:
    """The Transformer."""

    d_model: int = setting(96, "width of the Transformer", need=WIDTH)
    heads: int = setting(4, "attention heads; must divide d_model", need=between(1, 65_536))
    ffn: int = setting(192, "width of the feed-forward layers", need=between(1, 10**6))
    encoder_layers: int = setting(2, "encoder layers", need=LAYERS)
    decoder_layers: int = setting(2, "decoder layers", need=LAYERS)
    dropout: float = setting(0.1, "dropout after the embeddings and after every sub-layer", need=FRACTION)
    attention_dropout: float = setting(0.0, "dropout on the attention weights", need=FRACTION)
    activation_dropout: float = setting(0.0, "dropout within the feed-forward layers", need=FRACTION)
    norm: str = setting(
        "layernorm",
        "norm before every sub-layer; layernorm-plain has no gain and bias, scalenorm has a single gain",
        choices=("layernorm", "layernorm-plain", "rmsnorm", "scalenorm"),
    )
    embedding_norm: bool = setting(False, "the same norm also after the embeddings")
    embeddings: str = setting(
        "tied",
        "embedding matrices: tied (source = target = output), decoder-tied (target = output) or separate (three)",
        choices=("tied", "decoder-tied", "separate"),
    )
    clsr: float = setting(
        0.0,
        "budget of language-specific routing (CLSR: Zhang et al. 2021), the share of outputs that each language makes "
        "with matrices of its own, such as 0.3; 0: off",
        need=FRACTION,
    )
    max_length: int = setting(
        256,
        "longest side of a training or validation pair in tokens, tag and end included; longer pairs are left out and "
        "counted",
        need=LENGTH,
    )
