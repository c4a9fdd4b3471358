"""`curv influence` beside closed forms, exact refits and other tools: `python benchmarks/influence.py --help`.

The first run makes an environment for the peers. Every part runs in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from comparison import environment, jobs

PARTS = ("closed", "loo", "lds", "peers", "large")


def main() -> None:
    """Measure, print Markdown tables, write everything as JSON."""
    options = arguments()
    environment.enter(options.venv)
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # the refits' matrices are small: threads would wait for each other
    from comparison import timing

    found: dict[str, Any] = {"machine": timing.machine()}
    missing = environment.failures(["pydvl.influence.torch", "kronfluence"])
    print("Not running:", "; ".join(f"{who}: {why}" for who, why in missing.items()) or "none")
    for part in options.parts.split(","):
        print(f"{part} …", file=sys.stderr, flush=True)
        found[part] = measured(part, options)
        failed = found[part].get("failed")
        print(f"\n## {part}\n\n{failed or TABLES[part](found[part])}", flush=True)
        if options.json is not None:  # an interrupted run leaves what it has
            options.json.write_text(json.dumps(found, indent=1))
    machine = found["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    print(f"\n{machine['date']}, {machine['cores']} cores ({machine['cpu']}), load {machine['load']:.1f}; {versions}")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--quick", action="store_true", help="few refits, few queries, 3,000 examples for 60,000")
    parser.add_argument("--rounds", type=int, default=3, help="of the peers, after one that compiles")
    parser.add_argument("--damping", type=float, default=0.0, help="of the peers, beside l2 = 1e-4")
    parser.add_argument("--tol", type=float, default=1e-3, help="relative residual of the peers' solves")
    parser.add_argument("--block", action="store_true", help="pyDVL's block CG too (long)")
    parser.add_argument("--limit", type=float, default=1800, help="seconds of `large`, which then answers as it is")
    parser.add_argument("--json", type=Path, help="write everything here")
    parser.add_argument("--venv", type=Path, default=environment.DEFAULT, help="the peers' environment")
    return parser.parse_args()


def measured(part: str, options: argparse.Namespace) -> dict[str, Any]:
    """The answer of one part's program."""
    quick = options.quick
    if part in ("closed", "loo"):
        return jobs.ask("influence_exact", part=part, refits=20 if quick else 200)
    if part == "lds":
        job = {"halves": 10 if quick else 60, "queries": 20 if quick else 100, "l2": 1e-3}
        return jobs.ask("influence_lds", models=["softmax regression", "MLP 64-16-10"], **job)
    if part == "peers":
        job = {"rounds": 1 if quick else options.rounds, "queries": 10 if quick else 100, "single": 2}
        more = {"damping": options.damping, "tol": options.tol, "block": options.block}
        return jobs.ask("influence_speed", part=part, **job, **more)
    job = {"examples": 3000 if quick else 60_000, "queries": 100, "epochs": 3, "damping": 1e-3, "tol": 1e-3}
    return jobs.ask("influence_speed", part=part, **job, limit=options.limit)


def closed_table(found: dict[str, Any]) -> str:
    """Largest errors relative to the largest entry."""
    rows = [
        (name, ", ".join(f"{x:.5g}" for x in value) if isinstance(value, list) else f"{value:.1e}")
        for name, value in found.items()
        if name != "process_seconds"
    ]
    return table(["what", "largest error / largest entry, or value"], rows)


def loo_table(found: dict[str, Any]) -> str:
    """Agreement of predicted with actual changes."""
    rows = []
    for name, one in found.items():
        if not isinstance(one, dict):
            continue
        for what in ("held-out losses", "own margins"):
            pairs = [one[what][kind] for kind in ("scores", "corrected")]
            cells = [f"{pair[key]:.4f}" for key in ("pearson", "spearman", "slope") for pair in pairs]
            rows.append((f"{name}: {one['refits']} refits", what, *cells))
    head = ["Pearson", "corrected", "Spearman", "corrected", "slope", "corrected"]
    return table(["data", "what changes", *head], rows)


def lds_table(found: dict[str, Any]) -> str:
    """LDS by method and damping."""
    parts = []
    for name, one in found.items():
        if not isinstance(one, dict):
            continue
        refits = one["refits"]
        methods = {method: cells for method, cells in one.items() if method != "refits"}
        columns = list(dict.fromkeys(damping for cells in methods.values() for damping in cells if damping != "failed"))
        rows = [
            (method, *(f"{cells[c]['lds']:.3f}" if c in cells else cells.get("failed", "–") for c in columns))
            for method, cells in methods.items()
        ]
        head = ["method", *(f"λ = {column}" if column else "" for column in columns)]
        said = f"{name}, l2 = {refits['l2']:g}, {refits['halves']} halves, {refits['queries']} held-out rows"
        parts.append(f"{said}\n\n{table(head, rows)}")
    return "\n\n".join(parts)


def peers_table(found: dict[str, Any]) -> str:
    """Medians over the rounds, and ratios within rounds."""
    rounds, rows = found["rounds"], []
    own = [one["seconds"] for one in rounds["curv, hessian"]]
    for name, runs in rounds.items():
        if "failed" in runs[0]:
            rows.append((name, runs[0]["failed"], "", "", ""))
            continue
        seconds, ratios = (
            sorted(run["seconds"] for run in runs),
            sorted(run["seconds"] / mine for run, mine in zip(runs, own, strict=True)),
        )
        last = runs[-1]
        products = f"{last['products']}" if "products" in last else "–"
        residual = f"{max(run['residual'] for run in runs):.1e}" if "residual" in last else "–"
        middle = len(runs) // 2
        said = name + (
            f" ({last['queries']} queries, scaled)" if last.get("queries", found["queries"]) < found["queries"] else ""
        )
        rows.append((said, f"{seconds[middle]:.1f}", f"{ratios[middle]:.1f}", residual, products))
    whole = [f"{one:.1f}" if isinstance(one, float) else one for one in found["whole process"]]
    head = ["", "seconds", "× curv, hessian", "largest residual", "products"]
    return f"{table(head, rows)}\n\nWhole process, first and second run: {' and '.join(whole)} s"


def large_table(found: dict[str, Any]) -> str:
    """One row."""
    keys = ["dim", "examples", "queries", "damping", "tol", "converged", "iterations", "products", "data_passes"]
    keys += ["residual", "seconds"]
    return table(keys, [[f"{found[key]:.3g}" if isinstance(found[key], float) else str(found[key]) for key in keys]])


def table(head: list[str], rows: list[Any]) -> str:
    """Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


TABLES = {"closed": closed_table, "loo": loo_table, "lds": lds_table, "peers": peers_table, "large": large_table}

if __name__ == "__main__":
    main()
