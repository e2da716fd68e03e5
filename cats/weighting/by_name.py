"""Rules of TorchJD by their name."""

from __future__ import annotations

import difflib
import inspect
from typing import Any

import torch
from torch import nn

from cats.extras import install

from .gramian import Gramian
from .randomness import checked_seed
from .torchjd_rules import Seeded

_BASES = {"Aggregator", "WeightedAggregator", "GramianWeightedAggregator", "Weighting"}


def torchjd(name: str, /, *, seed: int = 0, tolerance: float | None = None, **options: Any) -> Gramian:
    """The weights that an ``Aggregator`` or ``Weighting`` of TorchJD computes from the Gram matrix::

        cats.weighting.torchjd("UPGrad")
        cats.weighting.torchjd("CAGrad", c=0.4)

    The Gram matrix and the combination are computed by :mod:`cats.ops`, as for all weightings that need them.

    Args:
        name: of the class, such as "UPGrad", "AlignedMTL", "CAGrad", "DualProj", "FairGrad", "IMTLG" or "NashMTL".
            NashMTL needs no ``n_tasks`` here.
        seed: random rules (Random, PCGrad, GradVac) draw the numbers of a step from the seed and the number of the
            step. So a resumed run draws the same ones, and so do all processes.
        tolerance: see :class:`cats.weighting.Gramian`.
        options: the arguments of the class. Where it takes a tensor (``weights``, ``pref_vector``), a list is enough.

    Raises:
        ImportError: TorchJD is not installed, or the solver that this class needs.
        ValueError: TorchJD has no such class, or the class refuses an option.
        TypeError: the name is no str, an option is unknown or missing, or the class needs the Jacobian matrix.
    """
    kind = class_of(name)
    accepted = inspect.signature(kind).parameters
    if name == "NashMTL":
        options.setdefault("n_tasks", 1)  # the number in each step replaces it, see torchjd_rules.Nash
    for option in options:
        if option not in accepted:
            raise TypeError(f"{name} of TorchJD has no option {option!r}; it has {', '.join(accepted) or 'none'}")
    missing = [p.name for p in accepted.values() if p.default is p.empty and p.name not in options]
    if missing:
        raise TypeError(f"{name} of TorchJD needs {', '.join(missing)}")
    tensors = {
        key: torch.tensor(v, dtype=torch.float64, device="cpu") if _is_list(v) else v for key, v in options.items()
    }
    try:
        rule = kind(**tensors)
    except ImportError as error:
        raise ImportError(f"{name} of TorchJD: {error}; install all with: {install('torchjd')}") from error
    checked = Gramian(rule, tolerance)  # refuses rules that need the Jacobian matrix
    return Gramian(Seeded(checked.rule, checked_seed(seed, "torchjd")), tolerance)


def class_of(name: str) -> type[nn.Module]:
    """The class of TorchJD with this name, as :func:`torchjd` takes it.

    Raises:
        ImportError: TorchJD is not installed.
        TypeError: the name is no str.
        ValueError: TorchJD has no such class.
    """
    if not isinstance(name, str):
        raise TypeError(f"torchjd: the name of a class of TorchJD is a str, got {name!r}")
    try:
        import torchjd.aggregation as rules
    except ImportError as error:
        raise ImportError(f"TorchJD is not installed; install with: {install('torchjd')}") from error
    known = [each for each in rules.__all__ if inspect.isclass(getattr(rules, each)) and each not in _BASES]
    if name not in known:
        lower = {each.lower(): each for each in known}
        near = difflib.get_close_matches(name.lower(), lower, n=1)
        hint = f"did you mean {lower[near[0]]!r}?" if near else f"it has {', '.join(known)}"
        raise ValueError(f"TorchJD has no {name!r}: {hint}")
    kind: type[nn.Module] = getattr(rules, name)
    return kind


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(each, int | float) for each in value)
