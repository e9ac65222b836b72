"""Trees of per-row tensors: None, a tensor, or a tuple of trees. The one place that knows how to walk them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Tree = Any  # None | Tensor | tuple[Tree, ...]


def map(f: Callable[[Tensor], Tensor], tree: Tree) -> Tree:
    """Apply f to every tensor. A leaf that is no tensor would be lost in a selection, so it is an error."""
    if tree is None or isinstance(tree, Tensor):
        return None if tree is None else f(tree)
    if type(tree) is tuple:
        return tuple(map(f, leaf) for leaf in tree)
    raise TypeError(f"per-particle state is None, tensors and tuples of these, not {type(tree).__name__}")


def take(tree: Tree, index: Tensor | slice) -> Tree:
    """Rows `index` of every tensor; a slice gives views."""
    return map(lambda v: v[index], tree)


def cat(trees: Sequence[Tree]) -> Tree:
    """Join trees of the same form along the rows."""
    first = trees[0]
    if len(trees) == 1 or first is None:
        return first
    if isinstance(first, Tensor):
        return torch.cat(list(trees))
    return tuple(cat(leaves) for leaves in zip(*trees, strict=True))


def flatten(tree: Tree, name: str, into: dict[str, Tensor]) -> Any:
    """Put every tensor into a flat dictionary; returns the JSON skeleton from which `unflatten` rebuilds."""
    if tree is None:
        return None
    if isinstance(tree, Tensor):
        into[name] = tree
        return name
    return [flatten(leaf, f"{name}.{i}", into) for i, leaf in enumerate(tree)]


def unflatten(skeleton: Any, tensors: dict[str, Tensor]) -> Tree:
    """The inverse of `flatten`."""
    if skeleton is None:
        return None
    if isinstance(skeleton, str):
        return tensors[skeleton]
    return tuple(unflatten(leaf, tensors) for leaf in skeleton)
