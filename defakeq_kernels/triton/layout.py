"""The GPU runtime layout: one uint8 tensor built from the storage format, never saved.

The reduction is cut into *units* of 32 or 64 positions. A unit lies in one kernel position and one
scale group; channels are padded to units. Codes of b bits are split, high bits first, into planes
of 4, 2 and 1 bits (3 = 2+1, 5 = 4+1, 6 = 4+2, 7 = 4+2+1), 8-bit codes are one plane of int8
(code - 128). In a plane of p bits, byte u of a byte tile holds position u of 8/p units:

    4-bit plane   bits 0-3: unit 2t     bits 4-7: unit 2t+1
    2-bit plane   bits 0-1: unit 4t     ...   bits 6-7: unit 4t+3
    1-bit plane   bit i: unit 8t+i

so a tile of bytes becomes a tile of codes by one shift and one mask of whole registers, without
moving any value to another lane. A *step* has as many units as the finest plane has in a byte; a
row of a plane is the byte tiles of all its steps. ``docs/gpu.md`` says how kernels read it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from defakeq_kernels.packed import HALF_BITS

MAGIC = b"DQGPU001"
_PLANES = {1: (1,), 2: (2,), 3: (2, 1), 4: (4,), 5: (4, 1), 6: (4, 2), 7: (4, 2, 1), 8: (8,)}
_DTYPES = {
    "uint8": torch.uint8,
    "int16": torch.int16,
    "int32": torch.int32,
    "float32": torch.float32,
}


def planes(bits: int) -> tuple[int, ...]:
    """Widths of the planes of a code, high bits first."""
    return _PLANES[bits]


def units_a_step(bits: int) -> int:
    """Units that one step of the kernel's loop expands: 8 / the finest plane's width."""
    return 1 if bits == HALF_BITS else 8 // _PLANES[bits][-1]


def plane_row_bytes(bits: int, plane: int, units: int, unit: int) -> int:
    """Bytes of one output's row in a plane of a `bits`-bit segment."""
    steps = -(-units // units_a_step(bits))
    return steps * units_a_step(bits) * plane // 8 * unit


@dataclass(frozen=True)
class GpuSegment:
    """Stored outputs of one width: where they begin and where their weights are.

    Attributes:
        bits: 1 to 8, or 16.
        first: the first stored output.
        count: stored outputs.
        offset: bytes from the weights' start, a multiple of 256.
    """

    bits: int
    first: int
    count: int
    offset: int


@dataclass(frozen=True)
class GpuLayout:
    """What a kernel launch needs to know about a packed layer, without touching the device.

    Attributes:
        kind: "linear" or "conv2d".
        out_channels, in_channels: of the original layer.
        kernel, stride, padding, dilation, groups: geometry; 1 and 0 for linear.
        strategy: "product", "patches" (rows of the reduction are laid out beforehand) or
            "depthwise".
        unit: positions in a unit.
        units: units of the reduction.
        channels: stored inputs of a convolution group, in their compact order with padding
            between scale groups.
        pitch: `channels` padded to units.
        gathers: whether x must be brought into the compact order first.
        scale_groups: scales of one output.
        span: units of one scale group, a power of two where there are several.
        act, out: quantizations as `ActQuant.describe()`, or None.
        activation: name of the fused activation.
        factor: 1 / out scale where results are computed in output steps, else 1.
        segments: in storage order.
        runs: (segment, first stored output, the one after the last, convolution group).
        half_inputs: inputs kept in half precision.
        asymmetric: whether some zero point is not that of symmetric codes.
        direct: whether stored output n is output n.
        sections: name -> (offset, dtype name, shape).
    """

    kind: str
    out_channels: int
    in_channels: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    strategy: str
    unit: int
    units: int
    channels: int
    pitch: int
    gathers: bool
    scale_groups: int
    span: int
    act: dict[str, Any] | None
    out: dict[str, Any] | None
    activation: str
    factor: float
    segments: tuple[GpuSegment, ...]
    runs: tuple[tuple[int, int, int, int], ...]
    half_inputs: int
    asymmetric: bool
    direct: bool
    sections: dict[str, tuple[int, str, tuple[int, ...]]]

    @property
    def stored(self) -> int:
        """Stored outputs."""
        return sum(s.count for s in self.segments)

    @property
    def taps(self) -> int:
        """Kernel positions of the loop: 1 for linear layers and laid-out patches."""
        return self.kernel[0] * self.kernel[1]

    @property
    def act_mode(self) -> str:
        """ "none", "static", "dynamic_tensor" or "dynamic_row"."""
        return "none" if self.act is None else str(self.act["mode"])

    @property
    def act_zero(self) -> int:
        """The activations' zero point."""
        return 0 if self.act is None else int(self.act["zero_point"])

    @property
    def bits(self) -> tuple[int, ...]:
        """The distinct widths, ascending."""
        return tuple(sorted({s.bits for s in self.segments}))

    def section(self, packed: Tensor, name: str) -> Tensor:
        """A typed view of a section of the runtime layout."""
        offset, dtype, shape = self.sections[name]
        kind = _DTYPES[dtype]
        size = int(np.prod(shape, dtype=np.int64)) * kind.itemsize
        return packed[offset : offset + size].view(kind).view(shape)

    def tiles(self, block: int) -> NDArray[np.int32]:
        """Tiles of up to `block` outputs that share a width and a convolution group.

        Returns:
            int32 [tiles, 8]: bits, first stored output, the stored output after the last,
            convolution group, offset of the segment's weights in units of 16 bytes, first stored
            output and outputs of the segment, 0. Wide codes come first: they take longest.
        """
        rows = []
        for number, first, last, group in self.runs:
            s = self.segments[number]
            place = (s.offset // 16, s.first, s.count, 0)
            for at in range(first, last, block):
                rows.append((s.bits, at, min(at + block, last), group, *place))
        rows.sort(key=lambda row: (-row[0], row[1]))
        return np.array(rows, np.int32).reshape(-1, 8)


def read_layout(packed: Tensor) -> GpuLayout:
    """The description of a runtime layout, read once a tensor and then remembered.

    Raises:
        ValueError: `packed` is no GPU runtime layout.
    """
    known = _KNOWN.get(_place(packed))
    if known is not None:
        return known[1]
    accepted = "a contiguous uint8 tensor made by layer.to('cuda')"
    whole = packed.dim() == 1 and packed.is_contiguous() and packed.storage_offset() % 256 == 0
    if packed.dtype != torch.uint8 or not whole:
        raise ValueError(
            f"packed: found {packed.dtype} with shape {list(packed.shape)}; accepted is {accepted}"
        )
    head = bytes(packed[:16].cpu().tolist())
    length = int.from_bytes(head[8:16], "little")
    if head[:8] != MAGIC or not 0 < length <= packed.numel() - 16:
        raise ValueError(
            f"packed: found a tensor of {packed.numel()} bytes that is no GPU layout (one packed "
            f"for the CPU?); accepted is {accepted}"
        )
    layout = from_json(json.loads(bytes(packed[16 : 16 + length].cpu().tolist())))
    remember(packed, layout)
    return layout


def device_tiles(packed: Tensor, block: int) -> tuple[Tensor | None, int]:
    """`GpuLayout.tiles` on the tensor's device, made once, and how many there are.

    The table is None when all outputs have one width and one convolution group.
    """
    layout = read_layout(packed)
    if len(layout.runs) == 1:
        return None, -(-layout.stored // block)
    tables = _KNOWN[_place(packed)][2]
    if block not in tables:
        tables[block] = torch.from_numpy(layout.tiles(block)).to(packed.device)
    return tables[block], len(tables[block])


def remember(packed: Tensor, layout: GpuLayout) -> None:
    """Associates the memory of `packed` with its description, for as long as it lives."""
    for key in [key for key, known in _KNOWN.items() if known[0].expired()]:
        del _KNOWN[key]
    _KNOWN[_place(packed)] = (StorageWeakRef(packed.untyped_storage()), layout, {})


def _place(packed: Tensor) -> tuple[int, int]:
    """Several layers may lie in one storage."""
    return packed.untyped_storage()._cdata, int(packed.storage_offset())


# A weak reference keeps the address of a storage's record from being used again, so a hit is
# always the same storage.
_KNOWN: dict[tuple[int, int], tuple[StorageWeakRef, GpuLayout, dict[int, Tensor]]] = {}


def from_json(found: Mapping[str, Any]) -> GpuLayout:
    """The inverse of `dataclasses.asdict` through JSON."""
    fields = dict(found)
    for name in ("kernel", "stride", "padding", "dilation"):
        fields[name] = tuple(fields[name])
    fields["runs"] = tuple(tuple(run) for run in fields["runs"])
    fields["segments"] = tuple(GpuSegment(**s) for s in fields["segments"])
    fields["sections"] = {
        name: (offset, dtype, tuple(shape))
        for name, (offset, dtype, shape) in fields["sections"].items()
    }
    return GpuLayout(**fields)
