"""The three forms in which CATS keeps its weights α on the simplex: proximal, softmax and lagrangian.

Each form holds the state of α and of its multipliers, and has the rule that updates them. All numbers that go in and
out are in the scale of the paper: the losses L_n, the weights α_n, and v_n = <g_n, ḡ> with ḡ = Σ α_n g_n. Only
``weights()`` has another scale: it returns ``scale`` times α_n, which the optimizer multiplies the gradients by.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from .checks import shares_of

NEAR_FLOOR = 1.2  # a weight below this many times its floor counts as at its floor
TINY = 1e-3  # so does a weight below this share of its prior (without a prior: of an equal weight)


class Form(Protocol):
    """What the three forms have in common. N is the number of tasks, K the number of tasks in a batch.

    Attributes:
        scale: ``weights()`` are this many times α.
        multipliers: {name: number, or (N,) tensor}.
    """

    scale: float

    @property
    def multipliers(self) -> dict[str, float | Tensor]: ...

    def weights(self) -> Tensor:
        """``scale`` · α, (N,) float64 on the CPU."""

    def hardly_trained(self) -> Tensor:
        """Weights below these count as at their lower bound, (N,)."""

    def update(self, losses: Tensor | None, v: Tensor, present: list[int]) -> None:
        """Updates α and the multipliers.

        Args:
            losses: (K,) L_n, or None without the loss term.
            v: (K,) <g_n, ḡ>.
            present: indices of the K tasks among the N, ascending.
        """

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises ValueError if a value is missing or has the wrong shape. Then nothing has changed."""


class Proximal:
    """A trust region around the prior π, in place of multipliers. This is the default form.

    It minimises F(α) = ½ log ‖Σ α_n g_n‖² + 1/κ · KL(α ‖ π) over the simplex. The derivative of the first term is
    r_n = v_n / ‖ḡ‖², which has no scale: if all losses are multiplied by the same number, α does not change. A damped
    mirror descent step is ::

        a_n ← (1 − β) a_n + β κ (1 − r_n)          r_n clipped to [−5, 10]
        α = (1 − ρ) softmax(log π + a) + ρ π

    so without the floor (ρ = 0) the stationary point is α_n ∝ π_n exp(−κ r_n). Eq. 3 of the paper is the case κ → ∞;
    its bound α_n ≥ ε is the floor ρ π_n here.

    With another direction d than ḡ, v_n = <g_n, d> and r_n = v_n / Σ α_m v_m = <g_n, d> / <ḡ, d>: how fast a step
    along d reduces L_n, relative to the weighted mean loss. α shifts to the tasks that such a step helps least.

    With the loss term, log Σ α_n L_n is added to F, so the step is β κ (2 − r_n − L_n / Σ α_m L_m), with the last term
    clipped like r_n. It is left out where Σ α_m L_m is not positive.

    Only the K tasks of a batch move their a_n; α is renormalised over them for the update. An update without a
    direction of descent (‖ḡ‖² or <ḡ, d> is not positive) changes nothing.
    """

    RATIOS = (-5.0, 10.0)  # r_n is clipped to this range, so that a single batch cannot throw α to a corner

    def __init__(self, tasks: int, *, rate: float, strength: float, floor: float, summed: bool) -> None:
        self.rate, self.strength = rate, strength
        self._tasks, self._floor = tasks, floor
        self.scale = float(tasks) if summed else 1.0
        self._a = torch.zeros(tasks, dtype=torch.float64, device="cpu")
        self._prior = torch.ones_like(self._a)  # N π, so that a uniform prior is exactly 1

    @property
    def prior(self) -> Tensor:
        """π, (N,) float64, with sum 1."""
        return self._prior / self._tasks

    @prior.setter
    def prior(self, shares: Tensor) -> None:
        total = shares.sum()
        uniform = bool((shares == shares[0]).all())
        self._prior = torch.ones_like(self._a) if uniform else shares / total * self._tasks

    @property
    def multipliers(self) -> dict[str, float | Tensor]:
        return {}

    def _relative(self) -> Tensor:
        """N α. It is exactly 1 for all tasks if π is uniform and all a_n are equal."""
        known = self._prior > 0
        tilted = torch.where(known, self._prior * torch.exp(self._a - self._a[known].max()), 0.0)
        softmax = tilted / tilted.mean()  # N times the softmax
        return softmax + self._floor * (self._prior - softmax)

    def weights(self) -> Tensor:
        return self._relative() * (self.scale / self._tasks)

    def hardly_trained(self) -> Tensor:
        return max(NEAR_FLOOR * self._floor, TINY) * self.prior

    def update(self, losses: Tensor | None, v: Tensor, present: list[int]) -> None:
        alpha = (self._relative() / self._tasks)[present]
        slopes = _shares(v, alpha)
        if slopes is None:
            return
        slopes = slopes - 1
        if losses is not None and (shares := _shares(losses, alpha)) is not None:
            slopes = slopes + shares - 1
        moved = (1 - self.rate) * self._a[present] - self.rate * self.strength * slopes
        self._a = _replaced(self._a, present, moved)

    def state_dict(self) -> dict[str, Any]:
        return {"a": self._a.clone(), "prior": self._prior.clone()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        a, prior = _numbers(state, "a", self._a), _numbers(state, "prior", self._a)
        shares_of(prior, self._tasks, "CATS: prior")  # checks it
        self._a = a
        if abs(prior.sum().item() / self._tasks - 1) < 1e-6:
            self._prior = prior  # as it was saved: a division could change the last bit
        else:
            self.prior = prior  # earlier versions saved π with the sum 1


def _shares(values: Tensor, alpha: Tensor) -> Tensor | None:
    """values_n / Σ α_m values_m with α renormalised to sum 1, clipped to Proximal.RATIOS. None if Σ is not positive."""
    mean = (alpha @ values) / alpha.sum()
    return (values / mean).clamp(*Proximal.RATIOS) if 0 < mean < torch.inf else None


class Softmax:
    """Eq. 4 with α = softmax(a) in place of the multipliers of the simplex, so that Σ α_n = 1 always.

    With a floor, α = (1 − ρ) s + ρ/N with s = softmax(a). The only multiplier is λ_c, which starts at 0. ::

        h_n = (L_n + 2 λ_c v_n) / (1 + 2 λ_c)      L_n = 0 without the loss term
        a_n ← a_n − alpha_lr · (1 − ρ) s_n (h_n − Σ s_m h_m)
        λ_c ← max(0, λ_c + multiplier_lr · (‖ḡ‖² − ε))

    The division by 1 + 2 λ_c keeps the updates small when λ_c is large.

    A batch with K of the N tasks changes only these K. The update is the one for a problem that has only these tasks,
    with s and α rescaled to sum 1. Afterwards the K entries of s are rescaled so that their sum is what it was, so the
    other weights keep their values.
    """

    def __init__(
        self, tasks: int, *, alpha_lr: float, multiplier_lr: float, epsilon: float, floor: float, summed: bool
    ) -> None:
        self.alpha_lr, self.multiplier_lr, self.epsilon = alpha_lr, multiplier_lr, epsilon
        self._tasks, self._floor = tasks, floor
        self.scale = float(tasks) if summed else 1.0
        self._lambda_c = 0.0
        self._a = torch.zeros(tasks, dtype=torch.float64, device="cpu")

    @property
    def multipliers(self) -> dict[str, float | Tensor]:
        return {"lambda_c": self._lambda_c}

    def weights(self) -> Tensor:
        powers = torch.exp(self._a - self._a.max())
        relative = powers / powers.mean()  # N s: exactly 1 for all tasks if all a_n are equal
        return (relative + self._floor * (1 - relative)) * (self.scale / self._tasks)

    def hardly_trained(self) -> Tensor:
        return torch.full_like(self._a, max(NEAR_FLOOR * self._floor, TINY) / self._tasks)

    def update(self, losses: Tensor | None, v: Tensor, present: list[int]) -> None:
        a, s = self._a[present], torch.softmax(self._a, dim=0)[present]
        alpha = (1 - self._floor) * s + self._floor / self._tasks
        subset = len(present) < self._tasks
        if subset:
            mass = alpha.sum()
            if mass == 0:  # their weights have become 0 by underflow: ḡ was 0, so nothing is known
                return
            s, alpha, v = torch.softmax(a, dim=0), alpha / mass, v / mass
        h = ((0.0 if losses is None else losses) + 2 * self._lambda_c * v) / (1 + 2 * self._lambda_c)
        moved = a - self.alpha_lr * (1 - self._floor) * s * (h - s @ h)
        if subset:  # the same log-sum-exp as before, so that the softmax of the other tasks does not change
            moved = moved + (torch.logsumexp(a, 0) - torch.logsumexp(moved, 0))
        self._a = _replaced(self._a, present, moved)
        self._lambda_c = _ascend(self._lambda_c, self.multiplier_lr, alpha @ v - self.epsilon)

    def state_dict(self) -> dict[str, Any]:
        return {"lambda_c": self._lambda_c, "a": self._a.clone()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        lambda_c, a = _number(state, "lambda_c"), _numbers(state, "a", self._a)
        self._lambda_c, self._a = lambda_c, a


class Lagrangian:
    """Eq. 4 as written, with the multipliers λ_c, λ_s and λ_n. It starts at α_n = 1, so at first Σ α_n = N. ::

        α_n ← max(0, α_n − alpha_lr · (L_n + 2 λ_c v_n + 2 λ_s (Σ α_m − 1) − λ_n))     L_n = 0 without the loss term
        λ_c ← max(0, λ_c + multiplier_lr · (‖ḡ‖² − ε))
        λ_s ← λ_s + multiplier_lr · (Σ α_m − 1)²
        λ_n ← max(0, λ_n + multiplier_lr · (ε − α_n))

    α is clipped at 0 and not at ε, because at ε the multiplier λ_n could never act. The paper does not say how to keep
    α and λ from becoming negative.

    In a batch with K of the N tasks, only the α_n and λ_n of the K tasks change. Σ α_m is over all N tasks. Nothing is
    rescaled.
    """

    scale = 1.0

    def __init__(self, tasks: int, *, alpha_lr: float, multiplier_lr: float, epsilon: float) -> None:
        self.alpha_lr, self.multiplier_lr, self.epsilon = alpha_lr, multiplier_lr, epsilon
        self._alpha = torch.ones(tasks, dtype=torch.float64, device="cpu")
        self._lambda_c = self._lambda_s = 0.0
        self._lambda_n = torch.zeros_like(self._alpha)

    @property
    def multipliers(self) -> dict[str, float | Tensor]:
        return {"lambda_c": self._lambda_c, "lambda_s": self._lambda_s, "lambda_n": self._lambda_n}

    def weights(self) -> Tensor:
        return self._alpha.clone()

    def hardly_trained(self) -> Tensor:
        return torch.full_like(self._alpha, max(NEAR_FLOOR * self.epsilon, TINY / len(self._alpha)))

    def update(self, losses: Tensor | None, v: Tensor, present: list[int]) -> None:
        alpha, lambda_n, excess = self._alpha[present], self._lambda_n[present], self._alpha.sum() - 1
        descent = (0.0 if losses is None else losses) + 2 * self._lambda_c * v + 2 * self._lambda_s * excess - lambda_n
        self._alpha = _replaced(self._alpha, present, (alpha - self.alpha_lr * descent).clamp(min=0))
        raised = (lambda_n + self.multiplier_lr * (self.epsilon - alpha)).clamp(min=0)
        self._lambda_n = _replaced(self._lambda_n, present, raised)
        self._lambda_c = _ascend(self._lambda_c, self.multiplier_lr, alpha @ v - self.epsilon)
        self._lambda_s = _ascend(self._lambda_s, self.multiplier_lr, excess**2)

    def state_dict(self) -> dict[str, Any]:
        return {
            "lambda_c": self._lambda_c,
            "alpha": self._alpha.clone(),
            "lambda_s": self._lambda_s,
            "lambda_n": self._lambda_n.clone(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        lambda_c, lambda_s = _number(state, "lambda_c"), _number(state, "lambda_s")
        alpha, lambda_n = (_numbers(state, name, self._alpha) for name in ("alpha", "lambda_n"))
        self._lambda_c, self._lambda_s, self._alpha, self._lambda_n = lambda_c, lambda_s, alpha, lambda_n


def _ascend(multiplier: float, rate: float, slope: Tensor) -> float:
    return max(0.0, multiplier + rate * slope.item())


def _replaced(old: Tensor, where: list[int], new: Tensor) -> Tensor:
    """A copy of ``old`` with other values at some indices."""
    result = old.clone()
    result[where] = new
    return result


def _number(state: Mapping[str, Any], name: str) -> float:
    value = state.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"CATS: the state needs a number {name!r}, got {value!r}")
    return float(value)


def _numbers(state: Mapping[str, Any], name: str, like: Tensor) -> Tensor:
    """A copy of the state's tensor of this name, which must have the shape of ``like``."""
    value = state.get(name)
    if not isinstance(value, Tensor) or value.shape != like.shape:
        got = tuple(value.shape) if isinstance(value, Tensor) else value
        raise ValueError(f"CATS: the state needs {len(like)} numbers {name!r}, one per task, got {got!r}")
    return value.detach().to(device="cpu", dtype=torch.float64, copy=True)
