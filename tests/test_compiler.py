"""The compiler and its cache: nothing hangs, damaged files are made again, and files of other users are not used."""

from __future__ import annotations

import os
import re
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import filelock
import numpy as np
import pytest
from gpurnn.kernels import compiler, launch
from gpurnn.kernels.compiler import CompilerError
from gpurnn.kernels.host import build

pytestmark = pytest.mark.kernels

TINY = "__global__ void one(float* x) { *x = VALUE; }\n"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GPURNN_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "one.cu"
    path.write_text(TINY)
    return path


class Maker:
    """Writes a file and counts how often it did."""

    content = bytes(range(256)) * 40

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, path: Path) -> None:
        self.count += 1
        path.write_bytes(self.content)


def compiler_of(tmp_path, monkeypatch, script: str) -> None:
    """Use a compiler that runs ``script`` for anything but ``--version``."""
    path = tmp_path / "a compiler"  # with a space in its path
    path.write_text(f'#!/bin/sh\nif [ "$1" = --version ]; then echo {tmp_path}; exit; fi\n{script}\n')
    path.chmod(0o755)
    monkeypatch.setenv("CXX", str(path))


def library(source: Path, **defines: str) -> Path:
    return build.build_library(source, ("one",), defines, "plain")


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


# ---- A compiler that does not end -----------------------------------------------------------------------------------


def test_a_compiler_that_hangs_is_ended_with_all_that_it_started(cache, source, tmp_path, monkeypatch):
    compiler_of(tmp_path, monkeypatch, f"sleep 1000 & echo $! > '{tmp_path}/pid'; wait")
    monkeypatch.setenv("GPURNN_COMPILER_TIMEOUT", "0.5")
    begin = time.monotonic()
    message = (
        r"did not end within 0\.5 seconds, which the environment variable GPURNN_COMPILER_TIMEOUT can change:\n'.*a "
    )
    with pytest.raises(CompilerError, match=message):
        library(source)
    assert time.monotonic() - begin < 60  # and not the thousand seconds of the sleep
    pid = int((tmp_path / "pid").read_text())
    for _ in range(100):
        if not running(pid):
            break
        time.sleep(0.02)
    assert not running(pid)
    assert [path.suffix for path in cache.iterdir()] == [".lock"]


def test_a_compiler_whose_child_keeps_its_output_open_is_not_waited_for(cache, tmp_path, monkeypatch):
    compiler_of(tmp_path, monkeypatch, f"sleep 1000 & echo $! > '{tmp_path}/pid'; echo done")
    begin = time.monotonic()
    assert compiler.run((*compiler.find_compiler(), "x")) == "done\n"
    assert time.monotonic() - begin < 60  # and not the thousand seconds of the sleep
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)


def test_a_compiler_that_reads_its_input_gets_none(tmp_path, monkeypatch):
    compiler_of(tmp_path, monkeypatch, "cat; echo read")
    assert compiler.run((*compiler.find_compiler(), "x")) == "read\n"


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf", "soon", ""])
def test_a_time_limit_is_a_positive_number(monkeypatch, seconds):
    monkeypatch.setenv("GPURNN_COMPILER_TIMEOUT", seconds)
    with pytest.raises(ValueError, match=f"GPURNN_COMPILER_TIMEOUT is '{seconds}', expected a positive number of sec"):
        compiler.time_limit()


def test_those_who_wait_for_a_file_do_not_hang(cache, monkeypatch):
    """Eight threads wait for a file that another process never finishes."""
    make, messages = Maker(), []
    compiler.cached("other", make)
    monkeypatch.setenv("GPURNN_COMPILER_TIMEOUT", "0.5")

    def wait() -> None:
        with pytest.raises(CompilerError) as error:
            compiler.cached("file", make)
        messages.append(str(error.value))

    with filelock.FileLock(cache / "file.lock"):
        threads = [threading.Thread(target=wait) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(messages) == 8
    assert all(
        re.search(r"has not finished .*file within 0\.5 seconds, .*GPURNN_COMPILER_TIMEOUT", m) for m in messages
    )
    assert make.count == 1
    assert compiler.cached("file", make).read_bytes() == make.content


# ---- Damage ---------------------------------------------------------------------------------------------------------


def test_whatever_happens_to_a_file_it_is_made_again(cache):
    """Every truncation to a multiple of 64 bytes, a flipped bit in every 64, and other things in the file's place."""
    make = Maker()
    target = compiler.cached("file", make)
    checksum = cache / "file.sha256"
    assert subprocess.run(["sha256sum", "--check", "--quiet", checksum.name], cwd=cache).returncode == 0

    def other(path: Path) -> None:
        (cache.parent / "other").write_bytes(make.content)
        path.unlink()
        path.symlink_to(cache.parent / "other")

    damages = [lambda path, size=size: os.truncate(path, size) for size in range(0, len(make.content), 64)]
    for at in range(0, len(make.content), 64):
        damages.append(lambda path, at=at: flip(path, at))
    for damage in (*damages, Path.unlink, other, lambda path: (path.unlink(), os.mkfifo(path))):
        damage(target)
        before = make.count
        assert compiler.cached("file", make) == target
        assert make.count == before + 1
        assert target.read_bytes() == make.content
    for damage in (Path.unlink, lambda path: os.truncate(path, 10), lambda path: flip(path, 3), other):
        damage(checksum)
        before = make.count
        compiler.cached("file", make)
        assert make.count == before + 1
    before = make.count
    assert compiler.cached("file", make) == target
    assert make.count == before
    assert sorted(path.name for path in cache.iterdir()) == ["file", "file.lock", "file.sha256"]


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1 << at % 8
    path.write_bytes(content)


@pytest.mark.slow
@pytest.mark.parametrize("part", ["library", "object"])
def test_a_damaged_library_is_compiled_again_and_runs(cache, source, part):
    """This runs in new processes, as loading a truncated library may end a process."""
    script = (
        "import sys, numpy as np; from gpurnn.kernels.launch import Module; x = np.zeros(1, np.float32)\n"
        "Module(sys.argv[1], ['one'], {'VALUE': '5'})['one']((1,), (1,), (x,)); assert x[0] == 5"
    )
    environment = {**os.environ, "GPURNN_HOST_BUILD": "plain"}
    environment.pop("LD_PRELOAD", None)
    path = library(source, VALUE="5")
    if part == "object":
        path.unlink()
        path = next(cache.glob("executor-*.o"))
    whole = path.stat().st_size
    for size in (0, 100, 4096, whole // 2, whole // 4096 * 4096, whole - 1):
        os.truncate(path, size)
        done = subprocess.run([sys.executable, "-c", script, str(source)], env=environment, capture_output=True)
        assert (done.returncode, done.stderr) == (0, b""), size
        assert path.stat().st_size == whole
        if part == "object":
            library(source, VALUE="5").unlink()


def test_what_the_compiler_made_is_not_kept_where_it_failed(cache, source, tmp_path, monkeypatch):
    compiler_of(tmp_path, monkeypatch, "exit 0")  # and wrote nothing
    with pytest.raises(CompilerError, match=r"cannot be written: .*No such file"):
        library(source)
    monkeypatch.delenv("CXX")
    assert library(source, VALUE="5").exists()


def test_a_library_that_does_not_load_is_named(cache, source, monkeypatch):
    monkeypatch.setattr(build.cpp, "run", lambda command: Path(command[-1]).write_bytes(b"no library") and "")
    with pytest.raises(CompilerError, match=r"what the compiler made cannot be loaded: .*one-plain-.*\.so"):
        launch.Module(source, ["one"]).library("plain")


# ---- Others ---------------------------------------------------------------------------------------------------------


def test_files_and_directories_of_the_cache_are_the_users_alone(tmp_path, monkeypatch):
    """This holds whatever the process's umask allows."""
    monkeypatch.setenv("GPURNN_CACHE_DIR", str(tmp_path / "a" / "b"))
    make = Maker()
    before = os.umask(0)
    try:
        compiler.cached("file", make)
        compiler.cached("file", make)
    finally:
        os.umask(before)
    assert make.count == 1
    for path in (tmp_path / "a", *(tmp_path / "a").rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600)


def test_the_cache_stays_where_it_is_when_the_process_goes_to_another_directory(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GPURNN_CACHE_DIR", tmp_path.name)
    make = Maker()
    first = compiler.cached("file", make)
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert compiler.cached("file", make) == first == tmp_path / tmp_path.name / "file"
    assert make.count == 1


def others_write(path: Path) -> str:
    path.chmod(0o777)
    return f"others can write to {path}; `chmod go-w {path}` ends that"


def others_own(path: Path) -> str:
    if os.geteuid() != 0:
        pytest.skip("only root can give a directory away")
    os.chown(path, 12345, 12345)
    return f"{path} belongs to another user"


def its_group_writes(path: Path) -> str:
    if os.geteuid() != 0:
        pytest.skip("only root can give a directory away")
    os.chown(path, -1, 12345)
    path.chmod(0o775)
    return f"others can write to {path}"


def sticky(path: Path) -> str | None:
    path.chmod(0o1777)
    return f"others can write to {path}" if path.name == "cache" else None


@pytest.mark.parametrize("where", ["cache", "above"])
@pytest.mark.parametrize("spoil", [others_write, others_own, its_group_writes, sticky])
def test_a_directory_that_others_can_write_is_not_used(tmp_path, monkeypatch, where, spoil):
    directory = tmp_path / "above" / "cache"
    directory.mkdir(parents=True, mode=0o700)
    monkeypatch.setenv("GPURNN_CACHE_DIR", str(directory))
    make = Maker()
    compiler.cached("file", make)
    fault = spoil(directory if where == "cache" else directory.parent)
    link = tmp_path / "link"
    link.symlink_to(directory)
    for named in (directory, link):
        monkeypatch.setenv("GPURNN_CACHE_DIR", str(named))
        if fault is None:  # others can make files in it, but not rename the cache
            compiler.cached("file", make)
            continue
        with pytest.raises(CompilerError) as error:
            compiler.cached("file", make)
        begin = f"GPURNN_CACHE_DIR is '{named}', expected a directory that only you can write to, as its libraries "
        assert str(error.value).startswith(begin)
        assert fault in str(error.value)
    assert make.count == 1


def test_a_file_that_others_may_have_written_is_not_used(cache):
    make = Maker()
    target = compiler.cached("file", make)
    for name in ("file", "file.sha256"):
        (cache / name).chmod(0o666)
        compiler.cached("file", make)
        assert stat.S_IMODE((cache / name).stat().st_mode) == 0o600
    assert make.count == 3
    if os.geteuid() == 0:
        os.chown(target, 12345, 12345)
        compiler.cached("file", make)
        assert (make.count, target.stat().st_uid) == (4, 0)


def test_the_lock_is_not_followed_through_a_link(cache):
    make = Maker()
    compiler.cached("other", make)
    victim = cache.parent / "victim"
    victim.write_text("precious")
    for place in (victim, cache.parent / "missing"):
        (cache / "file.lock").symlink_to(place)
        with pytest.raises(CompilerError, match="file cannot be written"):
            compiler.cached("file", make)
        (cache / "file.lock").unlink()
    assert victim.read_text() == "precious"
    assert not (cache.parent / "missing").exists()
    assert compiler.cached("file", make).exists()


def test_a_directory_that_cannot_be_is_an_error(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    for named in ("file", "file/cache"):
        monkeypatch.setenv("GPURNN_CACHE_DIR", str(tmp_path / named))
        with pytest.raises(CompilerError, match=r"GPURNN_CACHE_DIR is '.*', expected a directory"):
            compiler.cache_directory()


def test_where_others_can_write_the_default_directory_a_process_has_its_own(tmp_path, source):
    """The directory ends with the process, and not with its children."""
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o777)
    (tmp_path / "tmp").mkdir(mode=0o700)
    script = (
        "import os, sys, warnings; from gpurnn.kernels import compiler\n"
        "with warnings.catch_warnings(record=True) as said:\n"
        "    one, two = compiler.cache_directory(), compiler.cache_directory()\n"
        "assert one == two and len(said) == 1, said\n"
        "path = compiler.cached('file', lambda path: path.write_text('x'))\n"
        "pid = os.fork()\n"
        "if pid == 0: sys.exit()\n"
        "os.waitpid(pid, 0)\n"
        "assert path.read_text() == 'x'\n"
        "print(said[0].category.__name__, said[0].message)"
    )
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "shared"), "TMPDIR": str(tmp_path / "tmp")}
    environment.pop("GPURNN_CACHE_DIR", None)
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.match(
        f"RuntimeWarning compiled kernels are kept for this process only, because others can write to "
        f"{tmp_path}/shared; .*; set GPURNN_CACHE_DIR to a directory that only you can write to",
        done.stdout,
    )
    assert not list((tmp_path / "tmp").iterdir())


# ---- Systems --------------------------------------------------------------------------------------------------------


def test_without_fcntl_all_is_imported_compiled_and_locked(tmp_path, source):
    """This simulates Windows."""
    script = (
        "import sys; sys.modules['fcntl'] = None\n"
        "import numpy as np, gpurnn, gpurnn.kernels; from gpurnn.kernels.launch import Module; from gpurnn import cli\n"
        "x = np.zeros(1, np.float32)\n"
        "Module(sys.argv[1], ['one'], {'VALUE': '5'})['one']((1,), (1,), (x,)); assert x[0] == 5\n"
        "sys.argv = ['gpurnn', 'info']; cli.main()"
    )
    environment = {**os.environ, "GPURNN_HOST_BUILD": "plain", "GPURNN_CACHE_DIR": str(tmp_path / "cache")}
    environment.pop("LD_PRELOAD", None)
    done = subprocess.run([sys.executable, "-c", script, str(source)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "host      runs here" in done.stdout


def test_no_module_needs_one_system(monkeypatch):
    """Standard modules that some systems lack are imported only where they are used."""
    root = Path(compiler.__file__).parent.parent
    files = [path for part in ("gpurnn", "reference", "kernels") for path in (root / part).rglob("*.py")]
    assert len(files) > 50
    for path in files:
        found = re.search(
            r"^(import|from) (fcntl|grp|pwd|resource|termios|msvcrt|winreg|syslog)\b", path.read_text(), re.M
        )
        assert found is None, f"{path}: {found[0]}"


def test_without_users_and_modes_the_checksum_is_verified(cache, monkeypatch):
    """This simulates Windows, which has no `os.geteuid`."""
    monkeypatch.setattr(compiler, "_POSIX", False)
    for name in ("geteuid", "getuid", "killpg"):
        monkeypatch.delattr(compiler.os, name)
    make = Maker()
    target = compiler.cached("file", make)
    os.truncate(target, 100)
    assert compiler.cached("file", make).read_bytes() == make.content
    assert compiler.run((sys.executable, "-c", "print(3)")) == "3\n"


@pytest.mark.parametrize("system", ["win32", "darwin"])
def test_the_host_executor_says_that_it_needs_linux(monkeypatch, system, source):
    monkeypatch.setattr(build.sys, "platform", system)
    with pytest.raises(CompilerError, match=f"the host executor needs Linux, and this is {system}"):
        library(source)


@pytest.mark.slow
def test_a_shared_home_keeps_the_libraries_of_each_machine(cache, source, monkeypatch):
    first = library(source, VALUE="5")
    monkeypatch.setattr(compiler.platform, "machine", lambda: "another")
    assert library(source, VALUE="5") != first


def test_threads_that_want_one_library_compile_it_once(cache, source, monkeypatch):
    commands, run = [], compiler.run
    monkeypatch.setattr(compiler, "run", lambda command: (commands.append(command), run(command))[1])
    module, found = launch.Module(source, ["one"], {"VALUE": "7"}), []

    def launched() -> None:
        x = np.zeros(1, np.float32)
        module["one"]((1,), (1,), (x,))
        found.append(x[0])

    threads = [threading.Thread(target=launched) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [7] * 6
    assert len([command for command in commands if "-shared" in command]) == 1
