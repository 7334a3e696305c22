"""A program as an ONNX file with QuantizeLinear and DequantizeLinear, for other engines."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from defakeq.onnx_export.graph import Graph
from defakeq.onnx_export.nodes import Exporter
from defakeq_kernels import dfq

WEIGHTS = ("exact", "int8")
ACTIVATIONS = ("uint8", "int8")
ENGINES = ("any", "onnxruntime")


@dataclass(frozen=True)
class Exported:
    """What an export made.

    Attributes:
        path: the file.
        size: its bytes.
        notes: what it computes in another way than ours, and how often.
    """

    path: Path
    size: int
    notes: dict[str, int]


def export(
    path: str | os.PathLike[str],
    onnx_path: str | os.PathLike[str],
    *,
    batch: bool = False,
    weights: str = "int8",
    activations: str = "uint8",
    engine: str = "any",
) -> Exported:
    """Writes the program of a ``.dfq`` file as ONNX.

    Args:
        path: a file that holds a program.
        onnx_path: where to.
        batch: leave the batch open; else it is 1.
        weights: "int8": symmetric int8 an output channel, which engines have fast kernels for;
            levels that do not fit are rounded anew. "exact": our levels, in 4 bits where they fit.
        activations: "uint8" or "int8", of equal values; x86 engines are fast with uint8.
        engine: "onnxruntime" adds an int8 rounding before residual sums, without which that engine
            runs the layer in float; "any": none.

    Raises:
        ValueError: no program, a wrong option, or a node that cannot be exported, by name.
        ImportError: onnx is not installed.
    """
    for field, value, accepted in (
        ("weights", weights, WEIGHTS),
        ("activations", activations, ACTIVATIONS),
        ("engine", engine, ENGINES),
    ):
        if value not in accepted:
            raise ValueError(f"{field}: found {value!r}; accepted is one of {accepted}")
    try:
        import onnx
    except ImportError as error:
        raise ImportError("onnx is not installed; pip install 'defakeq[onnx]'") from error
    try:
        tensors, network = dfq.read(path)
    except ValueError as error:
        raise ValueError(f"model: found {path}; accepted is a .dfq file: {error}") from error
    program = network.get("program")
    if not isinstance(program, dict):
        raise ValueError(f"model: found no program in {path}; accepted is a file that holds one")
    graph = Graph(onnx, "N" if batch else 1, activations == "uint8")
    exact = weights == "exact"
    exporter = Exporter(graph, tensors, network, exact, engine == "onnxruntime")
    _inputs(graph, exporter, program)
    for node in program["nodes"]:
        exporter.run(node)
    _outputs(graph, exporter, program)
    model = graph.model("defakeq", {"weights": weights, "activations": activations})
    onnx.checker.check_model(model, full_check=True)
    target = Path(onnx_path)
    onnx.save(model, target)
    return Exported(target, target.stat().st_size, graph.notes)


def _port(graph: Graph, exporter: Exporter, port: dict[str, Any]) -> tuple[str, Any]:
    layout = port.get("layout", "plain")
    shape = exporter.shape(port["value"])
    if layout == "nchw":
        shape = [shape[2], *shape[:2]]
    kind = graph.onnx.TensorProto.FLOAT
    info = graph.onnx.helper.make_tensor_value_info(port["name"], kind, [graph.batch, *shape])
    return layout, info


def _inputs(graph: Graph, exporter: Exporter, program: dict[str, Any]) -> None:
    for port in program["inputs"]:
        layout, info = _port(graph, exporter, port)
        graph.inputs.append(info)
        exporter.put(port["value"], port["name"], layout)


def _outputs(graph: Graph, exporter: Exporter, program: dict[str, Any]) -> None:
    for port in program["outputs"]:
        layout, info = _port(graph, exporter, port)
        graph.outputs.append(info)
        result = exporter.get(port["value"], layout)
        node = graph.onnx.helper.make_node("Identity", [result], [port["name"]])
        graph.nodes.append(node)


def run_onnxruntime(
    path: str | os.PathLike[str], inputs: list[NDArray[np.float32]], threads: int = 1
) -> list[NDArray[np.float32]]:
    """The outputs of an exported file in ONNX Runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(os.fspath(path), options)
    names = [port.name for port in session.get_inputs()]
    return list(session.run(None, dict(zip(names, inputs, strict=True))))


def run_openvino(
    path: str | os.PathLike[str], inputs: list[NDArray[np.float32]], threads: int = 1
) -> list[NDArray[np.float32]]:
    """The outputs of an exported file in OpenVINO, without bfloat16."""
    import openvino

    options = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.compile_model(os.fspath(path), "CPU", options)
    result = compiled(inputs)
    return [np.array(result[port]) for port in compiled.outputs]


def check(
    onnx_path: str | os.PathLike[str], path: str | os.PathLike[str], seed: int = 0
) -> dict[str, float]:
    """Compares an exported file with the numpy reference of its program, on random input.

    Returns:
        The largest difference of each installed engine, in steps of an int8 output, or for a
        float32 output in 1/256 of its range.
    """
    import importlib.util

    from defakeq_kernels import reference_program

    tensors, network = dfq.read(path)
    program = network["program"]
    rng = np.random.default_rng(seed)
    inputs = []
    for port in program["inputs"]:
        shape = [int(n) for n in program["values"][port["value"]]["shape"]]
        if port.get("layout", "plain") == "nchw":
            shape = [shape[2], *shape[:2]]
        inputs.append(rng.standard_normal((1, *shape)).astype(np.float32))
    expected = reference_program.run((tensors, network), inputs)
    found = {}
    for module, run in (("onnxruntime", run_onnxruntime), ("openvino", run_openvino)):
        if importlib.util.find_spec(module) is None:
            continue
        worst = 0.0
        for port, ours, theirs in zip(
            program["outputs"], expected, run(onnx_path, inputs), strict=True
        ):
            value = program["values"][port["value"]]
            step = max(float(np.ptp(ours)) / 256, 1e-12)
            step = float(value["scale"]) if value["dtype"] == "int8" else step
            worst = max(worst, float(np.abs(ours - theirs).max()) / step)
        found[module] = worst
    return found
