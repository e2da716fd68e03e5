"""Serialised sentencepiece models: pieces added to one, and models of single languages kept within another.

A model is a protocol buffer, ModelProto in sentencepiece_model.proto: its fields in a row, of which pieces are one that
is repeated. Field numbers from 200 on are free for others' use; any sentencepiece tool passes over them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping

NORMAL, UNKNOWN, CONTROL = 1, 2, 3  # sentencepiece's types of pieces
_PIECE, _LANGUAGE, _NAME, _MODEL = 1, 200, 1, 2  # field numbers; the last two within the second


def piece(text: str, score: float, kind: int) -> bytes:
    """One more piece: the field with its text, score and type."""
    body = _field(1, text.encode()) + b"\x15" + struct.pack("<f", score) + b"\x18" + _varint(kind)
    return _field(_PIECE, body)


def insert(model: bytes, at: int, first: list[bytes], last: list[bytes]) -> bytes:
    """`model`, whose pieces stand first in it, with further ones after `at` of them and at the end."""
    ends = [end for number, _, end in _fields(model) if number == _PIECE][:at]
    cut = ends[-1] if ends else 0
    return b"".join([model[:cut], *first, model[cut:], *last])


def replace_all(model: bytes, pieces: list[bytes]) -> bytes:
    """`model` with these pieces instead of its own; models of languages within it are left out."""
    others: list[bytes] = []
    before = 0
    for number, _, end in _fields(model):
        if number not in (_PIECE, _LANGUAGE):
            others.append(model[before:end])
        before = end
    return b"".join([*pieces, *others])


def with_languages(model: bytes, models: Mapping[str, bytes]) -> bytes:
    """`model` that keeps a model for each language within it."""
    within = [_field(_LANGUAGE, _field(_NAME, name.encode()) + _field(_MODEL, own)) for name, own in models.items()]
    return b"".join([model, *within])


def languages(model: bytes) -> dict[str, bytes]:
    """The models by language that ``with_languages`` put there."""
    found = {}
    for number, start, end in _fields(model):
        if number == _LANGUAGE:
            parts = {inner: model[start + a : start + b] for inner, a, b in _fields(model[start:end])}
            found[parts[_NAME].decode()] = parts[_MODEL]
    return found


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content  # 2: a field that tells its length


def _fields(message: bytes) -> Iterator[tuple[int, int, int]]:
    """(number, where the content starts, where it ends) of every field; all of a ModelProto tell their length."""
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
    """Protocol buffers' form of a number: seven bits a byte, the lowest first."""
    groups = bytearray()
    while number > 0x7F:
        groups.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*groups, number])
