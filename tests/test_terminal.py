"""The command with and without a pseudo-terminal: bars or lines, incremental text, Ctrl-C and SIGTERM."""

import os
import re
import select
import signal
import struct
import subprocess
import sys
import time

import pytest
from test_cli import SMALL, TEXT, UNDRAWN, parameters, run
from tolerance import assert_same

pty = pytest.importorskip("pty", reason="needs pseudo-terminals")
fcntl, termios = pytest.importorskip("fcntl"), pytest.importorskip("termios")

COMMAND = [sys.executable, "-m", "gpurnn"]
WITHOUT_PICTURES = [sys.executable, "-c", UNDRAWN]
LONG = [*SMALL, "--steps", "100000", "--checkpoint-every", "100000"]


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


class Terminal:
    """A process in a pseudo-terminal that the test controls."""

    def __init__(self, *arguments, command=COMMAND):
        self.pid, self.file = pty.fork()
        if self.pid == 0:
            fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))
            os.execv(sys.executable, [*command, *map(str, arguments)])
        self.shown = ""

    def until(self, pattern, seconds=60):
        """Read until the screen shows ``pattern``."""
        end = time.monotonic() + seconds
        while not re.search(pattern, self.shown):
            assert time.monotonic() < end, self.shown
            assert self._read(1.0), self.shown
        return self.shown

    def _read(self, seconds):
        if not select.select([self.file], [], [], seconds)[0]:
            return True
        try:
            data = os.read(self.file, 4096)
        except OSError:  # the process has ended
            data = b""
        self.shown += data.decode()
        return bool(data)

    def type(self, keys):
        os.write(self.file, keys)

    def end(self):
        """Wait until all output is shown; return the exit code."""
        while self._read(60.0):
            pass
        os.close(self.file)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def without_terminal(*arguments, **options):
    return subprocess.run(
        [*WITHOUT_PICTURES, *map(str, arguments)], capture_output=True, text=True, check=False, **options
    )


@pytest.mark.slow
def test_a_terminal_shows_a_bar_and_a_file_gets_lines(text, tmp_path):
    terminal = Terminal("train", text, "--out", tmp_path / "shown", *SMALL)
    assert terminal.end() == 0
    assert (tmp_path / "shown" / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert re.search(r"\d+%\|.*tokens/s", terminal.shown)
    assert "of 6: loss" not in terminal.shown
    done = without_terminal("train", text, "--out", tmp_path / "logged", *SMALL)
    assert "\r" not in done.stderr
    assert "%|" not in done.stderr
    first = r"step 2 of 6: loss \d\.\d{3}, bits per character \d\.\d{3}, \d+\.\dk tokens/s\n"
    assert re.fullmatch(rf"{first}(step \d of 6: .*\n)*", done.stderr)
    quiet = Terminal("train", text, "--out", tmp_path / "quiet", *SMALL, "--quiet", command=WITHOUT_PICTURES)
    assert (quiet.end(), quiet.shown) == (0, "")


def test_control_c_at_a_terminal_keeps_the_step(text, tmp_path):
    out = tmp_path / "run"
    terminal = Terminal("train", text, "--out", out, *LONG)
    terminal.until("tokens/s")
    terminal.type(b"\x03")
    assert terminal.end() == 130
    step = re.search(r"interrupted; step (\d+) is kept. Resume with: gpurnn train --out \S+ --resume", terminal.shown)
    assert int(step[1]) > 0
    assert "Traceback" not in terminal.shown


def started(text, out, **options):
    process = subprocess.Popen(
        [*COMMAND, "train", str(text), "--out", str(out), *LONG], stderr=subprocess.PIPE, text=True, **options
    )
    for line in process.stderr:
        if "tokens/s" in line:  # training is under way
            return process
    raise AssertionError("training did not begin")


@pytest.mark.parametrize("background", [False, True])
def test_sigterm_keeps_the_step_as_control_c_does(text, tmp_path, background):
    # A shell without job control starts background processes with SIGINT ignored.
    ignore = (lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)) if background else None
    process = started(text, tmp_path / "run", stdout=subprocess.DEVNULL, preexec_fn=ignore)
    if background:
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
        assert process.poll() is None
    process.terminate()
    said = process.communicate(timeout=60)[1].splitlines()[-1]
    assert process.returncode == 143
    step = int(re.search(r"interrupted; step (\d+) is kept. Resume with: gpurnn train", said)[1])
    assert step > 0
    assert (tmp_path / "run" / "checkpoints" / f"step-{step:09d}.safetensors").exists()


@pytest.mark.slow
def test_sigterm_before_training_is_one_line(tmp_path):
    process = subprocess.Popen(
        [*COMMAND, "train", "-", "--out", str(tmp_path / "run")], stdin=subprocess.PIPE, stderr=subprocess.PIPE
    )
    time.sleep(2)  # by now it waits for its text
    process.terminate()
    assert process.communicate(timeout=60)[1] == b"gpurnn: interrupted\n"
    assert process.returncode == 143


def test_a_text_is_seen_while_it_is_written(text, tmp_path, undrawn):
    out = tmp_path / "run"
    run("train", text, "--out", out, *SMALL)
    whole = without_terminal("generate", out, "--length", "300", "--prompt", "the ").stdout
    terminal = Terminal("generate", out, "--length", 300, "--prompt", "the ")
    assert terminal.end() == 0
    assert terminal.shown.replace("\r\n", "\n") == whole
    # The length is more than could ever be written. The test reads some of it and closes the pipe.
    command = [*COMMAND, "generate", str(out), "--length", "1000000000", "--prompt", "the "]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout.read(100).decode() == whole[:100]
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    process.wait(timeout=60)


def test_control_c_ends_a_text(text, tmp_path, undrawn):
    out = tmp_path / "run"
    run("train", text, "--out", out, *SMALL)
    terminal = Terminal("generate", out, "--length", 1_000_000_000)
    terminal.until(".{50}")
    terminal.type(b"\x03")
    assert terminal.end() == 130
    assert terminal.shown.endswith("gpurnn: interrupted\r\n")


def test_a_text_is_typed_at_a_terminal(tmp_path, undrawn):
    terminal = Terminal("train", "-", "--out", tmp_path / "run", *SMALL, command=WITHOUT_PICTURES)
    terminal.until("reading from the terminal; end with Ctrl-D")
    for line in TEXT.splitlines()[:4]:
        terminal.type(line.encode() + b"\n")
    terminal.type(b"\x04")
    assert terminal.end() == 0
    (tmp_path / "typed").write_text("".join(line + "\n" for line in TEXT.splitlines()[:4]))
    run("train", tmp_path / "typed", "--out", tmp_path / "same", *SMALL)
    assert_same(parameters(tmp_path / "run"), parameters(tmp_path / "same"))
