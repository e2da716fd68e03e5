"""ḡ from a backward pass of the weighted loss; then, once ḡ is final, one task's gradient after the other for <g_n, ḡ>.

This needs memory for one gradient besides ḡ, whatever the number of tasks is. The price is time: every gradient is
computed twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from cats import ops
from cats.gradients import Gradient, dense

from .autograd import compiled_graphs_explained, gradient, needed_again
from .examples import Examples
from .losses import TaskLosses, square
from .repeat import Repeats
from .terms import Term, terms
from .weighted import weighted_backward


class TwoPass:
    """The engine.

    Args:
        backend: the backend of :mod:`cats.ops`, or None.
        model: the module that callables use, or None. Its buffers are changed by the first evaluation only.
    """

    def __init__(self, backend: str | None = None, model: nn.Module | None = None) -> None:
        self.backend, self.model = backend, model

    def backward(
        self,
        losses: TaskLosses | Examples,
        weights: Sequence[float],
        params: Sequence[Tensor],
        shared: int,
        *,
        scale: Tensor | None = None,
        whole: bool = False,
        before_last_pass: Callable[[], None] | None = None,
    ) -> tuple[list[Tensor], TaskByTask]:
        """Adds the gradient of Σ w_n L_n to ``p.grad``. Returns the values, as ``losses.tasks``, and the dots to come.

        Until the dots are known, the graphs of losses given as tensors are kept. Callables keep no graph: they are
        evaluated again, with the same dropout masks; see :mod:`cats.engines.repeat`.

        Args:
            losses: those of the call, one for each task.
            weights: the numbers w_n of all N tasks.
            params: the parameters that receive gradients, the shared ones first. Others get none.
            shared: how many of them are shared. Only these enter dots and norms.
            scale: GradScaler's scale, 0-d. The gradients are multiplied by it; losses, dots and norms are not.
            whole, before_last_pass: see :func:`cats.engines.weighted.weighted_backward`.

        Raises:
            TypeError, ValueError: as :func:`cats.engines.weighted.weighted_backward`.
            UnsupportedError: a callable has a batch norm with running statistics in training mode, and there is no
                model.
            RuntimeError: a loss given as a tensor has the graph of a compiled model.
        """
        repeats = Repeats(losses, params, user="engine two_pass", model=self.model)
        values = weighted_backward(
            repeats.noting,
            weights,
            params,
            scale=scale,
            retain_graph=True,
            whole=whole,
            before_last_pass=before_last_pass,
        )
        measure = InnerProducts(params, shared, scale, self.backend, whole=whole)
        return values, TaskByTask(terms(losses), repeats, dict(zip(losses.tasks, values, strict=True)), measure)


class TaskByTask:
    """The losses of one backward() call, whose gradients are computed again one at a time."""

    def __init__(
        self, terms: Sequence[Term], repeats: Repeats, values: dict[int, Tensor], measure: InnerProducts
    ) -> None:
        self._tensors = [(term, term.loss) for term in terms if isinstance(term.loss, Tensor)]
        self._repeats, self._values, self._measure = repeats, values, measure

    def dots(self, direction: Gradient, *, last: bool) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
        """See :class:`cats.engines.pending.Pending`.

        Raises:
            UnsupportedError: a callable did not give the loss that it gave at first.
        """
        dots: dict[int, Tensor] = {}
        sqnorms: dict[int, Tensor] = {}
        self._measure(self._tensors, direction, dots, sqnorms, retain_graph=not last)
        self._repeats.again(self._values, lambda term, value: self._measure([(term, value)], direction, dots, sqnorms))
        return dots, sqnorms


class InnerProducts:
    """Computes <g_n, direction> and ‖g_n‖² from gradients, of which one at a time is in memory.

    Args:
        params: the parameters, the shared ones first.
        shared: how many of them are shared.
        scale: GradScaler's scale. The direction is scaled too; the results are not.
        backend: the backend of :mod:`cats.ops`, or None.
        whole: see :func:`cats.engines.autograd.gradient`. If parameters are sharded, the numbers are of the parts that
            this process has.
    """

    def __init__(
        self,
        params: Sequence[Tensor],
        shared: int,
        scale: Tensor | None,
        backend: str | None,
        *,
        whole: bool = False,
    ) -> None:
        self._params, self._shared, self._scale, self._backend = params, shared, scale, backend
        self._whole = whole

    def __call__(
        self,
        losses: Sequence[tuple[Term, Tensor]],
        direction: Gradient,
        dots: dict[int, Tensor],
        sqnorms: dict[int, Tensor],
        *,
        retain_graph: bool = False,
    ) -> None:
        """Adds the numbers of the tasks of these loss tensors to ``dots`` and ``sqnorms``, 0-d float64."""
        vector = [dense(d) for d in direction[: self._shared]]
        single = [(term, value, n) for term, value in losses for n in term.tasks]
        shared_later = needed_again([value for _, value, _ in single])
        for (term, value, n), needed in zip(single, shared_later, strict=True):
            start = term.seed(value, n, self._scale)
            with compiled_graphs_explained(term.name):
                # By the private parameters too: those in reentrant checkpoints would keep it in p.grad otherwise.
                retain = retain_graph or needed
                g = gradient(value, start, self._params, retain_graph=retain, whole=self._whole)
            g = [dense(x) for x in g[: self._shared]]
            gram = ops.gram([g, vector], backend=self._backend) / square(self._scale)
            del g  # otherwise two gradients would be in memory
            dots[n], sqnorms[n] = gram[0, 1], gram[0, 0]
