"""curv beside its peers on four networks, by the targets of the design: `python benchmarks/compare.py --help`.

The first run makes an environment for the peers. Every part runs in a process of its own; nothing else should run on
the machine meanwhile.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from comparison import environment, jobs

PARTS = ("products", "factors", "trace", "eigs", "memory", "influence")


def main() -> None:
    """Measure, print a Markdown table, write everything as JSON."""
    options = arguments()
    environment.enter(options.venv)
    from comparison import tables, timing

    found: dict[str, Any] = {"machine": timing.machine(), "seconds": {}, "products": {}}
    found["not_running"] = environment.failures(list(timing.PEERS))
    found["conflicts"] = environment.conflicts()
    names = options.workloads.split(",")
    parts = [*filter(None, options.parts.split(",")), *(["density"] if options.density else [])]
    with tempfile.TemporaryDirectory() as folder:
        made = jobs.ask("prepare", folder=folder, workloads=[*names, "flat"])
        if "failed" in made:
            raise SystemExit(made["failed"])
        folders = made["folders"]
        for part in parts:
            start = time.perf_counter()
            measure(part, names, folders, options, found)
            found["seconds"][part] = time.perf_counter() - start
            save(options.json, found)
    rows = tables.all_rows(found)
    found["rows"] = [asdict(row) | {"verdict": row.verdict} for row in rows]
    save(options.json, found)
    machine = found["machine"]
    print(
        f"{machine['date']}, {machine['cores']} cores ({machine['cpu']}), load {machine['load']:.1f} at the start, "
        f"Python {machine['python']};",
        end=" ",
    )
    print(", ".join(f"{name} {version}" for name, version in machine["versions"].items()))
    print("\nNot running:", "; ".join(f"{who}: {why}" for who, why in found["not_running"].items()) or "none")
    print("Conflicts:", "; ".join(found["conflicts"]) or "none")
    print(f"\n{tables.markdown(rows)}")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workloads", default="W1,W2,W3,W4")
    parser.add_argument("--parts", default=",".join(PARTS), help="trace and eigs are on W1 alone")
    parser.add_argument("--rounds", type=int, default=5, help="turns of every contestant; of heavy workloads half")
    parser.add_argument("--calibrate", action="store_true", help="curv times several ways of computing products first")
    parser.add_argument("--quick", action="store_true", help="one round, short turns")
    parser.add_argument("--density", action="store_true", help="whole runs of the spectral density too (long)")
    parser.add_argument("--density-rounds", type=int, default=1, help="second runs of curv")
    parser.add_argument("--no-cold", action="store_true", help="fill the cache by a run that stops after a step")
    parser.add_argument("--limit", type=float, default=120, help="seconds of a peer's density before it is scaled")
    parser.add_argument("--json", type=Path, help="write everything here")
    parser.add_argument("--venv", type=Path, default=environment.DEFAULT, help="the peers' environment")
    return parser.parse_args()


def measure(part: str, names: list[str], folders: dict[str, str], options: Any, found: dict[str, Any]) -> None:
    """One part, into `found`."""
    print(f"{part} …", file=sys.stderr, flush=True)
    if part == "products":
        for name in names:
            found[part][name] = products(name, folders[name], options)
            save(options.json, found)  # heavy workloads follow: what is measured is kept
    elif part == "density":
        found[part] = {}
        for name in names:
            found[part][name] = density(name, folders[name], options)
            save(options.json, found)
    elif part == "memory":
        found[part] = {name: memory(name, folders[name]) for name in names}
    elif part == "trace":
        found[part] = {name: trace(name, folders[name]) for name in ("W1", "flat") if name in folders}
    elif part == "eigs" and "W1" in folders:
        found[part] = eigs(folders["W1"])
    elif part == "factors":
        rounds = 1 if options.quick else options.rounds
        found[part] = {name: jobs.ask("factors", workload=name, folder=folders[name], rounds=rounds) for name in names}
    elif part == "influence" and "W1" in folders:
        few = {"queries": 10, "rounds": 1} if options.quick else {"queries": 100, "rounds": options.rounds}
        job = {"part": "peers", "single": 2, "damping": 1e-3, "tol": 1e-3, "block": False, **few}
        found[part] = jobs.ask("influence_speed", **job)


def products(name: str, folder: str, options: Any) -> dict[str, Any]:
    """Gradients, products, traces."""
    from comparison.workloads import WORKLOADS

    heavy = WORKLOADS[name].heavy
    rounds = 1 if options.quick else max(1, options.rounds // 2 if heavy else options.rounds)
    job = {"rounds": rounds, "seconds": 0.2 if options.quick else 0.5, "calibrate": options.calibrate}
    return jobs.ask("products", workload=name, folder=folder, **job)


def density(name: str, folder: str, options: Any) -> dict[str, Any]:
    """`curv spectrum` from a cold and from a warm cache, and the same question to the peers."""
    from comparison.workloads import WORKLOADS

    probes, steps = WORKLOADS[name].density
    runs: dict[str, Any] = {"second": []}
    with tempfile.TemporaryDirectory() as cache:
        for turn in range(1 + options.density_rounds):
            asked = ["--probes", str(probes), "--steps", str(steps)]
            asked += ["--time-limit", "1"] if turn == 0 and options.no_cold else []
            run = jobs.run_curv("spectrum", folder, *asked, cache=Path(cache))
            if "failed" in run:
                runs["failed"] = run["failed"]
                break
            cost = {**run["report"]["cost"], "seconds": run["seconds"], "exit_code": run["exit_code"]}
            if turn:
                runs["second"].append(cost)
            elif not options.no_cold:
                runs["first"] = cost
    job = {"workload": name, "folder": folder, "probes": probes, "steps": steps, "longest": options.limit}
    tools = ("PyHessian", "curvlinops", "matfree")
    # A convolution within the loops of matfree's program can take XLA half a minute.
    theirs = {tool: jobs.ask("density", tool=tool, limit=3 * options.limit + 60, **job) for tool in tools}
    return {"probes": probes, "steps": steps, "curv": runs, **theirs}


def trace(name: str, folder: str) -> dict[str, Any]:
    """Products until the trace of the Hessian is within ±1 % at 95 %."""
    run, bare = (jobs.run_curv("trace", folder, "--rtol", "0.01", *more) for more in ((), ("--skip-checks",)))
    if "failed" in run or "failed" in bare:
        return run if "failed" in run else bare
    result, cost = run["report"]["result"], run["report"]["cost"]
    value, norm = result["trace"]["value"], result["frobenius_norm"]["value"]
    job = {"workload": name, "folder": folder, "what": "trace", "value": value, "frobenius_norm": norm, "rtol": 0.01}
    theirs = jobs.ask("estimates", **job)
    if "failed" in theirs:
        return theirs
    own = {"products": spent(run), "without_checks": spent(bare), "cost": cost, "result": result}
    return {**own, "seconds": run["seconds"], "pyhessian": theirs}


def eigs(folder: str) -> dict[str, Any]:
    """The five largest eigenvalues of the Hessian of W1."""
    asked = ("-k", "5", "--tol", "1e-6")
    run, bare = (jobs.run_curv("eigs", folder, *asked, *more) for more in ((), ("--skip-checks",)))
    if "failed" in run or "failed" in bare:
        return run if "failed" in run else bare
    theirs = jobs.ask("estimates", workload="W1", folder=folder, what="eigs", k=5, tol=1e-6)
    if "failed" in theirs:
        return theirs
    result, cost = run["report"]["result"], run["report"]["cost"]
    own = {"products": spent(run), "without_checks": spent(bare), "cost": cost, "result": result}
    return {**own, "seconds": run["seconds"], "peers": theirs}


def memory(name: str, folder: str) -> dict[str, Any]:
    """Peak bytes of Hessian products, each tool alone in a process."""
    tools = {"curv, block of 8": 8, "curv": 1, "PyHessian": 1, "curvlinops": 1, "eigenthings": 1}
    return {
        key: jobs.ask("alone", tool=key.partition(",")[0], workload=name, folder=folder, block=block)
        for key, block in tools.items()
    }


def spent(run: dict[str, Any]) -> float:
    """Products of a run; a quadratic form is half of one."""
    cost = run["report"]["cost"]
    return cost["products"] + 0.5 * cost.get("forms", 0)


def save(path: Path | None, found: dict[str, Any]) -> None:
    """Everything so far, so that an interrupted run leaves what it has."""
    if path is not None:
        path.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
