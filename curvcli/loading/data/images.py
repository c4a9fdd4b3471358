"""Input images of single examples."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from curvcli.errors import CurvError, UsageError
from curvcli.loading.data.dataset import Dataset, load_dataset
from curvcli.schema.report import ProblemRecord

LARGEST = 128
"""Maximum number of pixels of a side; larger images are subsampled, as they are shown as thumbnails."""


def read_images(
    problem: ProblemRecord, rows: Sequence[tuple[str, int]], shape: tuple[int, ...] | None
) -> tuple[dict[tuple[str, int], np.ndarray], str]:
    """Return images [H, W] or [H, W, 3] between 0 and 1 by source and row, and the reason where there are none.

    Parameters
    ----------
    problem
        The problem of a report. Functions of the user are not called.
    rows
        The source (`data` or `test`) and row of each image.
    shape
        Shape of the images; default: that of the inputs.

    Raises
    ------
    UsageError
        The inputs do not have as many entries as the shape.
    """
    sources = list(dict.fromkeys(source for source, _ in rows))
    examples = _read(problem, sources)
    if isinstance(examples, str):
        return {}, examples
    images: dict[tuple[str, int], np.ndarray] = {}
    for source in sources:
        inputs = examples[source].inputs
        if isinstance(inputs, dict):
            return {}, "the inputs are several arrays"
        extent = tuple(inputs.shape[1:]) if shape is None else shape
        if shape is not None and np.prod(shape) != np.prod(inputs.shape[1:]):
            raise UsageError(
                f"--image-shape {'x'.join(map(str, shape))}: the inputs are {list(inputs.shape[1:])} each",
                f"give a shape with {int(np.prod(inputs.shape[1:]))} entries",
            )
        if len(extent) not in (2, 3) or (len(extent) == 3 and extent[2] not in (1, 3)) or min(extent[:2]) < 2:
            return {}, f"the inputs are {list(extent)} each; --image-shape 8x8 would make images of rows of 64"
        for place, row in rows:
            if place == source and row < len(inputs):
                images[place, row] = np.asarray(inputs[row], float).reshape(extent)
    return _scaled(images), ""


def _scaled(images: dict[tuple[str, int], np.ndarray]) -> dict[tuple[str, int], np.ndarray]:
    """Scale images by the least and the largest value of all; a single channel is grey."""
    if not images:
        return {}
    low = min(float(image.min()) for image in images.values())
    extent = max(float(image.max()) for image in images.values()) - low or 1.0
    small = {}
    for place, image in images.items():
        every = max(1, -(-max(image.shape[:2]) // LARGEST))
        grey = image[..., 0] if image.ndim == 3 and image.shape[2] == 1 else image
        small[place] = (grey[::every, ::every] - low) / extent
    return small


def _read(problem: ProblemRecord, sources: Sequence[str]) -> dict[str, Dataset] | str:
    """Read the examples of a report and other splits of the source, or return the reason why that is impossible."""
    spec, record = problem.spec.data, problem.data
    bases = [Path.cwd(), *([Path(problem.spec_file).resolve().parent] if problem.spec_file else [])]
    base = next((folder for folder in bases if spec.path and (folder / spec.path).exists()), None)
    if base is None:
        return f"{spec.path} is not there"
    try:
        data = load_dataset(spec, base=base, call_target=_no_code, num_examples=record.num_examples)
        if data.sha256 != record.sha256:
            return f"{spec.path} has changed since the report"
        splits = {
            source: spec.model_copy(update={"split": source, "sha256": None}) for source in sources if source != "data"
        }
        other_splits = {name: load_dataset(split, base=base, call_target=_no_code) for name, split in splits.items()}
        return {"data": data, **other_splits}
    except CurvError as error:
        return error.message


def _no_code(target: str) -> Any:
    raise UsageError(f"{target} is code", "pictures run no code")
