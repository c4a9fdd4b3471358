"""The specification that `curv init` writes after it was evaluated."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from curvcli.cli import console, output
from curvcli.cli.execute import tell_settings
from curvcli.cli.options import Request
from curvcli.cli.problem import load, locate
from curvcli.cli.replies import Target
from curvcli.errors import OutputError, UsageError
from curvcli.run import files, trust
from curvcli.run.runtime import prepare_jax

if TYPE_CHECKING:
    from curvcli.loading.resolve import Loaded


def write_spec(request: Request) -> int:
    """Evaluate the loss with the specification of a command line, then write it as curv.toml."""
    import tomli_w

    if len(request.checkpoints) != 1:
        raise UsageError(
            "curv init takes one checkpoint",
            "for example: curv init model.ckpt --model net.py:CNN --data digits.npz",
        )
    settings = request.parsed_settings()
    file = request.output["output"] or Path("curv.toml")
    printed = file in output.STDOUT
    if not printed:
        if os.path.lexists(file):
            raise UsageError(f"{file} exists already", "move it away, or write elsewhere: -o FILE")
        files.check_writable(file)
    with output.own_stdout() as stdout:
        prepare_jax(settings.dtype, settings.threads, cache=not request.output["no_cache"])
        from curvcli.analyses.common.checks import finite_objective
        from curvcli.loading.spec.files import find_spec, relative_to

        target = Target(request.checkpoints[0], request.spec["step"], request.checkpoints[0])
        loaded = load(request, settings, target)
        tell_settings(request, loaded, set())
        value, _ = finite_objective(loaded.problem)
        source, _, path = locate(request, target.argument)
        folder = Path.cwd() if printed else file.resolve().parent
        document = relative_to(loaded.spec, checkpoint=path, base=source.base, folder=folder)
        if settings.pin:
            _pin(document, loaded, path, settings)
        problem = loaded.problem
        summary = (
            f"loss {value:.6g} over {loaded.data.num_examples} examples, {problem.dim} parameters, "
            f"normaliser {problem.normaliser:g}"
        )
        if printed:
            output.write_line(stdout, tomli_w.dumps(document).rstrip("\n"))
            if not request.output["quiet"]:
                console.note(summary)
            return 0
        files.write_file(file, tomli_w.dumps(document))
        if not request.output["no_cache"]:  # what it names is what the user named, or trusts
            with contextlib.suppress(OutputError, OSError):
                trust.trust(find_spec(None, file))
        output.write_line(stdout, f"{file}: {summary}")
    return 0


def _pin(document: dict[str, dict[str, Any]], loaded: Loaded, checkpoint: Path, settings: Any) -> None:
    """Add the digests of checkpoint and data to the tables of a curv.toml."""
    from curvcli.loading.checkpoints.reading import checkpoint_steps

    if settings.num_examples is not None:
        raise UsageError("--pin: the digest is of all examples", "leave out --num-examples")
    if checkpoint_steps(checkpoint):
        raise UsageError(
            f"--pin: {checkpoint} holds several steps, and a digest is of one",
            f"name the step's own folder, such as {checkpoint / str(loaded.checkpoint.step)}",
        )
    document["checkpoint"]["sha256"] = loaded.checkpoint.sha256
    document["data"]["sha256"] = loaded.data.sha256
