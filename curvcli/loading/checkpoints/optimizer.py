"""The state of an Optax Adam in a checkpoint, and its preconditioner.

Adam's step is w ← w − η P⁻¹ m with the running mean m of the gradients and

    P = (1 − β₁ᵗ) · (√(ν / (1 − β₂ᵗ)) + ε),

the bias corrections of both means included, as in Cohen et al.; the first factor is 1 after some dozens of steps. With
P held fixed this is gradient descent with momentum in the coordinates √P w, so that on a quadratic it is stable while
the *preconditioned sharpness* λ_max(P⁻¹H) = λ_max(P^-½ H P^-½) is below

    (2 + 2 β₁) / ((1 − β₁) η),   that is 38/η at β₁ = 0.9,

around which full-batch training with Adam is seen to hover.

Optax stores mu, nu and count, but neither β₁, β₂, ε nor the learning rate, unless `optax.inject_hyperparams` is used.
The states of `adam`, `adamw` (whose weight decay is not part of H or P), `nadam`, `radam`, `yogi`, `adabelief` and
`adamax` have the same three names, and cannot be distinguished in a file. The formulas here hold for Adam's rule, with
or without decoupled weight decay. `amsgrad` is recognised by its nu_max.

A parameter whose gradient in training is zero up to rounding, such as a bias before BatchNorm, has a ν without meaning:
P there is ε, although the loss has curvature along it in evaluation mode, where statistics are fixed. Such entries are
recognised by their size: √ν̂ at most `UNSEEN` rounding units of the root mean square of √ν̂ over all parameters.

*Source*: J. M. Cohen et al., Adaptive gradient methods at the edge of stability, arXiv:2207.14484 (2022).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Literal

import numpy as np

from curvcli.errors import DataError, NumericsError
from curvcli.loading.checkpoints.files import Tree
from curvcli.loading.checkpoints.reading import check_finite, leaves, locate, params_location, read_selected
from curvcli.loading.resolve import Loaded

Keys = tuple[str, ...]
Arrays = dict[str, np.ndarray]

B1, B2, EPS = 0.9, 0.999, 1e-8
"""The default constants of Optax."""

UNSEEN = 100
"""Threshold in units of eps. Biases before BatchNorm were measured at 2 to 9 in float32 (batches of 32 to 2,048)."""


@dataclass(frozen=True)
class AdamState:
    """The state of Adam in a checkpoint, for the requested parameters.

    Parameters
    ----------
    mu, nu
        Running means of the gradient and of its square by parameter path, in the parameters' shapes, without bias
        correction.
    nu_max
        The largest corrected nu so far, which replaces nu in AMSGrad. None for the other rules.
    count
        Number of steps taken.
    hyperparams
        Values stored by `optax.inject_hyperparams`: learning_rate, b1, b2, eps, eps_root, … at the last step.
    place
        Path of the state in the checkpoint.
    scale
        Root mean square of √nu, or √nu_max, over all parameters of the states, requested or not.
    """

    mu: Arrays
    nu: Arrays
    nu_max: Arrays | None
    count: int
    hyperparams: dict[str, float]
    place: str
    scale: float

    @property
    def variant(self) -> Literal["adam", "amsgrad"]:
        """The update rule, as far as the names of the state determine it."""
        return "adam" if self.nu_max is None else "amsgrad"


def read_adam(
    source: Path,
    shapes: Mapping[str, tuple[int, ...]],
    *,
    beside: Iterable[str] = (),
    step: int | None = None,
    params: str | None = None,
) -> AdamState:
    """Find the Adam state that belongs to these parameters, wherever it lies in a checkpoint.

    A state is any place with `mu`, `nu` and `count` side by side: in a chain, under a mask, in `inject_hyperparams`,
    `MultiSteps`, a `TrainState` or an `nnx.Optimizer`. States of several groups of parameters (`multi_transform`) are
    joined. Where two states have the same parameters, the one closer to the differentiated parameters is taken. Other
    arrays of Orbax, safetensors and .npz checkpoints are not read.

    Parameters
    ----------
    source, step, params
        See `load_checkpoint`.
    shapes
        The parameters by path, as in `Problem.params`, and their shapes.
    beside
        Paths of the network's other parameters, which count for `scale` alone.

    Raises
    ------
    DataError
        There is no Adam state, or none or several equally close ones for some parameter; shapes differ; groups have
        taken different numbers of steps; the state is not finite.
    CurvError
        See `load_checkpoint`.
    """
    weights, kind, _ = locate(source, step)
    base: Keys = ()
    places: list[Keys] = []

    def select(tree: Tree) -> Tree:
        nonlocal base
        base = params_location(tree, params)
        states = list(_states(tree))
        places.extend(keys for keys, _ in states)
        return {str(number): state for number, (_, state) in enumerate(states)}

    arrays = read_selected(weights, kind, select)
    every = {*shapes, *beside}
    states = [_state(keys, arrays.get(str(number), {}), every, base) for number, keys in enumerate(places)]
    if not states:
        raise DataError(
            f"{weights}: there is no Optax Adam state in it (count, mu and nu side by side)",
            "save opt_state with the parameters, as a TrainState does; of a manager give the step, not one item of it",
        )
    owner = {path: _owner(path, states, base, weights) for path in shapes}
    owners = [state for state in states if any(state is holder for holder in owner.values())]
    place = _listed(owners)
    counts = {_steps(state, weights) for state in owners}
    if len(counts) > 1:
        raise DataError(
            f"{weights}: the Adam states at {place} have taken different numbers of steps",
            "restrict the parameters to those that one of them trains: --params",
        )
    names = ["mu", "nu", *(["nu_max"] if any(state.means["nu_max"] for state in owners) else [])]
    means = {
        name: {path: _mean(state, name, path, shapes[path], weights) for path, state in owner.items()} for name in names
    }
    first, *groups = [state.hyperparams for state in owners]
    agreed = {name: value for name, value in first.items() if all(group.get(name) == value for group in groups)}
    return AdamState(
        means["mu"], means["nu"], means.get("nu_max"), counts.pop(), agreed, place, _scale(owners, names[-1])
    )


def _scale(states: list[_State], name: str) -> float:
    """Return the root mean square of √ν over all entries of the states."""
    entries = [np.asarray(one, np.float64).ravel() for state in states for one in state.means[name].values()]
    return float(np.sqrt(np.mean(np.concatenate(entries)))) if entries else 0.0


def unseen(state: AdamState) -> dict[str, np.ndarray]:
    """Return a mask of entries without a gradient beyond rounding in training, in each parameter's shape.

    See the module's docstring. The rounding is that of float32, or of float64 where the state is stored in it.
    Gradients in bfloat16 are accumulated in float32 states, and their rounding is not distinguished from a small
    gradient.
    """
    second = state.nu if state.nu_max is None else state.nu_max

    def threshold(nu: np.ndarray) -> float:
        eps = float(np.finfo(np.float64 if nu.dtype == np.float64 else np.float32).eps)
        return (UNSEEN * eps * state.scale) ** 2

    return {path: np.asarray(nu, np.float64) <= threshold(nu) for path, nu in second.items()}


def preconditioner(state: AdamState) -> dict[str, np.ndarray]:
    """Return the diagonal P of Adam's step w ← w − η P⁻¹ m; see the module's docstring.

    Parameters
    ----------
    state
        The state from `read_adam`. Constants missing in its `hyperparams` have Optax's defaults: 0.9, 0.999 and 1e-8.

    Returns
    -------
    dict
        P by parameter path, in the parameter's shape, float64, positive.

    Raises
    ------
    NumericsError
        An entry is zero: ε is 0 and a parameter has never had a gradient.
    """
    stored = state.hyperparams
    b1, b2, eps = stored.get("b1", B1), stored.get("b2", B2), stored.get("eps", EPS)
    # AMSGrad keeps the largest of the corrected means.
    second, correction = (state.nu, 1 - b2**state.count) if state.nu_max is None else (state.nu_max, 1.0)
    root = stored.get("eps_root", 0.0)
    diagonal = {
        path: (1 - b1**state.count) * (np.sqrt(nu.astype(np.float64) / correction + root) + eps)
        for path, nu in second.items()
    }
    for path, entries in diagonal.items():
        if not np.all(entries > 0):
            raise NumericsError(
                f"Adam's preconditioner is zero in {path!r}, which has had no gradient", "give an eps greater than 0"
            )
    return diagonal


def adam_of(
    loaded: Loaded, constants: Mapping[str, float | None]
) -> tuple[Arrays, int, float | None, float, Arrays] | None:
    """Return Adam's preconditioner at a problem's checkpoint, the number of steps, the learning rate or None, β₁, and
    the entries of `unseen`.

    The result is None before the first step, when there is no preconditioner.

    Parameters
    ----------
    constants
        Constants by Optax's names (`b1`, `b2`, `eps`, `learning_rate`), which override stored ones; None: not given.
    """
    source, params = loaded.checkpoint, loaded.problem.params
    shapes = {name: tuple(leaf.shape) for name, leaf in params.items()}
    state = read_adam(
        Path(source.path), shapes, beside=loaded.problem.frozen["params"], step=source.step,
        params=loaded.spec.checkpoint.params,
    )  # fmt: skip
    hyperparams = {**state.hyperparams, **{name: value for name, value in constants.items() if value is not None}}
    if not state.count:
        return None
    diagonal = preconditioner(replace(state, hyperparams=hyperparams))
    return diagonal, state.count, hyperparams.get("learning_rate"), hyperparams.get("b1", B1), unseen(state)


@dataclass(frozen=True, eq=False)
class _State:
    """An Adam state of a checkpoint, with all its parameters."""

    place: Keys
    means: dict[str, Arrays]  # mu, nu and nu_max by parameter path
    count: np.ndarray
    hyperparams: dict[str, float]


def _states(node: Tree, keys: Keys = (), hyperparams: Tree | None = None) -> Iterator[tuple[Keys, Tree]]:
    """Iterate over the Adam states in a tree of names, with the hyperparameters stored closest above each."""
    if isinstance(node.get("hyperparams"), dict):
        hyperparams = node["hyperparams"]
    if "count" in node and isinstance(node.get("mu"), dict) and isinstance(node.get("nu"), dict):
        state = {name: node[name] for name in ("count", "mu", "nu", "nu_max") if name in node}
        yield keys, state | ({"hyperparams": hyperparams} if hyperparams else {})
        return
    for key, value in node.items():
        if isinstance(value, dict):
            yield from _states(value, (*keys, key), hyperparams)


def _state(place: Keys, arrays: Tree, shapes: Collection[str], base: Keys) -> _State:
    """Build a state from its arrays."""
    single = {keys[0]: value for keys, value in leaves(arrays.get("hyperparams", {})) if value.size == 1}
    count = arrays.get("count", np.zeros(()))
    return _State(
        place,
        {name: _matched(arrays.get(name, {}), shapes, base) for name in ("mu", "nu", "nu_max")},
        np.asarray(count["value"] if isinstance(count, dict) else count),
        {name: float(value.reshape(())) for name, value in single.items()},
    )


def _matched(tree: Tree, shapes: Collection[str], base: Keys) -> Arrays:
    """Return the arrays of a mean by parameter path, without a common prefix (`params/`) and the `value` of nnx."""
    by_prefix: dict[Keys, Arrays] = defaultdict(dict)
    for keys, array in leaves(tree):
        for end in (len(keys), len(keys) - 1) if keys[-1] == "value" else (len(keys),):
            for start in range(end):
                path = "/".join(keys[start:end])
                if path in shapes:
                    by_prefix[keys[:start]][path] = array

    def rank(prefix: Keys) -> tuple[int, bool, int]:
        return len(by_prefix[prefix]), base[len(base) - len(prefix) :] == prefix, -len(prefix)

    return by_prefix[max(by_prefix, key=rank)] if by_prefix else {}


def _owner(path: str, states: list[_State], base: Keys, weights: Path) -> _State:
    """Return the state that has a parameter."""

    def shared(state: _State) -> int:
        return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(state.place, base, strict=False)))

    holders = [state for state in states if path in state.means["nu"]]
    best = [state for state in holders if shared(state) == max(map(shared, holders))]
    if not best:
        raise DataError(
            f"{weights}: no Adam state has the parameter {path!r}; there are states at {_listed(states)}",
            "leave out what it does not train: --exclude",
        )
    if len(best) > 1:
        raise DataError(
            f"{weights}: several Adam states have the parameter {path!r}: {_listed(best)}",
            "keep the one that trains these parameters in the checkpoint, beside them",
        )
    return best[0]


def _mean(state: _State, name: str, path: str, shape: tuple[int, ...], weights: Path) -> np.ndarray:
    """Return a parameter's array of a mean, validated."""
    array = state.means[name].get(path)
    where = f"{weights}: {name} of {path!r} in the Adam state at {_listed([state])}"
    if array is None or array.shape != tuple(shape):
        has = "is missing" if array is None else f"is {list(array.shape)}, the parameter {list(shape)}"
        raise DataError(f"{where} {has}", "the state must be that of Adam, of these parameters")
    check_finite({name: {path: array}}, str(weights))
    if name != "mu" and np.any(array < 0):
        raise DataError(f"{where} has negative entries, which no mean of squares has", "check which optimizer it is of")
    return array


def _steps(state: _State, weights: Path) -> int:
    """Return the number of steps taken."""
    where = f"{weights}: the Adam state at {_listed([state])}"
    if state.count.size != 1:
        raise DataError(f"{where} is of several models at once", "save them as one checkpoint each")
    return int(state.count.reshape(()))


def _listed(states: list[_State]) -> str:
    return ", ".join("/".join(state.place) or "the root" for state in states)
