"""The six sample models through the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from curvcli.cli.main import run
from curvcli.schema.report import load_json

SAMPLES = Path(__file__).parent.parent / "sample_models"
LOSSES = {
    "digits_mlp.ckpt": 0.0118691,
    "digits_cnn.ckpt": 0.00302233,
    "digits_run": 0.0219513,
    "linear_autoencoder.ckpt": 2.2150983,
    "tanh_regression.ckpt": 0.0112487,
    "char_transformer.ckpt": 0.52182,
}
"""J at the weights, as the scripts that trained them print it."""

FEWER = {"digits_cnn.ckpt": ("--num-examples", "256")}
"""Where products with all examples take most of the time: the loss of all is then asked for alone. Derivatives are
compared with differences on as many examples as ever, 32."""


def answer(capfd: pytest.CaptureFixture[str], *arguments: str) -> Any:
    assert run([*arguments, "--quiet"]) == 0
    return load_json(capfd.readouterr().out)


@pytest.mark.first_tier("tanh_regression.ckpt")
@pytest.mark.parametrize("name", LOSSES)
def test_every_sample_model_passes_its_self_checks(
    name: str, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    fewer = FEWER.get(name, ())
    report = answer(capfd, "inspect", str(SAMPLES / name), "--probes", "2", *fewer)
    loss = report["result"]["loss_value"]
    if fewer:
        assert run(["init", str(SAMPLES / name), "-o", str(tmp_path / "curv.toml"), "--quiet"]) == 0
        loss = float(capfd.readouterr().out.partition(": loss ")[2].split()[0])
    assert loss == pytest.approx(LOSSES[name], rel=1e-4)
    assert not report["untrusted"]
    expected = ("piecewise linear", "examples were used") if fewer else ("piecewise linear",)
    assert [warning for warning in report["warnings"] if not any(text in warning for text in expected)] == []


@pytest.mark.slow
def test_the_linear_autoencoder_has_the_lectures_curvature(capfd: pytest.CaptureFixture[str]) -> None:
    result = answer(capfd, "spectrum", str(SAMPLES / "linear_autoencoder.ckpt"), "--dtype", "float64")["result"]
    assert result["lambda_max"]["value"] == pytest.approx(2.078364, abs=5e-7)
    assert result["trace"]["value"] == pytest.approx(256.90022, abs=5e-6)
    sampled = answer(
        capfd, "spectrum", str(SAMPLES / "linear_autoencoder.ckpt"), "--dtype", "float64", "--method", "xtrace"
    )["result"]
    assert sampled["lambda_max"]["value"] == pytest.approx(2.078364, abs=3e-6)
    low, high = sampled["trace"]["interval"]
    assert low <= 256.90022 <= high


def test_a_run_has_its_steps(capfd: pytest.CaptureFixture[str]) -> None:
    report = answer(capfd, "spectrum", str(SAMPLES / "digits_run"), "--step", "0", "--probes", "2", "--steps", "10")
    assert report["problem"]["checkpoint"]["step"] == 0
    assert report["problem"]["loss_value"] == pytest.approx(2.403, abs=1e-3)
