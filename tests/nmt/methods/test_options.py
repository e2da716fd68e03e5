"""`method.options`: text becomes arguments of the right type, and a wrong option is refused in one line."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, Literal

import pytest

from cats.nmt.errors import UserError
from cats.nmt.methods import options
from cats.nmt.methods.catalogue import NUMBERS, Method, find
from cats.nmt.methods.lssd import LSSD


class Example:
    """A class with an argument of every kind."""

    def __init__(
        self,
        rate: float = 0.1,
        *,
        every: int = 1,
        kind: Literal["one", "two"] = "one",
        start: Sequence[float] | float | None = None,
        strict: bool = False,
        hook: Callable[[], None] | None = None,
        run: str = "",
    ) -> None:
        if rate > 1:
            raise ValueError(f"rate must be at most 1, got {rate}")
        self.__dict__.update(locals())


@pytest.fixture(autouse=True)
def method(monkeypatch: pytest.MonkeyPatch) -> Method:
    found = Method("example", NUMBERS, "an example", "none", made_by=f"{__name__}.Example")
    monkeypatch.setattr(options, "find", lambda name: found)
    return found


def test_text_becomes_arguments():
    given = ("rate=1", " every = 3", "kind=two", "start=[1, 0.5]", "strict=true")
    made = options.build("example", given, hook=print, tasks=3)
    assert (made.rate, made.every, made.kind, made.start, made.strict, made.hook) == (
        1,
        3,
        "two",
        [1, 0.5],
        True,
        print,
    )
    assert options.build("example", ("start=none", "rate=1e-3")).start is None


@pytest.mark.parametrize("text", ["2024-05-01", "3", "1e3", "true", "none", "9" * 30, "runs/a", "a=b"])
def test_a_word_may_look_like_another_value(text: str):
    assert options.build("example", (f"run={text}",)).run == text


def test_a_word_may_have_quotes():
    assert options.build("example", ('run="a b"',)).run == "a b"


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("ratte=1", r"method\.options of example: unknown option ratte \(did you mean rate\?\); known: rate, every, "),
        ("hook=1", r"unknown option hook; known: "),  # it cannot be written as text
        ("rate", r"'rate' is not an option: write KEY=VALUE"),
        ("rate=fast", r"rate of example must be a number, not fast"),
        ("rate=true", r"rate of example must be a number, not true"),
        ("every=1.5", r"every of example must be a whole number, not 1\.5"),
        ("kind=three", r"kind of example must be one or two, not three"),
        ("start=[1,a]", r"start of example must be a list or a number or none, not \[1,a\]"),
        (f"rate=1{'0' * 400}", r"rate of example must be smaller: it has a whole number beyond 2\^63"),
        ("start=[1, 9223372036854775808]", r"start of example must be smaller: it has a whole number beyond 2\^63"),
        ("rate=2", r"method\.name = example: rate must be at most 1, got 2"),
    ],
)
def test_wrong_options(option: str, message: str):
    with pytest.raises(UserError, match=message) as error:
        options.build("example", (option,))
    assert "\n" not in str(error.value)


def test_an_option_that_is_given_twice():
    with pytest.raises(UserError, match="rate is given twice"):
        options.build("example", ("rate=1", "rate=1"))


def test_options_are_described(method: Any):
    assert options.described(method) == {
        "rate": "a number, 0.1 by default",
        "every": "a whole number, 1 by default",
        "kind": "one or two, one by default",
        "start": "a list or a number or none, none by default",
        "strict": "true or false, false by default",
        "run": "a word, empty by default",
    }


def test_the_default_of_an_argument_that_the_trainer_gives_is_what_the_trainer_gives():
    assert options.described(find("rlw")) == {"seed": "a whole number, train.seed by default"}
    assert options.described(find("group-dro"))["shares"].endswith(
        "the tasks' shares of the tokens (of method.prior=tokens) by default"
    )
    assert options.described(find("adaptive"))["baselines"] == "a list, empty by default"


def test_weight_of_lssd_that_is_not_finite():
    with pytest.raises(ValueError, match="weight must be finite and at least 0, not inf"):
        LSSD(weight=float("inf"))


def test_a_method_without_options(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(options, "find", lambda name: Method("plain", NUMBERS, "", ""))
    with pytest.raises(UserError, match=re.escape("method.options: plain has none; its settings are in [method]")):
        options.parsed("plain", ("a=1",))
    assert options.parsed("plain", ()) == {}
