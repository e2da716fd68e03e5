"""row_dots: cases, exact results and contenders. It takes two matrices, where the other operators take gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from bench.common.roofline import Work
from cats import ops

from .backends import REFERENCE_ELEMENTS, usable
from .cases import ROW_DOTS, RowsWorkload
from .contender import BACKEND, COMPILED, EAGER, Contender
from .oracle import BASELINE_TOLERANCE, SUM_BOUND, Outcome, worst


class RowsProblem:
    """The tensors of a workload, and the memory of the roofline's probe."""

    def __init__(self, workload: RowsWorkload, device: torch.device) -> None:
        self.workload, self.device = workload, device
        self.tasks, self.elements, self.dtype = workload.tasks, workload.elements, workload.dtype
        generator = torch.Generator(device).manual_seed(workload.tasks)
        self.x, self.y = (
            torch.empty(workload.count, workload.width, dtype=workload.dtype, device=device).normal_(
                generator=generator
            )
            for _ in "xy"
        )
        if workload.mixed:
            self.rows = torch.randint(workload.tasks, (workload.count,), generator=generator, device=device)
        else:
            self.rows = torch.arange(workload.count, device=device) * workload.tasks // workload.count
        self.out = [self.x, self.y]  # as many tensors as the call has
        self.source = torch.zeros(self.work(ROW_DOTS).read, dtype=torch.uint8, device=device)
        self.target = torch.zeros(64, dtype=torch.uint8, device=device)

    def work(self, operator: str) -> Work:
        """The least work: both matrices and the tasks of the rows are read, and one product per element is added."""
        return Work(2 * self.elements * self.dtype.itemsize + 8 * self.workload.count, 0, 2 * self.elements)

    def poison(self) -> None:
        """There is nothing to fill: every contender returns a new tensor."""


class RowsOracle:
    """The exact results of a problem, in float64."""

    def __init__(self, problem: RowsProblem) -> None:
        self.problem = problem
        self.dots, left, right = (
            torch.stack([(a[part].double() * b[part].double()).sum() for part in self._parts()])
            for a, b in ((problem.x, problem.y), (problem.x, problem.x), (problem.y, problem.y))
        )
        self.bound = SUM_BOUND * (left * right).sqrt()

    def _parts(self) -> Iterator[Tensor]:
        """For each task, the numbers of its rows."""
        return ((self.problem.rows == n).nonzero()[:, 0] for n in range(self.problem.tasks))

    def errors(self, operator: str, outcome: Outcome) -> dict[str, float]:
        return {} if outcome.dots is None else {"dots": worst(outcome.dots, self.dots, self.bound)}

    def baseline_allowance(self) -> float:
        return BASELINE_TOLERANCE / SUM_BOUND


def contenders(problem: RowsProblem) -> Iterator[Contender]:
    """The backends, then forms in plain torch that give the sum of every row, which index_add_ adds by task."""
    x, y, rows, tasks = problem.x, problem.y, problem.rows, problem.tasks
    backends = usable(problem.device, ROW_DOTS)
    if problem.device.type == "cpu" and problem.elements > REFERENCE_ELEMENTS and backends != ["reference"]:
        backends.remove("reference")

    def call(backend: str) -> Callable[[], Outcome]:
        return lambda: Outcome(dots=ops.row_dots(x, y, rows, tasks, backend=backend))

    def by_task(form: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        def compute(x: Tensor, y: Tensor, rows: Tensor) -> Tensor:
            return torch.zeros(tasks, dtype=torch.float64, device=x.device).index_add(0, rows, form(x, y).double())

        return compute

    for backend in backends:
        yield Contender(backend, BACKEND, call(backend))
    forms = {"(x * y).sum(-1)": lambda x, y: (x * y).sum(-1), "einsum": lambda x, y: torch.einsum("rw,rw->r", x, y)}
    for name, form in forms.items():
        eager = by_task(form)
        yield Contender(f"{name}, index_add", EAGER, lambda eager=eager: Outcome(dots=eager(x, y, rows)))
    torch.compiler.reset()
    compiled = torch.compile(by_task(forms["(x * y).sum(-1)"]), fullgraph=True, dynamic=False)
    yield Contender("compiled (x * y).sum(-1), index_add", COMPILED, lambda: Outcome(dots=compiled(x, y, rows)))
