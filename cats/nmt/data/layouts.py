"""Which files of a folder contain parallel text. The layouts of public corpora are read as they are."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from cats.nmt.errors import UserError

# `cats data inspect --help` prints this list.
DESCRIPTION = """\
  Moses, many pairs   {train,valid,test}.en-xx.en with .xx, and .meta
  ML50                the same below clean/, dedup/ or raw/
  Moses, one pair     {train,valid,test}.en with .xx
  OPUS-100            supervised/{x-y}/opus.{x-y}-{train,dev,test}.x with .y, zero-shot/ beside it
  TED-8 (MultiDDS)    {xxx}_eng/ted-{train,dev,test}.orig.xxx with .eng
  TSV                 {train,valid,test}.tsv or all_talks_{train,dev,test}.tsv with a header: a column per
                      language (__NULL__: missing), or src_lang tgt_lang src tgt;
                      {train,valid,test}.en-xx.tsv without one
  JSON lines          {train,valid,test}.jsonl: {"src": .., "tgt": .., "src_lang": .., "tgt_lang": ..} or
                      {"translation": {"en": .., "xx": ..}}

"dev", "val" and "validation" mean "valid". The files may be in the folder itself or in the subfolders of the original
distribution.
"""

KNOWN = (
    "train.en-xx.en with train.en-xx.xx (Moses, any number of pairs; ML50), "
    "train.en with train.xx (Moses, one pair), "
    "supervised/en-xx/opus.en-xx-train.en with .xx (OPUS-100), "
    "xxx_eng/ted-train.orig.xxx with .eng (TED-8), "
    "train.tsv, train.jsonl"
)

_SPLIT = r"(?P<split>train|valid|validation|val|dev|test)"
_PAIR = re.compile(rf"{_SPLIT}\.(?P<pair>[^.]+-[^.]+)\.(?P<suffix>[^.]+)")
_SINGLE = re.compile(rf"{_SPLIT}\.(?P<suffix>[^.]+)")
_OPUS = re.compile(r"opus\.(?P<pair>[^.]+-[^.]+)-(?P<split>train|dev|test)\.(?P<suffix>[^.]+)")
_TED_FOLDER = re.compile(r"(?P<language>[a-z]{2,3})_(?P<english>eng?)")
_TED = re.compile(rf"(ted-)?{_SPLIT}(\.orig)?(?P<pieces>\.spm\d+)?\.(?P<suffix>[a-z]{{2,3}})")
_TABLE = re.compile(rf"(all_talks_)?{_SPLIT}\.(?P<kind>tsv|jsonl)")
_VALID = ("dev", "val", "validation")  # other names of the split valid
_CODE = re.compile(r"[A-Za-z0-9]+([-_][A-Za-z0-9]+)*")  # it becomes part of the names of files
_LANGUAGE = re.compile(r"[a-z]{2,3}([-_][A-Za-z0-9]+)*")
_LONG = ("src_lang", "tgt_lang", "src", "tgt")
_NULL = "__NULL__"
_CLEANEST_FIRST = ("clean", "dedup", "raw")  # the folders of ML50

Pairs = Callable[[], Iterator[tuple[str, str]]]


@dataclass(frozen=True)
class Texts:
    """One split of one pair of languages: ``read()`` yields its lines as (first language, second language).

    paths: the files it is read from. meta: a file with "stratum<TAB>cluster" for every line, where there is one.
    """

    paths: tuple[Path, ...]
    read: Pairs
    meta: Path | None = None


@dataclass
class Found:
    """What a folder holds: {(language, language): {split: Texts}}, and what was not taken, one line each.

    files: all that belong to the layout, taken or not.
    """

    pairs: dict[tuple[str, str], dict[str, Texts]] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)
    files: set[Path | None] = field(default_factory=set)

    def add(self, pair: tuple[str, str], split: str, texts: Texts) -> None:
        self.files.update(texts.paths, [texts.meta])
        for code in pair:
            if not _CODE.fullmatch(code):
                raise UserError(f"{texts.paths[0]}: {code!r} is no code of a language, such as en or zh_Hans")
        name = "-".join(pair)
        if pair[0] == pair[1]:
            self.notices.append(f"{name}: left out, both languages are the same")
            return
        splits = self.pairs.setdefault(pair, {})
        usual = "valid" if split in _VALID else split
        if usual not in splits:
            splits[usual] = texts
        elif usual == split:
            self.notices.append(f"{name}: {texts.paths[0]} is left out, there is {splits[usual].paths[0]}")
        else:
            self.notices.append(f"{name}: its {split} files are left out, it has valid files too")


def find(folder: Path, source: str) -> Found:
    """The parallel text of a folder; ``source`` is only needed to tell which pair ``train.xx`` with ``train.yy`` is.

    Raises:
        UserError: no known layout, or one with a side missing.
    """
    for layout in (_moses, _tables, partial(_single, source=source), _opus, _ted, _ml50):
        found: Found = layout(folder)
        if found.pairs:
            found.notices += _strangers(folder, found)
            return found
    empty = "the folder is empty" if not any(folder.iterdir()) else "no parallel text in this folder"
    raise UserError(f"{folder}: {empty}; known layouts: {KNOWN}")


def _strangers(folder: Path, found: Found) -> list[str]:
    """One line that tells of files in a folder that its layout has no place for, such as text of another layout."""
    names = [
        file.name
        for file in sorted(folder.iterdir())
        if file.is_file()
        and file not in found.files
        and not file.name.startswith((".", "README", "LICENSE", "COPYING"))
    ]
    shown = ", ".join(names[:5]) + (", .." if len(names) > 5 else "")
    return [f"{len(names)} file{'s' if len(names) > 1 else ''} not read: {shown}"] if names else []


# One function a layout. Splits in the order of their names' spelling would find "dev" first: valid wins over it.


def _moses(folder: Path) -> Found:
    sides: dict[str, dict[str, dict[str, Path]]] = {}
    for file in sorted(folder.iterdir()):
        if (match := _PAIR.fullmatch(file.name)) and match["suffix"] != "tsv":
            sides.setdefault(match["pair"], {}).setdefault(match["split"], {})[match["suffix"]] = file
    return _aligned(sides)


def _single(folder: Path, source: str) -> Found:
    splits: dict[str, dict[str, Path]] = {}
    for file in sorted(folder.iterdir()):
        if match := _SINGLE.fullmatch(file.name):
            splits.setdefault(match["split"], {})[match["suffix"]] = file
    languages = set(splits.get("train", {})) - {"meta", "tsv", "jsonl"}
    if source in languages and len(languages) != 2:
        others = ", ".join(f"train.{suffix}" for suffix in sorted(languages - {source})) or "nothing"
        raise UserError(
            f"{folder}: train.{source} needs exactly one other side, found {others}; name pairs train.en-xx.xx"
        )
    return _aligned({"-".join(sorted(languages)): splits} if len(languages) == 2 else {})


def _opus(folder: Path) -> Found:
    sides: dict[str, dict[str, dict[str, Path]]] = {}
    root = folder.parent if folder.name == "supervised" else folder
    for place in ("", "supervised", "zero-shot", "v1.0/supervised", "v1.0/zero-shot"):
        for file in sorted([*root.glob(f"{place}/opus.*".lstrip("/")), *root.glob(f"{place}/*/opus.*".lstrip("/"))]):
            if match := _OPUS.fullmatch(file.name):
                sides.setdefault(match["pair"], {}).setdefault(match["split"], {})[match["suffix"]] = file
    return _aligned(sides)


def _ted(folder: Path) -> Found:
    """Folders aze_eng, bel_eng, ..; text that was cut into pieces is joined, where the text itself is not there."""
    sides: dict[str, dict[str, dict[str, Path]]] = {}
    pieces: dict[str, dict[str, dict[str, Path]]] = {}
    for below in sorted([*folder.glob("*_en*"), *folder.glob("ted/*_en*")]):
        if not (names := _TED_FOLDER.fullmatch(below.name)) or not below.is_dir():
            continue
        for file in sorted(below.iterdir()):
            match = _TED.fullmatch(file.name)
            if match and match["suffix"] in (names["language"], names["english"]):
                kind = pieces if match["pieces"] else sides
                name = f"{names['english']}-{names['language']}"
                kind.setdefault(name, {}).setdefault(match["split"], {})[match["suffix"]] = file
    found = _aligned(sides)
    for pair, splits in _aligned(pieces, join=True).pairs.items():
        for split, texts in splits.items():
            if split not in found.pairs.get(pair, {}):
                found.add(pair, split, texts)
    return found


def _ml50(folder: Path) -> Found:
    for name in _CLEANEST_FIRST:
        for below in (folder / name, folder / "ML50" / name):
            if below.is_dir() and (found := _moses(below)).pairs:
                found.notices.append(f"read from {below.relative_to(folder)}")
                return found
    return Found()


def _tables(folder: Path) -> Found:
    found = Found()
    for file in sorted([*folder.iterdir(), *folder.glob("*-*/*.jsonl")], key=_valid_first):
        if (match := _PAIR.fullmatch(file.name)) and match["suffix"] == "tsv":
            for pair in _split_pair(match["pair"], None):
                found.add(pair, match["split"], Texts((file,), partial(_columns, file, (0, 1), 2, header=False)))
        elif not (match := _TABLE.fullmatch(file.name)):
            continue
        elif match["kind"] == "jsonl":
            for pair in _unordered(_json_languages(file)):
                found.add(pair, match["split"], Texts((file,), partial(_json_pairs, file, pair)))
        else:
            header = next(read_lines(file), "").split("\t")
            if all(name in header for name in _LONG):
                places = [header.index(name) for name in _LONG]
                for pair in _unordered(_long_languages(file, places, len(header))):
                    read = partial(_long_pairs, file, places, len(header), pair)
                    found.add(pair, match["split"], Texts((file,), read))
                continue
            languages = sorted((name, i) for i, name in enumerate(header) if _LANGUAGE.fullmatch(name))
            if len(languages) < 2:
                raise UserError(
                    f"{file}: its first line must name the columns: languages, such as en and az, or {' '.join(_LONG)}"
                )
            for k, (first, i) in enumerate(languages):
                for second, j in languages[k + 1 :]:
                    read = partial(_columns, file, (i, j), len(header), header=True)
                    found.add((first, second), match["split"], Texts((file,), read))
    return found


def _valid_first(file: Path) -> tuple[bool, Path]:
    """A key for sorting: "valid" before its other names."""
    return any(re.search(rf"(^|_){name}\.", file.name) for name in _VALID), file


def _aligned(sides: dict[str, dict[str, dict[str, Path]]], join: bool = False) -> Found:
    """Two files a split, one a language: {"en-az": {"train": {"en": file, "az": file, "meta": file}}}."""
    found = Found()
    for name, splits in sides.items():
        suffixes = {suffix for files in splits.values() for suffix in files} - {"meta"}
        for pair in _split_pair(name, suffixes):
            for split in sorted(splits, key=lambda split: split in _VALID):
                files = splits[split]
                for language, other in (pair, pair[::-1]):
                    if language not in files and other in files:
                        there = files[other]
                        missing = there.with_name(there.name.removesuffix(other) + language)
                        raise UserError(
                            f"{missing}: no such file, but {there.name} is there; add it or remove the other side"
                        )
                if pair[0] in files:
                    paths = files[pair[0]], files[pair[1]]
                    found.add(pair, split, two_files(*paths, files.get("meta"), join=join))
    return found


def two_files(first: Path, second: Path, meta: Path | None = None, *, join: bool = False) -> Texts:
    """Line i of one belongs to line i of the other. join: they hold pieces of words."""
    return Texts((first, second), partial(_two_files, first, second, join=join), meta)


def _split_pair(name: str, languages: set[str] | None) -> list[tuple[str, str]]:
    """["en", "zh-Hans"] of "en-zh-Hans"; a code may have hyphens itself, and then the files' suffixes tell."""
    cuts = [(name[:i], name[i + 1 :]) for i, letter in enumerate(name) if letter == "-"]
    if languages is not None:
        cuts = [cut for cut in cuts if languages & set(cut)]
    return cuts[:1]


def _unordered(directions: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """The pairs, whichever way they stand: a file may have both."""
    return sorted({(min(pair), max(pair)) for pair in directions})


# Reading.


def read_lines(file: Path) -> Iterator[str]:
    """The lines of a UTF-8 file. Only LF and CRLF end a line: U+2028, U+0085 and their like are text.

    Raises:
        UserError: the file cannot be read, or is not UTF-8.
    """
    try:
        with file.open("rb") as stream:
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


def _two_files(first: Path, second: Path, join: bool = False) -> Iterator[tuple[str, str]]:
    lines, others = read_lines(first), read_lines(second)
    count = 0
    for line in lines:
        other = next(others, None)
        if other is None:
            raise _unequal(first, count + 1 + _count(lines), second, count)
        yield (_joined(line), _joined(other)) if join else (line, other)
        count += 1
    if (more := _count(others)) > 0:
        raise _unequal(first, count, second, count + more)


def _joined(pieces: str) -> str:
    """The text of sentencepiece's pieces, as fairseq's preprocessing leaves them: with spaces between."""
    return pieces.replace(" ", "").replace("\u2581", " ").strip()


def _count(lines: Iterator[str]) -> int:
    return sum(1 for _ in lines)


def _unequal(file: Path, lines: int, other: Path, other_lines: int) -> UserError:
    return UserError(
        f"{file} has {lines} lines, {other.name} has {other_lines}; line i of one must belong to line i of the other"
    )


def read_meta(texts: Texts, lines: int) -> list[tuple[str, str]]:
    """(stratum, cluster) of every line."""
    assert texts.meta is not None
    meta = []
    for number, line in enumerate(read_lines(texts.meta), start=1):
        match line.split("\t"):
            case [stratum, cluster]:
                meta.append((stratum, cluster))
            case columns:
                raise UserError(f"{texts.meta}, line {number}: {len(columns)} columns; must be stratum, a tab, cluster")
    if len(meta) != lines:
        raise _unequal(texts.meta, len(meta), texts.paths[0], lines)
    return meta


def _rows(file: Path, width: int, header: bool) -> Iterator[list[str]]:
    """The rows of a TSV file. Quotes are text, and so is "NA"."""
    for number, line in enumerate(read_lines(file), start=1):
        row = line.split("\t")
        if len(row) != width:
            raise UserError(f"{file}, line {number}: {len(row)} columns instead of {width}, separated by tabs")
        if number > 1 or not header:
            yield row


def _columns(file: Path, places: tuple[int, int], width: int, header: bool) -> Iterator[tuple[str, str]]:
    first, second = places
    for row in _rows(file, width, header):
        if row[first] != _NULL and row[second] != _NULL:
            yield row[first], row[second]


def _long_languages(file: Path, places: list[int], width: int) -> Iterator[tuple[str, str]]:
    for row in _rows(file, width, header=True):
        yield row[places[0]], row[places[1]]


def _long_pairs(file: Path, places: list[int], width: int, pair: tuple[str, str]) -> Iterator[tuple[str, str]]:
    source, target, first, second = places
    for row in _rows(file, width, header=True):
        if (row[source], row[target]) == pair:
            yield row[first], row[second]
        elif (row[target], row[source]) == pair:
            yield row[second], row[first]


def _json_records(file: Path) -> Iterator[dict[str, str]]:
    """{language: text} of every line, two of them."""
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
        # Half of a surrogate pair can be written in JSON, and in no UTF-8.
        plain = {str(language): str(text).encode("utf-8", "replace").decode() for language, text in sides.items()}
        yield {language: re.sub(r"[\r\n]+", " ", text) for language, text in plain.items()}


def _json_languages(file: Path) -> Iterator[tuple[str, str]]:
    for sides in _json_records(file):
        first, second = sides
        yield first, second


def _json_pairs(file: Path, pair: tuple[str, str]) -> Iterator[tuple[str, str]]:
    for sides in _json_records(file):
        if pair[0] in sides and pair[1] in sides:
            yield sides[pair[0]], sides[pair[1]]
