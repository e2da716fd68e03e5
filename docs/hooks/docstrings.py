"""Shows docstrings on the site. They are Markdown, but for references as in ``:meth:`step``` and a final ``::``."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import griffe

REFERENCE = re.compile(r":(?:class|meth|attr|func|mod):`([\w.]+)`")


class Docstrings(griffe.Extension):
    """Makes links of references, and shows the values of default arguments that are constants."""

    def on_package(self, *, pkg: griffe.Module, loader: griffe.GriffeLoader, **_: Any) -> None:
        for obj in _objects(pkg):
            if obj.docstring is not None:
                # A final "::" announces code, as ":" does in Markdown.
                text = re.sub(r" ?::$", ":", obj.docstring.value, flags=re.MULTILINE)
                obj.docstring.value = REFERENCE.sub(lambda match, obj=obj: _link(match[1], obj), text)
            if isinstance(obj, griffe.Function):
                for parameter in obj.parameters:
                    parameter.default = _value(parameter.default, loader)


def _objects(parent: griffe.Object) -> Iterator[griffe.Object]:
    yield parent
    for member in parent.members.values():
        if not isinstance(member, griffe.Alias):
            yield from _objects(member)


def _link(name: str, obj: griffe.Object) -> str:
    """A link if the name is on the site, else code."""
    scope = obj if obj.is_class or obj.is_module else obj.parent
    assert scope is not None
    whole = name if name.startswith("cats.") else f"{scope.path}.{name}"
    return f'<autoref identifier="{whole}" optional><code>{name}</code></autoref>'


def _value(default: Any, loader: griffe.GriffeLoader) -> Any:
    """The value of a constant such as ``defaults.FLOOR``; other defaults as they are."""
    if not isinstance(default, griffe.Expr) or not re.fullmatch(r"([\w.]+\.)?[A-Z_]+", str(default)):
        return default
    try:
        constant = loader.modules_collection[default.canonical_path]
        return constant.value or default
    except (KeyError, griffe.AliasResolutionError, griffe.CyclicAliasError):
        return default
