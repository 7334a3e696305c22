"""The nesting of a model's arguments and results, apart from the tensors in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

_CONSTANTS = (type(None), bool, int, float, str)


def called_with(arguments: Sequence[Any], keywords: Mapping[str, Any]) -> dict[str, Any]:
    """The tree of what a model is called with."""
    return {"arguments": tuple(arguments), "keywords": dict(keywords)}


@dataclass(frozen=True)
class Slot:
    """The place of a tensor, by its number."""

    number: int


class Structure:
    """A tree of tuples, lists and mappings with a `Slot` in the place of each tensor.

    Args:
        tree: the tree; what is neither a container nor a `Slot` is a constant.
    """

    def __init__(self, tree: Any) -> None:
        self.tree = tree

    @staticmethod
    def of(what: str, leaves: Sequence[Any], spec: pytree.TreeSpec) -> Structure:
        """That of a flattened tree, whose tensors are the leaves that are slots.

        Raises:
            ValueError: a tensor in a container of another kind; the message calls the tree `what`.
        """
        structure = Structure(pytree.tree_unflatten(list(leaves), spec))
        slots: list[Slot] = []
        _mapped(structure.tree, slots.append)
        if len(slots) != sum(isinstance(leaf, Slot) for leaf in leaves):
            raise ValueError(
                f"model: found {what} in a container of its own; accepted is tensors in tuples, "
                "lists and mappings"
            )
        return structure

    @staticmethod
    def flat(count: int) -> Structure:
        """A tuple of as many tensors."""
        return Structure(tuple(Slot(i) for i in range(count)))

    def build(self, tensors: Sequence[Tensor]) -> Any:
        """The tree with the tensors in their places."""
        return _mapped(self.tree, lambda slot: tensors[slot.number])

    def tensors(self, value: Any, what: str) -> list[Tensor]:
        """The tensors of a tree of the same structure, by number.

        Args:
            value: the tree; mappings may have another order.
            what: its name in messages.

        Raises:
            ValueError: another structure or another constant; the message says where.
        """
        found: dict[int, Tensor] = {}
        _collect(self.tree, value, what, found)
        return [found[number] for number in sorted(found)]

    def describe(self, name: Callable[[int], Any]) -> Any:
        """The tree as JSON types: {"tuple": [...]}, {"list": [...]}, {"dict": {...}},
        {"value": constant}, and `name` of a slot's number in the place of a tensor.

        Named tuples become tuples and other mappings dicts.

        Raises:
            ValueError: a constant or a key that JSON does not have.
        """
        return _described(self.tree, name)

    @staticmethod
    def described(tree: object, slot: Callable[[object], int]) -> Structure:
        """The structure that `describe` described.

        Args:
            tree: the description.
            slot: the number that stands for a tensor's description; it raises a ValueError.

        Raises:
            ValueError: no such description.
        """
        return Structure(_read(tree, slot))


def _mapped(tree: Any, fill: Callable[[Slot], Any]) -> Any:
    if isinstance(tree, Slot):
        return fill(tree)
    if isinstance(tree, Mapping):
        items = {key: _mapped(value, fill) for key, value in tree.items()}
        return items if type(tree) is dict else _as(tree, items)
    if isinstance(tree, (tuple, list)):
        parts = [_mapped(value, fill) for value in tree]
        if type(tree) is list:
            return parts
        return tuple(parts) if type(tree) is tuple else _as(tree, parts)
    return tree


def _as(tree: Any, parts: Any) -> Any:
    """Parts in a container of another type: a named tuple, an ordered mapping."""
    if hasattr(tree, "_fields"):
        return type(tree)(*parts)
    return type(tree)(parts)


def _collect(tree: Any, value: Any, what: str, found: dict[int, Tensor]) -> None:
    if isinstance(tree, Slot):
        if not isinstance(value, Tensor):
            raise ValueError(f"{what}: found {type(value).__name__}; accepted is a tensor")
        found[tree.number] = value
        return
    if isinstance(tree, Mapping):
        keys = list(value) if isinstance(value, Mapping) else type(value).__name__
        if not isinstance(value, Mapping) or set(value) != set(tree):
            raise ValueError(f"{what}: found {keys}; accepted is {list(tree)}, as in the example")
        for key, part in tree.items():
            _collect(part, value[key], f"{what}[{key!r}]", found)
        return
    if isinstance(tree, (tuple, list)):
        if not isinstance(value, (tuple, list)) or len(value) != len(tree):
            count = len(value) if isinstance(value, (tuple, list)) else type(value).__name__
            raise ValueError(f"{what}: found {count}; accepted is {len(tree)}, as in the example")
        for i, part in enumerate(tree):
            _collect(part, value[i], f"{what}[{i}]", found)
        return
    if isinstance(value, Tensor) or not bool(tree == value):
        shown = "a tensor" if isinstance(value, Tensor) else repr(value)
        raise ValueError(f"{what}: found {shown}; accepted is {tree!r}, as in the example")


def _described(tree: Any, name: Callable[[int], Any]) -> Any:
    if isinstance(tree, Slot):
        return name(tree.number)
    if isinstance(tree, Mapping):
        for key in tree:
            if not isinstance(key, str):
                raise ValueError(f"key: found {key!r}; accepted in a file is strings")
        return {"dict": {key: _described(value, name) for key, value in tree.items()}}
    if isinstance(tree, (tuple, list)):
        kind = "list" if isinstance(tree, list) else "tuple"
        return {kind: [_described(value, name) for value in tree]}
    if not isinstance(tree, _CONSTANTS):
        raise ValueError(
            f"found {type(tree).__name__}; accepted in a file is tensors, numbers, texts and None"
        )
    return {"value": tree}


def _read(tree: object, slot: Callable[[object], int]) -> Any:
    if isinstance(tree, Mapping) and len(tree) == 1:
        ((kind, content),) = tree.items()
        if kind == "dict" and isinstance(content, Mapping):
            return {str(key): _read(value, slot) for key, value in content.items()}
        if kind in ("list", "tuple") and isinstance(content, list):
            parts = [_read(value, slot) for value in content]
            return parts if kind == "list" else tuple(parts)
        if kind == "value" and isinstance(content, _CONSTANTS):
            return content
    return Slot(slot(tree))
