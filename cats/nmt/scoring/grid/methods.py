"""The methods of a comparison by their names, and the settings that each name stands for.

T=3          plain token means, batches drawn at this temperature (any number, or inf)
NAME         a method of `cats train --method`, or one of `NAMED`; pretrain is short for pretrain-finetune
T=3r, NAME-r the same with a warm restart (`train.restart`) after 35 % of the updates
NAME-staged  the same, and before this restart T=1
NAME-fixed   of a method of the name cats: the mean over time of the weights of its run of the same seed, as constants
             relative to the tokens of each batch, see `cats.nmt.scoring.grid.runs.constant_weights`; -fixed comes last
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from cats.nmt.config.checks import format_value
from cats.nmt.config.recipes import first_phase, recipe
from cats.nmt.config.schema import FIELDS, Config
from cats.nmt.config.sections.method import METHODS
from cats.nmt.config.toml import apply_overrides, split_at_commas
from cats.nmt.errors import UserError, unknown
from cats.nmt.methods.catalogue import find

_TOKENS = ["method.name=static", "method.weights=tokens", "method.token_weights=[]"]  # the mean loss over all tokens
_ONE_TEMPERATURE = [
    *("sampling.temperature_end=0", "sampling.ratios=[]", "sampling.unimax_epochs=0", "sampling.first_temperature=0")
]
_ONE_PHASE = [  # no restart, also where the other methods have one
    *("train.restart=false", "train.restart_parts=all", "train.pretrain=[]", "train.pretrain_steps=0"),
    "train.finetune=[]",
]
_STAGED = ["sampling.first_temperature=1"]  # with a restart
# Names besides T=.. and those of `cats train --method`. The weightings (tokens, uniform, cats, ..) all use the sampler
# of the configuration, so tokens is one more temperature.
NAMED: dict[str, list[str]] = {
    "tokens": _TOKENS,
    "uniform": ["method.name=static", "method.weights=uniform", "method.token_weights=[]"],
}
STAGED = "staged"  # a recipe, but the method of its runs is static: finished runs must stay those of this name
SHORT = {"pretrain": "pretrain-finetune"}  # other names of methods
DEFAULT = ("T=1", "T=5", "T=inf", "tokens", "uniform", "staged", "cats")
RANDOM = "rlw"  # random weights
FIXED = "-fixed"
# What --controls may name.
CONTROLS = {
    "temperatures": "T=1, T=5 and T=inf",
    "random": "random weights (rlw)",
    "fixed": "the mean over time of the weights of cats as constants, for each method with them",
    "restart": "each method with a warm restart at the same update",
}
_TEMPERATURE = re.compile(r"T=(inf|[0-9]+(?:\.[0-9]+)?)(r?)")
_SETTING = r"[a-z]+\.[a-z_]+="  # the start of a setting
_SUFFIXES = ("-r", "-staged", FIXED)
# What a variant must not set: the seed, and what decides which text is scored, and how. All methods have the same.
_SHARED = {name for name in FIELDS if name.startswith(("data.", "evaluate."))} | {"train.seed"}
_SHARED -= {"data.tasks", "data.max_ratio"}


class Methods:
    """Finds the settings of a method by its name.

    Args:
        variants: more methods, as NAME:BASE,KEY=VALUE,.. where BASE is another method; without BASE it is cats.

    Raises:
        UserError: a variant has another form, its name is taken, or it sets what all methods must share.
    """

    def __init__(self, variants: Iterable[str] = ()) -> None:
        self.variants: dict[str, tuple[str, list[str]]] = {}
        for variant in variants:
            name, _, text = variant.partition(":")
            base, settings = split_settings(text)
            plain = name.isprintable() and name and name == Path(name).name and (base or settings)
            if not plain or name in self.variants or self._is_known(name):
                raise UserError(
                    f"--variant {variant}: write NAME:BASE,KEY=VALUE,.. (BASE: a method, or left out for cats) with a "
                    "plain name that no other method has"
                )
            if shared := [key for key in (text.partition("=")[0] for text in settings) if key in _SHARED]:
                raise UserError(f"--variant {variant}: {shared[0]} must be the same for all methods; use --set")
            self.variants[name] = base or "cats", settings
        for name in self.variants:
            if clash := [name + suffix for suffix in _SUFFIXES if name + suffix in self.variants]:
                raise UserError(f"--variant {clash[0]}: {name} is a variant, too, which gives this name a meaning")

    def settings(self, name: str, steps: int) -> list[str]:
        """The settings of a method as overrides, in their order. The weights of a method NAME-fixed are not known here.

        Args:
            steps: the number of updates.

        Raises:
            UserError: no method has this name, or a variant is based on itself.
        """
        found = self._settings(name, steps, ())
        # A variant may have its own number of updates. The restart, also that of NAME-r, is at 35 % of these.
        if own := [text for text in found if text.startswith("train.steps=")]:
            return self._settings(name, apply_overrides(Config(), own).train.steps, ())
        return found

    def _settings(self, name: str, steps: int, within: tuple[str, ...]) -> list[str]:
        """The same. within: the variants that are based on this method."""
        restart = ["train.restart=true", f"train.pretrain_steps={first_phase(steps)}"]
        name = SHORT.get(name, name)
        if name in self.variants:
            if name in within:
                raise UserError(f"--variant {name}: it is based on itself; name another method before its settings")
            base, settings = self.variants[name]
            return [*self._base(base, steps, (*within, name)), *settings]
        if found := _TEMPERATURE.fullmatch(name):
            order = restart if found[2] else _ONE_PHASE
            return [*_TOKENS, f"sampling.temperature={found[1]}", *_ONE_TEMPERATURE, *order]
        if name in NAMED:
            return NAMED[name]
        if name == STAGED:
            given = recipe(STAGED, steps)
            del given["train.restart_parts"]  # those of the base, as for the other methods with a restart
            return ["method.name=static", *(f"{key}={format_value(value)}" for key, value in given.items())]
        if name in METHODS:
            return [f"method.name={name}"]
        base, _, suffix = name.rpartition("-")
        more = {"r": restart, "staged": [*_STAGED, *restart], FIXED[1:]: ["method.name=static"]}
        if base and suffix in more:
            return [*self._base(base, steps, within), *more[suffix]]
        if f"{name.partition(':')[0]}:NAME" in METHODS:
            return [f"method.name={name}"]
        if found := re.fullmatch(r"[Tt]=?(inf|[0-9.]+)(r?)", name):
            raise UserError(f"unknown method {name} (did you mean T={found[1]}{found[2]}?)")
        raise unknown("method", name, self.names())

    def _base(self, base: str, steps: int, within: tuple[str, ...]) -> list[str]:
        """The settings of a method that another one is based on."""
        if base not in self.variants and base.endswith(FIXED):  # its weights are not among its settings
            source = base.removesuffix(FIXED)
            raise UserError(
                f"no method can be based on {base}, whose weights come from a run of {source}: base it on {source}, "
                f"and add {FIXED} to its name, as in cats-r{FIXED}"
            )
        return self._settings(base, steps, within)

    def names(self) -> list[str]:
        """All names but those with suffixes, with T=3 for all temperatures."""
        return list(dict.fromkeys(["T=3", *NAMED, *METHODS, *self.variants]))

    def with_controls(self, methods: Iterable[str], controls: Iterable[str], base: Config) -> list[str]:
        """These methods and their controls, each method followed by its own.

        Args:
            controls: names in CONTROLS.
            base: the settings that all methods start from.
        """
        wanted = list(dict.fromkeys(methods))
        if "temperatures" in controls:
            wanted = [*(name for name in ("T=1", "T=5", "T=inf") if name not in wanted), *wanted]
        if "random" in controls and RANDOM in METHODS:
            wanted.append(RANDOM)
        found: dict[str, None] = {}
        for name in wanted:
            settings = apply_overrides(base, self.settings(name, base.train.steps))
            forms = [name]
            again = settings.train.restart or settings.train.pretrain or name.endswith(FIXED)
            if "restart" in controls and not again:
                forms.append(f"{name}r" if _TEMPERATURE.fullmatch(name) else f"{name}-r")
            for form in forms:
                found[form] = None
                if "fixed" in controls and settings.method.name == "cats":
                    found[form + FIXED] = None
        return list(found)

    def _is_known(self, name: str) -> bool:
        try:
            self.settings(name, steps=2)
        except UserError:
            return False
        return True


def unused_settings(config: Config) -> set[str]:
    """The settings of [method] that have no effect with the method of a configuration."""
    used = {"method.name", "method.options"}
    if config.method.name == "cats":
        return {"method.weights", "method.token_weights", "method.options"}
    if find(config.method.name).has_plain_weights:
        used |= {"method.weights", "method.token_weights"}
    else:
        used |= {"method.prior", "method.engine"}
    return {f"method.{key}" for key in vars(config.method)} - used


def is_fixed_temperature(name: str) -> bool:
    """Whether a method is plain training at one temperature, without a restart: the usual baseline."""
    found = _TEMPERATURE.fullmatch(name)
    return found is not None and not found[2]


def split_settings(text: str) -> tuple[str, list[str]]:
    """What is before the settings of "BASE,KEY=VALUE,..", or "", and the settings.

    A value may have commas. One that is followed by what looks like a setting must be within brackets or quotes.
    """
    base, settings = "", list[str]()
    for number, part in enumerate(split_at_commas(text)):
        if re.match(_SETTING, part):
            settings.append(part)
        elif settings:  # the rest of a value without brackets, such as az,be
            settings[-1] += f",{part}"
        else:
            base += f",{part}" if number else part
    return base, settings


def check_controls(controls: Iterable[str]) -> None:
    """Raises an error for a name that is not in CONTROLS, or for none beside another name."""
    names = list(controls)
    if names == ["none"]:
        return
    if "none" in names:
        raise UserError(f"--controls {' '.join(names)}: none leaves out all controls; give it alone")
    known = [*CONTROLS, "none"]
    for name in names:
        if name not in known:
            raise unknown("control", name, known, where="--controls")
