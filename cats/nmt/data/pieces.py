"""Serialised sentencepiece models: adding pieces to a model, and storing the models of languages inside another model.

A model is a protocol buffer, ModelProto in sentencepiece_model.proto. It is a sequence of fields; each piece is one
field. Field numbers from 200 on are reserved for extensions, and sentencepiece tools ignore them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping

NORMAL, UNKNOWN, CONTROL = 1, 2, 3  # the types of pieces in sentencepiece
_PIECE, _LANGUAGE = 1, 200  # field numbers of a model
_NAME, _MODEL = 1, 2  # field numbers within a _LANGUAGE field


def piece(text: str, score: float, kind: int) -> bytes:
    """The field of a piece, with its text, score and type."""
    body = _field(1, text.encode()) + b"\x15" + struct.pack("<f", score) + b"\x18" + _varint(kind)
    return _field(_PIECE, body)


def insert(model: bytes, at: int, first: list[bytes], last: list[bytes]) -> bytes:
    """`model` with the pieces `first` inserted after its first `at` pieces, and the pieces `last` at the end.

    The pieces of `model` must be its first fields.
    """
    ends = [end for number, _, end in _fields(model) if number == _PIECE][:at]
    cut = ends[-1] if ends else 0
    return b"".join([model[:cut], *first, model[cut:], *last])


def replace_all(model: bytes, pieces: list[bytes]) -> bytes:
    """`model` with these pieces instead of its own. Models of languages inside it are removed."""
    others: list[bytes] = []
    before = 0
    for number, _, end in _fields(model):
        if number not in (_PIECE, _LANGUAGE):
            others.append(model[before:end])
        before = end
    return b"".join([*pieces, *others])


def with_languages(model: bytes, models: Mapping[str, bytes]) -> bytes:
    """`model` with the models of languages stored inside it."""
    within = [_field(_LANGUAGE, _field(_NAME, name.encode()) + _field(_MODEL, own)) for name, own in models.items()]
    return b"".join([model, *within])


def languages(model: bytes) -> dict[str, bytes]:
    """{language: its model}, as stored by ``with_languages``."""
    found = {}
    for number, start, end in _fields(model):
        if number == _LANGUAGE:
            parts = {inner: model[start + a : start + b] for inner, a, b in _fields(model[start:end])}
            found[parts[_NAME].decode()] = parts[_MODEL]
    return found


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content  # 2: a field with its length in front


def _fields(message: bytes) -> Iterator[tuple[int, int, int]]:
    """(number, start of the content, end of the content) of every field. Only length-delimited fields are supported."""
    at = 0
    while at < len(message):
        tag, at = _read_varint(message, at)
        size, at = _read_varint(message, at)
        if tag & 7 != 2 or at + size > len(message):
            raise ValueError("not a sentencepiece model")
        yield tag >> 3, at, at + size
        at += size


def _read_varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(message):
        byte = message[at]
        at, value, shift = at + 1, value | (byte & 0x7F) << shift, shift + 7
        if byte < 0x80:
            return value, at
    raise ValueError("not a sentencepiece model")


def _varint(number: int) -> bytes:
    """A number as protocol buffers encode it: seven bits per byte, the lowest bits first."""
    groups = bytearray()
    while number > 0x7F:
        groups.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*groups, number])
