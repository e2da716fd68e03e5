"""The tokenizer and the language tags: section tokenizer."""

from __future__ import annotations

from dataclasses import dataclass

from cats.nmt.config.setting import COUNT, POSITIVE_COUNT, POSITIVE_OR_INF, SHARE, between, setting


@dataclass(frozen=True)
class Tokenizer:
    """The tokenizer and the language tags."""

    vocab_size: int = setting(2000, "largest number of pieces of the sentencepiece model", need=between(1, 10**6))
    per_language: bool = setting(
        False, "train one model of vocab_size pieces per language, and use their union as the vocabulary (MultiDDS)"
    )
    temperature: float = setting(
        5.0,
        "joint model: a language's share of the text it is trained on is proportional to pairs^(1/T)",
        need=POSITIVE_OR_INF,
    )
    most_pairs: int = setting(
        500_000,
        "approximate number of pairs that the tokenizer is trained on, if the corpus is larger",
        need=POSITIVE_COUNT,
    )
    character_coverage: float = setting(
        1.0, "share of the text's characters that get pieces; below 1, the rarest characters become unknown", need=SHARE
    )
    extend: int = setting(
        0,
        "with train.init_from: largest number of new pieces, for characters that the tokenizer of that run lacks",
        need=COUNT,
    )
    source_tag: str = setting(
        "prepend",
        "language tag in the source: before the pieces, in place of the end of sentence, or none",
        choices=("prepend", "replace-eos", "none"),
    )
    tag_of: str = setting(
        "target",
        "which language the source is tagged with; for source, also set target_tag",
        choices=("target", "source"),
    )
    target_tag: bool = setting(False, "start the decoder with the tag of the target language instead of <s>")
