"""A converted model that runs programs."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from defakeq.lower.capture import Node
from defakeq_kernels import dfq


@dataclass(frozen=True)
class Fallback:
    """A node of the model that stays torch's: its name, its operator, and why."""

    name: str
    target: str
    reason: str


@dataclass
class ProgramStage:
    """A program between torch stages; names are those of the graph's nodes."""

    tensors: dfq.Tensors
    network: dfq.Network
    inputs: list[str]
    outputs: list[str]
    shapes: list[tuple[int, ...]]


@dataclass
class TorchStage:
    """Operators of the graph that torch runs, on a batch of one."""

    nodes: list[Node]
    constants: dict[Node, Tensor]
    inputs: list[str] = field(default_factory=list)

    def run(self, held: dict[str, Tensor]) -> None:
        """Adds the results to the values by name."""
        for node in self.nodes:

            def value(used: Node) -> Any:
                return self.constants[used] if used in self.constants else held[used.name]

            args = fx.node.map_arg(node.args, value)
            kwargs = fx.node.map_arg(node.kwargs, value)
            held[node.name] = node.target(*args, **kwargs)  # type: ignore[operator]


Stage = ProgramStage | TorchStage


class ProgramModule(nn.Module):
    """Runs a lowered model; what `convert(..., backend="program")` and `load` return.

    It takes and returns float32 tensors in main memory, has no parameters and no gradient.

    Args:
        stages: in order of execution; a single program for a model without fallbacks.
        inputs, outputs: names of the values that the caller gives and gets.
        single: whether the model returns a tensor and not a tuple.
        fallbacks: what torch runs, and why.
        threads: of the programs; None: `defakeq_kernels.get_num_threads()`.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        inputs: Sequence[str],
        outputs: Sequence[str],
        single: bool = True,
        fallbacks: Sequence[Fallback] = (),
        threads: int | None = None,
    ) -> None:
        super().__init__()
        self.stages = list(stages)
        self.input_names = list(inputs)
        self.output_names = list(outputs)
        self.single = single
        self.fallbacks = list(fallbacks)
        self.threads = threads
        self._programs: dict[int, Any] = {}
        self.eval()

    @staticmethod
    def of_file(tensors: dfq.Tensors, network: dfq.Network) -> ProgramModule:
        """The module of a file's content."""
        program = network["program"]
        inputs = [port["name"] for port in program["inputs"]]
        outputs = [port["name"] for port in program["outputs"]]
        stage = ProgramStage(tensors, network, inputs, outputs, [() for _ in outputs])
        return ProgramModule([stage], inputs, outputs, len(outputs) == 1)

    def file(self) -> tuple[dfq.Tensors, dfq.Network]:
        """The tensors and network of a ``.dfq`` file that needs no torch.

        Raises:
            ValueError: a part of the model runs in torch; the message names the first.
        """
        if self.fallbacks:
            first = self.fallbacks[0]
            raise ValueError(
                f"node {first.name!r} ({first.target}): {first.reason}; accepted in a file is a "
                f"model without fallbacks, explain() lists all {len(self.fallbacks)}"
            )
        (stage,) = self.stages
        assert isinstance(stage, ProgramStage)
        return stage.tensors, stage.network

    def explain(self) -> dict[str, Any]:
        """What runs how.

        Returns:
            ``nodes``: of all programs in order, each with its name, op, kernel, output shape,
            multiply-adds done and skipped, bytes of weights; ``fallbacks``: name, target and
            reason of each node that torch runs; ``stages``: "program" or "torch" in order.
        """
        nodes = []
        for i, stage in enumerate(self.stages):
            if isinstance(stage, ProgramStage):
                nodes.extend(self._program(i, stage).nodes)
        return {
            "nodes": nodes,
            "fallbacks": [vars(fallback) for fallback in self.fallbacks],
            "stages": [
                "program" if isinstance(stage, ProgramStage) else "torch" for stage in self.stages
            ],
        }

    def extra_repr(self) -> str:
        """How many nodes and fallbacks there are."""
        count = sum(
            len(s.network["program"]["nodes"]) for s in self.stages if isinstance(s, ProgramStage)
        )
        return f"nodes={count}, fallbacks={len(self.fallbacks)}"

    def forward(self, *inputs: Tensor, **named: Tensor) -> Any:
        """Runs a batch: one tensor for each input of the model, in order or by name."""
        given = [*inputs, *(named[name] for name in self.input_names[len(inputs) :])]
        if len(given) != len(self.input_names):
            raise ValueError(
                f"inputs: found {len(given)}; accepted is {len(self.input_names)}: "
                f"{', '.join(self.input_names)}"
            )
        with torch.no_grad():
            if len(self.stages) == 1 and isinstance(self.stages[0], ProgramStage):
                results = self._whole(self.stages[0], given)
            else:
                results = self._by_image(given)
        return results[0] if self.single else tuple(results)

    def _whole(self, stage: ProgramStage, given: Sequence[Tensor]) -> list[Tensor]:
        order = [self.input_names.index(name) for name in stage.inputs]
        results = self._run(0, stage, [given[i] for i in order])
        held = {}
        for name, shape, y in zip(stage.outputs, stage.shapes, results, strict=True):
            held[name] = y.reshape(y.shape[0], *shape[1:]) if shape else y
        return [held[name] for name in self.output_names]

    def _by_image(self, given: Sequence[Tensor]) -> list[Tensor]:
        images = []
        for i in range(given[0].shape[0]):
            held = {n: x[i : i + 1] for n, x in zip(self.input_names, given, strict=True)}
            for number, stage in enumerate(self.stages):
                if isinstance(stage, TorchStage):
                    stage.run(held)
                    continue
                results = self._run(number, stage, [held[name] for name in stage.inputs])
                for name, shape, y in zip(stage.outputs, stage.shapes, results, strict=True):
                    held[name] = y.reshape(shape)
            images.append([held[name] for name in self.output_names])
        return [torch.cat(parts) for parts in zip(*images, strict=True)]

    def _run(self, number: int, stage: ProgramStage, given: Sequence[Tensor]) -> list[Tensor]:
        program = self._program(number, stage)
        arrays = []
        for x, port in zip(given, program.inputs, strict=True):
            shape = tuple(port["shape"])
            array = x.detach().float().cpu()
            if array.numel() and len(shape) != array.dim() - 1:
                array = array.reshape(-1, *shape)
            arrays.append(array.contiguous().numpy())
        results = program(*arrays)
        results = results if isinstance(results, list) else [results]
        return [torch.from_numpy(np.asarray(y)) for y in results]

    def _program(self, number: int, stage: ProgramStage) -> Any:
        if number not in self._programs:
            self._programs[number] = _loaded(stage.tensors, stage.network, self.threads)
        return self._programs[number]

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
        state["_programs"] = {}
        return state

    def __deepcopy__(self, memo: Mapping[int, Any]) -> ProgramModule:
        return ProgramModule(
            self.stages,
            self.input_names,
            self.output_names,
            self.single,
            self.fallbacks,
            self.threads,
        )


def _loaded(
    tensors: Mapping[str, NDArray[Any]], network: Mapping[str, Any], threads: int | None
) -> Any:
    from defakeq_kernels import runtime

    load: Callable[..., Any] = runtime.load
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"program{os.getpid()}.dfq"
        path.write_bytes(dfq.dumps(tensors, network))
        return load(path, threads)
