"""Lightning with several tasks, compared with a plain loop."""

from __future__ import annotations

import sys

import pytest
import torch

from tests.distributed.common import needs_gloo
from tests.integrations.common import run_with_torchrun
from tests.integrations.plain import (
    TASKS,
    Data,
    check_same,
    loader,
    losses_of,
    network,
    optimizer_of,
    plain_loop,
    schedule_of,
)
from tests.optim.common import same

lightning = pytest.importorskip("lightning.pytorch")

from cats.integrations.lightning import ModuleMixin, ReplicaStrategy  # noqa: E402


class Automatic(ModuleMixin, lightning.LightningModule):
    form = "tasks"

    def __init__(self):
        super().__init__()
        self.net = network()
        self.seen = []

    def training_losses(self, batch, batch_idx):
        return losses_of(self.net, batch, self.form)

    def on_train_batch_end(self, *args):
        self.seen.append(dict(self.trainer.callback_metrics))

    def configure_optimizers(self):
        optimizer = optimizer_of(self)
        return [optimizer], [{"scheduler": schedule_of(optimizer), "interval": "step"}]


class AutomaticEntries(Automatic):
    form = "entries"


class Manual(Automatic):
    """``self.optimizers()`` as it is."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        assert isinstance(optimizer, lightning.core.optimizer.LightningOptimizer)
        optimizer.zero_grad()
        optimizer.backward(losses_of(self.net, batch), **self.more())
        optimizer.step()
        self.lr_schedulers().step()

    def more(self):
        return {}


class ManualScaled(Manual):
    def more(self):
        return {"scaler": self.trainer.precision_plugin.scaler}


def trainer_of(folder, **settings):
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    return lightning.Trainer(default_root_dir=folder, **{"accelerator": "cpu", "devices": 1, **quiet, **settings})


def train(model, folder, resume=None, **settings):
    trainer = trainer_of(folder, **{"max_steps": 5, **settings})
    trainer.fit(model, loader(), ckpt_path=resume, **({"weights_only": True} if resume else {}))
    return trainer


def check_model(model, plain_net, plain_optimizer):
    check_same(model.net, model.optimizers(use_pl_optimizer=False), plain_net, plain_optimizer)


@pytest.mark.parametrize("model", [Automatic, AutomaticEntries, Manual])
def test_lightning_is_the_plain_loop_bit_for_bit(model, tmp_path):
    model = model()
    train(model, tmp_path)
    check_model(model, *plain_loop(model.form))


@pytest.mark.parametrize("model", [Automatic, AutomaticEntries])
def test_accumulation_clipping_and_bf16(model, tmp_path):
    model = model()
    # An epoch has 3 groups of 3 batches, and one batch that is left.
    train(model, tmp_path, accumulate_grad_batches=3, gradient_clip_val=0.1, precision="bf16-mixed")
    check_model(model, *plain_loop(model.form, accumulate=3, clip=0.1, autocast=torch.bfloat16))


@pytest.mark.parametrize(("model", "clip"), [(Automatic, 0.0), (Automatic, 0.1), (ManualScaled, 0.0)])
def test_fp16_with_a_scaler(model, clip, tmp_path):
    """On the CPU. Lightning refuses to clip for other optimizers whose step() unscales."""
    precision = pytest.importorskip("lightning.pytorch.plugins.precision")
    scalers = [torch.amp.GradScaler("cpu", init_scale=2.0**10) for _ in range(2)]
    plugins = [precision.MixedPrecision("16-mixed", "cpu", scalers[0])]
    model = model()
    train(model, tmp_path, plugins=plugins, **({"gradient_clip_val": clip} if clip else {}))
    check_model(model, *plain_loop(clip=clip, autocast=torch.float16, scaler=scalers[1]))
    assert scalers[0].state_dict() == scalers[1].state_dict()


@pytest.mark.parametrize("model", [Automatic, AutomaticEntries, Manual])
def test_a_resumed_run_repeats_bit_for_bit(model, tmp_path):
    # After an epoch, because Lightning does not skip the batches of an epoch that have been seen.
    whole, part, resumed = model(), model(), model()
    train(whole, tmp_path, max_steps=-1, max_epochs=2)
    train(part, tmp_path, max_steps=-1, max_epochs=1).save_checkpoint(tmp_path / "part.ckpt")
    train(resumed, tmp_path, resume=tmp_path / "part.ckpt", max_steps=-1, max_epochs=2)
    check_model(resumed, whole.net, whole.optimizers(use_pl_optimizer=False))


def test_weights_and_losses_are_logged(tmp_path):
    model = Automatic()
    train(model, tmp_path, max_steps=3)
    _, optimizer = plain_loop(steps=2)
    last = model.seen[-1]  # with the weights of the third step, and the losses of the second
    assert {t: last[f"alpha/{t}"].item() for t in TASKS} == pytest.approx(optimizer.alpha, rel=1e-6)  # float32
    assert {t: last[f"loss/{t}"].item() for t in TASKS} == pytest.approx(optimizer.statistics["losses"], rel=1e-6)


def test_what_cannot_work_is_refused(tmp_path):
    model = Automatic()
    model.configure_optimizers = lambda: torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(TypeError, match=r"must give one cats\.CATS or cats\.MultiTask, got SGD"):
        train(model, tmp_path)
    model = Automatic()
    model.training_losses = lambda *args: {"az": lambda: None}
    with pytest.raises(TypeError, match="must be tensors here, not callables"):
        train(model, tmp_path)


def test_a_replica_needs_an_optimizer_that_averages(tmp_path):
    """With manual optimization, for which there is no mixin that looks."""
    model = Manual()
    model.configure_optimizers = lambda: (optimizer_of(model), torch.optim.SGD(model.parameters(), lr=0.1))
    model.trainer = trainer_of(tmp_path)
    strategy = ReplicaStrategy()
    strategy.connect(model)
    with pytest.raises(TypeError, match=r"SGD would train a model of its own .* put it into cats\.MultiTask"):
        strategy.setup_optimizers(model.trainer)


class Balanced(Data):
    """Three rows of a process have one task each, so that the mean over processes is the mean over all rows."""

    def __getitem__(self, i):
        return *super().__getitem__(i)[:2], i % 3


def train_with_others(folder):
    """Called in each process that torchrun starts."""
    for model, strategy, data, rows in (
        (Automatic(), ReplicaStrategy(process_group_backend="gloo"), Data(), 2),
        (AutomaticEntries(), "ddp", Balanced(), 3),
    ):
        # The sampler that Lightning puts in is a random one.
        trainer = trainer_of(folder, strategy=strategy, devices=2, max_steps=5, use_distributed_sampler=False)
        sampler = torch.utils.data.DistributedSampler(data, num_replicas=2, rank=trainer.global_rank, shuffle=False)
        with torch.no_grad():
            model.net[2].bias += trainer.global_rank  # the first process gives its values to the others
        trainer.fit(model, torch.utils.data.DataLoader(data, batch_size=rows, sampler=sampler))
        optimizer = model.optimizers(use_pl_optimizer=False)
        numbers = {"alpha": optimizer.alpha, "losses": optimizer.statistics["losses"]}
        torch.save({"model": model.net.state_dict(), **numbers}, f"{folder}/{model.form}-{trainer.global_rank}.pt")


@pytest.mark.slow
@needs_gloo
def test_two_processes_of_torchrun_are_one_with_the_whole_batch(tmp_path):
    """``tasks`` with ReplicaStrategy, ``entries`` with DistributedDataParallel."""
    run_with_torchrun("tests.integrations.test_lightning", tmp_path)
    for form, data, rows in (("tasks", Data(), 4), ("entries", Balanced(), 6)):
        net, optimizer = plain_loop(form, batches=list(loader(data, rows)))
        results = [torch.load(tmp_path / f"{form}-{rank}.pt", weights_only=True) for rank in range(2)]
        assert same(*results)
        # float32: the order of the sums differs
        torch.testing.assert_close(results[0]["model"], dict(net.state_dict()))
        assert results[0]["alpha"] == pytest.approx(optimizer.alpha, rel=1e-4)
        assert results[0]["losses"] == pytest.approx(optimizer.statistics["losses"], rel=1e-4)


if __name__ == "__main__":
    train_with_others(sys.argv[1])
