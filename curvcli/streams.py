"""Random streams: what the one seed of a run is drawn for. Each purpose has a key of its own.

The number of a stream is part of every result that its draws enter: another number gives other draws. The seed's own
key numbers the probes of an estimate from 0; streams from 2²⁰ on are beyond all of these.
"""

from __future__ import annotations

from enum import Enum

import jax

LAST = 2**31 - 1
"""An index of a key beyond those of probes and examples."""


def last(key: jax.Array) -> jax.Array:
    """A key for what a draw needs beside its parts, which are numbered from 0 (a key of `Stream`'s, or below it)."""
    return jax.random.fold_in(key, LAST)


class Stream(Enum):
    """A purpose of random draws: its number within a seed, and what is drawn.

    Two streams have one number only where no analysis draws from both.
    """

    STARTS = 0, "vectors that Krylov spaces for single eigenpairs start from"
    SELF_CHECKS = 1, "vectors that the self-checks multiply with"
    EXAMPLE_ERRORS = 2, "probes for what the examples left out change of a trace or a norm"
    RANDOM_DIRECTIONS = 2, "the directions `random` of a line or a plane"
    LAYER_ERRORS = 3, "signs for what the examples left out change of the traces of layers"
    FILTER_DIRECTIONS = 3, "the directions `filter`, normalised by the filters of the weights"
    PRECONDITIONED_STARTS = 3, "vectors that the Krylov space for Adam's sharpness starts from"
    NUDGES = 4, "signs of the changes of weights by which the rounding of a loss is measured"
    SADDLE_DIRECTIONS = 5, "directions along which a point is searched for kinks and for a lower loss"
    SPECTRUM_SCOUTS = 6, "vectors of the short Lanczos processes that look at a spectrum before a solve"
    NEUMANN_SCALE = 7, "the vector of the bound that scales a Neumann series"
    SELF_INFLUENCE = 8, "signs of the draws that self-influence is estimated from"
    COMMON_PROBES = 12, "probes that the matrices of a comparison share"
    LOG_DETERMINANT = 13, "vectors of the Lanczos processes for the log evidence"
    POSTERIOR = 14, "draws of weights from the Laplace posterior"
    PRODUCT_ROUNDING = 21, "vectors that the rounding of products is measured with"
    PRUNING_TRIALS = 1 << 20, "probes of the trace of the weights that a trial prunes"
    REFITTED_EXAMPLES = 1 << 21, "the examples that are refitted beside those of most influence"
    BOOTSTRAP = (1 << 21) + 1, "resamples of refits, for the intervals of correlations"
    MATRIX_ROOTS = LAST - 1, "vectors whose covariance is a matrix"
    LABELS = LAST, "labels from the distribution of the network's outputs"

    def __init__(self, number: int, purpose: str) -> None:
        self.number, self.purpose = number, purpose

    def key(self, seed: int) -> jax.Array:
        """The key of this stream within a seed."""
        return jax.random.fold_in(jax.random.key(seed), self.number)
