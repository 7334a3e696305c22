"""Works in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from defakeq.bench.peers.given import (
    NBITS_BLOCK,
    W_SCALE,
    X_SCALE,
    Y_SCALE,
    ZERO,
    Builder,
    chains,
    float_weights,
    floats,
    weights,
)
from defakeq.bench.shapes import Work


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
        scaled = np.round(floats(work) / X_SCALE) + zero
        return np.clip(scaled, 0, 255).astype(np.uint8)

    def _matmul_f32(self, work: Work, copies: int) -> tuple[Callable[[], object], int]:
        node = self.onnx.helper.make_node
        nodes = [node("Gemm", ["x", f"w{i}", "bias"], [f"y{i}"], transB=1) for i in range(copies)]
        constants: dict[str, NDArray[Any]] = {"bias": np.zeros(work.outputs, np.float32)}
        constants |= {f"w{i}": w for i, w in enumerate(float_weights(work, copies))}
        outputs = [f"y{i}" for i in range(copies)]
        return self._session(nodes, constants, floats(work), outputs), copies

    def _matmul_int8(self, work: Work, copies: int, op: str) -> tuple[Callable[[], object], int]:
        node = self.onnx.helper.make_node
        n = work.outputs
        zero = np.array(ZERO, np.uint8)
        constants: dict[str, NDArray[Any]] = {"zx": zero}
        if op != "MatMulInteger":
            constants |= {
                "sx": np.array(X_SCALE, np.float32),
                "sw": np.full(n, W_SCALE, np.float32),
                "zw": np.zeros(n, np.int8),
                "sy": np.array(Y_SCALE, np.float32),
                "zy": zero,
            }
        if op == "QGemm":
            constants["bias"] = np.zeros(n, np.int32)
        nodes = []
        for i, w in enumerate(weights(work, copies)):
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
        return self._session(nodes, constants, self._u8(work, ZERO), outputs), copies

    def _nbits(self, work: Work, copies: int, bits: int) -> tuple[Callable[[], object], int]:
        node = self.onnx.helper.make_node
        rng = np.random.default_rng(3)
        n, k = work.outputs, work.inputs
        blocks = -(-k // NBITS_BLOCK)
        nodes, constants = [], {}
        for i in range(copies):
            shape = (n, blocks, NBITS_BLOCK * bits // 8)
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
                    block_size=NBITS_BLOCK,
                    accuracy_level=4,  # integer dot products
                )
            )
        outputs = [f"y{i}" for i in range(copies)]
        return self._session(nodes, constants, floats(work), outputs), copies

    def _conv_attributes(self, work: Work) -> dict[str, Any]:
        return {
            "group": work.groups,
            "kernel_shape": list(work.kernel),
            "pads": list(work.padding) * 2,
            "strides": [work.stride] * 2,
        }

    def _links(self, work: Work, copies: int) -> tuple[list[str], list[str]]:
        """Names of each copy's input, and of the outputs of the graph."""
        if chains(work):
            return ["x"] + [f"y{i}" for i in range(copies - 1)], [f"y{copies - 1}"]
        return ["x"] * copies, [f"y{i}" for i in range(copies)]

    def _conv_f32(self, work: Work, copies: int) -> tuple[Callable[[], object], int]:
        node = self.onnx.helper.make_node
        sources, outputs = self._links(work, copies)
        constants: dict[str, NDArray[Any]] = {"bias": np.zeros(work.outputs, np.float32)}
        nodes = []
        for i, w in enumerate(float_weights(work, copies)):
            constants[f"w{i}"] = w
            nodes += [
                node(
                    "Conv", [sources[i], f"w{i}", "bias"], [f"c{i}"], **self._conv_attributes(work)
                ),
                node("Relu", [f"c{i}"], [f"y{i}"]),
            ]
        return self._session(nodes, constants, floats(work), outputs), copies

    def _conv_int8(self, work: Work, copies: int) -> tuple[Callable[[], object], int]:
        node = self.onnx.helper.make_node
        sources, outputs = self._links(work, copies)
        # With zero at the lowest integer the clamp is the relu.
        constants: dict[str, NDArray[Any]] = {
            "s": np.array(X_SCALE, np.float32),
            "z": np.array(0, np.uint8),
            "sw": np.full(work.outputs, W_SCALE, np.float32),
            "zw": np.zeros(work.outputs, np.int8),
            "bias": np.zeros(work.outputs, np.int32),
        }
        nodes = []
        for i, w in enumerate(weights(work, copies)):
            constants[f"w{i}"] = w
            names = [sources[i], "s", "z", f"w{i}", "sw", "zw", "s", "z", "bias"]
            nodes.append(node("QLinearConv", names, [f"y{i}"], **self._conv_attributes(work)))
        return self._session(nodes, constants, self._u8(work, 0), outputs), copies
