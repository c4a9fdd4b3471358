"""How long `curv --help` takes beyond a bare Python: `python benchmarks/start_up.py`."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

COMMANDS = {
    "bare Python": ["-c", "pass"],
    "curv --help": ["-m", "curvcli", "--help"],
    "curv spectrum --help": ["-m", "curvcli", "spectrum", "--help"],
    "curv schema spectrum": ["-m", "curvcli", "schema", "spectrum"],
}
TARGETS = {"curv --help": 0.25, "curv spectrum --help": 0.30}
ROUNDS = 15


def main() -> None:
    """Interleaved rounds; medians in seconds."""
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(ROUNDS):
        for name, arguments in COMMANDS.items():
            start = time.perf_counter()
            subprocess.run([sys.executable, *arguments], capture_output=True, check=True)
            times[name].append(time.perf_counter() - start)
    bare = statistics.median(times["bare Python"])
    for name, seconds in times.items():
        extra = statistics.median(seconds) - bare
        target = f"  target {TARGETS[name]:.2f}" if name in TARGETS else ""
        print(f"{name:24s} {statistics.median(seconds):.3f} s, {extra:.3f} s beyond a bare Python{target}")


if __name__ == "__main__":
    main()
