"""A model as blocks between which a single tensor flows, for batches of a fixed size."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from defakeq.lower.capture import Captured, Node, args_of, capture, prepare
from defakeq.lower.groups import LAYERS
from defakeq.plan import QuantPlan, quantizable_layers

MOST_BATCH = 16
_AN_OUTPUT = 64  # multiply-adds

LayerCall = Callable[["Layer", Tensor], Tensor]


@dataclass(eq=False)
class Layer:
    """A Conv2d or Linear of the model, folded.

    Attributes:
        name: in the model.
        weight: [O, I] or [O, I / groups, kh, kw].
        bias: [O] or None.
        geometry: stride, padding and dilation as aten takes them, and the groups; () for linear.
        positions: outputs of one channel for one image.
    """

    name: str
    weight: Tensor
    bias: Tensor | None
    geometry: tuple[Any, ...]
    positions: int
    rank: int

    @property
    def conv(self) -> bool:
        """Whether it is a convolution."""
        return self.weight.dim() == 4

    @property
    def groups(self) -> int:
        """Convolution groups."""
        return int(self.geometry[3]) if self.conv else 1

    @property
    def products(self) -> int:
        """Multiply-adds of one image."""
        return self.positions * self.weight.numel()

    @property
    def channel_dim(self) -> int:
        """The dimension of the channels, in inputs and outputs."""
        return 1 if self.conv else self.rank - 1

    def apply(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The layer's result with other parameters."""
        if not self.conv:
            return torch.nn.functional.linear(x, weight, bias)
        y: Tensor = torch.ops.aten.conv2d.default(x, weight, bias, *self.geometry)
        return y

    def rows(self, x: Tensor) -> Tensor:
        """The inputs of every product: [groups, positions of all images, K]."""
        if not self.conv:
            return x.reshape(1, -1, x.shape[-1])
        stride, padding, dilation, groups = self.geometry
        kernel = tuple(self.weight.shape[2:])
        if kernel == (1, 1) and tuple(padding) == (0, 0):
            flat = x[:, :, :: stride[0], :: stride[1]].flatten(2)
        else:
            flat = torch.nn.functional.unfold(x, kernel, dilation, padding, stride)
        size = flat.shape[1] // groups
        parts = flat.reshape(flat.shape[0], groups, size, -1)
        return parts.permute(1, 0, 3, 2).reshape(groups, -1, size)


@dataclass(eq=False)
class Block:
    """Consecutive operators with one tensor in and one out."""

    nodes: list[Node]
    source: Node
    result: Node
    layers: list[Layer] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The names of the layers, shortened to what they share."""
        names = [layer.name for layer in self.layers]
        shared = names[0].split(".") if names else ["-"]
        for other in names[1:]:
            parts = other.split(".")
            count = 0
            while count < min(len(parts), len(shared)) and parts[count] == shared[count]:
                count += 1
            shared = shared[:count]
        return ".".join(shared) or f"{names[0]} to {names[-1]}"


class Graph:
    """A captured model, with BatchNorm folded, that runs block by block.

    Args:
        model: the float model; left as it is.
        images: float32 [N, ...], of which the first `batch` are looked at.
        batch: images in a call; None: the most up to 16 that N is a multiple of.

    Raises:
        ValueError: a model that cannot be captured or has no layer to compress.
    """

    def __init__(self, model: nn.Module, images: Tensor, batch: int | None = None) -> None:
        self.batch = batch or _batch_of(images.shape[0])
        inputs: Any = ((images[: self.batch],), {})
        self.model = prepare(model, QuantPlan({}), inputs)
        self.captured = capture(self.model, inputs)
        if len(self.captured.inputs) != 1:
            raise ValueError(
                f"model: found {len(self.captured.inputs)} inputs; accepted is one tensor of images"
            )
        self.layers = _layers(self.captured, self.model)
        if not self.layers:
            raise ValueError("model: found no Conv2d or Linear to compress; accepted is some")
        self.blocks = _blocks(self.captured, self.layers, self.batch)
        self.by_node = {
            node: self.layers[name]
            for node, name in _calls(self.captured).items()
            if name in self.layers
        }

    def to(self, device: torch.device) -> Graph:
        """Itself, with all constants on a device."""
        if device.type == "cpu":
            return self
        self.model.to(device)
        constants = self.captured.constants
        for node, value in constants.items():
            constants[node] = value.to(device)
        for layer in self.layers.values():
            layer.weight = layer.weight.to(device)
            layer.bias = None if layer.bias is None else layer.bias.to(device)
        return self

    def run(self, block: Block, x: Tensor, call: LayerCall | None = None) -> Tensor:
        """A block's output for a batch; `call` computes the layers, None: as they are."""
        values: dict[Node, Any] = dict(self.captured.constants)
        values[block.source] = x
        last = {used: node for node in block.nodes for used in node.all_input_nodes}
        for node in block.nodes:
            layer = self.by_node.get(node)
            if layer is not None and call is not None:
                values[node] = call(layer, values[args_of(node)[0]])
            else:
                args = fx.node.map_arg(node.args, values.__getitem__)
                kwargs = fx.node.map_arg(node.kwargs, values.__getitem__)
                values[node] = node.target(*args, **kwargs)  # type: ignore[operator]
            for used in node.all_input_nodes:
                if last[used] is node and used not in self.captured.constants:
                    values.pop(used, None)
        result: Tensor = values[block.result]
        return result

    def batches(self, images: Tensor) -> Iterator[Tensor]:
        """The images in full batches; a rest that fills none is left out."""
        for begin in range(0, images.shape[0] - self.batch + 1, self.batch):
            yield images[begin : begin + self.batch]

    def forward(self, images: Tensor, call: LayerCall | None = None) -> tuple[Tensor, Tensor]:
        """Features and first output of a batch.

        Features are the input of the last block, averaged over positions: [batch, channels].
        """
        x = images
        features = x
        for block in self.blocks:
            features = x
            x = self.run(block, x, call)
        return pooled(features), x


def steps_of(layers: Iterable[Layer], batch: int, work: float, fewest: int, most: int) -> int:
    """How many steps of a batch, forth and back, `work` multiply-adds are good for.

    An output counts as so many more, since moving it takes as long.
    """
    costs = [
        layer.products + _AN_OUTPUT * layer.positions * layer.weight.shape[0] for layer in layers
    ]
    a_step = 3.0 * batch * sum(costs)
    return int(min(max(work / max(a_step, 1.0), fewest), most))


def pooled(x: Tensor) -> Tensor:
    """[N, C] of [N, C], [N, tokens, C] or [N, C, H, W]."""
    if x.dim() == 4:
        return x.mean((2, 3))
    return x.mean(1) if x.dim() == 3 else x.flatten(1)


def first_output(outputs: Any) -> Tensor:
    """The first tensor of what a model returns: itself, or of a tuple, a dictionary and the like.

    Raises:
        ValueError: there is none.
    """
    for leaf in tree_leaves(outputs):
        if isinstance(leaf, Tensor):
            return leaf
    raise ValueError(
        f"model: found {type(outputs).__name__} without a tensor as its result; accepted is the "
        "logit of a forgery, logits, or several tensors of which they are the first"
    )


def margin(outputs: Tensor) -> Tensor:
    """How much each image is held for a forgery, [N]: the logit, or the last class's lead."""
    flat = outputs.reshape(outputs.shape[0], -1)
    if flat.shape[1] == 1:
        return flat[:, 0]
    return flat[:, -1] - flat[:, :-1].logsumexp(1)


def _batch_of(count: int) -> int:
    if count <= MOST_BATCH:
        return count
    best = max(n for n in range(1, MOST_BATCH + 1) if count % n == 0)
    return best if best >= 4 else MOST_BATCH


def _calls(captured: Captured) -> dict[Node, str]:
    """The layer of each call whose weight is a parameter as it is."""
    calls = {}
    for node in captured.nodes:
        if node.target not in LAYERS or not isinstance(args_of(node)[0], Node):
            continue
        name = captured.parameters.get(args_of(node)[1], "")
        if name.endswith(".weight"):
            calls[node] = name.removesuffix(".weight")
    return calls


def _layers(captured: Captured, model: nn.Module) -> dict[str, Layer]:
    known = quantizable_layers(model)
    layers: dict[str, Layer] = {}
    constants = captured.constants
    for node, name in _calls(captured).items():
        if name not in known or name in layers:
            continue
        args = args_of(node)
        bias = constants[args[2]] if len(args) > 2 and isinstance(args[2], Node) else None
        conv = node.target is torch.ops.aten.conv2d.default
        shape = captured.shapes[node]
        geometry: tuple[Any, ...] = ()
        if conv:
            rest = list(args[3:])
            defaults: list[Any] = [[1, 1], [0, 0], [1, 1], 1]
            rest += defaults[len(rest) :]
            geometry = (*(_pair(value) for value in rest[:3]), int(rest[3]))
        channels = shape[1] if conv else shape[-1]
        count = 1
        for size in shape[1:]:
            count *= size
        layers[name] = Layer(
            name,
            constants[args[1]].detach(),
            None if bias is None else bias.detach(),
            geometry,
            max(count // channels, 1),
            len(shape),
        )
    return layers


def _pair(value: Any) -> list[int]:
    values = [int(v) for v in value] if isinstance(value, (list, tuple)) else [int(value)]
    return [values[0], values[-1]]


def _blocks(captured: Captured, layers: dict[str, Layer], batch: int) -> list[Block]:
    calls = {n: layers[name] for n, name in _calls(captured).items() if name in layers}
    result = captured.outputs[0]
    needed = {result}
    for node in reversed(captured.nodes):
        if node in needed:
            needed.update(used for used in node.all_input_nodes if used not in captured.constants)
    nodes = [node for node in captured.nodes if node in needed]
    last = {used: i for i, node in enumerate(nodes) for used in node.all_input_nodes}
    (source,) = captured.inputs
    live = {source}
    pieces: list[Block] = []
    current: list[Node] = []
    at = source
    for i, node in enumerate(nodes):
        current.append(node)
        live.add(node)
        live = {value for value in live if last.get(value, -1) > i or value is result}
        value = node.meta.get("val")
        shape = captured.shapes.get(node, ())
        cut = live == {node} and isinstance(value, Tensor) and shape[:1] == (batch,)
        if cut or node is result:
            found = [calls[n] for n in current if n in calls]
            pieces.append(Block(current, at, node, found))
            current, at = [], node
    blocks: list[Block] = []
    for piece in pieces:
        if blocks and not (piece.layers and blocks[-1].layers):
            blocks[-1].nodes += piece.nodes
            blocks[-1].layers += piece.layers
            blocks[-1].result = piece.result
        else:
            blocks.append(piece)
    return blocks
