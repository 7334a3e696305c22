"""Whole programs on a GPU: layers by our kernels, everything between them by torch's.

Values are those of the CPU's runtime ([H, W, C] images, int8 where the program says so) with a
batch in front. Layers, integer means and element-wise steps give the CPU's bytes; softmax,
attention, normalization and float functions are torch's own and may differ in the last step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from defakeq_kernels import dfq, runtime
from defakeq_kernels.quantize import ActQuant
from defakeq_kernels.triton.layout import GpuLayout, remember
from defakeq_kernels.triton.pack import pack
from defakeq_kernels.triton.program_nodes import OPS
from defakeq_kernels.triton.program_state import State, quantization

_KNOWN: dict[int, tuple[StorageWeakRef, dict[tuple[int, torch.device], GpuProgram]]] = {}


def run_program(
    program: Tensor, inputs: Sequence[Tensor], out_shapes: Sequence[int], threads: int = 0
) -> list[Tensor]:
    """`torch.ops.defakeq.run_program` on the GPU that holds the inputs.

    The file's content is checked and packed when it is first run on a device and kept as long as
    `program` lives; it may be in main memory. `threads` is of no effect.

    Raises:
        ValueError: no float32 inputs on one device, or a wrong shape, by name.
        RuntimeError: `program` is no valid file.
    """
    if not inputs or any(x.device != inputs[0].device for x in inputs):
        raise ValueError("inputs: found none or several devices; accepted is tensors of one device")
    for i, x in enumerate(inputs):
        if x.dtype != torch.float32 or x.dim() < 1:
            raise ValueError(
                f"inputs[{i}]: found {x.dtype} {list(x.shape)}; accepted is float32 [N, ...]"
            )
        if x.requires_grad and torch.is_grad_enabled():
            raise RuntimeError(
                f"inputs[{i}]: found a tensor that requires grad; accepted is one that does not: "
                "call under torch.no_grad(), or detach() it"
            )
    results = _loaded(program, inputs[0].device)(inputs)
    found = [n for y in results for n in (y.dim() - 1, *y.shape[1:])]
    if found != list(out_shapes):
        raise ValueError(f"out_shapes: found {list(out_shapes)}; accepted is {found}")
    return [y.contiguous() for y in results]


def _loaded(data: Tensor, device: torch.device) -> GpuProgram:
    storage = data.untyped_storage()
    for key in [key for key, known in _KNOWN.items() if known[0].expired()]:
        del _KNOWN[key]
    _, held = _KNOWN.setdefault(storage._cdata, (StorageWeakRef(storage), {}))
    at = (0 if data.is_inference() else data._version, device)
    if at not in held:
        content = bytes(data.cpu().numpy())
        runtime.loads(content)  # every check of a file
        held[at] = GpuProgram(*dfq.loads(content), device)
    return held[at]


class GpuProgram:
    """A checked program on a device.

    Args:
        tensors, network: of a ``.dfq`` file that `defakeq_kernels.runtime` accepts: it is not
            checked again.
        device: where to run.

    Raises:
        ValueError: a network without a program, or an operator that is not known here.
    """

    def __init__(
        self, tensors: Mapping[str, NDArray[Any]], network: Mapping[str, Any], device: torch.device
    ) -> None:
        program = network.get("program")
        if not isinstance(program, Mapping):
            raise ValueError("program: found none; accepted is a file with a program")
        self.device = device
        self.values = program["values"]
        self.inputs, self.outputs = program["inputs"], program["outputs"]
        self.nodes = program["nodes"]
        unknown = sorted({n["op"] for n in self.nodes if n["op"] not in OPS})
        if unknown:
            raise ValueError(f"nodes: found {unknown[0]!r}; accepted is one of {sorted(OPS)}")
        self._tensors = tensors
        self._moved: dict[str, Tensor] = {}
        self._made: dict[Any, Tensor] = {}
        # Values that are written in parts: they are allocated, and parts copied into them.
        written = [at for n in self.nodes for at in n["out"]] + [p["value"] for p in self.inputs]
        bases = [self.values[at].get("base") for at in written]
        self.joined = {base for base in bases if base is not None}
        self._layers = {name: self._layer(network, name) for name in self._used_layers()}

    def _used_layers(self) -> set[str]:
        keys = ("layer", "fc1", "fc2")
        return {node[key] for node in self.nodes for key in keys if key in node}

    def _layer(self, network: Mapping[str, Any], name: str) -> tuple[Tensor, GpuLayout]:
        spec = network["layers"][name]
        act = None if spec["act"]["mode"] == "none" else ActQuant(**spec["act"])
        out = None
        if spec["out"]["dtype"] == "int8":
            out = quantization(spec["out"])
        weight = dfq.layer(self._tensors, network, name)
        packed, description = pack(weight, act, spec["activation"], out)
        moved = packed.to(self.device)
        remember(moved, description)
        return moved, description

    def __call__(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """The outputs [batch, ...] of float inputs [batch, ...], all on the device, float32.

        Raises:
            ValueError: an input of a wrong shape, by name.
        """
        state = State(self, inputs[0].shape[0] if inputs else 1)
        for port, x in zip(self.inputs, inputs, strict=True):
            wanted = self._port_shape(port)
            if tuple(x.shape[1:]) != wanted or x.shape[0] != state.batch:
                raise ValueError(
                    f"input {port.get('name', '')}: found {list(x.shape)}; accepted is "
                    f"{[state.batch, *wanted]}"
                )
            x = x.permute(0, 2, 3, 1) if port["layout"] == "nchw" else x
            state.store(port["value"], x.float())
        for node in self.nodes:
            OPS[node["op"]](state, node)
        found = []
        for port in self.outputs:
            y = state.real(port["value"])
            found.append(y.permute(0, 3, 1, 2) if port["layout"] == "nchw" else y)
        return found

    def _port_shape(self, port: Mapping[str, Any]) -> tuple[int, ...]:
        shape = tuple(self.values[port["value"]]["shape"])
        return (shape[2], *shape[:2]) if port["layout"] == "nchw" else shape

    def tensor(self, name: str) -> Tensor:
        """A tensor of the file on the device."""
        if name not in self._moved:
            array = np.array(self._tensors[name])
            self._moved[name] = torch.from_numpy(array).to(self.device)
        return self._moved[name]

    def columns(self, name: str, index: str) -> Tensor:
        """The columns of a tensor's last dimension that another tensor lists."""
        return self.once(
            (name, index), lambda: self.tensor(name).index_select(-1, self.tensor(index))
        )

    def copy_index(self, node: Mapping[str, Any]) -> Tensor:
        """The whole index of a copy."""
        key = ("copy", node["index"], node.get("step"), node.get("repeats"))
        return self.constant(key, lambda: dfq.copy_index(self._tensors, node))

    def constant(self, key: Any, make: Callable[[], NDArray[Any]]) -> Tensor:
        """What `make` returns, moved to the device once: a capture may not copy from the host."""
        return self.once(
            key, lambda: torch.from_numpy(np.ascontiguousarray(make())).to(self.device)
        )

    def once(self, key: Any, make: Callable[[], Tensor]) -> Tensor:
        """What `make` returned at the first call with the key."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def layer(self, name: str) -> tuple[Tensor, GpuLayout]:
        """The runtime layout of a layer and its description."""
        return self._layers[name]
