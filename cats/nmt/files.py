"""Files that are either whole or not there, however the process ends."""

from __future__ import annotations

import errno
import os
import secrets
from pathlib import Path

from cats.nmt.errors import UserError

_FULL = {errno.ENOSPC, errno.EDQUOT}
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}


def atomic_write(path: str | os.PathLike[str], data: bytes | str) -> None:
    """Write `data` to `path` so that a reader, or a crash, finds the old file or the new one, whole.

    Text is written as UTF-8, its line ends as they are. The data goes to a temporary name in the same folder
    (which must exist), is flushed to the disk and renamed over `path`; on any failure the temporary file is
    removed and `path` keeps what it had.

    Raises:
        UserError: the disk is full, or the folder may not be written.
        OSError: any other failure.
    """
    path = Path(path)
    if isinstance(data, str):
        data = data.encode("utf-8")
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        try:
            # Not tempfile: its files are readable by their owner only, and a run directory is often shared.
            with open(temporary, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)
    except OSError as error:
        if error.errno in _FULL:
            raise UserError(f"{path}: the disk is full; free some space and start again") from error
        if error.errno in _DENIED:
            raise UserError(f"{path}: cannot be written ({error.strerror}); choose another folder") from error
        raise


def cache_folder() -> Path:
    """Where what was computed from large corpora is kept: $CATS_CACHE, else cats/ in the user's cache folder."""
    given = os.environ.get("CATS_CACHE")
    return Path(given) if given else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cats"


def _sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut. Windows has no such call for folders and needs none."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
