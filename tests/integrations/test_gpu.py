"""The integrations on a GPU: fp16 with their own scalers, and FSDP 2 through Accelerate, close to a plain loop."""

from __future__ import annotations

import sys

import pytest
import torch

from tests.integrations.common import run_with_torchrun
from tests.integrations.plain import plain_loop

pytestmark = pytest.mark.gpu


def check_close(parameters, optimizer, tolerance, form="tasks"):
    """Compared with the plain loop in float32 on the CPU. Adam's steps are as large as the learning rate, 0.05."""
    expected, other = plain_loop(form)
    for p, q in zip(parameters, expected.parameters(), strict=True):
        torch.testing.assert_close(p.detach().float().cpu(), q, rtol=0, atol=tolerance)
    assert optimizer.alpha == pytest.approx(other.alpha, rel=2 * tolerance)
    assert optimizer.statistics["step"] == other.statistics["step"] + optimizer.statistics["skipped"]


@pytest.mark.parametrize("form", ["tasks", "entries"])
@pytest.mark.parametrize(("precision", "tolerance"), [("no", 1e-3), ("bf16", 5e-2), ("fp16", 1e-2)])
def test_accelerate(precision, tolerance, form):
    pytest.importorskip("accelerate")
    from cats.integrations.accelerate import Accelerator
    from tests.integrations.test_accelerate import parts, train

    accelerator = Accelerator(mixed_precision=precision)
    assert accelerator.device.type == "cuda" and (accelerator.scaler is not None) == (precision == "fp16")
    prepared = net, optimizer, *_ = accelerator.prepare(*parts())
    train(accelerator, prepared, form, clip=100.0)
    check_close(net.parameters(), optimizer, tolerance, form)
    if precision == "fp16":
        assert accelerator.scaler.state_dict()["_growth_tracker"] == 5


@pytest.mark.parametrize(("precision", "tolerance"), [("no", 1e-3), ("fp16", 1e-2)])
def test_fsdp_2_through_accelerate(precision, tolerance, tmp_path):
    pytest.importorskip("accelerate")
    run_with_torchrun("tests.integrations.test_gpu", tmp_path, 1, precision)
    found = torch.load(tmp_path / "0.pt", weights_only=True)
    expected, other = plain_loop()
    for p, q in zip(found["model"], expected.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=tolerance)
    assert found["alpha"] == pytest.approx(other.alpha, rel=2 * tolerance)


def train_sharded(folder, precision):
    """Called in each process that torchrun starts."""
    from accelerate import FullyShardedDataParallelPlugin
    from torch.distributed.fsdp import FSDPModule

    from cats.integrations.accelerate import Accelerator
    from tests.integrations.test_accelerate import parts, train

    plugin = FullyShardedDataParallelPlugin(fsdp_version=2)
    accelerator = Accelerator(fsdp_plugin=plugin, mixed_precision=precision, step_scheduler_with_optimizer=False)
    prepared = net, optimizer, *_ = accelerator.prepare(*parts())
    assert isinstance(net, FSDPModule)
    train(accelerator, prepared, clip=100.0)
    model = [p.full_tensor().float().cpu() for p in net.parameters()]
    torch.save({"model": model, "alpha": optimizer.alpha}, f"{folder}/{accelerator.process_index}.pt")


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_the_trainer_of_transformers(precision, tmp_path):
    pytest.importorskip("transformers")
    from tests.integrations.test_transformers import ByEntries, trainer_of
    from tests.integrations.test_transformers import plain_loop as plain

    trainer = trainer_of(tmp_path, ByEntries, use_cpu=False, **({} if precision == "fp32" else {precision: True}))
    trainer.train()
    model, optimizer, _ = plain(ByEntries)
    assert next(trainer.model.parameters()).is_cuda
    tolerance = {"fp32": 1e-3, "bf16": 5e-2, "fp16": 1e-2}[precision]
    for p, q in zip(trainer.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(p.detach().cpu(), q, rtol=0, atol=tolerance)
    assert trainer.multitask_optimizer.alpha == pytest.approx(optimizer.alpha, rel=2 * tolerance)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_lightning(precision, tmp_path):
    pytest.importorskip("lightning")
    from tests.integrations.test_lightning import Automatic, train

    module = Automatic()
    train(module, tmp_path, accelerator="gpu", precision=precision)
    tolerance = {"32-true": 1e-3, "bf16-mixed": 5e-2, "16-mixed": 1e-2}[precision]
    check_close(module.net.parameters(), module.optimizers(use_pl_optimizer=False), tolerance)


if __name__ == "__main__":
    train_sharded(*sys.argv[1:])
