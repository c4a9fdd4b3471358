"""Networks fitted again, by numpy and scipy alone: what predictions of influence are compared with."""

from __future__ import annotations

import itertools

import numpy as np
import scipy.optimize
import scipy.special

Params = dict[str, np.ndarray]


def normal_rows(x: np.ndarray) -> np.ndarray:
    """Columns of mean 0 and standard deviation 1; constant ones 0."""
    spread = x.std(axis=0)
    return (x - x.mean(axis=0)) / np.where(spread > 0, spread, 1)


def breast_cancer() -> tuple[np.ndarray, np.ndarray]:
    """569 standardised rows, labels [N, 1]."""
    from sklearn.datasets import load_breast_cancer

    x, t = load_breast_cancer(return_X_y=True)
    return normal_rows(x), t[:, None].astype(float)


def digits(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """`count` training rows in random order, the rest held out; pixels between 0 and 1."""
    from sklearn.datasets import load_digits

    x, t = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(x))
    x, t = x[order] / 16, t[order].astype(np.int32)
    return x[:count], t[:count], x[count:], t[count:]


def logistic(x: np.ndarray, t: np.ndarray, weight: np.ndarray, l2: float, w: np.ndarray) -> np.ndarray:
    """Newton's method for logistic regression with a bias: w [D + 1, 1]. The normaliser is N, whatever the weights."""
    x = np.c_[x, np.ones(len(x))]
    for _ in range(100):
        p = scipy.special.expit(x @ w)
        slope = x.T @ (weight[:, None] * (p - t)) / len(x) + l2 * w
        hessian = (x * (weight[:, None] * p * (1 - p))).T @ x / len(x) + l2 * np.eye(len(w))
        step = np.linalg.solve(hessian, slope)
        w = w - step
        if np.abs(step).max() < 1e-12 * max(1.0, np.abs(w).max()):
            return w
    raise RuntimeError("logistic regression did not converge")


def softmax(x: np.ndarray, t: np.ndarray, weight: np.ndarray, l2: float, w: np.ndarray) -> np.ndarray:
    """Newton's method for softmax regression with a bias: w [D + 1, C]. The normaliser is N, whatever the weights."""
    x, labels = np.c_[x, np.ones(len(x))], np.eye(w.shape[1])[t]
    (normaliser, columns), classes = x.shape, w.shape[1]

    def objective(w: np.ndarray) -> float:
        z = x @ w
        losses = scipy.special.logsumexp(z, axis=1) - np.sum(z * labels, axis=1)
        return float(weight @ losses / normaliser + l2 / 2 * np.sum(w**2))

    value = objective(w)
    for _ in range(100):
        p = scipy.special.softmax(x @ w, axis=1)
        slope = x.T @ (weight[:, None] * (p - labels)) / normaliser + l2 * w
        hessian = np.empty((classes, columns, classes, columns))
        for a, b in itertools.combinations_with_replacement(range(classes), 2):
            share = weight * p[:, a] * ((a == b) - p[:, b]) / normaliser
            hessian[a, :, b] = hessian[b, :, a] = (x * share[:, None]).T @ x
        flat = hessian.reshape(classes * columns, -1)
        flat[np.diag_indices(len(flat))] += l2
        step = scipy.linalg.solve(flat, slope.T.reshape(-1), assume_a="pos").reshape(classes, columns).T
        scale = 1.0
        while (there := objective(w - scale * step)) > value + 1e-12 and scale > 1e-6:
            scale /= 2
        w, value = w - scale * step, there
        if np.abs(step).max() < 1e-9:
            return w
    raise RuntimeError("softmax regression did not converge")


def dense(w: np.ndarray) -> Params:
    """Weights with a row of biases, as flax names them."""
    return {"Dense_0/kernel": w[:-1], "Dense_0/bias": w[-1]}


class Network:
    """A tanh MLP with softmax cross-entropy, its gradient by hand, float64; trained by L-BFGS from fixed weights."""

    def __init__(self, sizes: list[int], l2: float, seed: int = 0) -> None:
        rng, self.l2, self.shapes = np.random.default_rng(seed), l2, []
        parts = []
        for fan_in, fan_out in itertools.pairwise(sizes):
            self.shapes += [(fan_in, fan_out), (fan_out,)]
            parts += [rng.normal(size=fan_in * fan_out) / np.sqrt(fan_in), np.zeros(fan_out)]
        self.start = np.concatenate(parts)

    def split(self, w: np.ndarray) -> list[np.ndarray]:
        """Kernels and biases in turn."""
        ends = np.cumsum([np.prod(shape) for shape in self.shapes])[:-1]
        return [part.reshape(shape) for part, shape in zip(np.split(w, ends), self.shapes, strict=True)]

    def params(self, w: np.ndarray) -> Params:
        """As flax names them."""
        names = [f"Dense_{i // 2}/{'bias' if i % 2 else 'kernel'}" for i in range(len(self.shapes))]
        return dict(zip(names, self.split(w), strict=True))

    def outputs(self, w: np.ndarray, x: np.ndarray) -> np.ndarray:
        """z [N, C]."""
        return self._forward(w, x)[-1]

    def fit(self, x: np.ndarray, t: np.ndarray, start: np.ndarray | None = None) -> tuple[np.ndarray, float]:
        """The weights of a minimum, and the norm of the gradient there."""
        found = scipy.optimize.minimize(
            self._value, self.start if start is None else start, (x, t), "L-BFGS-B", jac=True,
            options={"maxiter": 20_000, "maxfun": 40_000, "gtol": 1e-6, "ftol": 0, "maxcor": 30},
        )  # fmt: skip
        return found.x, float(np.linalg.norm(found.jac))

    def _forward(self, w: np.ndarray, x: np.ndarray) -> list[np.ndarray]:
        parts, layers = self.split(w), [x]
        for index in range(0, len(parts), 2):
            z = layers[-1] @ parts[index] + parts[index + 1]
            layers.append(z if index + 2 == len(parts) else np.tanh(z))
        return layers

    def _value(self, w: np.ndarray, x: np.ndarray, t: np.ndarray) -> tuple[float, np.ndarray]:
        parts, layers, rows = self.split(w), self._forward(w, x), np.arange(len(x))
        log_p = scipy.special.log_softmax(layers[-1], axis=1)
        back, slopes = np.exp(log_p), []
        back[rows, t] -= 1
        back /= len(x)
        for index in range(len(parts) - 2, -1, -2):
            below = layers[index // 2]
            slopes += [back.sum(axis=0), (below.T @ back).reshape(-1)]
            back = (back @ parts[index].T) * (1 - below**2) if index else back
        value = -log_p[rows, t].mean() + self.l2 / 2 * w @ w
        return value, np.concatenate(slopes[::-1]) + self.l2 * w


def losses(z: np.ndarray, t: np.ndarray) -> np.ndarray:
    """Softmax cross-entropy of each row."""
    return -scipy.special.log_softmax(z, axis=1)[np.arange(len(t)), t]


def margins(z: np.ndarray, t: np.ndarray) -> np.ndarray:
    """Log-odds of each row's class."""
    rows, others = np.arange(len(t)), z.copy()
    others[rows, t] = -np.inf
    return z[rows, t] - scipy.special.logsumexp(others, axis=1)
