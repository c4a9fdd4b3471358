"""Distributed runs: several processes run the same command and join JAX's runtime before the first computation.

If a peer is lost, JAX aborts the process in C++ and writes long messages. The process that the user starts therefore
runs the computation in a child process, collects what C++ writes to standard error, and turns an abort into two lines
and an exit code. It forwards signals to the child, and the child ends if its parent dies.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from curvcli.cli import console, interrupts
from curvcli.errors import DistributedError, UsageError

PACKAGE = Path(__file__).resolve().parent.parent
_WORK = "import sys; sys.path.append(sys.argv.pop(1)); from curvcli.__main__ import main; main()"
"""The program of the child process, run with `-P`: the current folder is not on its path, where files could shadow
libraries. The folder of this package comes last; it is needed where the package is not installed."""

WORKER = "_CURV_WORKER"
"""Environment variable with the descriptors of the child: standard error, and a pipe that closes with its parent."""

START, SILENT, STUCK = 300, 30, 600
"""Timeouts in seconds: for the start of all processes, for a process without a heartbeat, and for a collective
operation. Overridden by CURV_START_TIMEOUT, CURV_SILENT_TIMEOUT and CURV_STUCK_TIMEOUT."""

THREE = ("CURV_COORDINATOR", "CURV_NUM_PROCESSES", "CURV_PROCESS_ID")
AGAIN = "start all processes again; with --state DIR they go on where they stopped"

_CAUSES = (
    (r"heartbeat|unhealthy|stopped sending", "another process gave no sign of life"),
    (r"DEADLINE_EXCEEDED|[Tt]imed? ?out|timeout", "another process did not answer in time"),
    (
        r"(closed|reset) by peer|Connection refused|[Bb]roken pipe|UNAVAILABLE|[Ss]ocket closed|Gloo",
        "another process ended",
    ),
)


def asked_for(arguments: Sequence[str]) -> bool:
    """Whether a command line is distributed, and this process is not yet the child that computes."""
    said = os.environ.get("CURV_DISTRIBUTED", "").lower() in ("1", "true", "yes", "on", "t", "y")
    showing = {"-h", "--help", "--version"} & set(arguments)
    return ("--distributed" in arguments or said) and WORKER not in os.environ and not showing


def supervise(arguments: Sequence[str]) -> int:
    """Run the command line in a child process, and return its exit code."""
    alive, lifeline = os.pipe()
    stderr = os.dup(2)
    flags = f"--xla_cpu_collective_timeout_seconds={_seconds('STUCK', STUCK)}"
    environment = {
        **os.environ,
        WORKER: f"{stderr},{alive}",
        # It would keep SIGTERM to itself.
        "JAX_ENABLE_PREEMPTION_SERVICE": "false",
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip(),
    }
    with tempfile.TemporaryFile() as log:
        worker = subprocess.Popen(
            [sys.executable, "-P", "-c", _WORK, str(PACKAGE.parent), *arguments],
            env=environment, stderr=log, pass_fds=(stderr, alive),
            # Ctrl-C at a terminal reaches it through this process alone.
            process_group=0,
        )  # fmt: skip
        interrupts.current.hand_on = worker.send_signal  # which does nothing once it has ended
        os.close(alive)
        code = _ended(worker.pid)
        os.close(lifeline)
        log.seek(0)
        messages = log.read().decode(errors="replace")
    if "--debug" in arguments:
        sys.stderr.write(messages)
    if code >= 0:
        return code
    if -code in interrupts.SIGNALS:
        return 128 - code
    return console.report_error(_lost(-code, messages), debug=False)


def _ended(pid: int) -> int:
    """Wait for the end of a process, and return its exit code, or minus the signal. A stopped process is ended."""
    stopped: float | None = None
    while True:
        ended, status = os.waitpid(pid, os.WUNTRACED | os.WCONTINUED | (0 if stopped is None else os.WNOHANG))
        if ended and not os.WIFSTOPPED(status) and not os.WIFCONTINUED(status):
            return os.waitstatus_to_exitcode(status)
        if ended:
            stopped = time.monotonic() if os.WIFSTOPPED(status) else None
        elif stopped is not None and time.monotonic() - stopped > 2 * _seconds("SILENT", SILENT):
            os.kill(pid, signal.SIGKILL)  # the others have given it up
            stopped = None
        elif stopped is not None:
            time.sleep(0.2)


def attach() -> None:
    """Prepare the child process: Python writes to the real standard error, and the child ends with its parent."""
    told, alive = (int(text) for text in os.environ[WORKER].split(","))
    sys.stderr = os.fdopen(told, "w", buffering=1, encoding="utf-8", errors="backslashreplace")
    threading.Thread(target=_end_with_parent, args=(alive,), daemon=True, name="parent").start()


def _end_with_parent(alive: int) -> None:
    os.read(alive, 1)
    os._exit(DistributedError.exit_code)


def join() -> None:
    """Join the runtime, configured by three variables or the cluster (Slurm, Open MPI, Kubernetes, TPU).

    The coordinator listens on the given address only.

    Raises
    ------
    UsageError
        The variables are incomplete, or there is no cluster.
    DistributedError
        The other processes did not join in time.
    """
    import jax

    address, count, rank, local = _place()
    bind_collectives(address)
    with translated():
        jax.distributed.initialize(
            address, count, rank, local, cluster_detection_method="deactivate",
            initialization_timeout=_seconds("START", START), heartbeat_timeout_seconds=_seconds("SILENT", SILENT),
            shutdown_timeout_seconds=_seconds("SILENT", SILENT), coordinator_bind_address=address,
        )  # fmt: skip


@contextlib.contextmanager
def session(several: bool) -> Iterator[None]:
    """Take part until the block ends, then wait for the others, which would take an earlier end for a failure."""
    if not several:
        yield
        return
    join()
    with translated():
        yield
        import jax

        jax.distributed.shutdown()


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """Translate the exceptions that JAX raises when processes are lost."""
    import jax

    try:
        yield
    except (jax.errors.JaxRuntimeError, RuntimeError, ValueError) as error:
        text = str(error)
        if not any(re.search(pattern, text) for pattern, _ in _CAUSES):
            raise
        raise _error(text) from error


def check_equal(facts: dict[str, str]) -> None:
    """Check that all processes compute the same analysis.

    Parameters
    ----------
    facts
        The values that must be equal, by name, as digests or short texts.

    Raises
    ------
    DistributedError
        Some processes differ; the message names them and the value.
    """
    import hashlib

    from curvcli.devices import from_all

    digests = [hashlib.sha256(text.encode()).digest() for text in facts.values()]
    gathered = from_all(b"".join(digests))
    for place, name in enumerate(facts):
        parts = [digest[32 * place : 32 * (place + 1)] for digest in gathered]
        differing = [str(rank) for rank, part in enumerate(parts) if part != parts[0]]
        if differing:
            raise DistributedError(
                f"distributed: process {', '.join(differing)} has {name} other than process 0",
                "start every process with the same command, files and versions",
            )


def _place() -> tuple[str, int, int, Sequence[int] | None]:
    """Return the coordinator, the number of processes, the rank of this one, and its devices."""
    variables = [os.environ.get(name) for name in THREE]
    if all(variables):
        address, count, rank = (str(variable) for variable in variables)
        try:
            number, rank = int(count), int(rank)
        except ValueError:
            number, rank = 0, 0
        if not re.fullmatch(r".+:\d+", address) or not 0 <= rank < number:
            raise UsageError(
                f"--distributed: {', '.join(f'{n}={v}' for n, v in zip(THREE, variables, strict=True))} cannot be",
                "CURV_COORDINATOR is host:port of process 0, and CURV_PROCESS_ID is below CURV_NUM_PROCESSES",
            )
        return address, number, rank, None
    if any(variables):
        missing = ", ".join(name for name, value in zip(THREE, variables, strict=True) if not value)
        raise UsageError(f"--distributed: {missing} is not set", f"set all three of {', '.join(THREE)}")
    from curvcli.jax_internals import detected_cluster

    address, number, rank, local = detected_cluster(_seconds("START", START))
    if address is None or number is None or rank is None:
        raise UsageError(
            "--distributed: JAX finds no cluster here (Slurm, Open MPI, Kubernetes, TPU)",
            f"set {', '.join(THREE)} for every process",
        )
    return address, number, rank, local


def bind_collectives(address: str) -> None:
    """Bind Gloo, which moves arrays between CPUs, to the network interface towards the coordinator.

    Raises
    ------
    UsageError
        The coordinator cannot be reached.
    """
    from curvcli.jax_internals import bind_gloo

    host, _, port = address.rpartition(":")
    try:
        family, kind, _, _, place = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as towards:
            towards.connect(place)  # nothing is sent
            interface = str(towards.getsockname()[0])
    except OSError as error:
        raise UsageError(
            f"--distributed: the coordinator {address} cannot be reached: {error.strerror}", "check CURV_COORDINATOR"
        ) from error
    bind_gloo(interface)


def _seconds(name: str, default: int) -> int:
    text = os.environ.get(f"CURV_{name}_TIMEOUT", str(default))
    if not text.isdigit() or int(text) < 1:
        raise UsageError(f"CURV_{name}_TIMEOUT={text}: not a number of seconds", f"for example {default}")
    return int(text)


def _error(text: str) -> DistributedError:
    cause = next((said for pattern, said in _CAUSES if re.search(pattern, text)), "the runtime ended this process")
    return DistributedError(f"distributed: {cause}", AGAIN)


def _lost(number: int, messages: str) -> DistributedError:
    """Return the error for a child process that ended by a signal."""
    if number == signal.SIGABRT:
        return _error(messages)
    name: Any = signal.Signals(number).name
    return DistributedError(f"distributed: the process that computes was ended by {name}", AGAIN)
