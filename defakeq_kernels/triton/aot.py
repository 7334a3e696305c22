"""Ahead of time: the layers of a program as cubins, for boards without a working Triton.

A folder is written with

    manifest.txt   what to launch for each layer (docs/gpu.md has the grammar)
    constants.bin  the layers' runtime layouts
    <n>.cubin      the kernels, one file a distinct one
    defakeq_aot.h, defakeq_aot.cpp   a loader on the CUDA driver API
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import struct
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from defakeq_kernels import dfq
from defakeq_kernels.triton import config
from defakeq_kernels.triton.offline import compile_launch, signature
from defakeq_kernels.triton.program import GpuProgram
from defakeq_kernels.triton.run import Extra, Rows, run
from defakeq_kernels.triton.start import Launch, recording

VERSION = 1
LOADER = Path(__file__).parent / "loader"
_NAMES = {torch.int8: "int8", torch.float32: "float32"}
_ALIGN = 256


@dataclass(frozen=True)
class Built:
    """What was written: the folder, layers, distinct kernels and bytes of all files."""

    folder: Path
    layers: int
    kernels: int
    size: int


@dataclass
class _Layer:
    """A layer's node with the tensors of one call, which stand for the caller's."""

    name: str
    x: Tensor
    out: Tensor
    residual: Tensor | None
    half: Tensor | None
    fill: int | None
    launches: list[Launch] = field(default_factory=list)


def parse_arch(text: str) -> int:
    """87 of "sm_87".

    Raises:
        ValueError: an architecture without configurations.
    """
    accepted = ", ".join(f"sm_{a}" for a in sorted(config.DEVICES))
    found = re.fullmatch(r"sm_(\d+)", text)
    if found is None or int(found[1]) not in config.DEVICES:
        raise ValueError(f"arch: found {text!r}; accepted is one of {accepted}")
    return int(found[1])


def build(
    path: str | os.PathLike[str], folder: str | os.PathLike[str], arch: str, batch: int = 1
) -> Built:
    """Compiles the layers of a file's program for one architecture; no GPU is needed.

    Args:
        path: a ``.dfq`` file with a program.
        folder: where to; it must not exist.
        arch: "sm_87", "sm_89" or "sm_90".
        batch: images a call.

    Raises:
        ValueError: no program, an unknown architecture, a batch below 1, or dynamic activations.
        FileExistsError: the folder exists.
    """
    number = parse_arch(arch)
    if batch < 1:
        raise ValueError(f"batch: found {batch}; accepted is 1 or more")
    target = Path(folder)
    if target.exists():
        raise FileExistsError(f"{target}: found already there; accepted is a new folder")
    try:
        tensors, network = dfq.read(path)
    except ValueError as error:
        raise ValueError(f"model: found {path}; accepted is a .dfq file: {error}") from error
    program = GpuProgram(tensors, network, torch.device("cpu"))
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        built = _write(program, temporary, number, batch)
        os.replace(temporary, target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return Built(target, *built)


def _write(program: GpuProgram, folder: Path, arch: int, batch: int) -> tuple[int, int, int]:
    writer = _Writer(folder, arch)
    layers = [_recorded(program, node, arch, batch) for node in _layer_nodes(program)]
    for layer in layers:
        writer.add(layer)
    writer.finish()
    for file in sorted(LOADER.iterdir()):
        shutil.copyfile(file, folder / file.name)
    size = sum(f.stat().st_size for f in folder.iterdir())
    return len(layers), len(writer.kernels), size


def _layer_nodes(program: GpuProgram) -> list[Mapping[str, Any]]:
    nodes = [n for n in program.nodes if n["op"] in ("conv2d", "linear")]
    if not nodes:
        raise ValueError("program: found no layer; accepted is a program with one")
    return nodes


def _recorded(program: GpuProgram, node: Mapping[str, Any], arch: int, batch: int) -> _Layer:
    packed, made = program.layer(node["layer"])
    # words of the manifest
    name = "_".join(f"{node.get('name') or node['op']}/{node['layer']}".split())
    if made.act_mode.startswith("dynamic"):
        raise ValueError(f"layer {name}: found {made.act_mode} activations; accepted is static")

    def empty(i: int) -> Tensor | None:
        at = node["in"][i] if i < len(node["in"]) else -1
        if at < 0:
            return None
        value = program.values[at]
        kind = torch.int8 if value["dtype"] == "int8" else torch.float32
        return torch.empty(batch, *value["shape"], dtype=kind)

    x, residual, half = (empty(i) for i in range(3))
    assert x is not None
    value = program.values[node["out"][0]]
    shape = value["shape"]
    rows = Rows(x.numel() // x.shape[-1], 1, 1, 1, 1)
    flat = x.view(-1, x.shape[-1])
    if node["op"] == "conv2d":
        rows, flat = Rows(batch, x.shape[1], x.shape[2], shape[0], shape[1]), x
    out = torch.empty(
        rows.count, made.out_channels,
        dtype=torch.float32 if made.out is None else torch.int8,
    )  # fmt: skip
    table = None if "table" not in node else program.tensor(node["table"])
    scale, zero_point = 1.0, 0
    if residual is not None and residual.dtype == torch.int8:
        v = program.values[node["in"][1]]
        scale, zero_point = v["scale"], v["zero_point"]
    fill: int | None = None
    if made.stored < made.out_channels:
        fill = 0 if made.out is None else int(made.out["zero_point"])
        fill = fill if table is None else int(table[fill + 128])
    layer = _Layer(name, x, out, residual, half, fill)
    extra = Extra(residual, scale, zero_point, half, table)
    with recording(layer.launches.append, config.DEVICES[arch]):
        run(made, packed, flat, rows, extra, out)
    return layer


class _Writer:
    """Places constants and kernels, and writes the manifest."""

    def __init__(self, folder: Path, arch: int) -> None:
        self.folder, self.arch = folder, arch
        self.lines = [f"defakeq-aot {VERSION}", f"arch {arch}"]
        self.kernels: dict[str, tuple[str, str, int, int, int]] = {}
        self.constants: dict[int, int] = {}
        self.data = bytearray()
        self.kept: list[Tensor] = []

    def add(self, layer: _Layer) -> None:
        caller = {"x": layer.x, "out": layer.out, "residual": layer.residual, "half": layer.half}
        places: dict[int, str] = {}
        sizes = []
        for name, t in caller.items():
            if t is not None:
                places[t.untyped_storage().data_ptr()] = name
                sizes.append(f"{name} {_NAMES[t.dtype]} {' '.join(map(str, t.shape))}")
        scratch: list[int] = []
        launches = []
        for one in layer.launches:
            for target in ("out", "partial"):
                t = one.arguments.get(target)
                if isinstance(t, Tensor) and t.untyped_storage().data_ptr() not in places:
                    places[t.untyped_storage().data_ptr()] = f"scratch {len(scratch)}"
                    scratch.append(t.untyped_storage().nbytes())
            launches.append(self._launch(one, places))
        self.lines.append(f"layer {layer.name}")
        self.lines += [f"tensor {line}" for line in sizes]
        if layer.fill is not None:
            self.lines.append(f"fill {layer.fill & 0xFF}")
        self.lines += [f"scratch {size}" for size in scratch]
        for lines in launches:
            self.lines += lines

    def _launch(self, one: Launch, places: dict[int, str]) -> list[str]:
        file, function, threads, shared, parameters = self._kernel(one)
        grid = (*one.grid, 1, 1)[:3]
        values = []
        types, _, _ = signature(one)
        for name, value in one.arguments.items():
            if types[name] == "constexpr":
                continue
            if isinstance(value, Tensor):
                values.append(self._pointer(value, places))
            elif types[name] == "i32":
                values.append(f"i32 {value}")
            else:
                values.append(f"f32 {struct.unpack('<I', struct.pack('<f', value))[0]:08x}")
        # Scratch that Triton passes to every kernel and these do not use.
        values += ["null"] * (parameters - len(values))
        size = " ".join(map(str, grid))
        head = f"launch {file} {function} {size} {threads} {shared} {len(values)}"
        return [head, *(f"arg {v}" for v in values)]

    def _pointer(self, t: Tensor, places: dict[int, str]) -> str:
        base = t.untyped_storage().data_ptr()
        offset = t.data_ptr() - base
        if base in places:
            return f"{places[base]} {offset}"
        if base not in self.constants:
            self.data += bytes(-len(self.data) % _ALIGN)
            self.constants[base] = len(self.data)
            flat = torch.empty(0, dtype=torch.uint8).set_(t.untyped_storage())
            self.data += flat.numpy().tobytes()
            self.kept.append(t)  # so that no other tensor takes its address
        return f"constant {self.constants[base] + offset}"

    def _kernel(self, one: Launch) -> tuple[str, str, int, int, int]:
        types, constants, aligned = signature(one)
        key = repr((one.kernel.__name__, types, constants, aligned, one.warps, one.stages))
        name = hashlib.sha256(key.encode()).hexdigest()[:16]
        if name not in self.kernels:
            compiled = compile_launch(one, self.arch)
            (self.folder / f"{name}.cubin").write_bytes(compiled.asm["cubin"])
            meta = compiled.metadata
            if meta.global_scratch_size or getattr(meta, "profile_scratch_size", 0):
                raise RuntimeError(f"{meta.name}: found a kernel that needs scratch of Triton's")
            entry = re.search(r"\.entry\s+\w+\((.*?)\)", compiled.asm["ptx"], re.DOTALL)
            assert entry is not None
            parameters = entry[1].count(".param")
            size = (32 * meta.num_warps, meta.shared, parameters)
            self.kernels[name] = (f"{name}.cubin", meta.name, *size)
        return self.kernels[name]

    def finish(self) -> None:
        (self.folder / "constants.bin").write_bytes(self.data)
        (self.folder / "manifest.txt").write_text("\n".join([*self.lines, "end", ""]))
