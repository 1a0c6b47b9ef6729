"""Files are written whole or not at all, whatever fails and whoever else writes."""

import errno
import multiprocessing
import os
import pathlib
import re
import stat
import threading

import pytest

from gpurnn import _files
from gpurnn._files import write_atomically

posix = pytest.mark.skipif(os.name != "posix", reason="modes, links and pipes are POSIX's")


@pytest.mark.parametrize("fault", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("call", ["open", "fchmod", "write", "fsync", "replace"])
@pytest.mark.parametrize("old", [b"old", None])
def test_a_failure_at_any_point_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, call, fault, old):
    path = tmp_path / "f"
    if old is not None:
        path.write_bytes(old)

    def fail(*_, **__):
        raise fault

    class Full:
        def __init__(self, *arguments, **options):
            self.file = open(*arguments, **options)  # noqa: SIM115

        def write(self, data):
            self.file.write(data[:2])
            fail()

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def __getattr__(self, name):
            return getattr(self.file, name)

    if call == "open":
        monkeypatch.setattr(_files, "open", fail, raising=False)
    elif call == "write":
        monkeypatch.setattr(_files, "open", Full, raising=False)
    else:
        monkeypatch.setattr(os, call, fail)
    if (call, old) == ("fchmod", None):
        write_atomically(path, b"new")  # the mode of a new file is never changed
        return
    with pytest.raises(type(fault)) as caught:
        write_atomically(path, b"new")
    monkeypatch.undo()
    assert not isinstance(fault, OSError) or str(caught.value) == f"[Errno 28] No space left on device: '{path}'"
    assert os.listdir(tmp_path) == ([] if old is None else ["f"])
    assert old is None or path.read_bytes() == old
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"


@posix
def test_the_order_of_a_write_is_flush_rename_flush_directory(tmp_path, monkeypatch):
    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("needs /proc to name an open file")
    events = []
    fsync, replace = os.fsync, os.replace

    def traced_fsync(descriptor):
        events.append(("fsync", os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}"))))
        fsync(descriptor)

    def traced_replace(source, target):
        assert pathlib.Path(source).read_bytes() == b"bytes"
        events.append(("replace", os.path.basename(target)))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", traced_fsync)
    monkeypatch.setattr(os, "replace", traced_replace)
    write_atomically(tmp_path / "f", b"bytes")
    (first, temporary), *rest = events
    assert (first, rest) == ("fsync", [("replace", "f"), ("fsync", tmp_path.name)])
    assert re.fullmatch(r"\.f\.[0-9a-f]{16}\.partial", temporary)


@posix
@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o644, 0o660, 0o755, None])
def test_an_overwritten_file_keeps_its_mode_and_a_new_one_has_that_of_the_umask(tmp_path, mode, umask):
    path = tmp_path / "f"
    if mode is not None:
        path.write_bytes(b"old")
        path.chmod(mode)
    before = os.umask(umask)
    try:
        write_atomically(path, b"new")
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == (0o666 & ~umask if mode is None else mode)


@posix
def test_an_overwritten_file_keeps_its_owner_and_group_where_that_is_permitted(tmp_path, monkeypatch):
    """If neither is permitted, the file's new group gets no permissions."""
    path, asked = tmp_path / "f", []
    path.write_bytes(b"old")
    path.chmod(0o660)
    own = path.stat()

    class Other:
        st_uid, st_gid, st_mode = own.st_uid + 1, own.st_gid + 1, own.st_mode

    allowed = [True, (-1, own.st_gid + 1), None]

    def fchown(descriptor, *ids):
        asked.append(ids)
        if allowed[0] is not True and ids != allowed[0]:
            raise PermissionError(errno.EPERM, "Operation not permitted")

    lstat = os.lstat
    monkeypatch.setattr(os, "lstat", lambda p: Other if p == path else lstat(p))
    monkeypatch.setattr(os, "fchown", fchown)
    both, group = (own.st_uid + 1, own.st_gid + 1), (-1, own.st_gid + 1)
    for expected, mode in (([both], 0o660), ([both, group], 0o660), ([both, group], 0o600)):
        write_atomically(path, b"new")
        assert asked == expected
        assert stat.S_IMODE(path.stat().st_mode) == mode
        asked.clear()
        del allowed[0]


@posix
def test_the_new_contents_of_a_private_file_are_never_readable_by_others(tmp_path, monkeypatch):
    path, seen, fsync = tmp_path / "f", [], os.fsync
    path.write_bytes(b"old")
    path.chmod(0o600)

    class Watched:
        def __init__(self, name, *arguments, **options):
            self.file = open(name, *arguments, **options)  # noqa: SIM115
            seen.append(stat.S_IMODE(os.stat(name).st_mode))

        def __enter__(self):
            return self.file

        def __exit__(self, *_):
            self.file.close()

    monkeypatch.setattr(_files, "open", Watched, raising=False)
    monkeypatch.setattr(os, "fsync", lambda fd: (seen.append(stat.S_IMODE(os.fstat(fd).st_mode)), fsync(fd)))
    write_atomically(path, b"new")
    assert seen[:2] == [0o600, 0o600]


@posix
def test_a_link_stays_and_its_target_is_replaced(tmp_path):
    (tmp_path / "models").mkdir()
    target, link, chain = tmp_path / "models" / "m", tmp_path / "latest", tmp_path / "chain"
    target.write_bytes(b"old")
    target.chmod(0o600)
    link.symlink_to("models/m")
    chain.symlink_to(link)
    write_atomically(chain, b"new")
    assert link.is_symlink()
    assert chain.is_symlink()
    assert target.read_bytes() == b"new"
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert os.listdir(tmp_path / "models") == ["m"]
    dangling = tmp_path / "dangling"
    dangling.symlink_to("models/new")
    write_atomically(dangling, b"first")
    assert (tmp_path / "models" / "new").read_bytes() == b"first"


@posix
def test_a_loop_of_links_is_an_error(tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(OSError, match="symbolic links"):
        write_atomically(tmp_path / "a", b"x")
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]
    assert (tmp_path / "a").is_symlink()


@posix
@pytest.mark.parametrize("planted", ["link", "fifo", "file"])
def test_what_lies_at_the_temporary_name_is_neither_followed_nor_deleted(tmp_path, monkeypatch, planted):
    """The attacker knows the random part of the name, or plants a file at the name that one would expect."""
    monkeypatch.setattr(_files.secrets, "token_hex", lambda n: "ab" * n)
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    for name in (".m.partial", "." + "m" + "." + "ab" * 8 + ".partial"):
        if planted == "link":
            (tmp_path / name).symlink_to(victim)
        elif planted == "fifo":
            os.mkfifo(tmp_path / name)
        else:
            (tmp_path / name).write_bytes(b"precious")
    with pytest.raises(FileExistsError):
        write_atomically(tmp_path / "m", b"new")
    monkeypatch.undo()
    write_atomically(tmp_path / "m", b"new")
    assert victim.read_bytes() == b"precious"
    for name in (".m.partial", "." + "m" + "." + "ab" * 8 + ".partial"):
        kind = {"link": stat.S_ISLNK, "fifo": stat.S_ISFIFO, "file": stat.S_ISREG}[planted]
        assert kind((tmp_path / name).lstat().st_mode)
        assert planted != "file" or (tmp_path / name).read_bytes() == b"precious"


@posix
@pytest.mark.parametrize(
    "kind",
    [
        "directory", "fifo", "device", "read-only", "no directory", "a file for a directory",
        "a name that ends in a slash",
    ],
)  # fmt: skip
def test_targets_that_are_no_file_are_errors_at_once_and_stay(tmp_path, monkeypatch, kind):
    path = tmp_path / "m"
    if kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "device":
        path = pathlib.Path("/dev/null")
    elif kind == "read-only":
        path.write_bytes(b"old")
        path.chmod(0o444)
        if os.access(path, os.W_OK):  # root may write to any file
            monkeypatch.setattr(os, "access", lambda *_: False)
    elif kind == "no directory":
        path = tmp_path / "none" / "m"
    elif kind == "a file for a directory":
        (tmp_path / "none").write_bytes(b"")
        path = tmp_path / "none" / "m"
    before, names = (path.lstat() if path.exists() else None), sorted(os.listdir(tmp_path))
    given = f"{path}/" if kind == "a name that ends in a slash" else path
    with pytest.raises(OSError, match=f"'{re.escape(str(given))}'$") as caught:
        write_atomically(given, b"new")
    assert caught.type in (IsADirectoryError, OSError, PermissionError, FileNotFoundError, NotADirectoryError)
    assert sorted(os.listdir(tmp_path)) == names
    assert before is None or (path.lstat().st_mode, path.lstat().st_ino) == (before.st_mode, before.st_ino)


@posix
def test_a_read_only_directory_is_an_error(tmp_path):
    tmp_path.chmod(0o555)
    try:
        if os.access(tmp_path, os.W_OK):
            pytest.skip("root may write to read-only directories")
        with pytest.raises(PermissionError):
            write_atomically(tmp_path / "m", b"new")
    finally:
        tmp_path.chmod(0o755)
    assert os.listdir(tmp_path) == []


def test_a_name_as_long_as_the_system_allows(tmp_path):
    path = tmp_path / ("m" * 255)
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"


def _write_many(path, letter, count):
    for _ in range(count):
        write_atomically(path, letter * 100_000)


@posix
def test_three_threads_and_two_processes_write_one_path_while_two_threads_read(tmp_path, monkeypatch):
    """None of at least 500 writes fails, and no read sees a missing, short or mixed file."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    path, torn, reads, over = tmp_path / "m", [], [0], threading.Event()
    write_atomically(path, b"x" * 100_000)
    failed = []

    def read():
        while not over.is_set():
            data = path.read_bytes()
            reads[0] += 1
            if len(data) != 100_000 or data != data[:1] * 100_000:
                torn.append(data[:10])

    def write(letter):
        try:
            _write_many(path, letter, 100)
        except BaseException as error:
            failed.append(error)

    readers = [threading.Thread(target=read) for _ in range(2)]
    writers = [threading.Thread(target=write, args=(letter,)) for letter in (b"a", b"b", b"c")]
    context = multiprocessing.get_context("spawn")
    others = [context.Process(target=_write_many, args=(path, letter, 100)) for letter in (b"d", b"e")]
    for task in [*others, *readers, *writers]:
        task.start()
    for task in [*others, *writers]:
        task.join()
    over.set()
    for task in readers:
        task.join()
    assert [other.exitcode for other in others] == [0, 0]
    assert (failed, torn) == ([], [])
    assert reads[0] > 50
    assert os.listdir(tmp_path) == ["m"]
