"""Works in torch."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from defakeq.bench.peers.given import (
    W_SCALE,
    X_SCALE,
    Y_SCALE,
    ZERO,
    Builder,
    float_weights,
    floats,
)
from defakeq.bench.shapes import Work


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
        calls = [one(w) for w in float_weights(work, copies)]
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
        return torch.round(w / W_SCALE).clamp(-127, 127).to(torch.int8)

    def _linear_f32(self, work: Work) -> Callable[[NDArray[np.float32]], Callable[[], object]]:
        torch = self.torch
        x, bias = torch.from_numpy(floats(work)), torch.zeros(work.outputs)
        linear = torch.nn.functional.linear

        def one(w: NDArray[np.float32]) -> Callable[[], object]:
            weight = torch.from_numpy(w)
            return lambda: linear(x, weight, bias)

        return one

    def _linear_int8(self, work: Work) -> Callable[[NDArray[np.float32]], Callable[[], object]]:
        torch = self.torch
        op, prepack = torch.ops.onednn.qlinear_pointwise, torch.ops.onednn.qlinear_prepack
        x = self._u8(torch.from_numpy(floats(work)), X_SCALE)
        n = work.outputs
        scales, zeros = torch.full((n,), W_SCALE), torch.zeros(n, dtype=torch.int)
        bias = torch.zeros(n)

        def one(w: NDArray[np.float32]) -> Callable[[], object]:
            packed = prepack(self._s8(torch.from_numpy(w)), list(x.shape))
            return lambda: op(
                x, X_SCALE, ZERO, packed, scales, zeros, bias, Y_SCALE, ZERO, torch.uint8,
                "none", [], "",
            )  # fmt: skip

        return one

    def _quantized(self, x: Any, w: Any) -> tuple[Any, Any]:
        torch = self.torch
        rows = w.shape[0]
        xq = torch.quantize_per_tensor(x, X_SCALE, ZERO, torch.quint8)
        scales, zeros = torch.full((rows,), W_SCALE), torch.zeros(rows, dtype=torch.long)
        return xq, torch.quantize_per_channel(w, scales, zeros, 0, torch.qint8)

    def _linear_x86(self, work: Work) -> Callable[[NDArray[np.float32]], Callable[[], object]]:
        torch = self.torch
        x, bias = torch.from_numpy(floats(work)), torch.zeros(work.outputs)
        op, prepack = torch.ops.quantized.linear, torch.ops.quantized.linear_prepack

        def one(w: NDArray[np.float32]) -> Callable[[], object]:
            with self._engine("x86"):
                xq, wq = self._quantized(x, torch.from_numpy(w))
                packed = prepack(wq, bias)
            return lambda: op(xq, packed, Y_SCALE, ZERO)

        return one

    def _conv_arguments(self, work: Work) -> tuple[list[int], list[int], list[int], int]:
        return [work.stride] * 2, list(work.padding), [1, 1], work.groups

    def _image(self, work: Work) -> Any:
        x = self.torch.from_numpy(floats(work))
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
        x = self._u8(image, X_SCALE).contiguous(memory_format=torch.channels_last)
        n = work.outputs
        scales, zeros = torch.full((n,), W_SCALE), torch.zeros(n, dtype=torch.int)
        bias = torch.zeros(n)

        def one(w: NDArray[np.float32]) -> Callable[[], object]:
            packed = prepack(
                self._s8(torch.from_numpy(w)), scales, X_SCALE, 0, stride, padding, dilation,
                groups, list(x.shape),
            )  # fmt: skip
            return lambda: op(
                x, X_SCALE, 0, packed, scales, zeros, bias, stride, padding, dilation, groups,
                X_SCALE, 0, torch.uint8, "relu", [], "",
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
            return lambda: op(xq, packed, X_SCALE, 0)

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
