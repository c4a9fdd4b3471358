"""Projects with one thing wrong, and the form of every refusal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

MODELS = """
import os

import flax.linen as nn
import jax
import jax.numpy as jnp
from curvcli.zoo import MLP


class Raises(MLP):
    def __call__(self, x):
        raise ValueError("no such luck")


class Exits(MLP):
    def __call__(self, x):
        raise SystemExit(0)


class Stops(nn.Module):
    features: tuple

    @nn.compact
    def __call__(self, x):
        x = jnp.tanh(nn.Dense(8, name="Dense_0")(x))
        return nn.Dense(3, name="Dense_1")(x) * jax.lax.stop_gradient(1 + jnp.sum(x**2, axis=-1, keepdims=True))


class Tuple(MLP):
    def __call__(self, x):
        return super().__call__(x), x


class Broken(MLP):
    def __call__(self, x):
        return jnp.log(-jnp.abs(super().__call__(x)) - 1)


class Prints(MLP):
    def __call__(self, x):
        print("from Python")
        os.system("echo from a child")
        return super().__call__(x)


class Scalar(MLP):
    def __call__(self, x):
        return jnp.sum(super().__call__(x))


class One(MLP):
    def __call__(self, x):
        return super().__call__(x)[0]


class Integers(MLP):
    def __call__(self, x):
        return jnp.argmax(super().__call__(x), axis=-1)


class Dropout(MLP):
    @nn.compact
    def __call__(self, x):
        x = nn.tanh(nn.Dense(8, name="Dense_0")(nn.Dropout(0.5, deterministic=False)(x)))
        return nn.Dense(3, name="Dense_1")(x)


class Statistics(MLP):
    @nn.compact
    def __call__(self, x):
        x = nn.tanh(nn.Dense(8, name="Dense_0")(nn.BatchNorm(use_running_average=False)(x)))
        return nn.Dense(3, name="Dense_1")(x)


class Text(MLP):
    def __call__(self, x):
        return str(super().__call__(x))


def by_hand(params, x):
    layers = [params["Dense_0"], params["Dense_1"]]
    hidden = jnp.tanh(x @ layers[0]["kernel"] + layers[0]["bias"][None])
    return hidden @ layers[1]["kernel"] + layers[1]["bias"][None]


def backwards_only(params, x):
    tanh = jax.custom_vjp(jnp.tanh)
    tanh.defvjp(lambda x: (jnp.tanh(x), x), lambda x, g: (g * (1 - jnp.tanh(x) ** 2),))
    return tanh(by_hand(params, x))


def no_derivative(params, x):
    return jax.lax.while_loop(lambda z: jnp.sum(z**2) < 10, lambda z: 2 * z, by_hand(params, x))


def not_a_model(x):
    return 3


def no_data():
    raise RuntimeError("the disk is away")


def exits():
    raise SystemExit(0)


def nothing():
    return None


def raises(*_):
    raise ValueError("no such luck")


def scalar(outputs, targets):
    return jnp.mean(outputs)


def flat(outputs, targets):
    return 0 * jnp.sum(outputs, axis=-1)


def not_convex(outputs, targets):
    return jnp.sum(jnp.sin(outputs), axis=-1)


def vector(params, *_):
    return params["Dense_0"]["bias"]


def moves(params, s):
    return jax.tree.map(lambda leaf: leaf + 1, params)
"""


def spec(old: str, new: str) -> Callable[[Any], Any]:
    """A changed curv.toml."""
    return lambda project: project.write("curv.toml", (project.folder / "curv.toml").read_text().replace(old, new))


def both(*changes: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Several changes of a project."""
    return lambda project: [change(project) for change in changes]


def file(name: str, content: str | bytes) -> Callable[[Any], Any]:
    """A file in the project."""
    raw = content.encode() if isinstance(content, str) else content
    return lambda project: (project.folder / name).write_bytes(raw)


def arrays(name: str, **members: Any) -> Callable[[Any], Any]:
    """An .npz in the project."""
    return lambda project: np.savez(project.folder / name, **members)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def refuses(project: Any, curv: Any, code: int, command: Sequence[object], prepare: Any, texts: Sequence[str]) -> None:
    """The command ends with this code, two lines on stderr with these words, nothing on stdout, and no new file."""
    project.write("models.py", MODELS)
    if prepare is not None:
        prepare(project)
    before = sorted(project.folder.rglob("*"))
    answered = curv(*command)
    assert answered.code == code, answered.err
    for text in texts:
        assert text in answered.error
    assert "Traceback" not in answered.err
    assert "bug of curv" not in answered.err
    assert [path for path in sorted(project.folder.rglob("*")) if "__pycache__" not in path.parts] == before
