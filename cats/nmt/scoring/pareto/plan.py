"""The runs of `cats pareto`: methods over the sampling ratios of two sides, low- and high-resource languages.

The ratio is the share of the sentences that are of the low side. Within a side, tasks are drawn by their temperature,
`sampling.temperature`. A method that has a mixture of its own, such as a temperature schedule, is trained once; it is a
single point. Tasks of neither side are not trained.

The runs are in OUT/SET/LOW-HIGH/ratio-R/METHOD-seedN, without ratio-R for those with their own mixture.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from cats.nmt.config.checks import replace_settings
from cats.nmt.config.recipes import has_mixture
from cats.nmt.config.schema import Config
from cats.nmt.config.toml import apply_overrides
from cats.nmt.data.groups import task_groups
from cats.nmt.data.sampler import temperature_probabilities
from cats.nmt.errors import UserError, unknown
from cats.nmt.methods.catalogue import SAMPLER, find
from cats.nmt.scoring.grid.methods import SHORT, Methods
from cats.nmt.scoring.grid.plan import Grid, check_different
from cats.nmt.scoring.grid.runs import Run, validation_settings
from cats.nmt.scoring.grid.trials import as_settings
from cats.nmt.scoring.pareto.results import METRICS, NLL, STATIC, Side

RATIOS = (0.1, 0.3, 0.5, 0.7, 0.9)
DEFAULT = ("restart", "pretrain", "cats")
_MIXTURE = ("temperature", "temperature_end", "ratios", "unimax_epochs")  # settings that make a mixture


@dataclass(frozen=True)
class PlannedPoint:
    """A method at a ratio, or with its own mixture (None), and its runs, one for each seed."""

    method: str
    ratio: float | None
    runs: list[Run]


@dataclass(frozen=True)
class PlannedFront:
    """The points of all methods for two sides of one set.

    Attributes:
        points: those of static ratios come first, in the order of their ratios.
    """

    set: str
    low: Side
    high: Side
    points: list[PlannedPoint]


def plan(
    grid: Grid,
    between: Sequence[tuple[str, str]],
    ratios: Sequence[float] = RATIOS,
    methods: Sequence[str] = DEFAULT,
    metric: str = NLL,
) -> list[PlannedFront]:
    """A front for each set and each pair of sides. All settings are checked here, before anything is trained.

    Args:
        between: the low and the high side: each is a task, a group (lores, midres, hires), or several of them with
            commas between them.
        ratios: shares of the sentences that are of the low side.
        methods: see `cats.nmt.scoring.grid.methods`; static ratios and those of `grid.variants` are added.
        metric: for validation NLL nothing is translated.

    Raises:
        UserError: a name is unknown or given twice, or a ratio or setting is invalid.
    """
    # Imported here because it imports torch, which would make `cats pareto --help` slow.
    from cats.nmt.training.load_corpus import load_corpus

    known = Methods(grid.variants)
    named = [SHORT.get(name, name) for name in methods if name != STATIC]
    chosen = [STATIC, *named, *known.variants]
    check_different("methods", chosen)
    check_different("ratios", [f"{ratio:g}" for ratio in ratios])  # as in the names of folders
    check_different("between", ["-".join(pair) for pair in between])
    if wrong := [ratio for ratio in ratios if not 0 < ratio < 1]:
        raise UserError(f"--ratios {wrong[0]:g}: must be above 0 and below 1, the share of the first of --between")
    fronts = []
    for name, start in grid.corpora().items():
        if metric != NLL and start.evaluate.search == "none":
            raise UserError(f"evaluate.search = none leaves no {metric} to draw; set greedy or beam, or --metric {NLL}")
        own = {method: _settings(known, method, start.train.steps) for method in chosen}
        static = apply_overrides(start, _at_ratios(own[STATIC], [0.5, 0.5]))
        for method, settings in own.items():  # finds errors before the corpus is read
            mixed = _has_mixture(settings, start)
            config = apply_overrides(start, settings if mixed else _at_ratios(settings, [0.5, 0.5]))
            if metric == NLL and validation_settings(config) != validation_settings(static):
                raise UserError(
                    f"method {method} is validated on other lines or pieces than static ratios, so its {METRICS[NLL]} "
                    "says nothing beside theirs; leave it out, or give --metric bleu or chrf"
                )
        sizes = load_corpus(start.data).sizes
        for pair in between:
            low, high = _sides(pair, sizes, task_groups(sizes, start.evaluate))
            fronts.append(_front(grid, name, _between(start, low, high, sizes, metric), low, high, sizes, ratios, own))
    return fronts


def _settings(known: Methods, method: str, steps: int) -> list[str]:
    """The settings of a method. Static ratios have one phase and plain token means, whatever the other methods have."""
    return ["method.name=ratios"] if method == STATIC else known.settings(method, steps)


def _sides(pair: Sequence[str], sizes: Mapping[str, int], groups: Mapping[str, list[str]]) -> tuple[Side, Side]:
    """The tasks of both sides.

    Raises:
        UserError: an unknown name, a group without tasks, or a task on both sides.
    """
    found = []
    for text in pair:
        tasks: list[str] = []
        for name in text.split(","):
            if name not in sizes and name not in groups:
                raise unknown("task", name, [*sizes, *(group for group in groups if group != "all")], where="--between")
            tasks += [name] if name in sizes else groups[name]
        if not tasks:
            raise UserError(f"--between {' '.join(pair)}: {text} has no tasks in this corpus; name tasks instead")
        found.append(Side(text, tasks))
    names = [name for side in found for name in side.tasks]
    if len(set(names)) < len(names):
        raise UserError(f"--between {' '.join(pair)}: a task is named twice")
    return found[0], found[1]


def _between(start: Config, low: Side, high: Side, sizes: Mapping[str, int], metric: str) -> Config:
    """The settings with these sides as the groups LoRes and HiRes, which are what is scored, tuned and pre-trained."""
    both = [*low.tasks, *high.tasks]
    settings: dict[str, object] = {"evaluate.lores": low.tasks, "evaluate.midres": [], "evaluate.hires": high.tasks}
    if set(both) != set(sizes):
        settings["data.tasks"] = both
    if metric == NLL:
        settings["evaluate.search"] = "none"
    return replace_settings(start, settings)


def _front(
    grid: Grid,
    name: str,
    start: Config,
    low: Side,
    high: Side,
    sizes: Mapping[str, int],
    ratios: Sequence[float],
    own: Mapping[str, Sequence[str]],
) -> PlannedFront:
    folder = grid.out / name / f"{low.name}-{high.name}"
    mixed = {method: settings for method, settings in own.items() if _has_mixture(settings, start)}
    points: list[PlannedPoint] = []
    for ratio in sorted(ratios):
        share = _shares(ratio, low, high, sizes, start.sampling.temperature)
        at_ratio = {method: _at_ratios(settings, share) for method, settings in own.items() if method not in mixed}
        points += _by_method(grid.runs(name, folder / f"ratio-{ratio:g}", start, at_ratio), ratio)
    points += _by_method(grid.runs(name, folder, start, mixed), None)
    order = list(own)
    points.sort(key=lambda point: order.index(point.method))  # stable: the ratios stay in their order
    return PlannedFront(name, low, high, points)


def _has_mixture(settings: Sequence[str], start: Config) -> bool:
    """Whether a method draws the tasks in its own way, so that there is no place for a ratio.

    Raises:
        UserError: a setting is invalid.
    """
    given = as_settings(settings)
    if any(f"sampling.{name}" in given for name in _MIXTURE) or has_mixture(given.get("method.name", "")):
        apply_overrides(start, settings)
        return True
    method = apply_overrides(start, _at_ratios(settings, [0.5, 0.5])).method.name
    return find(method).family == SAMPLER


def _at_ratios(settings: Sequence[str], share: Sequence[float]) -> list[str]:
    """The settings of a method with the share of each task. They replace a mixture that all methods start from."""
    return [*settings, "sampling.temperature_end=0", "sampling.unimax_epochs=0", f"sampling.ratios={share}"]


def _shares(ratio: float, low: Side, high: Side, sizes: Mapping[str, int], temperature: float) -> list[float]:
    """The share of each trained task, in the order of their names, as in `sampling.ratios`."""
    shares: dict[str, float] = {}
    for side, whole in ((low, ratio), (high, 1 - ratio)):
        within = temperature_probabilities({name: sizes[name] for name in side.tasks}, temperature)
        shares |= {name: float(f"{whole * share:.6g}") for name, share in within.items()}
    return [shares[name] for name in sorted(shares)]


def _by_method(runs: Iterable[Run], ratio: float | None) -> list[PlannedPoint]:
    found: dict[str, list[Run]] = {}
    for run in runs:
        found.setdefault(run.method, []).append(run)
    return [PlannedPoint(method, ratio, mine) for method, mine in found.items()]


def all_runs(fronts: Iterable[PlannedFront]) -> list[Run]:
    """The runs of all fronts. All points first come with the first seed, so that a front that is stopped has them."""
    points = [point for front in fronts for point in front.points]
    most = max((len(point.runs) for point in points), default=0)
    return [point.runs[number] for number in range(most) for point in points if number < len(point.runs)]
