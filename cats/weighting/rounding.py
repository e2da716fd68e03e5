"""A Gram matrix whose rank is that of the gradients, not of their rounding errors."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def precision(dtypes: Iterable[torch.dtype]) -> float:
    """The relative rounding error of inner products of gradients of these dtypes, if nothing else was rounded.

    It is that of the sums (float32, for float64 gradients float64), or the squared error of the elements if that is
    larger: rounding turns a gradient by about this angle, and a Gram matrix shows the square of it.
    """
    return max(
        torch.finfo(dtype).eps
        if dtype == torch.float64
        else max(torch.finfo(torch.float32).eps, (torch.finfo(dtype).eps / 2) ** 2)
        for dtype in dtypes
    )


def without_rounding_noise(gram: Tensor, tolerance: float) -> Tensor:
    """The matrix itself if the gradients are clearly independent. Otherwise one of lower rank that is nearly equal.

    A rule that inverts the matrix (a pseudo-inverse, AlignedMTL, IMTL-G) must know which eigenvalues are 0. The matrix
    is float64, but it is of gradients that were rounded to a lower precision. So the rule would take an eigenvalue of
    1e-8 for a direction of its own, and divide by it. Here eigenvalues below tolerance · (the largest one) become 0, up
    to rounding errors of float64. They are those of the matrix of cosines, so a small gradient does not count as noise.

    Gradients that are independent, but nearly dependent, have such small eigenvalues too. They cannot be told from
    noise, so they count as dependent.

    Args:
        gram: (K, K) float64, finite.
        tolerance: at least 0. K · :func:`precision` is what sums of K rounded gradients differ by.
    """
    norms = gram.diagonal().sqrt()
    inverse = torch.where(norms > 0, 1 / norms, 0.0)
    values, vectors = torch.linalg.eigh(gram * inverse[:, None] * inverse)
    kept = values > tolerance * values.max()
    if kept.sum() == (norms > 0).sum():
        return gram
    factor = norms[:, None] * vectors[:, kept] * values[kept].sqrt()
    return factor @ factor.T
