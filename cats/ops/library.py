"""The operators as custom operators of torch.library: schemas, fake versions, and how `cats.ops` calls them.

In a schema, gradients are one flat list of K N entries followed by the number of tasks, out is the flat list of its
tensors without None, and the settings of AdamW are single arguments, as are those of the random numbers of graddrop.
Statistics always have their group axis. No result shares memory with an argument.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import dispatch, layout
from .interface import AdamW, Draws

Flat = Sequence[Tensor | None]


def call(operator: str, direct: bool, **arguments: Any) -> Any:
    """Calls an operator of `cats.ops.dispatch`: directly, or through torch.library, which takes several times as long.

    direct: only if nothing has to see the operator: no compiler, no tracing, no subclass of Tensor.
    """
    if not direct:
        return _call_registered(operator, **arguments)
    if "settings" in arguments:
        arguments["settings"].check()
    return getattr(dispatch, operator)(**arguments)


@torch.no_grad()
def _call_registered(operator: str, **arguments: Any) -> Any:
    if "grads" in arguments:
        arguments = _flattened(**arguments)
    # By position: torch.compile refuses tensors that are not contiguous in an argument that is named `out`.
    return getattr(torch.ops.cats, operator)(*[arguments[name] for name in _names[operator]])


def _flattened(
    grads: Sequence[Flat],
    out: Sequence[Flat] | None = None,
    settings: AdamW | None = None,
    draws: Draws | None = None,
    **arguments: Any,
) -> dict[str, Any]:
    """The arguments as they are in the schemas."""
    if out is not None:
        arguments["out"] = [t for row in out for t in row if t is not None]
    if settings is not None:
        arguments.update(zip(AdamW._fields, settings, strict=True))
    if draws is not None:
        arguments.update(zip(Draws._fields, draws, strict=True))
    return {**arguments, "grads": [g for row in grads for g in row], "tasks": len(grads)}  # torch 2.6 compiles no "|"


_names: dict[str, list[str]] = {}  # of the arguments of every operator, in order
_library = torch.library.Library("cats", "DEF")

# torch.compile(mode="reduce-overhead") must not capture the operators in its CUDA graphs: device tables and self-checks
# outlive a call, but the memory of a graph does not. torch 2.6 does not have the tag for this.
_TAGS = tuple(
    tag for name in ("pt2_compliant_tag", "cudagraph_unsafe") if (tag := getattr(torch.Tag, name, None)) is not None
)


def _define(schema: str, fake: Callable[..., Any]) -> None:
    """Registers cats::<schema>: the operator of `cats.ops.dispatch` for all devices, and `fake` for the shapes.

    CompositeExplicitAutograd is the key for one implementation on all devices, without a derivative.
    """
    operator = schema.partition("(")[0]
    _library.define(schema, tags=_TAGS)
    names = _names[operator] = [
        argument.name for argument in getattr(torch.ops.cats, operator).default._schema.arguments
    ]

    def implementation(*values: Any) -> Any:
        arguments = dict(zip(names, values, strict=True))
        for value in values:
            if isinstance(value, Tensor):  # those in lists are checked where their addresses are taken
                layout.address(value)  # raises if it is not in memory
        if "grads" in arguments:
            flat, tasks = arguments["grads"], arguments.pop("tasks")
            size = len(flat) // tasks
            arguments["grads"] = [flat[start : start + size] for start in range(0, len(flat), size)]
        if "out" in arguments:
            arguments["out"] = _out_rows(arguments["grads"], arguments["out"], len(arguments.get("weights", [1])))
        if operator == "combine_adamw_":
            arguments["settings"] = AdamW(*(arguments.pop(name) for name in AdamW._fields))
            arguments["settings"].check()
        if operator == "graddrop":
            arguments["draws"] = Draws(*(arguments.pop(name) for name in Draws._fields))
        return getattr(dispatch, operator)(**arguments)

    _library.impl(operator, torch.no_grad()(implementation), "CompositeExplicitAutograd")
    torch.library.register_fake(
        f"cats::{operator}", lambda *values: fake(**dict(zip(names, values, strict=True))), lib=_library
    )


def _out_rows(grads: Sequence[Flat], written: Sequence[Tensor], count: int) -> list[list[Tensor | None]]:
    """The tensors to write into as R rows of N, None where no task has a gradient."""
    tensors = iter(written)
    used = [any(g is not None for g in column) for column in zip(*grads, strict=True)]
    return [[next(tensors) if u else None for u in used] for _ in range(count)]


def _empty(grads: Flat, shape: Sequence[int], default: Tensor | None = None) -> Tensor:
    """Statistics of this shape, on the device of the gradients."""
    like = next((g for g in grads if g is not None), default)
    assert like is not None
    return like.new_empty(shape, dtype=torch.float64)


def _fake_statistics(grads: Flat, weights: Tensor, groups: Sequence[int], **rest: Any) -> tuple[Tensor, Tensor]:
    count, (rows, tasks) = max(groups) + 1, weights.shape
    return _empty(grads, (count, rows, tasks), weights), _empty(grads, (count, tasks), weights)


_define(
    "combine(Tensor?[] grads, int tasks, Tensor weights, Tensor(a!)[] out, str? backend) -> ()",
    lambda **arguments: None,
)
_define(
    "combine_dots(Tensor?[] grads, int tasks, Tensor weights, Tensor(a!)[] out, int[] groups, str? backend)"
    " -> (Tensor, Tensor)",
    _fake_statistics,
)
_define(
    "dots(Tensor?[] grads, int tasks, Tensor?[] direction, int[] groups, str? backend) -> Tensor",
    lambda grads, tasks, groups, **rest: _empty(grads, (max(groups) + 1, tasks)),
)
_define(
    "gram(Tensor?[] grads, int tasks, int[] groups, str? backend) -> Tensor",
    lambda grads, tasks, groups, **rest: _empty(grads, (max(groups) + 1, tasks, tasks)),
)
_define(
    "combine_adamw_(Tensor(a!)[] params, Tensor?[] grads, int tasks, Tensor weights, Tensor(b!)[] exp_avgs,"
    " Tensor(c!)[] exp_avg_sqs, Tensor step, Tensor lr, float beta1, float beta2, float eps, float weight_decay,"
    " Tensor? found_inf, Tensor? grad_scale, int[] groups, str? backend) -> (Tensor, Tensor)",
    _fake_statistics,
)
_define(
    # seed and step change from call to call: torch.compile must not compile again for every number.
    "graddrop(Tensor?[] grads, int tasks, Tensor leak, Tensor(a!)[] out, SymInt seed, SymInt step, int[] positions,"
    " str? backend) -> ()",
    lambda **arguments: None,
)
_define(
    "row_dots(Tensor x, Tensor y, Tensor rows, SymInt tasks, str? backend) -> Tensor",
    lambda x, tasks, **rest: _empty([x], (tasks,)),
)
