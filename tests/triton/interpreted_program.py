"""Programs on the GPU path against the oracle, under Triton's interpreter or on a GPU.

Run by tests/test_triton_interpreter.py in a process of its own, and by tests/test_triton_gpu.py.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from program_builder import Builder
from test_program_bytes import CASES, KINDS, OTHER
from test_program_bytes import convert as one_conversion

from defakeq import QuantPlan, convert, networks, save
from defakeq_kernels import dfq, reference_program
from defakeq_kernels.quantize import ActQuant
from defakeq_kernels.triton import between
from defakeq_kernels.triton.program import GpuProgram
from defakeq_kernels.triton.start import INTERPRETED

DEVICE = torch.device("cpu" if INTERPRETED else "cuda:0")

EXACT = {"convert", "pool2d", "mean_rows", "copy", "lookup", "squeeze_excite", "conv2d"}


@pytest.mark.parametrize("out", [None, OTHER], ids=("float", "int8"))
@pytest.mark.parametrize("q", KINDS, ids=("from float", "from int8"))
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_every_node(case: Any, q: Any, out: Any) -> None:
    b = Builder(7)
    case(b, q, out)
    inputs = []
    for port in b.program["inputs"]:
        shape = b.program["values"][port["value"]]["shape"]
        shape = [shape[2], *shape[:2]] if port["layout"] == "nchw" else shape
        inputs.append(b.rng.standard_normal((2, *shape)).astype(np.float32))
    expected = reference_program.run(b.source(), inputs)
    program = GpuProgram(b.tensors, b.network, DEVICE)
    found = program([torch.from_numpy(x).to(DEVICE) for x in inputs])
    data = [port["value"] for port in b.program["inputs"]]
    nodes = {node["out"][0]: node for node in b.program["nodes"]}
    for port, y, e in zip(b.program["outputs"], found, expected, strict=True):
        node, value = nodes[port["value"]], b.program["values"][port["value"]]
        assert tuple(y.shape) == e.shape
        if node.get("fn") == "div" and node["in"][1] in data:
            continue  # by zero in places, whose activations are torch's own
        exact = node["op"] in EXACT and (q is not None or node["op"] != "pool2d")
        if node["op"] == "mean_rows":
            exact = q is not None
        got = y.cpu().numpy()
        assert np.array_equal(np.isfinite(got), np.isfinite(e)), node
        got, e = (np.nan_to_num(a, nan=0, posinf=1, neginf=-1) for a in (got, e))
        difference = np.abs(got - e)
        if exact:
            assert not difference.any(), node
        elif value["dtype"] == "int8":
            assert difference.max() <= 1.01 * value["scale"], node
        else:
            limit = (
                0.02 if node["op"] == "attention" else 1e-3
            )  # the CPU keeps 8 bits of a probability
            assert (difference <= limit + 1e-4 * np.abs(e)).all(), (node, difference.max())


def test_constants_made_of_columns() -> None:
    b = Builder(5)
    x = b.input((4, 6))
    table = b.tensor(b.rng.standard_normal((4, 3)).astype(np.float32))
    index = b.tensor(np.array([0, 2, 1, 1, 0, 2], np.int32))
    wide = b.value((4, 6), tensor=table, index=index)
    b.output(b.node("binary", [x, wide], (4, 6), None, fn="add"))
    given = b.rng.standard_normal((2, 4, 6)).astype(np.float32)
    (y,) = GpuProgram(b.tensors, b.network, DEVICE)([torch.from_numpy(given).to(DEVICE)])
    assert np.array_equal(y.cpu().numpy(), reference_program.run(b.source(), [given])[0])


def test_wrong_inputs_are_named() -> None:
    b = Builder(1)
    one_conversion(b, None, None)
    program = GpuProgram(b.tensors, b.network, DEVICE)
    with pytest.raises(ValueError, match=r"input .*: found \[1, 3, 3, 3\]; accepted is"):
        program([torch.zeros(1, 3, 3, 3, device=DEVICE)])
    b.network["program"]["nodes"][0]["op"] = "fft"
    with pytest.raises(ValueError, match="nodes: found 'fft'"):
        GpuProgram(b.tensors, b.network, DEVICE)
    with pytest.raises(ValueError, match="program: found none"):
        GpuProgram({}, {"layers": {}}, DEVICE)


def test_the_op_keeps_a_program_while_its_bytes_live() -> None:
    from defakeq_kernels import dfq
    from defakeq_kernels.triton import program as module

    b = Builder(3)
    one_conversion(b, None, None)
    data = torch.frombuffer(bytearray(dfq.dumps(b.tensors, b.network)), dtype=torch.uint8)
    x = torch.randn(2, 21, 6, 5).to(DEVICE)
    (y,) = module.run_program(data, [x], [3, 21, 6, 5])
    assert torch.equal(y, x)
    assert y.is_contiguous()
    assert module._loaded(data, x.device) is module._loaded(data, x.device)
    with pytest.raises(ValueError, match="out_shapes: found"):
        module.run_program(data, [x], [1, 5])
    with pytest.raises(ValueError, match="inputs: found none"):
        module.run_program(data, [], [])
    key = data.untyped_storage()._cdata
    with pytest.raises(RuntimeError):
        module.run_program(data[:100].clone(), [x], [3, 21, 6, 5])
    del data
    other = torch.frombuffer(bytearray(dfq.dumps(b.tensors, b.network)), dtype=torch.uint8)
    module._loaded(other, x.device)
    assert key not in module._KNOWN


@pytest.mark.parametrize("positions", [3, 700])
def test_means_in_one_and_two_launches(positions: int) -> None:
    x = torch.randint(-128, 128, (2, positions, 37), dtype=torch.int8)
    q = ActQuant("static", 0.1, 5)
    part = np.float32(1) / np.float32(positions)
    wanted = (x.int().sum(1) - 5 * positions).float() * float(np.float32(0.1) * part)
    assert torch.equal(between.means(x.to(DEVICE), q, None).cpu(), wanted)
    levels = between.means(x.to(DEVICE), q, ActQuant("static", 0.003, -3)).cpu()
    inverse = float(np.float32(1) / np.float32(0.003))
    assert torch.equal(levels, ((wanted * inverse).round() - 3).clamp(-128, 127).to(torch.int8))


def test_heads_are_put_in_their_rows() -> None:
    x = torch.randn(2, 5, 6, 8).half().transpose(1, 2)  # batches of 2, 3 heads
    rows = torch.randperm(10).int()
    found = between.heads(x.to(DEVICE), 0.5, 2, rows.to(DEVICE), None).cpu()
    wanted = torch.empty(2, 10, 24)
    flat = x.float().reshape(2, 2, 3, 5, 8).permute(0, 1, 3, 2, 4).reshape(2, 10, 24) * 0.5
    wanted[:, rows.long()] = flat
    assert torch.equal(found, wanted)
    assert torch.equal(between.heads(x.to(DEVICE), 0.5, 2, None, None).cpu(), flat)


def test_values_written_in_parts_and_views_of_whole_ones() -> None:
    b = Builder(11)
    x = b.input((4, 6))
    whole = b.value((8, 6))
    for i, fn in enumerate(("relu", "none")):
        out = b.value((4, 6), base=whole, offset=24 * i)
        node = {"op": "unary", "name": f"part{i}", "in": [x], "out": [out], "fn": fn}
        b.program["nodes"].append(node)
    y = b.node("unary", [whole], (8, 6), None, fn="none")
    b.output(y)
    b.output(b.node("unary", [b.value((48,), base=y, offset=0)], (48,), None, fn="relu"))
    given = np.random.default_rng(1).standard_normal((2, 4, 6)).astype(np.float32)
    joined, flat = GpuProgram(b.tensors, b.network, DEVICE)([torch.from_numpy(given).to(DEVICE)])
    wanted = np.concatenate([np.maximum(given, 0), given], 1)
    assert np.array_equal(joined.cpu().numpy(), wanted)
    assert np.array_equal(flat.cpu().numpy(), np.maximum(wanted.reshape(2, 48), 0))


@pytest.mark.skipif(not INTERPRETED, reason="a GPU runs a larger network, captured")
def test_a_whole_network_has_the_bytes_of_the_cpu(tmp_path: Path) -> None:
    model = networks.build("mobilenetv3_large")
    x = networks.images(2, 32)
    plan = QuantPlan.uniform(model, 4, act_bits=8)
    converted = convert(model, x[:1], plan, x, backend="program")
    save(converted, tmp_path / "network.dfq")
    program = GpuProgram(*dfq.read(tmp_path / "network.dfq"), DEVICE)
    assert torch.equal(program([x[:1]])[0], converted(x[:1]))
