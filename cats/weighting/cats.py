"""CATS: the update of α and λ on Eq. 4 of Li & Gong, "Robust Optimization for Multilingual Translation with Imbalanced
Data", NeurIPS 2021 (arXiv 2104.07639)."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from .checks import check_finite, numbers_of, shares_of
from .protocol import Direction, Weighting
from .simplex import Form, Lagrangian, Proximal, Softmax

Simplex = Literal["proximal", "softmax", "lagrangian"]
Reduction = Literal["sum", "mean"]

# The defaults of cats.CATS and cats.weighting.CATS. The text of the paper gives no values. bench/README.md has the
# measurements behind these.
INNER_STEPS = 5
SIMPLEX: Simplex = "proximal"
ALPHA_LR: dict[Simplex, float] = {"proximal": 0.1, "softmax": 1.0, "lagrangian": 1e-3}
MULTIPLIER_LR: dict[Simplex, float] = {"proximal": 0.0, "softmax": 1.0, "lagrangian": 1e-3}  # proximal has none
FLOOR: dict[Simplex, float] = {"proximal": 0.1, "softmax": 0.0, "lagrangian": 0.0}  # lagrangian has epsilon instead
STRENGTH = 0.5
EPSILON = 1e-3
LOSS_TERM = False
CROSS_BATCH = False
DIRECTION: Direction = "gradient"
REDUCTION: Reduction = "sum"

PATIENCE = 100  # a weight that stays at its floor, or a multiplier that grows, for so many updates is worth a warning
ALONE = 20  # so many updates of α in a row that had one task each are worth a warning
LARGE, HUGE = 1e3, 1e6  # growing multipliers are reported above LARGE; weights and multipliers above HUGE at once


class CATS(Weighting):
    """Weights α that keep the norm of the combined gradient small (Eq. 3 and Eq. 4 of the paper).

    Every ``inner_steps`` steps, α and the multipliers are updated. This needs only the losses L_n and the inner
    products v_n = <g_n, ḡ> with ḡ = Σ α_n g_n, because ∂‖ḡ‖²/∂α_n = 2 v_n. The arguments are explained in
    :class:`cats.CATS`. The rules are in cats/weighting/simplex.py, one class for each value of ``simplex``.

    Args:
        prior: π, {task: number} with all tasks or a number for each; None: uniform. Only the ratios matter. Only for
            ``simplex="proximal"``.

    Raises:
        TypeError: a number is something else.
        ValueError: an option has a value that is not allowed, or does not exist for this ``simplex``.
    """

    def __init__(
        self,
        *,
        inner_steps: int = INNER_STEPS,
        alpha_lr: float | None = None,
        multiplier_lr: float | None = None,
        epsilon: float = EPSILON,
        simplex: Simplex = SIMPLEX,
        strength: float = STRENGTH,
        floor: float | None = None,
        prior: Mapping[Any, float] | Sequence[float] | Tensor | None = None,
        reduction: Reduction = REDUCTION,
        loss_term: bool = LOSS_TERM,
        cross_batch: bool = CROSS_BATCH,
        direction: Direction = DIRECTION,
    ) -> None:
        if isinstance(inner_steps, bool) or not isinstance(inner_steps, int) or inner_steps < 1:
            raise ValueError(f"CATS: inner_steps must be an integer of at least 1, got {inner_steps!r}")
        if simplex not in ("proximal", "softmax", "lagrangian"):
            raise ValueError(f"CATS: simplex must be 'proximal', 'softmax' or 'lagrangian', got {simplex!r}")
        if reduction not in ("sum", "mean"):
            raise ValueError(f"CATS: reduction must be 'sum' or 'mean', got {reduction!r}")
        alpha_lr = ALPHA_LR[simplex] if alpha_lr is None else alpha_lr
        multiplier_lr = MULTIPLIER_LR[simplex] if multiplier_lr is None else multiplier_lr
        given_floor = floor
        floor = FLOOR[simplex] if floor is None else floor
        numbers: dict[str, object] = {"alpha_lr": alpha_lr, "multiplier_lr": multiplier_lr}
        numbers |= {"epsilon": epsilon, "strength": strength, "floor": floor}
        for name, value in numbers.items():
            if isinstance(value, bool) or not isinstance(value, Real):
                raise TypeError(f"CATS: {name} must be a number, got {value!r}")
            if not 0 <= float(value) < float("inf"):
                raise ValueError(f"CATS: {name} must be a finite number of at least 0, got {value!r}")
        if simplex == "proximal" and alpha_lr > 1:
            raise ValueError(f"CATS: alpha_lr must be at most 1 with simplex='proximal', got {alpha_lr!r}")
        if not 0 <= floor < 1:
            raise ValueError(f"CATS: floor must be at least 0 and below 1, got {floor!r}")
        if simplex == "lagrangian" and given_floor is not None:
            raise ValueError("CATS: simplex='lagrangian' has no floor; its lower bound for α is epsilon")
        if simplex != "proximal" and prior is not None:
            raise ValueError(f"CATS: a prior needs simplex='proximal', got simplex={simplex!r}")
        if direction not in get_args(Direction):
            raise ValueError(f"CATS: direction must be one of {', '.join(get_args(Direction))}, got {direction!r}")
        if direction != "gradient" and simplex != "proximal":
            raise ValueError(f"CATS: direction={direction!r} needs simplex='proximal', got simplex={simplex!r}")
        if direction != "gradient" and cross_batch:
            raise ValueError(f"CATS: cross_batch needs direction='gradient', got direction={direction!r}")
        self.period = inner_steps
        self.alpha_lr = alpha_lr
        self.multiplier_lr = multiplier_lr
        self.epsilon = epsilon
        self.simplex = simplex
        self.strength = strength
        self.floor = floor
        self.reduction = reduction
        self.loss_term = loss_term
        self.cross_batch = cross_batch
        self.direction = direction
        self._given_prior = prior

    def start(self, tasks: int) -> None:
        self._form: Form
        summed = self.reduction == "sum"
        if self.simplex == "proximal":
            self._form = Proximal(tasks, rate=self.alpha_lr, strength=self.strength, floor=self.floor, summed=summed)
            if self._given_prior is not None:
                given = numbers_of(self._given_prior, self.names, "CATS: prior")
                self._form.prior = shares_of(given, tasks, "CATS: prior")
        else:
            rates = {"alpha_lr": self.alpha_lr, "multiplier_lr": self.multiplier_lr, "epsilon": self.epsilon}
            self._form = (
                Softmax(tasks, **rates, floor=self.floor, summed=summed)
                if self.simplex == "softmax"
                else Lagrangian(tasks, **rates)
            )
        self.scale = self._form.scale
        # Updates in a row that each weight was at its floor.
        self._at_floor = torch.zeros(tasks, dtype=torch.int64, device="cpu")
        self._alone = 0  # updates in a row that had one task each
        self._growing: dict[str, int] = {}  # updates in a row that each multiplier grew
        self._warned: set[str] = set()

    @property
    def prior(self) -> Tensor:
        """π, (N,) float64, with sum 1. It may be set before each step, to N numbers of at least 0.

        Raises:
            ValueError: ``simplex`` is not "proximal", or the numbers are not as described.
        """
        return self._proximal().prior

    @prior.setter
    def prior(self, numbers: Sequence[float] | Tensor) -> None:
        form = self._proximal()
        form.prior = shares_of(numbers, len(self._at_floor), "CATS: prior")

    def _proximal(self) -> Proximal:
        if not isinstance(self._form, Proximal):
            raise ValueError(f"CATS: a prior needs simplex='proximal', not simplex={self.simplex!r}")
        return self._form

    def weights(self) -> Tensor:
        return self._form.weights()

    def update(self, losses: Tensor, dots: Tensor, sqnorms: Tensor, present: Sequence[int]) -> None:
        check_finite("CATS: a loss or inner product", dots, *([losses] if self.loss_term else []))
        before = self._largest_multipliers()
        self._form.update(losses if self.loss_term else None, dots, list(present))
        self._warn_of_one_task(list(present))
        self._warn_of_collapse(list(present))
        self._warn_of_growth(before)

    @property
    def multipliers(self) -> dict[str, float | Tensor]:
        return self._form.multipliers

    def state_dict(self) -> dict[str, Any]:
        return {"simplex": self.simplex, "reduction": self.reduction, **self._form.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        reduction = state.get("reduction", "mean")  # earlier versions had only the mean
        given = {"simplex": state.get("simplex"), "reduction": reduction}
        # The lagrangian form has no reduction.
        if given["simplex"] != self.simplex or (self.simplex != "lagrangian" and reduction != self.reduction):
            wanted = ", ".join(f"{name}={value!r}" for name, value in given.items())
            raise ValueError(
                f"CATS: the state is for {wanted}, but this weighting has simplex={self.simplex!r}, "
                f"reduction={self.reduction!r}; to load it, make the optimizer with {wanted}"
            )
        self._form.load_state_dict(state)

    # --- warnings: a task that is given up, a multiplier that runs away. Each is given once. ----------------------

    def _warn_of_one_task(self, present: list[int]) -> None:
        self._alone = self._alone + 1 if len(present) == 1 else 0
        if self._alone >= ALONE and len(self._at_floor) > 1 and self.simplex == "proximal":
            self._warn(
                "one task",
                f"CATS: the last {ALONE} updates of α had one task each, the last one {self._name(present[0])}. α "
                "compares the tasks of a step, so it stays at the prior; give backward() the losses of several tasks",
            )

    def _warn_of_collapse(self, present: list[int]) -> None:
        alpha = self.weights() / self.scale
        low = (alpha < self._form.hardly_trained())[present]
        self._at_floor[present] = (self._at_floor[present] + 1) * low
        for n in (self._at_floor >= PATIENCE).nonzero()[:, 0].tolist():
            change = {
                "proximal": f"raise floor (now {self.floor:g}) or lower strength (now {self.strength:g})",
                "softmax": f"use simplex='proximal', raise floor (now {self.floor:g}) or lower alpha_lr "
                f"(now {self.alpha_lr:g})",
                "lagrangian": f"use simplex='proximal', raise epsilon (now {self.epsilon:g}) or lower alpha_lr "
                f"(now {self.alpha_lr:g})",
            }[self.simplex]
            self._warn(
                f"task {self._name(n)} at floor",
                f"CATS: the weight of task {self._name(n)} has been at its lower bound for {PATIENCE} updates "
                f"(α = {alpha[n].item():.2g}), so the task is hardly trained; to change that, {change}",
            )

    def _warn_of_growth(self, before: dict[str, float]) -> None:
        now = self._largest_multipliers()
        for name, value in now.items():
            self._growing[name] = self._growing.get(name, 0) + 1 if value > before[name] else 0
            if value > HUGE or not value < torch.inf or (self._growing[name] >= PATIENCE and value > LARGE):
                self._warn(
                    name,
                    f"CATS: the multiplier {name} grows without bound (now {value:.2g}); use simplex='proximal', "
                    f"lower multiplier_lr (now {self.multiplier_lr:g}) or raise epsilon (now {self.epsilon:g})",
                )
        alpha = self.weights() / self.scale
        n = int(alpha.argmax())
        if not alpha[n] < HUGE:
            self._warn(
                "alpha",
                f"CATS: the weight of task {self._name(n)} is {alpha[n].item():.2g}; use simplex='proximal' or lower "
                f"alpha_lr (now {self.alpha_lr:g})",
            )

    def _largest_multipliers(self) -> dict[str, float]:
        """{name: number, or {name[task]: number} for each task}."""
        found: dict[str, float] = {}
        for name, value in self.multipliers.items():
            if isinstance(value, Tensor):
                found |= {f"{name}[{self._name(n)}]": v for n, v in enumerate(value.tolist())}
            else:
                found[name] = value
        return found

    def _name(self, n: int) -> str:
        return repr(self.names[n]) if self.names else str(n)

    def _warn(self, what: str, message: str) -> None:
        if what not in self._warned:
            self._warned.add(what)
            warnings.warn(message, stacklevel=2)
