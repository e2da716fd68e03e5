"""What a model was trained with. Checkpoints and exported models record it, so that changed files are noticed."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cats.nmt.config.checks import format_value
from cats.nmt.config.schema import FIELDS, Config, Model
from cats.nmt.data.corpus import SPLITS, Corpus
from cats.nmt.data.tokenizer import Tokenizer
from cats.nmt.errors import UserError
from cats.nmt.model.decode import LengthLimit

_HARMLESS = ("dropout", "max_length")  # model settings that a trained model does not depend on
# The settings that decide what the parameters of a model mean.
DEFINING = [
    *(f"model.{f.name}" for f in dataclasses.fields(Model) if not any(part in f.name for part in _HARMLESS)),
    *(f"tokenizer.{name}" for name in ("per_language", "source_tag", "target_tag", "tag_of")),
]
_OFTEN_CHANGED = ("train.", "decode.", "evaluate.")  # sections that say nothing about a trained model
_SHOWN = 5  # the most differences that a message lists


@dataclass(frozen=True)
class Origin:
    """What a model was trained with. Checkpoints of earlier versions have only the first field: the others are empty.

    digest: the digest of the corpus.
    corpus: {task: [training pairs, validation pairs, test pairs]}.
    tokenizer: the digest of the tokenizer.
    settings: {"section.key": value}.
    limits: {task: the fields of its ``LengthLimit``}.
    """

    digest: str = ""
    corpus: dict[str, list[int]] = field(default_factory=dict)
    tokenizer: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    limits: dict[str, list[float]] = field(default_factory=dict)

    @classmethod
    def of(cls, config: Config, corpus: Corpus, tokenizer: Tokenizer) -> Origin:
        return cls(corpus.digest(), corpus.counts, tokenizer.digest(), settings_of(config))

    @classmethod
    def of_state(cls, state: Mapping[str, Any]) -> Origin:
        """That of a checkpoint, or of an exported model.

        Raises:
            TypeError: a field has another type.
        """
        found = {f.name: state[f.name] for f in dataclasses.fields(cls) if f.name in state}
        for name, value in found.items():
            if not isinstance(value, str if name in ("digest", "tokenizer") else dict):
                raise TypeError(f"{name} has another type")
        return cls(**found)

    @property
    def tasks(self) -> list[str]:
        """The tasks that the model was trained on; the zero-shot directions have no training pairs."""
        return [name for name, counts in self.corpus.items() if counts[0]]

    def length_limit(self, task: str) -> LengthLimit:
        """How long the translations of a task may be. The usual limit for tasks without training pairs."""
        return LengthLimit(*self.limits.get(task, ()))

    def to_state(self) -> dict[str, Any]:
        """The fields, to be stored in a checkpoint."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}

    def changed_settings(self, config: Config) -> dict[str, tuple[Any, Any]]:
        """{setting: (its value then, its value now)} of the settings that differ. The corpus may have been moved."""
        now = settings_of(config)
        known = {name: value for name, value in self.settings.items() if name in now and name != "data.path"}
        return {name: (then, now[name]) for name, then in known.items() if then != now[name]}

    @staticmethod
    def is_often_changed(name: str) -> bool:
        """Whether a setting matters only for further training, or for how the model is used."""
        return name.startswith(_OFTEN_CHANGED) or "dropout" in name

    def check(
        self,
        config: Config,
        tokenizer: Tokenizer,
        config_file: Path,
        tokenizer_file: Path,
        model_file: Path,
        *,
        resuming: bool,
        quiet: bool,
    ) -> None:
        """Compares the settings and the tokenizer of a run with what a model in it was trained with.

        A changed setting that a trained model does not depend on is allowed, with a notice. One of training or
        decoding, such as decode.beam, is noticed only when the training is resumed.

        Args:
            config_file, tokenizer_file: where the first two were read from.
            model_file: the file of the model.
            quiet: no notice.

        Raises:
            UserError: the tokenizer, or a setting that the model depends on, is another one.
        """
        if self.tokenizer and tokenizer.digest() != self.tokenizer:
            raise UserError(
                f"{tokenizer_file} is not the tokenizer that {model_file.name} was trained with: it was changed or "
                "replaced; put the right file there"
            )
        changes = self.changed_settings(config)
        for name in DEFINING:
            if name in changes:
                then, now = changes[name]
                raise UserError(
                    f"{config_file} has {name} = {format_value(now)}, but {model_file.name} was trained with "
                    f"{format_value(then)}; set it back"
                )
        if not resuming:
            changes = {name: values for name, values in changes.items() if not self.is_often_changed(name)}
        if changes and not quiet:
            said = [f"{name} = {format_value(now)} (was {format_value(then)})" for name, (then, now) in changes.items()]
            print(
                f"cats: {config_file} was changed since {model_file.name} was written: {', '.join(said)}",
                file=sys.stderr,
            )

    def corpus_difference(self, corpus: Corpus) -> str:
        """In what a corpus differs from that of this model."""
        if not self.corpus:
            return (
                "its text differs, or only its form: the version that this run was started with recorded raw text and "
                "prepared text differently"
            )
        now = corpus.counts
        found = [f"{name} is new" for name in now if name not in self.corpus]
        found += [f"{name} is missing" for name in self.corpus if name not in now]
        for name in sorted(self.corpus.keys() & now.keys()):
            for split, before, after in zip(SPLITS, self.corpus[name], now[name], strict=False):
                if before != after:
                    found.append(f"{name} has {after:,} {split} pairs instead of {before:,}")
        if not found:
            return "its tasks and their sizes are the same, but its text differs"
        more = f" and {len(found) - _SHOWN} more differences" if len(found) > _SHOWN else ""
        return ", ".join(found[:_SHOWN]) + more


def settings_of(config: Config) -> dict[str, Any]:
    """{"section.key": value} of all settings, as JSON has them: lists instead of tuples."""
    values = {}
    for name in FIELDS:
        section, key = name.split(".")
        value = getattr(getattr(config, section), key)
        values[name] = list(value) if isinstance(value, tuple) else value
    return values
