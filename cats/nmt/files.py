"""Files that are either whole or not there, however the process ends."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, BinaryIO

from cats.nmt.errors import UserError

_FULL = {errno.ENOSPC, errno.EDQUOT}
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}


@contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A file to write that becomes `path` at the end, so that a reader, or a crash, finds the old file or the new one.

    The data goes to a temporary name in the same folder (which must exist), is flushed to the disk and renamed over
    `path`; on any failure the temporary file is removed and `path` keeps what it had.

    Raises:
        UserError: the disk is full, the folder may not be written, or does not exist, ...
    """
    path = Path(path)
    temporary = _temporary(path)
    try:
        try:
            # Not tempfile: its files are readable by their owner only, and a run directory is often shared.
            with open(temporary, "xb") as file:
                yield file
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
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from error


def atomic_write(path: str | os.PathLike[str], data: bytes | str) -> None:
    """Write `data` to `path` by ``atomic_file``. Text is written as UTF-8, its line ends as they are."""
    with atomic_file(path) as file:
        file.write(data.encode("utf-8") if isinstance(data, str) else data)


def link(path: Path, name: Path) -> None:
    """What `path` holds, under one more name in the same folder; a copy where the file system has no links."""
    temporary = _temporary(name)
    try:
        os.link(path, temporary)
    except OSError:
        with open(path, "rb") as source, atomic_file(name) as file:
            shutil.copyfileobj(source, file, 1 << 20)
        return
    try:
        os.replace(temporary, name)
    finally:
        temporary.unlink(missing_ok=True)  # it stays where `name` was that file already


def remove_strays(folder: Path) -> None:
    """Removes what ``atomic_file`` has left behind where its process was killed."""
    for path in folder.glob(f".{'?' * 16}.tmp"):
        path.unlink(missing_ok=True)


def finite(value: Any) -> Any:
    """`value` as JSON can hold it: None in place of nan and inf, through dicts, lists and tuples."""
    if isinstance(value, dict):
        return {name: finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextmanager
def locked(folder: Path, busy: Callable[[], None]) -> Iterator[None]:
    """Holds the folder's lock, which dies with the process that holds it, however that ends.

    busy: called where another process holds it, before waiting for that one's end; it may raise instead.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            busy()
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError:  # a file system without locks
            pass
        yield
    finally:
        os.close(descriptor)


def read_output(path: Path) -> list[str]:
    """The lines of a file that was written here, a line break after each; a carriage return is text like any other."""
    return path.read_bytes().decode("utf-8").split("\n")[:-1]


def line_blocks(stream: IO[bytes], name: str, most: int) -> Iterator[list[str]]:
    """Yield the lines of a stream as they arrive, `most` at a time, or fewer if no more have arrived yet.

    Line ends (LF or CRLF) and a byte order mark are removed. `name` is that of the stream in error messages.

    Raises:
        UserError: a line is not UTF-8. The lines before it are yielded first.
    """
    count, rest, block = 0, b"", list[str]()
    while True:
        chunk = stream.read1(1 << 16)  # type: ignore[attr-defined]
        *lines, rest = (rest + chunk).split(b"\n")
        if not chunk and rest:
            lines = [rest]
        for line in lines:
            count += 1
            try:
                text = line.decode().removesuffix("\r")
            except UnicodeDecodeError as error:
                if block:
                    yield block
                where = f"{name}, line {count}, byte {error.start + 1}"
                raise UserError(f"{where}: not UTF-8; convert it, for example with iconv") from None
            block.append(text.removeprefix("\ufeff") if count == 1 else text)
            if len(block) == most:
                yield block
                block = []
        if block:
            yield block
            block = []
        if not chunk:
            return


def cache_folder() -> Path:
    """Where what was computed from large corpora is kept: $CATS_CACHE, else cats/ in the user's cache folder."""
    given = os.environ.get("CATS_CACHE")
    return Path(given) if given else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cats"


def _temporary(path: Path) -> Path:
    """A name that nothing has, beside `path`."""
    return path.with_name(f".{secrets.token_hex(8)}.tmp")


def _sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut. Windows has no such call for folders and needs none."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some file systems know no such thing for folders
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
