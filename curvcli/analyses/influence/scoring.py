"""Scores as they stream by: of queries against all examples, and of every example against itself."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array

from curvcli.analyses.influence import baselines, groups, refits
from curvcli.analyses.influence import self_influence as own
from curvcli.analyses.influence.agreement import ENOUGH, FEWEST
from curvcli.analyses.influence.context import INLINE, Study, spoken
from curvcli.analyses.influence.ranking import Ranker, median_spearman, moves_labels, strength
from curvcli.analyses.influence.solves import Newton
from curvcli.curvature.influence import queries as asked
from curvcli.curvature.influence.responses import Piece, entries
from curvcli.curvature.products.ntk import example_outputs, outputs_per_example
from curvcli.problem import Batches, Problem
from curvcli.schema.influence import InfluenceSettings, SweepPoint

FACTORS = (0.01, 0.1, 10.0, 100.0)
"""Of λ, in a sweep."""

OF_MEAN = (1e-4, 1e-3, 1e-2, 1e-1)
"""Of C's mean eigenvalue, in a sweep around λ = 0."""


def of_queries(study: Study) -> tuple[dict[str, Any], Newton]:
    """What the report says of the queries, and the Newton step."""
    problem, settings, given, system = study.problem, study.settings, study.given, study.system
    assert given.queries is not None
    right, rows = asked.gradients(problem, given.queries, settings.measure), study.rows()
    solutions, newton = system.solve_newton(study.gradient, right, [*map(spoken, rows)])
    scored = score(study, solutions)
    result = {**_report(study, scored.scores, shape_of(study)), "top": scored.ranker.rankings(rows)}
    result["baselines"] = baselines.for_queries(study, scored.ranker.all, right)
    if scored.by_group is not None:
        result["groups"] = groups.removed(study, right, solutions, scored.by_group)
    if settings.leverage:
        root = own.inverse_root(study)
        result["leverage"], found = own.corrected(study, root, solutions, scored.ranker.all)
        study.arrays["corrected"], study.axes["corrected"] = found.reshape(result["shape"]), result["axes"]
    if settings.self_:
        result["self_influence"] = own.self_influence(study, own.inverse_root(study)).report
    if settings.damping_sweep:
        result["sweep"] = sweep(study, right, scored.ranker)
    if settings.verify:
        result["verification"] = verification(study, scored.ranker.all, given.queries, solutions)
    return result, newton


def of_examples(study: Study) -> tuple[dict[str, Any], Newton]:
    """What the report says of self-ranking, and the Newton step."""
    settings = study.settings
    _, newton = study.system.solve_newton(study.gradient)
    root = own.inverse_root(study)
    found = own.self_influence(study, root)
    result = {**_report(study, found.scores, shape_of(study)), "self_influence": found.report}
    weight = np.asarray(study.problem.batches.weight).reshape(study.problem.batches.num_examples, -1)
    # With several weights in an example its training gradient is no multiple of its gradient as a query.
    alike = bool(np.all((weight <= 0) | (weight == weight.max(axis=1, keepdims=True))))
    law = partial(
        own.sampled_interval, samples=root.samples, confidence=study.settings.confidence,
        squares=study.settings.mode == "remove" and study.settings.measure == "loss" and alike,
    )  # fmt: skip
    stderr = found.stderr if root.samples else None
    result["top"] = found.ranker.rankings(study.rows(), stderr, law)
    result["baselines"] = baselines.for_labels(study, found.ranker.all[0])
    if settings.leverage:
        result["leverage"], study.arrays["corrected"] = own.corrected(study, root, None, found.ranker.all)
        study.axes["corrected"] = result["axes"]
    if settings.verify:
        examples = np.array(refits.choose_examples(found.ranker.all, settings.verify, settings.seed))
        chosen = study.problem.batches.chosen(examples)
        right = asked.gradients(study.problem, chosen, settings.measure)
        names = [f"verified example {i}" for i in np.repeat(examples, len(right) // len(examples))]
        solutions = study.system.solve(right, names)
        result["verification"] = verification(study, found.ranker.all, chosen, solutions, examples)
    return result, newton


class Scored(NamedTuple):
    """What the pass over the data leaves."""

    ranker: Ranker
    scores: Piece | None  # [R, N, ...]; None where they are too many and not asked for
    by_group: np.ndarray | None  # [R, G], sums


def score(study: Study, solutions: Array, *, keep: bool = True) -> Scored:
    """Every example against every solution [R, D]. Cost: a forward derivative a row, one pass over the data."""
    problem, settings, labels = study.problem, study.settings, study.given.groups
    kept = keep and is_kept(study)
    ranker, parts = Ranker(len(solutions), settings.top), []
    names = None if labels is None else np.unique(labels, return_inverse=True)
    sums = None if names is None else np.zeros((len(solutions), len(names[0])))
    for piece, *known in signed_entries(study, problem, solutions):
        found = strength(settings.mode, problem.loss, piece, *known)  # type: ignore[arg-type]
        if names is not None and sums is not None:
            members = names[1][ranker.seen : ranker.seen + found.high.shape[1]]
            np.add.at(sums.T, members, found.high.T)
        ranker.add(found)
        if kept:
            parts.append(piece)
    study.meter.data_passes += 1
    return Scored(ranker, joined(parts) if kept else None, sums)


def signed_entries(study: Study, problem: Problem, solutions: Array) -> Any:
    """Scores with targets and weights, batch by batch: responses to a removal, or to a unit of label or input."""
    mode, batches, start = study.settings.mode, problem.batches, 0
    assert mode != "hyper"
    for piece in entries(problem, mode, solutions, study.at_once):
        rows = slice(start, start + next(iter(piece.values())).shape[1])
        # Removal is Δa = −1: two signs cancel.
        signed = piece if mode == "remove" else {name: -one for name, one in piece.items()}
        yield signed, np.asarray(batches.targets[rows]), batches.weight[rows]
        start = rows.stop
        study.monitor.progress("scoring the examples", start, batches.num_examples, "examples")


def joined(parts: list[Piece]) -> Piece:
    """Batches side by side."""
    return {name: np.concatenate([part[name] for part in parts], axis=1) for name in parts[0]}


def shape_of(study: Study) -> tuple[list[int], list[str]]:
    """Shape and axes of the scores in the report."""
    return score_shape(study.problem, study.settings, study.given.queries)


def score_shape(problem: Problem, settings: InfluenceSettings, queries: Batches | None) -> tuple[list[int], list[str]]:
    """Shape and names of the axes."""
    shape, axes = ([], []) if queries is None else ([queries.num_examples], ["query"])
    output = [outputs_per_example(problem)] if settings.measure == "output" else []
    if queries is not None:
        shape, axes = shape + output, axes + ["output"] * len(output)
    shape, axes = [*shape, problem.batches.num_examples], [*axes, "example"]
    if queries is None:
        shape, axes = shape + output, axes + ["output"] * len(output)
    if settings.mode == "label-perturb":
        rest = example_outputs(problem).shape[1:] if problem.loss.known else problem.batches.targets.shape[1:]
        shape += rest
        axes += [*(f"token{i or ''}" for i in range(len(rest) - 1)), *(["class"] if rest else [])]
    elif settings.mode == "input-perturb":
        leaves = jax.tree.leaves(problem.batches.inputs)
        rest = leaves[0].shape[1:] if len(leaves) == 1 else (sum(math.prod(leaf.shape[1:]) for leaf in leaves),)
        shape += rest
        axes += [f"input{i or ''}" for i in range(len(rest))]
    return [int(one) for one in shape], axes


def is_kept(study: Study) -> bool:
    """Whether all scores are held: they go into the report, or into a file."""
    return study.settings.scores is not None or math.prod(shape_of(study)[0]) <= INLINE


def score_bytes(problem: Problem, settings: InfluenceSettings, given: Any, at_once: int) -> int:
    """Bytes of what is held of the scores, those of the batch at hand included."""
    shape, axes = score_shape(problem, settings, given.queries)
    count, place = math.prod(shape), axes.index("example")
    rows, batch = math.prod(shape[:place]), count * problem.batches.batch_size // problem.batches.num_examples
    if given.queries is None:  # sums, those of squares, and both signed, in float64; a batch's terms and their squares
        return 8 * (4 * count + 3 * at_once * batch)
    kept = count if settings.scores is not None or count <= INLINE else 0
    return (2 * kept + 3 * batch + rows * problem.batches.num_examples) * problem.dtype.itemsize


def _report(study: Study, scores: Piece | None, layout: tuple[list[int], list[str]]) -> dict[str, Any]:
    """The scores in the report: inline, the path of the file, or neither."""
    shape, axes = layout
    if scores is None:
        return {"scores": None, "shape": shape, "axes": axes}
    if len(scores) == 1:
        shaped, study.axes["scores"] = {"scores": next(iter(scores.values())).reshape(shape)}, axes
    else:
        lead = shape[: axes.index("example") + 1]
        shaped = {f"scores/{name}": one.reshape(*lead, *one.shape[2:]) for name, one in scores.items()}
    study.arrays.update(shaped)
    small = math.prod(shape) <= INLINE and len(scores) == 1
    inline = shaped["scores"].tolist() if small else study.settings.scores
    return {"scores": inline, "shape": shape, "axes": axes}


def sweep(study: Study, right: Array, ranker: Ranker) -> list[SweepPoint]:
    """How the ranking moves with λ. Cost: four times the solves and the pass."""
    system, points = study.system, []
    base, mean = system.damping, abs(system.choice.mean)
    dampings = [base * factor for factor in FACTORS] if base else [mean * share for share in OF_MEAN]
    reference, top = ranker.all, study.settings.top
    best = np.argsort(-reference, axis=1, kind="stable")[:, :top]
    for damping in dampings:
        # Negative curvature at less damping is an answer here, and no error.
        free = study.settings.model_copy(update={"solver": "auto"})
        other = replace(system, settings=free, damping=damping, scale=None, solves=[], solver_changed=[])
        solutions = other.solve(right, ["sweep"], one_record=True)
        found = score(replace(study, system=other), solutions, keep=False).ranker.all
        theirs = np.argsort(-found, axis=1, kind="stable")[:, :top]
        overlap = np.mean([len(np.intersect1d(a, b)) / len(a) for a, b in zip(best, theirs, strict=True)])
        points.append(
            SweepPoint(damping=damping, spearman=median_spearman(reference, found), top_overlap=float(overlap),
                       status=other.records[0].status)
        )  # fmt: skip
    return points


LABEL_STEP, INPUT_STEP = 1.0, 0.01
"""Of the spread of the targets, and of the size of an input: how far `--verify` moves one that is no class."""


def verification(
    study: Study, strengths: np.ndarray, queries: Batches, solutions: Array, examples: np.ndarray | None = None
) -> Any:
    """Refits with a few examples changed, beside what the scores say of them."""
    problem, settings, mode = study.problem, study.settings, study.settings.mode
    assert mode != "hyper"
    if examples is None:
        examples = np.array(refits.choose_examples(strengths, settings.verify or 0, settings.seed))
    few = replace(problem, batches=problem.batches.chosen(examples))
    piece = joined([found for found, *_ in signed_entries(study, few, solutions)])
    changes, predicted = [], []
    for place, example in enumerate(examples.tolist()):
        own_piece = {name: one[:, place] for name, one in piece.items()}
        if mode == "remove":
            changes.append(refits.Change(example, mode))
            predicted.append(own_piece[""])
            continue
        by = _step(few, settings, own_piece, place)
        changes.append(refits.Change(example, mode, by.get("", by)))
        predicted.append(sum(one.reshape(len(one), -1) @ by[name].reshape(-1) for name, one in own_piece.items()))
    foreseen = np.asarray(predicted, np.float64).reshape(len(changes), queries.num_examples, -1)
    foreseen = foreseen if settings.measure == "output" else foreseen[..., 0]
    found = refits.verify(problem, queries, settings.measure, changes, foreseen, settings, study.monitor)
    if found.control is None or not found.control.converged:
        study.warnings.append(
            "--verify: the unchanged problem was not fitted to the tolerance: what is common to all refits is in the "
            "actual changes"
        )
    if FEWEST <= len(found.actual) < ENOUGH:
        study.warnings.append(
            f"--verify: intervals from {len(found.actual)} examples are too narrow; {ENOUGH} or more hold"
        )
    return found


def _step(problem: Problem, settings: InfluenceSettings, piece: Piece, place: int) -> dict[str, np.ndarray]:
    """How one example's label or input is moved: to the class that matters most, else along the mean of its scores."""
    chosen = problem.batches
    if moves_labels(settings.mode, problem.loss):
        row = slice(place, place + 1)
        # A label on a class that the model rules out has an infinite loss: no refit could follow it there.
        z = asked.values(problem, chosen.chosen(np.array([place])), "output").reshape(piece[""].shape[1:])
        allowed = np.where(np.isneginf(z), -np.inf, piece[""])
        targets = np.asarray(chosen.targets[row])
        found = strength("label-perturb", problem.loss, {"": allowed[:, None]}, targets, chosen.weight[row])
        move = np.zeros(piece[""].shape[1:])
        if not np.isfinite(found.high).any():
            return {"": move}
        row = int(np.argmax(np.where(np.isfinite(found.high[:, 0]), np.abs(found.high[:, 0]), -1)))
        assert found.label is not None
        assert found.towards is not None
        at = () if found.token is None else np.unravel_index(int(found.token[0][row, 0]), move.shape[:-1])
        move[(*at, found.label[0][row, 0])], move[(*at, found.towards[0][row, 0])] = -1.0, 1.0
        return {"": move}
    mean = {name: one.astype(np.float64).mean(axis=0) for name, one in piece.items()}
    size = float(np.sqrt(sum(np.sum(np.square(one)) for one in mean.values()))) or 1.0
    if settings.mode == "label-perturb":
        step = LABEL_STEP * float(np.std(np.asarray(chosen.targets, np.float64))) or 1.0
    else:
        leaves = [np.asarray(leaf[place], np.float64) for leaf in jax.tree.leaves(chosen.inputs)]
        step = INPUT_STEP * float(np.sqrt(sum(np.sum(np.square(leaf)) for leaf in leaves))) or INPUT_STEP
    return {name: step * one / size for name, one in mean.items()}
