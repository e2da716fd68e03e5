"""The integrations on a GPU: fp16 with their own scalers, and FSDP 2 through Accelerate, close to a plain loop."""

from __future__ import annotations

import sys

import pytest
import torch

from tests.integrations.common import run_with_torchrun
from tests.integrations.plain import plain_loop

pytestmark = pytest.mark.gpu

# Of the scalers. With their default, 65536, the gradients of the first steps overflow, and these batches are skipped.
SCALE = 2.0**10
# Of a parameter after 5 steps of 0.05. On a CPU, autocast to bf16 moves one by 2e-3 at most, and to fp16, which has 3
# bits more, by 3e-4. The tolerance is about ten times that, because a GPU rounds other operations.
TOLERANCE = {"fp32": 1e-3, "bf16": 2e-2, "fp16": 4e-3}
NAMES = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}  # in Accelerate


def check_close(parameters, optimizer, tolerance, form="tasks"):
    """Compared with the plain loop in float32 on the CPU. Adam's steps are as large as the learning rate, 0.05.

    No step is skipped, so that all have seen the same batches.
    """
    expected, other = plain_loop(form)
    for p, q in zip(parameters, expected.parameters(), strict=True):
        torch.testing.assert_close(p.detach().float().cpu(), q, rtol=0, atol=tolerance)
    assert optimizer.alpha == pytest.approx(other.alpha, rel=2 * tolerance)
    assert optimizer.statistics["step"] == other.statistics["step"] and optimizer.statistics["skipped"] == 0


def check_scaler(scaler, precision):
    """A scaler that has taken part in all 5 steps, and found each of them finite."""
    assert (scaler is not None) == (precision == "fp16")
    if scaler is not None:
        assert scaler.get_scale() == SCALE and scaler.state_dict()["_growth_tracker"] == 5


@pytest.mark.parametrize("form", ["tasks", "entries"])
@pytest.mark.parametrize("precision", TOLERANCE)
def test_accelerate(precision, form):
    pytest.importorskip("accelerate")
    from accelerate.utils import GradScalerKwargs

    from cats.integrations.accelerate import Accelerator
    from tests.integrations.test_accelerate import parts, train

    accelerator = Accelerator(mixed_precision=NAMES[precision], kwargs_handlers=[GradScalerKwargs(init_scale=SCALE)])
    assert accelerator.device.type == "cuda"
    prepared = net, optimizer, *_ = accelerator.prepare(*parts())
    train(accelerator, prepared, form, clip=100.0)
    check_close(net.parameters(), optimizer, TOLERANCE[precision], form)
    check_scaler(accelerator.scaler, precision)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_fsdp_2_through_accelerate(precision, tmp_path):
    pytest.importorskip("accelerate")
    run_with_torchrun("tests.integrations.test_gpu", tmp_path, 1, precision)
    found = torch.load(tmp_path / "0.pt", weights_only=True)
    expected, other = plain_loop()
    tolerance = TOLERANCE[precision]
    for p, q in zip(found["model"], expected.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=tolerance)
    assert found["alpha"] == pytest.approx(other.alpha, rel=2 * tolerance)


def train_sharded(folder, precision):
    """Called in each process that torchrun starts."""
    from accelerate import FullyShardedDataParallelPlugin
    from accelerate.utils import GradScalerKwargs
    from torch.distributed.fsdp import FSDPModule

    from cats.integrations.accelerate import Accelerator
    from tests.integrations.test_accelerate import parts, train

    plugin = FullyShardedDataParallelPlugin(fsdp_version=2)
    accelerator = Accelerator(
        fsdp_plugin=plugin,
        mixed_precision=NAMES[precision],
        step_scheduler_with_optimizer=False,
        kwargs_handlers=[GradScalerKwargs(init_scale=SCALE)],
    )
    prepared = net, optimizer, *_ = accelerator.prepare(*parts())
    assert isinstance(net, FSDPModule)
    train(accelerator, prepared, clip=100.0)
    assert optimizer.statistics["skipped"] == 0
    check_scaler(accelerator.scaler, precision)
    model = [p.full_tensor().float().cpu() for p in net.parameters()]
    torch.save({"model": model, "alpha": optimizer.alpha}, f"{folder}/{accelerator.process_index}.pt")


@pytest.mark.parametrize("precision", TOLERANCE)
def test_the_trainer_of_transformers(precision, tmp_path):
    pytest.importorskip("transformers")
    from tests.integrations.test_transformers import ByEntries, trainer_of
    from tests.integrations.test_transformers import plain_loop as plain

    trainer = trainer_of(tmp_path, ByEntries, use_cpu=False, **({} if precision == "fp32" else {precision: True}))
    if precision == "fp16":  # the Trainer has no setting for it, and takes this one when training begins
        trainer.accelerator.scaler = torch.amp.GradScaler("cuda", init_scale=SCALE)
    trainer.train()
    model, optimizer, _ = plain(ByEntries)
    assert next(trainer.model.parameters()).is_cuda and trainer.multitask_optimizer.statistics["skipped"] == 0
    check_scaler(trainer.accelerator.scaler, precision)
    tolerance = TOLERANCE[precision]
    for p, q in zip(trainer.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(p.detach().cpu(), q, rtol=0, atol=tolerance)
    assert trainer.multitask_optimizer.alpha == pytest.approx(optimizer.alpha, rel=2 * tolerance)


@pytest.mark.parametrize("precision", TOLERANCE)
def test_lightning(precision, tmp_path):
    pytest.importorskip("lightning")
    from lightning.pytorch.plugins.precision import MixedPrecision

    from tests.integrations.test_lightning import Automatic, train

    module, scaler = Automatic(), None
    settings = {"precision": {"fp32": "32-true", "bf16": "bf16-mixed"}.get(precision)}
    if precision == "fp16":
        scaler = torch.amp.GradScaler("cuda", init_scale=SCALE)
        settings = {"plugins": [MixedPrecision("16-mixed", "cuda", scaler)]}
    train(module, tmp_path, accelerator="gpu", **settings)
    check_close(module.net.parameters(), module.optimizers(use_pl_optimizer=False), TOLERANCE[precision])
    check_scaler(scaler, precision)


if __name__ == "__main__":
    train_sharded(*sys.argv[1:])
