"""A mixin for the Trainer of Hugging Face transformers, and a data collator: a batch has a loss for each task."""

from __future__ import annotations

import functools
import inspect
import math
import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
import transformers
from accelerate.data_loader import DataLoaderDispatcher
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.optim import Optimizer
from transformers.trainer_callback import TrainerCallback

from cats.multitask import MultiTask
from cats.state_dict import ENTRY
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

    Without :meth:`compute_losses`, batches must be {task: batch}, as :class:`ByTask` makes them, and the loss of a task
    is what ``compute_loss`` returns for its batch.

    What stays the Trainer's: the loop, schedules, clipping, bf16 and fp16, checkpoints, logs. Logs of the training have
    ``alpha_TASK`` and ``loss_TASK`` too. ``loss`` is the sum of the tasks' losses, a mean over the steps since the last
    log; ``loss_TASK`` is a mean over those of them that had the task. A checkpoint of a Trainer without this mixin can
    be resumed: the weights begin at the prior then. With several processes the model is not put into
    DistributedDataParallel: the optimizer averages the gradients itself.

    Args:
        multitask: makes the optimizer from the Trainer's own, such as ``functools.partial(cats.CATS, tasks=TASKS)``.
            Not needed if ``optimizers=`` has a :class:`cats.MultiTask`, as in ``optimizers=(cats.CATS(...), None)``.

    Raises:
        ValueError: a setting of the Trainer cannot be used.
        TypeError: ``multitask`` is not as described. Or when a class is defined, the mixin stands behind a Trainer. Or
            when training begins, there is no :class:`cats.MultiTask`.
    """

    model_wrapped: nn.Module  # the Trainer's

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        order = cls.__mro__
        if issubclass(cls, transformers.Trainer) and order.index(transformers.Trainer) < order.index(TrainerMixin):
            raise TypeError(
                f"TrainerMixin must stand before the Trainer: class {cls.__name__}(TrainerMixin, transformers.Trainer)"
            )

    def __init__(self, *args: Any, multitask: Callable[[Optimizer], MultiTask] | None = None, **kwargs: Any) -> None:
        if multitask is not None:
            _check_multitask(multitask)
        self._multitask = multitask
        self._mean_losses = MeanLosses()
        super().__init__(*args, **kwargs)
        self.add_callback(self._mean_losses)
        refused = {
            "DeepSpeed, which has an optimizer of its own": self.is_deepspeed_enabled,
            "FullyShardedDataParallel: use fsdp with version 2": self.is_fsdp_enabled and not self.accelerator.is_fsdp2,
            "DataParallel: start one process per GPU, with torchrun": self.args.n_gpu > 1,
            "torch_empty_cache_steps: leave it out": self.args.torch_empty_cache_steps is not None,
            f"optim={self.args.optim.value}, which steps before the gradients of all tasks are known: take another, "
            "such as adamw_torch": "lomo" in self.args.optim,
            "label_smoothing_factor beside a compute_losses() of yours: leave it out, and smooth there, with "
            "F.cross_entropy(..., label_smoothing=...)": self.args.label_smoothing_factor
            and not self._losses_are_by_task,
        }
        if found := [name for name, is_used in refused.items() if is_used]:
            raise ValueError(f"a Trainer with several tasks does not support {found[0]}")

    @property
    def _losses_are_by_task(self) -> bool:
        """Whether compute_losses() is the one of this class."""
        return getattr(self.compute_losses, "__func__", None) is TrainerMixin.compute_losses

    @property
    def _scaled_for_accumulation(self) -> bool | None:
        """What the class says by ``loss_is_scaled_for_ga``, which the Trainer of older versions does not have."""
        return getattr(self, "loss_is_scaled_for_ga", None)

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

        Here, the loss of each task is that of :meth:`compute_loss`, which is called without ``num_items_in_batch`` and
        returns a mean over its batch. So that the loss of the step is the mean over all items of the task, it is
        multiplied by the share that the batch has in them. Items are labels other than -100, or examples if a batch has
        no tensor ``labels``. They are those in all batches of a step, and in all processes unless
        ``average_tokens_across_devices`` is False.

        Args:
            model: the model, as in :meth:`training_step`.
            inputs: what the data collator returned, on the device.
            num_items_in_batch: how many items all batches of the step have. Of batches {task: batch}:
                {task: number}. None in a method that overrides this one, unless the class says
                ``loss_is_scaled_for_ga = True``.

        Returns:
            {task: loss}; or a pair: the losses of the entries (B, ...), and the task of each entry, (B,) integer; see
            :meth:`cats.MultiTask.backward`. Callables that return the losses will do, too; ``torch_compile`` needs
            them. What the losses of an overriding method are, ``loss_is_scaled_for_ga`` says:

            * None, the default, or False: means over this batch. They are divided by the number of batches of a step.
              Of a pair, the mean of each task's entries is taken.
            * True: shares of a mean over the whole step. They are not divided. Of a pair, the **sum** of each task's
              entries is taken.

            If this method is not overridden, ``loss_is_scaled_for_ga`` says what :meth:`compute_loss` returns. None:
            means over a batch, as above. False: the same, but they are divided by the number of batches. True: shares
            of a mean over the step. Then it gets ``num_items_in_batch``, as in the Trainer.

        Raises:
            ValueError: the batch is not {task: batch}.
        """
        if not _is_by_task(inputs):
            raise ValueError(
                f"a batch has {sorted(map(str, inputs))} instead of {{task: batch}}: use the data collator ByTask, or "
                "override compute_losses()"
            )
        averages = self.args.average_tokens_across_devices
        processes = self.accelerator.num_processes if averages else 1  # the optimizer takes their mean

        def loss_of(task: Task, batch: Mapping[Any, Any]) -> Tensor:
            batch = dict(batch)  # compute_loss() may take the labels out of it, and engines may call it more than once
            if num_items_in_batch is None:
                return self.compute_loss(model, batch)
            total, own = num_items_in_batch[task], self._count_items(batch)
            if self._scaled_for_accumulation or not own:  # the mean over no items would be nan
                return self.compute_loss(model, batch, num_items_in_batch=total)
            return self.compute_loss(model, batch) * (own * processes / total)

        return {task: functools.partial(loss_of, task, batch) for task, batch in inputs.items()}

    def _count_items(self, batch: Mapping[Any, Any]) -> int:
        """The number of labels, as the Trainer counts them, or of examples if there are none."""
        labels = batch.get("shift_labels", batch.get("labels"))
        if not isinstance(labels, Tensor):
            return next((len(each) for each in batch.values() if isinstance(each, Tensor) and each.dim()), 1)
        if self._loss_shifts_labels and "shift_labels" not in batch:
            labels = labels[..., 1:]  # the loss has no use for the first one
        return int(labels.ne(-100).sum())

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
        multitask.register_load_state_dict_pre_hook(_with_entry)
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
        scaled = self._scaled_for_accumulation
        if scaled is None:
            scaled = self._losses_are_by_task and num_items_in_batch is not None
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
        tasks = self.multitask_optimizer.tasks
        if unknown := [task for batch in batches for task in batch if task not in tasks]:
            raise ValueError(
                f"a batch has the task {unknown[0]!r}, but the tasks are {list(tasks)}: with ByTask, examples have the "
                "name of their task, not its index"
            )
        counts = [sum(self._count_items(batch[task]) for batch in batches if task in batch) for task in tasks]
        if self.args.average_tokens_across_devices and self.accelerator.num_processes > 1:
            counts = self.accelerator.reduce(torch.tensor(counts, device=device), "sum").tolist()
        return batches, dict(zip(tasks, counts, strict=True))

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
        field: the field of an example with the name of its task, as the optimizer has it. The collator gets examples
            without it.

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
                    "TrainingArguments, or the Trainer removes it; if another field names the task, pass "
                    "ByTask(collator, field=...)"
                )
            rest = {name: value for name, value in example.items() if name != self.field}
            of_task.setdefault(example[self.field], []).append(rest)
        return {task: self.collator(some) for task, some in of_task.items()}


def _check_multitask(multitask: Any) -> None:
    """Raises TypeError if it is nothing that can be called with the Trainer's optimizer."""
    problem = ""
    if isinstance(multitask, MultiTask):
        problem = "an optimizer: pass optimizers=(optimizer, None) instead"
    elif not callable(multitask):
        problem = repr(multitask)
    else:
        try:
            inspect.signature(multitask).bind("the optimizer")
        except TypeError as error:
            problem = f"{multitask!r}: {error}"
        except ValueError:  # something without a signature, which may be right
            pass
    if problem:
        raise TypeError(
            "multitask= must make the optimizer from that of the Trainer, such as functools.partial(cats.CATS, "
            f"tasks=TASKS), got {problem}"
        )


def _with_entry(optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any] | None:
    """Before load_state_dict(): what a plain optimizer has saved, with the weights that this one has now."""
    if ENTRY in state or any(group.get(ENTRY) for group in state["param_groups"]):
        return None
    warnings.warn(
        "the checkpoint has the state of an optimizer without tasks: it goes on from there, and the weights of the "
        "tasks begin at the prior",
        stacklevel=2,
    )
    return {**state, ENTRY: optimizer.state_dict()[ENTRY]}


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
