"""Conversion between nested trees and arrays by path, such as `Dense_0/kernel`."""

from __future__ import annotations

from typing import Any


def flatten_tree(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Return the leaves of nested dicts, lists and tuples by slash-separated path, without empty nodes and None."""
    if isinstance(tree, dict):
        items = ((str(key), value) for key, value in tree.items())
    elif isinstance(tree, (list, tuple)):
        items = ((str(index), value) for index, value in enumerate(tree))
    else:
        return {} if tree is None else {prefix: tree}
    flat: dict[str, Any] = {}
    for key, value in items:
        flat.update(flatten_tree(value, f"{prefix}/{key}" if prefix else key))
    return flat


def nest_tree(flat: dict[str, Any]) -> dict[str, Any]:
    """Build nested dicts from leaves by path, with sorted keys, the order in which JAX traverses dicts."""
    tree: dict[str, Any] = {}
    for path in sorted(flat, key=lambda path: path.split("/")):
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = flat[path]
    return tree


def with_lists(tree: Any) -> Any:
    """Convert dicts with the keys 0, 1, …, n − 1 to lists, which they were before they were saved."""
    if not isinstance(tree, dict):
        return tree
    tree = {key: with_lists(value) for key, value in tree.items()}
    if tree and set(tree) == {str(index) for index in range(len(tree))}:
        return [tree[str(index)] for index in range(len(tree))]
    return tree
