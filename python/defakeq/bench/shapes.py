"""The work that is measured: layer shapes, by name and from shape files.

A shape file has one work a line; ``#`` starts a comment, and `` * N`` at the end says how often the
network has that layer. The names:

- ``gemm MxNxK``: M rows of K inputs to N outputs; ``gemv 1xNxK`` is the same for one row;
- ``conv KHxKW C@HxW``: C channels to C channels on an H by W image, padded by half the kernel;
  ``C-D@`` for D outputs, ``/S`` at the end for a stride of S, ``pP`` after it for a padding of P;
- ``dwconv KHxKW C@HxW``: the same with one filter a channel;
- ``small op N``: one operator on N numbers through torch, where the call is all the cost.

A suffix changes the layer: ``half-out`` (every second output pruned), ``half-in-out`` (every second
input too), ``half-precision-5`` (5 % of the outputs in half precision) and
``half-precision-in-2`` (2 % of the inputs).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

VARIANTS = ("", "half-out", "half-in-out", "half-precision-5", "half-precision-in-2")

_PRODUCT = re.compile(r"(gemm|gemv) (\d+)x(\d+)x(\d+)")
_CONV = re.compile(r"(conv|dwconv) (\d+)x(\d+) (\d+)(?:-(\d+))?@(\d+)x(\d+)(?:/(\d+))?(?:p(\d+))?")
_SMALL = re.compile(r"small op (\d+)")


@dataclass(frozen=True)
class Work:
    """One layer to measure.

    Attributes:
        base: the name without the suffix.
        kind: "gemm", "gemv", "conv", "dwconv" or "small".
        rows: rows of a product; 1 for a convolution.
        outputs, inputs: channels, before any is pruned.
        kernel: height and width; (1, 1) for a product.
        size: height and width of the input image; (1, 1) for a product.
        stride: of a convolution.
        variant: the suffix, or "".
        count: how often the network has this layer.
        pad: padding on each side; None: half the kernel.
    """

    base: str
    kind: str
    rows: int
    outputs: int
    inputs: int
    kernel: tuple[int, int] = (1, 1)
    size: tuple[int, int] = (1, 1)
    stride: int = 1
    variant: str = ""
    count: int = 1
    pad: int | None = None

    @property
    def name(self) -> str:
        """The whole name, as reports state it."""
        return f"{self.base} {self.variant}" if self.variant else self.base

    @property
    def is_conv(self) -> bool:
        """Whether this is a convolution of any kind."""
        return self.kind in ("conv", "dwconv")

    @property
    def groups(self) -> int:
        """Convolution groups."""
        return self.inputs if self.kind == "dwconv" else 1

    @property
    def padding(self) -> tuple[int, int]:
        """Rows and columns of padding on each side."""
        if self.pad is not None:
            return self.pad, self.pad
        return self.kernel[0] // 2, self.kernel[1] // 2

    @property
    def out_size(self) -> tuple[int, int]:
        """Height and width of the output image."""
        height, width = (
            (n + 2 * p - k) // self.stride + 1
            for n, p, k in zip(self.size, self.padding, self.kernel, strict=True)
        )
        return height, width

    @property
    def positions(self) -> int:
        """Rows, or pixels of the output."""
        return self.rows * self.out_size[0] * self.out_size[1]

    @property
    def keep_out(self) -> NDArray[np.int32]:
        """The outputs that are computed."""
        step = 2 if self.variant in ("half-out", "half-in-out") else 1
        return np.arange(0, self.outputs, step, dtype=np.int32)

    @property
    def keep_in(self) -> NDArray[np.int32]:
        """The inputs that are read."""
        step = 2 if self.variant == "half-in-out" else 1
        return np.arange(0, self.inputs, step, dtype=np.int32)

    @property
    def half_out(self) -> NDArray[np.int32]:
        """The outputs in half precision, spread evenly."""
        return _spread(self.outputs, 0.05 if self.variant == "half-precision-5" else 0.0)

    @property
    def half_in(self) -> NDArray[np.int32]:
        """The inputs in half precision, spread evenly."""
        return _spread(self.inputs, 0.02 if self.variant == "half-precision-in-2" else 0.0)

    @property
    def reduction(self) -> int:
        """Products an output, of the channels that are read."""
        ins = 1 if self.kind == "dwconv" else len(self.keep_in)
        return ins * self.kernel[0] * self.kernel[1]

    @property
    def macs(self) -> int:
        """Multiply-adds that are done."""
        return self.positions * len(self.keep_out) * self.reduction

    def bytes_moved(self, bits: float, act_bytes: int = 1) -> int:
        """Input, weights of ``bits`` bits and output: what must be read and written once."""
        x = self.rows * self.size[0] * self.size[1] * self.inputs
        weight = len(self.keep_out) * self.reduction * bits / 8
        return int((x + self.positions * self.outputs) * act_bytes + weight)


def _spread(channels: int, part: float) -> NDArray[np.int32]:
    count = round(channels * part) if part == 0.0 else max(1, round(channels * part))
    return (np.arange(count) * channels // max(count, 1)).astype(np.int32)


def parse_work(text: str) -> Work:
    """Read one work by its name.

    Raises:
        ValueError: the name is not of a known form, or its sizes do not fit together.
    """
    name, _, times = text.strip().partition(" * ")
    head, _, last = name.rpartition(" ")
    base, variant = (head, last) if last in VARIANTS[1:] else (name, "")
    if times and (not times.isdigit() or int(times) < 1):
        raise ValueError(f"work: found {text!r}; accepted after ' * ' is a count of at least 1")
    count = int(times) if times else 1
    work = _parse_base(base, variant, count)
    if work is None:
        raise ValueError(
            f"work: found {text!r}; accepted is for example 'gemm 196x768x768', "
            "'conv 3x3 64-128@56x56/2', 'dwconv 3x3 728@16x16', 'gemv 1x1024x4096' or "
            f"'small op 8', with a suffix of {', '.join(VARIANTS[1:])}"
        )
    if min(work.rows, work.outputs, work.inputs, *work.size, *work.out_size, work.stride) < 1:
        raise ValueError(f"work: found {text!r}; accepted is sizes of at least 1 that fit")
    return work


def _parse_base(base: str, variant: str, count: int) -> Work | None:
    if match := _PRODUCT.fullmatch(base):
        m, n, k = (int(v) for v in match.groups()[1:])
        if match[1] == "gemv" and m != 1:
            return None
        return Work(base, match[1], m, n, k, variant=variant, count=count)
    if match := _CONV.fullmatch(base):
        kh, kw, ins, outs, height, width, stride = (int(v or 0) for v in match.groups()[1:8])
        pruned_in = variant in ("half-in-out", "half-precision-in-2")
        if match[1] == "dwconv" and (outs or pruned_in):
            return None
        return Work(
            base=base,
            kind=match[1],
            rows=1,
            outputs=outs or ins,
            inputs=ins,
            kernel=(kh, kw),
            size=(height, width),
            stride=stride or 1,
            variant=variant,
            count=count,
            pad=int(match[9]) if match[9] else None,
        )
    if (match := _SMALL.fullmatch(base)) and not variant:
        return Work(base, "small", 1, int(match[1]), int(match[1]), count=count)
    return None


def shape_files() -> list[str]:
    """Names of the shape files that come with the package."""
    folder = resources.files(__package__) / "shapes"
    return sorted(f.name.removesuffix(".txt") for f in folder.iterdir() if f.name.endswith(".txt"))


def load_shapes(name: str) -> list[Work]:
    """The work of a shape file.

    Args:
        name: one of `shape_files`, or the path of a file.

    Raises:
        ValueError: there is no such file, or a line of it is wrong.
    """
    if name in shape_files():
        text = (resources.files(__package__) / "shapes" / f"{name}.txt").read_text()
    elif Path(name).is_file():
        text = Path(name).read_text()
    else:
        raise ValueError(
            f"shapes: found {name!r}; accepted is a file, or one of {', '.join(shape_files())}"
        )
    works = []
    for number, line in enumerate(text.splitlines(), 1):
        content = line.partition("#")[0].strip()
        if not content:
            continue
        try:
            works.append(parse_work(content))
        except ValueError as error:
            raise ValueError(f"{name}, line {number}: {error}") from error
    return works
