"""The command `curv init`."""

from __future__ import annotations

from curvcli.cli.options import Request, analysis
from curvcli.schema.settings import InitSettings


@analysis(InitSettings)
def init(request: Request) -> int:
    """[bold]curv init model.ckpt --model net.py:CNN --data digits.npz --loss softmax_cross_entropy[/bold]

    Writes a curv.toml in this folder (or to -o FILE), after evaluating the loss with it. From then on
    [bold]curv spectrum[/bold] is a complete command in this folder.
    """
    from curvcli.cli.specification import write_spec

    return write_spec(request)
