"""The loss landscape of a run: the curvature of each task, and how the tasks' gradients agree, at several updates.

It is measured at kept checkpoints by `analyse`, or during the training with `train.analyse_every`. landscape.jsonl in
the run directory has a line for each time; `LandscapeRecord` is such a line.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import cats
from cats.nmt.config.checks import replace_settings
from cats.nmt.data.batch import Batch
from cats.nmt.data.dataset import TokenDataset
from cats.nmt.errors import UserError, nearest, unknown
from cats.nmt.files import atomic_write, locked, read_file
from cats.nmt.model.loss import smoothed_losses
from cats.nmt.model.transformer import Transformer
from cats.nmt.screen import doing, tell
from cats.nmt.training.device import default_device, set_threads
from cats.nmt.training.run import RunDirectory
from cats.nmt.training.training_data import load_training_data

ALL = "all"  # the name of all kinds of layer together
TABLES = ("eigenvalues", "largest", "smallest", "traces", "trace_errors", "norms")  # {task: number} of a record
_DIGITS = 7  # of the numbers in the file; float32 has no more


@dataclass(frozen=True)
class LandscapeSettings:
    """What the numbers depend on, besides the model and the tasks.

    Attributes:
        split: the text that the losses are of: valid or train.
        batches: batches of each task. The loss is the mean over all of their tokens.
        batch_tokens: about as many target tokens each batch has, if the split has so many.
        seed: chooses the pairs, and the random vectors.
        step_size: learning rate of the step whose `interference` is measured.
        label_smoothing: that of the training, since its loss is measured.
    """

    split: str = "valid"
    batches: int = 1
    batch_tokens: int = 500
    seed: int = 1
    step_size: float = 0.01
    label_smoothing: float = 0.0


@dataclass(frozen=True)
class KindSimilarity:
    """The similarity of the gradients by one kind of layer, (K, K) each; see ``cats.curvature.Similarity``."""

    cosine: np.ndarray
    magnitude: np.ndarray


@dataclass(frozen=True)
class LandscapeRecord:
    """A line of landscape.jsonl. The names of the fields are the keys in the file.

    The losses are those of the training, with label smoothing, but without dropout; in nats per token.

    Attributes:
        step: updates so far.
        checkpoint: the checkpoint that was analysed; "" during the training.
        model: a checksum of the parameters.
        settings: see ``LandscapeSettings``.
        tasks: the K tasks, in the order of the matrices.
        tokens: {task: target tokens that its loss is the mean of}.
        eigenvalues: {task: the Hessian's eigenvalue with the largest absolute value, with its sign}.
        largest, smallest: {task: the most positive eigenvalue, and the most negative one}. The errors of all three are
            at most 2 % of the first, as a rule; see ``cats.curvature.eigenvalues``.
        traces, trace_errors: {task: trace of the Hessian, and its standard error}.
        norms: {task: norm of its gradient}.
        interference: (K, K); row i, column j: the change of the loss of task i by a step along the gradient of task j.
        kinds: {kind of layer: the similarity of the gradients there}, see ``kind_of``; "all" for the whole model.
    """

    step: int
    checkpoint: str
    model: str
    settings: LandscapeSettings
    tasks: list[str]
    tokens: dict[str, int]
    eigenvalues: dict[str, float]
    largest: dict[str, float]
    smallest: dict[str, float]
    traces: dict[str, float]
    trace_errors: dict[str, float]
    norms: dict[str, float]
    interference: np.ndarray
    kinds: dict[str, KindSimilarity]

    @property
    def key(self) -> tuple[Any, ...]:
        """What the numbers depend on."""
        return self.model, self.settings, tuple(self.tasks)


def kind_of(name: str) -> str:
    """The kind of layer of a parameter of ``Transformer``, as the paper calls them.

    E. in the encoder, D. in the decoder: SA self-attention, EA attention to the encoder, FC feed-forward, LN norms.
    "Emb" are the embeddings, with the output layer. "CLSR" is what ``cats.nmt.model.clsr`` adds.
    """
    first, *rest = name.split(".")
    if first in ("embedding", "source_embedding", "output"):
        return "Emb"
    part = next(each for each in rest if not each.isdecimal()) if first in ("encoder", "decoder") else first
    if part == "routing" or part.endswith("gate"):
        return "CLSR"
    side = "E" if first in ("encoder", "encoder_norm", "source_norm") else "D"
    kinds = {"attention": "SA", "cross": "EA", "ffn": "FC"}
    return f"{side}.LN" if part.endswith("norm") else f"{side}.{kinds[part]}"


class Landscape:
    """The losses of tasks on batches that are always the same.

    Args:
        dataset: the pairs of the split. Tasks without pairs are left out.
        tasks: only these; empty: all.

    Raises:
        UserError: there are no pairs, or a task is unknown.
    """

    def __init__(self, dataset: TokenDataset, settings: LandscapeSettings, tasks: Sequence[str] = ()) -> None:
        known = [task for task, shard in dataset.shards.items() if len(shard)]
        if not known:
            raise UserError(f"the corpus has no {settings.split} pairs to measure the landscape on")
        if bad := [task for task in tasks if task not in known]:
            raise unknown("task", bad[0], known)
        self.settings, self.tasks = settings, [task for task in known if not tasks or task in tasks]
        self.batches = {task: self._batches(dataset, task) for task in self.tasks}

    def _batches(self, dataset: TokenDataset, task: str) -> list[Batch]:
        settings, lengths = self.settings, dataset.lengths()[task][:, 1]
        random = np.random.default_rng([settings.seed, *task.encode()])  # the same whatever other tasks there are
        order = random.permutation(len(lengths))
        before = lengths[order].cumsum() - lengths[order]  # tokens of the pairs before
        numbers = before // settings.batch_tokens
        chosen = [order[numbers == number] for number in range(min(settings.batches, int(numbers[-1]) + 1))]
        return [dataset.batch({task: pairs}) for pairs in chosen if len(pairs)]

    def measure(self, model: Transformer, step: int, checkpoint: str = "") -> LandscapeRecord:
        """The record of a model. It changes nothing: neither the model, nor a random state, nor ``p.grad``.

        Raises:
            cats.NonFiniteError: a loss or a derivative is not finite.
        """
        settings = self.settings
        tokens = {task: sum(len(batch.target_cells) for batch in parts) for task, parts in self.batches.items()}
        losses = {
            task: [self._loss(model, batch, tokens[task]) for batch in parts] for task, parts in self.batches.items()
        }
        similar = cats.curvature.similarities(losses, model, group_of=kind_of)
        ends = {task: cats.curvature.eigenvalues(loss, model, seed=settings.seed) for task, loss in losses.items()}
        traces = {task: cats.curvature.trace(loss, model, seed=settings.seed) for task, loss in losses.items()}
        interference = cats.curvature.interference(losses, model, lr=settings.step_size)
        return LandscapeRecord(
            step=step,
            checkpoint=checkpoint,
            model=model_digest(model),
            settings=settings,
            tasks=self.tasks,
            tokens=tokens,
            eigenvalues={task: each.top for task, each in ends.items()},
            largest={task: each.largest for task, each in ends.items()},
            smallest={task: each.smallest for task, each in ends.items()},
            traces={task: each.value for task, each in traces.items()},
            trace_errors={task: each.error for task, each in traces.items()},
            norms=dict(zip(self.tasks, similar[ALL].norms.tolist(), strict=True)),
            interference=interference.numpy(),
            kinds={kind: KindSimilarity(each.cosine.numpy(), each.magnitude.numpy()) for kind, each in similar.items()},
        )

    def _loss(self, model: Transformer, batch: Batch, tokens: int) -> Any:
        """A function that returns the sum of the token losses of a batch, divided by `tokens`."""

        def loss() -> Tensor:
            logits = model.logits(batch.source, batch.target_in, batch.source_cells, batch.target_cells)
            targets = batch.target_out.flatten()[batch.target_cells]
            return smoothed_losses(logits.float(), targets, self.settings.label_smoothing).sum() / tokens

        return loss


def analyse(
    run: Path,
    checkpoints: Sequence[str] = (),
    *,
    split: str = "valid",
    batches: int = 1,
    batch_tokens: int = 500,
    seed: int = 1,
    tasks: Sequence[str] = (),
    data: str | None = None,
    quiet: bool = False,
) -> list[LandscapeRecord]:
    """Measures the landscape at checkpoints of a run, and adds them to its landscape.jsonl, each when it is done.

    What is in the file already, for the same parameters and settings, is not measured again.

    Args:
        checkpoints: names, such as best or step-300; none: all that the run kept, and its best and its last one.
        split, batches, batch_tokens, seed: see ``LandscapeSettings``.
        tasks: only these; none: all.
        data: the folder of the run's corpus, if it was moved.
        quiet: say nothing about the progress.

    Returns:
        The records of these checkpoints, by step.

    Raises:
        UserError: the run, a checkpoint or the corpus is unusable, a task is unknown, the split has no pairs, or the
            parameters of a checkpoint are not finite.
    """
    if split not in ("valid", "train"):
        raise UserError(f"unknown split '{split}'{nearest(split, ('valid', 'train'))}; give valid or train")
    for name, number in {"batches": batches, "batch tokens": batch_tokens}.items():
        if not 1 <= number <= 10**7:
            raise UserError(f"the number of {name} must be at least 1 and at most 10,000,000, not {number}")
    if not 0 <= seed < 2**32:
        raise UserError(f"the seed must be between 0 and 2**32 - 1, not {seed}")
    directory = RunDirectory(run)
    config = directory.read_config()
    if directory.is_exported:
        raise UserError(f"{run} is an exported model, which does not say of which update it is; analyse its run")
    names = list(dict.fromkeys(checkpoints)) or [path.stem for path in directory.kept_checkpoints()]
    names += [] if checkpoints else [name for name in ("best", "last") if directory.checkpoint(name).exists()]
    first = directory.load_model(names[0] if names else "best", quiet=quiet)
    if data is not None:
        config = replace_settings(config, {"data.path": data})
    set_threads(config.train.threads, config.model.d_model)
    say = (lambda text: None) if quiet else tell
    doing(f"reading the {split} text of {run}", quiet=quiet)
    found = load_training_data(config, directory, default_device(), started_with=first.origin, quiet=True)
    settings = LandscapeSettings(split, batches, batch_tokens, seed, label_smoothing=config.train.label_smoothing)
    landscape = Landscape(found.training if split == "train" else found.validation, settings, tasks)
    done = {record.key: record for record in read_landscape(directory.landscape_file)}
    result: dict[Any, LandscapeRecord] = {}
    for i, name in enumerate(names):
        trained = directory.load_model(name, quiet=True) if i else first
        key = model_digest(trained.model), settings, tuple(landscape.tasks)
        if key in result:
            continue
        if trained.step is None:
            raise UserError(
                f"{directory.checkpoint(name)} does not say of which update it is; choose another checkpoint"
            )
        if key in done:
            say(f"{name}: measured before")
            result[key] = done[key]
            continue
        say(f"{name}: measuring {len(landscape.tasks)} tasks ({i + 1} of {len(names)} checkpoints)")
        try:
            record = landscape.measure(trained.model, trained.step, name)
        except cats.NonFiniteError as error:
            raise UserError(f"{directory.checkpoint(name)}: {error}; choose another checkpoint") from None
        except torch.OutOfMemoryError:
            raise UserError(f"{run}: the GPU has too little memory for this; lower --batch-tokens") from None
        add_record(directory, record)
        result[key] = record
    return sorted(result.values(), key=lambda record: record.step)


def read_landscape(path: Path) -> list[LandscapeRecord]:
    """The records of landscape.jsonl, by step; empty if there is no such file.

    Raises:
        UserError: a line is damaged.
    """
    if not path.exists():
        return []
    records = []
    for number, line in enumerate(read_file(path).splitlines(), start=1):
        try:
            record = _record(json.loads(line))
            hash(record.key)  # lists among the settings have no hash
            records.append(record)
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError, RecursionError):
            raise UserError(f"{path}, line {number}: damaged; remove the line") from None
    return records


def add_record(run: RunDirectory, record: LandscapeRecord) -> None:
    """Adds a line to landscape.jsonl, in place of one of the same model, settings and tasks.

    Raises:
        UserError: the file is damaged or cannot be written.
    """
    with locked(run.checkpoints, lambda: None):  # the training and `cats analyse` may both write
        kept = [old for old in read_landscape(run.landscape_file) if old.key != record.key]
        _write(run.landscape_file, sorted([*kept, record], key=lambda each: each.step))


def drop_records_after(run: RunDirectory, step: int) -> None:
    """Removes the lines of later updates: a resumed training makes these updates again."""
    with locked(run.checkpoints, lambda: None):
        records = read_landscape(run.landscape_file)
        kept = [record for record in records if record.step <= step]
        if len(kept) < len(records):
            _write(run.landscape_file, kept)


def model_digest(model: nn.Module) -> str:
    """A checksum of the parameters."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def _write(path: Path, records: Sequence[LandscapeRecord]) -> None:
    lines = [json.dumps(_plain(dataclasses.asdict(record)), allow_nan=False) for record in records]
    atomic_write(path, "".join(f"{line}\n" for line in lines))


def _plain(value: Any) -> Any:
    """`value` as JSON has it: lists for arrays, null for nan, and not more digits than are right."""
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | np.ndarray):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None
    return value


def _record(values: Mapping[str, Any]) -> LandscapeRecord:
    """The record of a line. KeyError, TypeError, ValueError, OverflowError, AttributeError: it has another form."""
    tasks = [str(task) for task in values["tasks"]]

    def table(name: str) -> dict[str, float]:
        return {task: float("nan" if values[name][task] is None else values[name][task]) for task in tasks}

    def matrix(rows: Any) -> np.ndarray:
        array = np.array(rows, dtype=np.float64)  # None becomes nan
        if array.shape != (len(tasks), len(tasks)):
            raise ValueError("a matrix has another shape")
        return array

    if ALL not in values["kinds"]:
        raise ValueError("the whole model is missing")
    return LandscapeRecord(
        step=int(values["step"]),
        checkpoint=str(values["checkpoint"]),
        model=str(values["model"]),
        settings=LandscapeSettings(**values["settings"]),
        tasks=tasks,
        tokens={task: int(values["tokens"][task]) for task in tasks},
        **{name: table(name) for name in TABLES},
        interference=matrix(values["interference"]),
        kinds={
            str(kind): KindSimilarity(matrix(each["cosine"]), matrix(each["magnitude"]))
            for kind, each in values["kinds"].items()
        },
    )
