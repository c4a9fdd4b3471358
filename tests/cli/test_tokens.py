"""Losses a token through the command line: masks, ignored labels, sequences without any token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.flatten_util import ravel_pytree

from curvcli.cli.main import run
from curvcli.schema.report import load_json
from curvcli.zoo import CharTransformer

RHYMES = Path(__file__).parents[2] / "sample_models" / "char_transformer.ckpt"
BLOCK, L2, COUNT = "LayerNorm_4", 1e-3, 12


class Reference:
    """The data with some labels ignored, and the block's matrices by JAX's dense derivatives."""

    def __init__(self, folder: Path) -> None:
        with np.load(RHYMES / "rhymes.npz") as arrays:
            x, y, mask = (arrays[name][:COUNT].copy() for name in ("x", "y", "mask"))
        mask[0] = 0
        y[1], y[2, 3:6] = -1, -1
        self.data = folder / "data.npz"
        np.savez(self.data, x=x, y=y, mask=mask)
        weight = mask * (y >= 0)
        assert not weight[:2].any()
        with ocp.StandardCheckpointer() as reader:
            params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), reader.restore(RHYMES)["params"])
        block, unravel = ravel_pytree(params[BLOCK])
        model = CharTransformer(vocabulary=31, length=40, epsilon=0.1)

        def outputs(w: Any) -> Any:
            return model.apply({"params": {**params, BLOCK: unravel(w)}}, x)

        def losses(w: Any) -> Any:
            units = -jnp.take_along_axis(jax.nn.log_softmax(outputs(w)), np.maximum(y, 0)[..., None], axis=-1)[..., 0]
            return jnp.sum(units * weight, axis=1)

        @jax.jit
        def dense(flat: Any) -> Any:
            """The GGN, the Hessian, and each sequence's gradient."""
            z, jacobian = outputs(flat), jax.jacfwd(outputs)(flat)
            p = jax.nn.softmax(z)[..., None]
            curved = weight[..., None, None] * p * (jacobian - jnp.sum(p * jacobian, axis=2, keepdims=True))
            ggn = jnp.einsum("btvi,btvj->ij", jacobian, curved)
            return ggn, jax.hessian(lambda w: jnp.sum(losses(w)))(flat), jax.jacobian(losses)(flat)

        self.tokens = weight.sum()
        ggn, hessian, self.slopes = map(np.asarray, dense(block))
        self.ggn, self.hessian = (one / self.tokens + L2 * np.eye(len(block)) for one in (ggn, hessian))


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    return Reference(tmp_path_factory.mktemp("tokens"))


def answer(capfd: pytest.CaptureFixture[str], reference: Reference, command: str, *options: str) -> Any:
    spec = reference.data.with_name("curv.toml")
    text = (RHYMES / "curv.toml").read_text().replace('path = "rhymes.npz"', f'path = "{reference.data}"')
    spec.write_text(text.replace('path = "."', f'path = "{RHYMES}"') + "ignore_label = -1\n")
    shared = ("--spec", str(spec), "--params", f"{BLOCK}/*", "--dtype", "float64", "--quiet")
    assert run([command, *shared, *options]) == 0
    return load_json(capfd.readouterr().out)["result"]


def test_spectrum_and_trace(reference: Reference, capfd: pytest.CaptureFixture[str]) -> None:
    for matrix, expected in (("hessian", reference.hessian), ("ggn", reference.ggn)):
        values = np.linalg.eigvalsh(expected)
        found = answer(capfd, reference, "spectrum", "--matrix", matrix, "--skip-checks")
        assert found["lambda_max"]["value"] == pytest.approx(values[-1], rel=1e-9)
        assert found["lambda_min"]["value"] == pytest.approx(values[0], abs=1e-9 * values[-1])
    found = answer(capfd, reference, "trace", "--matrix", "hessian", "--skip-checks")
    assert found["trace"]["value"] == pytest.approx(np.trace(reference.hessian), rel=1e-9)


@pytest.mark.nightly
def test_influence_of_whole_sequences(reference: Reference, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Those without a token have none."""
    options = ("--remove", "--queries", "2:4", "--solver", "cg", "--tol", "1e-10", "--scores", str(tmp_path / "s.npz"))
    answer(capfd, reference, "influence", "--skip-checks", *options)
    expected = reference.slopes[2:4] @ np.linalg.solve(reference.ggn, reference.slopes.T) / reference.tokens
    scores = np.load(tmp_path / "s.npz")
    found = scores[next(name for name in scores.files if scores[name].shape == expected.shape)]
    np.testing.assert_allclose(np.abs(found), np.abs(expected), atol=1e-7 * np.abs(expected).max())
    assert np.sign(found[0, 2] * expected[0, 2]) == np.sign(found[1, 3] * expected[1, 3]) != 0
    assert not found[:, :2].any()
