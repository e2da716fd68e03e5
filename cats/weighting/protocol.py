"""What a task weighting is: K numbers in (losses, dots, norms) or a K x K Gram matrix in, K weights out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor


class Weighting:
    """Base of all weightings; :class:`cats.MultiTask` calls nothing but what is declared here.

    A weighting never sees a tensor of the size of the model. There are two kinds:

    * the weights are known *before* the gradients (CATS, Static, ...): implement :meth:`weights`, and :meth:`update` if
      they change. One pass over the gradients gives the combined gradient and all that :meth:`update` receives.
    * the weights follow from *this* step's Gram matrix (MGDA, PCGrad, ...): set ``needs_gram`` and implement
      :meth:`weights_from_gram`. Two passes: the Gram matrix, then the combination.

    A plain callable that maps a Gram matrix to weights, such as a TorchJD ``Weighting``, is accepted wherever a
    weighting is (see :class:`cats.weighting.Gramian`).

    Attributes:
        needs_gram: the weights come from :meth:`weights_from_gram`.
        period: per-task gradients are formed at every ``period``-th step; 0 means never. The other steps cost one
            backward pass of the weighted loss.
        cross_batch: at steps that form per-task gradients each task brings two independent halves of its batch, and
            the dots that :meth:`update` receives are taken across the halves.
    """

    needs_gram: bool = False
    period: int = 1
    cross_batch: bool = False

    def start(self, tasks: int) -> None:
        """Called once, before anything else, with the number N of tasks.

        Raises:
            ValueError: this weighting does not fit N tasks.
        """

    def weights(self) -> Tensor:
        """The current weights of all N tasks, (N,) float64 on the CPU. Not called when ``needs_gram``."""
        raise NotImplementedError(f"{type(self).__name__} does not implement weights()")

    def update(self, losses: Tensor, dots: Tensor, sqnorms: Tensor, present: Sequence[int]) -> None:
        """Called after the parameters moved, at steps that formed per-task gradients.

        Args:
            losses: (K,) float64 on the CPU, the losses L_n of the K tasks that took part in the step.
            dots: (K,) float64, v_n = <g_n, combined gradient>.
            sqnorms: (K,) float64, ‖g_n‖²; nan with several processes.
            present: the K indices, ascending, of those tasks among the N.
        """

    def weights_from_gram(self, gram: Tensor, losses: Tensor) -> Tensor:
        """The weights (K,) of the tasks present, from their Gram matrix (K, K) float64 and losses (K,) float64.

        May change the weighting's state: it is restored from :meth:`state_dict` if the step is not taken.
        """
        raise NotImplementedError(f"{type(self).__name__} does not implement weights_from_gram()")

    @property
    def multipliers(self) -> dict[str, float | Tensor]:
        """Multipliers to report: numbers, or (N,) tensors with one entry per task."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """A copy of everything that changes: tensors, numbers, strings, lists and dicts."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
