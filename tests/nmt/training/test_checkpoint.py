"""Checkpoint files: exact round trip, damaged files, full disks."""

from __future__ import annotations

import errno
import os
import pickle
import subprocess
import sys

import pytest
import torch

from cats.nmt.errors import UserError
from cats.nmt.training import checkpoint


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
    with pytest.raises(UserError, match=r"best\.pt is damaged, not a checkpoint"):
        checkpoint.load(path)


def test_flipped_bits_are_noticed(tmp_path):
    path = tmp_path / "last.pt"
    checkpoint.save(path, {"step": 7, "model": {"weight": torch.arange(3.0)}})
    whole = path.read_bytes()
    for place in range(0, len(whole), 7):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
        with pytest.raises(checkpoint.Damaged):
            checkpoint.load(path)
    path.write_bytes(whole)
    assert torch.equal(torch.load(path, weights_only=True)["model"]["weight"], torch.arange(3.0))  # torch reads it too


def test_the_older_file_stays_under_its_name(tmp_path):
    last, previous = tmp_path / "last.pt", tmp_path / "previous.pt"
    for step in (1, 2, 3):
        checkpoint.save(last, {"step": step}, older=previous)
    assert (checkpoint.load(last), checkpoint.load(previous)) == ({"step": 3}, {"step": 2})
    assert sorted(os.listdir(tmp_path)) == ["last.pt", "previous.pt"]


@pytest.mark.parametrize("at", [0, 100, 3000, 40_000])
@pytest.mark.parametrize(
    ("error", "raised", "says"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), UserError, r"last\.pt: the disk is full"),
        (KeyboardInterrupt("Ctrl-C"), KeyboardInterrupt, "Ctrl-C"),
    ],
)
def test_a_write_that_fails_says_why(tmp_path, monkeypatch, at, error, raised, says):
    """torch's writer raises an error of its own, which must not hide the reason."""
    write = checkpoint._ChecksumFile.write

    def failing(summing, data):
        if summing.file.tell() + len(data) > at:
            raise error
        write(summing, data)

    monkeypatch.setattr(checkpoint._ChecksumFile, "write", failing)
    with pytest.raises(raised, match=says):
        checkpoint.save(tmp_path / "last.pt", {"model": [torch.ones(100) for _ in range(200)]})
    assert os.listdir(tmp_path) == []


def test_saving_makes_no_copy_in_memory(tmp_path):
    pytest.importorskip("resource")
    code = (
        "import resource, sys, torch; from pathlib import Path; from cats.nmt.training import checkpoint;"
        "state = {'model': [torch.ones(1 << 20) for _ in range(64)]};"  # 256 MiB
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss;"
        "checkpoint.save(Path(sys.argv[1]), state);"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "last.pt"], capture_output=True, text=True, check=True
    )
    unit = 1 if sys.platform == "darwin" else 1024
    assert int(done.stdout) * unit < 64 << 20


def test_missing_file(tmp_path):
    with pytest.raises(UserError, match=r"cannot read the checkpoint .*absent\.pt: No such file"):
        checkpoint.load(tmp_path / "absent.pt")


class Trap:
    def __reduce__(self):
        return os.mkdir, ("trapped",)


def test_pickled_code_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpoint.save(tmp_path / "best.pt", {"model": Trap()})
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Trap(), protocol=2))
    for name in ("best.pt", "plain.pt"):
        with pytest.raises(UserError, match="not a checkpoint"):
            checkpoint.load(tmp_path / name)
    assert not (tmp_path / "trapped").exists()


def test_a_file_without_a_checksum_is_no_checkpoint(tmp_path):
    torch.save({"model": {}}, tmp_path / "older.pt")
    with pytest.raises(UserError, match="one of an older version; train again"):
        checkpoint.load(tmp_path / "older.pt")
