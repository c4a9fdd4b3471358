"""Runs killed at random moments and started again, until they end: do they end in the same bytes?

Each command is run once undisturbed, for its `result` and its duration. Then the same command with `--state` is killed
(SIGKILL) after a uniformly random part of that duration, again and again; after every few kills it is left to end, its
`result` is compared byte for byte, and a new folder is begun.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SAMPLES = Path(__file__).parents[1] / "sample_models"
COMMANDS = (
    ("spectrum", "tanh_regression.ckpt", "--method", "hutchinson", "--steps", "20"),
    ("trace", "digits_mlp.ckpt", "--num-examples", "500", "--method", "hutch++", "--probes", "30"),
    ("eigs", "digits_mlp.ckpt", "--num-examples", "200", "-k", "3", "--matrix", "ggn"),
    ("diag", "digits_mlp.ckpt", "--num-examples", "500", "--method", "hutchinson", "--probes", "40"),
    ("saddle", "tanh_regression.ckpt", "--method", "lanczos"),
    ("direction", "digits_mlp.ckpt", "--along", "newton", "--num-examples", "500"),
    ("landscape", "tanh_regression.ckpt", "--along", "random", "--along", "eigenvector:1", "--points", "15"),
    ("influence", "digits_mlp.ckpt", "--remove", "--queries", "0:5", "--num-examples", "500"),
    ("step", "tanh_regression.ckpt", "--method", "hessian-free", "--steps", "5"),
    ("compare", "tanh_regression.ckpt", "--method", "sampled", "--matrices", "hessian,ggn,diagonal"),
)
BETWEEN = 5
"""Kills before a run is left to end."""


@dataclass
class Outcome:
    """What became of one command."""

    command: str
    kills: int = 0
    ended_before: int = 0  # the moment came after the end
    resumed: int = 0  # runs left to end
    identical: int = 0
    recalled: int = 0  # of the last of them


def outcomes(kills: int, seed: int = 0) -> Iterator[Outcome]:
    """Each command's, with its share of so many kills. Cost: some 4 s a kill."""
    draw = random.Random(seed)
    for number, command in enumerate(COMMANDS):
        share = kills // len(COMMANDS) + (number < kills % len(COMMANDS))
        if share:
            yield _killed(command, share, draw)


def _killed(command: tuple[str, ...], kills: int, draw: random.Random) -> Outcome:
    outcome = Outcome(command[0])
    line = [sys.executable, "-m", "curvcli", command[0], str(SAMPLES / command[1]), *command[2:], "-q"]
    report(line)  # its programs are compiled
    started = time.perf_counter()
    whole = report(line)
    duration = time.perf_counter() - started
    while outcome.kills + outcome.ended_before < kills:
        with tempfile.TemporaryDirectory() as folder:
            kept = [*line, "--state", folder]
            for _ in range(min(BETWEEN, kills - outcome.kills - outcome.ended_before)):
                process = subprocess.Popen(kept, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                try:
                    process.wait(draw.random() * duration)
                    outcome.ended_before += 1
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
                    outcome.kills += 1
            last = report(kept)
        outcome.resumed += 1
        outcome.identical += json.dumps(last["result"]) == json.dumps(whole["result"])
        outcome.recalled = last["cost"]["recalled"]
    return outcome


def report(line: list[str]) -> dict:
    """A command line's report."""
    return json.loads(subprocess.run(line, capture_output=True, text=True, check=True).stdout)
