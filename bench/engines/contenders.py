"""What is measured: ways to take a step that needs v, the inner product of each task's gradient with ḡ."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor

import cats

from .oracle import Wrong
from .torchjd import Autogram, Autojac
from .workload import Size, Workload

PLAIN, CATS, TORCHJD = "plain", "cats", "torchjd"  # the values are part of the JSON files
QUARTER = 0.25

Step = Callable[[], Sequence[float] | Tensor | None]  # takes a step of training and returns v, or None without v


@dataclass(frozen=True)
class Contender:
    """`start` returns a function that takes one step of training: forward, backward, v, and the step of AdamW.

    steps: if not 1, the function takes so many steps, of which the last finds v. sampled: v is from a sample of the
    rows. core: it has a target, so it is measured with every model and K. variant: it is a form of another contender,
    and measured with thorough sizes only. untied: it needs a model with separate embeddings.
    """

    name: str
    kind: str
    start: Callable[[Workload], Step]
    steps: int = 1
    sampled: bool = False
    core: bool = False
    variant: bool = False
    untied: bool = False

    def size(self, size: Size) -> Size:
        """The model that it trains."""
        return replace(size, model=replace(size.model, embeddings="separate")) if self.untied else size


def plain(work: Workload) -> Step:
    """Plain training, with which everything is compared."""
    return work.plain_step


def packed(work: Workload, optimizer: Any) -> None:
    """One forward pass. The losses of the tokens, and the task of each."""
    with cats.engines.rows(work.source_ids, work.sentence_ids):
        optimizer.backward(work.token_losses(), tasks=work.target_ids)


def packed_lazily(work: Workload, optimizer: Any) -> None:
    """The same as a callable, which can be evaluated twice."""
    optimizer.backward(work.token_losses, tasks=work.target_ids)


def shared(work: Workload, optimizer: Any) -> None:
    """One forward pass. One loss per task."""
    optimizer.backward(dict(enumerate(work.task_losses())))


def separate(work: Workload, optimizer: Any) -> None:
    """A forward pass for each task."""
    optimizer.backward(work.separate_losses())


Form = Callable[[Workload, Any], None]


class Training:
    """Training with cats.CATS. A call takes `inner_steps` steps, the last of which moves α."""

    def __init__(self, work: Workload, engine: str, form: Form, inner_steps: int, **options: Any) -> None:
        self.work, self.form, self.inner_steps = work, form, inner_steps
        self.optimizer = cats.CATS(
            work.base,
            work.tasks,
            inner_steps=inner_steps,
            reduction="mean",
            engine=engine,
            model=work.model,
            **options,
        )

    def __call__(self) -> list[float]:
        for _ in range(self.inner_steps):
            self.optimizer.zero_grad()
            self.form(self.work, self.optimizer)
            self.optimizer.step()
        seen = self.optimizer.statistics
        if seen["skipped"]:
            raise Wrong("a loss or a gradient was not finite")
        return list(seen["dots"].values())

    @property
    def engine(self) -> str:
        """The engine of the last step that moved α."""
        return str(self.optimizer.statistics["engine"])


def training(engine: str, form: Form, inner_steps: int, **options: Any) -> Callable[[Workload], Training]:
    return lambda work: Training(work, engine, form, inner_steps, **options)


def engine(name: str, form: Form, **options: Any) -> Callable[[Workload], Training]:
    """Outer steps only, by one engine."""
    return training(name, form, 1, **options)


AUTO, ONE_PASS, SAMPLED, SEPARATE = "auto", "one_pass", "one_pass, rows=0.25", "per_task, one forward each"

REFERENCE = Contender(PLAIN, PLAIN, plain, core=True)
CONTENDERS = (
    Contender(AUTO, CATS, engine("auto", packed)),
    Contender(ONE_PASS, CATS, engine("one_pass", packed), core=True),
    Contender(SAMPLED, CATS, engine("one_pass", packed, rows=QUARTER), sampled=True, core=True),
    Contender(SEPARATE, CATS, engine("per_task", separate), core=True),
    Contender("per_task, shared graph", CATS, engine("per_task", shared)),
    Contender("two_pass, one forward each", CATS, engine("two_pass", separate)),
    Contender("two_pass, shared graph", CATS, engine("two_pass", shared), variant=True),
    Contender("forward_mode", CATS, engine("forward_mode", packed_lazily)),
    Contender("TorchJD autojac", TORCHJD, partial(Autojac, chunk=1)),
    Contender("TorchJD autojac, batched", TORCHJD, partial(Autojac, chunk=None), variant=True),
    Contender("TorchJD autogram, untied", TORCHJD, Autogram, variant=True, untied=True),
)

DEFAULT_PERIOD = cats.weighting.cats.INNER_STEPS
TRAININGS = tuple(
    Contender(f"auto, m={m}", CATS, training(AUTO, packed, m), steps=m) for m in (2, DEFAULT_PERIOD, 10)
)  # whole training; with m=1, all steps are outer steps
BY_NAME = {c.name: c for c in (REFERENCE, *CONTENDERS, *TRAININGS)}
