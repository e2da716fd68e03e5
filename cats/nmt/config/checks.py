"""Changing settings, with checks of their names, types and values."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import types
from collections.abc import Mapping
from typing import Any, get_args, get_origin

from cats.nmt.config.recipes import MIXTURE_SETTINGS, RECIPES, first_phase, has_mixture, recipe
from cats.nmt.config.schema import FIELDS, TYPES, Config
from cats.nmt.errors import UserError, nearest

TYPE_NAMES = {
    str: "a string",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
}


def replace_settings(config: Config, values: Mapping[str, Any], *, where: str = "") -> Config:
    """A copy of `config` with new values for some settings, given as ``{"section.key": value}``.

    Args:
        where: error messages begin with it, for example the file that the values come from.

    Raises:
        UserError: unknown setting, wrong type, or a value out of range.
    """
    prefix = f"{where}: " if where else ""
    given = {}
    for name, value in values.items():
        if name not in FIELDS:
            raise UserError(f"{prefix}unknown setting '{name}'{suggest_setting(name)}")
        value = _checked(name, value, prefix)
        if name in ("data.path", "train.init_from") and value:
            value = os.path.abspath(value)  # a run may be evaluated from another working directory
        given[name] = value
    changes: dict[str, dict[str, Any]] = {}
    of_recipe = _of_recipe(config, given)
    for name, value in {**of_recipe, **given}.items():
        if name == "method.name":
            value = of_recipe.get(name, value)  # a recipe may be an order of training for a weighting
        section, key = name.split(".")
        changes.setdefault(section, {})[key] = value
    sections = {name: dataclasses.replace(getattr(config, name), **keys) for name, keys in changes.items()}
    config = dataclasses.replace(config, **sections)
    _check_combinations(config, prefix)
    return config


def _of_recipe(config: Config, given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that change because `given` names a recipe, or changes the length of a training in two phases.

    They replace those of `config`. The settings in `given` win over them, and so does everything that is set later.
    """
    method, steps = given.get("method.name"), given.get("train.steps", config.train.steps)
    if method in RECIPES:
        return recipe(method, steps)
    # The method of a run with a recipe may have another name: cats for staged-cats, any weighting with train.restart.
    two_phases = given.get("train.restart", config.train.restart) or given.get("train.pretrain", config.train.pretrain)
    unchanged = config.train.pretrain_steps == first_phase(config.train.steps)
    return {"train.pretrain_steps": first_phase(steps)} if two_phases and unchanged else {}


def _check_combinations(config: Config, prefix: str) -> None:
    """Raises an error for settings that are valid alone, but not together."""
    if config.model.d_model % config.model.heads:
        width, heads = config.model.d_model, config.model.heads
        raise UserError(f"{prefix}model.d_model = {width} is not a multiple of model.heads = {heads}")
    method = config.method
    if config.model.clsr:
        for name, unsupported, instead in (
            ("tokenizer.source_tag", config.tokenizer.source_tag == "none", "prepend or replace-eos"),
            ("method.engine", method.engine in ("one_pass", "forward_mode"), "auto, per_task or two_pass"),
            ("method.rows", method.rows < 1, "1"),
            ("train.distributed", config.train.distributed != "replicas", "replicas"),
            ("train.checkpoint_activations", config.train.checkpoint_activations, "false"),
            ("train.compile", config.train.compile, "false"),
        ):
            if unsupported:
                raise UserError(f"{prefix}model.clsr needs {name} = {instead}")
    if method.token_weights and method.weights != "tokens":
        raise UserError(f"{prefix}method.token_weights needs method.weights = tokens; leave one of them out")
    if method.simplex == "proximal" and not isinstance(method.alpha_lr, str) and method.alpha_lr > 1:
        raise UserError(
            f"{prefix}method.alpha_lr must be at most 1 with method.simplex = proximal, not {method.alpha_lr}"
        )
    if method.simplex == "lagrangian" and method.floor != "auto":
        raise UserError(f"{prefix}method.floor has no effect with method.simplex = lagrangian; set method.epsilon")
    if method.direction != "gradient" and (method.simplex != "proximal" or method.cross_batch):
        other = "method.cross_batch = false" if method.cross_batch else "method.simplex = proximal"
        raise UserError(f"{prefix}method.direction = {method.direction} needs {other}")
    if method.cross_batch and method.engine not in ("auto", "per_task"):
        raise UserError(f"{prefix}method.cross_batch needs method.engine = per_task (or auto), not {method.engine}")
    if method.rows < 1 and (method.engine not in ("auto", "one_pass") or method.cross_batch):
        other = "method.cross_batch" if method.cross_batch else f"method.engine = {method.engine}"
        raise UserError(f"{prefix}method.rows below 1 needs method.engine = one_pass (or auto), not {other}")
    train = config.train
    if train.distributed != "replicas":
        for name, unsupported, instead in (
            ("method.engine", method.engine in ("one_pass", "forward_mode"), "auto, per_task or two_pass"),
            ("method.rows", method.rows < 1, "1"),
            ("method.cross_batch", method.cross_batch, "false"),
            ("model.norm", config.model.norm == "scalenorm", "rmsnorm or layernorm"),
            ("train.precision", train.precision == "fp16", "bf16 or fp32"),
            ("train.compile", train.compile, "false"),
            ("train.analyse_every", train.analyse_every > 0, "0"),
        ):
            if unsupported:
                raise UserError(f"{prefix}train.distributed = {train.distributed} needs {name} = {instead}")
    if train.best_metric != "nll" and not train.validate_bleu:
        raise UserError(
            f"{prefix}train.best_metric = {train.best_metric} needs train.validate_bleu (1: at each validation)"
        )
    if train.pretrain and train.restart:
        raise UserError(
            f"{prefix}train.restart has no effect with train.pretrain, which makes the same reset; leave one out"
        )
    if (train.pretrain or train.restart) and train.steps < 2:
        name = "train.pretrain" if train.pretrain else "train.restart"
        raise UserError(f"{prefix}{name} needs two phases: set train.steps to at least 2, not {train.steps}")
    if (train.pretrain or train.restart) and not 0 < train.pretrain_steps < train.steps:
        name = "train.pretrain" if train.pretrain else "train.restart"
        raise UserError(
            f"{prefix}{name} needs train.pretrain_steps between 1 and {train.steps - 1}, not {train.pretrain_steps}"
        )
    if config.sampling.first_temperature and not train.restart:
        raise UserError(f"{prefix}sampling.first_temperature has no effect without train.restart")
    if train.restart_parts != "all" and not (train.pretrain or train.restart):
        raise UserError(f"{prefix}train.restart_parts has no effect without train.pretrain or train.restart")
    if train.finetune and not (train.pretrain or train.restart):
        raise UserError(f"{prefix}train.finetune has no effect without train.pretrain or train.restart")
    if train.pretrain_steps and not (train.pretrain or train.restart):
        raise UserError(f"{prefix}train.pretrain_steps has no effect without train.pretrain or train.restart")
    _check_mixture(config, prefix)


def _check_mixture(config: Config, prefix: str) -> None:
    """Raises an error if the tasks would be drawn in two ways, of which one would win, or not as `method.name` says."""
    method, sampling = config.method.name, config.sampling
    values = {
        "sampling.ratios": sampling.ratios,
        "sampling.unimax_epochs": sampling.unimax_epochs,
        "sampling.temperature_end": sampling.temperature_end,
    }
    chosen = [name for name, value in values.items() if value]
    own = MIXTURE_SETTINGS.get(method)
    if own and not values[own]:
        need = "one number per task" if own == "sampling.ratios" else "above 0"
        raise UserError(f"{prefix}method.name = {method} needs {own}, {need}")
    if own or has_mixture(method):
        if others := [name for name in chosen if name != own]:
            raise UserError(f"{prefix}method.name = {method} draws the tasks in its own way; leave out {others[0]}")
    elif len(chosen) > 1:
        raise UserError(f"{prefix}{chosen[0]} and {chosen[1]} both say how the tasks are drawn; leave one out")


def suggest_setting(name: str) -> str:
    """ " (did you mean X?)" for an unknown setting, or "". A key without a section finds all settings with this key."""
    if "." not in name:
        owners = [known for known in FIELDS if known.endswith(f".{name}")]
        if owners:
            return f" (did you mean {' or '.join(owners)}?)"
        keys = nearest(name, [known.partition(".")[2] for known in FIELDS])
        return keys or nearest(name, FIELDS)
    return nearest(name, FIELDS)


def _checked(name: str, value: Any, prefix: str) -> Any:
    """`value` converted to the type of the setting; a `UserError` if that is impossible or the value not allowed."""
    kind, metadata = TYPES[name], FIELDS[name].metadata
    converted = _convert(value, kind)
    if converted is None:
        raise UserError(f"{prefix}{name} needs {type_name(kind)}, not {_shown(value)!r}")
    for text in converted if isinstance(converted, tuple) else (converted,):
        if isinstance(text, str) and not is_utf8(text):
            raise UserError(f"{prefix}{name} = {_shown(text)!r} is not valid UTF-8")
        if isinstance(text, str) and "\0" in text:
            raise UserError(f"{prefix}{name} contains a NUL character")
    choices, need = metadata["choices"], metadata["need"]
    if choices and not _is_choice(converted, choices):
        raise UserError(
            f"{prefix}{name} must be one of {', '.join(choices)}, not {_shown(value)!r}{nearest(converted, choices)}"
        )
    if need and not need.test(converted):
        raise UserError(f"{prefix}{name} must be {need.text}, not {_shown(value)}")
    return converted


def _is_choice(value: Any, choices: tuple[str, ...]) -> bool:
    """Whether `value` is one of the choices. The choice X:NAME allows X: and any name."""
    prefix, colon, name = value.partition(":")
    return value in choices or (bool(colon and name) and f"{prefix}:NAME" in choices)


def _convert(value: Any, kind: Any) -> Any:
    """`value` as the type `kind`, or None if it does not fit. An int fits a float setting, a bool does not."""
    if isinstance(kind, types.UnionType):
        return next(
            (v for v in (_convert(value, option) for option in get_args(kind)) if v is not None),
            None,
        )
    if get_origin(kind) is tuple:
        of = get_args(kind)[0]
        items = tuple(_convert(item, of) for item in value) if isinstance(value, list | tuple) else (None,)
        return None if None in items else items
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return None if math.isnan(value) else float(value)
        except OverflowError:  # a whole number beyond the largest float
            return None
    return value if type(value) is kind else None


def format_value(value: Any) -> str:
    """A value as it is written in TOML."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        # A JSON string is a TOML basic string, except that TOML needs U+007F escaped.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(format_value, value))}]"
    return repr(value)


def _shown(value: Any) -> str:
    """A value as error messages show it."""
    try:
        text = value if isinstance(value, str) else format_value(value)
    except (ValueError, RecursionError):
        return "a value that is too long to be shown"
    return text if len(text) <= 100 else f"{text[:100]} .."


def type_name(kind: Any) -> str:
    if isinstance(kind, types.UnionType):
        return " or ".join(map(type_name, get_args(kind)))
    if get_origin(kind) is tuple:
        return "a list of names" if get_args(kind)[0] is str else "a list of numbers"
    return TYPE_NAMES[kind]


def is_utf8(value: str) -> bool:
    """Whether `value` can be encoded as UTF-8."""
    try:
        value.encode()
    except UnicodeEncodeError:  # a file name that is not UTF-8 arrives as lone surrogates
        return False
    return True
