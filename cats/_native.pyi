"""The compiled module, built from csrc/. The kernels read and write memory at addresses.

It is called by cats.ops.layout, by cats.ops.backends and, for its memory probe, by bench.common.roofline.
"""

from array import array
from collections.abc import Sequence
from types import ModuleType

from torch import Tensor, dtype

Rows = Sequence[Sequence[Tensor | None]]

cuda: bool

def cuda_toolkit() -> int: ...  # only if `cuda`
def use_torch(torch: ModuleType) -> bool: ...

class Views: ...

def uniform(rows: Rows) -> tuple[list[Tensor | None], Views] | None: ...
def matches(first: Sequence[Tensor | None], row: Sequence[Tensor | None], optional: bool, moments: bool) -> bool: ...
def shared(views: Views, written: Rows) -> tuple[int, int, int, int] | None: ...
def flatten(
    grads: Rows, others: Rows, vector_bytes: int, views: Views | None
) -> tuple[list[int], list[int], list[tuple[dtype, ...]], list[bool], bytes, list[int]] | None: ...
def works(
    grads: Rows, others: Rows, groups: list[int], threads: int, views: Views | None
) -> tuple[list[tuple[Work, tuple[dtype, ...], list[int]]], list[int]] | None: ...
def row_matrices(x: Tensor, y: Tensor, rows: Tensor) -> bool: ...
def use_openmp(library: str) -> bool: ...

class Instructions:
    baseline: Instructions
    AVX2: Instructions
    AVX512: Instructions
    name: str

def instructions() -> Instructions: ...
def use_instructions(at_most: Instructions) -> None: ...

class Work:
    def __init__(
        self,
        pointers: array[int] | bytes,
        numels: list[int],
        groups: list[int],
        tasks: int,
        others: int,
        type: int,
        threads: int,
    ) -> None: ...

def combine(work: Work, rows: int, weights: int, dots: int, sqnorms: int) -> None: ...
def dots(work: Work, direction_is_wide: bool, result: int) -> None: ...
def gram(work: Work, result: int) -> None: ...
def combine_adamw(
    work: Work,
    weights: int,
    step_size: float,
    decay: float,
    beta1: float,
    beta2: float,
    eps: float,
    correction: float,
    grad_scale: float,
    skip: bool,
    dots: int,
    sqnorms: int,
) -> None: ...
def graddrop(work: Work, leak: int, seed: int, step: int, positions: list[int]) -> None: ...
def row_dots(
    x: int,
    x_stride: int,
    y: int,
    y_stride: int,
    owners: int,
    count: int,
    width: int,
    tasks: int,
    type: int,
    y_is_float: bool,
    threads: int,
    result: int,
) -> None: ...
def first_outside(owners: int, count: int, tasks: int) -> int: ...
def traffic(source: int, source_bytes: int, target: int, target_bytes: int, in_place: bool, threads: int) -> None: ...
