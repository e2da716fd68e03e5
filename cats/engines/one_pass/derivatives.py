"""The derivatives of nodes that read parameters: how a node's output changes when its parameters do.

The output of a layer, y = f(a, p), is linear in each of its parameters p for fixed data a. Row t of it receives the
gradient δ_t in the backward pass. If row t belongs to task n alone, its share of <g_n, ḡ> is <δ_t, y'_t>, where y' is
the derivative of y along ḡ. For a Linear layer, y' is one matrix product, whatever the number of tasks is.

A function below reads what it needs of the node's data while the backward pass is at this node; afterwards the node
frees it. It returns the map from tangents, {number of the node's input: ḡ of the parameter there}, to y'.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeAlias, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from cats.engines.checkpoints import read_saved
from cats.engines.pending import UnsupportedError

from .graph import Node, signed

Tangents: TypeAlias = Mapping[int, Tensor]
Derivative: TypeAlias = Callable[..., Tensor]  # of the tangents; those of SLICED also of a slice of rows

# Nodes whose derivative can be computed for some of the rows alone, and those that do it for a slice of the rows.
SAMPLED = {"AddmmBackward0", "MmBackward0", "EmbeddingBackward0", "FusedRmsNormBackward0", "NativeLayerNormBackward0"}
SLICED = {"AddmmBackward0", "MmBackward0"}
_ALL = slice(None)


class Data:
    """What a derivative needs of a node's data.

    Args:
        select: takes the rows of interest from a matrix. None: all.
    """

    def __init__(self, node: Node, select: Callable[[Tensor], Tensor] | None = None) -> None:
        self._node, self._select = node, select
        self._versions: list[tuple[Tensor, int]] = []

    def __getitem__(self, name: str) -> Any:
        """A tensor, or a tuple of them, that the node keeps for its backward pass. The node can read it once more.

        Raises:
            UnsupportedError: it is sparse.
        """
        value = read_saved(self._node, name)
        tensors = [t for t in (value if isinstance(value, tuple) else [value]) if t is not None]
        if any(t.layout != torch.strided for t in tensors):
            raise UnsupportedError("engine one_pass: a layer has a sparse input: use engine='per_task'")
        self._versions += [(t, t._version) for t in tensors]
        return value.detach() if isinstance(value, Tensor) else value

    def rows(self, name: str) -> Tensor:
        """The rows of interest of a matrix."""
        matrix = self[name]
        if self._select is not None:
            self._versions.pop()  # the rows are copied, and the matrix is not kept
        return self.select(matrix)

    def select(self, matrix: Tensor) -> Tensor:
        """The same rows of another matrix."""
        return matrix if self._select is None else self._select(matrix)

    def changed(self) -> bool:
        """Whether other code has written to the tensors since they were read. Autograd cannot notice it any more."""
        return any(tensor._version != version for tensor, version in self._versions)


def _sum(terms: list[Tensor]) -> Tensor:
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


def _matrix_product(node: Node, inputs: Collection[int], data: Data, left: int, names: tuple[str, str]) -> Derivative:
    """left @ right, where ``left`` is the number of the left input and the right one follows it."""
    a = data.rows(names[0]) if left + 1 in inputs else None
    b = data[names[1]] if left in inputs else None

    def derivative(tangents: Tangents, part: slice = _ALL) -> Tensor:
        terms = [] if a is None else [a[part] @ tangents[left + 1]]
        return _sum(terms if b is None else [*terms, data.select(tangents[left])[part] @ b])

    return derivative


def _addmm(node: Node, inputs: Collection[int], data: Data) -> Derivative:
    """beta * input + alpha * left @ right: the Linear layer with a bias."""
    beta, alpha = node._saved_beta, node._saved_alpha

    def bias(tangents: Tangents, part: slice) -> Tensor:
        found = tangents[0]
        return data.select(found)[part] if found.dim() > 1 and len(found) > 1 else found  # a row for each row, or one

    if inputs == {0, 2} and beta == alpha == 1:
        a = data.rows("mat1")
        return lambda tangents, part=_ALL: torch.addmm(bias(tangents, part), a[part], tangents[2])
    product = _matrix_product(node, inputs, data, 1, ("mat1", "mat2")) if {1, 2} & set(inputs) else None

    def derivative(tangents: Tangents, part: slice = _ALL) -> Tensor:
        terms = [] if product is None else [alpha * product(tangents, part)]
        if 0 in inputs:
            terms.append(beta * bias(tangents, part))
        return _sum(terms)

    return derivative


def _linear(node: Node, inputs: Collection[int], data: Data) -> Derivative:
    x = data["input"] if 1 in inputs else None
    w = data["weight"] if 0 in inputs else None

    def derivative(tangents: Tangents) -> Tensor:
        terms = [tangents[2]] if 2 in inputs else []
        terms += [] if x is None else [F.linear(x, tangents[1])]
        return _sum(terms if w is None else [*terms, F.linear(tangents[0], w)])

    return derivative


def _mul(node: Node, inputs: Collection[int], data: Data) -> Derivative:
    others = {i: data["other" if i == 0 else "self"] for i in inputs}
    return lambda tangents: _sum([tangents[i] * other for i, other in others.items()])


def _div(node: Node, inputs: Collection[int], data: Data) -> Derivative:
    other = data["other"]
    return lambda tangents: tangents[0] / other


def _add(node: Node, inputs: Collection[int], data: Data, sign: int = 1) -> Derivative:
    alpha = sign * node._saved_alpha
    return lambda tangents: _sum([tangents[i] if i == 0 else alpha * tangents[i] for i in inputs])


def _embedding(node: Node, inputs: Collection[int], data: Data) -> Derivative:
    indices, padding = data.rows("indices"), signed(node._saved_padding_idx)

    def derivative(tangents: Tangents) -> Tensor:
        y = F.embedding(indices, tangents[0])
        # ḡ of the padding is not zero if another layer uses the same parameter.
        return y if padding < 0 else y.masked_fill((indices == padding)[..., None], 0)

    return derivative


def _layer_norm(node: Node, inputs: Collection[int], data: Data) -> Derivative:
    x, mean, rstd = (data.rows(name) for name in ("input", "result1", "result2"))

    def derivative(tangents: Tangents) -> Tensor:
        terms = [(x - mean) * rstd * tangents[1]] if 1 in inputs else []
        return _sum([*terms, tangents[2]] if 2 in inputs else terms).to(x.dtype)

    return derivative


def _rms_norm(node: Node, inputs: Collection[int], data: Data) -> Derivative:
    x, rstd = data.rows("input"), data.rows("result1")
    return lambda tangents: (x * rstd * tangents[1]).to(x.dtype)


def _group_norm(node: Node, inputs: Collection[int], data: Data) -> Derivative:
    x, mean, rstd = (data[name] for name in ("input", "result1", "result2"))
    count, groups = mean.shape
    per_channel = (1, -1, *[1] * (x.dim() - 2))

    def derivative(tangents: Tangents) -> Tensor:
        grouped = x.reshape(count, groups, -1)
        normalised = ((grouped - mean[..., None]) * rstd[..., None]).view_as(x)
        terms = [normalised * tangents[1].view(per_channel)] if 1 in inputs else []
        return _sum([*terms, tangents[2].view(per_channel)] if 2 in inputs else terms)

    return derivative


def _convolution(node: Node, inputs: Collection[int], data: Data) -> Derivative:
    x = data["input"] if 1 in inputs else None
    form = (
        node._saved_stride,
        [signed(v) for v in node._saved_padding],
        node._saved_dilation,
        node._saved_transposed,
        [signed(v) for v in node._saved_output_padding],
        node._saved_groups,
    )

    def derivative(tangents: Tangents) -> Tensor:
        bias = tangents.get(2)
        if x is None:
            assert bias is not None
            return bias.view(1, -1, *[1] * (len(node._input_metadata[0].shape) - 2))
        return cast(Tensor, torch.ops.aten.convolution(x, tangents[1], bias, *form))

    return derivative


def _expand(node: Node, inputs: Collection[int], data: Data) -> Derivative:
    shape = node._input_metadata[0].shape
    return lambda tangents: tangents[0].expand(shape)


def _index_select(node: Node, inputs: Collection[int], data: Data) -> Derivative:
    dim, index = signed(node._saved_dim), data["index"]
    return lambda tangents: tangents[0].index_select(dim, index)


def _index(node: Node, inputs: Collection[int], data: Data) -> Derivative:
    indices = data["indices"]
    return lambda tangents: cast(Tensor, torch.ops.aten.index(tangents[0], indices))


def _matrix_vector(node: Node, inputs: Collection[int], data: Data) -> Derivative:
    a = data["self"] if 1 in inputs else None
    v = data["vec"] if 0 in inputs else None

    def derivative(tangents: Tangents) -> Tensor:
        terms = [] if a is None else [a @ tangents[1]]
        return _sum(terms if v is None else [*terms, tangents[0] @ v])

    return derivative


def _prelu(node: Node, inputs: Collection[int], data: Data) -> Derivative:
    x = data["self"]
    return lambda tangents: tangents[1] * x.clamp(max=0)


# By the name of the node, and the numbers of the inputs where a parameter is supported.
DERIVATIVES: dict[str, tuple[set[int], Callable[[Node, Collection[int], Data], Derivative]]] = {
    "AddBackward0": ({0, 1}, _add),
    "AddmmBackward0": ({0, 1, 2}, _addmm),
    "BmmBackward0": ({0, 1}, lambda node, inputs, data: _matrix_product(node, inputs, data, 0, ("self", "mat2"))),
    "ConvolutionBackward0": ({1, 2}, _convolution),
    "DivBackward0": ({0}, _div),
    "EmbeddingBackward0": ({0}, _embedding),
    "ExpandBackward0": ({0}, _expand),
    "FusedRmsNormBackward0": ({1}, _rms_norm),
    "IndexBackward0": ({0}, _index),
    "IndexSelectBackward0": ({0}, _index_select),
    "LinearBackward0": ({0, 1, 2}, _linear),
    "MmBackward0": ({0, 1}, lambda node, inputs, data: _matrix_product(node, inputs, data, 0, ("self", "mat2"))),
    "MulBackward0": ({0, 1}, _mul),
    "MvBackward0": ({0, 1}, _matrix_vector),
    "NativeGroupNormBackward0": ({1, 2}, _group_norm),
    "NativeLayerNormBackward0": ({1, 2}, _layer_norm),
    "PreluKernelBackward0": ({1}, _prelu),
    "SubBackward0": ({0, 1}, lambda node, inputs, data: _add(node, inputs, data, -1)),
}


def supported(node: Node, inputs: Collection[int]) -> bool:
    """Whether the derivative of the node along parameters at these inputs is known."""
    known, _ = DERIVATIVES.get(node.name(), (set[int](), None))
    # An embedding that scales gradients by the frequency of the ids has another derivative than its output suggests.
    special = getattr(node, "_saved_scale_grad_by_freq", False) or getattr(node, "_saved_sparse", False)
    return set(inputs) <= known and not special and not node._input_metadata[0].dtype.is_complex
