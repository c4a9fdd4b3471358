"""Memory and seconds of products for a decoder with a large vocabulary: `python benchmarks/vocabulary.py --help`.

One product of the GGN and of the Hessian by curv, curvlinops and hessian-eigenthings with the same weights, data and
vector, every tool alone in a process, and how far the products are apart. Needs the environment of `compare.py`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from comparison import environment, jobs

WORKLOAD = "words"
TOOLS = ("eigenthings", "curvlinops", "curv")  # the others are compared with the first


def main() -> None:
    """Measure, compare, print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write everything here")
    parser.add_argument("--venv", type=Path, default=environment.DEFAULT, help="the peers' environment")
    options = parser.parse_args()
    environment.enter(options.venv)
    from comparison import timing, workloads

    found: dict[str, Any] = {"machine": timing.machine(), "measured": {}}
    shape = workloads.WORKLOADS[WORKLOAD]
    logits = 4 * 8 * 128 * shape.kwargs["vocabulary"]
    print(f"{shape.title}: the outputs take {logits / 1e6:.0f} MB\n")
    print("| matrix | tool | peak MB | times the outputs | seconds a product | off by |\n|---|---|--:|--:|--:|--:|")
    with tempfile.TemporaryDirectory() as folder:
        place = jobs.ask("prepare", folder=folder, workloads=[WORKLOAD])["folders"][WORKLOAD]
        for matrix in ("ggn", "hessian"):
            expected = None
            for tool in TOOLS:
                spent = jobs.ask("alone", tool=tool, workload=WORKLOAD, folder=place, matrix=matrix, block=1)
                found["measured"][f"{matrix}: {tool}"] = spent
                if "failed" in spent:
                    print(f"| {matrix} | {tool} | {spent['failed']} |", flush=True)
                    continue
                product = np.load(Path(place) / f"{matrix}-{tool}.npy")
                expected = product if expected is None else expected
                spent["off"] = off = float(np.linalg.norm(product - expected) / np.linalg.norm(expected))
                peak, seconds = spent["bytes"], spent["seconds"]
                row = f"{peak / 1e6:,.0f} | {peak / logits:.1f} | {seconds:.2f} | {off:.0e}"
                print(f"| {matrix} | {tool} | {row} |", flush=True)
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
