"""HTML that is safe by construction: whatever was not made here is text, and is escaped."""

from __future__ import annotations

import html
import re
from dataclasses import dataclass

_VOID = {"br", "link", "meta"}  # elements without content
# Characters that HTML does not allow, or that UTF-8 cannot express: control characters and lone surrogates.
_NOT_ALLOWED = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
_LANGUAGE = re.compile("[A-Za-z]{2,3}(-[A-Za-z0-9]{2,8})*")


@dataclass(frozen=True)
class Html:
    """Markup. It is no str, so that text and markup cannot be mixed up or added."""

    markup: str


Child = str | Html | None
Attribute = str | int | float | bool | None


def element(tag: str, *children: Child, **attributes: Attribute) -> Html:
    """An element.

    Args:
        children: text, which is escaped, and markup. None: nothing.
        attributes: values are escaped. True: without a value. None and False: left out. "_" stands for "-" in names,
            and at the end of one for nothing: `class_`.
    """
    words = [tag]
    for name, value in attributes.items():
        name = name.rstrip("_").replace("_", "-")
        if value is True:
            words.append(name)
        elif value is not None and value is not False:
            words.append(f'{name}="{_escaped(str(value))}"')
    start = f"<{' '.join(words)}>"
    return Html(start if tag in _VOID else f"{start}{joined(*children).markup}</{tag}>")


def joined(*children: Child) -> Html:
    """Text and markup, one after the other."""
    return Html("".join(c.markup if isinstance(c, Html) else _escaped(c) for c in children if c is not None))


def foreign(text: str, language: str = "", tag: str = "p") -> Html:
    """Text of a corpus in an element with its language and direction.

    Args:
        language: as corpora name it, such as az, zh_CN or srp_Latn. "": not known.
    """
    return element(tag, text, lang=language_tag(language), dir="auto")


def language_tag(language: str) -> str | None:
    """The name of a language as HTML wants it (BCP 47), such as zh-CN for zh_CN; None if it does not look like one."""
    tag = language.replace("_", "-")
    return tag if _LANGUAGE.fullmatch(tag) else None


def _escaped(text: str) -> str:
    return html.escape(_NOT_ALLOWED.sub("\ufffd", text))
