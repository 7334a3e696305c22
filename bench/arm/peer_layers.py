"""Writes the layers of the ARM comparison for ONNX Runtime and ncnn: peer_layers.py FOLDER."""

from __future__ import annotations

import struct
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


class Layer(NamedTuple):
    """A square convolution of one image, with as many groups as given, ReLU in the quantization."""

    name: str
    channels: int
    kernel: int
    size: int
    groups: int

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one image."""
        per_output = self.kernel**2 * self.channels // self.groups
        return self.size**2 * self.channels * per_output


LAYERS = (
    Layer("conv 3x3 64@56x56", 64, 3, 56, 1),
    Layer("conv 1x1 728@16x16", 728, 1, 16, 1),
    Layer("dwconv 3x3 728@16x16", 728, 3, 16, 728),
)
STEP, WEIGHT_STEP = 0.03, 2e-3


def file_name(layer: Layer) -> str:
    """Return the stem of the layer's files."""
    return layer.name.replace(" ", "_").replace("@", "_")


def write_onnx(layer: Layer, weight: np.ndarray, path: Path, nhwc: bool) -> None:
    """Write a QLinearConv; in NHWC it is the engine's own operator, without transposes."""
    shape = (
        [1, layer.size, layer.size, layer.channels]
        if nhwc
        else [1, layer.channels, layer.size, layer.size]
    )
    constants = {
        "xs": np.float32(STEP),
        "xz": np.uint8(0),
        "w": weight,
        "ws": np.full(layer.channels, WEIGHT_STEP, np.float32),
        "wz": np.zeros(layer.channels, np.int8),
        "ys": np.float32(STEP),
        "yz": np.uint8(0),
        "b": np.full(layer.channels, 10, np.int32),
    }
    own = {"domain": "com.microsoft", "channels_last": 1} if nhwc else {}
    node = helper.make_node(
        "QLinearConv",
        ["x", "xs", "xz", "w", "ws", "wz", "ys", "yz", "b"],
        ["y"],
        kernel_shape=[layer.kernel] * 2,
        pads=[layer.kernel // 2] * 4,
        group=layer.groups,
        **own,
    )
    graph = helper.make_graph(
        [node],
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, shape)],
        [helper.make_tensor_value_info("y", TensorProto.UINT8, shape)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), path)


def write_ncnn(layer: Layer, weight: np.ndarray, stem: Path) -> None:
    """Write an int8 convolution with requantization."""
    dense = layer.groups == 1
    kind = "Convolution" if dense else "ConvolutionDepthWise"
    groups = "" if dense else f" 7={layer.groups}"
    scales = 102 if dense else 101
    stem.with_suffix(".param").write_text(
        f"7767517\n2 2\nInput in 0 1 in 0={layer.size} 1={layer.size} 2={layer.channels}\n"
        f"{kind} conv 1 1 in out 0={layer.channels} 1={layer.kernel} 4={layer.kernel // 2} 5=1 "
        f"6={weight.size}{groups} 8={scales} 9=1\n"
    )
    codes = weight.tobytes()
    parts = [
        struct.pack("<I", 0x000D4B38),
        codes + bytes(-len(codes) % 4),
        np.full(layer.channels, 0.1, np.float32).tobytes(),
        np.full(layer.channels, 1 / WEIGHT_STEP, np.float32).tobytes(),
        np.full(2, 1 / STEP, np.float32).tobytes(),
    ]
    stem.with_suffix(".bin").write_bytes(b"".join(parts))


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for layer in LAYERS:
        shape = (layer.channels, layer.channels // layer.groups, layer.kernel, layer.kernel)
        normal = np.random.default_rng(1).normal(size=shape)
        weight = np.clip(np.rint(normal * 40), -127, 127).astype(np.int8)
        stem = folder / file_name(layer)
        write_onnx(layer, weight, stem.with_suffix(".onnx"), nhwc=False)
        write_onnx(layer, weight, Path(f"{stem}.nhwc.onnx"), nhwc=True)
        write_ncnn(layer, weight, stem)


if __name__ == "__main__":
    main()
