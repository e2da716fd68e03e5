"""Target gradient projection: no task may move against the gradient of a small set of data that is trusted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .checks import checked_grams
from .pcgrad import NOTHING
from .protocol import Groups, Weighting

CANCELLED = 1e-12  # relative: trusted gradients that cancel each other leave only rounding errors


class TargetProjection(Weighting):
    """The part of a task's gradient that conflicts with a trusted gradient o is removed::

        if <g_n, o> < 0:  g_n ← g_n − <g_n, o> / ‖o‖² o

    ḡ is the sum of these g_n over the tasks that are trained. Yang et al., "Improving Multilingual Translation by
    Representation and Gradient Regularization", EMNLP 2021 (target gradient projection, TGP), and the authors' code
    (yilinyang7/fairseq_multi_fix).

    The trusted data is one or more tasks of the optimizer, whose losses are passed to backward() like all others. They
    are not trained: their gradients only say in which direction no task may move. As o is a combination of gradients,
    the Gram matrix is enough. In terms of weights: a task that is trained has 1, and a trusted one what the tasks that
    conflict with it add, so at least 0::

        tasks = ["az", "be", "dev"]
        optimizer = cats.MultiTask(base, tasks, cats.weighting.TargetProjection("dev"))
        optimizer.backward({"az": loss_az, "be": loss_be, "dev": loss_of_a_batch_of_the_development_set})

    The authors store o, the mean over up to 100 trusted batches, and compute it again every 200 updates. That takes a
    tensor of the size of the model for each trusted task, which here no weighting has, and o ages. Here o is the
    gradient of this step: newer, but of one batch, so a larger trusted batch is better. To save time, pass the trusted
    losses only in some steps. In the others, the gradients stay as they are.

    Args:
        trusted: the name of the trusted task. Or several names: o is the sum of their gradients that are there. Or
            {task: trusted task}, as in the paper, where each language has trusted data of its own; tasks that are not
            in the dict are trained without projection.
        groups: the groups of parameters in which gradients are compared and projected, as in
            :attr:`cats.weighting.Weighting.groups`. None: the whole model, the default of the authors too.

    Raises:
        ValueError: creating the optimizer raises it if a name is not that of a task, or no task is left to train; in a
            step: a Gram matrix is not finite.
    """

    needs_gram = True

    def __init__(
        self,
        trusted: str | int | Sequence[str | int] | Mapping[str | int, str | int],
        groups: Groups = None,
    ) -> None:
        self.trusted = trusted
        self.groups = groups

    def start(self, tasks: int) -> None:
        names: list[str | int] = list(self.names or range(tasks))
        given = self.trusted
        if isinstance(given, Mapping):
            used = [*given, *given.values()]
        else:
            used = [given] if isinstance(given, str | int) else list(given)
        for name in used:
            if name not in names:
                raise ValueError(f"TargetProjection: unknown task {name!r}; the tasks are {names}")
        # {trained task: the tasks whose gradients are its o}, by index
        self._oracles: dict[int, list[int]]
        if isinstance(given, Mapping):
            both = [name for name in given if name in given.values()]
            if both:
                raise ValueError(f"TargetProjection: task {both[0]!r} is both trained and trusted")
            trained = [n for n, name in enumerate(names) if name not in given.values()]
            self._oracles = {n: [names.index(given[names[n]])] if names[n] in given else [] for n in trained}
        else:
            oracle = [names.index(name) for name in dict.fromkeys(used)]  # one that is given twice counts once
            self._oracles = {n: oracle for n in range(tasks) if n not in oracle}
        if not used or not self._oracles:
            raise ValueError("TargetProjection: it needs at least one trusted task and one to train")

    def weights_from_grams(self, grams: Tensor, losses: Tensor, present: Sequence[int]) -> Tensor:
        checked_grams(grams, "TargetProjection")
        sqnorms = grams.diagonal(dim1=1, dim2=2)
        place = {n: k for k, n in enumerate(present)}
        weights = torch.zeros_like(grams[:, 0])
        for n, oracle in self._oracles.items():
            if n not in place:
                continue
            weights[:, place[n]] += 1.0
            there = [place[m] for m in oracle if m in place]
            if there:
                sqnorm = grams[:, there][:, :, there].sum((1, 2))  # ‖o‖²
                dots = grams[:, place[n], there].sum(1)  # <g_n, o>
                known = (sqnorm > CANCELLED * sqnorms[:, there].sum(1)) & (sqnorm > NOTHING * sqnorms.amax(1))
                change = torch.where(known & (dots < 0), -dots / torch.where(known, sqnorm, 1.0), 0.0)
                weights[:, there] += change[:, None]
        return weights
