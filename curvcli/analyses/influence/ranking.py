"""Rankings of examples from their scores as these stream by, and baselines that cost no solve."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import scipy.stats

from curvcli.curvature.influence.responses import Parameter, Piece
from curvcli.losses import Loss
from curvcli.problem import unit_weight
from curvcli.schema.estimate import Estimate
from curvcli.schema.influence import Entry, Ranking

LEAST_CLEAN = 2

Bounds = Callable[[float, float], tuple[float, float]] | None
"""The interval of a strength, from it and its standard error."""


class Strength(NamedTuple):
    """What one batch's scores come to, a number an example, for each row of scores."""

    high: np.ndarray  # [R, b]
    low: np.ndarray | None  # [R, b]; None where a strength has no sign
    # At the two ends, [R, b] each: the class whose label is moved, to which, and the token's place where there are any.
    label: tuple[np.ndarray, np.ndarray] | None = None
    towards: tuple[np.ndarray, np.ndarray] | None = None
    token: tuple[np.ndarray, np.ndarray] | None = None


def strength(parameter: Parameter, loss: Loss, piece: Piece, targets: Any, weight: np.ndarray) -> Strength:
    """One number an example from a batch's scores [R, b, ...], its targets and its weights [b] or [b, T].

    Removal: the score. Labels that are distributions over classes: moves e_a − e_b from the example's class, which keep
    Σ t = 1; the largest and the smallest over b (and over the tokens). Everything else: the norm.
    """
    if parameter == "remove":
        scores = piece[""]
        return Strength(scores, scores)
    if moves_labels(parameter, loss):
        return _moved(piece[""], np.asarray(targets), weight)
    squares = [np.sum(np.square(one.astype(np.float64)), axis=tuple(range(2, one.ndim))) for one in piece.values()]
    return Strength(np.sqrt(np.sum(squares, axis=0)), None)


def moves_labels(parameter: str, loss: Loss) -> bool:
    """Whether what is perturbed are distributions over classes, whose sum is to stay 1."""
    return parameter == "label-perturb" and loss.classes


def moves(scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Scores [R, b, ..., C] of moves from an example's own class to each: e_b − e_a."""
    return scores - np.take_along_axis(scores, _own(scores, targets), axis=-1)


def _own(scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """The examples' own classes as indices along the last axis: [R, b, ..., 1]."""
    own = targets if targets.ndim == scores.ndim - 2 else targets.argmax(axis=-1)
    return np.broadcast_to(own[None, ..., None], (*scores.shape[:-1], 1)).astype(int)


def _moved(scores: np.ndarray, targets: np.ndarray, weight: np.ndarray) -> Strength:
    """The class-to-class moves of largest and smallest score: [R, b] each, the best over tokens that count."""
    index, gains = _own(scores, targets), moves(scores, targets)
    counts = unit_weight(weight, scores.ndim - 1) > 0  # [b, ..., 1]
    counts = counts | ~counts.any(axis=tuple(range(1, counts.ndim)), keepdims=True)  # of no token: they all do
    ends = []
    for fill, pick in ((-np.inf, np.argmax), (np.inf, np.argmin)):
        filled = np.where(counts[None], gains, fill)
        np.put_along_axis(filled, index, fill, axis=-1)
        flat = filled.reshape(*filled.shape[:2], -1)
        place = pick(flat, axis=-1)
        ends.append((np.take_along_axis(flat, place[..., None], -1)[..., 0], place))
    (high, up), (low, down) = ends
    classes, labels = scores.shape[-1], index.reshape(*scores.shape[:2], -1)
    up_token, down_token = up // classes, down // classes
    label = [np.take_along_axis(labels, token[..., None], -1)[..., 0] for token in (up_token, down_token)]
    return Strength(
        high, low, (label[0], label[1]), (up % classes, down % classes),
        (up_token, down_token) if scores.ndim > 3 else None,
    )  # fmt: skip


@dataclass
class Ranker:
    """Keeps the examples of largest and smallest strength, and every strength, while batches stream by.

    Parameters
    ----------
    rows
        Scores of an example: queries, or queries × outputs.
    top
        Examples kept at each end.
    """

    rows: int
    top: int
    seen: int = 0
    signed: bool = True
    strengths: list[np.ndarray] = field(default_factory=list)
    _details: list[Any] = field(default_factory=list)

    def add(self, found: Strength) -> None:
        """The next batch's."""
        self.signed = found.low is not None
        self.strengths.append(np.asarray(found.high, np.float32 if found.high.dtype == np.float32 else np.float64))
        self._details.append(_best(found, self.seen, self.top))
        self.seen += found.high.shape[1]
        if len(self._details) > 8:  # what cannot be among the first any more is let go
            self._details = [_merged(self._details, self.top)]

    @property
    def all(self) -> np.ndarray:
        """Every strength: [R, N]."""
        return np.concatenate(self.strengths, axis=1)

    def rankings(
        self, names: list[tuple[int | None, int | None]], stderr: np.ndarray | None = None, interval: Bounds = None
    ) -> list[Ranking]:
        """By row: `(query, output)` of each; `stderr` [2, R, N] of the strengths at the two ends, and the interval of a
        strength with its standard error."""
        kept = _merged(self._details, self.top)
        return [
            Ranking(
                query=query, output=output, highest=_entries(kept[0], row, stderr, interval, 0),
                lowest=_entries(kept[1], row, stderr, interval, 1) if self.signed else [],
            )
            for row, (query, output) in enumerate(names)
        ]  # fmt: skip


class _Kept(NamedTuple):
    """The best of one end: [R, at most top] each."""

    score: np.ndarray
    example: np.ndarray
    label: np.ndarray | None
    towards: np.ndarray | None
    token: np.ndarray | None


def _best(found: Strength, start: int, top: int) -> Any:
    ends = []
    for end, scores in enumerate((found.high, found.high if found.low is None else found.low)):
        order = np.argsort(-scores if end == 0 else scores, axis=1, kind="stable")[:, :top]
        moved = (None if pair is None else pair[end] for pair in (found.label, found.towards, found.token))
        taken = [None if one is None else np.take_along_axis(one, order, axis=1) for one in (scores, *moved)]
        ends.append(_Kept(taken[0], order + start, *taken[1:]))  # type: ignore[arg-type]
    return ends


def _merged(parts: list[Any], top: int) -> Any:
    ends = []
    for end in (0, 1):
        joined = [
            None if parts[0][end][i] is None else np.concatenate([part[end][i] for part in parts], axis=1)
            for i in range(len(_Kept._fields))
        ]
        assert joined[0] is not None
        order = np.argsort(-joined[0] if end == 0 else joined[0], axis=1, kind="stable")[:, :top]
        taken: list[Any] = [None if one is None else np.take_along_axis(one, order, axis=1) for one in joined]
        ends.append(_Kept(*taken))
    return ends


def _entries(kept: _Kept, row: int, stderr: np.ndarray | None, interval: Bounds, end: int) -> list[Entry]:
    errors = None if stderr is None else stderr[end, row]
    return [
        Entry(
            example=int(example), score=float(kept.score[row, i]),
            stderr=None if errors is None else float(errors[example]),
            interval=None if errors is None or interval is None
            else interval(float(kept.score[row, i]), float(errors[example])),
            label=None if kept.label is None else int(kept.label[row, i]),
            towards=None if kept.towards is None else int(kept.towards[row, i]),
            token=None if kept.token is None else int(kept.token[row, i]),
        )
        for i, example in enumerate(kept.example[row])
    ]  # fmt: skip


def spearman(first: np.ndarray, second: np.ndarray) -> float | None:
    """Rank correlation of [N] and [N]; None where one is constant."""
    if len(first) < 2 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found: Any = scipy.stats.spearmanr(first, second)
        value = float(found.statistic)
    return float(np.clip(value, -1, 1)) if np.isfinite(value) else None


def median_spearman(first: np.ndarray, second: np.ndarray) -> float | None:
    """The median over rows of [R, N] and [R, N]; None where it exists for none."""
    found = [one for a, b in zip(first, second, strict=True) if (one := spearman(a, b)) is not None]
    return float(np.median(found)) if found else None


def auc(scores: np.ndarray, positive: np.ndarray, confidence: float) -> Estimate:
    """How often a positive example scores higher than another, ties counting half: [N], [N] bool.

    The interval is DeLong's, on the logit scale, so that it stays within 0 and 1. At an end (0 or 1) it is the one in
    which as many examples of the smaller kind could still be ranked otherwise with the probability left.
    Source: DeLong, DeLong and Clarke-Pearson (1988).
    """
    yes, no = scores[positive], scores[~positive]
    assert len(yes) >= LEAST_CLEAN <= len(no)
    ranks, m, n = scipy.stats.rankdata(np.r_[yes, no]), len(yes), len(no)
    above = (ranks[:m] - scipy.stats.rankdata(yes)) / n  # of each positive: the share of negatives below it
    below = 1 - (ranks[m:] - scipy.stats.rankdata(no)) / m
    value = float(above.mean())
    stderr = float(np.sqrt(above.var(ddof=1) / m + below.var(ddof=1) / n))
    tail = (1 - confidence) / 2
    if 0 < value < 1 and stderr > 0:
        width = float(scipy.stats.norm.ppf(1 - tail)) * stderr / (value * (1 - value))
        logit = np.log(value / (1 - value))
        low, high = (float(1 / (1 + np.exp(-x))) for x in (logit - width, logit + width))
    else:
        share = 1 - tail ** (1 / min(m, n))
        low, high = max(0.0, value - share), min(1.0, value + share)
    return Estimate(
        value=value, stderr=stderr, interval=(min(low, value), max(high, value)), confidence=confidence,
        samples=m + n, method="DeLong",
    )  # fmt: skip
