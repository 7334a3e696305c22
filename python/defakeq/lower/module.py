"""A converted model that runs programs."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from defakeq.interface import Interface, Surroundings
from defakeq.lower.call import Call, plain_arguments, plain_results
from defakeq.lower.capture import Node
from defakeq.lower.check import NodeCheck, check
from defakeq.lower.structure import Structure, called_with
from defakeq_kernels import dfq, runtime
from defakeq_kernels.ops import run_program


@dataclass(frozen=True)
class Fallback:
    """A node of the model that stays torch's: its name, its operator, and why."""

    name: str
    target: str
    reason: str


class ProgramStage:
    """A program between torch stages; names are those of the graph's nodes.

    Attributes:
        data: uint8 [bytes], the content of a ``.dfq`` file.
        network: its network.
        inputs, outputs: names, in the order of the program's ports.
        shapes: of the outputs in the graph, for one image; empty where the port's is to be kept.
        input_ports, output_ports: the shapes of the ports.
    """

    def __init__(
        self,
        tensors: Mapping[str, NDArray[Any]],
        network: dfq.Network,
        inputs: Sequence[str],
        outputs: Sequence[str],
        shapes: Sequence[tuple[int, ...]],
    ) -> None:
        self.data = torch.frombuffer(bytearray(dfq.dumps(tensors, network)), dtype=torch.uint8)
        self.network = network
        self.inputs = list(inputs)
        self.outputs = list(outputs)
        self.shapes = list(shapes)
        self.input_ports = _ports(network, "inputs")
        self.output_ports = _ports(network, "outputs")

    @property
    def tensors(self) -> dfq.Tensors:
        """The tensors of the file, read again from `data`."""
        return dfq.loads(self.data.numpy().tobytes())[0]


def _ports(network: dfq.Network, side: str) -> list[tuple[int, ...]]:
    program = network["program"]
    shapes = []
    for port in program[side]:
        shape = tuple(program["values"][port["value"]]["shape"])
        if port["layout"] == "nchw":
            shape = (shape[2], shape[0], shape[1])
        shapes.append(shape)
    return shapes


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
            function: Any = node.target
            held[node.name] = function(*args, **kwargs)


Stage = ProgramStage | TorchStage


def check_whole(fallbacks: Sequence[Fallback]) -> None:
    """Whether a model can be a file.

    Raises:
        ValueError: a part of it runs in torch; the message names the first.
    """
    if fallbacks:
        first = fallbacks[0]
        raise ValueError(
            f"node {first.name!r} ({first.target}): {first.reason}; accepted in a file is a "
            f"model without fallbacks, explain() lists all {len(fallbacks)}"
        )


class ProgramModule(nn.Module):
    """Runs a lowered model; what `convert(..., backend="program")` and `load` return.

    It takes and returns float32 tensors, in main memory or, after ``to("cuda")``, on that device,
    has no parameters and no gradient. Its buffers ``program0``, ``program1``, ... hold the content
    of ``.dfq`` files, so that it can be exported and compiled; each program is one call of
    ``torch.ops.defakeq.run_program``. It has the attribute ``input_size`` and the methods
    ``preprocess`` and ``score`` that the model has.

    Args:
        stages: in order of execution; a single program for a model without fallbacks.
        inputs, outputs: names of the values that the caller gives and gets.
        takes: how {"arguments": tuple, "keywords": dict} hold the inputs; None: each input is a
            positional argument.
        returns: how the result holds the outputs; None: as a tensor, or as a tuple of several.
        fallbacks: what torch runs, and why.
        threads: of the programs, 1 to 1024; None: torch's.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        inputs: Sequence[str],
        outputs: Sequence[str],
        takes: Structure | None = None,
        returns: Structure | None = None,
        fallbacks: Sequence[Fallback] = (),
        threads: int | None = None,
    ) -> None:
        super().__init__()
        self.stages = list(stages)
        self.input_names = list(inputs)
        self.output_names = list(outputs)
        self.takes = takes or plain_arguments(len(self.input_names))
        self.returns = returns or plain_results(len(self.output_names))
        self.fallbacks = list(fallbacks)
        self.threads = threads
        self.device = torch.device("cpu")
        self.surroundings: Surroundings | None = None
        for number, stage in enumerate(self.stages):
            if isinstance(stage, ProgramStage):
                self.register_buffer(f"program{number}", stage.data)
        self.eval()

    @staticmethod
    def of_file(tensors: dfq.Tensors, network: dfq.Network) -> ProgramModule:
        """The module of a file's content.

        Raises:
            ValueError: a description of the call or of the detector around it that is wrong.
        """
        program = network["program"]
        inputs = [port["name"] for port in program["inputs"]]
        outputs = [port["name"] for port in program["outputs"]]
        stage = ProgramStage(tensors, network, inputs, outputs, [() for _ in outputs])
        call = Call.of_network(network, inputs, outputs)
        module = ProgramModule([stage], call.inputs, call.outputs, call.takes, call.returns)
        if "interface" in network:
            module.surroundings = Surroundings(Interface.of(network["interface"]))
        return module

    def __getattr__(self, name: str) -> Any:
        """``input_size``, ``preprocess`` and ``score`` of the detector, where it has them."""
        if name in Surroundings.NAMES:
            around = self.__dict__.get("surroundings")
            if around is not None:
                return around.get(name, self)
        return super().__getattr__(name)

    def file(self) -> tuple[dfq.Tensors, dfq.Network]:
        """The tensors and network of a ``.dfq`` file that needs no torch.

        Raises:
            ValueError: a part of the model runs in torch; the message names the first.
        """
        check_whole(self.fallbacks)
        if not self.stages:
            raise ValueError("model: found nothing to compute; accepted is a model that does")
        (stage,) = self.stages
        assert isinstance(stage, ProgramStage)
        added = Call(self.input_names, self.output_names, self.takes, self.returns).describe(
            stage.inputs, stage.outputs
        )
        around = self.surroundings
        if around is not None and around.interface is not None:
            added["interface"] = around.interface.describe()
        return stage.tensors, {**stage.network, **added}

    def explain(self) -> dict[str, Any]:
        """What runs how.

        Returns:
            ``nodes``: of all programs in order, each with its name, op, kernel, output shape,
            multiply-adds done and skipped, bytes of weights; ``fallbacks``: name, target and
            reason of each node that torch runs; ``stages``: "program" or "torch" in order.
        """
        nodes = []
        for stage in self.stages:
            if isinstance(stage, ProgramStage):
                nodes.extend(runtime.loads(stage.data.numpy()).nodes)
        return {
            "nodes": nodes,
            "fallbacks": [vars(fallback) for fallback in self.fallbacks],
            "stages": [
                "program" if isinstance(stage, ProgramStage) else "torch" for stage in self.stages
            ],
        }

    def check(self, *inputs: Any, **named: Any) -> list[NodeCheck]:
        """Compares every program node with exact arithmetic on its operands, for one image.

        Torch stages run on what the programs before them returned, so a wrong node spoils no
        other's comparison.

        Args:
            inputs, named: as for a call, with a batch of one.

        Returns:
            one `defakeq.lower.check.NodeCheck` for each input and node of the programs.

        Raises:
            ValueError: a batch that is not one.
        """
        held = dict(zip(self.input_names, self._given(inputs, named), strict=True))
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
                images = [x[0] for x in _arranged(stage, given, 1, torch.device("cpu"))]
                found += check(stage.tensors, stage.network, images, self._run_once)
                results = self._run(number, stage, given, 1)
                held.update(_shaped(stage, results))
        return found

    def _run_once(
        self, tensors: dfq.Tensors, network: dfq.Network, arrays: Sequence[NDArray[np.float32]]
    ) -> list[NDArray[np.float32]]:
        results = runtime.loads(dfq.dumps(tensors, network), self.threads)(*arrays)
        return results if isinstance(results, list) else [results]

    def extra_repr(self) -> str:
        """How many nodes and fallbacks there are."""
        count = sum(
            len(s.network["program"]["nodes"]) for s in self.stages if isinstance(s, ProgramStage)
        )
        return f"nodes={count}, fallbacks={len(self.fallbacks)}"

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """Runs a batch.

        Args:
            inputs, named: one tensor for each input of the model, in order or by name; or arguments
                nested as those that the model was converted with.

        Returns:
            float32 tensors, nested as the model returns them.

        Raises:
            ValueError: a wrong number of tensors, another nesting, or inputs of unequal batches.
            RuntimeError: an input that requires grad while grad mode is on.
        """
        given = self._given(inputs, named)
        if len(self.stages) == 1 and isinstance(self.stages[0], ProgramStage):
            results = self._whole(self.stages[0], given)
        else:
            with torch.no_grad():
                results = self._by_image(given)
        return self.returns.build(results)

    def _given(self, inputs: Sequence[Any], named: Mapping[str, Any]) -> list[Tensor]:
        if all(isinstance(x, Tensor) for x in (*inputs, *named.values())):
            missing = self.input_names[len(inputs) :]
            given = [*inputs, *(named[name] for name in missing if name in named)]
            if len(given) != len(self.input_names) or len(named) != len(given) - len(inputs):
                raise ValueError(
                    f"inputs: found {len(inputs)} and {sorted(named)}; accepted is "
                    f"{len(self.input_names)}: {', '.join(self.input_names)}"
                )
        else:
            given = self.takes.tensors(called_with(inputs, named), "inputs")
        for name, x in zip(self.input_names, given, strict=True):
            if x.requires_grad and torch.is_grad_enabled():
                raise RuntimeError(
                    f"{name}: found a tensor that requires grad; accepted is one that does not, "
                    "since programs have no gradient: call under torch.no_grad(), or detach() it"
                )
            if x.dim() == 0 or x.shape[0] != given[0].shape[0]:
                raise ValueError(
                    f"{name}: found shape {list(x.shape)}; accepted is one entry for each image "
                    "of the first input"
                )
        return given

    def _whole(self, stage: ProgramStage, given: Sequence[Tensor]) -> list[Tensor]:
        order = [self.input_names.index(name) for name in stage.inputs]
        results = self._run(0, stage, [given[i] for i in order], given[0].shape[0])
        held = dict(zip(self.input_names, given, strict=True))  # some models return an input
        for name, shape, y in zip(stage.outputs, stage.shapes, results, strict=True):
            held[name] = y.reshape(y.shape[0], *shape[1:]) if shape else y
        return [held[name] for name in self.output_names]

    def _by_image(self, given: Sequence[Tensor]) -> list[Tensor]:
        images = []
        batch = given[0].shape[0]
        if batch == 0:  # the shapes come from one image
            given = [x.new_zeros((1, *x.shape[1:])) for x in given]
        for i in range(given[0].shape[0]):
            held = {n: x[i : i + 1] for n, x in zip(self.input_names, given, strict=True)}
            for number, stage in enumerate(self.stages):
                if isinstance(stage, TorchStage):
                    stage.run(held)
                    continue
                results = self._run(number, stage, [held[name] for name in stage.inputs], 1)
                held.update(_shaped(stage, results))
            images.append([held[name] for name in self.output_names])
        return [torch.cat(parts)[:batch] for parts in zip(*images, strict=True)]

    def _run(
        self, number: int, stage: ProgramStage, given: Sequence[Tensor], batch: int
    ) -> list[Tensor]:
        data = self.get_buffer(f"program{number}")
        inputs = _arranged(stage, given, batch, self.device)
        return run_program(data, inputs, stage.output_ports, self.threads or 0)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> ProgramModule:
        # Programs are bytes in main memory, whatever the model around them is cast to; where it is
        # moved to, they are packed for at the first call.
        target = fn(torch.empty(0)).device
        if target.type in ("cpu", "cuda"):
            self.device = target
            for stage in self.stages:
                if isinstance(stage, TorchStage):
                    stage.constants = {n: c.to(target) for n, c in stage.constants.items()}
        return self

    def __deepcopy__(self, memo: Mapping[int, Any]) -> ProgramModule:
        made = ProgramModule(
            [copy.copy(stage) for stage in self.stages],
            self.input_names,
            self.output_names,
            self.takes,
            self.returns,
            self.fallbacks,
            self.threads,
        )
        made.device = self.device
        made.surroundings = self.surroundings
        return made


def _shaped(stage: ProgramStage, results: Sequence[Tensor]) -> dict[str, Tensor]:
    """The results of one image by name, in the graph's shapes."""
    return {
        name: y.reshape(shape) if shape else y
        for name, shape, y in zip(stage.outputs, stage.shapes, results, strict=True)
    }


def _arranged(
    stage: ProgramStage, given: Sequence[Tensor], batch: int, device: torch.device
) -> list[Tensor]:
    """Float32 inputs without gradient, of the ports' ranks where they hold as many values."""
    arranged = []
    for x, port in zip(given, stage.input_ports, strict=True):
        x = x.detach() if x.requires_grad else x
        x = x.to(device, torch.float32)
        if x.dim() != len(port) + 1 and x.numel() == batch * math.prod(port):
            x = x.reshape(batch, *port)
        arranged.append(x)
    return arranged
