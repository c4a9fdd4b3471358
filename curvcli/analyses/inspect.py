"""What does curv see? Parameters by layer, data, loss, gradient norm, self-checks, and a forecast of cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from curvcli.analyses import spectrum
from curvcli.analyses.common.answer import Answer
from curvcli.analyses.common.checks import examined, finite_objective
from curvcli.analyses.common.context import Context
from curvcli.curvature import build_for
from curvcli.curvature.flatten import Layout
from curvcli.curvature.products.collectives import product_traffic
from curvcli.devices import on_host
from curvcli.linalg.meter import Meter
from curvcli.linalg.reductions import norm
from curvcli.problem import Problem, unit_weight
from curvcli.schema.inspect import (
    ArrayRecord,
    Collectives,
    DataSummary,
    Forecast,
    InspectResult,
    InspectSettings,
    ParameterRecord,
)
from curvcli.schema.plan import Plan


@dataclass(frozen=True)
class Inputs:
    """What loading found out of the model.

    Parameters
    ----------
    outputs
        Shape and dtype of the outputs for one batch.
    stored_dtypes
        The dtype of every parameter in the checkpoint, by path.
    """

    outputs: jax.ShapeDtypeStruct
    stored_dtypes: Mapping[str, str]


def run(context: Context[Inputs], settings: InspectSettings) -> Answer[InspectResult]:
    """What was understood of the files, and what `curv spectrum` would cost with these settings.

    Cost: one gradient, the self-checks' products, and two timed blocks of products; several devices: two compilations.
    """
    problem, stored_dtypes = context.problem, context.inputs.stored_dtypes
    value, gradient = finite_objective(problem)
    meter = Meter()
    operator = meter.count(build_for(problem, settings))
    plan, forecast = spectrum.forecast(context, settings, operator)
    block = plan.probes_at_once
    checks, warnings = examined(problem, operator, settings, block)
    everything = {**problem.frozen["params"], **problem.params}
    result = InspectResult(
        parameters=[
            _parameter(name, everything[name], stored_dtypes[name], name in problem.params)
            for name in sorted(everything)
        ],
        layers=layer_sizes(problem),
        collections=collection_sizes(problem),
        data=_data(problem, context.inputs.outputs),
        loss_value=value,
        gradient_norm=float(norm(gradient)),
        plan=plan,
        forecast=forecast,
        collectives=_collectives(problem, settings, block),
    )
    return Answer(result, meter, value, checks, warnings)


def forecast(context: Context[Inputs], settings: InspectSettings) -> tuple[Plan, Forecast]:
    """What `curv spectrum` would cost with these settings."""
    return spectrum.forecast(context, settings)


def layer_sizes(problem: Problem) -> dict[str, int]:
    """Differentiated parameters of each layer."""
    layout = Layout.of(problem.params)
    return {name: sum(layout.sizes[i] for i in leaves) for name, leaves in layout.layers.items()}


def collection_sizes(problem: Problem) -> dict[str, int]:
    """Entries of each collection that is held fixed."""
    collections = problem.frozen["collections"]
    return {name: sum(leaf.size for leaf in jax.tree.leaves(tree)) for name, tree in collections.items()}


def _parameter(name: str, leaf: Any, stored: str, differentiated: bool) -> ParameterRecord:
    norm = float(np.linalg.norm(on_host(leaf).astype(np.float64)))
    return ParameterRecord(
        name=name,
        shape=list(leaf.shape),
        size=leaf.size,
        stored_dtype=stored,
        differentiated=differentiated,
        norm=norm,
    )


def _collectives(problem: Problem, settings: InspectSettings, block: int) -> Collectives | None:
    found = product_traffic(problem, settings.matrix, block, mc_samples=settings.mc_samples, seed=settings.seed)
    if found is None:
        return None
    return Collectives(vectors=block, bytes=found.bytes, flops=found.flops, accessed_bytes=found.accessed)


def _data(problem: Problem, outputs: Any) -> DataSummary:
    """Shapes, masked share and the number of examples of each class."""
    batches = problem.batches
    inputs = batches.inputs if isinstance(batches.inputs, dict) else {"inputs": batches.inputs}
    arrays = {**inputs, "targets": batches.targets}
    labels, weight = batches.targets, batches.weight
    classes = None
    if problem.loss.classes and np.issubdtype(labels.dtype, np.integer):
        seen = np.broadcast_to(unit_weight(weight, labels.ndim), labels.shape) > 0
        classes = np.bincount(labels[seen], minlength=outputs.shape[-1]).tolist()
    return DataSummary(
        num_examples=batches.num_examples,
        arrays=[ArrayRecord(name=name, shape=list(a.shape), dtype=str(a.dtype)) for name, a in arrays.items()],
        outputs=ArrayRecord(name="outputs", shape=list(outputs.shape), dtype=str(outputs.dtype)),
        masked_fraction=float(np.mean(weight == 0)),
        classes=classes,
    )
