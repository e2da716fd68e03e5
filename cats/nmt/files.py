"""Writing files atomically, reading them without waiting, checksums, locks, and the cache folder."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import IO, Any, BinaryIO

from cats.nmt.errors import UserError

_FULL = {errno.ENOSPC, errno.EDQUOT}
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}
CHECKSUM = "checksum"


@contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A file to write to that replaces `path` at the end. Readers find the old or the new file, even after a crash.

    The data is written to a temporary file in the same folder (which must exist), flushed to the disk and renamed to
    `path`, whose permissions are kept if it exists. On any failure the temporary file is removed and `path` is
    unchanged. For a path that the user names, use ``output_file``.

    Raises:
        UserError: the file cannot be written, for example because the disk is full.
    """
    path = Path(path)
    temporary = _temporary(path)
    try:
        try:
            # Not tempfile: only the owner can read its files, but run directories are often shared.
            with open(temporary, "xb") as file:
                with contextlib.suppress(OSError):
                    shutil.copymode(path, temporary)
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)
    except OSError as error:
        raise unwritable(path, error) from error


@contextmanager
def output_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A file to write to whose name the user has given, such as that of --output.

    A regular file is replaced at the end, as by ``atomic_file``. If the name is a link, the link stays and the file
    that it points to is replaced. Pipes and devices are written to directly. /dev/stdout and /dev/fd/N are the open
    descriptors of this process, so that ``>>`` appends.

    Raises:
        UserError: the name is that of a folder, or the file cannot be written.
        BrokenPipeError: nobody reads the pipe any more.
    """
    try:
        target = _direct_target(path)
        if target is not None:
            with open(target, "wb") as file:
                yield file
            return
    except BrokenPipeError:
        raise
    except OSError as error:
        raise unwritable(path, error) from error
    with atomic_file(os.path.realpath(path)) as file:
        yield file


def atomic_write(path: str | os.PathLike[str], data: bytes | str) -> None:
    """Writes `data` to `path` with ``atomic_file``. Text is written as UTF-8, with its line ends unchanged."""
    with atomic_file(path) as file:
        file.write(data.encode("utf-8") if isinstance(data, str) else data)


def open_regular(path: str | os.PathLike[str]) -> BufferedReader:
    """Opens a regular file to read. A pipe or a device is refused, because reading it could wait for ever.

    Raises:
        UserError: it is no regular file.
        OSError: it cannot be opened.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise UserError(f"{os.fspath(path)} is not a regular file; put a regular file in its place")
    return open(path, "rb")


# {(path, its stat): SHA-256}. The time of the last change of the inode is part of the key, and no program can set it
# back, unlike that of the content. So a file is read once per process, and again whenever it may have changed.
_digests: dict[tuple[str, int, int, int, int, int], str] = {}


def file_digest(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal. sha256sum prints the same. About 1.4 GB per second.

    Raises:
        UserError, OSError: see ``open_regular``.
    """
    with open_regular(path) as file:
        found = os.fstat(file.fileno())
        key = (str(path), found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
        if key not in _digests:
            _digests[key] = hashlib.file_digest(file, "sha256").hexdigest()
        return _digests[key]


def write_checked_json(path: Path, values: dict[str, Any], *, indent: int | None = None) -> None:
    """Writes a dict as JSON, with a key "checksum" that ``read_checked_json`` verifies."""
    sealed = {**values, CHECKSUM: _json_checksum(values)}
    atomic_write(path, json.dumps(sealed, indent=indent, ensure_ascii=False) + "\n")


def read_checked_json(path: Path, *, required: bool | str = False) -> dict[str, Any]:
    """The dict that ``write_checked_json`` wrote. Files of earlier versions have no checksum.

    Args:
        required: refuse a file without a checksum, or one that has this key, which earlier versions did not write.

    Raises:
        UserError, OSError: see ``open_regular``.
        ValueError: it is not such a file, or it was changed.
    """
    with open_regular(path) as file:
        try:
            values = json.loads(file.read().decode("utf-8"))
        except RecursionError:
            values = None
    if not isinstance(values, dict):
        raise ValueError("not a dict")
    checked = CHECKSUM in values or (required in values if isinstance(required, str) else required)
    if checked and values.pop(CHECKSUM, "") != _json_checksum(values):
        raise ValueError("the checksum is wrong")
    return values


def _json_checksum(values: dict[str, Any]) -> str:
    """The SHA-256 of a dict. Line breaks and the order of keys do not matter."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode("ascii")).hexdigest()


def hard_link(path: Path, name: Path) -> None:
    """Makes a hard link `name` to `path`, in the same folder. Copies the file if the file system has no links."""
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
        temporary.unlink(missing_ok=True)  # os.replace leaves it if `name` was a link to the same file


def is_free(path: Path) -> bool:
    """Whether there is nothing at `path`, or an empty folder."""
    return not path.exists() or (path.is_dir() and not any(path.iterdir()))


def remove_temporary_files(folder: Path) -> None:
    """Removes the temporary files that ``atomic_file`` leaves in `folder` if its process is killed."""
    for path in folder.glob(f".{'?' * 16}.tmp"):
        path.unlink(missing_ok=True)


def finite_or_none(value: Any) -> Any:
    """`value` with None instead of nan and inf, which JSON does not have. Works through dicts, lists and tuples."""
    if isinstance(value, dict):
        return {name: finite_or_none(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite_or_none(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextmanager
def locked(folder: Path, busy: Callable[[], None]) -> Iterator[None]:
    """Holds the lock of a folder. The lock is released when its process ends, however it ends.

    Args:
        busy: called when another process holds the lock. If it returns, wait for the lock; it may raise instead.
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


def read_file(path: str | os.PathLike[str]) -> bytes:
    """The content of a regular file. A pipe or a device is refused, because reading it could wait for ever.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: it is no regular file, or it cannot be read.
    """
    try:
        with open_regular(path) as file:
            return file.read()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error


def as_text(name: str) -> str:
    """The name of a file as text, with "?" for what is no text. File systems allow other names, too."""
    return name.encode("utf-8", "replace").decode()


def short_names(paths: Sequence[Path]) -> list[str]:
    """The last parts of each path, as few as tell all of them apart, as text."""
    parts = [path.resolve().parts for path in paths]
    for count in range(1, max(map(len, parts), default=1)):
        names = [as_text("/".join(each[-count:])) for each in parts]
        if len({*names}) == len(names):
            return names
    return [as_text(str(path.resolve())) for path in paths]


def one_line(text: str) -> str:
    """The text with spaces for carriage returns. Many programs take one for the end of a line."""
    return text.replace("\r", " ")


def read_output(path: Path) -> list[str]:
    """The lines of a file that cats wrote, each ending in a line feed. Carriage returns are kept as text.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: it is not UTF-8, or see ``read_file``.
    """
    try:
        return read_file(path).decode("utf-8").split("\n")[:-1]
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 (byte {error.start + 1}), so it is not what cats wrote") from None


def line_blocks(stream: IO[bytes], name: str, most: int) -> Iterator[list[str]]:
    """Yield the lines of a stream as they arrive, `most` at a time, or fewer if no more have arrived yet.

    Line ends (LF or CRLF) and a byte order mark are removed. Error messages call the stream `name`.

    Raises:
        UserError: a line is not UTF-8, or the stream cannot be read. The lines before it are yielded first.
    """
    count, rest, block = 0, b"", list[str]()
    while True:
        try:
            chunk = stream.read1(1 << 16)  # type: ignore[attr-defined]
        except OSError as error:
            raise UserError(f"{name}: cannot be read ({error.strerror or error})") from error
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
    """The folder for results computed from large corpora: $CATS_CACHE, else cats/ in the user's cache folder."""
    if given := os.environ.get("CATS_CACHE"):
        return Path(given)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cats"
    except RuntimeError:  # no home folder
        raise UserError("this user has no home folder to keep results in; set CATS_CACHE to a folder") from None


def is_cached(path: Path) -> bool:
    """Whether a file or folder is below the cache folder, where users put nothing themselves."""
    try:
        return cache_folder() in path.parents
    except UserError:  # there is none
        return False


def _direct_target(path: str | os.PathLike[str]) -> str | int | None:
    """What to open to write to an output directly: a name, or a descriptor. None: a regular file, to be replaced."""
    name = str(Path(path))
    if match := re.fullmatch(r"/(?:dev|proc/self)/fd/([0-9]{1,9})", name):
        return os.dup(int(match[1]))
    if name in ("/dev/stdout", "/dev/stderr"):
        return os.dup(1 if name == "/dev/stdout" else 2)
    try:
        mode = os.stat(name).st_mode
    except FileNotFoundError:
        if not os.path.isdir(os.path.dirname(os.path.realpath(name))):
            raise UserError(f"{name}: its folder does not exist; create it, or choose another one") from None
        return None
    if stat.S_ISDIR(mode):
        raise UserError(f"{name} is a folder; give the name of a file")
    if stat.S_ISREG(mode) and not os.access(name, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    return None if stat.S_ISREG(mode) else name


def make_folder(path: Path, *, exist_ok: bool = True) -> None:
    """Makes a folder and those above it.

    Raises:
        UserError: it cannot be made, or it is there and `exist_ok` is not set.
    """
    try:
        path.mkdir(parents=True, exist_ok=exist_ok)
    except OSError as error:
        if error.errno in _FULL:
            raise unwritable(path, error) from error
        raise UserError(f"{path}: the folder cannot be made ({error.strerror}); choose another") from error


def unwritable(path: str | os.PathLike[str], error: OSError) -> UserError:
    """The error to raise for a file that cannot be written."""
    if error.errno in _FULL:
        return UserError(f"{path}: the disk is full; free some space and start again")
    if error.errno in _DENIED:
        return UserError(f"{path}: cannot be written ({error.strerror}); choose another folder")
    return UserError(f"{path}: cannot be written ({error.strerror or error})")


def _temporary(path: Path) -> Path:
    """An unused file name in the folder of `path`."""
    return path.with_name(f".{secrets.token_hex(8)}.tmp")


def _sync_folder(folder: Path) -> None:
    """Makes a rename in `folder` survive a power failure. Windows has no such call for folders, and needs none."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some file systems do not support it for folders
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
