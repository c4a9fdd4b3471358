"""Norms and distances from common test vectors: against the matrices themselves, and how often the intervals cover."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from curvcli.linalg.statistics import student_interval
from curvcli.linalg.trace.together import Together

DIM = 60
EPS = float(np.finfo("float64").eps)


def rotated(values: np.ndarray, seed: int) -> np.ndarray:
    basis, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(values), len(values))))
    return (basis * values) @ basis.T


def truth(one: np.ndarray, other: np.ndarray) -> list[float]:
    """tr A, ‖A‖, ‖A − B‖, ‖A − B‖/‖A‖, the cosine."""
    norms = np.linalg.norm(one), np.linalg.norm(other), np.linalg.norm(one - other)
    return [np.trace(one), norms[0], norms[2], norms[2] / norms[0], np.sum(one * other) / norms[0] / norms[1]]


def told(together: Together) -> list:
    return [
        together.trace(0), together.norm(together.square(0)), together.norm(together.distance(0, 1)),
        together.relative(0, 1), together.alignment(0, 1),
    ]  # fmt: skip


def test_all_dimensions_known_or_seen_are_exact() -> None:
    one, other = (rotated(np.random.default_rng(seed).normal(size=DIM), seed) for seed in (0, 1))
    whole = jnp.asarray(np.linalg.qr(np.random.default_rng(2).normal(size=(DIM, DIM)))[0])
    for split in (0, 7, DIM):  # so many rows known, the others as test vectors: together a basis
        together = Together(DIM, 2, whole[:split])
        for rows, add in ((whole[:split], together.add_known), (whole[split:], together.add)):
            if len(rows):
                add([rows @ one, rows @ other], rows)
        found = [law.value for law in told(together)]
        np.testing.assert_allclose(found, truth(one, other), rtol=1e4 * EPS)
    assert [law.stderr for law in told(together)] == [0] * 5


def test_near_matrices_do_not_cancel() -> None:
    one = rotated(np.linspace(1, 2, DIM), 0)
    other = one + 1e-6 * rotated(np.linspace(-1, 1, DIM), 1)
    together = Together(DIM, 2, jnp.zeros((0, DIM)))
    eye = jnp.eye(DIM)
    together.add([eye @ one, eye @ other], eye)
    assert together.norm(together.distance(0, 1)).value == pytest.approx(np.linalg.norm(one - other), rel=1e-8)


def test_a_matrix_and_itself() -> None:
    one = rotated(np.linspace(-1, 2, DIM), 0)
    together = Together(DIM, 2, jnp.zeros((0, DIM)))
    tests = together.tests(jax.random.key(0), 8, "float64")
    together.add([tests @ one, tests @ one], tests)
    assert together.relative(0, 1)[:2] == (0, 0)
    assert together.alignment(0, 1).value == pytest.approx(1)
    assert together.alignment(0, 1).stderr == pytest.approx(0, abs=1e-7)


def test_the_error_that_ratios_share_cancels() -> None:
    """B = A/2: every sample of the ratio is 1/2, however the norms scatter."""
    one = rotated(np.r_[100.0, np.linspace(0, 1, DIM - 1)], 0)
    together = Together(DIM, 2, jnp.zeros((0, DIM)))
    tests = together.tests(jax.random.key(0), 8, "float64")
    together.add([tests @ one, 0.5 * tests @ one], tests)
    law = together.relative(0, 1)
    assert law.value == pytest.approx(0.5)
    assert law.stderr < 1e-9
    assert together.norm(together.square(0)).stderr > 0.1 * together.norm(together.square(0)).value


SPECTRA = {
    "flat": (np.linspace(0.9, 1.1, DIM), np.linspace(0.5, 1.5, DIM)),
    "outliers apart": (np.r_[40.0, np.linspace(0, 1, DIM - 1)], np.r_[20.0, 10.0, np.linspace(0, 1, DIM - 2)]),
    "indefinite": (np.linspace(-1, 2, DIM), np.linspace(0, 2, DIM)),
}


@pytest.mark.nightly
@pytest.mark.parametrize("name", SPECTRA)
def test_intervals_cover(name: str) -> None:
    """Of trace, norm, distance, ratio and cosine, in 300 runs of 16 vectors each: 0.93 and more of nominal 0.95."""
    one, other = (rotated(values, seed) for seed, values in enumerate(SPECTRA[name]))
    true, runs = np.array(truth(one, other)), 300
    held = np.zeros(5)
    for run in range(runs):
        together = Together(DIM, 2, jnp.zeros((0, DIM)))
        for _ in range(2):
            tests = together.tests(jax.random.key(run), 8, "float64")
            together.add([tests @ one, tests @ other], tests)
        for place, law in enumerate(told(together)):
            low, high = interval(place, law)
            held[place] += low <= true[place] <= high
    assert np.all(held / runs >= 0.93), held / runs


def interval(place: int, law) -> tuple[float, float]:
    """As `analyses/reading.py` has them: even in the value, in its logarithm, or in Fisher's z."""
    if place == 0:
        return student_interval(law, 0.05)
    if place == 4:
        low, high = student_interval(
            law._replace(value=np.arctanh(law.value), stderr=law.stderr / (1 - law.value**2)), 0.05
        )
        return np.tanh(low), np.tanh(high)
    low, high = student_interval(law._replace(value=0.0, stderr=law.stderr / law.value), 0.05)
    return law.value * np.exp(low), law.value * np.exp(high)
