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
from defakeq.lower.check import NodeCheck, check
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

    def check(self, *inputs: Tensor) -> list[NodeCheck]:
        """Compares every program node with exact arithmetic on its operands, for one image.

        Torch stages run on what the programs before them returned, so a wrong node spoils no
        other's comparison.

        Args:
            inputs: as for a call, with a batch of one.

        Returns:
            one `defakeq.lower.check.NodeCheck` for each input and node of the programs.

        Raises:
            ValueError: a batch that is not one.
        """
        held = dict(zip(self.input_names, self._given(inputs, {}), strict=True))
        for name, x in held.items():
            if x.shape[0] != 1:
                raise ValueError(f"input {name!r}: found a batch of {x.shape[0]}; accepted is 1")
        found = []
        with torch.no_grad():
            for number, stage in enumerate(self.stages):
                if isinstance(stage, TorchStage):
                    stage.run(held)
                    continue
                given = [held[name] for name in stage.inputs]
                arrays = self._arrays(number, stage, given)
                images = [torch.from_numpy(array[0]) for array in arrays]
                found += check(stage.tensors, stage.network, images, self._run_once)
                results = self._run(number, stage, given)
                held.update(_shaped(stage, results))
        return found

    def _run_once(
        self, tensors: dfq.Tensors, network: dfq.Network, arrays: Sequence[NDArray[np.float32]]
    ) -> list[NDArray[np.float32]]:
        results = _loaded(tensors, network, self.threads)(*arrays)
        return results if isinstance(results, list) else [results]

    def extra_repr(self) -> str:
        """How many nodes and fallbacks there are."""
        count = sum(
            len(s.network["program"]["nodes"]) for s in self.stages if isinstance(s, ProgramStage)
        )
        return f"nodes={count}, fallbacks={len(self.fallbacks)}"

    def forward(self, *inputs: Tensor, **named: Tensor) -> Any:
        """Runs a batch: one tensor for each input of the model, in order or by name."""
        given = self._given(inputs, named)
        with torch.no_grad():
            if len(self.stages) == 1 and isinstance(self.stages[0], ProgramStage):
                results = self._whole(self.stages[0], given)
            else:
                results = self._by_image(given)
        return results[0] if self.single else tuple(results)

    def _given(self, inputs: Sequence[Tensor], named: Mapping[str, Tensor]) -> list[Tensor]:
        missing = self.input_names[len(inputs) :]
        given = [*inputs, *(named[name] for name in missing if name in named)]
        if len(given) != len(self.input_names) or len(named) != len(given) - len(inputs):
            raise ValueError(
                f"inputs: found {len(inputs)} and {sorted(named)}; accepted is "
                f"{len(self.input_names)}: {', '.join(self.input_names)}"
            )
        return given

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
                held.update(_shaped(stage, results))
            images.append([held[name] for name in self.output_names])
        return [torch.cat(parts) for parts in zip(*images, strict=True)]

    def _run(self, number: int, stage: ProgramStage, given: Sequence[Tensor]) -> list[Tensor]:
        results = self._program(number, stage)(*self._arrays(number, stage, given))
        results = results if isinstance(results, list) else [results]
        return [torch.from_numpy(np.asarray(y)) for y in results]

    def _arrays(
        self, number: int, stage: ProgramStage, given: Sequence[Tensor]
    ) -> list[NDArray[np.float32]]:
        program = self._program(number, stage)
        arrays = []
        for x, port in zip(given, program.inputs, strict=True):
            shape = tuple(port["shape"])
            array = x.detach().float().cpu()
            if array.numel() and len(shape) != array.dim() - 1:
                array = array.reshape(-1, *shape)
            arrays.append(array.contiguous().numpy())
        return arrays

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


def _shaped(stage: ProgramStage, results: Sequence[Tensor]) -> dict[str, Tensor]:
    """The results of one image by name, in the graph's shapes."""
    return {
        name: y.reshape(shape) if shape else y
        for name, shape, y in zip(stage.outputs, stage.shapes, results, strict=True)
    }


def _loaded(
    tensors: Mapping[str, NDArray[Any]], network: Mapping[str, Any], threads: int | None
) -> Any:
    from defakeq_kernels import runtime

    load: Callable[..., Any] = runtime.load
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"program{os.getpid()}.dfq"
        path.write_bytes(dfq.dumps(tensors, network))
        return load(path, threads)
