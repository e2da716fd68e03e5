"""For Lightning: a mixin for automatic optimization, and a strategy for several processes.

Manual optimization needs neither: ``self.optimizers()`` has ``backward(losses)``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor

from cats.multitask import MultiTask

from .losses import BatchLosses
from .replicas import copy_from_first

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer
else:
    LightningModule = object  # the mixin calls what the LightningModule beside it has


class ModuleMixin(LightningModule):
    """Put before ``LightningModule``, this trains with the losses of several tasks and automatic optimization::

        class Model(ModuleMixin, LightningModule):
            def training_losses(self, batch, batch_idx):
                return {task: loss(self(x), y) for task, (x, y) in batch.items()}

            def configure_optimizers(self):
                return cats.CATS(torch.optim.AdamW(self.parameters()), tasks=["az", "be"])

    The Trainer's ``accumulate_grad_batches``, ``gradient_clip_val`` and ``precision``, schedulers and checkpoints work
    as with one loss. Weights are logged as ``alpha/TASK``, and the losses of the last step as ``loss/TASK``.
    """

    _losses: BatchLosses  # of the last training_step()
    _is_last = False  # whether a step follows

    def training_losses(self, batch: Any, batch_idx: int) -> Any:
        """The losses of a batch.

        Returns:
            {task: loss}, with tensors; or a pair: the losses of the entries (B, ...), and the task of each entry, (B,)
            integer; see :meth:`cats.MultiTask.backward`.
        """
        raise NotImplementedError(f"{type(self).__name__} needs a method training_losses(batch, batch_idx)")

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The sum of the tasks' losses, 0-d, for logs and progress bars."""
        optimizer = self._multitask()
        self._losses = BatchLosses(self.training_losses(batch, batch_idx))
        self.log_dict({f"alpha/{task}": alpha for task, alpha in optimizer.alpha.items()})
        self.log_dict({f"loss/{task}": loss for task, loss in optimizer.statistics["losses"].items()})
        return self._losses.total(optimizer)

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        steps = self.trainer.accumulate_grad_batches
        self._losses.backward(self._multitask(), steps=steps, scaler=self._scaler(), last=self._is_last)
        del self._losses  # and the graphs

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        self._is_last = True  # Lightning calls training_step() and backward() inside
        try:
            super().optimizer_step(*args, **kwargs)
        finally:
            self._is_last = False

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None
    ) -> None:
        plugin = self.trainer.precision_plugin
        if not gradient_clip_val or not isinstance(plugin, MixedPrecision):
            super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)
            return
        # Mixed precision refuses to clip for an optimizer whose step() can unscale. This one takes unscaled gradients.
        if plugin.scaler is not None:
            plugin.scaler.unscale_(optimizer)
        Precision.clip_gradients(plugin, optimizer, gradient_clip_val, gradient_clip_algorithm or "norm")

    def _multitask(self) -> MultiTask:
        optimizer = self.optimizers(use_pl_optimizer=False)
        if not isinstance(optimizer, MultiTask):
            raise TypeError(
                f"configure_optimizers() must give one cats.CATS or cats.MultiTask, got {type(optimizer).__name__}"
            )
        return optimizer

    def _scaler(self) -> Any:
        """The GradScaler of precision="16-mixed", or None."""
        return getattr(self.trainer.precision_plugin, "scaler", None)


class ReplicaStrategy(DDPStrategy):
    """``DDPStrategy`` without DistributedDataParallel: :class:`cats.MultiTask` averages the gradients itself.

    Use it as ``Trainer(strategy=ReplicaStrategy())``, with automatic or manual optimization. Then every engine and
    weighting works. In DistributedDataParallel, ``backward()`` needs the loss of each entry and ``tasks=``.

    Raises:
        TypeError: when training begins, an optimizer is not a :class:`cats.MultiTask`.
    """

    def configure_ddp(self) -> None:
        assert self.model is not None
        copy_from_first(self.model)

    def setup_optimizers(self, trainer: Trainer) -> None:
        super().setup_optimizers(trainer)
        for optimizer in self.optimizers:
            if not isinstance(optimizer, MultiTask):
                raise TypeError(
                    f"with ReplicaStrategy, {type(optimizer).__name__} would train a model of its own in each process: "
                    "put it into cats.MultiTask, or use strategy='ddp'"
                )
