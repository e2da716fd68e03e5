"""Memory: models that cannot fit are refused, and those that fit in shards are not."""

from __future__ import annotations

import importlib
import sys
from types import SimpleNamespace

import pytest

pytest.importorskip("sentencepiece")

import torch
from torch import nn

from cats.nmt.errors import UserError
from cats.nmt.training import processes, sharding
from cats.nmt.training.memory import check_memory
from cats.nmt.training.trainer import Trainer
from tests.nmt.common import settings


@pytest.mark.parametrize(("way", "shards"), [("replicas", 1), ("fsdp", 16), ("hybrid", 8)])
def test_the_memory_of_a_model_is_that_of_its_shards(tmp_path, monkeypatch, way, shards):
    """Two machines with eight GPUs each."""
    config = settings(tmp_path, f"train.distributed={way}", "sampling.batch_tokens=16", "model.d_model=1024")
    vocabulary = 1 << 20  # more than 16 GiB for parameters, gradients and moments
    monkeypatch.setattr(processes, "world_size", lambda: 16)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    for gib, fits in ((32 / shards, True), (16 / shards, False)):
        there = SimpleNamespace(total_memory=int(gib * 2**30))
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _, there=there: there)
        if fits:
            check_memory(config, vocabulary, torch.device("cuda"))
        else:
            with pytest.raises(UserError, match=r"the model, with at least .* parameters, needs more"):
                check_memory(config, vocabulary, torch.device("cuda"))


def test_a_sharded_model_is_never_whole_on_the_device(corpus, tmp_path, monkeypatch):
    """fully_shard moves it layer by layer."""
    did: list[str] = []
    monkeypatch.setattr(sharding, "is_sharded", lambda _: True)
    monkeypatch.setattr(sharding, "shard", lambda model, settings, device: did.append(f"shard, {device.type}"))
    monkeypatch.setattr(nn.Module, "to", lambda self, *_, **__: did.append("to") or self)
    Trainer(settings(corpus, "train.distributed=fsdp"), tmp_path / "run", resume=False, quiet=True)
    assert did == ["shard, cpu" if not torch.cuda.is_available() else "shard, cuda"]


def test_systems_without_the_module_resource_can_train(monkeypatch):
    """Windows has none."""
    monkeypatch.setitem(sys.modules, "resource", None)
    monkeypatch.delitem(sys.modules, "cats.nmt.training.memory")
    memory = importlib.import_module("cats.nmt.training.memory")
    assert memory.peak_memory(torch.device("cpu")) is None
