"""cats.nmt.checkpoint: exact round trip, and what happens to damaged files and full disks."""

from __future__ import annotations

import errno
import os
import pickle

import pytest
import torch

from cats.nmt import checkpoint
from cats.nmt.errors import UserError


def state():
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "step": 7,
        "best": float("inf"),
        "l": [1.5],
    }


def test_round_trip_is_exact(tmp_path):
    saved = state()
    checkpoint.save(tmp_path / "last.pt", saved)
    loaded = checkpoint.load(tmp_path / "last.pt")
    assert (loaded["step"], loaded["best"], loaded["l"]) == (7, float("inf"), [1.5])
    for name, tensor in saved["model"].items():
        assert torch.equal(tensor, loaded["model"][name])
    for index, moments in saved["optimizer"]["state"].items():
        for name, tensor in moments.items():
            assert torch.equal(tensor, loaded["optimizer"]["state"][index][name])
    assert os.listdir(tmp_path) == ["last.pt"]


def test_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "last.pt"
    checkpoint.save(path, {"step": 1})

    def full(_descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"last\.pt: the disk is full"):
        checkpoint.save(path, {"step": 2})
    assert checkpoint.load(path) == {"step": 1}
    assert os.listdir(tmp_path) == ["last.pt"]


@pytest.mark.parametrize("damage", ["empty", "truncated", "text", "flipped header"])
def test_damaged_files_are_named(tmp_path, damage):
    path = tmp_path / "best.pt"
    checkpoint.save(path, state())
    whole = path.read_bytes()
    path.write_bytes(
        {
            "empty": b"",
            "truncated": whole[: len(whole) // 2],
            "text": b"hello",
            "flipped header": b"\0" + whole[1:],
        }[damage]
    )
    with pytest.raises(UserError, match=r"best\.pt is damaged or not a checkpoint"):
        checkpoint.load(path)


def test_missing_file(tmp_path):
    with pytest.raises(UserError, match=r"cannot read the checkpoint .*absent\.pt: No such file"):
        checkpoint.load(tmp_path / "absent.pt")


class Trap:
    def __reduce__(self):
        return os.mkdir, ("trapped",)


def test_pickled_code_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": Trap()}, tmp_path / "best.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Trap(), protocol=2))
    for name in ("best.pt", "plain.pt"):
        with pytest.raises(UserError, match="not a checkpoint"):
            checkpoint.load(tmp_path / name)
    assert not (tmp_path / "trapped").exists()


def test_a_bare_tensor_is_no_checkpoint(tmp_path):
    torch.save(torch.ones(2), tmp_path / "tensor.pt")
    with pytest.raises(UserError, match="holds no dictionary"):
        checkpoint.load(tmp_path / "tensor.pt")
