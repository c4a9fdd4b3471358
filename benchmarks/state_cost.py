"""What `--state` costs, counted inside one run: `python benchmarks/state_cost.py`.

Turns of whole runs with and without it differ by less than runs on shared cores do among themselves. So the seconds
are added up that the run itself spends on what is kept, and those of the thread that digests and writes beside it.
"""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

RUNS = 5
SAMPLE = Path(__file__).resolve().parent.parent / "sample_models" / "digits_mlp.ckpt"


def timed(owner: Any, name: str, spent: Counter[str], where: str) -> None:
    """Replace a function by one that adds up its seconds."""
    function = getattr(owner, name)

    def counting(*given: Any, **named: Any) -> Any:
        started = time.perf_counter()
        try:
            return function(*given, **named)
        finally:
            spent[where] += time.perf_counter() - started  # type: ignore[assignment]

    setattr(owner, name, counting)


def main() -> None:
    """A line a run, the first of which compiles."""
    from curvcli import journal
    from curvcli.analyses.common import precision as precise
    from curvcli.cli import main as cli
    from curvcli.run.records import Records
    from curvcli.run.state import State

    spent: Counter[str] = Counter()
    for owner, name in (
        (Records, "keep"), (Records, "take"), (Records, "finish"), (Records, "close"), (State, "open"),
        (precise, "code_digest"), (journal, "_place"), (journal, "unchanging"),
    ):  # fmt: skip
        timed(owner, name, spent, "run")
    timed(Records, "_keep", spent, "thread")
    for _ in range(RUNS):
        spent.clear()
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter()
            cli.run(["spectrum", str(SAMPLE), "-q", "-o", f"{folder}/report.json", "--state", f"{folder}/state"])
            whole = time.perf_counter() - started
        print(
            f"{whole:.1f} s, of which {spent['run']:.3f} ({spent['run'] / whole:.2%}) on what is kept; "
            f"beside it a thread {spent['thread']:.3f} ({spent['thread'] / whole:.2%} of a core)",
            flush=True,
        )


if __name__ == "__main__":
    main()
