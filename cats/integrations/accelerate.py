"""An Accelerator that prepares :class:`cats.MultiTask`: the prepared optimizer has ``backward(losses)``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import accelerate
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn
from torch.optim import Optimizer

from cats.multitask import MultiTask
from cats.tasks import Task

from .losses import divided
from .replicas import copy_from_first


class Accelerator(accelerate.Accelerator):
    """``accelerate.Accelerator`` for models that :class:`cats.MultiTask` trains::

        accelerator = Accelerator(gradient_accumulation_steps=4)
        model, optimizer, loader = accelerator.prepare(model, cats.CATS(base, tasks), loader)
        for batch in loader:
            with accelerator.accumulate(model):
                optimizer.backward(losses_of(model, batch))  # instead of accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()

    With several processes, a model is not put into DistributedDataParallel: the optimizer averages the gradients. All
    processes start with the parameters and buffers of the first one, as in DistributedDataParallel. Models that another
    optimizer trains need a plain Accelerator.

    Raises:
        ValueError: DeepSpeed or Megatron-LM, which have optimizers of their own. Or an optimizer to prepare cannot be
            used: it is not a :class:`cats.MultiTask`, and there are several processes without FSDP; or it has
            ``shared=``, and FSDP 2 replaces its parameters.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.distributed_type in ("DEEPSPEED", "MEGATRON_LM"):
            kind = self.distributed_type.value
            raise ValueError(f"cats.MultiTask does not work with {kind}, which has optimizers of its own")

    def prepare_optimizer(self, optimizer: Optimizer, device_placement: bool | None = None) -> AcceleratedOptimizer:
        if isinstance(optimizer, MultiTask):
            optimizer = prepare_multitask(self, optimizer, device_placement)
        elif has_replicas(self) and not isinstance(optimizer, AcceleratedMultiTask):
            raise ValueError(
                f"with several processes, {type(optimizer).__name__} would train a model of its own in each of them: "
                "put it into cats.MultiTask, or prepare it and its model with accelerate.Accelerator"
            )
        return super().prepare_optimizer(optimizer, device_placement)

    def prepare_model(
        self, model: nn.Module, device_placement: bool | None = None, evaluation_mode: bool = False
    ) -> nn.Module:
        if evaluation_mode or not has_replicas(self):
            return super().prepare_model(model, device_placement, evaluation_mode)
        return prepare_replica(self, model, device_placement)

    @contextmanager
    def no_sync(self, model: nn.Module) -> Iterator[None]:
        """Does nothing. The gradients of tasks need the mean over the shards of FSDP 2 in each batch of a step."""
        yield


class AcceleratedMultiTask(AcceleratedOptimizer):
    """What :meth:`Accelerator.prepare` makes of a :class:`cats.MultiTask`, which is its ``optimizer``.

    Attributes and methods that it does not have are those of the ``optimizer``.
    """

    def backward(
        self,
        losses: Any,
        *,
        tasks: Tensor | Sequence[Task] | None = None,
        reduction: Literal["mean", "sum"] = "mean",
        last: bool | None = None,
    ) -> None:
        """:meth:`cats.MultiTask.backward` in place of ``accelerator.backward()``.

        As there, losses are divided by ``gradient_accumulation_steps`` and, with fp16, scaled.

        Args:
            losses, tasks, reduction: as in :meth:`cats.MultiTask.backward`.
            last: whether this is the last call before step(). None: ``accumulate()`` knows it, if the Accelerator has
                ``gradient_accumulation_steps``. This holds for one call per batch. With several calls, such as one
                per task, pass it: True in the last call of the last batch (``accelerator.sync_gradients``).
        """
        state = self.gradient_state
        if last is None and state.num_steps > 1:
            last = state.sync_gradients
        losses = divided(losses, state.num_steps)
        self.optimizer.backward(losses, tasks=tasks, reduction=reduction, scaler=self.scaler, last=last)

    def step(self, closure: Callable[[], Any] | None = None) -> None:
        """The step, unless ``accumulate()`` says that more batches follow."""
        before = self.optimizer.statistics["skipped"]
        super().step(closure)
        # accelerate would see it if step() were not called. But step() is called, and looks for infinite gradients.
        self._is_overflow = self.optimizer.statistics["skipped"] > before

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or "optimizer" not in self.__dict__:  # accelerate and copy look for some of them
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self.optimizer, name)


def has_replicas(accelerator: accelerate.Accelerator) -> bool:
    """Whether accelerate would put a model into DistributedDataParallel."""
    return accelerator.distributed_type.startswith("MULTI_")


def prepare_multitask(
    accelerator: accelerate.Accelerator, optimizer: MultiTask, device_placement: bool | None = None
) -> AcceleratedMultiTask:
    """The optimizer in its wrapper, which ``accelerator.prepare_optimizer()`` then takes as it is.

    Raises:
        ValueError: the optimizer has ``shared=``, and FSDP 2 will replace its parameters.
    """
    if accelerator.is_fsdp2 and optimizer._shared is not None:
        raise ValueError(
            "with fsdp, Accelerate replaces the parameters of the optimizer, and those of shared= would be the old "
            "ones: leave out shared="
        )
    placement = accelerator.device_placement if device_placement is None else device_placement
    prepared = AcceleratedMultiTask(optimizer, device_placement=placement, scaler=accelerator.scaler)
    prepared._is_accelerate_prepared = True
    return prepared


def prepare_replica(
    accelerator: accelerate.Accelerator, model: nn.Module, device_placement: bool | None = None
) -> nn.Module:
    """``accelerator.prepare_model()`` without DistributedDataParallel: device, mixed precision and torch.compile.

    The parameters and buffers of the first process replace those of the others.
    """
    # What is called evaluation mode there leaves out the wrapper and nothing else.
    model = accelerate.Accelerator.prepare_model(accelerator, model, device_placement, evaluation_mode=True)
    copy_from_first(model)
    return model
