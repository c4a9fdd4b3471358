"""What was measured beside the targets: one line each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from .timing import ratio, spread
from .workloads import WORKLOADS

MATRICES = {"hessian": "Hessian", "ggn": "GGN", "empirical-fisher": "empirical Fisher"}
BLOCK = "curv, block of 8"
INEXACT = 2e-4
"""Relative difference of products that rounding does not explain."""


@dataclass(frozen=True)
class Row:
    """A target and what was measured.

    Parameters
    ----------
    what, workload
        The quantity, a ratio.
    sense, target
        `≤` or `≥` the target; None: none was set.
    measured
        Median and quartiles of the ratio; None: it could not be measured.
    note
        What to know of it.
    """

    what: str
    workload: str
    sense: Literal["≤", "≥"]
    target: float | None
    measured: dict[str, float] | None
    note: str = ""

    @property
    def verdict(self) -> str:
        """`met`, or by how much not."""
        if self.measured is None:
            return "not measured"
        if self.target is None:
            return "no target"
        value = self.measured["median"]
        if value <= self.target if self.sense == "≤" else value >= self.target:
            return "met"
        off = value / self.target - 1 if self.sense == "≤" else 1 - value / self.target
        return f"missed by {100 * off:.0f} %"

    def line(self) -> str:
        """Of the Markdown table."""
        target = "–" if self.target is None else f"{self.sense} {self.target:.3g}"
        value, width = "–", "–"
        if self.measured is not None:
            value = f"{self.measured['median']:.3g}"
            width = f"{self.measured['low']:.3g} – {self.measured['high']:.3g}"
        return f"| {self.what} | {self.workload} | {target} | {value} | {width} | {self.verdict} | {self.note} |"


def markdown(rows: list[Row]) -> str:
    """The table."""
    head = ["| what | workload | target | measured | quartiles | | note |", "|---|---|---|---|---|---|---|"]
    return "\n".join(head + [row.line() for row in rows])


def all_rows(found: dict[str, Any]) -> list[Row]:
    """Every row that the measurements allow."""
    rows: list[Row] = []
    for name, products in found["products"].items():
        if "failed" in products:
            rows.append(Row("products", name, "≤", None, None, products["failed"]))
            continue
        rows += [*_gradient(name, products), *_floor(name, products), *_against_peers(name, products)]
        rows += _trace_per_probe(name, products)
    for name, one in found.get("factors", {}).items():
        rows += _factors(name, one)
    rows += _influence(found.get("influence", {}))
    for name, density in found.get("density", {}).items():
        rows += _density(name, density, found["products"].get(name, {}))
    rows += _trace(found.get("trace", {}))
    rows += _eigs(found.get("eigs", {}))
    for name, memory in found.get("memory", {}).items():
        rows += _memory(name, memory)
    return rows


def _gradient(name: str, products: dict[str, Any]) -> Iterator[Row]:
    times = products["times_ms"]
    if "gradient: torch" in times:
        measured = ratio(times["gradient: curv"], times["gradient: torch"])
        yield Row("gradient, jax / torch", name, "≤", None, measured)


def _floor(name: str, products: dict[str, Any]) -> Iterator[Row]:
    for matrix, title in MATRICES.items():
        times = products["times_ms"].get(f"{matrix}: {BLOCK}")
        if times is None:
            continue
        operations, rates = products["operations"][matrix], products["rates"][matrix]
        floors = {kind: [operations / rate / 1e6 for rate in rates[kind]] for kind in ("best", "median")}
        by_median = ratio(times, floors["median"])["median"]
        note = f"{spread(times)['median']:.3g} ms, {operations / 1e9:.3g} GFLOP; by the median rate {by_median:.2f}"
        target = None if WORKLOADS[name].kind == "conv" else 1.25
        yield Row(f"{title} product in a block / floor", name, "≤", target, ratio(times, floors["best"]), note)


def _best(times: dict[str, list[float]], quantity: str, tool: str) -> tuple[str, list[float]] | None:
    """The tool's mode with the least median."""
    start = f"{quantity}: {tool}"
    modes = {key: ms for key, ms in times.items() if key == start or key.startswith(f"{start}, ")}
    if not modes:
        return None
    key = min(modes, key=lambda key: spread(modes[key])["median"])
    return key.removeprefix(f"{quantity}: "), modes[key]


def _against_peers(name: str, products: dict[str, Any]) -> Iterator[Row]:
    """Peers' time over curv's, each in its best mode."""
    kind, times = WORKLOADS[name].kind, products["times_ms"]
    targets = {
        "mlp": {"PyHessian": 1.4, "curvlinops": 2.0, "eigenthings": 2.0},
        "transformer": {"PyHessian": 1.0, "curvlinops": 1.0, "eigenthings": 1.0},
        "conv": {"curvlinops": 1.0},
    }[kind]
    for matrix, title in MATRICES.items():
        yield from _faster(name, products, matrix, f"{title} product", targets, times.get(f"{matrix}: {BLOCK}"))


def _trace_per_probe(name: str, products: dict[str, Any]) -> Iterator[Row]:
    targets, own = {"curvlinops": 3.0, "eigenthings": 3.0}, products["times_ms"].get(f"ggn-trace: {BLOCK}")
    yield from _faster(name, products, "ggn-trace", "trace of the GGN, per probe", targets, own)


def _faster(
    name: str, products: dict[str, Any], quantity: str, title: str, targets: dict[str, float], own: list[float] | None
) -> Iterator[Row]:
    for tool in ("PyHessian", "curvlinops", "eigenthings"):
        what, target = f"{title}: {tool} / curv", targets.get(tool)
        best = _best(products["times_ms"], quantity, tool)
        if best is not None and own is not None:
            note = f"{best[0]}: {spread(best[1])['median']:.3g} ms against {spread(own)['median']:.3g} ms"
            difference = products["differences"][f"{quantity}: {best[0]}"]
            if difference > INEXACT:
                note += f"; its result is off curv's by {difference:.1g}"
            yield Row(what, name, "≥", target, ratio(best[1], own), note)
        elif tool != "PyHessian" or quantity == "hessian":
            failures = [why for key, why in products["failures"].items() if key.startswith(f"{quantity}: {tool}")]
            yield Row(what, name, "≥", target, None, failures[0] if failures else "it has none")


def _density(name: str, density: dict[str, Any], products: dict[str, Any]) -> Iterator[Row]:
    probes, steps, runs = density["probes"], density["steps"], density["curv"]
    title = f"density, {probes} × {steps}"
    second = [one["seconds"] for one in runs["second"]]
    if not second:
        yield Row(title, name, "≤", None, None, runs["failed"])
        return
    compiling = spread([one["compile_seconds"] for one in runs["second"]])["median"]
    note = f"{spread(second)['median']:.3g} s, {compiling:.2g} s of them compiling"
    note += f"; first run {runs['first']['seconds']:.3g} s" if "first" in runs else ""
    times = products.get("times_ms", {}).get(f"hessian: {BLOCK}")
    if times:
        needed = 1e-3 * spread(times)["median"] * probes * steps
        said = f"{note}; {runs['second'][0]['products']} products made, {needed:.3g} s for the {probes * steps} needed"
        yield Row(f"{title}: whole run / its products", name, "≤", 1.25, spread([s / needed for s in second]), said)
    for tool in ("PyHessian", "curvlinops", "matfree"):
        their = density[tool]
        if "failed" in their:
            yield Row(f"{title}: {tool} / curv, whole run", name, "≥", 1.0, None, their["failed"])
            continue
        whole = their["process_seconds"] + their["scaled"] - their["measured"]
        said = f"{whole:.3g} s" + (
            f", scaled from {their['probes_run']} probes" if their["probes_run"] < probes else ""
        )
        yield Row(f"{title}: {tool} / curv, whole run", name, "≥", 1.0, spread([whole / s for s in second]), said)


def _factors(name: str, found: dict[str, Any]) -> Iterator[Row]:
    """curvlinops' time over curv's, for factors and eigenvectors together."""
    for key, title, target in (("kfac", "K-FAC factors and eigenvectors", 1.0), ("ekfac", "E-KFAC", None)):
        what = f"{title}: curvlinops / curv"
        if "failed" in found:
            yield Row(what, name, "≥", target, None, found["failed"])
            continue
        times = found["times_ms"]
        own, theirs = times.get(f"{key}: curv"), times.get(f"{key}: curvlinops")
        if own is theirs is None and not found["failures"]:
            continue  # not asked for
        if own is None or theirs is None:
            yield Row(what, name, "≥", target, None, "; ".join(found["failures"].values()))
            continue
        note = f"{spread(theirs)['median']:.3g} ms against {spread(own)['median']:.3g} ms"
        if key in found["differences"]:
            note += f"; products differ by {found['differences'][key]:.1g}"
        yield Row(what, name, "≥", target, ratio(theirs, own), note)


def _influence(found: dict[str, Any]) -> Iterator[Row]:
    """The peers' time over curv's: 100 queries × all examples."""
    for tool, target in (("pyDVL CG", 20.0), ("kronfluence E-KFAC", None)) if found else ():
        title = f"influence of all examples on 100 queries: {tool} / curv"
        runs = found.get("rounds", {}).get(tool)
        if not runs or "failed" in runs[0]:
            yield Row(title, "W1", "≥", target, None, runs[0]["failed"] if runs else found.get("failed", ""))
            continue
        own = found["rounds"]["curv, hessian"]
        seconds = [[one["seconds"] for one in each] for each in (runs, own)]
        note = f"{spread(seconds[0])['median']:.3g} s against {spread(seconds[1])['median']:.3g} s"
        if "residual" in runs[0]:
            note += f", scaled from {runs[0]['queries']} queries; residuals {runs[0]['residual']:.1g} and "
            note += f"{own[0]['residual']:.1g}; scores correlate by {runs[0]['correlation']:.5f}"
        else:
            note += f"; an approximation, scores correlate by {runs[0]['correlation']:.3f}"
        yield Row(title, "W1", "≥", target, ratio(*seconds), note)


def _trace(found: dict[str, Any]) -> Iterator[Row]:
    for name, one in found.items():
        title = "products to a trace within ±1 %: PyHessian / curv"
        if "failed" in one:
            yield Row(title, name, "≥", None, None, one["failed"])
            continue
        theirs, own = one["pyhessian"], one["products"]
        needed = f"{theirs['needed_by_samples']:.0f} (by the norm {theirs['needed_by_norm']:.0f}) against {own:g}"
        stops = f"stops after {theirs['stopped_after']:.0f}, within 1 % in {theirs['stopped_within_rtol']:.0%} of runs"
        note = f"{needed} ({one['without_checks']:g} without self-checks); its own rule {stops}"
        target = 1.0 if name == "flat" else 10.0
        yield Row(title, name, "≥", target, spread([theirs["needed_by_samples"] / own]), note)


def _eigs(found: dict[str, Any]) -> Iterator[Row]:
    if not found:
        return
    title, own = "products to 5 eigenvalues, residual 1e-6: curv / ", found.get("products")
    for tool, key, target in (("power iteration", "power", 1 / 3), ("eigsh", "eigsh", 1.0)):
        if "failed" in found:
            yield Row(title + tool, "W1", "≤", target, None, found["failed"])
            continue
        theirs = found["peers"][key]
        note = f"{own:g} ({found['without_checks']:g} without self-checks) against {theirs['products']}" + (
            ", given up: not there yet" if theirs["given_up"] else ""
        )
        yield Row(title + tool, "W1", "≤", target, spread([own / theirs["products"]]), note)


def _memory(name: str, memory: dict[str, Any]) -> Iterator[Row]:
    """curv's bytes over the peers'; no target."""
    own = memory["curv, block of 8"]
    for tool, one in memory.items():
        if tool != "curv, block of 8" and "failed" not in one and "failed" not in own:
            note = f"{own['bytes'] / 1e6:.0f} MB against {one['bytes'] / 1e6:.0f} MB beyond the imports"
            note += f"; compilation {own['compile_seconds']:.2g} s"
            measured = spread([own["bytes"] / max(one["bytes"], 1)])
            yield Row(f"memory of Hessian products: curv, block of 8 / {tool}", name, "≤", None, measured, note)
