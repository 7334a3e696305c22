"""Published checkpoints: reading the file, and loading its entries strictly."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "network", "ema", "module")
_SHOWN = 5


@dataclass(frozen=True)
class LoadReport:
    """What was loaded.

    Attributes:
        path: the file.
        wrapper: the keys under which the file held the entries, outermost first.
        prefix: what all names began with and was taken off: "module." or nothing.
        loaded: names that were loaded.
        unused: names in the file that only training uses.
    """

    path: str
    wrapper: tuple[str, ...]
    prefix: str
    loaded: tuple[str, ...]
    unused: tuple[str, ...]


class WeightsError(ValueError):
    """A checkpoint that does not fit.

    Attributes:
        missing: names that the network has and the file lacks.
        extra: names that the file has and the network lacks.
        misshapen: (name, shape in the file, shape in the network).
    """

    def __init__(
        self,
        path: str,
        missing: Sequence[str],
        extra: Sequence[str],
        misshapen: Sequence[tuple[str, tuple[int, ...], tuple[int, ...]]],
    ) -> None:
        self.missing = tuple(missing)
        self.extra = tuple(extra)
        self.misshapen = tuple(misshapen)
        parts = []
        if missing:
            parts.append(f"missing: {_some(list(missing))}")
        if extra:
            parts.append(f"not in the network: {_some(list(extra))}")
        if misshapen:
            shapes = [f"{n} is {list(a)}, accepted is {list(b)}" for n, a, b in misshapen]
            parts.append(f"of another shape: {_some(shapes)}")
        super().__init__(f"{path}: {'; '.join(parts)}")


def _some(names: list[str]) -> str:
    rest = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def read_state(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], tuple[str, ...], str]:
    """The tensors of a checkpoint by name, without running code that it may hold.

    Args:
        path: a ``.pth`` file by ``torch.save`` or a ``.safetensors`` file. The entries may lie
            under one of `WRAPPERS`, and may all begin with "module.".

    Returns:
        The entries, the wrappers taken off, and the prefix taken off.

    Raises:
        ValueError: not such a file; the message names it.
    """
    shown = os.fspath(path)
    if not Path(path).is_file():
        raise ValueError(f"{shown}: found no file; accepted is a checkpoint")
    try:
        if Path(path).suffix == ".safetensors":
            from safetensors.torch import load_file

            found: Any = load_file(shown)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of many kinds, for a damaged file
        lines = str(error).splitlines()
        reason = lines[0] if lines else type(error).__name__
        raise ValueError(f"{shown}: no checkpoint of tensors only: {reason}") from error
    wrapper: list[str] = []
    while isinstance(found, Mapping):
        inner = next((k for k in WRAPPERS if isinstance(found.get(k), Mapping)), None)
        if inner is None:
            break
        wrapper.append(inner)
        found = found[inner]
    if not isinstance(found, Mapping) or not found:
        raise ValueError(
            f"{shown}: found no state dict but {type(found).__name__}; accepted is tensors by "
            f"name, bare or under one of {', '.join(WRAPPERS)}"
        )
    for name, value in found.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise ValueError(
                f"{shown}: entry {name!r}: found {type(value).__name__}; accepted is a tensor"
            )
    prefix = "module." if all(name.startswith("module.") for name in found) else ""
    return {name[len(prefix) :]: value for name, value in found.items()}, tuple(wrapper), prefix


def load_into(
    model: nn.Module, path: str | os.PathLike[str], unused: Sequence[str] = ()
) -> LoadReport:
    """Load a checkpoint into a network; nothing is changed when it does not fit.

    Args:
        model: the network; its names are those of the file.
        path: the file: see :func:`read_state`. Halves and doubles are converted.
        unused: patterns of names that the file may have beside the network's.

    Returns:
        What was loaded and what was not used.

    Raises:
        WeightsError: missing, extra or misshapen entries. Counters of BatchNorm's batches, which
            old files lack, are never missing.
        ValueError: no such file, or an entry that is not finite.
    """
    shown = os.fspath(path)
    state, wrapper, prefix = read_state(path)
    own = model.state_dict()
    ignored = [n for n in state if n not in own and any(fnmatchcase(n, p) for p in unused)]
    missing = [n for n in own if n not in state and not n.endswith(".num_batches_tracked")]
    extra = sorted(set(state) - set(own) - set(ignored))
    misshapen = [
        (n, tuple(state[n].shape), tuple(own[n].shape))
        for n in own
        if n in state and state[n].shape != own[n].shape
    ]
    if missing or extra or misshapen:
        raise WeightsError(shown, missing, extra, misshapen)
    for name in own:
        if name in state and not bool(torch.isfinite(state[name]).all()):
            raise ValueError(f"{shown}: entry {name!r}: found a value that is not finite")
    with torch.no_grad():
        for name, value in own.items():
            if name in state:
                value.copy_(state[name])
    loaded = tuple(n for n in own if n in state)
    return LoadReport(shown, wrapper, prefix, loaded, tuple(ignored))
