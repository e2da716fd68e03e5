"""The tokenizer: sentencepiece's unigram model (Kudo, 2018), joint or one per language, and language tags."""

from __future__ import annotations

import hashlib
import io
import itertools
import os
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import sentencepiece

from cats.nmt.config import schema
from cats.nmt.data import pieces
from cats.nmt.errors import UserError, unknown
from cats.nmt.files import atomic_write, read_file

_SPECIALS = ("<pad>", "<unk>", "<s>", "</s>")
_SENTINELS = tuple(f"<extra_id_{i}>" for i in range(32))  # T5's names; it has 100. 32 suffice for lines of 640 pieces
_LONGEST = 2000  # training lines are cut into parts of at most this many characters
_NO_PIECE_ACROSS = "\x01"  # no piece contains it; it is only inserted into training text
_RESERVED = "\u2585"  # sentencepiece's own character for unknown text: it skips lines that contain it


class Tags(NamedTuple):
    """Where language tags are placed. Training and translation use the same object, so they cannot differ.

    source: "prepend" ([tag, pieces.., eos]: Johnson et al., 2017), "replace-eos" ([pieces.., tag]: MultiDDS) or "none".
    target: the decoder starts with the tag of the target language (mBART) instead of bos.
    of: the source is tagged with the "target" language, or with the "source" language (mBART).
    """

    source: str = "prepend"
    target: bool = False
    of: str = "target"

    @classmethod
    def from_settings(cls, settings: schema.Tokenizer) -> Tags:
        return cls(settings.source_tag, settings.target_tag, settings.tag_of)


class Tokenizer:
    """Converts text to ids and back.

    The ids are pad, unk, bos, eos, then one tag ``<2xx>`` per tagged language, then the sentinels of language modelling
    (``<extra_id_0>``, ..) if there are any, then the pieces. There is one model for
    all languages, or one per language. In the second case the vocabulary is the union of their pieces, and a line is
    segmented by the model of its language.

    The tags are control symbols: text is never encoded as a tag, not even the text "<2ru>". Every digit of every script
    is a piece of its own. Text is not normalised, except that several spaces become one. So ``decode`` returns the
    same text if all its characters were in the training text. (U+2581, which means a space in pieces, becomes a space.)
    """

    pad_id, unk_id, bos_id, eos_id = range(4)

    def __init__(self, model: bytes, tags: Tags | None = None) -> None:
        """`model`: a serialised sentencepiece model, as made by ``train``."""
        self._model, self.tags = model, tags or Tags()
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        self._models = {
            language: _OneLanguage(own, self._processor) for language, own in pieces.languages(model).items()
        }
        controls = itertools.takewhile(self._processor.is_control, range(len(_SPECIALS), self.vocab_size))
        names = {self._processor.id_to_piece(i): i for i in controls}
        self._tags = {name[2:-1]: i for name, i in names.items() if name not in _SENTINELS}
        self._sentinels = [names[name] for name in _SENTINELS if name in names]

    @classmethod
    def train(
        cls,
        lines: list[str],
        languages: list[str],
        vocab_size: int,
        tags: Tags | None = None,
        *,
        coverage: float = 1.0,
        sentinels: bool = False,
    ) -> Tokenizer:
        """Trains a tokenizer on `lines`. The same arguments give the same bytes.

        Args:
            lines: text of all languages, source and targets. A line that occurs n times counts n times.
            languages: the languages that get a tag.
            vocab_size: the number of ids, specials and tags included. If the text is too short for so many, there are
                fewer.
            coverage: the share of the text's characters that get a piece; the rarest characters are unknown.
            sentinels: add those of language modelling.

        Raises:
            UserError: `vocab_size` is too small for all characters of the text, or there is no text.
        """
        characters = set().union(*lines) - {" ", _RESERVED, _NO_PIECE_ACROSS}
        if not characters:
            raise UserError("no text to train the tokenizer on: all lines are blank")
        symbols = [*(f"<2{language}>" for language in languages), *(_SENTINELS if sentinels else ())]
        needed = len(_SPECIALS) + len(symbols) + len(characters | {"▁"})
        if vocab_size < needed and coverage == 1:
            raise UserError(
                f"tokenizer.vocab_size={vocab_size} is too small: {len(characters)} characters and {len(symbols)} "
                f"{'tags and sentinels' if sentinels else 'languages'} need at least {needed}"
            )
        model = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=(_training_form(part) for line in lines for part in _parts(line)),
                model_writer=model,
                model_type="unigram",
                vocab_size=vocab_size,
                hard_vocab_limit=False,
                character_coverage=coverage,
                byte_fallback=False,
                normalization_rule_name="identity",
                pretokenization_delimiter=_NO_PIECE_ACROSS,
                max_sentence_length=2**30,  # in bytes; longer lines would be skipped
                control_symbols=symbols,
                pad_id=cls.pad_id,
                unk_id=cls.unk_id,
                bos_id=cls.bos_id,
                eos_id=cls.eos_id,
                pad_piece=_SPECIALS[0],
                unk_piece=_SPECIALS[1],
                bos_piece=_SPECIALS[2],
                eos_piece=_SPECIALS[3],
                num_threads=1,  # with more, the order of sums would vary
                minloglevel=2,
            )
        except (RuntimeError, ValueError) as error:
            raise UserError(
                f"sentencepiece cannot train tokenizer.vocab_size={vocab_size} pieces on this text; "
                "try another vocab_size, or another tokenizer.character_coverage"
            ) from error
        return cls(model.getvalue(), tags)

    @classmethod
    def union(
        cls, models: Mapping[str, Tokenizer], languages: list[str], tags: Tags | None = None, *, sentinels: bool = False
    ) -> Tokenizer:
        """Joins the models of single languages: one vocabulary of all their pieces.

        The text of a language is still segmented by its own model.

        Args:
            models: {language: its tokenizer, made by ``train``}, of all source and target languages.
            languages: the languages that get a tag.
            sentinels: add those of language modelling.
        """
        controls = [*(f"<2{language}>" for language in languages), *(_SENTINELS if sentinels else ())]
        scores: dict[str, float] = {}
        for model in models.values():
            for piece, score in itertools.islice(model.pieces().items(), model.first_piece, None):
                scores.setdefault(piece, score)
        first = next(iter(models.values())).serialized()
        kinds = {
            **dict.fromkeys((_SPECIALS[0], *_SPECIALS[2:], *controls), pieces.CONTROL),
            _SPECIALS[1]: pieces.UNKNOWN,
        }
        names = [*_SPECIALS, *controls, *(piece for piece in scores if piece not in kinds)]
        whole = [pieces.piece(name, scores.get(name, 0.0), kinds.get(name, pieces.NORMAL)) for name in names]
        own = {language: model.serialized() for language, model in sorted(models.items())}
        return cls(pieces.with_languages(pieces.replace_all(first, whole), own), tags)

    @classmethod
    def load(cls, path: str | os.PathLike[str], tags: Tags | None = None) -> Tokenizer:
        """Reads a file that ``save`` wrote.

        Raises:
            UserError: the file is missing, or is not a tokenizer with these ids.
        """
        try:
            tokenizer = cls(read_file(path), tags)
        except FileNotFoundError as error:
            raise UserError(f"{path}: the tokenizer cannot be read ({error.strerror})") from error
        except (KeyError, RuntimeError, ValueError) as error:
            raise UserError(f"{path}: not a sentencepiece model") from error
        specials = tuple(map(tokenizer._processor.id_to_piece, range(min(len(_SPECIALS), tokenizer.vocab_size))))
        if specials != _SPECIALS:
            raise UserError(f"{path}: its first pieces must be {' '.join(_SPECIALS)}, found {' '.join(specials)}")
        return tokenizer

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the sentencepiece model. Any sentencepiece tool can read it."""
        atomic_write(path, self._model)

    def serialized(self) -> bytes:
        """The sentencepiece model."""
        return self._model

    def digest(self) -> str:
        """sha256 (hex) of the sentencepiece model."""
        return hashlib.sha256(self._model).hexdigest()

    @property
    def vocab_size(self) -> int:
        return self._processor.get_piece_size()

    @property
    def languages(self) -> list[str]:
        """The languages that have a tag, in the order of their ids."""
        return list(self._tags)

    @property
    def first_piece(self) -> int:
        """The first id of a piece; smaller ids are specials, tags and sentinels."""
        return len(_SPECIALS) + len(self._tags) + len(self._sentinels)

    @property
    def sentinels(self) -> list[int]:
        """The ids that mark lost spans in language modelling, the first one first; empty if there are none."""
        return self._sentinels

    def pieces(self) -> dict[str, float]:
        """{piece: score} in the order of ids, specials and tags included."""
        ids = range(self.vocab_size)
        return dict(zip(map(self._processor.id_to_piece, ids), map(self._processor.get_score, ids), strict=True))

    @property
    def models(self) -> dict[str, Tokenizer]:
        """{language: its own tokenizer}; empty if there is one joint model."""
        return {language: Tokenizer(own) for language, own in pieces.languages(self._model).items()}

    @property
    def needs_source(self) -> bool:
        """Whether the encoding of a source line depends on the source language."""
        return bool(self._models) or (self.tags.source != "none" and self.tags.of == "source")

    def translates(self, source: str, target: str) -> bool:
        """Whether the tokenizer can encode the sources and targets of a direction."""
        tagged = {target, source} if self.tags.source != "none" and self.tags.of == "source" else {target}
        return tagged <= self._tags.keys() and (not self._models or {source, target} <= self._models.keys())

    def tag(self, language: str) -> int:
        """The id of the tag of `language`.

        Raises:
            UserError: the tokenizer has no tag for this language.
        """
        if language not in self._tags:
            raise unknown("language", language, self._tags)
        return self._tags[language]

    def start(self, language: str) -> int:
        """The first input of the decoder, for this target language."""
        return self.tag(language) if self.tags.target else self.bos_id

    def frame(self, source: str, target: str) -> tuple[list[int], list[int]]:
        """The ids before and after the pieces of a source line, for this direction."""
        self.tag(target)
        if self.tags.source == "none":
            return [], [self.eos_id]
        tag = self.tag(target if self.tags.of == "target" else source)
        return ([tag], [self.eos_id]) if self.tags.source == "prepend" else ([], [tag])

    def encode(self, lines: list[str], language: str) -> list[list[int]]:
        """The ids of the pieces of every line. All lines are in `language`.

        Raises:
            UserError: there is one model per language, but none for this language.
        """
        if not lines:
            return []  # sentencepiece treats an empty list as one empty sentence
        if not self._models:
            return self._processor.encode(lines)
        if language not in self._models:
            raise unknown("language", language, self._models)
        return self._models[language].encode(lines)

    def encode_source(self, lines: list[str], source: str, target: str) -> list[list[int]]:
        """The encoder's input for every line: pieces, eos and tag (see ``Tags``)."""
        before, after = self.frame(source, target)
        return [[*before, *ids, *after] for ids in self.encode(lines, source)]

    def encode_target(self, lines: list[str], language: str) -> list[list[int]]:
        """``[pieces.., eos]`` of every line: what the decoder is to predict."""
        return [[*ids, self.eos_id] for ids in self.encode(lines, language)]

    def decode(self, ids: list[list[int]]) -> list[str]:
        """The text of every list of ids, up to its first eos. Specials, tags and sentinels are ignored."""
        if not ids:
            return []
        first = self.first_piece
        cut = (itertools.takewhile(lambda i: i != self.eos_id, row) for row in ids)
        return self._processor.decode([[i for i in row if i >= first] for row in cut])


class _OneLanguage:
    """The model of one language, with its ids mapped to those of the whole vocabulary."""

    def __init__(self, model: bytes, whole: sentencepiece.SentencePieceProcessor) -> None:
        self.processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        names = map(self.processor.id_to_piece, range(self.processor.get_piece_size()))
        ids = map(whole.piece_to_id, names)
        # A piece of this language may be a tag in the whole vocabulary. Text must not become a tag: it is unknown.
        self.ids = [whole.unk_id() if whole.is_control(i) else i for i in ids]

    def encode(self, lines: list[str]) -> list[list[int]]:
        return [[self.ids[i] for i in row] for row in self.processor.encode(lines)]


def _parts(line: str) -> Iterator[str]:
    """The line, or its parts if it is very long, cut at spaces: training time is quadratic in the length of a line."""
    while len(line) > _LONGEST:
        cut = line.rfind(" ", 1, _LONGEST)
        cut = cut if cut > 0 else _LONGEST
        yield line[:cut]
        line = line[cut:].lstrip(" ")
    yield line


def _training_form(line: str) -> str:
    """`line` with marks that no piece may cross: around digits, and inside text that looks like a control symbol.

    Without them, sentencepiece would remove the text of control symbols from the training text, and their characters
    would be unknown. The text of a tag contains a digit, so it has a mark already.
    """
    line = re.sub(r"\d", f"{_NO_PIECE_ACROSS}\\g<0>{_NO_PIECE_ACROSS}", line.replace(_RESERVED, " "))
    for symbol in _SPECIALS:
        line = line.replace(symbol, symbol[0] + _NO_PIECE_ACROSS + symbol[1:])
    return line
