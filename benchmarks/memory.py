"""Memory that `curv` takes against its forecast: `python benchmarks/memory.py [--samples A,B] [--commands A,B]`.

Every command on every sample model, each in a process of its own and without the cache: the forecast of `--dry-run`,
and the peak of the resident set beyond a bare process, which has imported the command line and started JAX.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from comparison import jobs, timing

SAMPLES = {
    "tanh_regression": "tanh_regression.ckpt", "linear_autoencoder": "linear_autoencoder.ckpt",
    "digits_mlp": "digits_mlp.ckpt", "digits_cnn": "digits_cnn.ckpt", "digits_run": "digits_run",
    "char_transformer": "char_transformer.ckpt",
}  # fmt: skip
COMMANDS = {
    "spectrum": ["spectrum"],
    "trace": ["trace"],
    "eigs": ["eigs"],
    "influence": ["influence", "--remove", "--queries", "0:4"],
    "step": ["step", "--method", "gauss-newton"],
    "kfac": ["step", "--method", "kfac"],
    "compare": ["compare"],
}
FOLDER = Path(__file__).resolve().parent.parent / "sample_models"


def main() -> None:
    """Run all, print a table; with --json the numbers too."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", default=",".join(SAMPLES))
    parser.add_argument("--commands", default=",".join(COMMANDS))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    print(timing.machine(), file=sys.stderr)
    found: list[dict[str, Any]] = []
    print("| sample | command | forecast, MB | peak, MB | peak / forecast |\n|---|---|---|---|---|")
    for sample in options.samples.split(","):
        for command in options.commands.split(","):
            one = jobs.ask("peak", arguments=[*COMMANDS[command], str(FOLDER / SAMPLES[sample])])
            found.append({"sample": sample, "command": command, **one})
            print(row(found[-1]), flush=True)
    if options.json is not None:
        options.json.write_text(json.dumps({"machine": timing.machine(), "runs": found}, indent=1))


def row(one: dict[str, Any]) -> str:
    """A line of the table."""
    if "failed" in one:
        return f"| {one['sample']} | {one['command']} | {one['failed']} | | |"
    forecast, peak = one["forecast_bytes"] / 1e6, one["bytes"] / 1e6
    return f"| {one['sample']} | {one['command']} | {forecast:.0f} | {peak:.0f} | {peak / forecast:.2f} |"


if __name__ == "__main__":
    main()
