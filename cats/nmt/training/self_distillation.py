"""The teachers of the method lssd, and the loss that is mixed with theirs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from cats.nmt.config.schema import Config
from cats.nmt.data.dataset import TokenDataset
from cats.nmt.errors import UserError
from cats.nmt.methods.lssd import LSSD
from cats.nmt.methods.options import build
from cats.nmt.model.transformer import Transformer
from cats.nmt.training.batches import Part
from cats.nmt.training.losses import autocast
from cats.nmt.training.sharding import is_sharded
from cats.nmt.training.trained_model import build_model
from cats.nmt.training.training_data import TrainingData


def self_distillation(config: Config, data: TrainingData, device: torch.device) -> SelfDistillation | None:
    """That of a run with method.name = lssd; None with another method.

    Raises:
        UserError: an option is wrong, or the method does not fit the other settings or the corpus.
    """
    if config.method.name != "lssd":
        return None
    if is_sharded(config.train):
        raise UserError("method.name = lssd needs train.distributed = replicas")
    if without := data.without_validation:
        raise UserError(f"method.name = lssd needs validation pairs of {', '.join(without)}, and {data.why_without}")
    teacher = build_model(config.model, data.tokenizer).to(device).eval()
    return SelfDistillation(build("lssd", config.method.options), teacher, data.training, config.train.precision)


class SelfDistillation:
    """Keeps the parameters of the teachers, and mixes the loss of the tasks that have one now with its distillation.

    The parameters are in main memory, once for all tasks with the same teacher. They are copied into one model on the
    device. In a batch with several teachers they take turns, which costs a copy of the parameters for each.

    Args:
        teacher: a model of the same shape as the one that is trained, in evaluation mode. Its parameters are replaced.
        dataset: makes the batches of the teachers. precision: `train.precision`, also for them.
    """

    def __init__(self, rule: LSSD, teacher: Transformer, dataset: TokenDataset, precision: str) -> None:
        self.rule, self.model, self.dataset, self.precision = rule, teacher, dataset, precision
        self.parameters: dict[int, dict[str, Tensor]] = {}  # {updates: parameters of the model then}
        self.loaded: int | None = None  # whose parameters the model has

    def after_validation(self, step: int, nll: Mapping[str, float], model: Transformer) -> None:
        """Notes a validation, and forgets the models that are no longer a teacher.

        Args:
            step: updates so far. nll: {task: validation nll}, the same in all processes.
            model: the model that was validated.
        """
        if self.rule.after_validation(step, nll):
            self.parameters[step] = {n: p.detach().to("cpu", copy=True) for n, p in model.named_parameters()}
        best = set(self.rule.step.values())
        self.parameters = {step: parameters for step, parameters in self.parameters.items() if step in best}

    def mixed(self, losses: Tensor, logits: Tensor, part: Part, tokens: Sequence[int]) -> Tensor:
        """The losses of all tokens of a batch, (tokens,), mixed as ``LSSD`` says for the tasks that have a teacher now.

        Args:
            losses: (tokens,), without distillation. logits: (tokens, V).
            part: the pairs of each task of the batch; their tokens follow in this order.
            tokens: the number of target tokens of each task.
        """
        indices = part.indices
        teachers = {task: self.rule.teacher(task) for task in indices}
        if not any(step is not None for step in teachers.values()):
            return losses
        places = {task: n for n, task in enumerate(indices)}
        own, parts = logits.split(list(tokens)), list(losses.split(list(tokens)))
        for step in sorted({step for step in teachers.values() if step is not None}):
            taught = [task for task in indices if teachers[task] == step]
            probabilities = self._probabilities(step, Part({task: indices[task] for task in taught}, part.step))
            for task, p in zip(taught, probabilities.split([tokens[places[t]] for t in taught]), strict=True):
                n = places[task]
                distillation = -torch.linalg.vecdot(p, own[n].log_softmax(-1))
                parts[n] = (parts[n] + self.rule.weight * distillation) / 2
        return torch.cat(parts)

    @torch.no_grad()
    def _probabilities(self, step: int, part: Part) -> Tensor:
        """What a teacher expects for each target token, (tokens, V) float32."""
        if self.loaded != step:
            for name, p in self.model.named_parameters():
                p.copy_(self.parameters[step][name])
            self.loaded = step
        batch = self.dataset.batch(part.indices, part.step)
        with autocast(self.precision, self.dataset.device):
            logits = self.model.logits(batch.source, batch.target_in, batch.source_cells, batch.target_cells)
        return logits.float().softmax(-1)

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs to go on exactly, the teachers included."""
        rule = self.rule
        return {"best": rule.best, "step": rule.step, "worse": rule.worse, "parameters": self.parameters}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        rule = self.rule
        rule.best, rule.step, rule.worse = (dict(state[name]) for name in ("best", "step", "worse"))
        self.parameters, self.loaded = dict(state["parameters"]), None
