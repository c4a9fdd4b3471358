"""The schema of `curv.toml`: model, checkpoint, data and loss of a problem."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from curvcli.schema.base import Strict

ModelKind = Literal["linen", "nnx", "apply"]
Reduction = Literal["mean", "sum", "tokens"]
LOSS_NAMES = ("squared_error", "softmax_cross_entropy", "sigmoid_cross_entropy", "poisson")
"""The table of losses by name, for help and schema: `losses.LOSSES` needs JAX, which neither may start."""


class ModelSpec(Strict):
    """The table `[model]`: the network and its arguments."""

    target: str | None = Field(
        default=None,
        description="`pkg.mod:attr` or `file.py:attr`: a class or factory (called with kwargs) or an instance",
    )
    kind: ModelKind | None = Field(
        default=None,
        description="how the target is called; detected where unambiguous: linen, nnx or apply(params, x)",
    )
    kwargs: dict[str, Any] = Field(default_factory=dict, description="arguments of the class or factory")


class CheckpointSpec(Strict):
    """The table `[checkpoint]`: the weights."""

    path: str | None = Field(default=None, description="default: the folder of this file; relative to this file")
    params: str | None = Field(
        default=None,
        description="the differentiated subtree; default: `params` if the root has it, else the whole tree",
    )
    sha256: str | None = Field(default=None, description="if given, what is read must have this digest")


class DataSpec(Strict):
    """The table `[data]`: the examples."""

    path: str | None = Field(
        default=None, description=".npz, folder of .npy, .csv, .parquet, Hugging Face folder, or pkg.mod:function"
    )
    inputs: str = Field(default="x", description="name of the array or column; for tables also a comma-separated list")
    targets: str = Field(default="y", description="name of the array or column; for tables also a comma-separated list")
    split: str | None = Field(default=None, description="`train` takes the arrays named x_train, y_train, …")
    mask: str | None = Field(
        default=None, description="name of an array of weights, [N] or [N, T]; 0 leaves a token out"
    )
    sha256: str | None = Field(default=None, description="if given, all examples together must have this digest")


class LossSpec(Strict):
    """The table `[loss]`: the objective."""

    name: str | None = Field(
        default=None,
        description=f"{', '.join(LOSS_NAMES)}, or a target `module:fn` with fn(outputs, targets) -> loss per example",
    )
    likelihood: str | None = Field(
        default=None,
        description="for a loss of your own, what its outputs stand for, which the Fisher matrices need: the name of "
        "a loss above, or a target `module:fn` with fn(outputs, key) -> targets drawn from them",
    )
    l2: float = Field(default=0.0, ge=0, le=3e38, description="adds ½·l2·‖w‖² over all differentiated parameters")
    reduction: Reduction = Field(
        default="mean", description="divide the sum of losses by examples, by 1, or by tokens (their weights)"
    )
    regulariser: str | None = Field(
        default=None, description="`module:fn` with fn(params) -> scalar, added to the loss"
    )
    ignore_label: int | None = Field(default=None, description="an integer label whose tokens are left out, such as -1")


class ProblemSpec(Strict):
    """The specification of a problem, as in `curv.toml`."""

    model: ModelSpec = ModelSpec()
    checkpoint: CheckpointSpec = CheckpointSpec()
    data: DataSpec = DataSpec()
    loss: LossSpec = LossSpec()
