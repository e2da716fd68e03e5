"""The defaults of the settings."""

from __future__ import annotations

import dataclasses
import inspect

import cats
from cats.nmt.config.schema import Config
from cats.nmt.config.toml import apply_overrides


def test_the_trainers_defaults_for_cats_are_the_librarys():
    library = {name: p.default for name, p in inspect.signature(cats.CATS).parameters.items()}
    settings = dataclasses.asdict(Config().method)
    assert settings.pop("engine") == library["engine"] == "auto"
    assert settings.pop("rows") == 1  # all rows, which the library calls None
    ours = {name: None if v == "auto" else v for name, v in settings.items()}
    assert ours.pop("prior") == "tokens"  # the trainer knows the tasks' shares of the batch; the library does not
    assert {name: library[name] for name in ours if name in library} == {
        name: value for name, value in ours.items() if name not in ("name", "options", "weights", "token_weights")
    }


def test_a_very_large_limit_means_no_limit():
    names = ("model.max_length", "decode.max_length", "decode.batch_tokens", "tokenizer.extend")
    apply_overrides(Config(), ["train.init_from=run", *(f"{name}={10**9}" for name in names)])
