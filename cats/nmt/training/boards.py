"""Programs that draw the numbers of a run while it trains: TensorBoard, and Weights & Biases (`train.wandb`)."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from cats.nmt.errors import UserError
from cats.nmt.files import atomic_write, read_file
from cats.nmt.screen import doing, tell


class Board(Protocol):
    """What gets the numbers of every line of metrics.jsonl."""

    def write(self, step: int, numbers: Mapping[str, float]) -> None: ...

    def flush(self) -> None: ...

    def close(self, *, failed: bool) -> None: ...


class TensorBoard:
    """Files for TensorBoard. Numbers of steps from `purge_step` on, of before a resume, are hidden.

    Raises:
        ImportError: TensorBoard is not installed.
    """

    def __init__(self, folder: Path, purge_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder), purge_step=purge_step)

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items():
            self.writer.add_scalar(name, value, step)

    def flush(self) -> None:
        self.writer.flush()

    def close(self, *, failed: bool) -> None:
        self.writer.close()


def import_wandb() -> Any:
    """The module wandb.

    Raises:
        UserError: it cannot be imported.
    """
    try:
        import wandb

        if not hasattr(wandb, "init"):  # the folder wandb/ that the library has left here is a module, too
            raise ImportError("No module named 'wandb'")
    except ImportError as error:
        raise UserError(f"train.wandb: {error}; install it with: pip install wandb") from None
    return wandb


class WeightsAndBiases:
    """A run of Weights & Biases. A resumed training continues it: its id is kept in a file.

    Numbers of steps that it has already are ignored there. On a CPU they are the same as before, so nothing is lost.
    If the server cannot be reached, or nobody is logged in, the numbers are kept on the disk; `wandb sync` sends them.

    Args:
        project: `train.wandb`.
        folder: the run directory. Its name is that of the run, and its folder wandb/ gets the files of the library.
        id_file: has the id of the run, or will have it.
        settings: {"section.key": value} of the training.
        quiet: print nothing.

    Raises:
        UserError: wandb cannot be imported, the file of the id is damaged, or wandb refuses to start.
    """

    def __init__(
        self, project: str, folder: Path, id_file: Path, settings: Mapping[str, Any], *, quiet: bool = False
    ) -> None:
        wandb = import_wandb()
        if not id_file.exists():
            atomic_write(id_file, secrets.token_hex(8))
        name = read_file(id_file).decode(errors="replace")
        if not (name.isascii() and name.isalnum()):
            raise UserError(f"{id_file} is damaged; remove it, and the numbers go to a new run of Weights & Biases")

        def start(mode: str | None) -> Any:
            return wandb.init(
                project=project,
                id=name,
                name=folder.resolve().name,
                dir=str(folder),
                config=dict(settings),
                allow_val_change=True,  # a resumed run may have more updates
                resume="allow",
                mode=mode,
                settings=wandb.Settings(console="off", silent=quiet),
            )

        doing("connecting to Weights & Biases", quiet=quiet)
        try:
            self.run = start(None)  # online, or what the environment variable WANDB_MODE says
        except wandb.Error as error:
            if not quiet:
                reason = str(error).partition("\n")[0]
                tell(
                    f"cats: Weights & Biases: {reason}; send the numbers later: wandb sync {folder}/wandb/offline-run-*"
                )
            wandb.teardown()  # its process still holds the id
            try:
                self.run = start("offline")
            except wandb.Error as again:
                raise UserError(f"train.wandb: {str(again).partition(chr(10))[0]}") from again

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        self.run.log(dict(numbers), step=step)

    def flush(self) -> None:
        """wandb sends the numbers by itself, from a process of its own."""

    def close(self, *, failed: bool) -> None:
        """Ends the run there; one that failed or was stopped is not shown as finished."""
        self.run.finish(exit_code=int(failed))
