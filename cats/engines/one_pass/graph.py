"""Where an autograd graph uses parameters: the nodes that read them, and the views in between."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor

from cats.engines.autograd import is_opaque

Node: TypeAlias = Any  # torch.autograd.graph.Node, without the attributes that C++ nodes have


@dataclass(frozen=True)
class Input:
    """A parameter as an input of a node. ``views`` lead from it to the input: nodes, and which output of each."""

    param: int
    views: tuple[tuple[Node, int], ...]

    def view(self, x: Tensor) -> Tensor:
        """``x``, of the parameter's shape, as the node sees it."""
        for node, output in self.views:
            x = VIEWS[node.name()](node, x, output)
        return x


@dataclass(eq=False)
class Use:
    """A node that reads one or more parameters, directly or through views of them."""

    node: Node
    inputs: dict[int, Input]  # by the number of the node's input

    @property
    def name(self) -> str:
        return str(self.node.name())

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the node's output, and of the gradient δ that it receives."""
        return tuple(self.node._input_metadata[0].shape)

    @property
    def only_parameters(self) -> bool:
        """Whether all inputs that have a gradient are parameters, or views of them. The others may be data."""
        return all(parent is None or i in self.inputs for i, (parent, _) in enumerate(self.node.next_functions))

    @property
    def params(self) -> set[int]:
        return {source.param for source in self.inputs.values()}


@dataclass
class Graph:
    """What the graph of some losses does with the parameters.

    Attributes:
        uses, nodes: in the order of the forward pass.
        edges: the names of the nodes that are connected. A program has the same ones in every run, whatever the sizes.
        batch_norm: whether there is a batch normalisation in training mode.
        opaque: whether there are functions written in Python that may use parameters out of sight.
        compiled, reentrant: whether parts of the graph come from torch.compile, or from reentrant checkpoints.
    """

    uses: list[Use] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)
    edges: set[tuple[str, str]] = field(default_factory=set)
    batch_norm: bool = False
    opaque: bool = False
    compiled: bool = False
    reentrant: bool = False


def find_uses(roots: Sequence[Tensor], params: Sequence[Tensor]) -> Graph:
    """Walks the graph of ``roots`` and lists every node that reads one of ``params``. No use is left out.

    A parameter is a leaf of the graph, so every use of it is an edge from a node to the leaf's node. Only functions
    written in Python can use a parameter out of sight, in a backward pass of their own.
    """
    number = {id(p): i for i, p in enumerate(params)}
    graph = Graph()
    seen: set[Node] = {None}
    stack: list[Node] = [root.grad_fn for root in roots]
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        name = node.name()
        if is_opaque(node):
            graph.opaque = True
            graph.compiled |= name.startswith("CompiledFunction")
            graph.reentrant |= name.startswith("CheckpointFunction")
        if "BatchNorm" in name and getattr(node, "_saved_training", True):
            graph.batch_norm = True
            name += " in training"
        inputs = {}
        for i, (parent, nr) in enumerate(node.next_functions):
            if parent is None:
                continue
            stack.append(parent)
            graph.edges.add((name, parent.name()))
            found = _source(parent, nr, number)
            if found is not None:
                inputs[i] = found
        if inputs and name not in VIEWS:
            graph.uses.append(Use(node, inputs))
    graph.uses.sort(key=lambda use: use.node._sequence_nr())
    graph.nodes = sorted(seen - {None}, key=lambda node: node._sequence_nr() if node.next_functions else -1)
    return graph


def _source(node: Node, output: int, number: Mapping[int, int]) -> Input | None:
    """The parameter that this output of the node is, or is a view of. number: {id of a parameter: its number}."""
    views = []
    while node.next_functions and node.name() in VIEWS:
        views.append((node, output))
        node, output = node.next_functions[0]
        if node is None:
            return None
    if node.next_functions:
        return None
    i = number.get(id(getattr(node, "variable", None)))
    return None if i is None else Input(i, tuple(reversed(views)))


def needed(graph: Graph, without: Mapping[Use, set[int]], params: Sequence[Tensor]) -> set[Use]:
    """The uses whose nodes run in a backward pass for all of ``params`` but theirs.

    A node does not run for leaves that are no parameters here, such as an input that requires a gradient, or a layer of
    another optimizer.

    Args:
        without: {use: ids of the parameters that it alone reads}. A use that is not returned keeps its parameters.
    """
    at = {use.node: use for use in without}
    wanted = {id(p) for p in params}.difference(*without.values())
    runs: set[Node] = set()
    result = set()
    for node in graph.nodes:
        if not node.next_functions:
            if id(getattr(node, "variable", None)) in wanted:
                runs.add(node)
        elif any(parent in runs for parent, _ in node.next_functions):
            runs.add(node)
            if node in at:
                result.add(at[node])
        elif node in at:  # its parameters are needed, so that it runs
            runs.add(node)
    return result


def signed(value: int) -> int:
    """A saved dimension or index: C++ shows -1 as 2⁶⁴ - 1."""
    return value - 2**64 if value >= 2**63 else value


def _bound(value: int | None) -> int | None:
    """The same for the bound of a slice, which may be missing."""
    return None if value is None else signed(value)


def _reshape(node: Node, x: Tensor, output: int) -> Tensor:
    return x.reshape(node._input_metadata[output].shape)


def _convert(node: Node, x: Tensor, output: int) -> Tensor:
    return x.to(device=node._input_metadata[output].device, dtype=node._input_metadata[output].dtype)


def _slice(node: Node, x: Tensor, output: int) -> Tensor:
    first, last = _bound(node._saved_start), _bound(node._saved_end)
    return cast(Tensor, torch.ops.aten.slice(x, signed(node._saved_dim), first, last, signed(node._saved_step)))


def _split_with_sizes(node: Node, x: Tensor, output: int) -> Tensor:
    return x.split(node._saved_split_sizes, signed(node._saved_dim))[output]


# How a node that only rearranges or converts its input treats another tensor of the input's shape. Output nr. `output`.
VIEWS: dict[str, Callable[[Node, Tensor, int], Tensor]] = {
    "AliasBackward0": lambda node, x, output: x,
    "CloneBackward0": lambda node, x, output: x,
    "PermuteBackward0": lambda node, x, output: x.permute([signed(d) for d in node._saved_dims]),
    "ReshapeAliasBackward0": _reshape,
    "SelectBackward0": lambda node, x, output: x.select(signed(node._saved_dim), signed(node._saved_index)),
    "SliceBackward0": _slice,
    "SplitBackward0": lambda node, x, output: x.split(node._saved_split_size, signed(node._saved_dim))[output],
    "SplitWithSizesBackward0": _split_with_sizes,
    "SqueezeBackward0": _reshape,
    "SqueezeBackward1": _reshape,
    "TBackward0": lambda node, x, output: x.t(),
    "ToCopyBackward0": _convert,
    "TransposeBackward0": lambda node, x, output: x.transpose(signed(node._saved_dim0), signed(node._saved_dim1)),
    "UnbindBackward0": lambda node, x, output: x.unbind(signed(node._saved_dim))[output],
    "UnsafeViewBackward0": _reshape,
    "UnsqueezeBackward0": _reshape,
    "ViewBackward0": _reshape,
}
