"""A row of the table of losses says everything: each facet against the loss, and a new row at work in the commands."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from curvcli import CurvError, Objective
from curvcli.analyses.common.room import room_to_fall
from curvcli.analyses.compare.laplace import plan_laplace
from curvcli.cli.main import run
from curvcli.curvature.influence.queries import check_measure
from curvcli.errors import DataError, SpecError, UsageError
from curvcli.loading.data.labels import fit_targets
from curvcli.losses import LOSSES, Likelihood, Loss
from curvcli.schema.compare import CompareSettings
from curvcli.schema.spec import LOSS_NAMES, LossSpec
from tests.binomial import BINOMIAL
from tests.problems import make_problem, mlp_problem

ROWS = {**LOSSES, "binomial": BINOMIAL}
FACETS = [facet.name for facet in dataclasses.fields(Likelihood) if facet.name not in ("adapt", "likelihood", "draw")]
README = Path(__file__).parent.parent / "README.md"

# --- each facet of a row against its value -----------------------------------------------------------------

RNG = np.random.default_rng(0)
Z, DZ = jnp.asarray(RNG.normal(size=(5, 3))), jnp.asarray(RNG.normal(size=(5, 3)))


def drawn_targets(row: Likelihood, z: Any, samples: int = 20_000) -> np.ndarray:
    """Targets from the model's own distribution at z [C]: [samples, C]."""
    keys = jax.random.split(jax.random.key(0), samples)
    return np.asarray(row.mean(z)[None] - jax.vmap(row.pseudo_gradient, (0, None))(keys, z))


def rows_of_targets(row: Likelihood) -> Any:
    """A target for every unit of Z, of a sum other than 1 where a row is shares of classes."""
    return row.mean(jnp.asarray(RNG.normal(size=Z.shape))) * (1.5 if row.classes else 1.0)


def draws(row: Likelihood, t: Any) -> Any:
    return 1.0 if row.draws is None else row.draws(Z, t)[..., None]


def probabilities(row: Likelihood, z: Any, t: Any) -> np.ndarray:
    """p(t | z) of units of one output, or of one label."""
    assert row.log_normaliser is not None
    constant = np.asarray(row.log_normaliser(np.asarray(t)))
    return np.exp(-np.asarray(row.value(z, t)) - (constant if constant.ndim == 0 else constant.sum(axis=-1)))


def support(row: Likelihood) -> tuple[Any, float]:
    """Every target of a unit, and the width of each: class rows, whole numbers, or a grid over the reals."""
    low, high = row.target_range
    if row.classes:
        return np.eye(3), 1.0
    if low == -np.inf:
        return np.arange(-20, 20, 0.01)[:, None], 0.01
    return np.arange(low, min(high, 100) + 1.0)[:, None], 1.0


def check_name(row: Likelihood) -> None:
    assert row.name.isidentifier()


def check_value(row: Likelihood) -> None:
    """It is s A(z) − t·z up to a term in t: differences between outputs are linear in t."""
    first, second = rows_of_targets(row), rows_of_targets(row)

    def difference(t: Any) -> Any:
        return row.value(Z, t) - row.value(Z + DZ, t)

    halfway = difference((first + second) / 2)
    np.testing.assert_allclose(halfway, (difference(first) + difference(second)) / 2, rtol=1e-12, atol=1e-12)


def check_mean(row: Likelihood) -> None:
    t = rows_of_targets(row)
    gradient = jax.grad(lambda z: jnp.sum(row.value(z, t)))(Z)
    np.testing.assert_allclose(gradient, draws(row, t) * row.mean(Z) - t, atol=1e-13)


def check_hessian_product(row: Likelihood) -> None:
    t = rows_of_targets(row)
    product = jax.jvp(jax.grad(lambda z: jnp.sum(row.value(z, t))), (Z,), (DZ,))[1]
    np.testing.assert_allclose(row.hessian_product(Z, t, DZ), product, atol=1e-13)
    np.testing.assert_allclose(row.hessian_product(Z, None, DZ) * draws(row, t), product, atol=1e-13)


def output_hessian(row: Likelihood, z: Any) -> np.ndarray:
    """A''(z) of one unit: [C, C]."""
    return np.asarray(jax.jacobian(row.mean)(z))


def check_root(row: Likelihood) -> None:
    root = np.stack([row.root(Z[0], column) for column in jnp.eye(3)], axis=1)
    np.testing.assert_allclose(root @ root.T, output_hessian(row, Z[0]), atol=1e-13)


def check_identity_hessian(row: Likelihood) -> None:
    assert row.identity_hessian == bool(np.allclose(output_hessian(row, Z[0]), np.eye(3)))


def check_pseudo_gradient(row: Likelihood) -> None:
    """Mean 0 and covariance A''(z), within 5 standard errors."""
    gradients = np.asarray(row.mean(Z[0])) - drawn_targets(row, Z[0])
    products = np.einsum("si,sj->sij", gradients, gradients)
    for samples, expected in ((gradients, np.zeros(3)), (products, output_hessian(row, Z[0]))):
        stderr = samples.std(axis=0, ddof=1) / len(samples) ** 0.5
        assert np.all(np.abs(samples.mean(axis=0) - expected) <= 5 * stderr + 1e-12)


def check_label_product(row: Likelihood) -> None:
    def slope(t: Any) -> Any:
        return jax.jvp(lambda z: jnp.sum(row.value(z, t)), (Z,), (DZ,))[1]

    np.testing.assert_allclose(row.label_product(Z, DZ), jax.grad(slope)(rows_of_targets(row)), atol=1e-13)


def check_target_range(row: Likelihood) -> None:
    """What the model draws reaches the ends and does not pass them; what does is refused when data are loaded."""
    targets = drawn_targets(row, jnp.zeros(3))
    for end, extreme, beyond in zip(row.target_range, (targets.min(), targets.max()), (-0.5, 0.5), strict=True):
        if np.isfinite(end):
            assert extreme == pytest.approx(end, abs=1e-6)
            outside = np.full((4, 3), end + beyond)
            with pytest.raises(DataError, match=rf"target {end + beyond:g} in row 0 .* {row.name} needs"):
                fit_targets(row, jax.ShapeDtypeStruct((2, 3), "float64"), outside, None, None)


def check_log_normaliser(row: Likelihood) -> None:
    """The probabilities of all targets add up to 1."""
    t, width = support(row)
    z = jnp.broadcast_to(Z[0, : t.shape[1]], t.shape)
    assert width * probabilities(row, z, jnp.asarray(t)).sum() == pytest.approx(1, rel=1e-10)


def check_least(row: Likelihood) -> None:
    """At the outputs whose mean the target is the gradient is 0."""
    assert row.least is not None
    t = row.mean(Z)
    np.testing.assert_allclose(row.least(np.asarray(t)), row.value(Z, t), rtol=1e-12, atol=1e-12)


def check_margin(row: Likelihood) -> None:
    """Log-odds of the label, or a refusal."""
    if row.margin is None:
        with pytest.raises(UsageError, match=f"--measure margin needs classes, and {row.name} has none"):
            check_measure(row, "margin")
        return
    t = jnp.asarray(support(row)[0])
    z = jnp.broadcast_to(Z[0, : t.shape[1]], t.shape)
    np.testing.assert_allclose(row.margin(z, t), scipy.special.logit(probabilities(row, z, t)), rtol=1e-10)


def check_classes(row: Likelihood) -> None:
    """Class probabilities are those of logits; a class number is its row, and a row of zeros is padding."""
    shares = np.asarray(row.mean(Z))
    assert row.classes == bool(np.allclose(shares.sum(axis=1), 1))
    assert row.classes == (row.draws is not None)
    if row.classes:
        np.testing.assert_allclose(shares, scipy.special.softmax(Z, axis=1), rtol=1e-12)
        labels = jnp.asarray([0, 2, 1, 0, 2])
        np.testing.assert_allclose(row.value(Z, labels), row.value(Z, jnp.eye(3)[labels]), rtol=1e-12)
        np.testing.assert_array_equal(row.value(Z, jnp.zeros((5, 3))), np.zeros(5))


def check_unit(row: Likelihood) -> None:
    assert row.unit == ("units" if row.identity_hessian else "nats")


CHECKS = {name.removeprefix("check_"): function for name, function in list(globals().items()) if name[:6] == "check_"}
CHECKS = {facet: CHECKS[facet] for facet in FACETS}
"""A check for every facet: a facet without one is a KeyError here."""


@pytest.mark.parametrize("row", ROWS.values(), ids=list(ROWS))
@pytest.mark.parametrize("facet", FACETS)
def test_facet(facet: str, row: Likelihood) -> None:
    CHECKS[facet](row)


WRONG: dict[str, Any] = {
    "name": "bi nomial",
    "value": lambda z, t: jnp.sum(2 * jax.nn.softplus(z) - jnp.square(t) * z, axis=-1),
    "mean": jax.nn.sigmoid,
    "hessian_product": lambda z, t, dz: dz,
    "root": lambda z, noise: noise,
    "identity_hessian": True,
    "pseudo_gradient": lambda key, z: jax.random.normal(key, z.shape),
    "label_product": lambda z, dz: dz,
    "target_range": (-np.inf, np.inf),
    "log_normaliser": lambda t: 0.0,
    "least": lambda t: np.zeros(t.shape[:-1]),
    "margin": lambda z, t: jnp.sum(t * z, axis=-1),
    "classes": True,
    "unit": "units",
}


@pytest.mark.parametrize("facet", [facet for facet in FACETS if facet != "target_range"])
def test_a_wrong_facet_fails_its_check(facet: str) -> None:
    with pytest.raises((AssertionError, TypeError, ValueError)):
        CHECKS[facet](replace(BINOMIAL, **{facet: WRONG[facet]}))


def test_a_range_that_is_too_narrow_or_too_wide_fails_its_check() -> None:
    for wrong in ((0, 1), (0, 3), (-1, 2)):
        with pytest.raises(AssertionError):
            check_target_range(replace(BINOMIAL, target_range=wrong))


@pytest.mark.parametrize("facet", FACETS)
def test_a_row_without_a_facet_cannot_be_made(facet: str) -> None:
    facets = {name: getattr(BINOMIAL, name) for name in FACETS if name != facet}
    with pytest.raises(TypeError, match=rf"missing 1 required .*argument: '{facet}'"):
        Likelihood(**facets)


def test_what_a_likelihood_does_not_have_is_refused_by_name() -> None:
    problem = mlp_problem("squared_error", l2=0.1)
    settings = CompareSettings(laplace="ggn", matrices=["ggn", "empirical-fisher"])
    unnormalised = replace(LOSSES["squared_error"], log_normaliser=None, least=None)
    with pytest.raises(SpecError, match="--laplace needs a likelihood with its normalising constants, and squared_er"):
        plan_laplace(replace(problem, loss=unnormalised), settings, dense=True)
    with pytest.raises(UsageError, match="--measure margin needs classes, and poisson has none"):
        check_measure(LOSSES["poisson"], "margin")
    assert room_to_fall(problem, 1.0) == 1.0
    assert room_to_fall(replace(problem, loss=unnormalised), 1.0) is None


# --- a new row at work ----------------------------------------------------------------------------------

COUNT, DIM, WIDTH, L2 = 30, 3, 2, 0.05
X = RNG.normal(size=(COUNT, DIM))
T = RNG.binomial(2, 0.6, size=(COUNT, WIDTH)).astype(float)


def linear(params: dict, x: Any) -> Any:
    return x @ params["w"]


def fitted() -> np.ndarray:
    """The minimum of J by Newton's method: [DIM, WIDTH]."""
    w = np.zeros((DIM, WIDTH))
    for _ in range(30):
        p = scipy.special.expit(X @ w)
        slope = X.T @ (2 * p - T) / COUNT + L2 * w
        for c in range(WIDTH):
            curvature = (X * (2 * p * (1 - p))[:, [c]]).T @ X / COUNT + L2 * np.eye(DIM)
            w[:, c] -= np.linalg.solve(curvature, slope[:, c])
    return w


W = fitted()
P = scipy.special.expit(X @ W)
VARIANCE = 2 * P * (1 - P)
EACH = np.einsum("nd,nc,cb->ndcb", X, np.ones_like(P), np.eye(WIDTH)).reshape(COUNT, -1, WIDTH)
"""∂z/∂w of each example, transposed: [N, D, C]."""
GGN = np.einsum("ndc,nc,nec->de", EACH, VARIANCE, EACH) / COUNT
KFAC = np.kron(X.T @ X / COUNT, np.diag(VARIANCE.mean(axis=0)))
EXACT: dict[str, Any] = {"dtype": "float64", "regulariser": False, "matrix": "ggn"}


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LOSSES, "binomial", BINOMIAL)


@pytest.fixture
def objective(table: None) -> Objective:
    return Objective(linear, (X, T), "binomial", l2=L2)


def test_trace_and_spectrum_of_the_ggn(objective: Objective) -> None:
    found = objective.trace({"w": W}, method="dense", **EXACT)
    assert found.result.trace.value == pytest.approx(np.trace(GGN), rel=1e-10)
    found = objective.spectrum({"w": W}, **EXACT)
    values = np.linalg.eigvalsh(GGN)
    assert found.result.lambda_max.value == pytest.approx(values[-1], rel=1e-9)
    assert found.result.lambda_min.value == pytest.approx(values[0], rel=1e-7)


def test_the_sampled_fisher_has_the_ggn_for_its_mean(objective: Objective) -> None:
    found = objective.spectrum({"w": W}, **{**EXACT, "matrix": "fisher-mc"}, mc_samples=3000)
    assert found.result.lambda_max.value == pytest.approx(np.linalg.eigvalsh(GGN)[-1], rel=0.03)
    assert found.result.trace.value == pytest.approx(np.trace(GGN), rel=0.03)


def test_kfac_is_the_product_of_its_factors(objective: Objective) -> None:
    found = objective.spectrum({"w": W}, **{**EXACT, "matrix": "kfac"}, factors="exact")
    assert found.result.lambda_max.value == pytest.approx(np.linalg.eigvalsh(KFAC)[-1], rel=1e-9)
    assert found.result.trace.value == pytest.approx(np.trace(KFAC), rel=1e-9)


@pytest.mark.parametrize("mode", ["remove", "label_perturb"])
def test_influence_at_the_minimum(objective: Objective, mode: str) -> None:
    """g_q H⁻¹ g_n / M without an example, g_q H⁻¹ ∂z/∂w / M by a unit of its label."""
    settings: dict[str, Any] = {mode: True, "queries": "0:4", "solver": "dense", "damping": 0.0, "dtype": "float64"}
    found = objective.influence({"w": W}, **settings).result
    gradients = np.einsum("ndc,nc->nd", EACH, 2 * P - T)
    solved = np.linalg.solve(GGN + L2 * np.eye(DIM * WIDTH), gradients[:4].T).T
    expected = solved @ gradients.T if mode == "remove" else np.einsum("qd,ndc->qnc", solved, EACH)
    np.testing.assert_allclose(found.scores, expected / COUNT, rtol=1e-8, atol=1e-12)
    assert found.units.startswith("nats of the query's loss")
    least = scipy.special.xlogy(T, T / 2) + scipy.special.xlogy(2 - T, 1 - T / 2)
    value = np.mean(np.sum(2 * np.log1p(np.exp(X @ W)) - T * (X @ W), axis=1)) + L2 / 2 * np.sum(W**2)
    assert found.validity.loss_above_least == pytest.approx(value + least.sum(axis=1).mean(), rel=1e-9)


def test_the_evidence_counts_the_binomial_coefficients(objective: Objective) -> None:
    matrices = ["ggn", "fisher", "empirical-fisher"]
    found = objective.compare({"w": W}, matrices=matrices, laplace="ggn", dtype="float64").result
    likelihood = scipy.stats.binom(2, P).logpmf(T).sum()
    assert found.laplace.log_likelihood == pytest.approx(likelihood, rel=1e-10)
    prior = COUNT * L2
    log_det = np.linalg.slogdet(np.eye(DIM * WIDTH) + COUNT / prior * GGN)[1]
    evidence = likelihood - 0.5 * prior * np.sum(W**2) - 0.5 * log_det
    assert found.laplace.log_evidence.value == pytest.approx(evidence, rel=1e-10)
    assert [(twin.name, twin.to) for twin in found.equal] == [("fisher", "ggn")]


@pytest.mark.parametrize("outside", [-5.0, 3.0])
def test_targets_out_of_range_are_refused(
    table: None, outside: float, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    targets = T.copy()
    targets[7, 1] = outside
    words = f"target {outside:g} in row 7 is outside [0, 2], which binomial needs"
    with pytest.raises(CurvError) as caught:
        Objective(linear, (X, targets), "binomial").trace({"w": W})
    assert words in str(caught.value)
    np.savez(tmp_path / "model.npz", w=W)
    np.savez(tmp_path / "data.npz", x=X, y=targets)
    (tmp_path / "net.py").write_text("def apply(params, x):\n    return x @ params['w']\n")
    arguments = ["--model", f"{tmp_path}/net.py:apply", "--data", f"{tmp_path}/data.npz", "--loss", "binomial"]
    assert run(["trace", f"{tmp_path}/model.npz", *arguments]) == DataError("", "").exit_code
    assert words in capfd.readouterr().err


def test_the_declared_likelihood_of_a_users_loss(table: None) -> None:
    """The row gives the Fisher matrix of a loss that declares it."""

    def own(z: Any, t: Any) -> Any:
        return jnp.sum(2 * jnp.logaddexp(z, 0) - t * z, axis=-1)

    objective = Objective(linear, (X, T), own, likelihood="binomial")
    found = objective.trace({"w": W}, method="dense", **{**EXACT, "matrix": "fisher"})
    assert found.result.trace.value == pytest.approx(np.trace(GGN), rel=1e-10)


# --- the lists of losses ----------------------------------------------------------------------------------


def test_help_schema_and_documentation_name_the_table(capfd: pytest.CaptureFixture[str]) -> None:
    assert tuple(LOSSES) == LOSS_NAMES
    assert run(["trace", "--help"]) == 0
    texts = {
        "--help": "".join(capfd.readouterr().out.replace("│", " ").split()),
        "curv schema": LossSpec.model_fields["name"].description or "",
        "README.md": README.read_text(encoding="utf-8"),
        "Objective": Objective.__doc__ or "",
    }
    assert [(place, name) for place, text in texts.items() for name in LOSSES if name not in text] == []


def test_a_users_loss_is_no_row() -> None:
    loss = Loss("mine", lambda z, t: z[..., 0])
    assert (loss.known, loss.family, loss.classes, loss.draws, loss.unit) == (False, None, False, None, "units")
    assert BINOMIAL.family is BINOMIAL
    assert BINOMIAL.known
    assert make_problem(linear, {"w": W}, X, T, BINOMIAL).loss.family is BINOMIAL
