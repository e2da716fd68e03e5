"""Label smoothing against torch's own, and the plain nll."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import forward_ad

from cats.nmt.model.loss import smoothed_losses, token_losses


def data() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(7, 23, dtype=torch.float64), torch.randint(0, 23, (7,))


def test_fairseq_smoothing_is_torchs_with_the_mass_rescaled():
    logits, targets = data()
    smoothed, nll = token_losses(logits, targets, 0.1)
    # torch spreads s over all V tokens, fairseq over the V - 1 wrong ones. With s V / (V - 1) torch's is equal.
    expected = F.cross_entropy(logits, targets, reduction="none", label_smoothing=0.1 * 23 / 22)
    torch.testing.assert_close(smoothed, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(nll, F.cross_entropy(logits, targets, reduction="none"), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("target", "smoothing", "expected"),
    [(0, 0.1, 0.551266), (1, 0.1, 2.237721), (0, 0.0, 0.356675), (1, 0.4, 2.043130)],
)
def test_smoothed_losses_by_hand(target: int, smoothing: float, expected: float):
    """The first is 0.9 ln(1 / 0.7) + 0.1 ln(1 / 0.1): the wrong tokens share the probability of the smoothing."""
    logits = torch.tensor([[0.7, 0.1, 0.1, 0.1]], dtype=torch.float64).log()
    assert float(token_losses(logits, torch.tensor([target]), smoothing)[0]) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_losses_for_second_derivatives_are_the_same(smoothing: float):
    logits, targets = data()
    torch.testing.assert_close(smoothed_losses(logits, targets, smoothing), token_losses(logits, targets, smoothing)[0])
    assert torch.autograd.gradgradcheck(lambda x: smoothed_losses(x, targets, smoothing), logits.requires_grad_())


def test_no_smoothing_is_the_nll():
    smoothed, nll = token_losses(*data(), 0.0)
    assert torch.equal(smoothed, nll)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_gradient(smoothing: float):
    logits, targets = data()
    check = torch.autograd.gradcheck
    assert check(lambda x: token_losses(x, targets, smoothing)[0], logits.requires_grad_(), check_forward_ad=True)


def test_the_nll_carries_no_gradient_and_no_tangent():
    logits, targets = data()
    assert not token_losses(logits.requires_grad_(), targets, 0.1)[1].requires_grad
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(logits.detach(), torch.ones_like(logits))
        assert forward_ad.unpack_dual(token_losses(dual, targets, 0.1)[1]).tangent is None
