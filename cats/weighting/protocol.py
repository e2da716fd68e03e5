"""The base class of task weightings, which turn losses, dots and norms, or a Gram matrix, into weights."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, Literal, TypeAlias

from torch import Tensor, nn

Groups: TypeAlias = str | Callable[[str, nn.Parameter], Hashable] | Sequence[Hashable] | None

Direction: TypeAlias = Literal["gradient", "preconditioned", "momentum", "update"]


class Weighting:
    """Base class of all weightings. :class:`cats.MultiTask` uses only what this class declares.

    There are four kinds. Only the last one sees tensors of the size of the model:

    * Weights known *before* the gradients (CATS, Static, ...). Implement :meth:`weights`, and :meth:`update` if
      they change. One pass over the gradients computes the combined gradient and the arguments of :meth:`update`.
      With ``losses_only``, every step is one backward pass of the weighted loss, and :meth:`update` gets the losses.
    * Weights that follow from the losses of *this* step (FAMO, ...). Set ``needs_losses`` and ``losses_only``, and
      implement :meth:`weights_from_losses`. All losses are evaluated before the one backward pass.
    * Weights that follow from the Gram matrix of *this* step (MGDA, PCGrad, ...). Set ``needs_gram`` and implement
      :meth:`weights_from_gram`, or :meth:`weights_from_grams` to know which tasks are present, or to compute weights
      per group of parameters. This takes two passes: one for the Gram matrix, one for the combined gradient.
    * A combined gradient that is no weighted sum (GradDrop). Set ``combines`` and implement :meth:`combine`, and
      :meth:`weights`, which are only reported.

    Instead of a weighting, a callable that maps a Gram matrix to weights is accepted too, such as a TorchJD
    ``Weighting`` (see :class:`cats.weighting.Gramian`).

    Attributes:
        needs_gram: whether the weights come from :meth:`weights_from_gram`.
        needs_losses: whether they come from :meth:`weights_from_losses`. In every step, whatever ``period`` is.
        combines: whether the combined gradient comes from :meth:`combine`, in every step. ``period`` must be 1.
        needs_sqnorms: whether :meth:`update` needs ‖g_n‖².
        losses_only: whether :meth:`update` needs the losses only. Then no step computes <g_n, ḡ>.
        losses_again: whether :meth:`update_after` is called too, with the losses after the step. Users must pass
            callables then. Only with ``losses_only``.
        period: every ``period``-th step computes <g_n, ḡ>, or the Gram matrix, and calls :meth:`update`; 0 means never.
            The other steps cost one backward pass of the weighted loss.
        cross_batch: whether the steps that compute <g_n, ḡ> need two losses per task, from two independent halves of
            its batch. The dots in :meth:`update` are then ½(<g_n^A, ḡ^B> + <g_n^B, ḡ^A>) for the halves A, B.
        direction: d of the dots <g_n, d>: "gradient" (ḡ), "preconditioned" (ḡ in Adam's metric), "momentum" or "update"
            (of the base optimizer before this step), see :mod:`cats.direction`. The first step, before which the base
            optimizer remembers nothing, calls :meth:`update` only with "gradient".
        scale: :meth:`weights` are this many times the weights α_n that the optimizer reports. With another scale than
            1, ḡ is Σ α_n g_n in :meth:`update` and in the statistics, and ``scale`` times that in ``p.grad``.
        groups: if ``needs_gram``, the groups of parameters that have a Gram matrix and weights of their own. None: one
            group of all parameters. "parameter": each parameter. "layer": the parameters whose names are equal up to
            the first number (``decoder.layers.0``), or without a number those of one module. A callable: maps the name
            of a parameter and the parameter to its group, which may be any hashable object. A sequence: one such object
            for each parameter of the optimizer, in their order. Names are those of the optimizer's ``model``.
            Replicas in several processes exchange each group by itself: many small groups are many messages.
        tolerance: if ``needs_gram``, which eigenvalues of the Gram matrix count as rounding errors, see
            :class:`cats.weighting.Gramian`.
        names: the names of the tasks, for messages. The optimizer sets them before :meth:`start`.
    """

    needs_gram: bool = False
    needs_losses: bool = False
    combines: bool = False
    needs_sqnorms: bool = False
    losses_only: bool = False
    losses_again: bool = False
    period: int = 1
    cross_batch: bool = False
    direction: Direction = "gradient"
    scale: float = 1.0
    groups: Groups = None
    tolerance: float | None = None
    names: Sequence[str | int] = ()

    @property
    def follows(self) -> bool:
        """Whether the weights follow from numbers of the step. If not, they are known before it."""
        return self.needs_gram or self.needs_losses

    def start(self, tasks: int) -> None:
        """Called when an optimizer is made, before all other methods, with the number N of tasks.

        It sets all state to that of the beginning: another optimizer may have used the weighting before.

        Raises:
            ValueError: this weighting does not fit N tasks.
        """

    def weights(self) -> Tensor:
        """The current weights of all N tasks, (N,) float64 on the CPU. Not called if they follow from the step."""
        raise NotImplementedError(f"{type(self).__name__} does not implement weights()")

    def update(self, losses: Tensor, dots: Tensor, sqnorms: Tensor, present: Sequence[int]) -> None:
        """Called at every ``period``-th step, before the parameters move with the combined gradient.

        If it raises, or if anything fails after it in the step, the state is restored from :meth:`state_dict`.

        Args:
            losses: (K,) float64 on the CPU, the losses L_n of the K tasks that took part in the step.
            dots: (K,) float64 on the CPU, v_n = <g_n, combined gradient> / scale, or with another ``direction`` d
                <g_n, d>. nan if ``losses_only``.
            sqnorms: (K,) float64 on the CPU, ‖g_n‖². Unless ``needs_sqnorms``, they may be nan.
            present: the indices of these K tasks among the N, ascending.
        """

    def update_after(self, before: Tensor, after: Tensor, present: Sequence[int]) -> None:
        """Called at every ``period``-th step if ``losses_again``, after the parameters have moved.

        It is not called if a loss after the step is not finite.

        Args:
            before: (K,) float64 on the CPU, the losses of the step.
            after: (K,) float64 on the CPU, the losses of the same batch, with the same dropout masks, after the step.
            present: the indices of these K tasks among the N, ascending.
        """
        raise NotImplementedError(f"{type(self).__name__} does not implement update_after()")

    def weights_from_losses(self, losses: Tensor, present: Sequence[int]) -> Tensor:
        """The weights of the K tasks present, (K,).

        It may change the weighting's state. If the step is skipped or fails, the state is restored from
        :meth:`state_dict`.

        Args:
            losses: (K,) float64 on the CPU, finite.
            present: the indices of these K tasks among the N, ascending.
        """
        raise NotImplementedError(f"{type(self).__name__} does not implement weights_from_losses()")

    def weights_from_gram(self, gram: Tensor, losses: Tensor) -> Tensor:
        """The weights of the K tasks present, (K,).

        It may change the weighting's state. If the step is skipped or fails, the state is restored from
        :meth:`state_dict`.

        Args:
            gram: (K, K) float64 on the CPU, <g_i, g_j>. Its rank is that of the gradients: eigenvalues that are only
                rounding errors of them are 0, see :func:`cats.weighting.rounding.without_rounding_noise`.
            losses: (K,) float64 on the CPU.
        """
        raise NotImplementedError(f"{type(self).__name__} does not implement weights_from_gram()")

    def weights_from_grams(self, grams: Tensor, losses: Tensor, present: Sequence[int]) -> Tensor | list[Tensor]:
        """The weights of the K tasks present, (K,) for each group of parameters: (G, K), or a list of G tensors.

        This is what the optimizer calls. Here it calls :meth:`weights_from_gram` for each group.

        Args:
            grams: (G, K, K) float64 on the CPU, a Gram matrix for each group, as for :meth:`weights_from_gram`. Groups
                are in the order of their first parameters, and keep their places. G is 1 without :attr:`groups`.
            losses: (K,) float64 on the CPU.
            present: the indices of the K tasks among the N, ascending.
        """
        return [self.weights_from_gram(gram, losses) for gram in grams]

    def combine(
        self,
        gradients: Sequence[Sequence[Tensor | None]],
        positions: Sequence[int],
        present: Sequence[int],
        backend: str | None,
    ) -> list[Tensor | None]:
        """The combined gradient of the K tasks present: a tensor like the gradients for each of the N tensors.

        It must work on each element by itself, because with several processes each sees its part of the elements. It
        must give the same result if it is called again in a step, so it must not change the state.

        Args:
            gradients: K lists of N tensors. None: the task does not use the parameter. With several processes, parts of
                the mean gradients.
            positions: N ints: a number for the first element of each tensor. The others follow in row-major order. The
                number of an element is the same in every step, however the elements are divided over processes.
            present: the indices of the K tasks among the N, ascending.
            backend: the backend of :mod:`cats.ops` that the user asked for, or None.
        """
        raise NotImplementedError(f"{type(self).__name__} does not implement combine()")

    @property
    def multipliers(self) -> dict[str, float | Tensor]:
        """Multipliers to report, as {name: value}. A value is a number, or an (N,) tensor with one entry per task."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """A copy of all state that changes. It may hold tensors, numbers, strings, lists and dicts."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned.

        Raises:
            ValueError: it does not fit this weighting.
        """
        if state:
            raise ValueError(f"{type(self).__name__} has no state, but this is one of another weighting: {list(state)}")
