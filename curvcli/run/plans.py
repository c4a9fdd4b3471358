"""Files that say how products are computed: those that `--plan` names, and earlier measurements on this machine."""

from __future__ import annotations

import contextlib
import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from curvcli import __version__
from curvcli.errors import UsageError
from curvcli.run.cache import folder, read_entry, write_entry
from curvcli.run.runtime import environment
from curvcli.schema.plan import Way
from curvcli.sources import register

if TYPE_CHECKING:
    from curvcli.loading.resolve import Loaded

Timing = Literal["never", "if worth it", "always"]


class RememberedWay:
    """The way of computing products that was measured for one kind of problem on this machine.

    Parameters
    ----------
    about
        The values that the choice depends on: network, shapes, matrix, arithmetic, device, versions.
    """

    def __init__(self, about: dict[str, Any]) -> None:
        name = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:32]
        plans = folder("plans")
        self.path = None if plans is None else plans / f"{name}.json"

    def get(self) -> Way | None:
        """Return the way if it was measured; a damaged file counts as none."""
        content = None if self.path is None else read_entry(self.path)
        with contextlib.suppress(ValueError):  # as pydantic's errors are
            return None if content is None else Way.model_validate_json(content)
        return None

    def put(self, way: Way) -> None:
        """Store the way, if its file can be written."""
        if self.path is not None:
            write_entry(self.path, f"{way.model_dump_json()}\n".encode())


def remembered(loaded: Loaded, settings: Any) -> RememberedWay:
    """Return the storage of the way for this problem."""
    import jax

    problem, spec = loaded.problem, loaded.spec
    batch = next(iter(problem.batches.resized(1)))
    return RememberedWay(
        {
            "model": spec.model.model_dump(mode="json"),
            "loss": spec.loss.name,
            "params": {name: list(leaf.shape) for name, leaf in problem.params.items()},
            "batch": [[list(leaf.shape), str(leaf.dtype)] for leaf in jax.tree.leaves(batch)],
            "matrix": [settings.matrix, settings.mc_samples],
            "environment": environment(settings).model_dump(),
            "memory": settings.max_memory,
            "curv": __version__,
        }
    )


def with_plan(
    loaded: Loaded, settings: Any, *, way: Way | None = None, store: Any = None, timing: Timing = "never"
) -> Loaded:
    """Return the problem with the way its products are computed, and warnings about that way.

    Parameters
    ----------
    way
        The way to use; None: chosen from sizes, or by timing.
    store
        Storage of ways that were timed.
    timing
        Whether ways may be timed.
    """
    from curvcli.analyses.common.tuning import planned, remarks

    problem = planned(loaded.problem, settings, given=way, store=store, timing=timing)
    return replace(loaded, problem=problem, warnings=[*loaded.warnings, *remarks(problem, settings)])


def form(loaded: Loaded, base: Path) -> str:
    """Return a key that is equal for problems that differ in the values of their weights alone.

    Parameters
    ----------
    base
        The folder that the specification's targets are relative to.
    """
    import jax

    problem, spec = loaded.problem, loaded.spec
    arrays = jax.tree.map(lambda leaf: (leaf.shape, str(leaf.dtype)), (problem.params, problem.frozen))
    labels = problem.batches.targets
    return repr((str(base), spec.model, spec.loss, arrays, labels.shape[1:], str(labels.dtype)))


def read_way(path: Path) -> Way:
    """Read the file of `--plan`: a report of `curv inspect`, its `plan`, or the `way` of any report's cost.

    Raises
    ------
    UsageError
        The file cannot be read, or holds none of these.
    """
    try:
        values = json.loads(register(path, "the plan").read_text())
        for outer, inner in (("result", "plan"), ("cost", "way")):
            if isinstance(values.get(outer), dict) and inner in values[outer]:
                values = values[outer][inner]
                break
        return Way.model_validate(values)
    except OSError as error:
        raise UsageError(f"--plan {path}: {error.strerror}", "write one: curv inspect CKPT -o plan.json") from error
    except (ValueError, AttributeError, RecursionError) as error:  # pydantic's errors are ValueErrors
        needs = "batch_size, application (vmap or map) and residuals (kept or fresh)"
        raise UsageError(
            f"--plan {path}: not a plan", f"it needs {needs}; curv inspect CKPT -o plan.json writes one"
        ) from error
