"""Which objects of TorchJD are rules of the Gram matrix, and which need the Jacobian matrix that no one has here."""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .randomness import random_numbers

_NASH = "_NashMTLWeighting"
# Rules whose weights do not depend on the size of all gradients together, but which take numbers that are small for
# zeros (norm_eps, eps): small gradients, or for IMTL-G large ones, by whose norm it divides. FairGrad's weights do
# depend on the size, in a known way, and its solver stops early for small gradients.
_SCALED = (
    "UPGradWeighting",
    "DualProjWeighting",
    "CAGradWeighting",
    "GradVacWeighting",
    "FairGradWeighting",
    "IMTLGWeighting",
)


def rule_of_gram(rule: Any) -> Any:
    """The rule itself, or what computes the weights of a TorchJD ``Aggregator`` from the Gram matrix.

    An Aggregator takes the Jacobian matrix, and so do some Weightings. Called with the Gram matrix, they would return
    numbers without a meaning.

    Raises:
        TypeError: the rule is an object of TorchJD that has no form for the Gram matrix.
    """
    # If nobody has imported it, the rule is not from there. It is not among our dependencies, so it has no types here.
    torchjd: Any = sys.modules.get("torchjd.aggregation")
    if torchjd is None or not isinstance(rule, nn.Module):
        return rule
    # Old versions do not have all of these names. Nothing is an instance of the empty tuple.
    aggregators, weighted, weightings = (
        getattr(torchjd, name, ()) for name in ("Aggregator", "WeightedAggregator", "Weighting")
    )
    found: Any = rule
    if isinstance(rule, aggregators):
        # Only these have a weighting that determines all they do. ConFIG's, for one, does not.
        found = rule.weighting if isinstance(rule, weighted) else None
    if isinstance(found, weightings) and getattr(getattr(found, "fn", None), "__name__", "") == "compute_gramian":
        found = found.weighting  # the aggregators whose weighting first computes the Gram matrix
    if type(found).__name__ == _NASH:
        return Nash(found)
    if found is None or any(_wants_jacobian(each) for each in found.modules() if isinstance(each, weightings)):
        raise TypeError(
            f"{type(rule).__name__} of TorchJD needs the Jacobian matrix, or two of them, but there is only the "
            "Gram matrix of the tasks: use a Weighting of the Gram matrix, such as UPGradWeighting or MGDAWeighting"
        )
    return found


def _wants_jacobian(weighting: nn.Module) -> bool:
    """Whether ``forward`` is declared to take a ``Matrix``: not a ``PSDMatrix``, nor a Tensor whose rows it counts."""
    if type(weighting).__name__ == _NASH:  # declared to take a Tensor, but it multiplies it by its transpose
        return True
    parameters = list(inspect.signature(type(weighting).forward).parameters.values())
    kind = parameters[1].annotation if len(parameters) > 1 else None
    return bool(getattr(kind, "__name__", kind) == "Matrix")


def of_unit_size(rule: Any, gram: Tensor) -> tuple[Tensor, float]:
    """The Gram matrix as a rule of TorchJD needs it so that small gradients are not taken for zeros.

    Args:
        rule: as :func:`rule_of_gram` returns it, or ``Seeded``. A rule that contains one of these, such as CR-MOGM's
            mean over the steps, may depend on the size of the matrix, and so may a ``forward()`` of the user's own.

    Returns:
        The matrix divided by the power of two that is next to its trace, which is exact, and the number that the
        weights for the given matrix are larger by. The matrix as it is and 1 for other rules, and if it has no finite
        trace above 0.
    """
    torchjd: Any = sys.modules.get("torchjd.aggregation")
    part: Any = rule.rule if isinstance(rule, Seeded) else rule
    kinds = [kind for name in _SCALED if (kind := getattr(torchjd, name, None))]
    is_one = any(isinstance(part, kind) and type(part).forward is kind.forward for kind in kinds)
    trace = float(gram.trace())
    if not is_one or not 0 < trace < math.inf:
        return gram, 1.0
    exponent = math.frexp(trace)[1]
    factor = 1.0
    if hasattr(part, "alpha") and part.alpha:  # FairGrad solves G w = w^(-1/alpha)
        factor = 2.0 ** (-exponent / (1 + 1 / part.alpha))
    return torch.ldexp(gram, torch.tensor(-exponent, device="cpu")), factor


def per_task(rule: Any) -> list[Any]:
    """The parts of a rule of TorchJD that have a number for each task: weights, or a preference vector."""
    modules = rule.modules() if isinstance(rule, nn.Module) else ()
    return [module for module in modules if type(module).__name__ == "ConstantWeighting"]


def with_memory(rule: Any) -> str | None:
    """The name of the part of a rule of TorchJD that keeps numbers of the tasks from step to step, by their place.

    Not NashMTL, see ``Nash``.
    """
    stateful: Any = getattr(sys.modules.get("torchjd"), "Stateful", ())
    modules = rule.modules() if isinstance(rule, nn.Module) else ()
    return next((type(module).__name__ for module in modules if isinstance(module, stateful)), None)


@contextmanager
def of_present(rule: Any, present: Sequence[int]) -> Iterator[None]:
    """In the block, these parts have the numbers of the tasks present. TorchJD knows no absent tasks."""
    parts = [(part, part.weights) for part in per_task(rule)]
    try:
        for part, numbers in parts:
            part.weights = numbers[list(present)]
        yield
    finally:
        for part, numbers in parts:
            part.weights = numbers


class Seeded(nn.Module):
    """A rule that draws from torch's random numbers, which here depend on a seed and the number of the step only.

    Args:
        rule: maps a Gram matrix to weights.
        seed: any integer.
    """

    def __init__(self, rule: nn.Module, seed: int) -> None:
        super().__init__()
        self.rule = rule
        self.seed = seed
        self.step = 0

    def forward(self, gram: Tensor) -> Tensor:
        with torch.random.fork_rng(devices=[]):
            # torch.manual_seed() would also change the random numbers of GPUs.
            torch.default_generator.manual_seed(random_numbers(self.seed, self.step).getrandbits(32))
            weights: Tensor = self.rule(gram)
        self.step += 1
        return weights


class Nash(nn.Module):
    """NashMTL of TorchJD as a rule of the Gram matrix, with all its state in a buffer.

    It takes the Jacobian matrix J, but uses only J Jᵀ and norms of combinations of its rows. So any square matrix with
    the same J Jᵀ does. What it solves depends on the weights that it found in the step before. If the number of tasks
    has changed since, it starts from equal weights. One task, or gradients that are all 0, have equal weights and leave
    the state as it is.
    """

    before: Tensor | None

    def __init__(self, rule: Any) -> None:
        super().__init__()
        # In a list, because its own attributes are not state: it builds its problem anew in each step.
        self._solver = [rule]
        self.register_buffer("before", None)
        if rule.update_weights_every != 1:
            raise ValueError("NashMTL of TorchJD: only update_weights_every=1 is supported here")

    def forward(self, gram: Tensor) -> Tensor:
        solver = self._solver[0]
        if len(gram) == 1 or not gram.any():  # TorchJD's problem has no form for one task, and divides by ‖G‖
            norm = float(gram.sum().clamp(min=0).sqrt())  # of the sum of the gradients
            return gram.new_ones(len(gram)) * (solver.max_norm / norm if 0 < solver.max_norm < norm else 1.0)
        solver.n_tasks = len(gram)
        solver.reset()
        if self.before is not None and len(self.before) == len(gram):
            solver.prvs_alpha = self.before.numpy()
        values, vectors = torch.linalg.eigh(gram)
        weights: Tensor = solver(vectors * values.clamp(min=0).sqrt())
        self.before = torch.from_numpy(solver.prvs_alpha).clone()
        return weights
