"""Writes phrases in a language with the Unicode CLDR data that Babel contains, and chooses the lexicon of names.

Patterns are combined and inherited as in Unicode Technical Standard 35, with one exception: only punctuation is
inherited from the root locale. If a language has no name for something, the root's name is not a translation.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from babel import Locale, localedata
from babel.core import get_global
from babel.dates import parse_pattern

from cats.nmt.data.cldr.phrases import COUNTS, DATES, TEMPLATES, Atom, Entity, Phrase, Repertoire, Template

LEXICON_SIZE = 60

_CLOCK = ("day", "week", "month", "year", "hour", "minute", "second")
_WEEKDAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")

# Candidates, the best known first: their frequency decreases along the list. The lexicon has the first LEXICON_SIZE
# candidates that all languages have a name for.
_CANDIDATES = {
    "territory": """
        FR DE IT ES PL US JP CN IN BR GB RU TR GR EG CA MX UA NL SE NO FI DK PT AT CH BE CZ HU RO BG RS HR SI SK AL IE
        IS EE LV LT GE AM AZ KZ UZ IR IQ SY IL SA JO KE NG ET ZA MA TN DZ AR CL PE CO VE CU TH VN ID MY PH KR AU NZ PK
    """,
    "language": """
        fr de it es pl ja zh hi pt ru tr el ar uk nl sv no fi da cs hu ro bg sr hr sl sk sq ga is et lv lt ka hy az kk
        uz fa ku he sw am af ca eu gl be mk mt cy la bn ta te mr ur ne th vi id ms ko mn km lo my eo yi tt ky
    """,
    "currency": """
        USD EUR GBP JPY CNY INR BRL RUB TRY CHF PLN CZK HUF RON BGN SEK NOK DKK ISK UAH EGP CAD MXN AUD NZD KRW
        IDR MYR PHP PKR LKR NPR ILS SAR JOD IQD IRR SYP KES NGN ETB ZAR MAD TND DZD ARS CLP PEN COP CUP AMD AZN
        KZT RSD MKD BYN MNT KWD QAR LBP LYD SDG TZS UGX
    """,
    "unit": """
        length-kilometer mass-kilogram duration-hour volume-liter length-meter duration-day duration-minute mass-gram
        duration-week length-centimeter duration-year duration-month area-square-meter duration-second length-mile
        volume-milliliter mass-pound length-foot digital-megabyte angle-degree mass-tonne length-inch
        area-square-kilometer volume-cubic-meter temperature-celsius power-watt digital-gigabyte energy-calorie
        duration-century mass-milligram length-millimeter volume-teaspoon area-hectare electric-volt duration-night
        power-kilowatt mass-ounce volume-gallon volume-tablespoon energy-kilocalorie digital-kilobyte volume-drop
        area-square-mile volume-pinch force-newton temperature-fahrenheit energy-joule power-horsepower
        volume-centiliter mass-carat duration-millisecond volume-cubic-centimeter area-square-foot length-yard
        length-light-year energy-kilojoule digital-terabyte power-megawatt volume-deciliter angle-revolution
        area-square-centimeter energy-kilowatt-hour volume-cubic-foot electric-ohm volume-hectoliter mass-microgram
        digital-megabit temperature-kelvin light-lumen
    """,
    "per": "duration-second duration-minute duration-hour duration-day duration-week duration-month duration-year",
    "relative": " ".join(f"{field}:{direction}" for field in (*_CLOCK, *_WEEKDAYS) for direction in ("future", "past")),
    "month": " ".join(str(month) for month in range(1, 13)),
    "weekday": " ".join(str(day) for day in range(7)),
}
_MARKS = dict.fromkeys(map(ord, "\u200e\u200f\u061c"))  # invisible marks of the writing direction
_FIELDS = (
    "territories",
    "languages",
    "currency_names",
    "currency_names_plural",
    "currency_unit_patterns",
    "unit_patterns",
    "date_fields",
    "date_formats",
    "datetime_formats",
    "datetime_skeletons",
    "days",
    "interval_formats",
    "list_patterns",
    "months",
)
# The patterns that an atom is written with, as the keys that lead to them. All dates also need the names of the months.
_PATTERNS: dict[str, list[tuple[str, ...]]] = {
    "day": [("datetime_skeletons", "MMMMd")],
    "date": [("date_formats", "long")],
    "weekday": [("date_formats", "full"), ("days", "format", "wide")],
    "moment": [("datetime_skeletons", "MMMMd"), ("datetime_formats", "long")],
}


class Writer:
    """Writes phrases in a language, with Latin digits."""

    def __init__(self, language: str) -> None:
        self._locale = Locale.parse(language)
        own = _own_data(language)
        self._data: dict[str, Any] = {field: _plain(own.get(field, {})) for field in _FIELDS}
        self._texts: dict[Atom, str] = {}

    def write(self, phrase: Phrase) -> str:
        """The phrase as one line: NFC, single plain spaces, no control characters and no direction marks."""
        for atom in phrase.atoms:
            if atom not in self._texts:
                self._texts[atom] = self._atom(atom)
        return _clean(self._join(phrase.template.join, [self._texts[atom] for atom in phrase.atoms]))

    def can_write(self, template: Template) -> bool:
        """Whether the language has the patterns of a template. It may lack names; see `repertoire`."""
        patterns = [path for atom in template.atoms for path in _PATTERNS.get(atom, [])]
        if any(atom in DATES for atom in template.atoms):
            patterns.append(("months", "format", "wide"))
        if template.join == "or":  # the root locale writes it like "and"
            patterns.append(("list_patterns", "or", "2"))
        if "span" in template.atoms and len(_find(self._data, ("interval_formats", "yMMMM", "M")) or []) != 2:
            return False  # missing, or Babel could not divide it into its two dates
        return all(_find(self._data, path) for path in patterns)

    def name(self, kind: str, key: str) -> str | None:
        """A name of the entity that no other entity has. None if the language has no name for it."""
        forms = {self._locale.plural_form(count) for count in COUNTS}
        match kind:
            case "territory" | "language" | "currency":
                name = self._names(kind).get(key)
                plurals = self._data["currency_names_plural"].get(key)
                if kind == "currency" and plurals and not forms <= plurals.keys():
                    return None
                return None if name is None or name.casefold() == key.casefold() or "(" in name else _clean(name)
            case "unit":
                patterns = [self._unit(key, form) for form in sorted(forms | {"other"})]
                return None if None in patterns else _clean(self._quantity(key, COUNTS[-1]))
            case "per":
                return self._unit(key, "per")
            case "relative":
                field, direction = key.split(":")
                patterns = self._data["date_fields"].get(field, {}).get(direction, {})
                return _clean(self._relative(key, COUNTS[-1])) if forms <= patterns.keys() else None
        return key

    def _atom(self, atom: Atom) -> str:
        first, second = (*atom.names, "", "")[:2]
        match atom.kind:
            case "territory" | "language" | "currency":
                name: str = self._names(atom.kind)[first]
                return name
            case "locale":
                return f"{self._names('language')[first]} ({self._names('territory')[second]})"
            case "amount":
                return self._amount(first, *atom.numbers)
            case "price":
                return self._per(second).format(self._amount(first, *atom.numbers))
            case "quantity":
                return self._quantity(first, *atom.numbers)
            case "rate":
                compound = f"speed-{first.partition('-')[2]}-per-{second.partition('-')[2]}"
                if self._unit(compound, "other"):
                    return self._quantity(compound, *atom.numbers)
                return self._per(second).format(self._quantity(first, *atom.numbers))
            case "relative":
                return self._relative(first, *atom.numbers)
            case "day":
                return self._date("MMMMd", month=int(first), day=atom.numbers[0])
            case "date":
                return self._date("long", year=atom.numbers[0], month=int(first), day=atom.numbers[1])
            case "weekday":
                return self._date("full", year=atom.numbers[0], month=int(second), day=atom.numbers[1])
            case "moment":
                day, hour, minute = atom.numbers
                text = self._date("MMMMd", month=int(first), day=day)
                time = self._date("Hm", month=1, day=1, hour=hour, minute=minute)
                pattern: str = self._data["datetime_formats"]["long"]
                return pattern.replace("'", "").format(time, text)  # words in it are quoted: {1} 'kl'. {0}
            case "span":
                opening, closing = self._data["interval_formats"]["yMMMM"]["M"]
                return "".join(
                    self._date(pattern, year=atom.numbers[0], month=int(month), day=1)
                    for pattern, month in ((opening, first), (closing, second))
                )
        raise ValueError(atom.kind)

    def _join(self, join: str, texts: Sequence[str]) -> str:
        if join == "":
            return texts[0]
        if join == "range":
            span: str = self._data["interval_formats"].get(None, "{0} – {1}").format(*texts)
            return span
        lists = self._data["list_patterns"]
        standard = lists.get("standard", {})
        own = lists["or"] if join == "or" else standard
        if len(texts) == 2:
            pair: str = own.get("2", "{0}, {1}").format(*texts)
            return pair
        text: str = own.get("end", "{0}, {1}").format(*texts[-2:])
        for position in reversed(range(len(texts) - 2)):
            part = "middle" if position else "start"
            text = own.get(part, standard.get(part, "{0}, {1}")).format(texts[position], text)
        return text

    def _names(self, kind: str) -> dict[str, str]:
        field = {"territory": "territories", "language": "languages", "currency": "currency_names"}[kind]
        names: dict[str, str] = self._data[field]
        return names

    def _amount(self, currency: str, count: int) -> str:
        form = self._locale.plural_form(count)
        plurals = self._data["currency_names_plural"].get(currency, {})
        name = plurals.get(form, plurals.get("other", self._data["currency_names"][currency]))
        patterns = self._data.get("currency_unit_patterns", {})
        text: str = patterns.get(form, patterns.get("other", "{0} {1}")).format(count, name)
        return text

    def _unit(self, unit: str, form: str) -> str | None:
        """The pattern of a unit. If the long pattern is missing, it is the same as the short one."""
        patterns = self._data["unit_patterns"].get(unit, {})
        for width in ("long", "short"):
            if form in patterns.get(width, {}):
                pattern: str = patterns[width][form]
                return pattern
        return None

    def _quantity(self, unit: str, count: int) -> str:
        pattern = self._unit(unit, self._locale.plural_form(count))
        assert pattern, unit
        return pattern.format(count)

    def _per(self, unit: str) -> str:
        pattern = self._unit(unit, "per")
        assert pattern, unit
        return pattern

    def _relative(self, key: str, count: int) -> str:
        field, direction = key.split(":")
        text: str = self._data["date_fields"][field][direction][self._locale.plural_form(count)].format(count)
        return text

    def _date(self, name: str, *, year: int = 2000, month: int, day: int, hour: int = 0, minute: int = 0) -> str:
        """A date, written with a format ("long"), a skeleton ("MMMMd") or a pattern."""
        if name == "Hm":
            pattern = self._data["datetime_skeletons"].get("Hm", "HH:mm")
        else:
            pattern = self._data["date_formats"].get(name) or self._data["datetime_skeletons"].get(name, name)
        text = getattr(pattern, "pattern", pattern)
        if "wide" not in self._data["months"].get("stand-alone", {}):
            text = text.replace("LLLL", "MMMM")
        return parse_pattern(text).apply(datetime(year, month, day, hour, minute), self._locale)


def lexicon(writers: Sequence[Writer]) -> dict[str, list[str]]:
    """{kind: names that all `writers` have, the best known first}, at most LEXICON_SIZE of each kind.

    If a language has the same name for two entities, only the first entity is taken.
    """
    chosen: dict[str, list[str]] = {}
    for kind, candidates in _CANDIDATES.items():
        taken: list[set[str]] = [set() for _ in writers]
        chosen[kind] = []
        for key in candidates.split():
            names = [writer.name(kind, key) for writer in writers]
            if None in names or any(name in seen for name, seen in zip(names, taken, strict=True)):
                continue
            for name, seen in zip(names, taken, strict=True):
                seen.add(str(name))
            chosen[kind].append(key)
        del chosen[kind][LEXICON_SIZE:]
    return chosen


def repertoire(writer: Writer, names: Mapping[str, Sequence[str]]) -> Repertoire:
    """What a language can write with the names of a lexicon {kind: names}.

    If it has the same name for two entities, only the first is taken.
    """
    found: dict[tuple[str, str], Entity] = {}
    for kind, keys in names.items():
        for key in keys:
            if (text := writer.name(kind, key)) is not None:
                found.setdefault((kind, text), (kind, key))
    kinds = {kind for kind, _ in found}
    return Repertoire(
        tuple(t for t in TEMPLATES if kinds.issuperset(t.kinds) and writer.can_write(t)), frozenset(found.values())
    )


def _own_data(language: str) -> dict[str, Any]:
    """The data of a language, with what it inherits from a language (nn from no), but not from the root locale."""
    parent = get_global("parent_exceptions").get(language, "root")
    data = {} if parent == "root" else _own_data(parent)
    # Babel keeps what it loads under the name of the language, whether or not it has merged what is inherited.
    localedata._cache.pop(language, None)
    own = localedata.load(language, merge_inherited=False)
    localedata._cache.pop(language, None)
    localedata.merge(data, own)
    return data


def _find(data: Mapping[str, Any], path: Sequence[str]) -> Any:
    """What is at the end of a path of keys, or None."""
    value: Any = data
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _plain(value: Any) -> Any:
    return {key: _plain(item) for key, item in value.items()} if isinstance(value, Mapping) else value


def _clean(text: str) -> str:
    return unicodedata.normalize("NFC", " ".join(text.translate(_MARKS).split()))
