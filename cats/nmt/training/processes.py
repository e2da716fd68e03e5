"""The processes that train one run together, as torchrun starts them; by itself there is one, and nothing to agree on.

All have the whole corpus and a replica of the model. The first one writes the run's files and says what is to be said.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

import torch
from torch import distributed as dist

from cats.nmt.errors import UserError

LONGEST_WAIT = timedelta(hours=3)  # for the first one, which prepares a corpus
_TORCHRUN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@contextmanager
def joined() -> Iterator[None]:
    """Joins the processes that torchrun started, which it tells by environment variables.

    Raises:
        UserError: more processes on this machine than it has GPUs, or no way to one another.
    """
    if "LOCAL_RANK" not in os.environ or os.environ.get("WORLD_SIZE", "1") == "1" or dist.is_initialized():
        yield
        return
    if missing := [name for name in _TORCHRUN if name not in os.environ]:
        raise UserError(f"several processes are started by torchrun, which sets {', '.join(missing)} too")
    gpus, place = torch.cuda.device_count(), int(os.environ["LOCAL_RANK"])
    if torch.cuda.is_available():
        if place >= gpus:
            raise UserError(f"process {place} has no GPU: there are {gpus}; give torchrun --nproc-per-node {gpus}")
        torch.cuda.set_device(place)
    try:
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=LONGEST_WAIT)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"the processes do not find one another: {str(error).partition(chr(10))[0]}") from error
    yield
    dist.destroy_process_group()  # not after an error, which the others may not have: it could wait for them


def count() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if count() > 1 else 0


def first() -> bool:
    return rank() == 0


def wait() -> None:
    """Until all are here."""
    if count() > 1:
        dist.barrier()


@contextmanager
def one_before_the_others() -> Iterator[None]:
    """The first does it alone, then the others."""
    if not first():
        wait()
    yield
    if first():
        wait()


def total(numbers: Sequence[float]) -> list[float]:
    """The sums over the processes."""
    if count() == 1:
        return list(numbers)
    sums = torch.tensor(numbers, dtype=torch.float64, device=_device())
    dist.all_reduce(sums)
    return [float(value) for value in sums.tolist()]


def anybody(answer: bool) -> bool:
    """Whether it is true of any of them."""
    return total([float(answer)])[0] > 0


def agree(numbers: Sequence[float]) -> bool:
    """Whether all have the same numbers, bit for bit."""
    if count() == 1:
        return True
    mine = torch.tensor(numbers, dtype=torch.float64, device=_device())
    others = mine.clone()
    dist.broadcast(others, 0)
    return not anybody(not torch.equal(mine, others))


def same(text: str) -> bool:
    """Whether all have the same text."""
    return not anybody(of_the_first(text) != text)


def of_the_first(text: str) -> str:
    """The text that the first one has."""
    if count() == 1:
        return text
    data = torch.tensor(list(text.encode()), dtype=torch.uint8, device=_device())
    size = torch.tensor([len(data)], device=_device())
    dist.broadcast(size, 0)
    data = data if first() else data.new_empty(int(size))
    dist.broadcast(data, 0)
    return bytes(data.tolist()).decode()


def _device() -> torch.device:
    return torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")
