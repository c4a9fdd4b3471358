"""What a decoder of 7 billion parameters on 64 H100s would take: `python benchmarks/scale_on_paper.py [--json FILE]`.

Needs a CPU alone: programs are lowered or compiled from shapes, and no array of that size is made. Every line says
where its numbers come from: `counted` by XLA in a lowered program, `compiled` into a program for simulated devices,
`measured` on arrays that are there, `computed` from those, or `assumed`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from decoders import Decoder

GIGA = 1e9
LARGE = Decoder(width=4096, layers=32, heads=32, vocabulary=32_000, length=512)
LONG = Decoder(width=4096, layers=32, heads=32, vocabulary=32_000, length=2048)
LADDER = [Decoder(128, 4, 4, 256, 64), Decoder(256, 4, 4, 256, 128), Decoder(512, 4, 8, 256, 64),
          Decoder(512, 10, 8, 512, 128)]  # fmt: skip
"""From 0.9 to 32 million parameters."""
TINY = [Decoder(64, 2, 4, 64, 16), Decoder(128, 2, 4, 64, 16)]
"""Compiled for 8 and 64 devices."""
DEVICES, MEMORY = 64, 80e9
"""H100 SXM: 80 GB."""
FP32, TF32 = 67e12, 494.7e12
"""Operations a second, peak, without sparsity: NVIDIA H100 data sheet."""
NETWORK, NVLINK = 50e9, 450e9
"""Bytes a second and direction of one GPU: 400 Gb/s InfiniBand each (DGX H100: eight ConnectX-7), half of NVLink's 900
GB/s. A ring over several machines is as fast as its slowest link, the network."""
UTILISATION, WIRE = 0.4, 0.7
"""Parts of these peaks that are reached: assumed, not measured."""
TOKENS = 4_194_304
NAMES = ("hessian", "ggn")


def counted(size: Decoder, name: str) -> dict[str, float]:
    """Operations a token of the linearisation and of its application to one vector, and bytes that the map keeps."""
    import jax

    from curvcli.curvature.flatten import Layout
    from curvcli.curvature.matrices import MATRICES
    from curvcli.curvature.products import linear_map as products
    from curvcli.curvature.products.borrowing import returned
    from curvcli.losses import LOSSES

    params, batch = size.parameters(), size.batch(1)
    static = MATRICES[name].field, (size.predict, LOSSES["softmax_cross_entropy"]), Layout.of(params)
    given = params, {"params": {}, "collections": {}}, batch
    own = jax.eval_shape(partial(products.linearised, *static), *given)
    vector = jax.ShapeDtypeStruct((static[2].dim,), "float32")
    made = products.linearised.lower(*static, *given).cost_analysis()["flops"]
    applied = products.single.lower(static[2], returned(own, given), vector).cost_analysis()["flops"]
    kept = sum(one.size * one.dtype.itemsize for one in jax.tree.leaves(own))
    return {"dim": static[2].dim, "forward": size.forward_flops, "multiplied": size.multiplied,
            "attention": size.forward_flops - 2 * size.multiplied, "linearise": made / size.length,
            "apply": applied / size.length, "kept": kept}  # fmt: skip


def compiled_for(count: int, size: Decoder, name: str, batch_size: int, *, cut: bool) -> dict[str, Any]:
    """Collectives and memory of one batch's programs on so many simulated devices, from shapes alone."""
    import jax

    from curvcli.curvature.flatten import Layout
    from curvcli.curvature.matrices import MATRICES
    from curvcli.curvature.products import collectives, programs
    from curvcli.devices import cut_along, mesh_of, on_every, parameter_sharding
    from curvcli.losses import LOSSES
    from curvcli.problem import Way

    mesh = mesh_of(count)
    assert mesh is not None

    def placed(leaf: Any, where: Any) -> Any:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)

    params = {
        path: placed(leaf, parameter_sharding(mesh, leaf.shape) if cut else on_every(mesh))
        for path, leaf in size.parameters().items()
    }
    batch = jax.tree.map(lambda leaf: placed(leaf, cut_along(mesh, 0)), size.batch(batch_size))
    functions = size.predict, LOSSES["softmax_cross_entropy"]
    vectors = jax.ShapeDtypeStruct((1, size.dim), "float32", sharding=on_every(mesh))
    made = programs.compiled(
        MATRICES[name].field, functions, Layout.of(params), Way("map"), params, {"params": {}, "collections": {}},
        batch, vectors,
    )  # fmt: skip
    memory = made.apply.memory_analysis()
    return {
        "devices": count, "width": size.width, "dim": size.dim, "name": name, "batch": batch_size, "cut": cut,
        "linearise": collectives.traffic(made.linearise).bytes, "apply": collectives.traffic(made.apply).bytes,
        "flops": collectives.traffic(made.apply).flops, "argument": memory.argument_size_in_bytes,
        "output": memory.output_size_in_bytes, "temporary": memory.temp_size_in_bytes,
    }  # fmt: skip


def measured_on(count: int) -> dict[str, Any]:
    """What really lies on a device in a Lanczos run of two probes, beside what the table below would predict."""
    import jax

    from curvcli.curvature import build
    from curvcli.devices import mesh_of
    from curvcli.linalg.cutting import width
    from curvcli.linalg.krylov.basis import CHUNK
    from curvcli.linalg.krylov.lanczos import Lanczos
    from curvcli.linalg.probes import sphere
    from curvcli.problem import spread

    mesh, probes, steps = mesh_of(count), 2, 3
    assert mesh is not None
    problem = spread(TINY[1].problem(16, 8), mesh)
    operator, algorithm = (
        build(problem, "ggn"),
        Lanczos(sphere(jax.random.key(0), 0, probes, problem.dim, "float32"), 3),
    )
    state = algorithm.init(operator)
    for _ in range(steps):
        state = algorithm.step(operator, state)
    kept = [*jax.tree.leaves(problem.params), state.current, state.previous, *state.basis.chunks]
    first = mesh.devices.ravel()[0]
    found = sum(part.data.nbytes for one in kept for part in one.addressable_shards if part.device == first)
    basis = probes * CHUNK * width(mesh, problem.dim) * 4 // count
    return {"dim": problem.dim, "found": found, "predicted": (1 + 2 * probes) * 4 * problem.dim + basis}


def child(what: str) -> Any:
    """One part, in a process with its own number of devices."""
    from curvcli.xla import guard_environment

    guard_environment()
    if what == "ladder":
        return {name: [counted(size, name) for size in LADDER] for name in NAMES}
    if what.startswith("large"):
        return counted(LONG if what.startswith("large-long") else LARGE, what.partition(":")[2])
    if what == "eight":
        rows = [compiled_for(8, size, name, 16, cut=False) for size in TINY for name in NAMES]
        return {"rows": rows, "measured": measured_on(8)}
    whole = [compiled_for(64, TINY[0], name, 64, cut=False) for name in NAMES]
    sizes = (TINY[0], 64), (TINY[0], 128), (TINY[1], 64)
    cut = [compiled_for(64, size, "ggn", count, cut=True) for size, count in sizes]
    return {"rows": [*whole, *cut]}


def part(what: str, devices: int) -> Any:
    """That process's answer."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
    done = subprocess.run([sys.executable, __file__, "--child", what], env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{what} failed:\n{done.stderr[-2000:]}")
    print(f"{what} is done", file=sys.stderr, flush=True)
    return json.loads(done.stdout.splitlines()[-1])


def law(rows: list[dict[str, float]], what: str) -> tuple[np.ndarray, float]:
    """Least squares of operations a token on those of kernels and of attention, and the largest relative misfit."""
    parts = np.array([[2 * row["multiplied"], row["attention"]] for row in rows])
    seen = np.array([row[what] for row in rows])
    found = np.linalg.lstsq(parts / seen[:, None], np.ones(len(rows)), rcond=None)[0]
    return found, float(np.abs(parts @ found / seen - 1).max())


def ring(payload: float) -> float:
    """Seconds of a ring's all-reduce over the network."""
    return 2 * (DEVICES - 1) / DEVICES * payload / (WIRE * NETWORK)


def kfac_bytes(size: Decoder) -> tuple[float, int]:
    """Bytes of all factors A and S of the decoder's kernels in float32, and rows of the largest."""
    w = size.width
    pairs = [(w, 3 * w), (w + 1, w), (w + 1, 4 * w), (4 * w + 1, w)] * size.layers + [(w + 1, size.vocabulary)]
    return 4.0 * sum(a * a + s * s for a, s in pairs), max(max(pair) for pair in pairs)


def report(found: dict[str, Any]) -> None:
    """The tables."""
    print("## Operations a token, in forward passes (counted)\n")
    print("| matrix | program | kernels | attention | largest misfit | closed form | 7 B, law | 7 B, counted itself |")
    print("|---|---|---|---|---|---|---|---|")
    closed = {"hessian": {"linearise": "2", "apply": "6"}, "ggn": {"linearise": "1", "apply": "4"}}
    for name in NAMES:
        large = found["large"][name]
        for what in ("linearise", "apply"):
            factors, misfit = law(found["ladder"][name], what)
            predicted = (2 * large["multiplied"] * factors[0] + large["attention"] * factors[1]) / large["forward"]
            print(f"| {name} | {what} | {factors[0]:.3f} | {factors[1]:.3f} | {misfit:.1%} | {closed[name][what]} | "
                  f"{predicted:.3f} | {large[what] / large['forward']:.3f} |")  # fmt: skip
    large, long = found["large"]["hessian"], found["long"]
    dim = large["dim"]
    vector = 4 * dim
    print(f"\n7 B: D = {dim:,}, {large['multiplied']:,} of them in kernels; a vector takes {vector / GIGA:.1f} GB; "
          f"forward {large['forward']:.4g} operations a token")  # fmt: skip
    print("\n## Bytes that one sequence's linear map keeps, parameters left out (counted)\n")
    for name in NAMES:
        print(f"* {name}: {found['large'][name]['kept'] / GIGA:.1f} GB at {LARGE.length} tokens")
    print(f"* ggn: {long['kept'] / GIGA:.1f} GB at {LONG.length} tokens")

    print("\n## Collectives of one application to one vector (compiled)\n")
    print(
        "| devices | D | matrix | parameters | sequences | by kind, in vectors of 4 D bytes | linearisation, likewise |"
    )
    print("|---|---|---|---|---|---|---|")
    for row in [*found["eight"]["rows"], *found["sixty-four"]["rows"]]:
        shares = [
            ", ".join(f"{kind} {size / 4 / row['dim']:.3f}" for kind, size in row[what].items()) or "none"
            for what in ("apply", "linearise")
        ]
        placing = "cut" if row["cut"] else "whole"
        print(f"| {row['devices']} | {row['dim']:,} | {row['name']} | {placing} | {row['batch']} "
              f"| {shares[0]} | {shares[1]} |")  # fmt: skip

    print("\n## Memory (compiled and measured, 8 devices)\n")
    rows = [row for row in found["eight"]["rows"] if row["name"] == "ggn"]
    for row in rows:
        share = [row[what] / 4 / row["dim"] for what in ("argument", "output", "temporary")]
        print(f"* D = {row['dim']:,}: application to one vector has arguments {share[0]:.2f}, result {share[1]:.2f}, "
              f"temporary {share[2]:.2f} vectors of 4 D bytes, activations included")  # fmt: skip
    seen = found["eight"]["measured"]
    print(f"* Lanczos, two probes, D = {seen['dim']:,}: {seen['found']:,} bytes on a device (measured), "
          f"{seen['predicted']:,} by the formula below (computed)")  # fmt: skip

    print("\n## Memory of one device at 7 B, GB (computed)\n")
    for steps in (20, 100):
        rows_kept = -(-steps // 16) * 16
        basis = 2 * rows_kept * vector / DEVICES
        print(f"* two probes × {steps} steps: parameters {vector / GIGA:.1f} (cut: {vector / DEVICES / GIGA:.2f}); "
              f"current and previous vectors {4 * vector / GIGA:.0f}, images, sum and correction "
              f"{6 * vector / GIGA:.0f}; Krylov basis {basis / GIGA:.1f} (cut over {DEVICES})")  # fmt: skip
    least = 4 * vector
    print(f"* the least, one vector: parameters, vector, image, sum: {least / GIGA:.0f} GB of {MEMORY / GIGA:.0f}")
    print(f"* largest D in {MEMORY / GIGA:.0f} GB, activations and basis left out: {MEMORY / 16 / GIGA:.2f} billion by "
          f"that least, {MEMORY / 44 / GIGA:.2f} billion for two probes in lockstep, parameters whole; "
          f"{MEMORY / 40 / GIGA:.2f} billion with parameters cut")  # fmt: skip
    factor_bytes, rows_largest = kfac_bytes(LARGE)
    print(f"* K-FAC: factors {factor_bytes / GIGA:.0f} GB, as much of eigenvectors "
          f"({factor_bytes / DEVICES / GIGA:.1f} on each of {DEVICES}); on the host in float64 "
          f"{2 * factor_bytes / GIGA:.0f} GB; the largest has {rows_largest:,} rows")  # fmt: skip

    print(f"\n## Hours on {DEVICES} H100s if the memory were there (computed; {UTILISATION:.0%} of peak and {WIRE:.0%} "
          f"of {NETWORK / GIGA:.0f} GB/s assumed; {TOKENS:,} tokens)\n")  # fmt: skip
    batches = TOKENS // LARGE.length // DEVICES
    print(f"{batches} batches of {DEVICES} sequences of {LARGE.length}\n")
    print("| what | operations | hours FP32 | hours TF32 | hours of all-reduces |\n|---|---|---|---|---|")
    per = {name: found["large"][name] for name in NAMES}
    sums = {row["name"]: sum(row["apply"].values()) / 4 / row["dim"]
            for row in found["sixty-four"]["rows"] if not row["cut"]}  # fmt: skip
    # Of a Hessian all kernels but those that see data alone are reduced twice; here nearly all of D are such.
    sums["hessian"] = 2.0

    def row(what: str, operations: float, moved: float) -> None:
        hours = [operations / DEVICES / UTILISATION / rate / 3600 for rate in (FP32, TF32)]
        print(f"| {what} | {operations:.3g} | {hours[0]:.2g} | {hours[1]:.2g} | {moved / 3600:.2g} |")

    def passes(name: str, products: int, at_once: int) -> tuple[float, float]:
        one = per[name]
        work = TOKENS * (products * one["apply"] + products / at_once * one["linearise"])
        return work, products * batches * ring(sums[name] * vector)

    row("one Hessian product", *passes("hessian", 1, 1))
    row("one GGN product", *passes("ggn", 1, 1))
    row("`spectrum`, Hessian, 2 probes × 20 steps", *passes("hessian", 40, 2))
    row("`spectrum`, Hessian, 2 probes × 100 steps", *passes("hessian", 200, 2))
    row("`trace`, GGN, 32 products", *passes("ggn", 32, 2))
    row("`influence`, 1,000 queries, 50 steps of CG, GGN", *passes("ggn", 50_000, 1000))
    scores = TOKENS * 1000 * 2 * large["forward"]
    row("`influence`, 1,000 queries: scores of all examples (J s)", scores, 0.0)
    print(f"\n1,000 solutions take {1000 * vector / GIGA / 1000:.1f} TB, {1000 * vector / DEVICES / GIGA:.0f} GB on "
          f"each device where they are cut; a block of CG has several of that size")  # fmt: skip


def main() -> None:
    """All parts, then the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="where the parts are kept, and read from if they are there")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(child(arguments.child)))
        return
    found = json.loads(arguments.json.read_text()) if arguments.json and arguments.json.exists() else {}
    wanted: dict[str, tuple[str, int]] = {"sixty-four": ("sixty-four", 64), "eight": ("eight", 8),
        "ladder": ("ladder", 1), "large ggn": ("large:ggn", 1), "long": ("large-long:ggn", 1),
        "large hessian": ("large:hessian", 1)}  # fmt: skip
    for key, (what, devices) in wanted.items():
        if key not in found:
            found[key] = part(what, devices)
            if arguments.json:
                arguments.json.write_text(json.dumps(found))
    found["large"] = {name: found[f"large {name}"] for name in NAMES}
    report(found)


if __name__ == "__main__":
    main()
