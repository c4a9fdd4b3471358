"""Signals end a run within a moment, whatever it is at, and leave nothing half-written."""

import os
import signal
import subprocess
import sys

import pytest

from curvcli.cli import interrupts

LONG = "import hashlib; hashlib.pbkdf2_hmac('sha256', b'', b'', 2**31 - 1)"
"""One call into C, which no handler of Python's can interrupt."""

WRITES = f"""
import os
from pathlib import Path
from curvcli import atomic
from curvcli.cli import interrupts

interrupts.current.guard()
interrupts.current.answerable = bool(int(os.environ["ANSWERABLE"]))
with atomic.replacing(Path("file")) as stream, atomic.folder_beside(Path("checkpoint")) as folder:
    stream.write(b"half")
    (folder / "half").touch()
    os.write(2, b"begun\\n")
    {LONG}
"""
QUICKLY = 30
"""Seconds; what is interrupted would take an hour, and this machine may be busy."""


@pytest.fixture
def started(process_environment):
    """`started([arguments of python], marker, **environment)`: a process that has written the marker to stderr."""
    running = []

    def call(arguments, marker, **environment):
        process = subprocess.Popen(
            [sys.executable, *arguments], env={**process_environment, **environment},
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        running.append(process)
        assert process.stderr.readline() == marker + "\n", process.stderr.read()
        return process

    yield call
    for process in running:
        process.kill()
        process.wait()
        process.stderr.close()


def ended(process):
    """Exit code and the rest of stderr."""
    code = process.wait(QUICKLY)
    return code, process.stderr.read()


@pytest.mark.first_tier("False-signals0-130")
@pytest.mark.parametrize(
    ("answerable", "signals", "code"),
    [(False, [signal.SIGINT], 130), (True, [signal.SIGTERM], 143), (True, [signal.SIGINT, signal.SIGINT], 130)],
)
def test_the_middle_of_a_long_call_and_of_writing(started, tmp_path, monkeypatch, answerable, signals, code):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("whole")
    process = started(["-c", WRITES], "begun", ANSWERABLE=str(int(answerable)))
    assert len(list(tmp_path.iterdir())) == 3
    *first, last = signals
    for number in first:
        process.send_signal(number)
        assert "Ctrl-C again ends at once" in process.stderr.readline()
        assert process.poll() is None
    process.send_signal(last)
    assert ended(process) == (code, f"ended before {'the report' if answerable else 'there was anything to report'}\n")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "whole"


def test_while_the_command_line_is_imported(started, tmp_path):
    (tmp_path / "typer.py").write_text("import os, time\nos.write(2, b'importing\\n')\ntime.sleep(3600)")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", ".")])
    process = started(["-m", "curvcli", "spectrum"], "importing", PYTHONPATH=path)
    process.send_signal(signal.SIGINT)
    assert ended(process) == (130, "ended before there was anything to report\n")


def test_while_the_loss_is_computed(project, started):
    """XLA is at it, and Python waits for it."""
    project.write(
        "endless.py",
        "import os, jax, jax.numpy as jnp\n"
        "from curvcli.zoo import MLP\n"
        "def begun(x):\n"
        "    os.write(2, b'begun\\n')\n"
        "    return x\n"
        "class Endless(MLP):\n"
        "    def __call__(self, x):\n"
        "        start = jax.pure_callback(begun, jax.ShapeDtypeStruct((), x.dtype), x[0, 0] * 0)\n"
        "        end = jax.lax.while_loop(lambda s: s < 2, lambda s: jnp.minimum(s + 1, 1), start)\n"
        "        return super().__call__(x) + end\n",
    )
    process = started(["-m", "curvcli", "spectrum", "-q", "--model", "endless.py:Endless"], "begun")
    process.send_signal(signal.SIGTERM)
    assert ended(process) == (143, "ended before there was anything to report\n")


def test_a_pipe_of_the_users_own(shell):
    script = (
        "import os, signal, time\n"
        "from curvcli.cli import interrupts\n"
        "interrupts.current.guard()\n"
        "signal.set_wakeup_fd(-1)\n"
        "os.kill(os.getpid(), signal.SIGTERM)\n"
        "time.sleep(60)\n"
    )
    answered = shell(f'{sys.executable} -c "$SCRIPT"', SCRIPT=script)
    assert (answered.code, answered.err) == (143, "ended before there was anything to report\n")


def test_signals_that_are_ignored_stay_ignored_and_children_have_their_own(shell):
    script = (
        "import os, signal, sys, time\n"
        "from curvcli.cli import interrupts\n"
        "interrupts.current.guard()\n"
        "assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN\n"
        "os.kill(os.getpid(), signal.SIGTERM)\n"
        "child = os.fork()\n"
        "if not child:\n"
        "    try:\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "        time.sleep(60)\n"
        "    except KeyboardInterrupt:\n"
        "        os._exit(7)\n"
        "assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7\n"
        "time.sleep(0.2)\n"  # for the thread, had it been told
        "print('here')\n"
    )
    answered = shell(f"trap '' TERM; {sys.executable} -W ignore -c \"$SCRIPT\"", SCRIPT=script)
    assert (answered.code, answered.out, answered.err) == (0, "here\n", "")


class Ended(Exception):
    pass


@pytest.fixture
def received(monkeypatch):
    """Interrupts that raise where they would end the process."""

    def end(number, *, answerable):
        raise Ended(number, answerable)

    monkeypatch.setattr(interrupts, "end", end)
    return interrupts.Interrupts()


def test_what_a_signal_means(received, capfd):
    with pytest.raises(Ended) as caught:
        received.receive(signal.SIGINT)
    assert caught.value.args == (signal.SIGINT, False)
    received.answerable = True
    with pytest.raises(Ended):
        received.receive(signal.SIGTERM)
    received.receive(signal.SIGINT)
    assert received.number == signal.SIGINT
    assert "interrupted" in capfd.readouterr().err
    with pytest.raises(Ended) as caught:
        received.receive(signal.SIGINT)
    assert caught.value.args == (signal.SIGINT, True)
