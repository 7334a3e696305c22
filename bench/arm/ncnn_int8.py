"""Quantizes a network of ncnn's to int8: convolutions and inner products, as ncnn2int8 does.

Weights get a scale an output channel. All activations get one scale: instructions do not depend on
it, the logits do. A convolution whose readers are all convolutions hands them int8.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

INT8_TAG = 0x000D4B38
QUANTIZED = ("Convolution", "ConvolutionDepthWise", "InnerProduct")
WITHOUT_WEIGHTS = (
    "BinaryOp", "HardSigmoid", "HardSwish", "Input", "Pooling", "ReLU", "Reduction", "Reshape",
    "Sigmoid", "Split", "Swish",
)  # fmt: skip
STEP = 0.03


@dataclass
class Layer:
    """A line of a .param file."""

    kind: str
    name: str
    inputs: list[str]
    outputs: list[str]
    options: dict[int, str]

    def line(self) -> str:
        """Return the line."""
        counts = [str(len(self.inputs)), str(len(self.outputs))]
        options = [f"{key}={value}" for key, value in self.options.items()]
        return " ".join([self.kind, self.name, *counts, *self.inputs, *self.outputs, *options])


def read_layers(text: str) -> list[Layer]:
    """Return the layers of a .param file's text.

    Raises:
        ValueError: a layer whose weights are not understood.
    """
    layers = []
    for line in text.splitlines()[2:]:
        kind, name, ins, outs, *rest = line.split()
        if kind not in QUANTIZED + WITHOUT_WEIGHTS:
            accepted = ", ".join(QUANTIZED + WITHOUT_WEIGHTS)
            raise ValueError(f"layer {name}: found {kind}; accepted is any of {accepted}")
        blobs, options = rest[: int(ins) + int(outs)], rest[int(ins) + int(outs) :]
        pairs = dict(part.split("=") for part in options)
        keyed = {int(key): value for key, value in pairs.items()}
        layers.append(Layer(kind, name, blobs[: int(ins)], blobs[int(ins) :], keyed))
    return layers


def _hands_int8(layer: Layer, layers: list[Layer]) -> bool:
    """Whether all that read a layer's output, behind splits too, are convolutions."""
    readers = [other for other in layers if layer.outputs[0] in other.inputs]
    if len(readers) == 1 and readers[0].kind == "Split":
        readers = [other for other in layers if set(readers[0].outputs) & set(other.inputs)]
    return bool(readers) and all(reader.kind in QUANTIZED[:2] for reader in readers)


def _quantized(layer: Layer, weight: np.ndarray, requantize: bool) -> list[bytes]:
    """Return the weight and the scales that follow the bias, and note them in the options."""
    outputs = int(layer.options[0])
    term = 1 if layer.kind == "ConvolutionDepthWise" else 2
    layer.options[8] = str(term + (100 if requantize else 0))
    rows = weight.reshape(outputs, -1)
    scales = 127 / np.maximum(np.abs(rows).max(axis=1), 1e-6)
    codes = np.rint(rows * scales[:, None]).astype(np.int8).tobytes()
    steps = np.full(2 if requantize else 1, 1 / STEP, np.float32)
    return [
        struct.pack("<I", INT8_TAG) + codes + bytes(-len(codes) % 4),
        scales.astype(np.float32).tobytes() + steps.tobytes(),
    ]


def quantize(source: Path, target: Path, shape: tuple[int, int, int]) -> None:
    """Write ``target``.param and .bin from ``source``.param and .bin in float32.

    Args:
        source: path without its suffix.
        target: path without its suffix.
        shape: of the input: channels, height, width.
    """
    layers = read_layers(source.with_suffix(".param").read_text())
    data = source.with_suffix(".bin").read_bytes()
    at, parts = 0, []
    for layer in layers:
        if layer.kind == "Input":
            layer.options = {0: str(shape[2]), 1: str(shape[1]), 2: str(shape[0])}
        if layer.kind not in QUANTIZED:
            continue
        inner = layer.kind == "InnerProduct"
        size = int(layer.options[2 if inner else 6])
        if struct.unpack_from("<I", data, at)[0] != 0:
            raise ValueError(f"layer {layer.name}: accepted are weights in float32")
        weight = np.frombuffer(data, np.float32, size, at + 4)
        at += 4 + size * 4
        bias = b""
        if int(layer.options.get(1 if inner else 5, "0")):
            bias = data[at : at + int(layer.options[0]) * 4]
            at += len(bias)
        requantize = not inner and _hands_int8(layer, layers)
        codes, scales = _quantized(layer, weight, requantize)
        parts += [codes, bias, scales]
    if at != len(data):
        raise ValueError(f"{source}.bin: found {len(data)} bytes; {at} were read")
    blobs = sum(len(layer.outputs) for layer in layers)
    lines = ["7767517", f"{len(layers)} {blobs}", *(layer.line() for layer in layers)]
    target.with_suffix(".param").write_text("\n".join(lines) + "\n")
    target.with_suffix(".bin").write_bytes(b"".join(parts))
