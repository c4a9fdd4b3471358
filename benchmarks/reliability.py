"""What curv survives: `python benchmarks/reliability.py [--parts inputs,kills,overhead,alarms] [--kills 200]`.

inputs
    Checkpoints and data of every kind with bytes flipped and ends cut off: how many were refused, how many changed a
    number without a word (with digests in curv.toml none may), how many ended in a bug.
kills
    Runs with `--state` of every command, killed at random moments and resumed: do they end in the same bytes?
overhead
    What `--state` costs: the same spectrum with and without, in turns.
alarms
    False alarms of the self-checks; see `reliability_checks.py`.

The coverage of intervals has scripts of its own: `coverage.py`, `coverage_trace.py`, `coverage_compare.py`, `diag.py`.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import kills

SPECTRUM = ("spectrum", "digits_mlp.ckpt", "--method", "hutchinson", "--steps", "80")


def main() -> None:
    """Run the parts asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", default="inputs,kills,overhead,alarms")
    parser.add_argument("--kinds", help="of damaged files; default: all but Orbax, whose reading takes long")
    parser.add_argument("--flips", type=int, default=150, help="of every file")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5, help="turns of the overhead")
    parser.add_argument("--seeds", type=int, default=200, help="of the self-checks")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    for part in options.parts.split(","):
        PARTS[part](options)


def damaged(options: argparse.Namespace) -> None:
    """Inputs by kind and outcome, with and without digests."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from tests.fuzz import KINDS, fuzz

    kinds = options.kinds.split(",") if options.kinds else [kind for kind in KINDS if "orbax" not in kind]
    print("kind | digests | tried | refused | same | changed | bugs")
    for kind in kinds:
        for pinned in (True, False):
            with tempfile.TemporaryDirectory() as folder:
                tally = fuzz((kind,), Path(folder), seed=options.seed, flips=options.flips, pinned=pinned)
            counts = [tally.outcomes[name] for name in ("refused", "same", "changed", "crash")]
            print(kind, "yes" if pinned else "no", tally.tried, *counts, sep=" | ", flush=True)


def survived(options: argparse.Namespace) -> None:
    """The kills, command by command."""
    print("command | killed | ended before | left to end | same bytes | recalled by the last")
    total = [0, 0, 0]
    for one in kills.outcomes(options.kills, options.seed):
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


def alarmed(options: argparse.Namespace) -> None:
    """False alarms of the self-checks."""
    import reliability_checks

    reliability_checks.main([str(options.seeds)])


def _seconds(line: list[str]) -> float:
    started = time.perf_counter()
    kills.report(line)
    return time.perf_counter() - started


PARTS = {"inputs": damaged, "kills": survived, "overhead": overhead, "alarms": alarmed}

if __name__ == "__main__":
    main()
