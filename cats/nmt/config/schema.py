"""All settings of a run: the sections of the configuration together.

The help lines are printed by ``cats train --help`` and written to the ``config.toml`` of every run.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, get_type_hints

from cats.nmt.config.sections.data import Data
from cats.nmt.config.sections.decode import Decode
from cats.nmt.config.sections.evaluate import Evaluate
from cats.nmt.config.sections.method import Method
from cats.nmt.config.sections.model import Model
from cats.nmt.config.sections.sampling import Sampling
from cats.nmt.config.sections.tokenizer import Tokenizer
from cats.nmt.config.sections.train import Train


@dataclass(frozen=True)
class Config:
    """All settings of a run."""

    data: Data = field(default_factory=Data)
    tokenizer: Tokenizer = field(default_factory=Tokenizer)
    model: Model = field(default_factory=Model)
    sampling: Sampling = field(default_factory=Sampling)
    method: Method = field(default_factory=Method)
    train: Train = field(default_factory=Train)
    decode: Decode = field(default_factory=Decode)
    evaluate: Evaluate = field(default_factory=Evaluate)


# {section: its class}, {"section.key": type}, {"section.key": field}
SECTIONS: dict[str, type] = get_type_hints(Config)
TYPES: dict[str, Any] = {
    f"{section}.{key}": kind for section, cls in SECTIONS.items() for key, kind in get_type_hints(cls).items()
}
FIELDS: dict[str, dataclasses.Field[Any]] = {
    f"{section}.{f.name}": f for section, cls in SECTIONS.items() for f in dataclasses.fields(cls)
}


def value_of(config: Config, name: str) -> Any:
    """The value of the setting "section.key"."""
    section, key = name.split(".")
    return getattr(getattr(config, section), key)
