"""What the layers share: buffers, states, the runtime layout and the call."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.parameter import is_lazy

from defakeq_kernels import (
    _core,
    ops,  # noqa: F401  registers torch.ops.defakeq
)
from defakeq_kernels.packed import (
    HALF_BITS,
    LAYER_FIELDS,
    SEGMENT_FIELDS,
    PackedWeight,
    Segment,
)
from defakeq_kernels.quantize import (
    ACTIVATIONS,
    ActQuant,
    float_out,
    int8_out,
    quantize_weight,
)

Indices = Tensor | Sequence[int] | NDArray[Any] | None
_Layer = TypeVar("_Layer", bound="QuantLayer")

_FLOATS = (torch.float32, torch.float16, torch.bfloat16)


class QuantLayer(torch.nn.Module):
    """What QuantLinear and QuantConv2d share.

    The storage format is held in buffers and is what ``state_dict`` has, with the geometry and the
    activation quantization as JSON in the extra state. The runtime layout of the kernels of the
    layer's device, the buffer ``packed``, is built from it and never saved; loading a state,
    unpickling, copying and ``to("cuda")`` build it anew. ``half()``, ``bfloat16()`` and
    ``double()`` leave all buffers as they are: a layer takes float32, float16 and bfloat16 inputs
    in any case.

    Args:
        weight: the packed weight, of the layer's kind.
        act: input quantization; None: weight-only, float32 math.
        activation: "none", "relu", "relu6", "hardswish", "silu", "gelu" or "sigmoid", applied
            to the output in the kernel.
        out: static quantization of int8 outputs; None: float outputs.

    Raises:
        ValueError: naming the argument.
    """

    kind: ClassVar[str]
    packed: Tensor

    def __init__(
        self,
        weight: PackedWeight,
        act: ActQuant | None = None,
        activation: str = "none",
        out: ActQuant | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(weight, PackedWeight) or weight.kind != self.kind:
            found = weight.kind if isinstance(weight, PackedWeight) else type(weight).__name__
            raise ValueError(f"weight: found {found!r}; accepted is a PackedWeight of {self.kind}")
        for name, value in (("act", act), ("out", out)):
            if value is not None and not isinstance(value, ActQuant):
                found = type(value).__name__
                raise ValueError(f"{name}: found {found}; accepted is an ActQuant or None")
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation: found {activation!r}; accepted is one of {ACTIVATIONS}")
        self._geometry: dict[str, Any] = weight.describe()
        self._act = act
        self._activation = activation
        self._out = out
        for name, array in _arrays(weight).items():
            self.register_buffer(name, torch.from_numpy(np.array(array)))
        packed = self._pack(weight.validate(), torch.device("cpu"))
        self.register_buffer("packed", packed, persistent=False)

    # construction

    @classmethod
    def _from_weight(
        cls: type[_Layer],
        module: torch.nn.Module,
        act: ActQuant | None,
        activation: str,
        options: Mapping[str, Any],
        geometry: Mapping[str, Any],
    ) -> _Layer:
        dense, bias = module.weight, module.bias
        assert isinstance(dense, Tensor)
        if is_lazy(dense) or dense.is_meta or not dense.is_floating_point():
            found = "no value yet" if is_lazy(dense) or dense.is_meta else str(dense.dtype)
            raise ValueError(f"module.weight: found {found}; accepted is floating-point values")
        indices = ("keep_out", "keep_in", "half_out", "half_in")
        weight = quantize_weight(
            _host(dense),
            kind=cls.kind,
            bits=_bits(options["bits"]),
            symmetric=options["symmetric"],
            group_size=options["group_size"],
            bias=_host(bias) if isinstance(bias, Tensor) else None,
            scale=options["scale"],
            zero_point=options["zero_point"],
            **{name: _index(name, options[name]) for name in indices},
            **geometry,
        )
        return cls(weight, act=act, activation=activation).train(module.training)

    # the storage format

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """The shape of the original weight."""
        return tuple(self._geometry["shape"])

    @property
    def act(self) -> ActQuant | None:
        """The input quantization; None: weight-only."""
        return self._act

    @property
    def activation(self) -> str:
        """The fused activation's name."""
        return self._activation

    @property
    def out(self) -> ActQuant | None:
        """The output quantization; None: float outputs."""
        return self._out

    @property
    def bits(self) -> tuple[int, ...]:
        """The width of each segment, in storage order."""
        return tuple(self._geometry["bits"])

    def packed_weight(self) -> PackedWeight:
        """The storage format, as arrays that share memory with the buffers where they can."""
        buffers = {name: b for name, b in self._buffers.items() if b is not None}
        return self._build({name: b for name, b in buffers.items() if name != "packed"})

    def dequantized_weight(self) -> Tensor:
        """float32 weight of the original shape; pruned rows and columns are zero."""
        return torch.from_numpy(self.packed_weight().dequantize())

    def dequantized_bias(self) -> Tensor | None:
        """float32 [outputs], zero where an output is pruned; None without a bias."""
        weight = self.packed_weight()
        if weight.bias is None:
            return None
        bias = torch.zeros(weight.shape[0], dtype=torch.float32, device="cpu")
        bias[torch.from_numpy(weight.out_index).long()] = torch.from_numpy(weight.bias)
        return bias

    def explain(self) -> dict[str, Any]:
        """How the layer runs here.

        Returns:
            The native library's account (strategy, reason, kernel, segments, MACs done and
            skipped an output position, bytes of the runtime layout), with ``storage_bytes`` and
            ``fallbacks``, a list of sentences on what runs slower than it could and why. On a GPU
            strategy, kernel, bytes and device only.
        """
        if self.packed.device.type == "cuda":
            return self._explain_gpu()
        info: dict[str, Any] = dict(_core.layer_info(self.packed.cpu().numpy()))
        info["storage_bytes"] = self.packed_weight().nbytes
        info["fallbacks"] = self._fallbacks()
        return info

    def _explain_gpu(self) -> dict[str, Any]:
        from defakeq_kernels.triton.layout import read_layout

        layout = read_layout(self.packed)
        fallbacks = []
        unaligned = layout.strategy != "depthwise" and layout.channels % 8 != 0
        if layout.gathers or unaligned or layout.act_mode.startswith("dynamic"):
            fallbacks.append("a pass of its own lays out or quantizes the input before the product")
        return {
            "strategy": layout.strategy,
            "kernel": "depthwise" if layout.strategy == "depthwise" else "product",
            "device": str(self.packed.device),
            "packed_bytes": self.packed.numel(),
            "storage_bytes": self.packed_weight().nbytes,
            "fallbacks": fallbacks,
        }

    def _fallbacks(self) -> list[str]:
        found = []
        isa = _core.cpu_info()
        if isa["selected"] == "scalar":
            allowed = ", ".join(isa["isa"]["allowed"])
            found.append(
                "scalar kernels: no vector instruction set is built, supported and allowed "
                f"(allowed: {allowed})"
            )
        narrow = any(bits != HALF_BITS for bits in self.bits)
        if self._act is None and narrow:
            found.append("float32 math on expanded codes: the layer is weight-only (act is None)")
        if self._act is not None and HALF_BITS in self.bits:
            outputs = int(self._buffer_of(self.bits.index(HALF_BITS), "out_index").numel())
            found.append(f"float32 math for {outputs} outputs stored in half precision")
        return found

    def _buffer_of(self, segment: int, field: str) -> Tensor:
        return self.get_buffer(f"seg{segment}_{field}")

    def _build(self, buffers: Mapping[str, Tensor]) -> PackedWeight:
        arrays = {name: b.detach().cpu().numpy() for name, b in buffers.items()}
        segments = tuple(
            Segment(bits, **{f: arrays.get(f"seg{i}_{f}") for f in SEGMENT_FIELDS})  # type: ignore[arg-type]
            for i, bits in enumerate(self._geometry["bits"])
        )
        g = self._geometry
        return PackedWeight(
            kind=g["kind"],
            shape=tuple(g["shape"]),
            segments=segments,
            stride=tuple(g["stride"]),
            padding=tuple(g["padding"]),
            dilation=tuple(g["dilation"]),
            groups=g["groups"],
            group_size=g["group_size"],
            **{f: arrays.get(f) for f in LAYER_FIELDS},  # type: ignore[arg-type]
        )

    # the runtime layout

    def _pack(self, weight: PackedWeight, device: torch.device) -> Tensor:
        if device.type == "cuda":
            from defakeq_kernels.triton.layout import remember
            from defakeq_kernels.triton.pack import pack

            made, description = pack(weight, self._act, self._activation, self._out)
            moved = made.to(device)
            remember(moved, description)
            return moved
        blob = _core.pack_layer(
            weight.spec(
                None if self._act is None else self._act.describe(),
                self._activation,
                float_out() if self._out is None else int8_out(self._out),
            )
        )
        # torch aligns to 64 bytes. The host's memory, whatever torch.device() is in force.
        packed = torch.empty(blob.shape[0], dtype=torch.uint8, device="cpu")
        packed.numpy()[:] = blob
        return packed.to(device)

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        state["_buffers"] = {k: v for k, v in self._buffers.items() if k != "packed"}
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._buffers["packed"] = self._pack(self.packed_weight().validate(), self._device())

    def _apply(self: _Layer, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> _Layer:
        def keep_type(t: Tensor) -> Tensor:
            moved = fn(t)
            return moved if moved.dtype == t.dtype else t.to(moved.device)

        packed = self.packed
        self._buffers["packed"] = None
        try:
            super()._apply(keep_type, recurse)
        finally:
            self._buffers["packed"] = packed
        device = self._device()
        if device.type != packed.device.type and "cuda" in (device.type, packed.device.type):
            self._buffers["packed"] = self._pack(self.packed_weight(), device)
        else:
            self._buffers["packed"] = keep_type(packed)
        return self

    def _device(self) -> torch.device:
        return self.get_buffer("seg0_out_index").device

    # state

    def _config(self) -> dict[str, Any]:
        return {
            "weight": self._geometry,
            "act": None if self._act is None else self._act.describe(),
            "activation": self._activation,
            "out": None if self._out is None else self._out.describe(),
        }

    def get_extra_state(self) -> Tensor:
        """The geometry, activation and quantizations as UTF-8 JSON, a uint8 tensor."""
        text = json.dumps(self._config(), sort_keys=True)
        return torch.from_numpy(np.frombuffer(text.encode(), np.uint8).copy())

    def set_extra_state(self, state: Tensor) -> None:
        """Takes the activation and the quantizations from `get_extra_state`'s tensor.

        Raises:
            ValueError: the state is of a layer of another geometry, or no such state.
        """
        self._act, self._activation, self._out = self._read_config(state)

    def _read_config(self, state: object) -> tuple[ActQuant | None, str, ActQuant | None]:
        try:
            assert isinstance(state, Tensor)
            config = json.loads(bytes(state.cpu().numpy().tobytes()).decode())
            geometry, activation = config["weight"], config["activation"]
            act, out = (
                None if config[k] is None else ActQuant(**config[k]) for k in ("act", "out")
            )
        except (AssertionError, KeyError, TypeError, UnicodeDecodeError, json.JSONDecodeError):
            raise ValueError(
                "_extra_state: found no layer description; accepted is a state of this class"
            ) from None
        for key, own in self._geometry.items():
            found = geometry.get(key)
            if found != own:
                raise ValueError(
                    f"{key}: found {found} in the state; accepted is {own}, the layer's"
                )
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation: found {activation!r}; accepted is one of {ACTIVATIONS}")
        return act, activation, out

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        names = [name for name in self._buffers if name != "packed"]
        loaded = {name: state_dict.get(prefix + name) for name in names}
        extra = state_dict.get(prefix + "_extra_state")
        try:
            if extra is not None:
                self._read_config(extra)
            found = {name: value for name, value in loaded.items() if value is not None}
            for name, value in found.items():
                _check_buffer(name, value, self.get_buffer(name))
            if len(found) == len(names):
                self._build(found).validate()
        except ValueError as error:
            error_msgs.append(f"{prefix.rstrip('.') or 'layer'}: {error}")
            return
        arguments = (local_metadata, strict, missing_keys, unexpected_keys, error_msgs)
        super()._load_from_state_dict(state_dict, prefix, *arguments)
        self._buffers["packed"] = self._pack(self.packed_weight(), self._device())

    # the call

    def _floats(self, name: str, t: Tensor) -> Tensor:
        """`t` as the ops take it: int8 as it is, other accepted types as float32 on the CPU."""
        if not isinstance(t, Tensor) or t.layout != torch.strided:
            found = f"a {t.layout} tensor" if isinstance(t, Tensor) else type(t).__name__
            raise ValueError(f"{name}: found {found}; accepted is a dense tensor")
        if t.dtype == torch.int8:
            return t
        if t.dtype not in _FLOATS:
            raise ValueError(
                f"{name}: found {t.dtype}; accepted is float32, float16, bfloat16 or int8"
            )
        if t.requires_grad and torch.is_grad_enabled():
            raise RuntimeError(
                f"{name}: found a tensor that requires grad; accepted is one that does not, since "
                "quantized layers have no gradient: call under torch.no_grad(), or detach() it"
            )
        return t if t.dtype == torch.float32 or t.is_cuda else t.float()

    def _call(
        self,
        op: Callable[..., Tensor],
        x: Tensor,
        geometry: tuple[Any, ...],
        residual: Tensor | None,
        half_input: Tensor | None,
        residual_scale: float,
        residual_zero_point: int,
    ) -> Tensor:
        y = op(
            self._floats("x", x),
            self.packed,
            *geometry,
            self._out is not None,
            None if residual is None else self._floats("residual", residual),
            residual_scale,
            residual_zero_point,
            None if half_input is None else self._floats("half_input", half_input),
        )
        if self._out is None and x.dtype in (torch.float16, torch.bfloat16):
            return y.to(x.dtype)  # on a GPU it has this type already
        return y

    def extra_repr(self) -> str:
        """Widths, pruning and quantization on one line."""
        shape = self.weight_shape
        counts = [
            f"{int(self._buffer_of(i, 'out_index').numel())}x{bits}bit"
            for i, bits in enumerate(self.bits)
        ]
        act = "none" if self._act is None else f"{self._act.mode}:{self._act.bits}bit"
        parts = [f"shape={list(shape)}", f"outputs={'+'.join(counts)}", f"act={act}"]
        for name in ("in_index", "half_in_index"):
            if self._buffers.get(name) is not None:
                parts.append(f"{name}={int(self.get_buffer(name).numel())}")
        if self._activation != "none":
            parts.append(f"activation={self._activation}")
        if self._out is not None:
            parts.append(f"out={self._out.mode}:{self._out.bits}bit")
        return ", ".join(parts)


def _arrays(weight: PackedWeight) -> dict[str, NDArray[Any]]:
    """Buffer names and arrays of the storage format."""
    named: dict[str, NDArray[Any] | None] = {}
    for i, segment in enumerate(weight.segments):
        for field in SEGMENT_FIELDS:
            named[f"seg{i}_{field}"] = getattr(segment, field)
    for field in LAYER_FIELDS:
        named[field] = getattr(weight, field)
    return {name: array for name, array in named.items() if array is not None}


def _check_buffer(name: str, found: object, own: Tensor) -> None:
    if not isinstance(found, Tensor):
        raise ValueError(f"{name}: found {type(found).__name__} in the state; accepted is a tensor")
    if found.dtype != own.dtype or found.shape != own.shape:
        raise ValueError(
            f"{name}: found {found.dtype} with shape {list(found.shape)} in the state; "
            f"accepted is {own.dtype} with shape {list(own.shape)}"
        )


def _host(t: Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = t.detach().float().cpu().numpy()
    return array


def _bits(bits: int | Sequence[int] | Tensor) -> Any:
    return bits.detach().cpu().numpy() if isinstance(bits, Tensor) else bits


def _index(name: str, value: Indices) -> Any:
    if isinstance(value, Tensor):
        if value.dtype == torch.bool:
            raise ValueError(f"{name}: found a mask; accepted is a tensor of channel indices")
        return value.detach().cpu().numpy()
    return value
