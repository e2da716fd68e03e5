"""The cases of each suite, the least work that they need, and their tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from bench.common.roofline import Work

STREAMING = ("combine", "combine_dots", "dots", "combine_adamw_")  # memory-bound
OPERATORS = (*STREAMING, "gram")
# Methods whose weights depend on the Gram matrix read the gradients twice: first gram, then combine.
TWO_PASSES = "gram, combine"
GRADDROP = "graddrop"
ROW_DOTS = "row_dots"  # of two matrices instead of gradients: bench/operators/rows.py

ADAMW: dict[str, Any] = {"lr": 1e-3, "beta1": 0.9, "beta2": 0.98, "eps": 1e-8, "weight_decay": 0.01}


def transformer_base() -> list[list[int]]:
    """Parameter shapes of Transformer-base (Vaswani et al., 2017, table 3) with one tied embedding matrix."""
    layers, width, ffn, vocabulary = 6, 512, 2048, 32_000
    attention = [[width, width], [width]] * 4  # query, key, value, output
    feed_forward = [[ffn, width], [ffn], [width, ffn], [width]]
    norm = [[width], [width]]
    encoder = [*attention, *norm, *feed_forward, *norm]
    decoder = [*attention, *norm, *attention, *norm, *feed_forward, *norm]
    return [[vocabulary, width], *encoder * layers, *decoder * layers]


@dataclass(frozen=True)
class Workload:
    """K gradients with these shapes and dtype, and the operators to measure on them.

    compiled: the operators for which a compiled baseline is measured too.
    """

    tasks: int
    shapes: Sequence[Sequence[int]]
    dtype: torch.dtype = torch.float32
    operators: tuple[str, ...] = OPERATORS
    compiled: tuple[str, ...] = ()
    layout: str = "flat"

    @property
    def elements(self) -> int:
        return sum(map(math.prod, self.shapes))

    @property
    def name(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return f"K={self.tasks} P={self.elements:.3g} {dtype} {self.layout}".replace("e+0", "e")


@dataclass(frozen=True)
class RowsWorkload:
    """Two matrices of `count` rows. The rows of a task are neighbours, or the tasks are `mixed`."""

    tasks: int
    count: int
    width: int
    dtype: torch.dtype = torch.float32
    mixed: bool = False
    operators: tuple[str, ...] = (ROW_DOTS,)
    compiled: tuple[str, ...] = (ROW_DOTS,)

    @property
    def layout(self) -> str:
        return "mixed rows" if self.mixed else "rows"

    @property
    def elements(self) -> int:
        return self.count * self.width

    @property
    def name(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return f"K={self.tasks} {self.count}x{self.width} {dtype} {self.layout}"


def flat(tasks: int, elements: float, **options: Any) -> Workload:
    """A workload of one parameter; options: other fields of Workload."""
    return Workload(tasks, [[int(elements)]], **options)


Suite = Sequence[Workload | RowsWorkload]


def quick() -> Suite:
    """Takes two minutes on two cores."""
    return [
        flat(8, 4e6, operators=(*OPERATORS, GRADDROP, TWO_PASSES), compiled=("combine_dots",)),
        flat(2, 1e7, operators=("combine_dots",)),
        flat(32, 1e6, operators=("combine_dots", "gram")),
        flat(8, 4e6, dtype=torch.bfloat16, operators=("combine_dots",)),
        RowsWorkload(8, 4096, 1024),
    ]


def cpu() -> Suite:
    """Every operator, several K and P, and every dtype. Takes ten minutes on two cores."""
    return [
        flat(2, 1e7, operators=(*OPERATORS, GRADDROP), compiled=(*STREAMING, GRADDROP)),
        flat(8, 1e7, operators=(*OPERATORS, GRADDROP, TWO_PASSES), compiled=(*OPERATORS, GRADDROP)),
        flat(16, 1e7, operators=("combine_dots", "gram")),
        flat(32, 1e7, compiled=("combine_dots",)),
        flat(8, 1e5),
        flat(8, 1e6),
        flat(128, 1e6, operators=("combine_dots", "gram")),
        flat(
            8,
            1e7,
            dtype=torch.bfloat16,
            operators=("combine", "combine_dots", "combine_adamw_", GRADDROP),
            compiled=("combine_dots",),
        ),
        flat(8, 1e7, dtype=torch.float16, operators=("combine_dots",)),
        flat(8, 1e7, dtype=torch.float64, operators=("combine_dots", "gram")),
        Workload(
            4,
            transformer_base(),
            operators=("combine_dots", "combine_adamw_", "gram"),
            compiled=("combine_dots",),
            layout="transformer-base",
        ),
        RowsWorkload(8, 512, 128),
        RowsWorkload(8, 4096, 512),
        RowsWorkload(92, 4096, 2048),
        RowsWorkload(92, 4096, 2048, mixed=True),
        RowsWorkload(8, 1024, 8192, dtype=torch.bfloat16),
    ]


def gpu() -> Suite:
    """Gradients of 1 GiB or more, so that no cache can keep them between calls."""
    suite: list[Workload | RowsWorkload] = []
    for dtype in (torch.float32, torch.bfloat16):
        for tasks in (2, 8, 32, 64, 92, 128):
            elements = 2**30 // (tasks * dtype.itemsize)
            operators = (*OPERATORS, GRADDROP, TWO_PASSES) if tasks == 8 else OPERATORS
            compiled: tuple[str, ...] = ()
            if tasks <= 8:
                compiled = OPERATORS if dtype is torch.float32 else ("combine", "combine_dots")
            elif tasks == 32 and dtype is torch.float32:
                compiled = ("combine", "combine_dots")
            suite.append(flat(tasks, elements, dtype=dtype, operators=operators, compiled=compiled))
        suite.append(Workload(8, transformer_base(), dtype, layout="transformer-base"))
        for width in (512, 4096):
            count = 2**30 // (2 * width * dtype.itemsize)
            suite += [RowsWorkload(8, count, width, dtype), RowsWorkload(92, count, width, dtype, mixed=True)]
    suite += [flat(8, elements, operators=STREAMING) for elements in (2**26, 2**27)]  # for the linear fit
    return suite


def work(operator: str, tasks: int, elements: int, dtype: torch.dtype) -> Work:
    """The least work of an operator on K gradients of P elements.

    Moments are float32, or float64 if the parameters are. A multiplication and an addition are two operations. The
    AdamW update itself counts as 15 operations per element, a random number as 20. A Gram matrix needs its triangle
    only, but matrix units compute the whole square.

    Raises:
        ValueError: there is no such operator.
    """
    size = dtype.itemsize
    moments = 2 * max(4, size)
    gradients = tasks * elements * size
    square = 2 * tasks**2 * elements
    match operator:
        case "combine":
            return Work(gradients, elements * size, 2 * tasks * elements)
        case "combine_dots":
            return Work(gradients, elements * size, 6 * tasks * elements)
        case "dots":
            return Work(gradients + elements * size, 0, 2 * tasks * elements)
        case "graddrop":
            return Work(gradients, elements * size, (4 * tasks + 20) * elements)
        case "gram":
            return Work(gradients, 0, tasks * (tasks + 1) * elements, matrix_operations=square)
        case "gram, combine":
            operations = tasks * (tasks + 3) * elements
            return Work(2 * gradients, elements * size, operations, passes=2, matrix_operations=square)
        case "combine_adamw_":
            state = elements * (size + moments)
            return Work(gradients + state, state, (6 * tasks + 15) * elements, in_place=True)
    raise ValueError(f"there is no operator {operator!r}")


class Problem:
    """The tensors of a workload. Each gradient is a tensor of its own, as autograd leaves them; outputs are reused."""

    def __init__(self, workload: Workload, device: torch.device) -> None:
        self.workload, self.device = workload, device
        self.tasks, self.elements, self.dtype = workload.tasks, workload.elements, workload.dtype
        self.generator = torch.Generator(device).manual_seed(self.tasks)
        # Of the size of real gradients: squared norms fit into float16, and elements are above its subnormal range.
        self.grads = [
            [self._random(shape, self.dtype, 2.0**-10) for shape in workload.shapes] for _ in range(self.tasks)
        ]
        self.columns = list(zip(*self.grads, strict=True))  # K gradients per parameter
        self.weights = torch.linspace(1, 2, self.tasks, dtype=torch.float64, device=device)
        self.weights /= self.weights.sum()
        self.factors: list[float] = self.weights.tolist()
        self.out = self.like_params(self.dtype)
        # The memory probe's buffers. They are written once: otherwise all reads would be of one shared page of zeros.
        reads = [self.work(op).read // self.work(op).passes for op in workload.operators]
        self.source = torch.zeros(max(*reads, self.work("gram").read), dtype=torch.uint8, device=device)
        self.target = torch.zeros(3 * self.elements * max(4, self.dtype.itemsize), dtype=torch.uint8, device=device)

    def work(self, operator: str) -> Work:
        return work(operator, self.tasks, self.elements, self.dtype)

    def _random(self, shape: Sequence[int], dtype: torch.dtype, scale: float) -> Tensor:
        values = torch.empty(list(shape), dtype=dtype, device=self.device)
        return values.normal_(generator=self.generator).mul_(scale)

    def like_params(self, dtype: torch.dtype) -> list[Tensor]:
        return [torch.zeros(list(shape), dtype=dtype, device=self.device) for shape in self.workload.shapes]

    @cached_property
    def direction(self) -> list[Tensor]:
        return [self._random(shape, self.dtype, 2.0**-10) for shape in self.workload.shapes]

    @cached_property
    def stacked(self) -> Tensor:
        """(K, P): a copy of the gradients as one matrix."""
        matrix = self.source[: self.tasks * self.elements * self.dtype.itemsize].view(self.dtype)
        matrix = matrix.view(self.tasks, self.elements)
        for row, grads in zip(matrix, self.grads, strict=True):
            torch.cat([g.view(-1) for g in grads], out=row)
        return matrix

    @cached_property
    def flat_out(self) -> Tensor:
        """(P,): the output of baselines that work on the matrix."""
        return torch.zeros(self.elements, dtype=self.dtype, device=self.device)

    @cached_property
    def state(self) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Parameters and both AdamW moments; `reset_state` fills them."""
        moments = torch.promote_types(self.dtype, torch.float32)
        return self.like_params(self.dtype), self.like_params(moments), self.like_params(moments)

    def reset_state(self) -> None:
        """Fills the state with the same values every time, in the range of a model in training."""
        generator = torch.Generator(self.device).manual_seed(1)
        params, averages, squares = self.state
        for p, m, v in zip(params, averages, squares, strict=True):
            p.uniform_(-0.1, 0.1, generator=generator)
            m.uniform_(-1e-3, 1e-3, generator=generator)
            v.uniform_(1e-7, 1e-6, generator=generator)

    def poison(self) -> None:
        """Fills every output with NaN, so that an element that was not written cannot pass as correct."""
        for t in (*self.out, self.flat_out):
            t.fill_(math.nan)
