"""The runs of a grid, with their settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cats.nmt.config.checks import is_utf8, replace_settings
from cats.nmt.config.schema import FIELDS, Config, value_of
from cats.nmt.config.toml import apply_overrides
from cats.nmt.cores import threads_per_process
from cats.nmt.errors import UserError, unknown
from cats.nmt.methods.catalogue import find
from cats.nmt.scoring.grid import trials
from cats.nmt.scoring.grid.methods import DEFAULT, FIXED, Methods, check_controls, split_settings
from cats.nmt.scoring.grid.runs import Run, Trial
from cats.nmt.scoring.grid.trials import trial_settings

# Languages, sizes and number of updates of each set. At T=1 the updates are 40 epochs of the small sets, and 3 epochs
# of wmt, which has one language with far more text than the others. noisy is ted with wrong translations in two
# languages. opus100 also needs a larger vocabulary and larger batches, and has three groups: the settings of preset
# opus100-cldr.
SETS: dict[str, list[str]] = {
    "ted": ["data.languages=related", "data.sizes=ted", "train.steps=2700"],
    "diverse": ["data.languages=diverse", "data.sizes=ted", "train.steps=2700"],
    "noisy": ["data.languages=related", "data.sizes=noisy", "train.steps=2700"],
    "wmt": ["data.languages=wmt", "data.sizes=wmt", "train.steps=1300"],
    "opus100": [
        *("data.languages=opus100", "data.sizes=opus100", "tokenizer.vocab_size=4000", "sampling.batch_tokens=3000"),
        *("train.steps=1500", "evaluate.lores_below=200", "evaluate.hires_from=1800"),
    ],
}
# The table needs no more than this: chrF on the headline lines. The baseline is computed once per set.
_SCORED = ["evaluate.strata=headline", "evaluate.baseline=false"]


@dataclass(frozen=True)
class Grid:
    """What the runs of a grid have in common.

    Attributes:
        out: folder of the run directories.
        base: the settings that all runs start from.
        sets: names in SETS, also with settings of their own, such as "ted:train.steps=1350".
        seeds: values of train.seed.
        jobs: number of runs at a time, which share the cores; see ``threads_per_process``.
        variants: more methods; see `Methods`.
        rates: learning rates to choose from; empty: that of the settings.
        count: the number of trials of each method and set. 1: nothing is chosen.
        tuning_seed: train.seed of the trials.
        data: folder of a corpus to use instead of the sets.
        overrides: settings for all runs, "KEY=VALUE".
    """

    out: Path
    base: Config
    sets: Sequence[str]
    seeds: Sequence[int]
    jobs: int
    variants: Sequence[str] = ()
    rates: Sequence[float] = ()
    count: int = 1
    tuning_seed: int = 0
    data: str | None = None
    overrides: Sequence[str] = ()

    def corpora(self) -> dict[str, Config]:
        """The settings that all methods start from on each set, or on the corpus in `data`, by its name.

        Raises:
            UserError: an option is wrong, or a set or a seed is given twice.
        """
        own = [_set_and_settings(text) for text in self.sets]
        check_different("sets", [name for name, _ in own])
        check_different("seeds", self.seeds)
        if self.jobs < 1:
            raise UserError(f"--jobs must be at least 1, not {self.jobs}")
        if not is_utf8(str(self.out)):
            raise UserError(f"{str(self.out)!r} is not valid UTF-8; choose another --out")
        trials.check(self.rates, self.count, self.tuning_seed, self.seeds)
        given = trials.as_settings([*self.overrides, *(setting for _, settings in own for setting in settings)])
        for setting, option in ("train.lr", "--lr" if self.rates else ""), ("train.seed", "--seeds"):
            if option and setting in given:
                raise UserError(f"{setting} of --set or --sets would be replaced by {option}; leave one out")
        shared = [f"train.threads={threads_per_process(self.jobs)}", *_SCORED, *self.overrides]
        if self.data:
            name = Path(self.data).resolve().name
            return {name: apply_overrides(self.base, [f"data.path={self.data}", *shared])}
        return {
            name: apply_overrides(self.base, ["data.path=", *SETS[name], *settings, *shared]) for name, settings in own
        }

    def runs(self, name: str, folder: Path, start: Config, own: Mapping[str, Sequence[str]]) -> list[Run]:
        """The runs of some methods on one set, in the order of the seeds: all methods first come with the first seed.

        Args:
            name: of the set.
            folder: the folder of the run directories.
            start: the settings that all methods start from.
            own: {method: its settings, as overrides}. A method NAME-fixed needs NAME among them.

        Raises:
            UserError: a setting is invalid.
        """
        if twice := [method for method in own if self.rates and "train.lr" in trials.as_settings(own[method])]:
            raise UserError(f"method {twice[0]} has a train.lr of its own, which --lr would replace; leave one out")
        configs = {method: apply_overrides(start, own[method]) for method in own}
        for method in filter(_is_fixed, own):
            source = method.removesuffix(FIXED)
            if source not in own or configs[source].method.name != "cats":
                raise UserError(f"method {method} needs {source} among --methods, with method.name = cats")
            # All settings of its source, also those of a recipe, which another method.name beside it would undo.
            configs[method] = replace_settings(configs[source], {"method.name": "static"})
        if self.rates and self.count == 1:
            configs = {
                method: replace_settings(config, {"train.lr": self.rates[0]}) for method, config in configs.items()
            }
        tuning = {
            method: self._trials(name, folder, method, configs[method], _space(start, own[method], self.overrides))
            for method in own
            if self.count > 1 and not _is_fixed(method)
        }
        runs: list[Run] = []
        for seed in self.seeds:
            found: dict[str, Run] = {}
            for method in sorted(configs, key=_is_fixed):  # a method NAME-fixed may be named before NAME
                source, config = method.removesuffix(FIXED), configs[method]
                found[method] = Run(
                    name,
                    method,
                    seed,
                    folder / f"{_file_name(method)}-seed{seed}",
                    replace_settings(config, {"train.seed": seed}),
                    tuple(tuning.get(source, ())),
                    found[source] if _is_fixed(method) else None,
                )
            runs += [found[method] for method in configs]
        return runs

    def _trials(
        self, name: str, folder: Path, method: str, config: Config, space: Mapping[str, Sequence[str]]
    ) -> list[Trial]:
        """The trials of a method on one set."""
        found = []
        for number, settings in enumerate(trial_settings(space, self.rates or [config.train.lr], self.count), start=1):
            tried = apply_overrides(config, [*settings, f"train.seed={self.tuning_seed}", "evaluate.search=none"])
            path = folder / "tuning" / f"{_file_name(method)}-trial{number}"
            found.append(Trial(Run(name, method, self.tuning_seed, path, tried), settings))
        return found


def plan(grid: Grid, methods: Sequence[str] = DEFAULT, controls: Sequence[str] = ()) -> list[Run]:
    """All runs of a comparison. All settings are checked here, before anything is trained.

    Args:
        methods: see `cats.nmt.scoring.grid.methods`; those of `grid.variants` are added.
        controls: names in CONTROLS.

    Raises:
        UserError: a name is unknown or given twice, or a setting is invalid.
    """
    known = Methods(grid.variants)
    chosen = [*methods, *known.variants]
    check_controls(controls)
    check_different("methods", chosen)
    runs: list[Run] = []
    for name, start in grid.corpora().items():
        if start.evaluate.search == "none":
            raise UserError("evaluate.search = none leaves nothing to compare; set greedy or beam")
        names = known.with_controls(chosen, controls, start)
        own = {method: known.settings(method, start.train.steps) for method in names}
        runs += grid.runs(name, grid.out / name, start, own)
    return runs


def check_different(option: str, values: Sequence[object]) -> None:
    """Raises an error if a value of an option is given twice."""
    if len(set(values)) < len(values):
        raise UserError(f"--{option} {' '.join(map(str, values))}: one is given twice")


def _space(start: Config, own: Sequence[str], overrides: Sequence[str]) -> dict[str, Sequence[str]]:
    """The settings of a method that trials choose, with their values; without those that are given.

    Args:
        start: the settings that all methods start from. One that is not its default here counts as given, unless the
            method replaces it.
        own: the settings of the method, as overrides.
        overrides: those for all runs; they are also in `start`.
    """
    config = apply_overrides(start, own)
    space = find(config.method.name).space
    # `own` names the method. That of `start` may not allow the defaults: unimax needs a number of passes.
    defaults = {"method.name": "static", **{name: FIELDS[name].default for name in space}}
    default = apply_overrides(replace_settings(start, defaults), own)
    given = {
        *trials.as_settings([*overrides, *own]),
        *(name for name in space if value_of(config, name) != value_of(default, name)),
    }
    return {name: values for name, values in space.items() if name not in given}


def _is_fixed(method: str) -> bool:
    """Whether the weights of a method are those of another one."""
    return method.endswith(FIXED)


def _file_name(method: str) -> str:
    """The method's name as a part of a file name."""
    return method.replace(":", "-")


def _set_and_settings(text: str) -> tuple[str, list[str]]:
    """The name of a set and its own settings, from "NAME" or "NAME:KEY=VALUE,..".

    Raises:
        UserError: there is no such set, or what follows is no setting.
    """
    name, colon, rest = text.partition(":")
    if name not in SETS:
        raise unknown("set", name, SETS)
    before, settings = split_settings(rest) if colon else ("", [])
    if colon and (before or not rest):
        raise UserError(f"--sets {text}: write NAME, or NAME:KEY=VALUE,..")
    return name, settings
