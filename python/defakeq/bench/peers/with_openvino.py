"""Works in OpenVINO."""

from __future__ import annotations

import os
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
    floats,
    weights,
)
from defakeq.bench.shapes import Work


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
        if not work.is_conv and work.inputs % NBITS_BLOCK == 0:
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
                "DYNAMIC_QUANTIZATION_GROUP_SIZE": NBITS_BLOCK,
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
            return op.constant(w.astype(np.float32) * np.float32(W_SCALE))
        n, k = work.outputs, work.inputs
        if bits == 4:
            blocks = (n, k // NBITS_BLOCK, NBITS_BLOCK)
            codes = op.constant((w.astype(np.int16) // 16).astype(np.int8).reshape(blocks),
                                dtype=self.ov.Type.i4)  # fmt: skip
            scale = op.constant(np.full((*blocks[:2], 1), 0.01, np.float32))
            scaled = op.multiply(op.convert(codes, np.float32), scale)
            return op.reshape(scaled, op.constant(np.array([n, k])), False)
        scale = op.constant(np.full((n,) + (1,) * (w.ndim - 1), W_SCALE, np.float32))
        return op.multiply(op.convert(op.constant(w), np.float32), scale)

    def _layers(self, work: Work, copies: int, bits: int) -> tuple[Callable[[], object], int]:
        op = self.op
        x = floats(work)
        parameter = op.parameter(list(x.shape), np.float32)
        chain = chains(work)
        zero = 0 if work.is_conv else ZERO
        scale = X_SCALE if work.is_conv else Y_SCALE
        a = self._fake_quantize(parameter, X_SCALE, ZERO) if bits == 8 else parameter
        bias_shape = (1, work.outputs, 1, 1) if work.is_conv else (1, work.outputs)
        bias = np.full(bias_shape, 0.125, np.float32)
        results = []
        for w in weights(work, copies):
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
