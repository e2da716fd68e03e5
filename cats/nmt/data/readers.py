"""Readers of parallel text: two aligned files, TSV and JSON lines."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cats.nmt.errors import UserError
from cats.nmt.files import open_regular

SOURCE_AND_TARGET = ("src_lang", "tgt_lang", "src", "tgt")  # the columns of a TSV file whose rows name their languages
MISSING = "__NULL__"  # a TSV cell without text


@dataclass(frozen=True)
class PairReader:
    """One split of one pair of languages.

    paths: the files that are read.
    read: yields the lines as (first language, second language); every call reads the files again.
    meta: a file with "stratum<TAB>cluster" for every line, if there is one.
    """

    paths: tuple[Path, ...]
    read: Callable[[], Iterator[tuple[str, str]]]
    meta: Path | None = None

    def checked(self, swapped: bool) -> Iterator[tuple[tuple[str, str], str]]:
        """Yields, for every line, the pair (source, target) and the reason for leaving it out ("" if it is kept).

        Args:
            swapped: the second language is the source.
        """
        for first, second in self.read():
            reason = ""
            if not first.strip() or not second.strip():
                reason = "a side is blank"
            elif "\0" in first or "\0" in second:
                reason = "a NUL byte is in them"
            yield ((second, first) if swapped else (first, second)), reason

    def read_meta(self, lines: int) -> list[tuple[str, str]] | None:
        """(stratum, cluster) of every line; None if there is no such file.

        Raises:
            UserError: the file is malformed, or does not have this number of lines.
        """
        if self.meta is None:
            return None
        meta = []
        for number, line in enumerate(read_lines(self.meta), start=1):
            match line.split("\t"):
                case [stratum, cluster]:
                    meta.append((stratum, cluster))
                case columns:
                    raise UserError(
                        f"{self.meta}, line {number}: {len(columns)} columns; must be stratum, a tab, cluster"
                    )
        if len(meta) != lines:
            raise _unequal(self.meta, len(meta), self.paths[0], lines)
        return meta


def read_lines(file: Path) -> Iterator[str]:
    """The lines of a UTF-8 file. Only LF and CRLF end a line; U+2028, U+0085 and similar characters are text.

    Raises:
        UserError: the file cannot be read, or is not UTF-8.
    """
    try:
        with open_regular(file) as stream:
            for number, raw in enumerate(stream, start=1):
                try:
                    line = raw.decode("utf-8")
                except UnicodeDecodeError as error:
                    wide = raw.startswith((b"\xff\xfe", b"\xfe\xff")) and number == 1
                    what = "UTF-16" if wide else "not UTF-8"
                    raise UserError(
                        f"{file}, line {number}: {what}; convert the file, for example with iconv"
                    ) from error
                if number == 1:
                    line = line.removeprefix("\ufeff")
                yield line.removesuffix("\n").removesuffix("\r")
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from error


# Two aligned files.


def two_files(first: Path, second: Path, meta: Path | None = None, *, join_pieces: bool = False) -> PairReader:
    """Line i of one file is translated by line i of the other. join_pieces: they hold sentencepiece's pieces."""
    return PairReader((first, second), partial(_read_two_files, first, second, join_pieces), meta)


def _read_two_files(first: Path, second: Path, join_pieces: bool) -> Iterator[tuple[str, str]]:
    lines, others = read_lines(first), read_lines(second)
    count = 0
    for line in lines:
        other = next(others, None)
        if other is None:
            raise _unequal(first, count + 1 + _count(lines), second, count)
        yield (_join_pieces(line), _join_pieces(other)) if join_pieces else (line, other)
        count += 1
    if (more := _count(others)) > 0:
        raise _unequal(first, count, second, count + more)


def _join_pieces(line: str) -> str:
    """The text of sentencepiece's pieces that are separated by spaces, as in fairseq's preprocessed files."""
    return line.replace(" ", "").replace("\u2581", " ").strip()


def _count(lines: Iterator[str]) -> int:
    return sum(1 for _ in lines)


def _unequal(file: Path, lines: int, other: Path, other_lines: int) -> UserError:
    return UserError(
        f"{file} has {lines} lines, {other.name} has {other_lines}; line i of one must belong to line i of the other"
    )


# TSV.


def tsv_columns(file: Path, columns: tuple[int, int], width: int, *, header: bool) -> PairReader:
    """Two columns of a TSV file with `width` columns. Rows with a missing cell are skipped."""
    return PairReader((file,), partial(_read_columns, file, columns, width, header))


def _rows(file: Path, width: int, header: bool) -> Iterator[list[str]]:
    """The rows of a TSV file. Quotes are text, and so is "NA"."""
    for number, line in enumerate(read_lines(file), start=1):
        row = line.split("\t")
        if len(row) != width:
            raise UserError(f"{file}, line {number}: {len(row)} columns instead of {width}, separated by tabs")
        if number > 1 or not header:
            yield row


def _read_columns(file: Path, columns: tuple[int, int], width: int, header: bool) -> Iterator[tuple[str, str]]:
    first, second = columns
    for row in _rows(file, width, header):
        if row[first] != MISSING and row[second] != MISSING:
            yield row[first], row[second]


def tsv_with_languages(file: Path, header: list[str]) -> list[tuple[tuple[str, str], PairReader]]:
    """The pairs of languages in a TSV file with the columns ``SOURCE_AND_TARGET``."""
    columns = [header.index(name) for name in SOURCE_AND_TARGET]
    directions = ((row[columns[0]], row[columns[1]]) for row in _rows(file, len(header), header=True))
    return [
        (pair, PairReader((file,), partial(_read_rows_of, file, columns, len(header), pair)))
        for pair in _pairs(directions)
    ]


def _read_rows_of(file: Path, columns: list[int], width: int, pair: tuple[str, str]) -> Iterator[tuple[str, str]]:
    source, target, first, second = columns
    for row in _rows(file, width, header=True):
        if (row[source], row[target]) == pair:
            yield row[first], row[second]
        elif (row[target], row[source]) == pair:
            yield row[second], row[first]


def _pairs(directions: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """The pairs of languages, each once and in alphabetical order: a file may have both directions."""
    return sorted({(min(pair), max(pair)) for pair in directions})


# JSON lines.


def json_lines(file: Path) -> list[tuple[tuple[str, str], PairReader]]:
    """The pairs of languages in a file of JSON lines."""
    directions = ((first, second) for first, second in _json_records(file))
    return [(pair, PairReader((file,), partial(_read_records_of, file, pair))) for pair in _pairs(directions)]


def _json_records(file: Path) -> Iterator[dict[str, str]]:
    """{language: text} of every line; it has two languages."""
    for number, line in enumerate(read_lines(file), start=1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{file}, line {number}: not JSON ({error})") from None
        match record:
            case {"translation": {**sides}} if len(sides) == 2:
                pass
            case {"src_lang": str(source), "tgt_lang": str(target), "src": first, "tgt": second}:
                sides = {source: first, target: second}
            case _:
                sides = {}
        if len(sides) != 2 or not all(isinstance(text, str) for text in sides.values()):
            raise UserError(
                f'{file}, line {number}: must be {{"src": .., "tgt": .., "src_lang": .., "tgt_lang": ..}} '
                'or {"translation": {"en": .., "xx": ..}}'
            )
        # JSON can contain half of a surrogate pair, which UTF-8 cannot.
        plain = {str(language): str(text).encode("utf-8", "replace").decode() for language, text in sides.items()}
        yield {language: re.sub(r"[\r\n]+", " ", text) for language, text in plain.items()}


def _read_records_of(file: Path, pair: tuple[str, str]) -> Iterator[tuple[str, str]]:
    for sides in _json_records(file):
        if pair[0] in sides and pair[1] in sides:
            yield sides[pair[0]], sides[pair[1]]
