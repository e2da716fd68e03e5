"""The direction d of the inner products <g_n, d> from which a weighting updates the weights.

"gradient": ḡ of the same batch, as in Eq. 3 of the CATS paper. The engines compute it, so d is not known before the
backward pass.

"preconditioned": ḡ times lr / (√v̂ + ε), element by element: the step that Adam would take if it had no memory of
gradients. <g_n, d> is how much it reduces L_n, to first order, and Σ α_n <g_n, d> is the squared norm of ḡ in Adam's
metric, so it is positive.

"momentum", "update": what the base optimizer remembers of earlier batches, see :func:`remembered`. It does not depend
on the batch of g_n. So the expected value of <g_n, d> is the inner product of d with the expected gradient, whereas
<g_n, ḡ> contains α_n ‖noise of g_n‖², which is the larger part where a task has few rows in a batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, get_args

import torch
from torch import Tensor
from torch.optim import Adam, AdamW, Optimizer

from .gradients import Gradient, local
from .weighting.protocol import Direction

NAMES = get_args(Direction)


def check_direction(name: str, base: Optimizer) -> None:
    """Checks that the base optimizer remembers what the direction is made of.

    Raises:
        ValueError: it does not, or there is no direction of this name.
    """
    if name not in NAMES:
        raise ValueError(f"direction={name!r} does not exist; available: {', '.join(map(repr, NAMES))}")
    kind = type(base).__name__
    if name in ("preconditioned", "update") and not isinstance(base, Adam | AdamW):
        raise ValueError(f"direction={name!r} needs Adam or AdamW as the base optimizer, not {kind}")
    if name == "momentum" and not all("betas" in group or group.get("momentum") for group in base.param_groups):
        raise ValueError(
            f"direction='momentum' needs a base optimizer with a running mean of its gradients in all groups, such as "
            f"AdamW or SGD with momentum; {kind} has none: use direction='gradient'"
        )


def is_known(name: str, base: Optimizer, shared: Iterable[Tensor] | None) -> bool:
    """Whether the direction exists in the next step. One that is remembered does not before the first step.

    shared: the parameters that enter the inner products. None: all.

    Raises:
        ValueError: the base optimizer has taken a step, and does not remember what the direction is made of.
    """
    if name == "gradient":
        return True
    params = [p for group in base.param_groups for p in group["params"]] if shared is None else list(shared)
    if any(p.requires_grad and _moment(base, p) is not None for p in params):
        return True
    if any(base.state.get(p) for p in params if p.requires_grad):  # a step was taken, so there will never be one
        raise ValueError(
            f"direction={name!r} needs a running mean of the gradients, and {type(base).__name__} keeps none in its "
            "state: use direction='gradient'"
        )
    return False


@torch.no_grad()
def remembered(name: str, base: Optimizer, params: Sequence[Tensor]) -> Gradient | None:
    """The direction at the start of a step, in which losses decrease: one tensor or None per parameter.

    "momentum": m, the running mean of the gradients: ``exp_avg`` of Adam and its relatives, ``momentum_buffer`` of
    SGD. These are the tensors of the optimizer, not copies.

    "update": the last step of Adam or AdamW at the present learning rate, without weight decay,
    lr m̂ / (√v̂ + ε) with m̂ = m / (1 − β₁ᵗ) and v̂ = v / (1 − β₂ᵗ) (Kingma & Ba, ICLR 2015, Algorithm 1), of new memory.
    <g_n, d> is how much this step reduces L_n, to first order.

    A parameter that had no gradient yet has None. Of a sharded parameter, it is the part of this process. None in place
    of the list for the directions that are made of ḡ.
    """
    if name in ("gradient", "preconditioned"):
        return None
    group_of = {id(p): group for group in base.param_groups for p in group["params"]}
    return [_of_parameter(name, base, p, group_of[id(p)]) for p in params]


def _of_parameter(name: str, base: Optimizer, p: Tensor, group: dict[str, Any]) -> Tensor | None:
    m = _moment(base, p)
    if m is None:
        return None
    d = local(m)
    if name == "update":
        beta1, _ = group["betas"]
        d = d * _rates(base, p, group) / (1 - beta1 ** _step(base, p))
    if group.get("maximize"):  # the optimizer has turned the gradients round
        d = -d
    return d.to(local(p))  # its dtype may be another one


@torch.no_grad()
def rates(name: str, base: Optimizer, params: Sequence[Tensor]) -> Gradient | None:
    """For "preconditioned", lr / (√v̂ + ε) of each parameter before the step, by which ḡ is multiplied.

    None for a parameter that had no gradient yet. Otherwise as :func:`remembered`. None for the other directions.
    """
    if name != "preconditioned":
        return None
    group_of = {id(p): group for group in base.param_groups for p in group["params"]}
    known = [None if _moment(base, p) is None else _rates(base, p, group_of[id(p)]) for p in params]
    return [None if r is None else r.to(local(p)) for r, p in zip(known, params, strict=True)]


def _rates(base: Optimizer, p: Tensor, group: dict[str, Any]) -> Tensor:
    _, beta2 = group["betas"]
    square = local(base.state[p]["max_exp_avg_sq" if group.get("amsgrad") else "exp_avg_sq"])
    return group["lr"] / (square.sqrt() / (1 - beta2 ** _step(base, p)) ** 0.5 + group["eps"])


def _step(base: Optimizer, p: Tensor) -> Tensor:
    # With fused=True it is on the device, where reading it would wait. It is 0 in state that has learnt nothing yet.
    return torch.as_tensor(base.state[p]["step"]).double().clamp(min=1)


def _moment(base: Optimizer, p: Tensor) -> Tensor | None:
    state = base.state.get(p, {})  # indexing would add an entry
    return state.get("exp_avg", state.get("momentum_buffer"))
