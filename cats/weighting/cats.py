"""CATS: the update of α and λ on Eq. 4 of Li & Gong, "Robust Optimization for Multilingual Translation with Imbalanced
Data", NeurIPS 2021 (arXiv 2104.07639)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from .protocol import Weighting

Simplex = Literal["softmax", "lagrangian"]

# The defaults of cats.CATS and cats.weighting.CATS. The text of the paper gives no values. These were chosen on the
# validation data of the built-in corpus; bench/README.md has the trials.
INNER_STEPS = 5
ALPHA_LR = 1.0
MULTIPLIER_LR = 1.0
EPSILON = 1e-3
SIMPLEX: Simplex = "softmax"
LOSS_TERM = False
CROSS_BATCH = False


class CATS(Weighting):
    """Weights α that keep both the losses and the norm of the combined gradient small (Eq. 4 of the paper):

        L(θ, α, λ) = Σ α_n L_n − λ_c(ε − ‖Σ α_n g_n‖²) + λ_s(Σ α_n − 1)² − Σ λ_n(α_n − ε)

    Every ``inner_steps`` steps, α takes a gradient descent step on L and λ a gradient ascent step. This needs only the
    losses L_n and the inner products v_n = <g_n, ḡ> with ḡ = Σ α_n g_n, because ∂‖ḡ‖²/∂α_n = 2 v_n. The arguments are
    explained in :class:`cats.CATS`.

    * ``simplex="softmax"``: α = softmax(a), and a_n moves by −alpha_lr · α_n (h_n − Σ α_m h_m) with
      h_n = (L_n + 2 λ_c v_n) / (1 + 2 λ_c). Without ``loss_term``, L_n is 0 here.
    * ``simplex="lagrangian"``: α_n moves by −alpha_lr · (L_n + 2 λ_c v_n + 2 λ_s (Σ α_m − 1) − λ_n). Then it is clipped
      at 0. Without ``loss_term``, L_n is 0 here.

    A batch with K of the N tasks changes the α of these K tasks only:

    * ``simplex="softmax"``: let s be the sum of the K weights. The update is the one for a problem that has only these
      K tasks, with weights α_n / s and combined gradient ḡ / s. Afterwards the K weights are rescaled so that their sum
      is s again. So the other weights keep their values.
    * ``simplex="lagrangian"``: Σ α_m is over all N tasks. Only the α_n and λ_n of the K tasks change, and nothing is
      rescaled.

    Raises:
        ValueError: an option has a value that is not allowed.
    """

    def __init__(
        self,
        *,
        inner_steps: int = INNER_STEPS,
        alpha_lr: float = ALPHA_LR,
        multiplier_lr: float = MULTIPLIER_LR,
        epsilon: float = EPSILON,
        simplex: Simplex = SIMPLEX,
        loss_term: bool = LOSS_TERM,
        cross_batch: bool = CROSS_BATCH,
    ) -> None:
        if isinstance(inner_steps, bool) or not isinstance(inner_steps, int) or inner_steps < 1:
            raise ValueError(f"CATS: inner_steps must be an integer of at least 1, got {inner_steps!r}")
        for name, value in (("alpha_lr", alpha_lr), ("multiplier_lr", multiplier_lr), ("epsilon", epsilon)):
            if not 0 <= value < float("inf"):
                raise ValueError(f"CATS: {name} must be a finite number of at least 0, got {value!r}")
        if simplex not in ("softmax", "lagrangian"):
            raise ValueError(f"CATS: simplex must be 'softmax' or 'lagrangian', got {simplex!r}")
        self.period = inner_steps
        self.alpha_lr = alpha_lr
        self.multiplier_lr = multiplier_lr
        self.epsilon = epsilon
        self.simplex = simplex
        self.loss_term = loss_term
        self.cross_batch = cross_batch

    def start(self, tasks: int) -> None:
        self._lambda_c = 0.0
        if self.simplex == "softmax":
            self._a = torch.zeros(tasks, dtype=torch.float64, device="cpu")
        else:
            self._alpha = torch.ones(tasks, dtype=torch.float64, device="cpu")
            self._lambda_s = 0.0
            self._lambda_n = torch.zeros(tasks, dtype=torch.float64, device="cpu")

    def weights(self) -> Tensor:
        return torch.softmax(self._a, dim=0) if self.simplex == "softmax" else self._alpha.clone()

    def update(self, losses: Tensor, dots: Tensor, sqnorms: Tensor, present: Sequence[int]) -> None:
        step = self._update_softmax if self.simplex == "softmax" else self._update_lagrangian
        step(losses if self.loss_term else torch.zeros_like(losses), dots, list(present))

    def _update_softmax(self, losses: Tensor, v: Tensor, present: list[int]) -> None:
        a, alpha = self._a[present], self.weights()[present]
        subset = len(present) < len(self._a)
        if subset:
            mass = alpha.sum()
            alpha, v = alpha / mass, v / mass
        h = (losses + 2 * self._lambda_c * v) / (1 + 2 * self._lambda_c)
        moved = a - self.alpha_lr * alpha * (h - alpha @ h)
        if subset:  # the same log-sum-exp as before, so that the softmax of the other tasks does not change
            moved = moved + (torch.logsumexp(a, 0) - torch.logsumexp(moved, 0))
        self._a[present] = moved
        self._lambda_c = self._ascend(self._lambda_c, alpha @ v - self.epsilon)

    def _update_lagrangian(self, losses: Tensor, v: Tensor, present: list[int]) -> None:
        alpha, lambda_n, excess = self._alpha[present], self._lambda_n[present], self._alpha.sum() - 1
        descent = losses + 2 * self._lambda_c * v + 2 * self._lambda_s * excess - lambda_n
        self._alpha[present] = (alpha - self.alpha_lr * descent).clamp(min=0)
        self._lambda_n[present] = (lambda_n + self.multiplier_lr * (self.epsilon - alpha)).clamp(min=0)
        self._lambda_c = self._ascend(self._lambda_c, alpha @ v - self.epsilon)
        self._lambda_s = self._ascend(self._lambda_s, excess**2)

    def _ascend(self, multiplier: float, slope: Tensor) -> float:
        return max(0.0, multiplier + self.multiplier_lr * slope.item())

    @property
    def multipliers(self) -> dict[str, float | Tensor]:
        if self.simplex == "softmax":
            return {"lambda_c": self._lambda_c}
        return {"lambda_c": self._lambda_c, "lambda_s": self._lambda_s, "lambda_n": self._lambda_n}

    def state_dict(self) -> dict[str, Any]:
        own = (
            {"a": self._a.clone()}
            if self.simplex == "softmax"
            else {"alpha": self._alpha.clone(), "lambda_s": self._lambda_s, "lambda_n": self._lambda_n.clone()}
        )
        return {"simplex": self.simplex, "lambda_c": self._lambda_c, **own}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state.get("simplex") != self.simplex:
            raise ValueError(
                f"CATS: the state is for simplex={state.get('simplex')!r}, but this weighting has {self.simplex!r}"
            )
        self._lambda_c = state["lambda_c"]
        if self.simplex == "softmax":
            self._a = state["a"].clone()
        else:
            self._alpha, self._lambda_n = state["alpha"].clone(), state["lambda_n"].clone()
            self._lambda_s = state["lambda_s"]
