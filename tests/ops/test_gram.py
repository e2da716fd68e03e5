"""gram with every backend."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.ops.cases import EveryOperator, EveryStatistic
from tests.ops.common import STATISTICS, Backend, Grads, check_gram, examples


class TestGram(EveryOperator, EveryStatistic):
    check = staticmethod(check_gram)


def test_no_gradient_at_all(backend: Backend) -> None:
    nothing: Grads = [[None, None]] * 3
    assert not backend.gram(nothing).any()


def test_gram_is_positive_semidefinite(backend: Backend) -> None:
    @examples(backend)
    @given(st.integers(1, 40), st.integers(1, 9), st.integers(0, 1000))
    def holds(tasks: int, size: int, seed: int) -> None:
        gram = backend.gram(backend.normal(tasks, [(size,)], seed=seed)).cpu()  # of rank `size` at most
        assert torch.equal(gram, gram.T)
        # Errors of at most STATISTICS |g_i| |g_j| move eigenvalues by at most the errors' Frobenius norm.
        assert torch.linalg.eigvalsh(gram).min() >= -STATISTICS * gram.trace()

    holds()
