"""Measures the constants of the cost model and whole steps, with 1, 2 and 4 processes that exchange data with gloo."""

from __future__ import annotations

import dataclasses
import faulthandler
import functools
import json
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch import multiprocessing as mp
from torch.distributed.fsdp import fully_shard

import cats
from bench.common.machine import cores
from bench.common.measure import Summary, summary
from cats.nmt.model.loss import token_losses
from cats.nmt.model.transformer import Transformer

from .model import STORED
from .records import AllReduce, MeasuredStep, Moved, Pass, ScalingResults

Call = Callable[[], object]
# What is measured: ("step" or "sharded step", method), ("all_reduce", bytes), ("pass", tokens) or ("memory", bytes).
Key = tuple[str, Any]

ENGINES = ("per_task", "two_pass", "forward_mode", "one_pass")
FOUND = "found.json"
REPEATED_BYTES, MOST_REPEATS = 1 << 20, 20
MEMORY_BYTES = 1 << 27  # of each of two tensors, so that no cache holds them
LENGTH = 16  # tokens of a sentence, on each side
NEVER = 10**9  # an outer step after so many steps
LONGEST = 3600  # seconds; then processes that hang end, and say where


@dataclass(frozen=True)
class Settings:
    """What is measured. sentences: of each task, in one process. rounds: samples of everything."""

    processes: tuple[int, ...] = (1, 2, 4)
    tasks: int = 8
    sentences: int = 4
    width: int = 256
    layers: int = 2
    vocabulary: int = 2000
    rounds: int = 5
    sizes: tuple[int, ...] = (1 << 10, 1 << 16, 1 << 20, 1 << 22)  # bytes of the all-reduces, besides the gradient's


class Process:
    """One process: the model and a batch with the same number of sentences for every task.

    Args:
        sharded: whether FSDP2 shards the model, layer by layer.
    """

    def __init__(self, settings: Settings, *, sharded: bool = False) -> None:
        torch.manual_seed(0)
        self.settings = settings
        self.model = Transformer(
            settings.vocabulary, settings.width, 4, 4 * settings.width, settings.layers, settings.layers, 0.0
        )
        self.size = sum(p.numel() for p in self.model.parameters())
        self.sharded = sharded
        if sharded:
            for layer in (*self.model.encoder, *self.model.decoder, self.model):
                fully_shard(layer)
        self.params = list(self.model.parameters())
        self.tasks = list(range(settings.tasks))
        rank = dist.get_rank() if dist.is_initialized() else 0
        torch.manual_seed(1 + rank)
        self.batch = self.sentences(settings.tasks * settings.sentences)
        self.ids = torch.tensor(self.tasks).repeat_interleave(settings.sentences)  # the task of every sentence

    def sentences(self, count: int) -> Tensor:
        """Random ids: source and target, (2, count, LENGTH)."""
        return torch.randint(1, self.settings.vocabulary, (2, count, LENGTH))

    def loss(self, batch: Tensor) -> Tensor:
        """The mean loss per token."""
        return self.token_losses(batch).mean()

    def token_losses(self, batch: Tensor) -> Tensor:
        """The loss of every target token."""
        source, target = batch
        logits = self.model(source, target).flatten(0, 1)  # through forward(), to which FSDP2 adds its hooks
        return token_losses(logits, target.flatten(), 0.0)[0]

    def losses(self) -> dict[Any, Callable[[], Tensor]]:
        parts = self.batch.split(self.settings.sentences, dim=1)
        return {task: functools.partial(self.loss, part) for task, part in zip(self.tasks, parts, strict=True)}

    def mixed_loss(self) -> Tensor:
        """(sentences, LENGTH): the losses of all target tokens, from one forward pass."""
        return self.token_losses(self.batch).view(-1, LENGTH)

    def backward(self, sentences: int) -> None:
        """A plain forward and backward pass over a part of the batch."""
        self.loss(self.batch[:, :sentences]).backward()
        for p in self.params:
            p.grad = None

    def optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.params, lr=1e-4, fused=True)

    # ---- the methods: each gives a function that makes one step

    def plain(self) -> Call:
        """Plain data-parallel training: the mean loss, one all-reduce of the flat gradient (or FSDP2), AdamW."""
        base = self.optimizer()

        def step() -> None:
            base.zero_grad()
            self.loss(self.batch).backward()
            if dist.is_initialized() and not self.sharded:
                grads = [p.grad for p in self.params if p.grad is not None]
                flat = nn.utils.parameters_to_vector(grads)
                dist.all_reduce(flat)
                nn.utils.vector_to_parameters(flat.div_(dist.get_world_size()), grads)
            base.step()

        return step

    def inner(self) -> Call:
        """A step of CATS that does not update α."""
        return self._cats(NEVER, "auto", lambda optimizer: optimizer.backward(self.mixed_loss, tasks=self.ids))

    def outer(self, engine: str) -> Call:
        """A step of CATS that updates α."""
        if engine in ("one_pass", "forward_mode"):  # these take all tasks together
            return self._cats(1, engine, lambda optimizer: optimizer.backward(self.mixed_loss, tasks=self.ids))
        return self._cats(1, engine, lambda optimizer: optimizer.backward(self.losses()))

    def _cats(self, inner_steps: int, engine: str, backward: Callable[[cats.CATS], None]) -> Call:
        optimizer = cats.CATS(
            self.optimizer(), self.tasks, inner_steps=inner_steps, engine=engine, model=self.model, reduction="mean"
        )

        def step() -> None:
            optimizer.zero_grad()
            backward(optimizer)
            optimizer.step()

        return step

    def gram(self) -> Call:
        """What PCGrad and its relatives need: the Gram matrix of K reduced gradients. Here the weights stay equal."""
        base = self.optimizer()
        sizes = [p.numel() for p in self.params]
        gradients = torch.empty(len(self.tasks), self.size)

        def step() -> None:
            for row, loss in zip(gradients, self.losses().values(), strict=True):
                torch.cat([g.flatten() for g in torch.autograd.grad(loss(), self.params)], out=row)
            if dist.is_initialized():
                dist.all_reduce(gradients)
            weights = torch.softmax(0 * (gradients @ gradients.T).diagonal(), 0)
            for p, part in zip(self.params, (weights @ gradients).split(sizes), strict=True):
                p.grad = part.view_as(p)
            base.step()

        return step

    def methods(self) -> dict[str, Call]:
        """{method: a function that makes one step}."""
        if self.sharded:
            return {"plain": self.plain(), "per_task": self.outer("per_task")}
        engines = {engine: self.outer(engine) for engine in ENGINES}
        return {"plain": self.plain(), "inner": self.inner(), **engines, "Gram, K all-reduces": self.gram()}


def seconds_of(call: Call, repeats: int) -> float:
    """The seconds of a call in all processes: from when all are ready until all have finished."""
    if dist.is_initialized():
        dist.barrier()
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    if dist.is_initialized():
        dist.barrier()
    return (time.perf_counter() - start) / repeats


def interleaved(calls: dict[Key, Call], rounds: int) -> list[tuple[Key, Summary]]:
    """One sample of each call per round, after two rounds that do not count. The order rotates."""
    samples: dict[Key, list[float]] = {key: [] for key in calls}
    keys = list(calls)
    for n in range(rounds + 2):
        shift = n % len(keys)
        for key in keys[shift:] + keys[:shift]:
            # Small all-reduces are repeated, because the barriers around them take as long as they do.
            repeats = max(1, REPEATED_BYTES // int(key[1])) if key[0] == "all_reduce" else 1
            taken = seconds_of(calls[key], min(repeats, MOST_REPEATS))
            if n >= 2:
                samples[key].append(taken)
    return [(key, summary(values)) for key, values in samples.items()]


def work(rank: int, folder: Path, processes: int, settings: Settings) -> None:
    """What each process runs. The first one writes what it has measured to a file in the folder."""
    faulthandler.dump_traceback_later(LONGEST, exit=True)
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "FSDP2-wrapped module", UserWarning)  # it concerns in-place changes of logits
    if processes > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=processes)
    replica = Process(settings)
    calls: dict[Key, Call] = {("step", name): call for name, call in replica.methods().items()}
    if processes > 1:
        calls |= {("sharded step", name): call for name, call in Process(settings, sharded=True).methods().items()}
    for part in 1, settings.tasks // 2, settings.tasks:
        sentences = part * settings.sentences
        calls["pass", sentences * LENGTH] = functools.partial(replica.backward, sentences)
    a, b = torch.zeros(2, MEMORY_BYTES // STORED)
    calls["memory", 3 * MEMORY_BYTES] = functools.partial(a.add_, b)
    if processes > 1:
        for size in (*settings.sizes, STORED * replica.size):
            calls["all_reduce", size] = functools.partial(dist.all_reduce, torch.zeros(size // STORED))
    found = interleaved(calls, settings.rounds)
    if rank == 0:
        lines = [[*key, dataclasses.asdict(seconds)] for key, seconds in found]
        Path(folder, FOUND).write_text(json.dumps([replica.size, lines]))
    if processes > 1:
        dist.destroy_process_group()


def run(settings: Settings) -> Iterator[ScalingResults]:
    """Measures everything, one number of processes after the other.

    Yields:
        The results so far, after each number of processes.
    """
    start = time.perf_counter()
    found = ScalingResults(
        parameters=0,
        layers=2 * settings.layers,
        tokens=settings.tasks * settings.sentences * LENGTH,
        tasks=settings.tasks,
        threads=1,
        cores=cores(),
    )
    for processes in settings.processes:
        with tempfile.TemporaryDirectory() as folder:
            mp.spawn(work, (Path(folder), processes, settings), nprocs=processes)
            size, lines = json.loads(Path(folder, FOUND).read_text())
        for kind, key, values in lines:
            seconds = Summary(**values)
            if kind.endswith("step"):
                found.steps.append(MeasuredStep(processes, key, kind == "sharded step", seconds))
            elif kind == "all_reduce":
                found.all_reduces.append(AllReduce(processes, key, seconds))
            elif kind == "pass":
                found.passes.append(Pass(processes, key, seconds))
            else:
                found.memory.append(Moved(processes, key, seconds))
        yield dataclasses.replace(found, parameters=size, seconds=time.perf_counter() - start)
