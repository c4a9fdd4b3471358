"""What curv survives: `python benchmarks/reliability.py [--parts kills,overhead] [--kills 200]`.

kills
    Runs with `--state` of every command, killed at random moments and resumed: do they end in the same bytes?
overhead
    What `--state` costs: the same spectrum with and without, in turns.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time

import kills

SPECTRUM = ("spectrum", "digits_mlp.ckpt", "--method", "hutchinson", "--steps", "80")


def main() -> None:
    """Run the parts asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", default="kills,overhead")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5, help="turns of the overhead")
    options = parser.parse_args()
    for part in options.parts.split(","):
        PARTS[part](options)


def survived(options: argparse.Namespace) -> None:
    """The kills, command by command."""
    print("command | killed | ended before | left to end | same bytes | recalled by the last")
    total = [0, 0, 0]
    for one in kills.outcomes(options.kills):
        print(
            f"{one.command} | {one.kills} | {one.ended_before} | {one.resumed} | {one.identical} | {one.recalled}",
            flush=True,
        )
        total = [a + b for a, b in zip(total, (one.kills, one.resumed, one.identical), strict=True)]
    print(f"all: {total[0]} kills, {total[2]} of {total[1]} results the same byte for byte")


def overhead(options: argparse.Namespace) -> None:
    """Seconds with --state over seconds without, by turns."""
    line = [sys.executable, "-m", "curvcli", SPECTRUM[0], str(kills.SAMPLES / SPECTRUM[1]), *SPECTRUM[2:], "-q"]
    ratios = []
    for _ in range(options.rounds + 1):  # the first turn compiles
        with tempfile.TemporaryDirectory() as folder:
            without, kept = _seconds(line), _seconds([*line, "--state", folder])
        ratios.append(kept / without)
    low, middle, high = statistics.quantiles(ratios[1:], n=4)
    print(f"--state: {middle:.3f} times the run's seconds (quartiles {low:.3f} – {high:.3f})")


def _seconds(line: list[str]) -> float:
    started = time.perf_counter()
    kills.report(line)
    return time.perf_counter() - started


PARTS = {"kills": survived, "overhead": overhead}

if __name__ == "__main__":
    main()
