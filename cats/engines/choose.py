"""Which engine computes <g_n, ḡ> for the losses at hand, and how it is called."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from cats.gradients import Gradient, is_sharded

from . import one_pass
from .examples import Examples
from .forward_mode import ForwardMode
from .losses import TaskLosses, evaluate, number, seed
from .one_pass import OnePass
from .pending import Pending, UnsupportedError
from .rows import known_rows
from .two_pass import TwoPass

NAMES = ("auto", "per_task", "two_pass", "one_pass", "forward_mode")

_log = logging.getLogger("cats")


class Engines:
    """The engine of one optimizer: the one that was asked for, or the one that fits best.

    An engine that was refused is not tried again by "auto" as long as this object lives, because each attempt costs a
    part of a step.

    Args:
        asked: one of ``NAMES``.
        share: the share of the rows from which one_pass estimates <g_n, ḡ>. None: all.
        backend: the backend of :mod:`cats.ops`, or None.
        model: the model, for the names of parameters in error messages, and to restore its buffers.

    Attributes:
        name, reason: of the last choice.
        calls_per_step: how many backward() calls the last step had. None before the first step.
    """

    def __init__(self, asked: str, share: float | None, backend: str | None, model: nn.Module | None) -> None:
        self.asked, self.share, self.model = asked, share, model
        self.name, self.reason = asked, "asked for"
        self.calls_per_step: int | None = None
        self._one_pass = OnePass(share, backend)
        self._two_pass, self._forward_mode = TwoPass(backend, model), ForwardMode(backend, model)
        self._unknown = 0  # steps in a row whose numbers were needed, and not known
        self._refused: dict[str, str] = {}  # {name: why this engine could not be used}
        self._logged: set[tuple[str, str]] = set()  # choices and their reasons

    def choose(self, losses: TaskLosses | Examples, params: Sequence[Tensor], *, needs: str | None, alone: bool) -> str:
        """The name of the engine for the losses of a step. The log says it when it changes, and each choice once.

        Args:
            params: the parameters that require grad.
            needs: what the weighting needs that only per_task computes in all cases, or None.
            alone: whether this is the only process. Several choose the same engine, so none looks at its free memory.
        """
        name, reason = self.asked, "asked for"
        if self.asked == "auto":
            name, reason = self._best(losses, params, needs=needs, alone=alone)
        if name != self.name and self.asked == "auto" and (name, reason) not in self._logged:
            _log.info("engine %s: %s", name, reason)
            self._logged.add((name, reason))
        self.name, self.reason = name, reason
        return name

    def _best(
        self, losses: TaskLosses | Examples, params: Sequence[Tensor], *, needs: str | None, alone: bool
    ) -> tuple[str, str]:
        if needs is not None:
            return "per_task", f"the weighting needs {needs}"
        tensors = isinstance(losses, TaskLosses) and not any(map(callable, losses.losses))
        reason = ""
        if any(map(is_sharded, params)):
            reason = "the parameters are sharded; "
        elif isinstance(losses, Examples) or (tensors and known_rows()):
            if "one_pass" not in self._refused:
                return "one_pass", "the tasks of the rows are known"
            reason = f"one_pass was refused ({self._refused['one_pass']}); "
        elif tensors and len(losses.tasks) > 1:
            reason = "the tasks of the rows are not known (tasks= of backward() tells them); "
        count = len(set(losses.tasks))
        needed = count * sum(p.numel() * p.element_size() for p in params)
        reason += f"{count} gradients take {_amount(needed)}"
        if alone and 2 * needed > free_memory(params[0].device) and not any(map(is_sharded, params)):
            reason += ", more than half of the free memory"
            if "two_pass" not in self._refused:
                return "two_pass", reason
            reason += f"; two_pass was refused ({self._refused['two_pass']})"
        return "per_task", reason

    def note_numbers(self, *, known: bool) -> None:
        """Warns once if the weights cannot move, because the number of backward() calls changes all the time."""
        self._unknown = 0 if known else self._unknown + 1
        if self._unknown == 3:
            warnings.warn(
                f"the task weights were not updated in 3 steps in a row: engine {self.name} must know which backward() "
                "call is the last of a step, and their number changes: pass last=True or last=False to backward(), or "
                "use engine='per_task'",
                stacklevel=4,
            )

    def refuse(self, error: UnsupportedError) -> None:
        """From now on, "auto" does not choose this engine. If it was asked for by name, this raises the error."""
        if self.asked != "auto":
            raise error
        self._refused[self.name] = str(error).removeprefix(f"engine {self.name}: ").partition(": use ")[0]

    def backward(
        self,
        name: str,
        losses: TaskLosses | Examples,
        weights: Sequence[float],
        params: Sequence[Tensor],
        shared: int,
        *,
        names: Sequence[str],
        scale: Tensor | None,
        sample_seed: int,
        immediate: bool,
        direction: Gradient | None,
        whole: bool,
        before_last_pass: Callable[[], None],
    ) -> tuple[list[Tensor], Pending]:
        """Adds ḡ to ``p.grad`` in one backward pass.

        Args:
            name: of an engine other than "per_task".
            weights: of all N tasks.
            params: the parameters that require grad, the shared ones first. names: for error messages.
            shared: how many of them enter <g_n, ḡ>.
            scale: GradScaler's scale, 0-d.
            sample_seed: of the random sample of rows, if there is one.
            immediate: whether ``p.grad`` is None now, and ḡ is final after this call.
            direction: d of <g_n, d>, for the same parameters, if it is known before this call. None: it is ḡ.
            whole, before_last_pass: see :func:`cats.engines.weighted.weighted_backward`.

        Returns:
            the values of the losses, 0-d float64, and what gives <g_n, ḡ> when ḡ is final.

        Raises:
            UnsupportedError: the engine cannot be used for these losses. Nothing has changed.
        """
        sharded = any(map(is_sharded, params))
        if sharded and name != "two_pass":
            raise UnsupportedError(f"engine {name}: the parameters are sharded: use engine='per_task' or 'two_pass'")
        if whole and not sharded and name != "one_pass":
            raise UnsupportedError(
                f"engine {name}: the model is wrapped in DistributedDataParallel, which allows one forward and one "
                "backward pass per step: use engine='one_pass', or delete the DistributedDataParallel object, and make "
                "the optimizer after that"
            )
        if name == "two_pass":
            return self._two_pass.backward(
                losses, weights, params, shared, scale=scale, whole=whole, before_last_pass=before_last_pass
            )
        if name == "forward_mode":
            return self._forward_mode.backward(
                losses, weights, params, shared, scale=scale, before_last_pass=before_last_pass
            )
        batch, values = _batch(losses, len(weights), scale)
        # The newest lists first: their numbers do not change if some are left from a forward pass without backward().
        batch.lists.extend(each.to(params[0].device).long() for each in reversed(known_rows()))
        pending = self._one_pass.backward(
            batch,
            weights,
            params,
            shared,
            names=names,
            scale=scale,
            seed=sample_seed,
            immediate=immediate,
            direction=direction,
            whole=whole,
            before_last_pass=before_last_pass,
        )
        return values, pending


def _batch(losses: TaskLosses | Examples, total: int, scale: Tensor | None) -> tuple[one_pass.Batch, list[Tensor]]:
    if isinstance(losses, Examples):
        examples, value = losses, losses.evaluate()
        lists = [ids.to(value.device) for ids in losses.by_rows()]
        batch = one_pass.Batch([value], lambda w: [examples.seed(value, w, scale)], losses.tasks, total, lists)
        return batch, losses.values(value)
    given = losses
    if any(map(callable, losses.losses)):
        raise UnsupportedError(
            "engine one_pass needs one graph for all tasks: pass losses per example with tasks=, or scalar losses with "
            "cats.engines.rows()"
        )
    roots = [evaluate(loss, name) for loss, name in zip(losses.losses, losses.names, strict=True)]

    def seeds(weights: Sequence[float]) -> list[Tensor]:
        return [seed(root, share, scale) for root, share in zip(roots, given.shares(weights), strict=True)]

    return one_pass.Batch(roots, seeds, sorted(set(losses.tasks)), total, []), list(map(number, roots))


def _amount(size: int) -> str:
    """A number of bytes in the largest unit of which there is one."""
    for unit, bits in (("GiB", 30), ("MiB", 20)):
        if size >= 1 << bits:
            return f"{size / (1 << bits):,.1f} {unit}"
    return f"{size / 1024:,.1f} KiB"


def free_memory(device: torch.device) -> int:
    """The bytes that can still be allocated there."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):  # with what the system would take from its file cache
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 2**63 - 1
