"""K-FAC over several steps: factors as running averages, recomputed at intervals; and factors as arrays by name.

The average over steps takes the place of one over more examples, or more draws, at every step:

    F_k = ε F_{k−1} + (1 − ε) F(w_k),   ε = min(1 − 1/k, 0.95)

Source: Martens and Grosse (2015), section 5; Grosse, *Neural Net Training Dynamics*, chapter 4, algorithm 1.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import jax
import numpy as np

from curvcli.curvature.kronecker.factors import Kronecker
from curvcli.curvature.kronecker.kfac import Factors, Recipe, Taps, assembled, cotangent_count, measured
from curvcli.curvature.products.sums import active_examples
from curvcli.devices import on_host
from curvcli.errors import DataError, UsageError
from curvcli.problem import Problem

MEMORY = 0.95
"""ε at its largest: the average then reaches some 20 updates back."""

FINGERPRINT, EXAMPLES, MASK, NORMALISER, RECIPE = (
    "weights.sha256", "examples", "mask.sha256", "normaliser", "recipe/",
)  # fmt: skip
"""The arrays of saved factors that say of which weights they are, of how many examples, with which weights of these, of
a loss divided by what, and how they were made: the last one's name goes on with sampling and sharing, and its value is
the number of cotangents."""

ORIGIN = (FINGERPRINT, EXAMPLES, MASK, NORMALISER, RECIPE)

ANEW = "make them anew with --save-factors; curv step takes them all the same with --stale-factors"
"""What to do about saved factors that are not of this problem."""


@dataclass
class Running:
    """The factors of a run, and the matrix made of them.

    Parameters
    ----------
    corrected
        E-KFAC.
    every
        Steps between updates of factors and matrix.
    averaged
        What the next update is added to; None: nothing yet.
    count
        Updates in it.
    passes
        Cotangents that were taken through the network, for all examples.
    data_passes
        Times that the data were read.
    """

    recipe: Recipe
    corrected: bool
    every: int
    with_regulariser: bool
    averaged: Factors | None = None
    count: int = 0
    passes: int = 0
    data_passes: int = 0
    _taps: Taps | None = None
    _origin: dict[str, np.ndarray] | None = None  # of factors that were read
    _matrix: Kronecker | None = field(default=None, repr=False)

    def at(self, problem: Problem, step: int) -> Kronecker:
        """The matrix at step 0, 1, …, made anew where it is time to; factors that were given are taken as they are."""
        if self._matrix is not None and step % self.every:
            return self._matrix
        # Labels are drawn anew at every step: the average is over draws too.
        recipe = replace(self.recipe, seed=(self.recipe.seed + step) % 2**32)
        self._taps = self._taps or Taps(problem)
        cotangents = cotangent_count(problem, self.recipe)
        if self.averaged is None or step:
            now = measured(problem, self._taps, recipe)
            self.count, self.passes = self.count + 1, self.passes + cotangents
            kept = min(1 - 1 / self.count, MEMORY)
            self.averaged = now if self.averaged is None else _blend(self.averaged, now, kept)
            self.data_passes, self._origin = self.data_passes + 1 + bool(self._taps.others), None
        self._matrix = assembled(
            problem, self._taps, self.averaged, recipe, corrected=self.corrected, with_regulariser=self.with_regulariser
        )
        self.passes, self.data_passes = self.passes + cotangents * self.corrected, self.data_passes + self.corrected
        return self._matrix

    def arrays(self, problem: Problem) -> dict[str, np.ndarray]:
        """The factors by name, with what they are of: `inputs/…` and `gradients/…` by kernel, `diagonal/…`."""
        assert self._taps is not None
        assert self.averaged is not None
        found = {**(self._origin or origin(problem, self.recipe)), "updates": np.array(self.count)}
        for layer, (a, s) in zip(self._taps.layers, self.averaged.layers, strict=True):
            found |= {f"inputs/{layer.kernel}": a, f"gradients/{layer.kernel}": s}
        return found | {f"diagonal/{name}": entries for name, entries in self.averaged.diagonal.items()}

    def read(self, problem: Problem, arrays: dict[str, np.ndarray], *, stale: bool) -> None:
        """Take saved factors in place of those at the first step.

        Parameters
        ----------
        stale
            Whether they may be of other weights or examples, or made by another recipe.

        Raises
        ------
        UsageError
            They are.
        DataError
            They are not of this network.
        """
        if not stale:
            _check_origin(arrays, origin(problem, self.recipe))
        self._taps = self._taps or Taps(problem)
        layers = []
        for layer in self._taps.layers:
            fan_in = layer.fan_in + (layer.bias is not None)
            inputs, gradients = (_taken(arrays, f"{kind}/{layer.kernel}") for kind in ("inputs", "gradients"))
            wanted = (layer.fan_in,) if inputs.ndim == 1 and layer.kind == "embed" else (fan_in, fan_in)
            if inputs.shape != wanted or gradients.shape != (layer.fan_out, layer.fan_out):
                raise DataError(
                    f"--factors-from: the factors of {layer.kernel} are {list(inputs.shape)} and "
                    f"{list(gradients.shape)}", "they come from another network"
                )  # fmt: skip
            layers.append((inputs, gradients))
        diagonal = {name: _taken(arrays, f"diagonal/{name}") for name in self._taps.others}
        for name, entries in diagonal.items():
            if entries.size != problem.params[name].size:
                raise DataError(f"--factors-from: diagonal/{name} has {entries.size} entries", "it is another's")
        updates = arrays.get("updates", np.array(1))
        if updates.shape != () or updates.dtype.kind not in "iu" or updates < 1:
            raise DataError("--factors-from: `updates` is no count", "give a file written by --save-factors")
        self.averaged, self.count = Factors(layers, diagonal), int(updates)
        self._origin = {name: one for name, one in arrays.items() if name.startswith(ORIGIN)}


def _blend(old: Factors, new: Factors, kept: float) -> Factors:
    return jax.tree.map(lambda before, now: kept * before + (1 - kept) * now, old, new)


def _check_origin(arrays: dict[str, np.ndarray], own: dict[str, np.ndarray]) -> None:
    """Raise UsageError where factors are not of these weights, as many examples and this recipe."""
    for name, one in own.items():
        saved = np.asarray(arrays.get(name, ()))
        # Fractional weights have another sum in another arithmetic.
        if saved.shape == one.shape and np.allclose(saved, one, rtol=1e-6, atol=0):
            continue
        if name == FINGERPRINT:
            raise UsageError("--factors-from: the factors are of other weights, or of another choice of them", ANEW)
        if name == EXAMPLES:
            raise UsageError(
                f"--factors-from: the factors are of {arrays.get(name, 'unknown')} examples, and here are {one}", ANEW
            )
        if name == NORMALISER:
            raise UsageError(
                f"--factors-from: the factors are of a loss divided by {arrays.get(name, 'an unknown number')}, and "
                f"here it is divided by {one}", ANEW
            )  # fmt: skip
        if name == MASK:
            raise UsageError("--factors-from: the factors are of other weights of the examples, or tokens", ANEW)
        theirs = ", ".join(_recipe(*item) for item in arrays.items() if item[0].startswith(RECIPE)) or "unknown"
        raise UsageError(
            f"--factors-from: the factors were made otherwise ({theirs}) than is asked for ({_recipe(name, one)})",
            "give --factors, --sharing and --mc-samples as the factors were made",
        )


def _recipe(name: str, cotangents: np.ndarray) -> str:
    """`sampled, expand, cotangents: 1`."""
    return f"{name.removeprefix(RECIPE).replace('/', ', ')}, cotangents: {cotangents}"


def _taken(arrays: dict[str, np.ndarray], name: str) -> np.ndarray:
    array = arrays.get(name)
    if array is None or array.dtype.kind not in "iuf" or not np.all(np.isfinite(array)):
        raise DataError(f"--factors-from: no finite array {name!r}", "give a file written by --save-factors")
    return np.asarray(array, np.float64)


def origin(problem: Problem, recipe: Recipe) -> dict[str, np.ndarray]:
    """What factors are of, as arrays by name: weights, examples, their weights, normaliser, the recipe but its seed."""
    return {
        FINGERPRINT: fingerprint(problem),
        EXAMPLES: np.array(active_examples(problem)),
        MASK: _digest([problem.batches.weight]),
        NORMALISER: np.array(problem.normaliser),
        f"{RECIPE}{recipe.sampling}/{recipe.sharing}": np.array(cotangent_count(problem, recipe)),
    }


def fingerprint(problem: Problem) -> np.ndarray:
    """SHA-256 of the differentiated weights by path, as float32: the same in either arithmetic. uint8 [32]."""
    return _digest(part for name, leaf in sorted(problem.params.items()) for part in (name, on_host(leaf)))


def _digest(parts: Iterable[str | np.ndarray]) -> np.ndarray:
    """SHA-256 of texts, and of arrays as float32."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else np.ascontiguousarray(part.astype(np.float32)).tobytes()
        digest.update(data)
    return np.frombuffer(digest.digest(), np.uint8)
