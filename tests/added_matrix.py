"""A program that adds a matrix by its two rows alone and asks every command about it.

The matrix is the GGN whose output Hessian is that of the logits divided by a temperature. Of softmax regression it is
(1/N) Σ x xᵀ ⊗ (diag p − p pᵀ) + l2 I, p the probabilities at that temperature.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from curvcli.schema.matrices import MATRICES as FACTS
from curvcli.schema.matrices import MatrixFacts

NAME, TEMPERATURE, L2 = "tempered-ggn", 2.0, 0.01


def add_facts() -> None:
    """The first row."""
    FACTS[NAME] = MatrixFacts(
        label="tempered GGN", needs="likelihood", by_examples=False, regularised=True, curves_the_loss=True,
        own_hessian=False, second_derivatives=False, closed_form=False, layers=False, rows="parameters", matrix="taken",
        lines="taken", saliencies="taken", compare="by default", influence="taken", sets_damping=7,
    )  # fmt: skip


def add_to_engine() -> None:
    """The second row."""
    from curvcli.curvature import matrices
    from curvcli.curvature.products import outputs

    def tempered(loss: Any, z: Any, batch: Any) -> Any:
        return outputs.fisher(loss, z / TEMPERATURE, batch)

    def draws(loss: Any, z: Any, batch: Any, keys: Any) -> Any:
        return outputs.fisher_cotangents(loss, z / TEMPERATURE, batch, keys)

    matrices.MATRICES[NAME] = matrices.sandwich(
        tempered, by_unit=matrices.if_convex, root=matrices.Root(draws, matrices.if_convex), pull=tempered,
        extra=matrices.NO_EXTRA, psd=matrices.if_convex, same_as=matrices.itself,
    )  # fmt: skip


def write_project(folder: Path) -> np.ndarray:
    """Softmax regression in a folder; the matrix there."""
    random = np.random.default_rng(0)
    x, y, w = random.normal(size=(30, 4)), random.integers(0, 3, 30), random.normal(size=(4, 3))
    np.savez(folder / "data.npz", x=x, y=y)
    np.savez(folder / "model.npz", w=w)
    (folder / "net.py").write_text('def apply(params, x):\n    return x @ params["w"]\n')
    (folder / "curv.toml").write_text(
        f'[model]\ntarget = "net.py:apply"\nkind = "apply"\n[checkpoint]\npath = "model.npz"\n[data]\n'
        f'path = "data.npz"\n[loss]\nname = "softmax_cross_entropy"\nl2 = {L2}\n'
    )
    logits = x @ w / TEMPERATURE
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    middles = np.einsum("nc,ce->nce", p, np.eye(3)) - np.einsum("nc,ne->nce", p, p)
    return np.einsum("ni,nj,nce->icje", x, x, middles).reshape(12, 12) / 30 + L2 * np.eye(12)


def main(folder: Path) -> None:
    """Every command, against the closed form; an assertion fails otherwise."""
    exact = write_project(folder)
    add_facts()
    add_to_engine()
    from curvcli.cli.main import run

    spec = ["--spec", str(folder / "curv.toml"), "--quiet", "--no-cache", "--dtype", "float64"]

    def asked(command: str, *options: str, code: int = 0) -> Any:
        report, checks = folder / f"{command}.json", ["--skip-checks"] * (command not in ("spectrum", "step"))
        assert run([command, *spec, *checks, *options, "-o", str(report)]) == code, (command, options)
        return json.loads(report.read_text()) if code == 0 else None

    chosen = ("--matrix", NAME)
    values = np.linalg.eigvalsh(exact)[::-1]
    result = asked("spectrum", *chosen)["result"]
    np.testing.assert_allclose(result["lambda_max"]["value"], values[0], rtol=1e-9)
    np.testing.assert_allclose(result["max_stable_learning_rate"], 2 / values[0], rtol=1e-9)
    np.testing.assert_allclose(asked("trace", *chosen)["result"]["trace"]["value"], values.sum(), rtol=1e-9)
    sampled = asked("trace", *chosen, "--method", "hutchinson", "--probes", "64", "--num-examples", "20")["result"][
        "trace"
    ]
    assert sampled["data_stderr"] > 0
    result = asked("diag", *chosen, "--prune", "0.2")["result"]
    weights = np.load(folder / "model.npz")["w"].ravel()
    np.testing.assert_allclose(result["saliency"][0]["total"], 0.5 * np.diag(exact) @ weights**2, rtol=1e-9)
    found = [pair["value"] for pair in asked("eigs", *chosen, "-k", "3")["result"]["eigenvalues"]]
    np.testing.assert_allclose(found, values[:3], rtol=1e-9)
    asked("direction", *chosen, "--along", "gradient", "--along", "eigenvector:1")
    asked("landscape", *chosen, "--along", "eigenvector:1", "--range", "-1:1")
    assert run(["inspect", *spec, *chosen, "-o", str(folder / "inspect.json")]) == 0
    result = asked("compare", "--method", "dense")["result"]
    assert NAME in result["matrices"]
    np.testing.assert_allclose(result["traces"][NAME]["value"], values.sum(), rtol=1e-9)
    np.testing.assert_allclose(result["top_eigenvalues"][NAME][0]["value"], values[0], rtol=1e-9)
    result = asked("influence", "--remove", "--queries", "0:2", "--self", "--leverage", "--solver", "cg", *chosen)[
        "result"
    ]
    assert result["self_influence"]["method"] == "sampled"
    for command in ("spectrum", "trace", "diag", "eigs", "direction", "influence", "compare"):
        more = {"influence": ["--remove"], "direction": ["--along", "gradient"]}.get(command, [])
        which = ["--matrices", f"ggn,{NAME}"] if command == "compare" else chosen
        assert run([command, *spec, *more, *which, "--dry-run", "-o", str(folder / "forecast.json")]) == 0
        picture = folder / f"{command}.svg"
        assert run(["plot", str(folder / f"{command}.json"), "-o", str(picture)]) == 0
        if command not in ("direction", "influence"):  # whose pictures are of no matrix
            assert "tempered GGN" in picture.read_text(), command
    assert run(["diff", str(folder / "spectrum.json"), str(folder / "spectrum.json")]) == 0
    asked("saddle", *chosen, code=2)
    asked("step", *chosen, code=2)

    from curvcli import Objective
    from curvcli.registry import ANALYSES

    data = np.load(folder / "data.npz")
    objective = Objective(
        lambda params, x: x @ params["w"], (data["x"], data["y"]), "softmax_cross_entropy", kind="apply", l2=L2
    )
    found = objective.trace({"w": np.load(folder / "model.npz")["w"]}, matrix=NAME, dtype="float64")
    np.testing.assert_allclose(found.result.trace.value, values.sum(), rtol=1e-9)
    for name, analysis in ANALYSES.items():
        if name in ("spectrum", "trace", "diag", "eigs", "compare", "influence"):
            assert NAME in json.dumps(analysis.report.model_json_schema()), name
            analysis.report.model_validate(json.loads((folder / f"{name}.json").read_text()))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
