"""The same work in other engines: torch, ONNX Runtime and OpenVINO.

Every engine gets its favourable form: activations as unsigned and weights as signed integers,
channels last where the engine prefers it, and one graph that holds several copies of the operator
with different weights, so that the cost of calling the graph is divided by their number. torch has
no such graph; it is called once an operator, and a call costs it a few microseconds.

An engine that is not installed, or that refuses a work, is named in `Peers.notes` and left out.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from defakeq.bench.layers import copies_of
from defakeq.bench.shapes import Work
from defakeq.bench.timing import Contender, repeated

_X_SCALE, _Y_SCALE, _W_SCALE = 0.03, 0.05, 0.002
_ZERO = 131  # as ours, 3, for unsigned integers
_NBITS_BLOCK = 128


class Peers:
    """Builds the contenders of the engines that are installed.

    Attributes:
        notes: one line for each engine that is absent and each form that an engine refused.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self.notes: list[str] = []
        self._engines: list[Callable[[Work], Iterator[tuple[str, int, Builder]]]] = []
        for modules, engine in (
            (("torch",), TorchEngine),
            (("onnx", "onnxruntime"), OrtEngine),
            (("openvino",), OpenvinoEngine),
        ):
            missing = [m for m in modules if importlib.util.find_spec(m) is None]
            if missing:
                self.notes.append(
                    f"{modules[-1]}: not compared, {' and '.join(missing)} not installed "
                    "(pip install 'defakeq[torch,peers]')"
                )
                continue
            try:
                self._engines.append(engine(threads).forms)
            except Exception as error:
                self.notes.append(f"{modules[-1]}: not compared: {_line(error)}")

    def contenders(self, work: Work) -> list[Contender]:
        """The dense ``work`` in each engine's forms; nothing for pruned and mixed work."""
        found: list[Contender] = []
        if work.variant or work.kind == "small":
            return found
        for forms in self._engines:
            for name, bits, build in forms(work):
                copies = copies_of(work, bits)
                try:
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore")
                        call, operations = build(copies)
                        call()
                except Exception as error:
                    self.notes.append(f"{work.name}, {name}: refused: {_line(error)}")
                    continue
                found.append(
                    Contender(
                        work=work.name,
                        bits=bits,
                        engine=name,
                        run=repeated(call, operations),
                        macs=work.macs,
                        bytes_moved=work.bytes_moved(bits, 4 if bits == 32 else 1),
                        copies=copies,
                    )
                )
        return found


# Takes the number of copies; returns a call and how many operations the call does.
Builder = Callable[[int], tuple[Callable[[], object], int]]


def _line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:160]}"


def _weights(work: Work, copies: int) -> list[NDArray[np.int8]]:
    """Signed integers, [O, I] or [O, I / groups, kh, kw]."""
    rng = np.random.default_rng(1)
    ins = work.inputs // work.groups
    shape = (work.outputs, ins, *work.kernel) if work.is_conv else (work.outputs, ins)
    return [rng.integers(-127, 128, shape, dtype=np.int8) for _ in range(copies)]


def _float_weights(work: Work, copies: int) -> list[NDArray[np.float32]]:
    return [w.astype(np.float32) * np.float32(_W_SCALE) for w in _weights(work, copies)]


def _input(work: Work) -> NDArray[np.float32]:
    rng = np.random.default_rng(2)
    shape = (1, work.inputs, *work.size) if work.is_conv else (work.rows, work.inputs)
    return rng.standard_normal(shape, dtype=np.float32)


def _chains(work: Work) -> bool:
    """Whether the output of one copy can be the input of the next."""
    return work.outputs == work.inputs and work.stride == 1 and work.kind != "gemv"


class TorchEngine:
    """float32 and int8, as torch.compile and PT2E quantization lower them, and the older int8."""

    def __init__(self, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self.torch = torch

    def forms(self, work: Work) -> Iterator[tuple[str, int, Builder]]:
        """Name, width and builder of each form of this work."""
        if work.is_conv:
            yield "torch fp32", 32, lambda n: self._turns(self._conv_f32(work), n, work)
            yield "torch int8", 8, lambda n: self._turns(self._conv_int8(work), n, work)
            yield "torch int8 x86", 8, lambda n: self._turns(self._conv_x86(work), n, work)
        else:
            yield "torch fp32", 32, lambda n: self._turns(self._linear_f32(work), n, work)
            yield "torch int8", 8, lambda n: self._turns(self._linear_int8(work), n, work)
            yield "torch int8 x86", 8, lambda n: self._turns(self._linear_x86(work), n, work)

    def _turns(
        self,
        one: Callable[[NDArray[np.float32]], Callable[[], object]],
        copies: int,
        work: Work,
    ) -> tuple[Callable[[], object], int]:
        calls = [one(w) for w in _float_weights(work, copies)]
        no_grad = self.torch.no_grad

        def call() -> None:
            with no_grad():
                for f in calls:
                    f()

        return call, copies

    def _u8(self, x: Any, scale: float) -> Any:
        torch = self.torch
        return torch.clamp(torch.round(x / scale) + 128, 0, 255).to(torch.uint8)

    def _s8(self, w: Any) -> Any:
        torch = self.torch
        return torch.round(w / _W_SCALE).clamp(-127, 127).to(torch.int8)

    def _linear_f32(self, work: Work) -> Callable[[NDArray[np.float32]], Callable[[], object]]:
        torch = self.torch
        x, bias = torch.from_numpy(_input(work)), torch.zeros(work.outputs)
        linear = torch.nn.functional.linear

        def one(w: NDArray[np.float32]) -> Callable[[], object]:
            weight = torch.from_numpy(w)
            return lambda: linear(x, weight, bias)

        return one

    def _linear_int8(self, work: Work) -> Callable[[NDArray[np.float32]], Callable[[], object]]:
        torch = self.torch
        op, prepack = torch.ops.onednn.qlinear_pointwise, torch.ops.onednn.qlinear_prepack
        x = self._u8(torch.from_numpy(_input(work)), _X_SCALE)
        n = work.outputs
        scales, zeros = torch.full((n,), _W_SCALE), torch.zeros(n, dtype=torch.int)
        bias = torch.zeros(n)

        def one(w: NDArray[np.float32]) -> Callable[[], object]:
            packed = prepack(self._s8(torch.from_numpy(w)), list(x.shape))
            return lambda: op(
                x, _X_SCALE, _ZERO, packed, scales, zeros, bias, _Y_SCALE, _ZERO, torch.uint8,
                "none", [], "",
            )  # fmt: skip

        return one

    def _quantized(self, x: Any, w: Any) -> tuple[Any, Any]:
        torch = self.torch
        rows = w.shape[0]
        xq = torch.quantize_per_tensor(x, _X_SCALE, _ZERO, torch.quint8)
        scales, zeros = torch.full((rows,), _W_SCALE), torch.zeros(rows, dtype=torch.long)
        return xq, torch.quantize_per_channel(w, scales, zeros, 0, torch.qint8)

    def _linear_x86(self, work: Work) -> Callable[[NDArray[np.float32]], Callable[[], object]]:
        torch = self.torch
        x, bias = torch.from_numpy(_input(work)), torch.zeros(work.outputs)
        op, prepack = torch.ops.quantized.linear, torch.ops.quantized.linear_prepack

        def one(w: NDArray[np.float32]) -> Callable[[], object]:
            with self._engine("x86"):
                xq, wq = self._quantized(x, torch.from_numpy(w))
                packed = prepack(wq, bias)
            return lambda: op(xq, packed, _Y_SCALE, _ZERO)

        return one

    def _conv_arguments(self, work: Work) -> tuple[list[int], list[int], list[int], int]:
        return [work.stride] * 2, list(work.padding), [1, 1], work.groups

    def _image(self, work: Work) -> Any:
        x = self.torch.from_numpy(_input(work))
        return x.to(memory_format=self.torch.channels_last)

    def _conv_f32(self, work: Work) -> Callable[[NDArray[np.float32]], Callable[[], object]]:
        torch = self.torch
        stride, padding, dilation, groups = self._conv_arguments(work)
        x, bias = self._image(work), torch.zeros(work.outputs)
        op = torch.ops.mkldnn._convolution_pointwise
        reorder = torch._C._nn.mkldnn_reorder_conv2d_weight

        def one(w: NDArray[np.float32]) -> Callable[[], object]:
            weight = reorder(
                torch.from_numpy(w).to_mkldnn(), padding, stride, dilation, groups, list(x.shape)
            )
            return lambda: op(x, weight, bias, padding, stride, dilation, groups, "relu", [], "")

        return one

    def _conv_int8(self, work: Work) -> Callable[[NDArray[np.float32]], Callable[[], object]]:
        torch = self.torch
        stride, padding, dilation, groups = self._conv_arguments(work)
        op, prepack = torch.ops.onednn.qconv_pointwise, torch.ops.onednn.qconv_prepack
        image = self._image(work)
        x = self._u8(image, _X_SCALE).contiguous(memory_format=torch.channels_last)
        n = work.outputs
        scales, zeros = torch.full((n,), _W_SCALE), torch.zeros(n, dtype=torch.int)
        bias = torch.zeros(n)

        def one(w: NDArray[np.float32]) -> Callable[[], object]:
            packed = prepack(
                self._s8(torch.from_numpy(w)), scales, _X_SCALE, 0, stride, padding, dilation,
                groups, list(x.shape),
            )  # fmt: skip
            return lambda: op(
                x, _X_SCALE, 0, packed, scales, zeros, bias, stride, padding, dilation, groups,
                _X_SCALE, 0, torch.uint8, "relu", [], "",
            )  # fmt: skip

        return one

    def _conv_x86(self, work: Work) -> Callable[[NDArray[np.float32]], Callable[[], object]]:
        torch = self.torch
        stride, padding, dilation, groups = self._conv_arguments(work)
        op, prepack = torch.ops.quantized.conv2d_relu, torch.ops.quantized.conv2d_prepack
        x, bias = self._image(work), torch.zeros(work.outputs)

        def one(w: NDArray[np.float32]) -> Callable[[], object]:
            with self._engine("x86"):
                xq, wq = self._quantized(x, torch.from_numpy(w))
                wq = wq.contiguous(memory_format=torch.channels_last)
                packed = prepack(wq, bias, stride, padding, dilation, groups)
            return lambda: op(xq, packed, _X_SCALE, 0)

        return one

    @contextlib.contextmanager
    def _engine(self, name: str) -> Iterator[None]:
        quantized: Any = self.torch.backends.quantized
        before = quantized.engine
        quantized.engine = name
        try:
            yield
        finally:
            quantized.engine = before


class OrtEngine:
    """ONNX Runtime: float32, QGemm, QLinearMatMul, MatMulInteger, MatMulNBits, QLinearConv."""

    def __init__(self, threads: int) -> None:
        import onnx
        import onnxruntime

        self.onnx, self.ort, self.threads = onnx, onnxruntime, threads

    def forms(self, work: Work) -> Iterator[tuple[str, int, Builder]]:
        """Name, width and builder of each form of this work."""
        if work.is_conv:
            yield "ort fp32", 32, lambda n: self._conv_f32(work, n)
            yield "ort QLinearConv", 8, lambda n: self._conv_int8(work, n)
            return
        yield "ort fp32", 32, lambda n: self._matmul_f32(work, n)
        for op in ("QGemm", "QLinearMatMul", "MatMulInteger"):
            yield f"ort {op}", 8, lambda n, op=op: self._matmul_int8(work, n, op)  # type: ignore[misc]
        for bits in (8, 4, 2):
            yield (
                f"ort MatMulNBits {bits}",
                bits,
                lambda n, bits=bits: self._nbits(work, n, bits),  # type: ignore[misc]
            )

    def _session(
        self,
        nodes: list[Any],
        constants: dict[str, NDArray[Any]],
        x: NDArray[Any],
        outputs: list[str],
    ) -> Callable[[], object]:
        helper = self.onnx.helper
        known = self.onnx.helper.np_dtype_to_tensor_dtype(x.dtype)
        graph = helper.make_graph(
            nodes,
            "bench",
            [helper.make_tensor_value_info("x", known, list(x.shape))],
            [helper.make_empty_tensor_value_info(name) for name in outputs],
            [self.onnx.numpy_helper.from_array(v, k) for k, v in constants.items()],
        )
        model = helper.make_model(
            graph,
            opset_imports=[
                helper.make_opsetid("", 21),
                helper.make_opsetid("com.microsoft", 1),
            ],
        )
        model.ir_version = 10
        options = self.ort.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        session = self.ort.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        # The outputs are bound to memory once, which a first run sizes.
        results = session.run(outputs, {"x": x})
        binding = session.io_binding()
        binding.bind_ortvalue_input("x", self.ort.OrtValue.ortvalue_from_numpy(x))
        for name, result in zip(outputs, results, strict=True):
            binding.bind_ortvalue_output(name, self.ort.OrtValue.ortvalue_from_numpy(result))
        return lambda: session.run_with_iobinding(binding)

    def _u8(self, work: Work, zero: int) -> NDArray[np.uint8]:
        scaled = np.round(_input(work) / _X_SCALE) + zero
        return np.clip(scaled, 0, 255).astype(np.uint8)

    def _matmul_f32(self, work: Work, copies: int) -> tuple[Callable[[], object], int]:
        node = self.onnx.helper.make_node
        nodes = [node("Gemm", ["x", f"w{i}", "bias"], [f"y{i}"], transB=1) for i in range(copies)]
        constants: dict[str, NDArray[Any]] = {"bias": np.zeros(work.outputs, np.float32)}
        constants |= {f"w{i}": w for i, w in enumerate(_float_weights(work, copies))}
        outputs = [f"y{i}" for i in range(copies)]
        return self._session(nodes, constants, _input(work), outputs), copies

    def _matmul_int8(self, work: Work, copies: int, op: str) -> tuple[Callable[[], object], int]:
        node = self.onnx.helper.make_node
        n = work.outputs
        zero = np.array(_ZERO, np.uint8)
        constants: dict[str, NDArray[Any]] = {"zx": zero}
        if op != "MatMulInteger":
            constants |= {
                "sx": np.array(_X_SCALE, np.float32),
                "sw": np.full(n, _W_SCALE, np.float32),
                "zw": np.zeros(n, np.int8),
                "sy": np.array(_Y_SCALE, np.float32),
                "zy": zero,
            }
        if op == "QGemm":
            constants["bias"] = np.zeros(n, np.int32)
        nodes = []
        for i, w in enumerate(_weights(work, copies)):
            constants[f"w{i}"] = np.ascontiguousarray(w.T)
            if op == "QGemm":
                names = ["x", "sx", "zx", f"w{i}", "sw", "zw", "bias", "sy", "zy"]
                nodes.append(node(op, names, [f"y{i}"], domain="com.microsoft"))
            elif op == "QLinearMatMul":
                names = ["x", "sx", "zx", f"w{i}", "sw", "zw", "sy", "zy"]
                nodes.append(node(op, names, [f"y{i}"]))
            else:
                nodes.append(node(op, ["x", f"w{i}", "zx"], [f"y{i}"]))
        outputs = [f"y{i}" for i in range(copies)]
        return self._session(nodes, constants, self._u8(work, _ZERO), outputs), copies

    def _nbits(self, work: Work, copies: int, bits: int) -> tuple[Callable[[], object], int]:
        node = self.onnx.helper.make_node
        rng = np.random.default_rng(3)
        n, k = work.outputs, work.inputs
        blocks = -(-k // _NBITS_BLOCK)
        nodes, constants = [], {}
        for i in range(copies):
            shape = (n, blocks, _NBITS_BLOCK * bits // 8)
            constants[f"w{i}"] = rng.integers(0, 256, shape, dtype=np.uint8)
            constants[f"s{i}"] = rng.random((n, blocks), dtype=np.float32) * np.float32(0.01)
            nodes.append(
                node(
                    "MatMulNBits",
                    ["x", f"w{i}", f"s{i}"],
                    [f"y{i}"],
                    domain="com.microsoft",
                    K=k,
                    N=n,
                    bits=bits,
                    block_size=_NBITS_BLOCK,
                    accuracy_level=4,  # integer dot products
                )
            )
        outputs = [f"y{i}" for i in range(copies)]
        return self._session(nodes, constants, _input(work), outputs), copies

    def _conv_attributes(self, work: Work) -> dict[str, Any]:
        return {
            "group": work.groups,
            "kernel_shape": list(work.kernel),
            "pads": list(work.padding) * 2,
            "strides": [work.stride] * 2,
        }

    def _links(self, work: Work, copies: int) -> tuple[list[str], list[str]]:
        """Names of each copy's input, and of the outputs of the graph."""
        if _chains(work):
            return ["x"] + [f"y{i}" for i in range(copies - 1)], [f"y{copies - 1}"]
        return ["x"] * copies, [f"y{i}" for i in range(copies)]

    def _conv_f32(self, work: Work, copies: int) -> tuple[Callable[[], object], int]:
        node = self.onnx.helper.make_node
        sources, outputs = self._links(work, copies)
        constants: dict[str, NDArray[Any]] = {"bias": np.zeros(work.outputs, np.float32)}
        nodes = []
        for i, w in enumerate(_float_weights(work, copies)):
            constants[f"w{i}"] = w
            nodes += [
                node(
                    "Conv", [sources[i], f"w{i}", "bias"], [f"c{i}"], **self._conv_attributes(work)
                ),
                node("Relu", [f"c{i}"], [f"y{i}"]),
            ]
        return self._session(nodes, constants, _input(work), outputs), copies

    def _conv_int8(self, work: Work, copies: int) -> tuple[Callable[[], object], int]:
        node = self.onnx.helper.make_node
        sources, outputs = self._links(work, copies)
        # With zero at the lowest integer the clamp is the relu.
        constants: dict[str, NDArray[Any]] = {
            "s": np.array(_X_SCALE, np.float32),
            "z": np.array(0, np.uint8),
            "sw": np.full(work.outputs, _W_SCALE, np.float32),
            "zw": np.zeros(work.outputs, np.int8),
            "bias": np.zeros(work.outputs, np.int32),
        }
        nodes = []
        for i, w in enumerate(_weights(work, copies)):
            constants[f"w{i}"] = w
            names = [sources[i], "s", "z", f"w{i}", "sw", "zw", "s", "z", "bias"]
            nodes.append(node("QLinearConv", names, [f"y{i}"], **self._conv_attributes(work)))
        return self._session(nodes, constants, self._u8(work, 0), outputs), copies


class OpenvinoEngine:
    """OpenVINO: float32, int8 by FakeQuantize as its converter writes it, 4-bit weights."""

    def __init__(self, threads: int) -> None:
        os.environ.setdefault("OPENVINO_TELEMETRY", "0")
        import openvino
        from openvino import opset13

        self.ov, self.op, self.threads = openvino, opset13, threads
        self.core = openvino.Core()

    def forms(self, work: Work) -> Iterator[tuple[str, int, Builder]]:
        """Name, width and builder of each form of this work."""
        yield "openvino fp32", 32, lambda n: self._layers(work, n, 32)
        yield "openvino int8", 8, lambda n: self._layers(work, n, 8)
        if not work.is_conv and work.inputs % _NBITS_BLOCK == 0:
            yield "openvino int4", 4, lambda n: self._layers(work, n, 4)

    def _compile(self, model: Any, x: NDArray[np.float32]) -> Callable[[], object]:
        compiled = self.core.compile_model(
            model,
            "CPU",
            {
                "INFERENCE_NUM_THREADS": self.threads,
                "NUM_STREAMS": 1,
                "PERFORMANCE_HINT": "LATENCY",
                "ENABLE_CPU_PINNING": False,
                "INFERENCE_PRECISION_HINT": "f32",
                "DYNAMIC_QUANTIZATION_GROUP_SIZE": _NBITS_BLOCK,
            },
        )
        request = compiled.create_infer_request()
        request.set_input_tensor(0, self.ov.Tensor(x))
        return lambda: request.infer()

    def _fake_quantize(self, x: Any, scale: float, zero: int) -> Any:
        low, high = np.float32(-scale * zero), np.float32(scale * (255 - zero))
        return self.op.fake_quantize(x, low, high, low, high, 256)

    def _weight(self, work: Work, w: NDArray[np.int8], bits: int) -> Any:
        op = self.op
        if bits == 32:
            return op.constant(w.astype(np.float32) * np.float32(_W_SCALE))
        n, k = work.outputs, work.inputs
        if bits == 4:
            blocks = (n, k // _NBITS_BLOCK, _NBITS_BLOCK)
            codes = op.constant((w.astype(np.int16) // 16).astype(np.int8).reshape(blocks),
                                dtype=self.ov.Type.i4)  # fmt: skip
            scale = op.constant(np.full((*blocks[:2], 1), 0.01, np.float32))
            scaled = op.multiply(op.convert(codes, np.float32), scale)
            return op.reshape(scaled, op.constant(np.array([n, k])), False)
        scale = op.constant(np.full((n,) + (1,) * (w.ndim - 1), _W_SCALE, np.float32))
        return op.multiply(op.convert(op.constant(w), np.float32), scale)

    def _layers(self, work: Work, copies: int, bits: int) -> tuple[Callable[[], object], int]:
        op = self.op
        x = _input(work)
        parameter = op.parameter(list(x.shape), np.float32)
        chain = _chains(work)
        zero = 0 if work.is_conv else _ZERO
        scale = _X_SCALE if work.is_conv else _Y_SCALE
        a = self._fake_quantize(parameter, _X_SCALE, _ZERO) if bits == 8 else parameter
        bias_shape = (1, work.outputs, 1, 1) if work.is_conv else (1, work.outputs)
        bias = np.full(bias_shape, 0.125, np.float32)
        results = []
        for w in _weights(work, copies):
            weight = self._weight(work, w, bits)
            if not work.is_conv:
                y = op.matmul(a, weight, False, True)
            else:
                geometry = ([work.stride] * 2, list(work.padding), list(work.padding), [1, 1])
                if work.groups > 1:
                    groups = np.array([work.groups, 1, 1, *work.kernel])
                    weight = op.reshape(weight, op.constant(groups), False)
                    y = op.group_convolution(a, weight, *geometry)
                else:
                    y = op.convolution(a, weight, *geometry)
            y = op.add(y, op.constant(bias))
            if work.is_conv:
                y = op.relu(y)
            if bits == 8:
                y = self._fake_quantize(y, scale, zero)
            if chain:
                a = y
            else:
                results.append(y)
        model = self.ov.Model(results or [a], [parameter])
        return self._compile(model, x), copies
