"""A model as one flat graph of ATen operators with its constants evaluated."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import re
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export.graph_signature import OutputKind

from defakeq.fold import Inputs, fold_batch_norm
from defakeq.lower.patterns import canonicalize, pool_before_norms
from defakeq.lower.structure import Slot, Structure, called_with
from defakeq.plan import QuantPlan

Node = fx.Node
_TORCH_LOG = logging.getLogger("torch.fx.experimental.symbolic_shapes")


@dataclass
class Captured:
    """What `capture` returns.

    Attributes:
        graph: ATen operators on a batch of one.
        nodes: the operators that depend on an input, in execution order.
        constants: the value of every node that depends on parameters only.
        parameters: the name in the model of each placeholder that holds a parameter or buffer.
        inputs: the placeholders that the caller fills, in order.
        outputs: the nodes that are returned.
        takes: how {"arguments": tuple, "keywords": dict} hold the inputs.
        returns: how the result holds the outputs.
        shapes: the logical shape of every input and operator.
    """

    graph: fx.Graph
    nodes: list[Node]
    constants: dict[Node, Tensor]
    parameters: dict[Node, str]
    inputs: list[Node]
    outputs: list[Node]
    takes: Structure
    returns: Structure
    shapes: dict[Node, tuple[int, ...]] = field(default_factory=dict)

    def run(self, inputs: Iterable[Tensor], visit: Callable[[Node, Any], None]) -> list[Tensor]:
        """Runs the graph, tells `visit` every node's value, and returns the outputs."""
        values: dict[Node, Any] = dict(self.constants)
        values.update(zip(self.inputs, inputs, strict=True))
        for node in self.inputs:
            visit(node, values[node])
        last = {}
        for node in self.nodes:
            for used in node.all_input_nodes:
                last[used] = node
        with torch.no_grad():
            for node in self.nodes:
                args = fx.node.map_arg(node.args, lambda n: values[n])
                kwargs = fx.node.map_arg(node.kwargs, lambda n: values[n])
                function: Any = node.target
                values[node] = function(*args, **kwargs)
                visit(node, values[node])
                for used in node.all_input_nodes:
                    kept = used in self.constants or used in self.outputs
                    if last[used] is node and not kept:
                        values.pop(used, None)
        return [values[node] for node in self.outputs]


def prepare(model: nn.Module, plan: QuantPlan, inputs: Inputs) -> nn.Module:
    """A copy with BatchNorm folded and the weights of pruned channels set to zero."""
    prepared = copy.deepcopy(model).eval().requires_grad_(False)
    fold_batch_norm(prepared, inputs)
    with torch.no_grad():
        for name, layer in plan.layers.items():
            module = prepared.get_submodule(name)
            weight, bias = module.weight, module.bias
            assert isinstance(weight, Tensor)
            if layer.keep_out is not None:
                gone = _others(layer.keep_out, weight.shape[0])
                weight[gone] = 0
                if isinstance(bias, Tensor):
                    bias[gone] = 0
            if layer.keep_in is not None:
                weight[:, _others(layer.keep_in, weight.shape[1])] = 0
    return prepared


def capture(model: nn.Module, inputs: Inputs) -> Captured:
    """The graph of a model in evaluation mode, for inputs with a batch of one.

    Raises:
        ValueError: the model cannot be captured; the message has torch's reason.
    """
    args, kwargs = inputs
    # torch prints the whole graph before it raises
    unseen = contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO())
    level = _TORCH_LOG.level
    with warnings.catch_warnings(), unseen[0], unseen[1]:
        warnings.simplefilter("ignore")
        _TORCH_LOG.setLevel(logging.CRITICAL)
        try:
            program = torch.export.export(model, args, kwargs)
            program = program.run_decompositions({})
        except Exception as error:
            raise ValueError(
                f"model: torch.export cannot capture it ({_reason(error)}); accepted is a model "
                "without control flow that depends on values"
            ) from error
        finally:
            _TORCH_LOG.setLevel(level)
    return _evaluate(program)


def _reason(error: Exception) -> str:
    """The first line of torch's reason, and the model's own line where it names that."""
    text = str(error).strip() or type(error).__name__
    places = re.findall(r'File "([^"]+)", line (\d+), in \w+\n\s*(.+)', text)
    first = text.splitlines()[0].strip()
    return f"{first}: {places[-1][0]}:{places[-1][1]}: {places[-1][2]}" if places else first


def args_of(node: Node) -> tuple[Any, ...]:
    """A node's positional arguments."""
    return node.args


def _parameters(program: Any, own: dict[str, str]) -> dict[Node, Tensor]:
    """The values of the placeholders that hold parameters and buffers."""
    found = {}
    for node in program.graph_module.graph.nodes:
        if node.op == "placeholder" and node.name in own:
            held = program.state_dict.get(own[node.name])
            found[node] = program.constants[own[node.name]] if held is None else held
    return found


def _evaluate(program: Any) -> Captured:
    signature = program.graph_signature
    graph: fx.Graph = program.graph_module.graph
    own: dict[str, str] = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    for node in graph.nodes:
        if node.op == "placeholder":
            held = node.name in own or node.name in signature.inputs_to_lifted_tensor_constants
            node.meta["input"] = not held
    canonicalize(graph)
    constants: dict[Node, Tensor] = {}
    nothing = Structure.flat(0)
    captured = Captured(graph, [], constants, {}, [], [], nothing, nothing)
    parameters = _parameters(program, own)
    pool_before_norms(graph, parameters)
    arguments: list[Any] = []
    for node, spec in zip(graph.find_nodes(op="placeholder"), signature.input_specs, strict=True):
        if node.name in own:
            constants[node] = parameters[node]
            captured.parameters[node] = own[node.name]
        elif node.name in signature.inputs_to_lifted_tensor_constants:
            target = signature.inputs_to_lifted_tensor_constants[node.name]
            constants[node] = program.constants[target]
        elif isinstance(node.meta.get("val"), Tensor):
            arguments.append(Slot(len(captured.inputs)))
            captured.inputs.append(node)
            captured.shapes[node] = _shape(node)
        else:  # a number, a text or None, which the graph was made for
            arguments.append(spec.arg.value)
    for node in graph.nodes:
        if node.op != "call_function":
            continue
        if all(used in constants for used in node.all_input_nodes):
            args = fx.node.map_arg(node.args, lambda n: constants[n])
            kw = fx.node.map_arg(node.kwargs, lambda n: constants[n])
            with torch.no_grad():
                constants[node] = node.target(*args, **kw)
        else:
            captured.nodes.append(node)
            captured.shapes[node] = _shape(node)
    results: list[Any] = []
    returned: Any = graph.output_node().args[0]
    for node, spec in zip(returned, signature.output_specs, strict=True):
        if spec.kind is not OutputKind.USER_OUTPUT:
            raise ValueError(
                f"model: found {spec.target!r}, which a call changes; accepted is a model that "
                "keeps nothing between calls"
            )
        if isinstance(node, Node):
            results.append(Slot(len(captured.outputs)))
            captured.outputs.append(node)
        else:
            results.append(node)
    given = Structure.of("arguments", arguments, program.call_spec.in_spec)
    captured.takes = Structure(called_with(*given.tree))
    captured.returns = Structure.of("results", results, program.call_spec.out_spec)
    _check_outputs(captured)
    return captured


def _check_outputs(captured: Captured) -> None:
    if not captured.outputs:
        raise ValueError("model: found no tensor returned; accepted is a model that returns some")
    for node in captured.outputs:
        if node in captured.constants:
            raise ValueError(
                f"model: found the output {node.name!r}, which does not depend on the inputs; "
                "accepted is outputs that do"
            )
        if not captured.shapes[node]:
            raise ValueError(
                f"model: found the output {node.name!r}, one number for all images; accepted is "
                "outputs with a batch"
            )


def _shape(node: Node) -> tuple[int, ...]:
    value = node.meta.get("val")
    return tuple(int(n) for n in value.shape) if isinstance(value, Tensor) else ()


def _others(kept: Iterable[int], count: int) -> list[int]:
    wanted = set(kept)
    return [i for i in range(count) if i not in wanted]
