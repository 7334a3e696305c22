"""A model replayed as one CUDA graph."""

from __future__ import annotations

import collections
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from defakeq.interface import Surroundings

_WARM_UPS = 3


class GraphedModule(nn.Module):
    """Captures a model's call as a CUDA graph and replays it; captured anew for each new shape.

    Inputs are copied into the memory that the graph reads and results out of the memory it writes,
    so results stay valid. Numbers and other arguments that are no tensors are part of what is
    captured. The model must not change afterwards: `clear` forgets what was captured.

    Args:
        model: on a CUDA device, in evaluation mode.
        keep: how many captures are kept, the least recently used goes first.

    Raises:
        ValueError: `keep` below 1.
    """

    def __init__(self, model: nn.Module, keep: int = 8) -> None:
        super().__init__()
        if keep < 1:
            raise ValueError(f"keep: found {keep}; accepted is 1 or more")
        self.model = model
        self.keep = keep
        self.surroundings: Surroundings | None = None
        self._captured: collections.OrderedDict[Any, _Capture] = collections.OrderedDict()
        self.train(model.training)

    def __getattr__(self, name: str) -> Any:
        if name in Surroundings.NAMES:
            around = self.__dict__.get("surroundings")
            if around is not None:
                return around.get(name, self)
        return super().__getattr__(name)

    def clear(self) -> None:
        """Forgets all captures; call it after changing the model's parameters in place."""
        self._captured.clear()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> GraphedModule:
        self.clear()
        super()._apply(fn, recurse)
        return self

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the model.

        Raises:
            ValueError: a tensor that is not on a CUDA device.
        """
        leaves, structure = pytree.tree_flatten((args, kwargs))
        key = (structure, *(_key(i, leaf) for i, leaf in enumerate(leaves)))
        if key in self._captured:
            self._captured.move_to_end(key)
        else:
            self._captured[key] = _Capture(self.model, leaves, structure)
            while len(self._captured) > self.keep:
                self._captured.popitem(last=False)
        return self._captured[key].replay(leaves)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_captured": collections.OrderedDict()}


def _key(number: int, leaf: Any) -> Any:
    if not isinstance(leaf, Tensor):
        return type(leaf), leaf
    if leaf.device.type != "cuda":
        raise ValueError(f"input {number}: found a tensor on {leaf.device}; accepted is CUDA")
    return leaf.shape, leaf.stride(), leaf.dtype, leaf.device


class _Capture:
    def __init__(self, model: nn.Module, leaves: list[Any], structure: Any) -> None:
        # Made in inference mode, they could not be written outside of it.
        with torch.inference_mode(False):
            self.inputs = [v.detach().clone() if isinstance(v, Tensor) else v for v in leaves]
        args, kwargs = pytree.tree_unflatten(self.inputs, structure)
        self.device = next((v.device for v in self.inputs if isinstance(v, Tensor)), None)
        with torch.cuda.device(self.device), torch.no_grad():
            # Kernels are compiled before the capture, on a stream of its own.
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(_WARM_UPS):
                    model(*args, **kwargs)
            torch.cuda.current_stream().wait_stream(stream)
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self.outputs = model(*args, **kwargs)

    def replay(self, leaves: list[Any]) -> Any:
        # Inputs that require grad must not make the graph's memory part of an autograd graph.
        with torch.cuda.device(self.device), torch.no_grad():
            for own, given in zip(self.inputs, leaves, strict=True):
                if isinstance(own, Tensor):
                    own.copy_(given)
            self.graph.replay()
        return pytree.tree_map_only(Tensor, torch.clone, self.outputs)
