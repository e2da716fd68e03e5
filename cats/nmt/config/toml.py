"""Settings as TOML: reading and writing files, presets, and overrides such as ``train.lr=1e-3``.

Every setting is written with its help line. Reading is strict: an unknown section, key or choice, or a wrong type, is a
`UserError` that says where it is and suggests the most similar name.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import tomllib
import types
from collections.abc import Iterable
from pathlib import Path
from typing import Any, get_args, get_origin

from cats.nmt.config.checks import format_value, replace_settings, suggest_setting
from cats.nmt.config.schema import FIELDS, SECTIONS, TYPES, Config
from cats.nmt.errors import UserError, nearest
from cats.nmt.files import read_file

LARGEST = 1 << 20  # bytes of a configuration: more than a hundred times what cats writes
MOST_DOTS = 100  # in a key; tomllib needs minutes for a key with 100,000

# Comments and strings of TOML, closed or not.
_NO_KEYS = re.compile(
    r"""  \#[^\n]*+
    | "{3} (?: \\. | [^"\\] | "(?!"") )*+ (?:"{3,5})?
    | '{3} (?: [^'] | '(?!'') )*+ (?:'{3,5})?
    | " (?: \\. | [^"\\\n] )*+ "?
    | ' [^'\n]*+ '?
    """,
    re.VERBOSE | re.DOTALL,
)


def read_config(path: Path | str, base: Config | None = None, *, stream: bool = False) -> Config:
    """Reads a TOML file. Settings that are not in it are taken from `base`, or are the defaults.

    Args:
        stream: it may also be a pipe, such as /dev/stdin.

    Raises:
        UserError: the file cannot be read, is not TOML, or has an unknown section, key or choice, or a wrong type.
    """
    try:
        content = _read_stream(path) if stream else read_file(path)
        if len(content) > LARGEST:
            raise UserError(f"{path}: more than {LARGEST:,} bytes are too many for a configuration; give another file")
        text = content.decode("utf-8")
        if any(part.count(".") > MOST_DOTS for part in re.split("[,\n]", _NO_KEYS.sub("", text))):
            raise RecursionError
        tables = tomllib.loads(text)
    except FileNotFoundError as error:
        raise UserError(f"cannot read the configuration {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 (byte {error.start})") from None
    except RecursionError:
        raise UserError(f"{path}: lists or tables are nested too deeply") from None
    except ValueError as error:  # also a number with thousands of digits
        raise UserError(f"{path}: not valid TOML: {error}") from None
    values = {}
    for section, table in tables.items():
        if section not in SECTIONS and not isinstance(table, dict):
            raise UserError(f"{path}: '{section}' is outside of all sections{suggest_setting(section)}")
        if section not in SECTIONS:
            raise UserError(f"{path}: unknown section [{section}]{nearest(section, SECTIONS)}")
        if not isinstance(table, dict):
            raise UserError(f"{path}: '{section}' is a section: write [{section}] and its settings below")
        values.update({f"{section}.{key}": value for key, value in table.items()})
    return replace_settings(base or Config(), values, where=str(path))


def _read_stream(path: Path | str) -> bytes:
    """The content of a file or a pipe, up to one byte more than the largest configuration.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: it cannot be read.
    """
    try:
        with open(path, "rb") as file:
            return file.read(LARGEST + 1)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error


def presets() -> dict[str, Path]:
    """{name: file} of the presets, the settings files that come with the package."""
    return {path.stem: path for path in sorted(Path(__file__).with_name("presets").glob("*.toml"))}


def read_preset(name: str) -> Config:
    """The settings of a preset.

    Raises:
        UserError: no preset has this name.
    """
    known = presets()
    if name not in known:
        raise UserError(f"unknown preset '{name}'{nearest(name, known)}; known: {', '.join(known)}")
    return read_config(known[name])


def read_settings(preset: str | None, path: Path | str | None) -> Config:
    """The settings of a preset, or the defaults, changed by those of a TOML file if one is given.

    Raises:
        UserError: see `read_preset` and `read_config`.
    """
    config = Config() if preset is None else read_preset(preset)
    return read_config(path, config, stream=True) if path else config


def apply_overrides(config: Config, overrides: Iterable[str]) -> Config:
    """A copy of `config` changed by overrides such as ``"train.lr=1e-3"``, in their order.

    Strings need no quotes. Lists are written as in TOML; those of names also without quotes, and a list also without
    brackets: [az,be] or az,be.

    Raises:
        UserError: an override without ``=``, an unknown setting, wrong type, or a value out of range.
    """
    values = {}
    for override in overrides:
        name, equals, text = override.partition("=")
        name = name.strip()
        if not equals:
            raise UserError(f"'{override}' is not an override: write section.key=value")
        if name not in FIELDS:
            raise UserError(f"unknown setting '{name}'{suggest_setting(name)}")
        values[name] = _parse(text.strip(), TYPES[name])
    return replace_settings(config, values)


def to_toml(config: Config) -> str:
    """All settings with their help lines and values. `read_config` reads the same configuration from it."""
    lines = ["# All settings of a CATS training run. To run it again: cats train --config FILE"]
    for section in SECTIONS:
        lines += ["", f"[{section}]"]
        for f in dataclasses.fields(getattr(config, section)):
            lines += [
                f"# {_help(f)}",
                f"{f.name} = {format_value(getattr(getattr(config, section), f.name))}",
            ]
    return "\n".join(lines) + "\n"


def describe() -> str:
    """All settings with their defaults and help lines, for ``--help``."""
    lines = []
    for name, f in FIELDS.items():
        lines += [f"  {name} = {format_value(f.default)}", f"      {_help(f)}"]
    return "\n".join(lines)


def _help(f: dataclasses.Field[Any]) -> str:
    text, choices = f.metadata["help"], f.metadata["choices"]
    if choices and not all(choice in text for choice in choices):
        return f"{text} ({' | '.join(choices)})"
    return str(text)


def split_at_commas(text: str) -> list[str]:
    """The parts of a text between commas. A comma within brackets or quotes separates nothing.

    A quote only begins a quoted part at the start of a part or of what is in brackets, or after "=": the one in o'clock
    is a letter. So are a quote and a bracket that are never closed.
    """
    parts, start, depth, position = [], 0, 0, 0
    while position < len(text):
        character = text[position]
        if character in "\"'" and (position == start or text[:position].rstrip()[-1:] in ",=["):
            end = text.find(character, position + 1)
            position = max(position, end)
        elif character == "[" and "]" in text[position:]:
            depth += 1
        elif character == "]":
            depth = max(0, depth - 1)
        elif character == "," and not depth:
            parts.append(text[start:position])
            start = position + 1
        position += 1
    return [*parts, text[start:]]


def _parse(text: str, kind: Any) -> Any:
    """The value of `text` for a setting of the type `kind`. Text of another type is returned, and refused later."""
    quoted = len(text) >= 2 and text[0] == text[-1] and text[0] in "\"'"
    if kind is bool:
        return {"true": True, "false": False}.get(text.lower(), text)
    if kind == tuple[str, ...]:
        return _names(text)
    if kind is str or quoted:
        return text[1:-1] if quoted else text
    if isinstance(kind, types.UnionType) and not text.startswith("["):
        try:
            return float(text) if float in get_args(kind) else text
        except ValueError:
            return text
    if get_origin(kind) is tuple and not text.startswith("["):
        text = f"[{text}]"
    try:
        return kind(text) if kind in (int, float) else tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text


def _names(text: str) -> Any:
    """A list of names, which need no quotes. Text that is no list is returned.

    In TOML, brackets begin a list. Without quotes they may also be part of a name, as in a=[1,2],b=3, which has two.
    """
    if text.startswith("["):
        with contextlib.suppress(ValueError, RecursionError):
            return tomllib.loads(f"value = {text}")["value"]
        if not text.endswith("]"):
            return text
        text = text[1:-1]
    words = [word.strip() for word in split_at_commas(text)]
    return [_unquoted(word) for word in words if word]


def _unquoted(word: str) -> str:
    return word[1:-1] if len(word) >= 2 and word[0] == word[-1] and word[0] in "\"'" else word
