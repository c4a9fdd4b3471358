"""The peers on the same weights: pyDVL's solvers, kronfluence's E-KFAC; scores [Q, N] in the sign of curv's removal."""

from __future__ import annotations

import contextlib
import copy
import logging
import tempfile
import time
import warnings
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from .twins import Twin

Data = tuple[np.ndarray, np.ndarray]


def twin(features: list[int], params: dict[str, np.ndarray], train: Data) -> Twin:
    """The network in torch, in the precision of its weights."""
    made = Twin("curvcli.zoo:MLP", {"features": features, "activation": "tanh"}, params, *train)
    if next(iter(params.values())).dtype == np.float64:
        made.model.double()
        for (path, _, axes), tensor in zip(made.leaves, made.model.parameters(), strict=True):
            with torch.no_grad():  # once more: what was copied in float32 had lost digits
                tensor.copy_(torch.from_numpy(np.transpose(params[path], np.argsort(axes)).copy()))
    return made


class Pydvl:
    """One of pyDVL's influences, fitted on all examples in one batch.

    Its stopping rule is ‖r‖ < max(rtol² ‖b‖, atol²), ‖b‖ for single systems taken over the wrong axis: the tolerances
    given here make that `tol` times the norm of the right-hand side.
    """

    def __init__(self, kind: str, made: Twin, regularization: float, **options: Any) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import pydvl.influence.torch as peers
        classes = {"CG": "CgInfluence", "block CG": "CgInfluence", "Arnoldi": "ArnoldiInfluence",
                   "Nyström": "NystroemSketchInfluence"}  # fmt: skip
        self.kind, self.made, self.options = kind, made, options
        self.make, self.regularization = getattr(peers, classes[kind]), regularization
        self.model = self._fitted(options)

    def factors(self, queries: Data, tol: float = 1e-4) -> torch.Tensor:
        """Solutions [Q, D]."""
        x, y = tensors(queries, self.made)
        if self.kind != "CG":
            return self.model.influence_factors(x, y)
        solutions = []
        for i in range(len(x)):
            size = float(torch.linalg.norm(self.gradients(x[i : i + 1], y[i : i + 1])))
            for block in self.model.block_mapper.composable_block_dict.values():
                block.op.rtol, block.op.atol = 0.0, (tol * size) ** 0.5
            solutions.append(self.model.influence_factors(x[i : i + 1], y[i : i + 1]))
        return torch.cat(solutions)

    def scores(self, factors: torch.Tensor) -> np.ndarray:
        """[Q, N]."""
        found = self.model.influences_from_factors(factors, self.made.x, self.made.y)
        return found.detach().numpy() / len(self.made.x)

    def gradients(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """∇q [Q, D]."""
        (block,) = self.model.block_mapper.composable_block_dict.values()
        return block.gp.flat_grads(self._batch(x, y))

    def _batch(self, x: torch.Tensor, y: torch.Tensor) -> Any:
        from pydvl.influence.torch.base import TorchBatch

        return TorchBatch(x, y)

    def _fitted(self, options: dict[str, Any]) -> Any:
        if self.kind == "block CG":
            options = {**options, "solve_simultaneously": True}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = self.make(self.made.model, functional.cross_entropy, regularization=self.regularization, **options)
            data = TensorDataset(self.made.x, self.made.y)
            return model.fit(DataLoader(data, batch_size=len(data)))


def ekfac(
    made: Twin, queries: Data, dampings: list[float | None]
) -> tuple[dict[float | None, np.ndarray], dict[str, float]]:
    """kronfluence's E-KFAC: scores by damping from the same factors, and the seconds of factors and first scores.

    Parameters
    ----------
    dampings
        None: its own heuristic, a tenth of the mean eigenvalue, layer by layer.
    """
    from kronfluence.analyzer import Analyzer, prepare_model
    from kronfluence.arguments import FactorArguments, ScoreArguments
    from kronfluence.task import Task

    class Classes(Task):
        def compute_train_loss(self, batch: Any, model: Any, sample: bool = False) -> torch.Tensor:
            x, y = batch
            z = model(x)
            if sample:
                y = torch.multinomial(torch.softmax(z.detach(), -1), 1)[:, 0]
            return functional.cross_entropy(z, y, reduction="sum")

        def compute_measurement(self, batch: Any, model: Any) -> torch.Tensor:
            return self.compute_train_loss(batch, model)

    task, found, seconds = Classes(), {}, {}
    model = prepare_model(copy.deepcopy(made.model), task)  # it wraps the layers
    x, y = tensors(queries, made)
    with tempfile.TemporaryDirectory() as folder, _quiet():
        analyzer = Analyzer("influence", model, task, cpu=True, disable_tqdm=True, output_dir=folder)
        data = TensorDataset(made.x, made.y)
        dtype = {"activation_covariance_dtype": made.x.dtype, "gradient_covariance_dtype": made.x.dtype,
                 "per_sample_gradient_dtype": made.x.dtype, "lambda_dtype": made.x.dtype}  # fmt: skip
        torch.manual_seed(0)
        start = time.perf_counter()
        analyzer.fit_all_factors(
            "ekfac", data, per_device_batch_size=512, factor_args=FactorArguments("ekfac", **dtype)
        )
        seconds["factors"] = time.perf_counter() - start
        for number, damping in enumerate(dampings):
            start = time.perf_counter()
            analyzer.compute_pairwise_scores(
                f"scores{number}", "ekfac", TensorDataset(x, y), data, len(x), 512,
                score_args=ScoreArguments(damping_factor=damping, per_sample_gradient_dtype=made.x.dtype,
                                          precondition_dtype=made.x.dtype, score_dtype=made.x.dtype),
            )  # fmt: skip
            seconds.setdefault("scores", time.perf_counter() - start)
            scores = analyzer.load_pairwise_scores(f"scores{number}")["all_modules"]
            found[damping] = scores.numpy() / len(made.x)
    return found, seconds


def tensors(queries: Data, made: Twin) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and labels of queries."""
    return torch.from_numpy(queries[0]).to(made.x.dtype), torch.from_numpy(queries[1].astype(np.int64))


@contextlib.contextmanager
def _quiet() -> Any:
    """Without its log lines and warnings."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
