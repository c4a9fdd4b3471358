"""Data larger than memory: `python benchmarks/streaming.py [--gigabytes 20] [--limit 4] [--folder DIR]`.

Writes a folder of .npy files (random images of 28 × 28 float32 pixels, ten classes) for a perceptron, and runs, each in
a control group that may take `--limit` GB of memory, page cache included:

* `curv trace --matrix ggn` on all of it: time and memory. The loss and the exact trace come from numpy, which reads the
  files by itself;
* products of the GGN with a block of vectors, of a part of the data that is in memory and of parts that stream, from
  all over the file, in turn: both meet the same load of the machine, and the median ratio of their rates is the answer.
  The quadratic forms of each part are held against numpy's.

The control group is made below this process's own, which needs the rights for that (root, with control groups of
version 1, or a delegated group of version 2). Without them the runs go on unlimited, and say so.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

PIXELS, CLASSES, BLOCK = 784, 10, 1 << 16
OWN = Path("/proc/self/cgroup")


def main() -> None:
    """Write, run, compare; the folder is deleted at the end unless --keep."""
    parser = argparse.ArgumentParser(description="Data larger than memory.")
    parser.add_argument("--gigabytes", type=float, default=20.0, help="size of the images")
    parser.add_argument("--limit", type=float, default=4.0, help="GB of memory for each run")
    parser.add_argument("--folder", type=Path, help="where the data are written; default: a new folder in TMPDIR")
    parser.add_argument("--part", type=int, default=100_000, help="examples of a part that is timed")
    parser.add_argument("--parts", type=int, default=12, help="parts that are timed")
    parser.add_argument("--hidden", type=int, default=128, help="units of the hidden layer")
    parser.add_argument("--probes", type=int, default=4, help="vectors in a block")
    parser.add_argument("--keep", action="store_true", help="leave the data where they are")
    parser.add_argument("--json", type=Path, help="write the numbers here too")
    parser.add_argument("--paired", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.paired:
        print(json.dumps(paired(options)))
        return
    folder = options.folder or Path(tempfile.mkdtemp(prefix="curv-streaming-"))
    count = int(options.gigabytes * 1e9 / (4 * PIXELS))
    found: dict[str, Any] = {"count": count, "bytes": 4 * PIXELS * count, "limit": int(options.limit * 1e9)}
    try:
        weights = write(folder, count, options.hidden)
        found["reference"] = reference(folder, weights)
        found["command"] = command(folder, options, found["limit"])
        own = [sys.executable, __file__, "--paired", "--folder", str(folder), "--part", str(options.part)]
        own += ["--parts", str(options.parts), "--probes", str(options.probes)]
        out_of_cache(folder / "data")
        output, memory = limited(own, found["limit"])
        found["paired"] = json.loads(output) | memory
    finally:
        if not options.keep:
            shutil.rmtree(folder)
    print_table(found)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))


def write(folder: Path, count: int, hidden: int) -> dict[str, np.ndarray]:
    """The data and a checkpoint, in blocks, and out of the page cache: the weights."""
    data = folder / "data"
    data.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    if not (data / "x.npy").exists():
        x = np.lib.format.open_memmap(data / "x.npy", "w+", np.float32, (count, 28, 28, 1))
        for start in range(0, count, BLOCK):
            x[start : start + BLOCK] = rng.random((min(BLOCK, count - start), 28, 28, 1), np.float32)
        x.flush()
        np.save(data / "y.npy", rng.integers(0, CLASSES, count).astype(np.int32))
    out_of_cache(data)
    rng = np.random.default_rng(1)
    weights = {
        "Dense_0/kernel": rng.normal(size=(PIXELS, hidden)) / np.sqrt(PIXELS),
        "Dense_0/bias": 0.1 * rng.normal(size=hidden),
        "Dense_1/kernel": rng.normal(size=(hidden, CLASSES)) / np.sqrt(hidden),
        "Dense_1/bias": 0.1 * rng.normal(size=CLASSES),
    }
    weights = {name: leaf.astype(np.float32) for name, leaf in weights.items()}
    np.savez(folder / "weights.npz", **weights)  # pyright: ignore[reportArgumentType]
    return weights


def out_of_cache(folder: Path) -> None:
    """Files that the page cache has on another group's account would not count against the limit."""
    for file in folder.iterdir():
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def limited(command: list[str], limit: int) -> tuple[str, dict[str, Any]]:
    """What a command prints that runs in a control group; its seconds and memory."""
    with Group(limit) as group:
        start, most = time.perf_counter(), 0
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, preexec_fn=group.enter)
        while process.poll() is None:
            most = max(most, group.unreclaimable())
            time.sleep(0.2)
        seconds = time.perf_counter() - start
        assert process.stdout is not None
        output = process.stdout.read()
    if process.returncode:
        raise SystemExit(f"{command[1:4]} ended with {process.returncode}")
    return output, {"seconds": seconds, "unreclaimable": most, "limited": group.folder is not None}


def command(folder: Path, options: Any, limit: int) -> dict[str, Any]:
    """A run of `curv trace`: its report's numbers, the seconds of its parts, its memory."""
    out_of_cache(folder / "data")
    features = f"features=[{options.hidden},{CLASSES}]"
    output, memory = limited(
        [
            sys.executable, "-m", "curvcli", "trace", str(folder / "weights.npz"), "--model", "curvcli.zoo:MLP",
            "--model-arg", features, "--model-arg", 'activation="tanh"', "--data", str(folder / "data"),
            "--inputs", "x", "--targets", "y", "--loss", "softmax_cross_entropy", "--matrix", "ggn",
            "--method", "hutchinson", "--probes", str(options.probes), "--profile", "--no-cache", "--format", "json",
        ],
        limit,
    )  # fmt: skip
    report = json.loads(output)
    cost, trace = report["cost"], report["result"]["trace"]
    return memory | {
        "profile": cost["profile"], "peak": cost["peak_memory_bytes"], "batch_size": cost["way"]["batch_size"],
        "loss": report["problem"]["loss_value"], "trace": trace["value"], "stderr": trace["stderr"],
        "failed": [name for name, one in report["checks"].items() if not one["passed"]],
    }  # fmt: skip


def paired(options: Any) -> dict[str, Any]:
    """Rates of products, in memory and streamed in turn; the forms of all parts together."""
    import jax
    import jax.numpy as jnp

    from curvcli.analyses.common.tuning import planned
    from curvcli.curvature import build
    from curvcli.losses import LOSSES
    from curvcli.problem import Batches, Problem, Regulariser
    from curvcli.schema.settings import AnalysisSettings

    folder, size = options.folder, options.part
    x, y = np.load(folder / "data" / "x.npy", mmap_mode="r"), np.load(folder / "data" / "y.npy")
    with np.load(folder / "weights.npz") as stored:
        weights = {name: stored[name] for name in sorted(stored)}
    vectors = jnp.asarray(vectors_for(weights, options.probes))

    def predict(p: Any, frozen: Any, rows: Any) -> Any:
        h = jnp.tanh(rows.reshape(len(rows), PIXELS) @ p["Dense_0/kernel"] + p["Dense_0/bias"])
        return h @ p["Dense_1/kernel"] + p["Dense_1/bias"]

    loss = LOSSES["softmax_cross_entropy"]

    def operator(start: int, streamed: bool) -> Any:
        rows = slice(start, min(start + size, len(x)))
        batches = Batches(x[rows], y[rows], np.ones(len(y[rows]), np.float32), 64, np.dtype("float32"))
        params = {name: jnp.asarray(leaf) for name, leaf in weights.items()}
        problem = Problem(params, {"params": {}, "collections": {}}, predict, lambda p: p, loss, batches, 1.0, NONE)
        problem = planned(problem, AnalysisSettings(matrix="ggn"))
        kept = replace(problem.way, kept_bytes=0)  # parts that stream keep nothing, and are compared with their like
        problem = replace(problem, way=kept, batches=replace(problem.batches, streamed=streamed))
        return build(problem, "ggn"), problem.batches.batch_size

    def seconds(one: Any) -> tuple[float, Any]:
        start = time.perf_counter()
        images = jax.block_until_ready(one.matmat(vectors))
        return time.perf_counter() - start, np.einsum("kd,kd->k", np.asarray(vectors), np.asarray(images, np.float64))

    NONE = Regulariser()
    resident, batch_size = operator(0, False)
    seconds(resident)  # compiles
    ratios, rates, errors = [], [], []
    for start in np.linspace(size, max(len(x) - size, size), options.parts).astype(int).tolist():
        before, (mine, forms), after = seconds(resident)[0], seconds(operator(start, True)[0]), seconds(resident)[0]
        truth = reference(folder, weights, slice(start, start + size), np.asarray(vectors))["forms"]
        ratios.append(0.5 * (before + after) / mine)
        rates.append(size * len(vectors) / mine)
        errors.append(float(np.max(np.abs(forms / truth - 1))))
    return {"ratios": ratios, "rates": rates, "errors": errors, "batch_size": batch_size}


def vectors_for(weights: dict[str, np.ndarray], count: int) -> np.ndarray:
    """Random vectors of the parameters, in the order of their names: [count, dim]."""
    dim = sum(leaf.size for leaf in weights.values())
    return np.random.default_rng(2).normal(size=(count, dim)).astype(np.float32)


class Group:
    """A control group with a limit of memory, below the one that this process is in; nothing where that is refused."""

    def __init__(self, limit: int) -> None:
        self.folder: Path | None = None
        lines = [line.split(":", 2) for line in OWN.read_text().splitlines()] if OWN.exists() else []
        for _, controllers, path in lines:
            first = "memory" in controllers.split(",")
            if not first and controllers:
                continue
            root = Path("/sys/fs/cgroup/memory" if first else "/sys/fs/cgroup")
            folder = root / path.lstrip("/") / f"curv-streaming-{os.getpid()}"
            try:
                folder.mkdir()
            except OSError:
                continue
            try:
                (folder / ("memory.limit_in_bytes" if first else "memory.max")).write_text(str(limit))
                self.folder = folder
                return
            except OSError:
                folder.rmdir()
        print("no control group could be made: the runs are not limited", file=sys.stderr)

    def enter(self) -> None:
        """Called in the child before it becomes the command."""
        if self.folder is not None:
            (self.folder / "cgroup.procs").write_text(str(os.getpid()))

    def unreclaimable(self) -> int:
        """Bytes of the group that are no page cache."""
        if self.folder is None:
            return 0
        stat = dict(line.split() for line in (self.folder / "memory.stat").read_text().splitlines())
        return int(stat.get("total_rss", stat.get("anon", 0)))

    def __enter__(self) -> Group:
        return self

    def __exit__(self, *_: object) -> None:
        if self.folder is not None:
            self.folder.rmdir()


def reference(
    folder: Path, weights: dict[str, np.ndarray], rows: slice = slice(None), vectors: Any = ()
) -> dict[str, Any]:
    """By numpy: the mean loss, the exact trace of the mean GGN, and forms of vectors with its sum over some rows.

    tr G = Σ_n (‖h‖² + 1) tr C + (‖x‖² + 1) Σ_j φ'(a_j)² (W₂ C W₂ᵀ)_jj, and vᵀGv = Σ_n żᵀCż with C = diag(p) − ppᵀ.
    """
    x, y = np.load(folder / "data" / "x.npy", mmap_mode="r")[rows], np.load(folder / "data" / "y.npy")[rows]
    names = sorted(weights)
    ends = np.cumsum([weights[name].size for name in names])[:-1]
    tangents = [
        {name: part.reshape(weights[name].shape) for name, part in zip(names, np.split(vector, ends), strict=True)}
        for vector in vectors
    ]
    first, second = weights["Dense_0/kernel"], weights["Dense_1/kernel"]
    loss, trace, forms = 0.0, 0.0, np.zeros(len(vectors))
    for start in range(0, len(x), BLOCK):
        block = np.asarray(x[start : start + BLOCK]).reshape(-1, PIXELS)
        labels = y[start : start + len(block)]
        h = np.tanh(block @ first + weights["Dense_0/bias"])
        z = (h @ second + weights["Dense_1/bias"]).astype(np.float64)
        z -= z.max(axis=1, keepdims=True)
        p = np.exp(z)
        total = p.sum(axis=1)
        p /= total[:, None]
        loss += float(np.sum(np.log(total) - z[np.arange(len(z)), labels]))
        across = p @ np.square(second.T, dtype=np.float64) - np.square(p @ second.T)
        slopes = np.sum(np.square(1 - np.square(h)) * across, axis=1)
        trace += float(np.sum((np.square(h).sum(1) + 1) * (1 - np.square(p).sum(1))))
        trace += float(np.sum((np.einsum("nd,nd->n", block, block) + 1) * slopes))
        for i, v in enumerate(tangents):
            moved = (1 - np.square(h)) * (block @ v["Dense_0/kernel"] + v["Dense_0/bias"])
            out = (moved @ second + h @ v["Dense_1/kernel"] + v["Dense_1/bias"]).astype(np.float64)
            forms[i] += np.sum(p * np.square(out)) - np.sum(np.square(np.sum(p * out, axis=1)))
    return {"loss": loss / len(x), "trace": trace / len(x), "forms": forms.tolist()}


def print_table(found: dict[str, Any]) -> None:
    """What was found, in lines."""
    truth, run, pairs = found["reference"], found["command"], found["paired"]
    off = (run["trace"] - truth["trace"]) / run["stderr"]
    worst = max(pairs["errors"])
    low, middle, high = np.percentile(pairs["ratios"], [25, 50, 75])
    parts = {name: round(seconds) for name, seconds in run["profile"].items()}
    held = run["limited"] and pairs["limited"]
    for line in (
        f"{found['count']:,} examples, {found['bytes'] / 1e9:.1f} GB; limited to {found['limit'] / 1e9:g} GB: {held}",
        f"curv trace: {run['seconds']:.0f} s ({parts}), batches of {run['batch_size']}",
        f"  loss off by {run['loss'] / truth['loss'] - 1:.1e}; trace {run['trace']:.5g}, exact {truth['trace']:.5g}, "
        f"{off:+.1f} standard errors off; checks failed: {run['failed'] or 'none'}",
        f"  peak {run['peak'] / 1e9:.2f} GB, of the group without page cache {run['unreclaimable'] / 1e9:.2f} GB",
        f"products: {np.median(pairs['rates']):,.0f} examples × vectors a second streamed; relative to in memory "
        f"{middle:.2f} (quartiles {low:.2f} – {high:.2f}, {len(pairs['ratios'])} parts); forms off by {worst:.1e}",
    ):
        print(line)


if __name__ == "__main__":
    main()
