"""One problem on 1 to 8 devices and by 1 to 4 processes: `python benchmarks/scaling.py [rounds] [--json FILE]`.

Seconds of a product with a block of two vectors and of a Lanczos step with reorthogonalisation, bytes of the
collectives, and whether all have come to the same: products to 50 eps ‖H‖, and the largest Ritz value likewise. The
devices are simulated ones of a CPU: where there are two cores, two devices are the most that can help, and one device
uses both cores already. Each set-up is timed in processes of its own, in turns; medians.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SETUPS = [("devices", 1), ("devices", 2), ("devices", 4), ("devices", 8),
          ("processes", 1), ("processes", 2), ("processes", 4)]  # fmt: skip
STEPS, REPEATS, VECTORS = 8, 5, 2


def child(kind: str, count: int, rank: int, address: str, folder: Path) -> None:
    """Time one set-up, or be one of its processes."""
    from curvcli.xla import guard_environment

    guard_environment()
    import jax
    import numpy as np

    jax.config.update("jax_num_cpu_devices", count if kind == "devices" else 1)
    if kind == "processes":
        from curvcli.cli.distributed import bind_collectives

        bind_collectives(address.partition(":")[0])
        jax.distributed.initialize(address, count, rank, coordinator_bind_address=address)
    from curvcli.curvature import build
    from curvcli.curvature.products.collectives import product_traffic
    from curvcli.devices import mesh_of, on_host
    from curvcli.linalg.krylov.lanczos import Lanczos
    from curvcli.linalg.probes import sphere
    from curvcli.problem import spread

    problem = perceptron()
    mesh = mesh_of("all")
    if mesh is not None:
        assert mesh.size == count
        problem = spread(problem, mesh)
    operator = build(problem, "hessian")
    vectors = sphere(jax.random.key(1), 0, VECTORS, problem.dim, "float32")
    image = jax.block_until_ready(operator.matmat(vectors))
    products = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        jax.block_until_ready(operator.matmat(vectors))
        products.append(time.perf_counter() - start)
    steps: list[float] = []
    for turn in range(2):  # the first compiles
        algorithm = Lanczos(vectors, STEPS)
        state = algorithm.init(operator)
        start = time.perf_counter()
        while not algorithm.done(state):
            state = algorithm.step(operator, state)
        jax.block_until_ready(state.current)
        steps = [(time.perf_counter() - start) / STEPS] if turn else []
    found = product_traffic(problem, "hessian", VECTORS)
    image, ritz = on_host(image), [one.eigh()[0] for one in algorithm.result(state)]
    if rank == 0:
        np.savez(folder / f"{kind}{count}.npz", image=image, ritz=np.stack(ritz))
        print(json.dumps({
            "dim": problem.dim, "product": statistics.median(products), "step": steps[0],
            "bytes": found.bytes if found else {},
        }))  # fmt: skip
    if kind == "processes":
        jax.distributed.shutdown()


def perceptron() -> Any:
    """An MLP 256-512-512-10 on 1,024 examples in two batches, float32."""
    import jax.numpy as jnp
    import numpy as np

    from curvcli.losses import LOSSES
    from curvcli.problem import Batches, Problem, Regulariser, Way

    rng, sizes = np.random.default_rng(0), (256, 512, 512, 10)
    shapes = {f"{layer}": shape for layer, shape in enumerate(itertools.pairwise(sizes))}
    params = {name: jnp.asarray(rng.normal(size=one) / one[0] ** 0.5, "float32") for name, one in shapes.items()}
    inputs, labels = rng.normal(size=(1024, 256)).astype(np.float32), rng.integers(0, 10, 1024).astype(np.int32)
    batches = Batches(inputs, labels, np.ones(1024, "float32"), 512, np.dtype("float32"))
    return Problem(
        params, {"params": {}, "collections": {}},
        lambda p, frozen, x: jnp.tanh(jnp.tanh(x @ p["0"]) @ p["1"]) @ p["2"],
        lambda flat: flat, LOSSES["softmax_cross_entropy"], batches, 1024.0, Regulariser(), 1024,
        Way("vmap", 0, VECTORS),
    )  # fmt: skip


def timed(kind: str, count: int, folder: Path) -> dict[str, Any]:
    """One turn of one set-up."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str(folder / "programs"),
                   "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}  # fmt: skip
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    ranks = count if kind == "processes" else 1
    made = [
        subprocess.Popen(
            [sys.executable, __file__, "--child", kind, str(count), str(rank), address, str(folder)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
        )
        for rank in range(ranks)
    ]  # fmt: skip
    said = [one.communicate() for one in made]
    for one, (_, errors) in zip(made, said, strict=True):
        if one.returncode:
            raise SystemExit(f"{kind} {count} failed:\n{errors[-2000:]}")
    return json.loads(said[0][0].splitlines()[-1])


def main() -> None:
    """Turns over all set-ups, then the table."""
    import numpy as np

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rounds", nargs="?", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", nargs=5, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        kind, count, rank, address, folder = arguments.child
        child(kind, int(count), int(rank), address, Path(folder))
        return
    turns: dict[tuple[str, int], list[dict[str, Any]]] = {setup: [] for setup in SETUPS}
    with tempfile.TemporaryDirectory() as name:
        for number in range(arguments.rounds):
            for kind, count in SETUPS:
                turns[kind, count].append(timed(kind, count, Path(name)))
                print(f"round {number + 1}: {count} {kind}", file=sys.stderr, flush=True)
        found = {setup: np.load(Path(name) / f"{setup[0]}{setup[1]}.npz") for setup in SETUPS}
        found = {setup: (one["image"], one["ritz"]) for setup, one in found.items()}
    image, ritz = found["devices", 1]
    size, eps = np.abs(ritz).max(), np.finfo(np.float32).eps
    rows = []
    print(f"{turns['devices', 1][0]['dim']:,} parameters, {VECTORS} vectors, {os.cpu_count()} cores, medians of "
          f"{arguments.rounds} rounds, load {os.getloadavg()[0]:.1f}; ‖H‖ ≈ {size:.4g}\n")  # fmt: skip
    print("| set-up | s a product | / one device | s a Lanczos step | / one device | MB exchanged a product "
          "| largest error / (eps ‖H‖) |\n|---|---|---|---|---|---|---|")  # fmt: skip
    for setup, own in turns.items():
        product, step = (statistics.median(one[what] for one in own) for what in ("product", "step"))
        ratios = [
            statistics.median(one[what] / alone[what] for one, alone in zip(own, turns["devices", 1], strict=True))
            for what in ("product", "step")
        ]
        off = max(np.linalg.norm(found[setup][0] - image, axis=1).max(), np.abs(found[setup][1] - ritz)[:, -1].max())
        assert off <= 50 * eps * size, f"{setup}: {off / eps / size} eps ‖H‖"
        moved = sum(own[0]["bytes"].values()) / 1e6
        rows.append({"setup": setup, "product": product, "step": step, "ratios": ratios, "bytes": own[0]["bytes"],
                     "error": float(off / eps / size), "turns": own})  # fmt: skip
        print(f"| {setup[1]} {setup[0]} | {product:.3f} | {ratios[0]:.2f} | {step:.3f} | {ratios[1]:.2f} | {moved:.3g} "
              f"| {off / eps / size:.2g} |", flush=True)  # fmt: skip
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
