"""The runs of a comparison, with their settings."""

from __future__ import annotations

from collections.abc import Sequence
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


def plan(
    out: Path,
    base: Config,
    *,
    sets: Sequence[str],
    methods: Sequence[str] = DEFAULT,
    seeds: Sequence[int],
    jobs: int,
    variants: Sequence[str] = (),
    controls: Sequence[str] = (),
    rates: Sequence[float] = (),
    count: int = 1,
    tuning_seed: int = 0,
    data: str | None = None,
    overrides: Sequence[str] = (),
) -> list[Run]:
    """All runs of a comparison. All settings are checked here, before anything is trained.

    Args:
        out: folder of the run directories.
        base: the settings that all runs start from.
        sets: names in SETS, also with settings of their own, such as "ted:train.steps=1350".
        methods: see `cats.nmt.scoring.grid.methods`.
        seeds: values of train.seed.
        jobs: number of runs at a time, which share the cores; see ``threads_per_process``.
        variants: more methods; see `Methods`.
        controls: names in CONTROLS.
        rates: learning rates to choose from; empty: that of the settings.
        count: the number of trials of each method and set. 1: nothing is chosen.
        tuning_seed: train.seed of the trials.
        data: folder of a corpus to use instead of the sets.
        overrides: settings for all runs, "KEY=VALUE".

    Raises:
        UserError: a name is unknown or given twice, or a setting is invalid.
    """
    known = Methods(variants)
    chosen = [*methods, *known.variants]
    check_controls(controls)
    own_settings = [_set_and_settings(text) for text in sets]
    for option, given in (("methods", chosen), ("sets", [name for name, _ in own_settings]), ("seeds", seeds)):
        if len(set(given)) < len(given):
            raise UserError(f"--{option} {' '.join(map(str, given))}: one is given twice")
    if jobs < 1:
        raise UserError(f"--jobs must be at least 1, not {jobs}")
    if not is_utf8(str(out)):
        raise UserError(f"{str(out)!r} is not valid UTF-8; choose another --out")
    trials.check(rates, count, tuning_seed, seeds)
    shared = [f"train.threads={threads_per_process(jobs)}", *_SCORED, *overrides]
    corpora = (
        {Path(data).resolve().name: [f"data.path={data}"]}
        if data
        else {name: ["data.path=", *SETS[name], *settings] for name, settings in own_settings}
    )
    runs: list[Run] = []
    for name, settings in corpora.items():
        start = apply_overrides(base, [*settings, *shared])
        if start.evaluate.search == "none":
            raise UserError("evaluate.search = none leaves nothing to compare; set greedy or beam")
        names = known.with_controls(chosen, controls, start)
        own = {method: known.settings(method, start.train.steps) for method in names}
        if rates and "train.lr" in trials.as_settings(overrides):
            raise UserError("--set train.lr would be replaced by --lr; leave one out")
        if twice := [method for method in names if rates and "train.lr" in trials.as_settings(own[method])]:
            raise UserError(f"method {twice[0]} has a train.lr of its own, which --lr would replace; leave one out")
        configs = {method: apply_overrides(start, own[method]) for method in names}
        for method in filter(_is_fixed, names):
            source = method.removesuffix(FIXED)
            if source not in names or configs[source].method.name != "cats":
                raise UserError(f"method {method} needs {source} among --methods, with method.name = cats")
        if rates and count == 1:
            configs = {method: replace_settings(config, {"train.lr": rates[0]}) for method, config in configs.items()}
        tuning = {
            method: [
                _trial(out / name, name, method, configs[method], number, tried, tuning_seed)
                for number, tried in enumerate(
                    trial_settings(_space(start, own[method], overrides), rates or [start.train.lr], count),
                    start=1,
                )
            ]
            for method in names
            if count > 1 and not _is_fixed(method)
        }
        for seed in seeds:  # the outer loop, so that a comparison that is stopped has all methods for its first seeds
            found: dict[str, Run] = {}
            for method, config in configs.items():
                source = method.removesuffix(FIXED)
                found[method] = Run(
                    name,
                    method,
                    seed,
                    out / name / f"{_file_name(method)}-seed{seed}",
                    replace_settings(config, {"train.seed": seed}),
                    tuple(tuning.get(source, ())),
                    found[source] if _is_fixed(method) else None,
                )
            runs += found.values()
    return runs


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
    default = apply_overrides(replace_settings(start, {name: FIELDS[name].default for name in space}), own)
    given = {
        *trials.as_settings([*overrides, *own]),
        *(name for name in space if value_of(config, name) != value_of(default, name)),
    }
    return {name: values for name, values in space.items() if name not in given}


def _trial(
    folder: Path, name: str, method: str, config: Config, number: int, settings: tuple[str, ...], seed: int
) -> Trial:
    """One trial of a method on one set, in the set's folder."""
    own = apply_overrides(config, [*settings, f"train.seed={seed}", "evaluate.search=none"])
    path = folder / "tuning" / f"{_file_name(method)}-trial{number}"
    return Trial(Run(name, method, seed, path, own), settings)


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
