"""Do outputs, targets and loss fit? Shapes first, then every value, streamed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from curvcli.errors import DataError, SpecError
from curvcli.loading.data.stored import mapped
from curvcli.losses import Likelihood, Loss
from curvcli.problem import unit_weight

ROWS = 1 << 16

NO_LABEL = -1
"""Stands in class numbers for a label that is none: it has weight 0, and cannot be asked about."""


def fit_targets(
    loss: Loss, outputs: Any, targets: Any, mask: np.ndarray | None, ignore_label: int | None
) -> tuple[Any, np.ndarray | None]:
    """Targets in the form the loss takes, and the mask with ignored labels and rows of zeros left out.

    Parameters
    ----------
    loss
        One of the table, or the user's own (whose targets are taken as they are).
    outputs
        Shape and dtype of the model's outputs for one batch, [b, ..., C].
    targets
        [N, ...], perhaps memory-mapped.
    mask
        [N] or [N, T], or None.
    ignore_label
        A class number that marks tokens to leave out.

    Raises
    ------
    DataError
        A shape or a value does not fit; the message names the first row.
    """
    units, classes = outputs.shape[1:-1], outputs.shape[-1]
    labelled = loss.classes and targets.shape[1:] == units
    if ignore_label is not None and not labelled:
        raise SpecError(
            f"[loss] ignore_label needs class numbers, and {loss.name} has other targets here",
            "remove ignore_label, and leave tokens out by [data] mask",
        )
    if not isinstance(loss, Likelihood):
        return targets, mask
    check_mask(mask, units)
    if loss.classes and classes < 2:
        raise SpecError(
            f"{loss.name} of a single output is 0 whatever the weights",
            "for two classes and one logit give --loss sigmoid_cross_entropy",
        )
    whole = np.issubdtype(targets.dtype, np.integer) or targets.dtype == bool
    if labelled:
        if not whole:
            raise DataError(
                f"{loss.name} got class numbers of dtype {targets.dtype}",
                "store class numbers as integers (floats would be truncated), or soft labels with one column a class",
            )
        return _class_numbers(targets, classes, mask, ignore_label)
    if targets.shape[1:] != outputs.shape[1:]:
        expected = f"[N{''.join(f', {n}' for n in outputs.shape[1:])}]"
        if loss.classes:
            expected += f" or integer [N{''.join(f', {n}' for n in units)}]"
        raise DataError(
            f"targets have shape [N{''.join(f', {n}' for n in targets.shape[1:])}], {loss.name} needs {expected} "
            "for this model's outputs",
            "reshape the targets, or check --targets, --loss and the model's last layer",
        )
    _check_range(loss, targets)
    if loss.classes:
        mask = _without_empty_rows(targets, mask)
    # Integer rows of the outputs' shape (one-hot labels, counts) are numbers to the loss.
    wide = np.promote_types(targets.dtype, np.float32)
    return (mapped(targets, lambda block: block.astype(wide), wide) if whole else targets), mask


def check_mask(mask: np.ndarray | None, units: tuple[int, ...]) -> None:
    """The mask has the shape of the losses, [N, *units], or of the examples.

    Raises
    ------
    DataError
        It has another one.
    """
    if mask is not None and (mask.ndim > 1 + len(units) or mask.shape[1:] != units[: mask.ndim - 1]):
        raise DataError(
            f"the mask has shape {list(mask.shape)}, the losses [N{''.join(f', {n}' for n in units)}]",
            "a mask has one weight an example [N], or one a token [N, T]",
        )


def _blocks(array: Any) -> Iterator[tuple[int, np.ndarray]]:
    for start in range(0, len(array), ROWS):
        yield start, np.asarray(array[start : start + ROWS])


def _class_numbers(
    targets: Any, classes: int, mask: np.ndarray | None, ignore_label: int | None
) -> tuple[Any, np.ndarray | None]:
    """Labels in 0 … C − 1 as int32; ignored ones, and those outside under weight 0, as `NO_LABEL`."""
    ignored = None
    if ignore_label is not None:
        ignored = np.asarray(targets) == ignore_label
        targets = np.where(ignored, NO_LABEL, targets.astype(np.int64))
        keep = (~ignored).astype(np.float32)
        if mask is not None and mask.ndim < keep.ndim:
            mask = unit_weight(mask, keep.ndim)
        mask = keep if mask is None else keep * mask
    for start, block in _blocks(targets):
        bad = (block < 0) | (block >= classes)
        if mask is not None:
            # Where a token is masked out its label does not matter.
            weight = np.asarray(mask[start : start + len(block)])
            bad &= np.broadcast_to(unit_weight(weight, bad.ndim), bad.shape) > 0
        if bad.any():
            row = int(np.argwhere(bad)[0][0])
            value = int(block[bad][0])
            raise DataError(
                f"label {value} in row {start + row} is outside 0 … {classes - 1}, the model's {classes} classes",
                "declare it with [loss] ignore_label if it marks tokens to leave out"
                if value < 0
                else "if the labels count from 1, subtract 1; else check --targets and the model's last layer",
            )

    def numbers(block: np.ndarray) -> np.ndarray:
        # Cast first: an unsigned block has no place for −1.
        return np.where((block >= 0) & (block < classes), block.astype(np.int32), np.int32(NO_LABEL))

    return mapped(targets, numbers, np.int32), mask


def _without_empty_rows(targets: Any, mask: np.ndarray | None) -> np.ndarray | None:
    """The mask with weight 0 for every unit whose row of targets is zero: padding."""
    known = np.concatenate([np.any(block != 0, axis=-1) for _, block in _blocks(targets)])
    if known.all():
        return mask
    keep = known.astype(np.float32)
    return keep if mask is None else keep * unit_weight(mask, keep.ndim)


SUMS_TO_ONE = 1e-3
"""How far the sum of a row of targets may be off 1: as far as float16 shares of many classes are."""


def row_remarks(targets: Any, weight: np.ndarray) -> list[str]:
    """What is said of soft labels that are no distributions: rows of zeros, and those that sum to something else."""
    remarks, found, empty = [], [], 0
    for start, block in _blocks(targets):
        sums = np.asarray(np.sum(block, axis=-1, dtype=np.float64))
        counted = np.broadcast_to(unit_weight(weight[start : start + len(block)], sums.ndim), sums.shape) > 0
        found.append(sums[counted])
        empty += int(np.sum(sums == 0))
    sums = np.concatenate(found)
    if empty:
        remarks.append(
            f"{empty} rows of the targets are zero: as padding they have weight 0 and do not count in the normaliser"
        )
    if max(1 - sums.min(), sums.max() - 1) > SUMS_TO_ONE:
        remarks.append(
            f"rows of the targets sum to {sums.min():.4g} … {sums.max():.4g}: a row that sums to s counts as s labels, "
            "with the loss −Σ t log p; where each of several labels is true or false, the loss is sigmoid_cross_entropy"
        )
    return remarks


def _check_range(loss: Likelihood, targets: Any) -> None:
    """Refuse targets outside the range that the likelihood allows."""
    low, high = loss.target_range
    for start, block in _blocks(targets):
        bad = (block < low) | (block > high)
        if bad.any():
            raise DataError(
                f"target {float(block[bad][0]):g} in row {start + int(np.argwhere(bad)[0][0])} is outside "
                f"[{low:g}, {high:g}], which {loss.name} needs",
                "check --targets and --loss",
            )
