"""The layouts of parallel text: which files of a folder hold which split of which pair of languages.

Public corpora are read in the layout in which they are distributed. A layout is one function here; ``find`` tries them
all. To add a layout, write a function, add it to ``find``, and describe it in ``DESCRIPTION`` and ``KNOWN``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from cats.nmt.data.readers import (
    SOURCE_AND_TARGET,
    PairReader,
    json_lines,
    read_lines,
    tsv_columns,
    tsv_with_languages,
    two_files,
)
from cats.nmt.errors import UserError

# `cats data inspect --help` prints this list.
DESCRIPTION = """\
  Moses, many pairs   {train,valid,test}.en-xx.en with .xx, and .meta; {train,valid}.xx-xx.xx: text of one language,
                      for language modelling
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
_CODE = re.compile(r"[A-Za-z0-9]+([-_][A-Za-z0-9]+)*")  # it becomes part of file names
_LANGUAGE = re.compile(r"[a-z]{2,3}([-_][A-Za-z0-9]+)*")
_CLEANEST_FIRST = ("clean", "dedup", "raw")  # the folders of ML50

Sides = dict[str, dict[str, dict[str, Path]]]  # {"en-az": {"train": {"en": file, "az": file, "meta": file}}}


@dataclass
class Found:
    """The parallel text of a folder.

    pairs: {(language, language): {split: its reader}}.
    notices: what was left out, one line each.
    files: all files that belong to the layout, also those that were left out.
    """

    pairs: dict[tuple[str, str], dict[str, PairReader]] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)
    files: set[Path | None] = field(default_factory=set)

    def add(self, pair: tuple[str, str], split: str, reader: PairReader, *, monolingual: bool = False) -> None:
        """Adds one split of a pair, unless the folder has that split already.

        Args:
            monolingual: the reader yields every line of a text twice, for language modelling, which has no test.
        """
        self.files.update(reader.paths, [reader.meta])
        for code in pair:
            if not _CODE.fullmatch(code):
                raise UserError(f"{reader.paths[0]}: {code!r} is not a language code, such as en or zh_Hans")
        name = "-".join(pair)
        if monolingual and split == "test":
            return
        if pair[0] == pair[1] and not monolingual:
            self.notices.append(f"{name}: left out, both languages are the same")
            return
        splits = self.pairs.setdefault(pair, {})
        usual = "valid" if split in _VALID else split
        if usual not in splits:
            splits[usual] = reader
        elif usual == split:
            self.notices.append(f"{name}: {reader.paths[0]} is left out, {splits[usual].paths[0]} is used")
        else:
            self.notices.append(f"{name}: its {split} files are left out, its valid files are used")


def find(folder: Path, source: str) -> Found:
    """The parallel text of a folder, in the first layout that fits.

    Args:
        source: the source language. It is only used to recognise a single Moses pair.

    Raises:
        UserError: no layout fits, or a file of the layout is missing or malformed.
    """
    for layout in (moses_pairs, tables, partial(moses_pair, source=source), opus_100, ted_8, ml50):
        found: Found = layout(folder)
        if found.pairs:
            found.notices += _unread_files(folder, found)
            return found
    if not any(folder.iterdir()):
        raise UserError(f"{folder}: the folder is empty; known layouts: {KNOWN}")
    names = _other_files(folder, Found())
    advice = f"; found {_first_of(names)}" if names else ""
    if names and not any(re.match(rf"{_SPLIT}\.", name) for name in names):
        advice += "; rename them to train.*, valid.* and test.*"
    raise UserError(f"{folder}: no parallel text in this folder{advice}; known layouts: {KNOWN}")


def _unread_files(folder: Path, found: Found) -> list[str]:
    """One line about the files that do not belong to the layout, if there are any."""
    names = _other_files(folder, found)
    return [f"{len(names)} file{'s' if len(names) > 1 else ''} not read: {_first_of(names)}"] if names else []


def _other_files(folder: Path, found: Found) -> list[str]:
    """The names of the files that do not belong to the layout."""
    return [
        file.name
        for file in sorted(folder.iterdir())
        if file.is_file()
        and file not in found.files
        and not file.name.startswith((".", "README", "LICENSE", "COPYING"))
    ]


def _first_of(names: list[str]) -> str:
    return ", ".join(names[:5]) + (", .." if len(names) > 5 else "")


# The layouts.


def moses_pairs(folder: Path) -> Found:
    """train.en-xx.en with train.en-xx.xx, and so on."""
    sides: Sides = {}
    for file in sorted(folder.iterdir()):
        if (match := _PAIR.fullmatch(file.name)) and match["suffix"] != "tsv":
            sides.setdefault(match["pair"], {}).setdefault(match["split"], {})[match["suffix"]] = file
    return _aligned(sides)


def moses_pair(folder: Path, source: str) -> Found:
    """train.en with train.xx."""
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


def opus_100(folder: Path) -> Found:
    """supervised/en-xx/opus.en-xx-train.en with .xx, and zero-shot/."""
    sides: Sides = {}
    root = folder.parent if folder.name == "supervised" else folder
    for place in ("", "supervised", "zero-shot", "v1.0/supervised", "v1.0/zero-shot"):
        for file in sorted([*root.glob(f"{place}/opus.*".lstrip("/")), *root.glob(f"{place}/*/opus.*".lstrip("/"))]):
            if match := _OPUS.fullmatch(file.name):
                sides.setdefault(match["pair"], {}).setdefault(match["split"], {})[match["suffix"]] = file
    return _aligned(sides)


def ted_8(folder: Path) -> Found:
    """Folders aze_eng, bel_eng, and so on. Files of pieces (.spm8000) are used if the text itself is missing."""
    sides: Sides = {}
    pieces: Sides = {}
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
    for pair, splits in _aligned(pieces, join_pieces=True).pairs.items():
        for split, reader in splits.items():
            if split not in found.pairs.get(pair, {}):
                found.add(pair, split, reader)
    return found


def ml50(folder: Path) -> Found:
    """Moses pairs below clean/, dedup/ or raw/."""
    for name in _CLEANEST_FIRST:
        for below in (folder / name, folder / "ML50" / name):
            if below.is_dir() and (found := moses_pairs(below)).pairs:
                found.notices.append(f"read from {below.relative_to(folder)}")
                return found
    return Found()


def tables(folder: Path) -> Found:
    """TSV and JSON lines files, also those in one folder per pair."""
    found = Found()
    for file in sorted([*folder.iterdir(), *folder.glob("*-*/*.jsonl")], key=_valid_first):
        if (match := _PAIR.fullmatch(file.name)) and match["suffix"] == "tsv":
            for pair in _split_pair(match["pair"], None):
                found.add(pair, match["split"], tsv_columns(file, (0, 1), 2, header=False))
        elif match := _TABLE.fullmatch(file.name):
            readers = json_lines(file) if match["kind"] == "jsonl" else _tsv(file)
            for pair, reader in readers:
                found.add(pair, match["split"], reader)
    return found


def _tsv(file: Path) -> list[tuple[tuple[str, str], PairReader]]:
    """The pairs of languages in a TSV file with a header: either a column per language, or columns that name them."""
    header = next(read_lines(file), "").split("\t")
    if all(name in header for name in SOURCE_AND_TARGET):
        return tsv_with_languages(file, header)
    languages = sorted((name, i) for i, name in enumerate(header) if _LANGUAGE.fullmatch(name))
    if len(languages) < 2:
        raise UserError(
            f"{file}: its first line must name the columns: languages, such as en and az, "
            f"or {' '.join(SOURCE_AND_TARGET)}"
        )
    return [
        ((first, second), tsv_columns(file, (i, j), len(header), header=True))
        for k, (first, i) in enumerate(languages)
        for second, j in languages[k + 1 :]
    ]


# What the layouts share.


def _valid_first(file: Path) -> tuple[bool, Path]:
    """The order of files: a split named "valid" is found before "dev" and its other names, and so it is used."""
    return any(re.search(rf"(^|_){name}\.", file.name) for name in _VALID), file


def _aligned(sides: Sides, join_pieces: bool = False) -> Found:
    """Pairs with two files per split, one for each language. join_pieces: see ``two_files``."""
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
                    reader = two_files(*paths, files.get("meta"), join_pieces=join_pieces)
                    found.add(pair, split, reader, monolingual=pair[0] == pair[1])
    return found


def _split_pair(name: str, languages: set[str] | None) -> list[tuple[str, str]]:
    """[("en", "zh-Hans")] of "en-zh-Hans", or [] if the name cannot be split into two languages.

    Args:
        languages: the suffixes of the files; both parts, or else one of them, must be among them. None: split at the
            first hyphen.
    """
    cuts = [(name[:i], name[i + 1 :]) for i, letter in enumerate(name) if letter == "-"]
    if languages is not None:
        both = [cut for cut in cuts if set(cut) <= languages]  # pt-BR-pt is pt-BR and pt, not pt and BR-pt
        cuts = both or [cut for cut in cuts if languages & set(cut)]
    return cuts[:1]
