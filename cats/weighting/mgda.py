"""MGDA: the shortest convex combination of the gradients, which descends on all losses at once."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from .checks import check_finite, checked_grams
from .protocol import Weighting

Normalisation = Literal["none", "l2", "loss", "loss+"]

# Added to the diagonal of a matrix whose diagonal is 1, so that the weights are unique where gradients are dependent:
# equal gradients get equal weights. It changes the squared norm by as much.
RIDGE = 1e-10


class MGDA(Weighting):
    """The weights of the point of smallest norm in the convex hull of the gradients::

        minimise ‖Σ w_n g_n / c_n‖² over w_n ≥ 0, Σ w_n = 1;   the weight of task n is w_n / c_n, divided by their sum

    Sener and Koltun, "Multi-Task Learning as Multi-Objective Optimization", NeurIPS 2018, equation 3, after Désidéri
    2012. In these weights ḡ has <g_n, ḡ> ≥ 0 for every task: a small step along it increases no loss. ḡ = 0 means that
    no direction decreases all losses. A task whose gradient is 0 is such a case, except with "l2" and "loss+", which
    leave it out.

    The paper solves this with Frank-Wolfe (algorithm 2), which stops near the solution. Here it is solved exactly: two
    tasks in closed form, more by the active-set method of Lawson and Hanson. In the authors' code, w_n is the weight of
    g_n itself, although g_n / c_n was normalised. Then <g_n, ḡ> may be negative.

    MGDA-UB, the paper's faster form, is not offered. It takes gradients with respect to a representation of one input
    that all tasks share, and heads that they do not. The tasks of a multilingual model have inputs of their own, and
    no heads.

    Args:
        normalisation: c_n. "none": 1, so small gradients get large weights. "l2": ‖g_n‖. "loss": L_n. "loss+":
            L_n ‖g_n‖.

    Raises:
        ValueError: there is no such normalisation; in a step: the Gram matrix is not finite, or with "loss" or "loss+"
            a loss is not positive.
    """

    needs_gram = True

    def __init__(self, normalisation: Normalisation = "none") -> None:
        if normalisation not in get_args(Normalisation):
            raise ValueError(f"MGDA: normalisation must be 'none', 'l2', 'loss' or 'loss+', got {normalisation!r}")
        self.normalisation = normalisation

    def weights_from_gram(self, gram: Tensor, losses: Tensor) -> Tensor:
        norms = checked_grams(gram, "MGDA").diagonal().sqrt()
        sizes = torch.ones_like(norms)
        used = torch.ones_like(norms, dtype=torch.bool)
        if self.normalisation in ("l2", "loss+"):
            used = norms > 0
            sizes = torch.where(used, norms, 1.0)
        if self.normalisation in ("loss", "loss+"):
            check_finite("MGDA: a loss", losses)
            if not (losses > 0).all():
                raise ValueError(
                    f"MGDA: normalisation={self.normalisation!r} needs positive losses, got {losses.tolist()}"
                )
            sizes = sizes * losses
        weights = torch.zeros_like(norms)
        if used.any():
            scaled = gram / sizes / sizes[:, None]
            weights[used] = shortest(scaled[used][:, used]) / (sizes[used] / sizes[used].min())
            weights /= weights.sum()
        return weights


def shortest(gram: Tensor) -> Tensor:
    """The weights w ≥ 0 with sum 1 for which ‖Σ w_n g_n‖² is smallest, (K,).

    Args:
        gram: (K, K) float64, of g_n.
    """
    norms = gram.diagonal().sqrt()
    if not norms.min() > 0:  # the combination can be 0
        zero = (norms == 0).to(gram.dtype)
        return zero / zero.sum()
    if len(gram) == 2:
        between = gram[0, 0] + gram[1, 1] - 2 * gram[0, 1]  # ‖g_1 − g_2‖²
        if not between > RIDGE * gram.diagonal().sum():
            return torch.full_like(norms, 0.5)
        # Not 1 minus the other one: that would lose a weight below 1e-16, which matters if its gradient is huge.
        return ((gram.diagonal().flip(0) - gram[0, 1]) / between).clamp(0, 1)
    # With any m > 0, the y ≥ 0 that minimises ‖Σ y_n g_n‖² + m (Σ y_n − 1)² is a multiple of w: both have the same
    # conditions of optimality. In z_n = y_n ‖g_n‖ and with m = min ‖g_n‖², no number depends on the size of a gradient.
    u = norms.min() / norms
    cosines = gram / norms / norms[:, None]
    z = nonnegative(cosines + torch.outer(u, u) + RIDGE * torch.eye(len(u)).to(u), u)
    return z * u / (z * u).sum()


def nonnegative(matrix: Tensor, vector: Tensor) -> Tensor:
    """The x ≥ 0 that minimises ½ xᵀ A x − bᵀ x, for a positive definite A.

    Lawson and Hanson, "Solving Least Squares Problems", 1974, chapter 23 (NNLS), for the normal equations.
    """
    x = torch.zeros_like(vector)
    free = torch.zeros_like(vector, dtype=torch.bool)
    for _ in range(10 * len(x)):  # it ends long before, unless rounding errors let it go round in circles
        descent = torch.where(free, -torch.inf, vector - matrix @ x)
        best = int(descent.argmax())
        if not descent[best] > 1e-14 * vector.max():
            break
        free[best] = True
        while True:
            wanted = torch.zeros_like(x)
            wanted[free] = torch.linalg.solve(matrix[free][:, free], vector[free])
            blocked = free & (wanted <= 0)
            if not blocked.any():
                break
            # As far towards the minimum as all stay at least 0. Those that reach 0 stay there.
            ratios = torch.where(blocked, x / (x - wanted), torch.inf)
            x = x + ratios.min() * (wanted - x)
            free &= ~(blocked & (ratios <= ratios.min()))
            x[~free] = 0.0
        x = wanted
    return x
