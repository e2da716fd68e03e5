"""`method.options`: arguments of a method's class, written as KEY=VALUE."""

from __future__ import annotations

import inspect
import tomllib
import types
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import cats
from cats.nmt.errors import UserError, unknown
from cats.nmt.methods.catalogue import Method, find

# The learning rate means the same with all methods, so the trainer sets the reduction. A name is part of `method.name`.
_SET_BY_TRAINER = ("reduction", "name")
# Where the trainer gives an argument that may be set as an option too: what it is then.
_DEFAULTS = {
    "seed": "train.seed",
    "shares": "the tasks' shares of the tokens (of method.prior=tokens)",
    "tolerance": "none (bf16: 1e-3, fp16: 1e-5)",
}
_WORDS = {"true": True, "false": False, "none": None}
_NAMES: dict[Any, str] = {int: "a whole number", float: "a number", bool: "true or false", str: "a word"}


def build(name: str, options: Sequence[str], **given: Any) -> Any:
    """An object of a method's class.

    Args:
        name: the value of `method.name`.
        options: the value of `method.options`.
        given: arguments that the trainer sets; those that the class does not have are left out.

    Raises:
        UserError: an option is unknown or given twice, its value has a wrong type, or the class refuses it.
    """
    method, chosen = find(name), parsed(name, options)
    maker, parts = method.maker(), name.split(":", 1)[1:]
    known = inspect.signature(maker).parameters
    arguments = {**{key: value for key, value in given.items() if key in known}, **chosen}
    try:
        return maker(*parts, **arguments)
    except (TypeError, ValueError, ImportError, RuntimeError) as error:
        raise UserError(f"method.name = {name}: {error}") from error


def check(name: str, options: Sequence[str]) -> None:
    """Finds all errors that do not depend on the corpus.

    Raises:
        UserError: see ``build``.
    """
    if find(name).made_by:
        build(name, options)
    else:
        parsed(name, options)


def parsed(name: str, options: Sequence[str]) -> dict[str, Any]:
    """The options as {key: value}.

    Raises:
        UserError: see ``build``.
    """
    method = find(name)
    if not options:
        return {}
    if not method.made_by:
        raise UserError(f"method.options: {name} has none; its settings are in [method], [sampling] and [train]")
    known, chosen = known_options(method), {}
    for option in options:
        key, equals, text = (part.strip() for part in option.partition("="))
        if not equals:
            raise UserError(f"method.options: '{option}' is not an option: write KEY=VALUE")
        if key not in known and not _takes_any(method):
            if not known:
                raise UserError(f"method.options: {name} has none")
            raise unknown("option", key, known, where=f"method.options of {name}")
        if key in chosen:
            raise UserError(f"method.options: {key} is given twice")
        kind = known[key][0] if key in known else Any
        value = _parse(text)
        if _fits(text, kind) and not _fits(value, kind):  # a word that looks like a number, a date or none
            value = text
        if _is_huge(value):
            raise UserError(f"method.options: {key} of {name} must be smaller: it has a whole number beyond 2^63")
        if not _fits(value, kind):
            raise UserError(f"method.options: {key} of {name} must be {_shown(kind)}, not {text}")
        chosen[key] = value
    return chosen


def known_options(method: Method) -> dict[str, tuple[Any, Any]]:
    """{name: (type, default)} of the arguments that can be set as text. Without a default: inspect.Parameter.empty."""
    if not method.made_by:
        return {}
    maker = method.maker()
    hints = get_type_hints(maker.__init__ if inspect.isclass(maker) else maker)
    return {
        p.name: (hints[p.name], p.default)
        for p in inspect.signature(maker).parameters.values()
        if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
        and p.name not in _SET_BY_TRAINER
        and _simple(hints.get(p.name))
    }


def _takes_any(method: Method) -> bool:
    """Whether the class decides itself which options it has, as the objects of TorchJD do."""
    return any(p.kind is p.VAR_KEYWORD for p in inspect.signature(method.maker()).parameters.values())


def _parse(text: str) -> Any:
    """The value of an option: a TOML value, none, or else a word."""
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text


def _is_huge(value: Any) -> bool:
    """Whether it has a whole number that fits in no tensor."""
    if isinstance(value, list):
        return any(map(_is_huge, value))
    return isinstance(value, int) and not -(2**63) <= value < 2**63


def _simple(kind: Any) -> bool:
    """Whether a value of this type can be written as text."""
    if get_origin(kind) in (Union, types.UnionType):
        return any(map(_simple, get_args(kind)))
    return kind in _NAMES or get_origin(kind) in (Literal, tuple, list, Sequence)


def _fits(value: Any, kind: Any) -> bool:
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return any(_fits(value, each) for each in inner)
    if origin is Literal:
        return value in inner
    if origin in (tuple, list, Sequence):
        return isinstance(value, list) and all(_fits(each, inner[0]) for each in value)
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind is type(None):
        return value is None
    return kind is Any or type(value) is kind


def _shown(kind: Any) -> str:
    """A type in words."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return " or ".join(_shown(each) for each in inner if _simple(each) or each is type(None))
    if origin is Literal:
        return " or ".join(map(str, inner))
    if origin in (tuple, list, Sequence):
        return "a list"
    return "none" if kind is type(None) else _NAMES[kind]


def described(method: Method) -> Mapping[str, str]:
    """{option: its type and default in words}."""
    words = {}
    for name, (kind, default) in known_options(method).items():
        known = "" if default is inspect.Parameter.empty else f", {_DEFAULTS.get(name) or _written(default)} by default"
        words[name] = _shown(kind) + known
    return words


def options_of_rule(name: str) -> list[str]:
    """The options that the class of TorchJD has which torchjd:NAME means, with their defaults; none for other names.

    Raises:
        UserError: TorchJD is not installed, or has no such class.
    """
    rule = name.partition(":")[2]
    if rule in ("", "NAME"):
        return []
    try:
        known = inspect.signature(cats.weighting.by_name.class_of(rule)).parameters.values()
    except (ImportError, ValueError) as error:
        raise UserError(f"{name}: {error}") from error
    return [f"{p.name}: of {rule}, " + ("needed" if p.default is p.empty else f"{p.default} by default") for p in known]


def _written(value: Any) -> str:
    """A value as it is written in an option."""
    if value in ((), ""):
        return "empty"
    words = {id(word): text for text, word in _WORDS.items()}
    return words.get(id(value), str(value))
