"""At a terminal: a summary that fits it, progress on stderr, Ctrl-C; and the ends of a pipe."""

import fcntl
import io
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
from rich.console import Console

from curvcli.cli.console import Watch
from curvcli.cli.render import render
from curvcli.schema.report import load_json
from curvcli.schema.spectrum import SpectrumReport

ESCAPE = "\x1b"
SAMPLED = "spectrum --skip-checks --method hutchinson --probes 4 --steps 8"


class Terminal:
    """A pseudo-terminal of a given width."""

    def __init__(self, columns: int) -> None:
        self.ours, self.theirs = pty.openpty()
        fcntl.ioctl(self.theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
        self.seen = b""

    def read(self, seconds: float) -> str:
        """All that was written so far, after waiting for more."""
        if select.select([self.ours], [], [], seconds)[0]:
            try:
                self.seen += os.read(self.ours, 1 << 16)
            except OSError:  # Linux: the other end is closed
                time.sleep(0.01)
        return self.seen.decode().replace("\r\n", "\n")


@pytest.fixture
def start(process_environment):
    """`start(arguments, stdout=terminal)`: a process of its own, ended with the test."""
    running = []

    def call(arguments: str, **streams):
        process = subprocess.Popen(
            [sys.executable, "-m", "curvcli", *arguments.split()], env=process_environment,
            stdin=subprocess.DEVNULL, **streams,
        )  # fmt: skip
        running.append(process)
        return process

    yield call
    for process in running:
        process.kill()
        process.wait()
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()


def finished(process, *terminals: Terminal) -> int:
    """The exit code, terminals read meanwhile."""
    deadline = time.monotonic() + 120
    while process.poll() is None:
        assert time.monotonic() < deadline
        for terminal in terminals:
            terminal.read(0.05)
    for terminal in terminals:
        terminal.read(0.2)
    return process.returncode


def plain(text: str) -> str:
    """Without escape codes."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def test_on_a_terminal_a_summary_and_progress(project, start):
    out, err = Terminal(60), Terminal(80)
    process = start(SAMPLED, stdout=out.theirs, stderr=err.theirs)
    assert finished(process, out, err) == 0
    text = out.read(0)
    assert ESCAPE in text  # the headline is bold
    lines = plain(text).splitlines()
    assert lines[0].startswith("Sharpness: λ_max ")
    assert max(map(len, lines)) <= 60
    assert "{" not in text
    assert "products" in err.read(0)
    assert "Sharpness" not in err.read(0)


@pytest.fixture
def report(project, curv):
    """A report to be shown."""
    return SpectrumReport.model_validate(curv(*SAMPLED.split()).report)


@pytest.mark.first_tier("80")
@pytest.mark.parametrize("columns", [40, 80, 200])
def test_the_summary_fits(report, monkeypatch, columns):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    terminal = Terminal(columns)
    with open(terminal.theirs, "w", encoding="utf-8", closefd=False) as stream:
        text = render(report, stream)
    widest = max(map(len, plain(text).splitlines()))
    assert columns / 2 < widest <= columns or columns == 200
    assert ESCAPE in text


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_no_escape_codes_where_they_are_not_wanted(report, monkeypatch, name, value):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv(name, value)
    with open(Terminal(80).theirs, "w", encoding="utf-8", closefd=False) as stream:
        text = render(report, stream)
    assert ESCAPE not in text
    assert text.startswith("Sharpness: λ_max ")


def test_progress_has_a_rate_and_what_is_known():
    watch = Watch(None, show=True)
    with watch.watching():
        for done in (8, 16, 24):
            watch.progress("trace", done, 64)
            time.sleep(0.02)
        watch.known("trace 5.02 in [4.9, 5.1]")
        console = Console(file=io.StringIO(), width=100)
        console.print(watch._bar.get_renderable())
        line = console.file.getvalue()
        watch.progress("refining λ_max", 3, None)
        console.print(watch._bar.get_renderable())
    assert re.search(r"trace .* 24/64 products [\d.e+]+/s .*trace 5.02 in \[4.9, 5.1\]", line)
    assert "trace 5.02 in" in console.file.getvalue()[len(line) :]  # what is known outlasts the stage


def test_the_shell_completes_commands_options_and_values(shell):
    def completed(words: str, count: int) -> list[str]:
        done = shell("$CURV", _CURV_COMPLETE="complete_bash", COMP_WORDS=words, COMP_CWORD=str(count))
        assert (done.code, done.err) == (0, "")
        return done.out.split()

    assert completed("curv spectrum --matrix g", 3) == ["ggn", "gauss-newton", "gradient-covariance"]
    assert completed("curv sp", 1) == ["spectrum"]


def test_text_in_a_pipe(project, curv, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "70")
    text = curv(*SAMPLED.split(), "--format", "text").out
    assert ESCAPE not in text
    assert max(map(len, text.splitlines())) <= 70
    assert text.startswith("Sharpness")
    assert text.endswith(" s\n")


def test_interrupt_gives_what_was_reached(project, start):
    err = Terminal(80)
    many = SAMPLED.replace("--probes 4 --steps 8", "--probes 512 --rtol 1e-9 --steps 67 --batch-size 1")
    with Path("report.json").open("wb") as out:
        process = start(many, stdout=out, stderr=err.theirs)
    deadline = time.monotonic() + 100
    while "products" not in err.read(0.1):
        assert process.poll() is None
        assert time.monotonic() < deadline
    process.send_signal(signal.SIGINT)
    assert finished(process, err) == 130
    report = load_json(Path("report.json").read_text())
    assert any("interrupted" in warning for warning in report["warnings"])
    assert "warning: stopped early (interrupted)" in err.read(0)
    assert "\x1b[?25h" in err.read(0)  # the cursor is back


@pytest.mark.slow
def test_ends_of_pipes(project, shell):
    quiet = shell(f"$CURV {SAMPLED} | true")
    assert (quiet.code, quiet.out, quiet.err) == (141, "", "")
    closed = shell(f"$CURV {SAMPLED} >&-")
    assert closed.code == 74
    assert "stdout is closed" in closed.error
    file = shell(f"$CURV {SAMPLED} -o report.json >&- 2>&-")
    assert (file.code, file.out, file.err) == (0, "", "")
    assert load_json(Path("report.json").read_text())["schema"] == "curv.spectrum/1"


def test_ends_of_pipes_without_the_engine(shell):
    for command in ("schema spectrum", "--help"):
        full = shell(f"$CURV {command} >/dev/full")
        assert full.code == 74
        assert "space" in full.error
    gone = shell("$CURV schema spectrum | true")
    assert (gone.code, gone.err) == (141, "")
    missing = shell("$CURV spectrum none.npz 2>&-")
    assert (missing.code, missing.out) == (66, "")
