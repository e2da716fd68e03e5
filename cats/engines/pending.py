"""What an engine with one backward pass leaves behind: the inner products with ḡ, when ḡ is final."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from cats.gradients import Gradient


class Pending(Protocol):
    """The losses of one backward() call, whose inner products with ḡ can still be computed.

    ḡ is final after the last backward() call of a step, and with several processes after it is averaged over them.
    What is needed until then, such as graphs or activations, is freed with this object.
    """

    def dots(self, direction: Gradient, *, last: bool) -> tuple[dict[int, Tensor], dict[int, Tensor] | None]:
        """The numbers of the tasks of this call, over the shared parameters. It may be called several times.

        Args:
            direction: ḡ, one tensor or None per parameter. If a GradScaler is used, ḡ is scaled.
            last: whether this is the last call of this method, so that graphs can be freed.

        Returns:
            {task index: <g_n, ḡ>} and {task index: ‖g_n‖²}, 0-d float64 on the device, of unscaled gradients. The
            second is None if the engine does not know the norms.
        """


class Computed:
    """Numbers that did not have to wait for ḡ, because they are inner products with another direction."""

    def __init__(self, dots: dict[int, Tensor], sqnorms: dict[int, Tensor] | None) -> None:
        self._dots, self._sqnorms = dots, sqnorms

    def dots(self, direction: Gradient, *, last: bool) -> tuple[dict[int, Tensor], dict[int, Tensor] | None]:
        return self._dots, self._sqnorms


class UnsupportedError(RuntimeError):
    """An engine cannot be used for these losses. The message names the part of the model, and what to do."""
