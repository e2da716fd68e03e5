"""Weights from any callable that maps a Gram matrix to weights, such as a Weighting object of TorchJD."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .checks import checked_grams
from .protocol import Weighting
from .torchjd_rules import of_present, of_unit_size, per_task, rule_of_gram, with_memory

# Attributes of a module that state_dict() saves if they have changed. TorchJD's rules keep such state beside buffers.
_PLAIN = (bool, int, float, str, torch.dtype, torch.device, type(None))


class TooFewTasksError(ValueError):
    """A step lacks tasks, and the rule does not take so few. The message is one line."""


class Gramian(Weighting):
    """In every step, the weights are ``rule(gram)``.

    Args:
        rule: maps the Gram matrix of the K tasks present, (K, K) float64 on the CPU, to (K,) weights. The rank of the
            matrix is that of the gradients: eigenvalues that are only rounding errors of them are 0, up to rounding
            errors of float64; see :func:`cats.weighting.rounding.without_rounding_noise`. If the rule is an
            ``nn.Module``, as TorchJD's are, its state is saved and restored with the optimizer: buffers, parameters,
            and plain attributes that have changed since it was given here. An ``Aggregator`` of TorchJD is replaced by
            its ``Weighting`` of the Gram matrix. UPGrad, DualProj, CAGrad, GradVac and FairGrad get a matrix with a
            trace of about 1, so that they do not take small gradients for zeros, and IMTL-G, so that it does not take
            large ones for them. Where a rule has a number for each task (``weights``, ``pref_vector``), a step uses
            those of the tasks present. GradVac, CR-MOGM and PCD remember numbers of the tasks, and need all tasks in
            every step; :class:`cats.weighting.GradVac` does not.
        tolerance: eigenvalues of the matrix of cosines that are below ``tolerance`` times the largest one are rounding
            errors. At least 0 and below 1. None: K times the rounding error of inner products of gradients with the
            parameters' dtypes. That is too small under autocast, where the parameters are float32 but the gradients
            are computed in lower precision. Rules that divide by eigenvalues (AlignedMTL, IMTL-G) then give almost no
            update for dependent tasks such as a, b and a + b. With autocast use about 1e-3 for bfloat16 and 1e-5 for
            float16: rounding errors reached 4e-5 and 6e-7 in networks of 18 layers. Gradients of which one is nearly a
            combination of the others count as dependent: with 1e-3, two at an angle below 3.6 degrees.

    Raises:
        TypeError: ``rule`` is not callable, or it is an object of TorchJD that needs the Jacobian matrix, or
            ``tolerance`` is not a number.
        ValueError: ``tolerance`` is not in [0, 1).
    """

    needs_gram = True

    def __init__(self, rule: Callable[[Tensor], Tensor], tolerance: float | None = None) -> None:
        if isinstance(rule, type):
            raise TypeError(f"a weighting is an object, got the class {rule.__name__}: pass {rule.__name__}(...)")
        if not callable(rule):
            raise TypeError(
                f"a weighting is a cats.weighting.Weighting or a callable that takes a Gram matrix, got {rule!r}"
            )
        if tolerance is not None:
            if isinstance(tolerance, bool) or not isinstance(tolerance, int | float):
                raise TypeError(f"tolerance must be a number or None, got {tolerance!r}")
            if not 0 <= tolerance < 1:
                raise ValueError(f"tolerance must be at least 0 and below 1, got {tolerance!r}")
        self.rule = rule_of_gram(rule)
        self.tolerance = tolerance
        self._tasks = 0
        self._initial = self._plain_attributes()
        self._given = self.state_dict()

    def start(self, tasks: int) -> None:
        for part in per_task(self.rule):
            if len(part.weights) != tasks:
                raise ValueError(
                    f"the rule of TorchJD has {len(part.weights)} weights or preferences, but there are {tasks} tasks"
                )
        self._tasks = tasks
        self.load_state_dict(self._given)

    def weights_from_gram(self, gram: Tensor, losses: Tensor) -> Tensor:
        gram, factor = of_unit_size(self.rule, checked_grams(gram, type(self).__name__))
        # Rules make tensors and draw random numbers on the default device, which may be another one.
        with torch.no_grad(), torch.device("cpu"):
            weights: Tensor = self.rule(gram)
        return weights if factor == 1 else weights * factor

    def weights_from_grams(self, grams: Tensor, losses: Tensor, present: Sequence[int]) -> Tensor | list[Tensor]:
        checked_grams(grams, type(self).__name__)  # here, because the rule's own errors get another text below
        few = f"this step has {len(present)} of the {self._tasks} tasks, and"
        if len(present) < self._tasks and (name := with_memory(self.rule)):
            raise TooFewTasksError(
                f"{few} {name} of TorchJD needs all of them in each step: it knows tasks from the step before by their "
                "place alone"
            )
        try:
            with of_present(self.rule, present):
                return super().weights_from_grams(grams, losses, present)
        except ValueError as error:
            if len(present) == self._tasks:
                raise
            text = " ".join(str(error).split())
            raise TooFewTasksError(f"{few} the rule does not take so few: {text}") from error

    def state_dict(self) -> dict[str, Any]:
        if not isinstance(self.rule, nn.Module):
            return {}
        # rule.state_dict() leaves out buffers that are still None, and then refuses to load them into another rule.
        plain = self._plain_attributes()
        return {
            name: {key: None if value is None else value.detach().clone() for key, value in module._buffers.items()}
            | {key: value.detach().clone() for key, value in module._parameters.items() if value is not None}
            | {key: plain[name].get(key) for key, value in self._initial[name].items() if plain[name].get(key) != value}
            for name, module in self.rule.named_modules()
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if not isinstance(self.rule, nn.Module):
            if state:
                raise ValueError(f"the state is that of a module, but the rule is {self.rule!r}")
            return
        modules = dict(self.rule.named_modules())
        for name, module in modules.items():
            tensors = {*module._buffers, *(key for key, value in module._parameters.items() if value is not None)}
            fits = state.keys() == modules.keys() and tensors <= set(state[name]) <= tensors | set(self._initial[name])
            if not fits:
                raise ValueError(f"the state is not one of the rule {type(self.rule).__name__}: it has {list(state)}")
        with torch.no_grad():
            for name, module in modules.items():
                for key, value in (self._initial[name] | state[name]).items():
                    if key in module._buffers:
                        module._buffers[key] = None if value is None else value.clone()
                    elif key in module._parameters:
                        parameter = module.get_parameter(key)
                        if parameter.shape != value.shape:  # copy_ would broadcast
                            raise ValueError(f"{key!r} has shape {tuple(value.shape)}, not {tuple(parameter.shape)}")
                        parameter.copy_(value)
                    else:
                        setattr(module, key, value)

    def _plain_attributes(self) -> dict[str, dict[str, Any]]:
        if not isinstance(self.rule, nn.Module):
            return {}
        return {
            name: {key: value for key, value in vars(module).items() if _is_plain(value)}
            for name, module in self.rule.named_modules()
        }


def _is_plain(value: Any) -> bool:
    return all(map(_is_plain, value)) if isinstance(value, tuple) else isinstance(value, _PLAIN)
