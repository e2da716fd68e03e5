"""Phrases that are independent of language: a template, and the names and numbers in its slots.

`cats.nmt.data.cldr.writer` writes a phrase as text, `cats.nmt.data.cldr.generate` makes a corpus of phrases.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date

Entity = tuple[str, str]  # (kind, name), such as ("territory", "PL")

COUNTS = range(1, 21)

# {kind of atom: kinds of its entities, in the order of Atom.names}
ATOMS: dict[str, tuple[str, ...]] = {
    "territory": ("territory",),
    "language": ("language",),
    "locale": ("language", "territory"),  # Portuguese (Brazil)
    "currency": ("currency",),
    "amount": ("currency",),  # 5 euros
    "price": ("currency", "per"),  # 5 euros per day
    "quantity": ("unit",),  # 5 liters
    "rate": ("unit", "per"),  # 5 liters per day
    "relative": ("relative",),  # in 5 days; 5 days ago
    "day": ("month",),  # May 7
    "date": ("month",),  # May 7, 2016
    "weekday": ("weekday", "month"),  # Saturday, May 7, 2016
    "moment": ("month",),  # May 7, 15:30
    "span": ("month", "month"),  # May – August 2016
}
DATES = ("day", "date", "weekday", "moment", "span")


@dataclass(frozen=True)
class Atom:
    """The content of one slot of a template.

    kind: a key of ATOMS.
    names: its entities.
    numbers: its count, or the numbers of its date: (day,), (year,), (year, day) or (day, hour, minute).
    """

    kind: str
    names: tuple[str, ...]
    numbers: tuple[int, ...] = ()


@dataclass(frozen=True)
class Template:
    """The kinds of atoms of a phrase, and how they are joined.

    join: "and" or "or" (a list as the language writes it), "range" (A – B), "" (a single atom).
    """

    join: str
    atoms: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.join or 'one'}({','.join(self.atoms)})"

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of the entities, in the order of the slots."""
        return tuple(kind for atom in self.atoms for kind in ATOMS[atom])

    def draw(self, rng: random.Random, pick: Callable[[str], str]) -> Phrase | None:
        """A random phrase, or None if it makes no sense: it has a name twice, or a time span runs backwards.

        Args:
            pick: chooses an entity of a kind.
        """
        atoms = tuple(_draw_atom(kind, rng, pick) for kind in self.atoms)
        return Phrase(self, atoms) if self._makes_sense(atoms) else None

    def _makes_sense(self, atoms: tuple[Atom, ...]) -> bool:
        for atom in atoms:
            if atom.kind == "rate" and atom.names[0].startswith("duration-"):  # hours per day
                return False
            if atom.kind == "span" and int(atom.names[0]) >= int(atom.names[1]):
                return False
        things = [atom if atom.kind in DATES else (atom.kind, atom.names[0]) for atom in atoms]
        return len(set(things)) == len(things)


@dataclass(frozen=True)
class Phrase:
    """A template and the content of its slots."""

    template: Template
    atoms: tuple[Atom, ...]

    @property
    def entities(self) -> tuple[Entity, ...]:
        """All entities, in the order of the slots."""
        return tuple(
            (kind, name) for atom in self.atoms for kind, name in zip(ATOMS[atom.kind], atom.names, strict=True)
        )


def _draw_atom(kind: str, rng: random.Random, pick: Callable[[str], str]) -> Atom:
    names = tuple(pick(entity) for entity in ATOMS[kind])
    match kind:
        case "amount" | "price" | "quantity" | "rate" | "relative":
            return Atom(kind, names, (rng.choice(COUNTS),))
        case "day":
            return Atom(kind, names, (rng.randint(1, 28),))
        case "date":
            return Atom(kind, names, (rng.randint(2010, 2029), rng.randint(1, 28)))
        case "weekday":
            year = rng.randint(2010, 2029)
            first = date(year, int(names[1]), 1).weekday()
            return Atom(kind, names, (year, 1 + (int(names[0]) - first) % 7 + 7 * rng.randint(0, 3)))
        case "moment":
            return Atom(kind, names, (rng.randint(1, 28), rng.randint(0, 23), 5 * rng.randint(0, 11)))
        case "span":
            return Atom(kind, names, (rng.randint(2010, 2029),))
    return Atom(kind, names)


TEMPLATES = tuple(
    Template(join, tuple(atoms.split()))
    for join, atoms in (
        ("and", "territory territory"),
        ("or", "territory territory"),
        ("range", "territory territory"),
        ("and", "territory territory territory"),
        ("and", "language language"),
        ("or", "language language"),
        ("and", "language language language"),
        ("", "locale"),
        ("or", "locale language"),
        ("and", "currency currency"),
        ("or", "currency currency"),
        ("and", "amount amount"),
        ("or", "amount amount"),
        ("range", "amount amount"),
        ("", "price"),
        ("and", "quantity quantity"),
        ("or", "quantity quantity"),
        ("", "rate"),
        ("or", "rate quantity"),
        ("and", "relative relative"),
        ("or", "relative relative"),
        ("or", "relative day"),
        ("", "date"),
        ("and", "day day"),
        ("", "weekday"),
        ("", "moment"),
        ("", "span"),
    )
)


@dataclass(frozen=True)
class Repertoire:
    """What a language can write: the templates that it has all patterns of, and the entities that it has names for."""

    templates: tuple[Template, ...]
    entities: frozenset[Entity]
