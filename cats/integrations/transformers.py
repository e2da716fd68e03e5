"""A mixin for the Trainer of Hugging Face transformers, and a data collator: a batch has a loss for each task."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from accelerate.data_loader import DataLoaderDispatcher
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.optim import Optimizer
from transformers.trainer_callback import TrainerCallback

from cats.multitask import MultiTask
from cats.tasks import Task

from .accelerate import AcceleratedMultiTask, has_replicas, prepare_multitask, prepare_replica
from .losses import BatchLosses

if TYPE_CHECKING:
    from transformers import Trainer
else:
    Trainer = object  # the mixin calls what the Trainer beside it has


class TrainerMixin(Trainer):
    """Put before ``Trainer`` or a subclass of it, this trains with the losses of several tasks::

        class Trainer(TrainerMixin, transformers.Trainer):
            def compute_losses(self, model, inputs, num_items_in_batch=None):
                logits = model(inputs["input_ids"]).logits
                return F.cross_entropy(logits, inputs["labels"], reduction="none"), inputs["task"]

        Trainer(model, args, train_dataset=data, multitask=functools.partial(cats.CATS, tasks=["az", "be"]))

    Without :meth:`compute_losses`, batches must be {task: batch}, as :class:`ByTask` makes them.

    What stays the Trainer's: the loop, schedules, clipping, bf16 and fp16, checkpoints, logs. Logs of the training have
    ``alpha_TASK`` and ``loss_TASK`` too. ``loss`` is the sum of the tasks' losses, a mean over the steps since the last
    log; ``loss_TASK`` is a mean over those of them that had the task. With several processes the model is not put into
    DistributedDataParallel: the optimizer averages the gradients itself.

    Args:
        multitask: makes the optimizer from the Trainer's own, such as ``functools.partial(cats.CATS, tasks=TASKS)``.
            Not needed if ``optimizers=`` has a :class:`cats.MultiTask`.

    Raises:
        ValueError: a setting of the Trainer cannot be used.
        TypeError: when training begins, there is no :class:`cats.MultiTask`.
    """

    model_wrapped: nn.Module  # the Trainer's

    def __init__(self, *args: Any, multitask: Callable[[Optimizer], MultiTask] | None = None, **kwargs: Any) -> None:
        self._multitask = multitask
        self._mean_losses = MeanLosses()
        super().__init__(*args, **kwargs)
        self.add_callback(self._mean_losses)
        refused = {
            "DeepSpeed": self.is_deepspeed_enabled,
            "FullyShardedDataParallel (fsdp with version 1)": self.is_fsdp_enabled and not self.accelerator.is_fsdp2,
            "DataParallel (start one process per GPU, with torchrun)": self.args.n_gpu > 1,
            "torch_empty_cache_steps": self.args.torch_empty_cache_steps is not None,
            "optim=" + self.args.optim: "lomo" in self.args.optim,
        }
        if found := [name for name, is_used in refused.items() if is_used]:
            raise ValueError(f"a Trainer with several tasks does not support {found[0]}")

    @property
    def multitask_optimizer(self) -> MultiTask:
        """The optimizer, without what accelerate has put around it. It exists once training has begun."""
        optimizer = _inside(self.optimizer)
        if optimizer is None:
            raise RuntimeError("the Trainer makes its optimizer when training begins")
        return optimizer

    def compute_losses(
        self, model: nn.Module, inputs: Mapping[Any, Any], num_items_in_batch: Mapping[Any, Any] | Any = None
    ) -> Any:
        """The losses of a batch. Override it for anything but batches {task: batch} of a model that returns its loss.

        Here, the loss of each task is that of :meth:`compute_loss`. A task's loss is the mean over its items (tokens or
        examples) in all batches of a step and all processes, if the model takes ``num_items_in_batch``.

        Args:
            model: the model, as in :meth:`training_step`.
            inputs: what the data collator returned, on the device.
            num_items_in_batch: how many labels all batches of the step have, in all processes. Of batches
                {task: batch}: {task: number}. None in a method that overrides this one, unless the class says
                ``loss_is_scaled_for_ga = True``.

        Returns:
            {task: loss}; or a pair: the losses of the entries (B, ...), and the task of each entry, (B,) integer; see
            :meth:`cats.MultiTask.backward`. Callables that return the losses will do, too; ``torch_compile`` needs
            them. Losses are means over this batch, and are divided by the number of batches of a step. With
            ``loss_is_scaled_for_ga = True`` they are not divided, and the losses of entries are summed for each task.
            With ``loss_is_scaled_for_ga = False`` the losses of the model are such means, too.
        """
        if not _is_by_task(inputs):
            raise ValueError(
                f"a batch has {sorted(map(str, inputs))} instead of {{task: batch}}: use the data collator ByTask, or "
                "override compute_losses()"
            )
        counts = num_items_in_batch or {}
        # compute_loss() may take the labels out of a batch, and engines may call it more than once.
        return {
            task: lambda task=task, batch=batch: self.compute_loss(
                model, dict(batch), num_items_in_batch=counts.get(task)
            )
            for task, batch in inputs.items()
        }

    # --- what the Trainer calls -------------------------------------------------------------------------------------

    def create_optimizer(self, model: Any = None) -> Optimizer:
        optimizer = super().create_optimizer(model)
        if _inside(optimizer) is None and self._multitask is not None:
            self.optimizer = self._multitask(optimizer)
        multitask = _inside(self.optimizer)
        if multitask is None:
            raise TypeError(
                f"the optimizer of the Trainer is {type(self.optimizer).__name__}: pass multitask=, such as "
                "functools.partial(cats.CATS, tasks=TASKS), or optimizers=(cats.CATS(...), None)"
            )
        if not isinstance(self.optimizer, AcceleratedMultiTask):  # whose step() tells accelerate about skipped ones
            self.optimizer = prepare_multitask(self.accelerator, multitask)
        if has_replicas(self.accelerator):  # the Trainer then finds the model prepared, and does not wrap it
            self.model_wrapped = prepare_replica(self.accelerator, self.model_wrapped)
        return self.optimizer

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        model.train()
        optimizer = self.multitask_optimizer
        if callable(train := getattr(optimizer, "train", None)):  # of a schedule-free base optimizer
            train()
        scaled = self.loss_is_scaled_for_ga
        if scaled is None:
            is_ours = getattr(self.compute_losses, "__func__", None) is TrainerMixin.compute_losses
            scaled = is_ours and num_items_in_batch is not None
        inputs = self._prepare_inputs(inputs)
        if isinstance(model, FSDPModule):  # the gradients of tasks need the mean over the shards in each batch
            model.set_requires_gradient_sync(True)
        with self.compute_loss_context_manager():
            losses = self.compute_losses(model, inputs, num_items_in_batch if scaled else None)
            losses = BatchLosses(losses, "sum" if scaled else "mean")
            steps = 1 if scaled else self.current_gradient_accumulation_steps
            accelerator = self.accelerator
            losses.backward(optimizer, steps=steps, scaler=accelerator.scaler, last=accelerator.sync_gradients)
        return losses.total(optimizer) / steps

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list[Any], Any]:
        batches, count = super().get_batch_samples(epoch_iterator, num_batches, device)
        if not batches or not all(map(_is_by_task, batches)):
            return batches, count
        if isinstance(self.callback_handler.train_dataloader, DataLoaderDispatcher):
            raise ValueError(
                "batches {task: batch} of an IterableDataset would lose rows, because accelerate slices them: pass "
                "accelerator_config={'dispatch_batches': False} in TrainingArguments"
            )
        # The Trainer adds the counts of all processes. So all of them must ask, also about tasks that they lack.
        nothing = {"labels": torch.full((1, 1), -100)}
        counts = {}
        for task in self.multitask_optimizer.tasks:
            own = [batch[task] for batch in batches if task in batch] or [nothing]
            counts[task] = super().get_batch_samples(iter(own), len(own), device)[1]
        return batches, None if None in counts.values() else counts

    def prediction_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        if _is_by_task(inputs):
            if len(inputs) > 1:
                raise ValueError(
                    f"a batch for evaluation has the tasks {list(inputs)}: evaluate one task at a time, with "
                    "eval_dataset={task: dataset}"
                )
            (inputs,) = inputs.values()
        return super().prediction_step(model, inputs, *args, **kwargs)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        of = super().floating_point_ops
        return sum(map(of, inputs.values())) if _is_by_task(inputs) else of(inputs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        optimizer = _inside(self.optimizer)
        if optimizer is not None and "loss" in logs:  # of training; those of an evaluation have eval_loss
            logs |= {f"alpha_{task}": alpha for task, alpha in optimizer.alpha.items()}
            logs |= {f"loss_{task}": loss for task, loss in self._mean_losses.pop().items()}
        super().log(logs, start_time)


class MeanLosses(TrainerCallback):
    """The mean loss of each task since the last log, over the steps that had the task."""

    def __init__(self) -> None:
        self._seen: dict[Task, tuple[float, int]] = {}  # {task: (sum of losses, number of losses)}

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self._seen.clear()

    def on_optimizer_step(self, *args: Any, optimizer: AcceleratedMultiTask, **kwargs: Any) -> None:
        for task, loss in optimizer.statistics["losses"].items():
            if math.isfinite(loss):  # the Trainer leaves the others out of its mean, too
                total, count = self._seen.get(task, (0.0, 0))
                self._seen[task] = total + loss, count + 1

    def pop(self) -> dict[Task, float]:
        """{task: mean}. The next means begin here."""
        means = {task: total / count for task, (total, count) in self._seen.items()}
        self._seen.clear()
        return means


class ByTask:
    """A data collator: sorts the examples of a batch by task, and gives those of each to another collator.

    It returns {task: batch}, with the tasks in the order of their first example. ``TrainingArguments`` need
    ``remove_unused_columns=False``: otherwise the Trainer removes the field before.

    Args:
        collator: makes a batch from a list of examples, such as ``transformers.DataCollatorWithPadding(tokenizer)``.
        field: the field of an example that names its task. The collator gets examples without it.

    Raises:
        ValueError: an example has no such field.
    """

    def __init__(self, collator: Callable[[list[Any]], Mapping[str, Any]], field: str = "task") -> None:
        self.collator = collator
        self.field = field

    def __call__(self, examples: list[Any]) -> dict[Any, Mapping[str, Any]]:
        of_task: dict[Any, list[Any]] = {}
        for example in examples:
            if self.field not in example:
                raise ValueError(
                    f"an example has no {self.field!r}, only {sorted(example)}: pass remove_unused_columns=False in "
                    "TrainingArguments"
                )
            rest = {name: value for name, value in example.items() if name != self.field}
            of_task.setdefault(example[self.field], []).append(rest)
        return {task: self.collator(some) for task, some in of_task.items()}


def _inside(optimizer: Any) -> MultiTask | None:
    """The MultiTask inside what accelerate has put around it, or None."""
    while not isinstance(optimizer, MultiTask):
        if not hasattr(optimizer, "optimizer"):
            return None
        optimizer = optimizer.optimizer
    return optimizer


def _is_by_task(inputs: Any) -> bool:
    """Whether a batch is {task: batch}."""
    return isinstance(inputs, Mapping) and bool(inputs) and all(isinstance(each, Mapping) for each in inputs.values())
