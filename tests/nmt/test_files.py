"""cats.nmt.files and cats.nmt.errors: a file is whole or not there, and a user's mistake is one line."""

from __future__ import annotations

import errno
import os
import stat
import threading
from pathlib import Path

import pytest

from cats.nmt.errors import UserError, nearest
from cats.nmt.files import (
    atomic_write,
    hard_link,
    line_blocks,
    make_folder,
    output_file,
    read_file,
    read_output,
    remove_temporary_files,
)
from tests.nmt.cli.common import Input


def raising(error: BaseException):
    def call(*args: object, **kwargs: object) -> None:
        raise error

    return call


@pytest.mark.parametrize(
    ("data", "stored"),
    [
        (b"\x00\r\n\xff", b"\x00\r\n\xff"),
        ("", b""),
        ("çox sağ ol\nдякуй\r\n", "çox sağ ol\nдякуй\r\n".encode()),
    ],
)
def test_what_is_written_is_what_is_stored(tmp_path: Path, data: bytes | str, stored: bytes) -> None:
    atomic_write(tmp_path / "file", data)
    assert (tmp_path / "file").read_bytes() == stored
    assert os.listdir(tmp_path) == ["file"]


def test_an_existing_file_is_replaced_and_a_string_is_a_path(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("a much longer text than the new one")
    atomic_write(str(path), "new")
    assert path.read_text() == "new"


def test_a_relative_path_without_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    atomic_write("file", "x")
    assert (tmp_path / "file").read_text() == "x"


@pytest.mark.skipif(os.name != "posix", reason="permission bits and folder fsync are POSIX")
def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        atomic_write(tmp_path / "file", "x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640


@pytest.mark.skipif(os.name != "posix", reason="permission bits and folder fsync are POSIX")
def test_order_is_sync_file_rename_sync_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    fsync, replace = os.fsync, os.replace

    def recorded_fsync(descriptor: int) -> None:
        calls.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        if calls[-1] == "file":
            assert os.fstat(descriptor).st_size == 3  # flushed before it is synced
        fsync(descriptor)

    def recorded_replace(source: Path, target: Path) -> None:
        assert Path(source).parent == Path(target).parent  # a rename across file systems is a copy
        calls.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(os, "replace", recorded_replace)
    atomic_write(tmp_path / "file", "abc")
    assert calls == ["file", "rename", "folder"]


@pytest.mark.parametrize("place", ["fsync", "replace"])
@pytest.mark.parametrize(
    ("error", "raised", "says"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), UserError, "the disk is full"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), UserError, "the disk is full"),
        (PermissionError(errno.EACCES, "Permission denied"), UserError, "cannot be written"),
        (OSError(errno.EROFS, "Read-only file system"), UserError, "cannot be written"),
        (OSError(errno.EIO, "Input/output error"), UserError, "cannot be written"),
        (KeyboardInterrupt("Ctrl-C"), KeyboardInterrupt, "Ctrl-C"),
    ],
)
def test_a_failure_leaves_the_old_file_and_nothing_else(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    error: BaseException,
    raised: type[BaseException],
    says: str,
) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    monkeypatch.setattr(os, place, raising(error))
    with pytest.raises(raised, match=says) as caught:
        atomic_write(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]
    if raised is UserError:
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


def write_output(path: Path | str, data: bytes) -> None:
    with output_file(path) as file:
        file.write(data)


posix = pytest.mark.skipif(os.name != "posix", reason="links, pipes and devices as POSIX has them")


@posix
def test_an_output_that_is_a_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    link, target = tmp_path / "link", tmp_path / "there" / "file"
    link.symlink_to("there/file")
    write_output(link, b"first")  # the link points to nothing yet
    target.chmod(0o600)
    before = target.stat().st_ino
    write_output(link, b"second")
    assert link.is_symlink() and target.read_bytes() == b"second"
    assert target.stat().st_ino != before  # replaced, not overwritten
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert os.listdir(tmp_path / "there") == ["file"]


@posix
def test_an_output_that_is_a_pipe_or_a_device_stays_one(tmp_path: Path) -> None:
    pipe, read = tmp_path / "pipe", list[bytes]()
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()), daemon=True)
    reader.start()
    write_output(pipe, b"through")
    reader.join(60)
    assert read == [b"through"] and stat.S_ISFIFO(pipe.stat().st_mode)

    link = tmp_path / "link"
    link.symlink_to("/dev/null")
    write_output(link, b"nothing")
    assert link.is_symlink() and stat.S_ISCHR(os.stat("/dev/null").st_mode)
    assert sorted(os.listdir(tmp_path)) == ["link", "pipe"]


@posix
@pytest.mark.parametrize("name", ["/dev/fd/{}", "/proc/self/fd/{}"])
def test_an_output_that_is_a_descriptor_is_not_opened_again(tmp_path: Path, name: str) -> None:
    with (tmp_path / "log").open("ab") as log:
        log.write(b"before ")
        log.flush()
        write_output(name.format(log.fileno()), b"inside ")
        log.write(b"after")
    assert (tmp_path / "log").read_bytes() == b"before inside after"


@posix
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "is a folder"),
        (".", "is a folder"),
        ("loop", "Too many levels of symbolic links"),
        ("file/below", "Not a directory"),
        ("absent/file", "its folder does not exist"),
        ("/dev/fd/98765", "Bad file descriptor"),
        ("/dev/fd/99999999999999999999", "cannot be written|does not exist"),
        pytest.param("/dev/full", "disk is full", marks=pytest.mark.skipif(not Path("/dev/full").exists(), reason="")),
    ],
)
def test_an_output_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("old")
    Path("loop").symlink_to("loop")
    with pytest.raises(UserError, match=message) as caught:
        write_output(name, b"x")
    assert "\n" not in str(caught.value)
    assert Path("file").read_text() == "old" and sorted(os.listdir()) == ["file", "loop"]


@posix
def test_an_output_that_is_protected_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("old")
    monkeypatch.setattr(os, "access", lambda *_: False)  # chmod does not stop the administrator
    with pytest.raises(UserError, match=r"file: cannot be written \(Permission denied\)"):
        write_output(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_text() == "old"


@posix
def test_a_pipe_without_readers_is_no_fault_of_the_user(tmp_path: Path) -> None:
    ours, theirs = os.pipe()
    os.close(ours)
    with pytest.raises(BrokenPipeError):
        write_output(f"/dev/fd/{theirs}", b"x")
    os.close(theirs)


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"one\r\n\xff\n")
    assert read_file(tmp_path / "file") == b"one\r\n\xff\n"
    with pytest.raises(UserError, match=r"file: not UTF-8 \(byte 6\)"):
        read_output(tmp_path / "file")
    with pytest.raises(FileNotFoundError):
        read_file(tmp_path / "absent")
    with pytest.raises(UserError, match="not a regular file"):
        read_file(tmp_path)
    if os.name == "posix":
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(UserError, match="pipe is not a regular file"):
            read_file(tmp_path / "pipe")  # it would wait for a writer


def test_text_that_has_no_utf8_form_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(UnicodeEncodeError):
        atomic_write(tmp_path / "file", "\ud800")
    assert os.listdir(tmp_path) == []


def test_a_missing_folder_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"file: cannot be written \(No such file or directory\)"):
        atomic_write(tmp_path / "missing" / "file", "x")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("links", [True, False])
def test_one_more_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool) -> None:
    if not links:  # as on FAT
        monkeypatch.setattr(os, "link", raising(PermissionError(errno.EPERM, "Operation not permitted")))
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_text("new"), other.write_text("old")
    for _ in range(2):  # the second time both are the same file already
        hard_link(one, other)
        assert (one.read_text(), other.read_text()) == ("new", "new")
        assert sorted(os.listdir(tmp_path)) == ["one", "other"]
    atomic_write(one, "newer")
    assert other.read_text() == "new"


def test_strays_are_removed_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "last.tmp").touch(), (tmp_path / ".mine.tmp").touch()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", raising(RuntimeError("killed")))
        with pytest.raises(RuntimeError, match="killed"), patch.context() as inner:
            inner.setattr(os, "replace", raising(RuntimeError("killed")))
            atomic_write(tmp_path / "file", "x")
    assert len(os.listdir(tmp_path)) == 3
    remove_temporary_files(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [".mine.tmp", "last.tmp"]


@pytest.mark.parametrize(
    ("word", "choices", "says"),
    [
        ("statc", ["cats", "static"], " (did you mean static?)"),
        ("AZ", ["az", "be"], " (did you mean az?)"),
        ("cldr", ("TED", "CLDR"), " (did you mean CLDR?)"),
        ("quux", ["cats", "static"], ""),
        ("cats", [], ""),
    ],
)
def test_nearest(word: str, choices: list[str], says: str) -> None:
    assert nearest(word, iter(choices)) == says


def test_a_stream_that_fails_is_named() -> None:
    class Broken(Input):
        def read1(self, _size: int) -> bytes:
            raise OSError(errno.EIO, "Input/output error")

    with pytest.raises(UserError, match=r"the input: cannot be read \(Input/output error\)"):
        list(line_blocks(Broken(), "the input", 32))


def test_lines_come_as_they_arrive() -> None:
    many = "".join(f"{i}\n" for i in range(70)).encode()
    chunks = b"\xef\xbb\xbfone\ntw", b"o\n\xe6\xbc", b"\xa2\r\n", many, b"a\xe2\x80\xa8b"
    blocks = list(line_blocks(Input(*chunks), "input", 32))
    assert blocks[:3] == [["one"], ["two"], ["漢"]]
    assert [len(block) for block in blocks[3:]] == [32, 32, 6, 1]
    assert blocks[-1] == ["a\u2028b"]
    assert list(line_blocks(Input(), "input", 32)) == [] and list(line_blocks(Input(b"\n"), "input", 32)) == [[""]]


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/run: the folder cannot be made \(Not a directory\); choose another$"):
        make_folder(tmp_path / "file" / "run")
    make_folder(tmp_path / "a" / "b")
    make_folder(tmp_path / "a" / "b")
    with pytest.raises(UserError, match=r"b: the folder cannot be made \(File exists\)"):
        make_folder(tmp_path / "a" / "b", exist_ok=False)
