"""Writes the shape files of whole detectors from their published architectures.

    python bench/make_shapes.py

Convolutional networks at 256 x 256, transformers and MobileNetV3 at 224 x 224, two classes. A file
lists every layer with weights once, with how often the network has it; its first line says how many
multiply-adds these are (products of activations, in attention, are not layers).
"""

from __future__ import annotations

from pathlib import Path

from defakeq.bench.shapes import parse_work

TARGET = Path(__file__).resolve().parent.parent / "python/defakeq/bench/shapes"


class Layers:
    """A list of layers and the size of the image so far."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.names: list[str] = []

    def conv(
        self, kernel: int, ins: int, outs: int, stride: int = 1, pad: int | None = None
    ) -> None:
        """Add a convolution; the image shrinks with it."""
        channels = str(ins) if ins == outs else f"{ins}-{outs}"
        self._spatial(f"conv {kernel}x{kernel} {channels}", stride, pad)

    def side(self, ins: int, outs: int, stride: int) -> None:
        """Add the 1x1 convolution of a shortcut; the image stays."""
        before = self.size
        self.conv(1, ins, outs, stride)
        self.size = before

    def depthwise(self, kernel: int, channels: int, stride: int = 1) -> None:
        """Add a depthwise convolution."""
        self._spatial(f"dwconv {kernel}x{kernel} {channels}", stride, None)

    def separable(self, ins: int, outs: int) -> None:
        """Add a depthwise 3x3 and a pointwise convolution."""
        self.depthwise(3, ins)
        self.conv(1, ins, outs)

    def product(self, rows: int, outs: int, ins: int) -> None:
        """Add a linear layer."""
        self.names.append(f"{'gemv' if rows == 1 else 'gemm'} {rows}x{outs}x{ins}")

    def excite(self, channels: int, squeezed: int) -> None:
        """Add the two layers of squeeze-and-excitation."""
        self.product(1, squeezed, channels)
        self.product(1, channels, squeezed)

    def _spatial(self, head: str, stride: int, pad: int | None) -> None:
        name = f"{head}@{self.size}x{self.size}"
        name += f"/{stride}" if stride > 1 else ""
        name += f"p{pad}" if pad is not None else ""
        self.names.append(name)
        self.size = parse_work(name).out_size[0]


def pooled(size: int) -> int:
    """After a pooling of stride 2 with padding."""
    return (size + 1) // 2


def divisible(value: float) -> int:
    """The nearest multiple of 8 that loses at most a tenth."""
    rounded = max(8, int(value + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * value else rounded


def resnet34() -> Layers:
    net = Layers(256)
    net.conv(7, 3, 64, 2)
    net.size = pooled(net.size)
    ins = 64
    for outs, blocks, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        if stride > 1:
            net.side(ins, outs, stride)
        net.conv(3, ins, outs, stride)
        for _ in range(2 * blocks - 1):
            net.conv(3, outs, outs)
        ins = outs
    net.product(1, 2, ins)
    return net


def xception() -> Layers:
    net = Layers(256)
    net.conv(3, 3, 32, 2, pad=0)
    net.conv(3, 32, 64, pad=0)
    for ins, outs in ((64, 128), (128, 256), (256, 728)):
        net.side(ins, outs, 2)
        net.separable(ins, outs)
        net.separable(outs, outs)
        net.size = pooled(net.size)
    for _ in range(8 * 3):
        net.separable(728, 728)
    net.side(728, 1024, 2)
    net.separable(728, 728)
    net.separable(728, 1024)
    net.size = pooled(net.size)
    net.separable(1024, 1536)
    net.separable(1536, 2048)
    net.product(1, 2, 2048)
    return net


def efficientnet_b4() -> Layers:
    width, depth = 1.4, 1.8
    net = Layers(256)
    ins = divisible(32 * width)
    net.conv(3, 3, ins, 2)
    for expand, kernel, stride, channels, blocks in (
        (1, 3, 1, 16, 1),
        (6, 3, 2, 24, 2),
        (6, 5, 2, 40, 2),
        (6, 3, 2, 80, 3),
        (6, 5, 1, 112, 3),
        (6, 5, 2, 192, 4),
        (6, 3, 1, 320, 1),
    ):
        outs = divisible(channels * width)
        for block in range(-int(-blocks * depth // 1)):
            inner = ins * expand
            if expand > 1:
                net.conv(1, ins, inner)
            net.depthwise(kernel, inner, stride if block == 0 else 1)
            net.excite(inner, ins // 4)
            net.conv(1, inner, outs)
            ins = outs
    last = divisible(1280 * width)
    net.conv(1, ins, last)
    net.product(1, 2, last)
    return net


def meso4() -> Layers:
    net = Layers(256)
    for kernel, ins, outs, pool in ((3, 3, 8, 2), (5, 8, 8, 2), (5, 8, 16, 2), (5, 16, 16, 4)):
        net.conv(kernel, ins, outs)
        net.size //= pool
    net.product(1, 16, 16 * net.size * net.size)
    net.product(1, 2, 16)
    return net


def mobilenet_v3_large() -> Layers:
    net = Layers(224)
    net.conv(3, 3, 16, 2)
    ins = 16
    for kernel, inner, outs, excite, stride in (
        (3, 16, 16, False, 1),
        (3, 64, 24, False, 2),
        (3, 72, 24, False, 1),
        (5, 72, 40, True, 2),
        (5, 120, 40, True, 1),
        (5, 120, 40, True, 1),
        (3, 240, 80, False, 2),
        (3, 200, 80, False, 1),
        (3, 184, 80, False, 1),
        (3, 184, 80, False, 1),
        (3, 480, 112, True, 1),
        (3, 672, 112, True, 1),
        (5, 672, 160, True, 2),
        (5, 960, 160, True, 1),
        (5, 960, 160, True, 1),
    ):
        if inner != ins:
            net.conv(1, ins, inner)
        net.depthwise(kernel, inner, stride)
        if excite:
            net.excite(inner, divisible(inner / 4))
        net.conv(1, inner, outs)
        ins = outs
    net.conv(1, ins, 960)
    net.product(1, 1280, 960)
    net.product(1, 2, 1280)
    return net


def transformer_block(net: Layers, tokens: int, width: int) -> None:
    net.product(tokens, 3 * width, width)
    net.product(tokens, width, width)
    net.product(tokens, 4 * width, width)
    net.product(tokens, width, 4 * width)


def swin_base() -> Layers:
    net = Layers(224)
    width = 128
    net.conv(4, 3, width, 4, pad=0)
    tokens = net.size**2
    for stage, blocks in enumerate((2, 2, 18, 2)):
        if stage:
            tokens //= 4
            net.product(tokens, 2 * width, 4 * width)
            width *= 2
        for _ in range(blocks):
            transformer_block(net, tokens, width)
    net.product(1, 2, width)
    return net


def vit_base() -> Layers:
    net = Layers(224)
    net.conv(16, 3, 768, 16, pad=0)
    for _ in range(12):
        transformer_block(net, net.size**2 + 1, 768)
    net.product(1, 2, 768)
    return net


NETWORKS = {
    "resnet34": resnet34,
    "xception": xception,
    "efficientnet_b4": efficientnet_b4,
    "meso4": meso4,
    "mobilenet_v3_large": mobilenet_v3_large,
    "swin_base": swin_base,
    "vit_base": vit_base,
}


def main() -> None:
    for name, build in NETWORKS.items():
        net = build()
        counts = {layer: net.names.count(layer) for layer in dict.fromkeys(net.names)}
        macs = sum(parse_work(layer).macs * count for layer, count in counts.items())
        lines = [f"# {name}: {len(net.names)} layers, {macs / 1e9:.3f} GMAC"]
        lines += [f"{layer} * {n}" if n > 1 else layer for layer, n in counts.items()]
        (TARGET / f"{name}.txt").write_text("\n".join(lines) + "\n")
        print(lines[0][2:])


if __name__ == "__main__":
    main()
