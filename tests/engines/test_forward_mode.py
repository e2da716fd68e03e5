"""The engine forward_mode against one gradient per task, and what it refuses. See test_repeat.py too."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

import cats
from cats.engines.forward_mode import ForwardMode
from cats.engines.losses import TaskLosses
from cats.engines.pending import UnsupportedError
from tests.engines.common import NETS, K, check, data, expected, make, params_of, run, split_parameters


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("net", NETS)
def test_agrees_with_per_task(net, dtype):
    twin = make(net, dtype)
    torch.manual_seed(1)
    with sdpa_kernel(SDPBackend.MATH):  # fused attention draws another dropout mask
        want = expected([lambda n=n: twin.loss(n) for n in range(K)], *split_parameters(twin))
    after = torch.get_rng_state()
    model = make(net, dtype)
    params, shared = split_parameters(model)
    before = [(p._version, p.detach().clone()) for p in params]
    torch.manual_seed(1)
    losses = [lambda n=n: model.loss(n) for n in range(K)]
    check(want, *run(ForwardMode(model=model), losses, params, shared), 1e-10 if dtype == torch.float64 else 1e-5)
    assert torch.equal(torch.get_rng_state(), after)
    for buffer, other in zip(model.buffers(), twin.buffers(), strict=True):
        assert torch.equal(buffer, other)
    for p, (version, value) in zip(params, before, strict=True):  # graphs that are still in use stay valid
        assert p._version == version and torch.equal(p, value) and p.is_leaf and p.requires_grad


def dots_of(loss, *params):
    for p in params:
        p.grad = None
    _, pending = ForwardMode().backward(TaskLosses([0], [loss], ["task 'az'"]), [1.0], params, len(params))
    return pending.dots([p.grad for p in params], last=True)[0][0]


def test_parameters_that_are_views_of_one_buffer():
    flat = torch.randn(12, dtype=torch.float64)
    a, b = nn.Parameter(flat[:8].view(2, 4).t()), nn.Parameter(torch.empty(4, dtype=torch.float64))
    b.data = flat[8:]
    dot = dots_of(lambda: (b @ a.tanh()).square().sum(), a, b)
    torch.testing.assert_close(dot, a.grad.square().sum() + b.grad.square().sum())


def test_what_is_computed_without_grad_is_constant():
    (w,) = params_of(3)

    @torch.no_grad()
    def constant():
        with torch.enable_grad():
            inside = w.exp()
        return w.square() + inside.detach()

    def loss():
        with torch.inference_mode():
            other = w.exp()
        with torch.no_grad():
            third = w.tanh()
        return (w * constant() * w.detach() * other.clone() * third * w.data).sum()

    torch.testing.assert_close(dots_of(loss, w), w.grad.square().sum())


def test_nested_checkpoints():
    (w,) = params_of((3, 3))

    def outer(x):
        return checkpoint(lambda y: (y @ w).tanh(), x @ w, use_reentrant=False) @ w

    dot = dots_of(lambda: checkpoint(outer, data(0, 2, 3), use_reentrant=False).exp().mean(), w)
    torch.testing.assert_close(dot, w.grad.square().sum())


@pytest.mark.parametrize("padding", [2, -1])
def test_the_padding_of_an_embedding_is_constant(padding):
    table = nn.Parameter(data(0, 5, 3))
    ids = torch.tensor([[0, 2], [4, 1]])
    dot = dots_of(lambda: (F.embedding(ids, table, padding_idx=padding) @ table.T).exp().mean(), table)
    torch.testing.assert_close(dot, table.grad.square().sum())


class Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        ctx.save_for_forward(x)
        return x**3

    @staticmethod
    def backward(ctx, grad):
        return 3 * ctx.saved_tensors[0] ** 2 * grad


class CubeWithTangent(Cube):
    @staticmethod
    def jvp(ctx, tangent):
        return 3 * ctx.saved_tensors[0] ** 2 * tangent


def test_functions_with_a_jvp():
    (w,) = params_of(3)
    torch.testing.assert_close(dots_of(lambda: CubeWithTangent.apply(w).sum(), w), w.grad.square().sum())


def test_layers_whose_fused_kernels_have_no_tangents():
    layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True, dtype=torch.float64).eval()
    x = data(0, 2, 3, 4)
    dot = dots_of(lambda: layer(x).square().mean(), *layer.parameters())
    torch.testing.assert_close(dot, sum(p.grad.square().sum() for p in layer.parameters()))
    assert torch.backends.mha.get_fastpath_enabled()
    lstm = nn.LSTM(4, 4, num_layers=2, dropout=0.5)
    dot = dots_of(lambda: lstm(x[0].float())[0].square().mean(), *lstm.parameters())
    torch.testing.assert_close(dot, sum(p.grad.double().square().sum() for p in lstm.parameters()))
    assert torch.backends.mkldnn.enabled


def test_no_loss_reaches_a_shared_parameter():
    first, head = nn.Linear(4, 4), nn.Linear(4, 1)
    base = torch.optim.SGD([*first.parameters(), *head.parameters()], lr=0.1)
    x = torch.randn(8, 4)
    for scaler in (None, torch.amp.GradScaler("cpu")):
        opt = cats.CATS(base, 2, inner_steps=1, engine="forward_mode", shared=first.parameters())
        opt.backward([lambda: head(first(x).detach()).square().mean()] * 2, scaler=scaler)
        opt.step() if scaler is None else scaler.step(opt)
        assert opt.statistics["dots"] == {0: 0.0, 1: 0.0} and opt.statistics["engine"] == "forward_mode"
        opt.zero_grad()


def test_what_is_refused():
    (w,) = params_of(3)
    instead = "use engine='two_pass' or 'per_task'"
    with pytest.raises(UnsupportedError, match=f"loss of task 'az'.*callable.*{instead}"):
        dots_of(w.sum(), w)
    with pytest.raises(UnsupportedError, match=f"loss of task 'az': the autograd.Function Cube has no .*{instead}"):
        dots_of(lambda: Cube.apply(w).sum(), w)
    assert w.grad is None
    with pytest.raises(UnsupportedError, match=f"CheckpointFunction .*use_reentrant=False.*{instead}"):
        dots_of(lambda: checkpoint(torch.exp, w, use_reentrant=True).sum(), w)
    z = w * 2
    with pytest.raises(UnsupportedError, match=f"loss of task 'az': .* outside of it.*{instead}"):
        dots_of(lambda: z.sum(), w)
    dots_of(lambda: (w * z.detach()).sum(), w)
    with pytest.raises(UnsupportedError, match=f"_cdist_forward has no derivative in forward mode: {instead}"):
        dots_of(lambda: torch.cdist(w[:, None], w[:, None]).sum(), w)

    with pytest.raises(UnsupportedError, match=f"task 'az': an embedding with scale_grad_by_freq has no .*{instead}"):
        dots_of(lambda: F.embedding(torch.ones(2, dtype=torch.int64), w[:, None], scale_grad_by_freq=True).sum(), w)

    def hooked():
        y = w.exp()
        y.register_hook(lambda grad: grad * 2)
        return (y * w).sum()

    with pytest.raises(UnsupportedError, match=f"task 'az': its derivative .* its gradient says .* a hook .*{instead}"):
        dots_of(hooked, w)

    def fused():
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            x = w.expand(1, 1, 4, 3)
            return F.scaled_dot_product_attention(x, x, x).sum()

    with pytest.raises(UnsupportedError, match=f"scaled_dot_product_flash_attention.* has no .*{instead}"):
        dots_of(fused, w)

    def penalty():
        (g,) = torch.autograd.grad(w.exp().sum(), w, create_graph=True)
        return g.square().sum()

    with pytest.raises(UnsupportedError, match=f"computes gradients itself.*{instead}"):
        dots_of(penalty, w)


@pytest.mark.slow
def test_a_compiled_model_runs_uncompiled():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 1))
    compiled, x = torch.compile(model), torch.randn(5, 4)
    compiled(x)
    dot = dots_of(lambda: compiled(x).square().mean(), *model.parameters())
    torch.testing.assert_close(dot, sum(p.grad.double().square().sum() for p in model.parameters()))
