"""The processes that train one run together, started by torchrun. Without torchrun there is one process.

Every process has the whole corpus, and a replica of the model or a shard of it. The main process (rank 0) writes the
files of the run and prints the messages. With one process, every function here returns at once.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

import torch
from torch import distributed as dist

from cats.nmt.errors import UserError

TIMEOUT = timedelta(hours=3)  # the other processes wait this long for the main one, which may prepare a large corpus
TORCHRUN_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@contextmanager
def process_group() -> Iterator[None]:
    """Joins the processes that torchrun started. Without torchrun, it does nothing.

    Raises:
        UserError: this machine has fewer GPUs than processes, or the processes cannot connect.
    """
    if "LOCAL_RANK" not in os.environ or os.environ.get("WORLD_SIZE", "1") == "1" or dist.is_initialized():
        yield
        return
    if missing := [name for name in TORCHRUN_VARIABLES if name not in os.environ]:
        raise UserError(f"start several processes with torchrun, which also sets {', '.join(missing)}")
    numbers = {name: _number(name) for name in TORCHRUN_VARIABLES if name != "MASTER_ADDR"}
    if numbers["RANK"] >= numbers["WORLD_SIZE"]:
        raise UserError(f"RANK = {numbers['RANK']} is not below WORLD_SIZE = {numbers['WORLD_SIZE']}; use torchrun")
    gpus, place = torch.cuda.device_count(), numbers["LOCAL_RANK"]
    if torch.cuda.is_available():
        if place >= gpus:
            raise UserError(f"process {place} has no GPU: there are {gpus}; give torchrun --nproc-per-node {gpus}")
        torch.cuda.set_device(place)
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    try:
        dist.init_process_group(
            backend,
            timeout=TIMEOUT,
            store=_store_of_this_start(numbers["MASTER_PORT"]),
            rank=numbers["RANK"],
            world_size=numbers["WORLD_SIZE"],
        )
    except (RuntimeError, ValueError) as error:
        raise UserError(f"the processes cannot connect: {str(error).partition(chr(10))[0]}") from error
    yield
    # Not in a `finally`: after an error in this process alone, it could wait for the others.
    dist.destroy_process_group()


def job() -> bytes:
    """The id of the torchrun job, which is the same after a restart of its processes; empty if there is none.

    torchrun makes one up for one machine. For several machines it is the option --rdzv-id, whose default is "none".
    """
    found = os.fsencode(os.environ.get("TORCHELASTIC_RUN_ID", ""))
    return b"" if found == b"none" else found


def _store_of_this_start(port: int) -> dist.Store | None:
    """The part of torchrun's store that belongs to this start of the processes. None: torch chooses the store.

    torchrun keeps one store for all its restarts (pytorch issue 135712). So processes would find the addresses of those
    that were killed, and fail to connect. On several machines, every torchrun counts its own restarts, so the count
    does not tell the starts apart.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True" or os.environ.get("GROUP_WORLD_SIZE") != "1":
        return None
    store = dist.TCPStore(os.environ["MASTER_ADDR"], port, timeout=TIMEOUT)
    return dist.PrefixStore(f"start {os.environ.get('TORCHELASTIC_RESTART_COUNT')}", store)


def _number(variable: str) -> int:
    """The value of an environment variable that torchrun sets."""
    text = os.environ[variable]
    if not text.isdecimal() or len(text) > 9:
        raise UserError(
            f"the environment variable {variable} is {text!r}, not a number; start the processes with torchrun"
        )
    return int(text)


def world_size() -> int:
    """The number of processes."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def local_world_size() -> int:
    """The number of processes on this machine, as torchrun says."""
    return _number("LOCAL_WORLD_SIZE") if "LOCAL_WORLD_SIZE" in os.environ else world_size()


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def is_main() -> bool:
    """Whether this is the process that writes files and prints messages."""
    return rank() == 0


def barrier() -> None:
    """Waits until all processes are here."""
    if world_size() > 1:
        dist.barrier()


@contextmanager
def main_first() -> Iterator[None]:
    """Runs the block in the main process first, and then in the others."""
    if not is_main():
        barrier()
    yield
    if is_main():
        barrier()


def all_reduce_sum(numbers: Sequence[float]) -> list[float]:
    """The sum of each number over the processes, in float64."""
    if world_size() == 1:
        return list(numbers)
    sums = torch.tensor(numbers, dtype=torch.float64, device=_device())
    dist.all_reduce(sums)
    return [float(value) for value in sums.tolist()]


def any_process(flag: bool) -> bool:
    """Whether the flag is set in any process."""
    return all_reduce_sum([float(flag)])[0] > 0


def equal_numbers(numbers: Sequence[float]) -> bool:
    """Whether all processes have the same numbers, bit for bit."""
    if world_size() == 1:
        return True
    mine = torch.tensor(numbers, dtype=torch.float64, device=_device())
    others = mine.clone()
    dist.broadcast(others, 0)
    return not any_process(not torch.equal(mine, others))


def equal_text(text: str) -> bool:
    """Whether all processes have the same text."""
    return not any_process(broadcast_text(text) != text)


def broadcast_text(text: str) -> str:
    """The text of the main process."""
    if world_size() == 1:
        return text
    data = torch.tensor(list(text.encode()), dtype=torch.uint8, device=_device())
    size = torch.tensor([len(data)], device=_device())
    dist.broadcast(size, 0)
    data = data if is_main() else data.new_empty(int(size))
    dist.broadcast(data, 0)
    return bytes(data.tolist()).decode()


def _device() -> torch.device:
    return torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")
