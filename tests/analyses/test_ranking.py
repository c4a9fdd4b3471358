"""Rankings as scores stream by, beside a plain sort of all of them; how well a score finds what it should."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import scipy.stats

from curvcli.analyses.influence.ranking import Ranker, Strength, auc, median_spearman, spearman, strength
from curvcli.losses import LOSSES, user_loss

SOFTMAX, SQUARES = LOSSES["softmax_cross_entropy"], LOSSES["squared_error"]
RNG = np.random.default_rng(0)


# --- the ranker -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("top", [1, 7, 200])
@pytest.mark.parametrize("sizes", [(57,), (1,) * 57, (10, 1, 20, 26), (3,) * 19])
@pytest.mark.parametrize("tied", [False, True])
def test_the_best_of_a_stream_are_those_of_a_sort(top: int, sizes: tuple[int, ...], tied: bool) -> None:
    scores = RNG.integers(-3, 4, (3, 57)).astype(float) if tied else RNG.normal(size=(3, 57))
    ranker, stderr = Ranker(3, top), RNG.random((2, 3, 57))
    for stop, size in zip(itertools.accumulate(sizes), sizes, strict=True):
        part = scores[:, stop - size : stop]
        ranker.add(Strength(part, part))
    assert ranker.seen == 57
    np.testing.assert_array_equal(ranker.all, scores)
    found = ranker.rankings([(4, None), (5, 0), (5, 1)], stderr)
    assert [(one.query, one.output) for one in found] == [(4, None), (5, 0), (5, 1)]
    for row, ranking in enumerate(found):
        for end, entries, order in (
            (0, ranking.highest, np.argsort(-scores[row], kind="stable")),
            (1, ranking.lowest, np.argsort(scores[row], kind="stable")),
        ):
            assert [one.example for one in entries] == order[:top].tolist()
            assert [one.score for one in entries] == scores[row, order[:top]].tolist()
            assert [one.stderr for one in entries] == stderr[end, row, order[:top]].tolist()


def test_strengths_without_a_sign_have_no_lower_end() -> None:
    ranker = Ranker(1, 3)
    ranker.add(Strength(np.array([[1.0, 3.0, 2.0, 0.5]]), None))
    (found,) = ranker.rankings([(None, None)])
    assert [one.example for one in found.highest] == [1, 2, 0]
    assert found.lowest == []


# --- one number an example --------------------------------------------------------------------------------


def test_removal_is_its_own_strength() -> None:
    scores = RNG.normal(size=(2, 5))
    found = strength("remove", SOFTMAX, {"": scores}, np.zeros(5, int), np.ones(5))
    np.testing.assert_array_equal(found.high, scores)
    np.testing.assert_array_equal(found.low, scores)


@pytest.mark.parametrize(
    ("parameter", "loss"),
    [
        ("input-perturb", SOFTMAX),
        ("label-perturb", SQUARES),
        ("label-perturb", user_loss("own", lambda z, t: z[..., 0])),
    ],
)
def test_where_entries_have_no_order_their_norm_counts(parameter: Any, loss: Any) -> None:
    piece = {"a": RNG.normal(size=(2, 5, 3, 4)), "b": RNG.normal(size=(2, 5))}
    found = strength(parameter, loss, piece, np.zeros((5, 3)), np.ones(5))
    both = np.concatenate([one.reshape(2, 5, -1) for one in piece.values()], axis=2)
    np.testing.assert_allclose(found.high, np.linalg.norm(both, axis=2))
    assert found.low is None


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("tokens", [(), (3,), (1,), (2, 2)])
def test_label_moves_are_the_best_of_all_by_hand(tokens: tuple[int, ...], soft: bool) -> None:
    rows, count, classes = 2, 6, 4
    weight = (RNG.random((count, *tokens)) < 0.6) * 2.0 if tokens else np.ones(count)
    weight[0], weight[1] = 0.0, 1.0  # an example without any token that counts still has its place
    scores = RNG.normal(size=(rows, count, *tokens, classes)) * weight[..., None]
    targets: Any = RNG.integers(0, classes, (count, *tokens))
    found = strength(
        "label-perturb", SOFTMAX, {"": scores}, np.eye(classes)[targets] * 0.9 if soft else targets, weight
    )
    ranker = Ranker(rows, count)
    ranker.add(found)
    for row, ranking in enumerate(ranker.rankings([(0, None), (1, None)])):
        for sign, entries in ((1, ranking.highest), (-1, ranking.lowest)):
            assert sorted(one.example for one in entries) == list(range(count))
            for entry in entries:
                of_example, own = scores[row, entry.example].reshape(-1, classes), targets[entry.example].reshape(-1)
                counts = weight[entry.example].reshape(-1) > 0
                best = max(
                    (sign * (of_example[t, b] - of_example[t, own[t]]), -t, -b)
                    for t in range(len(own)) for b in range(classes) if b != own[t] and (counts[t] or not counts.any())
                )  # fmt: skip
                assert entry.score == sign * best[0]
                assert (entry.towards, entry.label) == (-best[2], own[-best[1]])
                assert entry.token == (-best[1] if tokens else None)


# --- how rankings agree -----------------------------------------------------------------------------------


def test_rank_correlation() -> None:
    x, y = RNG.normal(size=(3, 20)), RNG.integers(0, 4, (3, 20)).astype(float)
    expected = [scipy.stats.spearmanr(a, b).statistic for a, b in zip(x, y, strict=True)]
    assert spearman(x[0], y[0]) == pytest.approx(expected[0])
    assert median_spearman(x, y) == pytest.approx(np.median(expected))
    assert spearman(x[0], np.exp(x[0])) == pytest.approx(1)
    assert spearman(x[0], np.ones(20)) is None
    assert spearman(np.ones(1), np.zeros(1)) is None
    one_constant = np.stack([y[0], np.ones(20)])
    assert median_spearman(x[:2], one_constant) == pytest.approx(expected[0])
    assert median_spearman(x[:1], np.ones((1, 20))) is None


# --- AUC --------------------------------------------------------------------------------------------------


def by_pairs(scores: np.ndarray, positive: np.ndarray) -> tuple[float, float]:
    """AUC over all pairs, and DeLong's standard error from the kernel matrix."""
    yes, no = scores[positive], scores[~positive]
    wins = (yes[:, None] > no[None]) + 0.5 * (yes[:, None] == no[None])
    variance = np.var(wins.mean(axis=1), ddof=1) / len(yes) + np.var(wins.mean(axis=0), ddof=1) / len(no)
    return float(wins.mean()), float(np.sqrt(variance))


@pytest.mark.parametrize("tied", [False, True])
def test_auc_counts_pairs(tied: bool) -> None:
    positive = np.arange(50) % 3 == 0
    scores = RNG.normal(size=50) + positive
    scores = np.round(scores) if tied else scores
    found = auc(scores, positive, 0.9)
    assert (found.value, found.stderr) == pytest.approx(by_pairs(scores, positive))
    assert found.interval[0] < found.value < found.interval[1]
    assert (found.samples, found.confidence) == (50, 0.9)
    # Nothing but the order counts, and the other way round it is the complement.
    assert auc(np.exp(scores), positive, 0.9) == found
    reverse = auc(-scores, positive, 0.9)
    assert (1 - reverse.value, 1 - reverse.interval[1]) == pytest.approx((found.value, found.interval[0]))


@pytest.mark.parametrize(("scores", "value"), [([0, 0, 0, 1, 1, 1], 1.0), ([1, 1, 1, 0, 0, 0], 0.0), ([2] * 6, 0.5)])
def test_auc_where_it_does_not_vary(scores: list[int], value: float) -> None:
    found = auc(np.array(scores, float), np.arange(6) >= 3, 0.95)
    assert (found.value, found.stderr) == (value, 0)
    low, high = found.interval
    assert 0 <= low <= value <= high <= 1
    assert high - low > 0.3  # six examples prove little


@pytest.mark.parametrize(
    ("positives", "negatives", "apart"), [(20, 180, 1.0), (8, 40, 2.0), (5, 30, 0.0), (10, 30, 3.0)]
)
def test_the_interval_of_auc_covers(positives: int, negatives: int, apart: float) -> None:
    truth, positive = scipy.stats.norm.cdf(apart / np.sqrt(2)), np.arange(positives + negatives) < positives
    rng, covered, draws = np.random.default_rng(1), 0, 400
    for _ in range(draws):
        low, high = auc(rng.normal(size=len(positive)) + apart * positive, positive, 0.95).interval
        covered += low <= truth <= high
    assert covered >= 0.92 * draws  # 0.95 less two and a half standard errors
