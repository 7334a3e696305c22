"""Engines that run whole networks: what each makes of a network once, and how it is called.

`prepare` writes an artefact into a folder, where later runs find it; `load` gives a function from
an image, float32 (1, 3, h, w), to the logits. An engine measures its favourable form: unsigned
activations for ONNX Runtime, all operators quantized, one thread pool of the stated size.

    python -m defakeq.bench.engines ENGINE FOLDER THREADS

prints what a fresh process needs: {"rss_mb": ..., "first_ms": ...}.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.float32]
Call = Callable[[Image], Any]

_CALIBRATION = 4
INSTALL = "pip install 'defakeq[torch,peers]'"


class Engine:
    """One way to run a network.

    Attributes:
        name: as in results.
        bits: width of the weights, for results.
        modules: what must be installed to run it.
        tools: what must be installed to prepare it, in addition.
        file: the artefact's main file.
    """

    name = ""
    bits = 8
    modules: tuple[str, ...] = ()
    tools: tuple[str, ...] = ()
    file = ""

    def missing(self, folder: Path) -> list[str]:
        """Modules that are needed here and not installed."""
        needed = self.modules if self.ready(folder) else self.modules + self.tools
        return [name for name in needed if importlib.util.find_spec(name) is None]

    def ready(self, folder: Path) -> bool:
        """Whether the artefact is there."""
        return (folder / self.file).exists()

    def prepare(self, network: str, folder: Path) -> None:
        """Writes the artefact of a network, by its name in `defakeq.networks`."""
        raise NotImplementedError

    def load(self, folder: Path, threads: int) -> Call:
        """The artefact, ready to be called."""
        raise NotImplementedError

    def size(self, folder: Path) -> int:
        """Bytes on disk."""
        return (folder / self.file).stat().st_size


def _network(name: str) -> tuple[Any, list[Any]]:
    """A network and images to calibrate with."""
    from defakeq import networks

    model = networks.build(name).requires_grad_(False)
    size = int(model.input_size[1])  # type: ignore[index]
    return model, list(networks.images(_CALIBRATION, size).split(1))


@contextlib.contextmanager
def _written(target: Path) -> Iterator[Path]:
    """A path to write to, which becomes `target` when all went well."""
    part = target.with_name("part-" + target.name)
    yield part
    part.replace(target)


class Torch(Engine):
    """float32, eager."""

    name, bits, file = "torch", 32, "float.pt2"
    modules: tuple[str, ...] = ("torch",)

    def prepare(self, network: str, folder: Path) -> None:
        """Exports the program."""
        import torch

        model, images = _network(network)
        with _written(folder / self.file) as part:
            torch.export.save(torch.export.export(model, (images[0],)), part)

    def load(self, folder: Path, threads: int) -> Call:
        """The exported program, called node by node."""
        import torch

        torch.set_num_threads(threads)
        module = torch.export.load(folder / self.file).module()

        def call(x: Image) -> Any:
            with torch.no_grad():
                return module(torch.from_numpy(x)).numpy()

        return call


class TorchInt8(Torch):
    """PT2E quantization for x86, compiled by inductor."""

    name, bits, file = "torch-int8", 8, "int8.pt2"
    modules = ("torch", "torchao")

    def prepare(self, network: str, folder: Path) -> None:
        """Quantizes and exports; compiling is left to `load`, which keeps inductor's cache."""
        import torch
        from torchao.quantization.pt2e import move_exported_model_to_eval
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
        from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

        model, images = _network(network)
        quantizer = x86.X86InductorQuantizer()
        quantizer.set_global(x86.get_default_x86_inductor_quantization_config())
        module = prepare_pt2e(torch.export.export(model, (images[0],)).module(), quantizer)
        with torch.no_grad():
            for image in images:
                module(image)
        module = convert_pt2e(module)
        move_exported_model_to_eval(module)
        with _written(folder / self.file) as part:
            torch.export.save(torch.export.export(module, (images[0],)), part)

    def load(self, folder: Path, threads: int) -> Call:
        """The program, compiled at its first call."""
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder.parent / "inductor"))
        os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
        import torch
        import torch._inductor.config
        from torchao.quantization.pt2e.inductor_passes import x86

        torch.set_num_threads(threads)
        torch._inductor.config.freezing = True
        x86._register_quantization_weight_pack_pass()
        module = torch.compile(torch.export.load(folder / self.file).module())

        def call(x: Image) -> Any:
            with torch.no_grad():
                return module(torch.from_numpy(x)).numpy()

        return call


def _onnx(network: str, folder: Path) -> tuple[Path, list[Any]]:
    """The float network as ONNX, written once."""
    import torch

    model, images = _network(network)
    path = folder / "float.onnx"
    if not path.exists():
        with _written(path) as part, torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                model, (images[0],), str(part), opset_version=17, dynamo=False,
                input_names=["x"], output_names=["y"],
            )  # fmt: skip
    return path, images


class Onnxruntime(Engine):
    """int8, all operators, unsigned activations and signed weights a channel."""

    name, file = "onnxruntime", "int8.onnx"
    modules, tools = ("onnxruntime",), ("torch", "onnx")

    def prepare(self, network: str, folder: Path) -> None:
        """Quantizes statically."""
        from onnxruntime import quantization as q
        from onnxruntime.quantization.shape_inference import quant_pre_process

        source, images = _onnx(network, folder)
        clean = folder / "clean.onnx"
        quant_pre_process(str(source), str(clean), skip_symbolic_shape=True)

        class Reader(q.CalibrationDataReader):  # type: ignore[misc]
            def __init__(self) -> None:
                self.images = iter(images)

            def get_next(self) -> dict[str, Any] | None:
                image = next(self.images, None)
                return None if image is None else {"x": image.numpy()}

        with _written(folder / self.file) as part:
            q.quantize_static(
                str(clean), str(part), Reader(), quant_format=q.QuantFormat.QDQ, per_channel=True,
                activation_type=q.QuantType.QUInt8, weight_type=q.QuantType.QInt8,
            )  # fmt: skip
        clean.unlink()

    def load(self, folder: Path, threads: int) -> Call:
        """A session."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(
            str(folder / self.file), options, providers=["CPUExecutionProvider"]
        )
        return lambda x: session.run(None, {"x": x})[0]


class Openvino(Engine):
    """int8 by NNCF."""

    name, file = "openvino", "int8.xml"
    modules, tools = ("openvino",), ("torch", "onnx", "nncf")

    def prepare(self, network: str, folder: Path) -> None:
        """Quantizes statically; without SmoothQuant for Swin, which it breaks."""
        import nncf
        import openvino

        source, images = _onnx(network, folder)
        options: dict[str, Any] = {}
        if network.startswith(("vit", "deit", "swin", "convnext")):
            options["model_type"] = nncf.ModelType.TRANSFORMER
        if network.startswith("swin"):
            options["advanced_parameters"] = nncf.AdvancedQuantizationParameters(
                smooth_quant_alphas=nncf.AdvancedSmoothQuantParameters(matmul=-1, convolution=-1)
            )
        model = openvino.convert_model(str(source), input=[1, *images[0].shape[1:]])
        model = nncf.quantize(
            model,
            nncf.Dataset(images, lambda image: image.numpy()),
            subset_size=len(images),
            preset=nncf.QuantizationPreset.MIXED,
            fast_bias_correction=True,
            **options,
        )
        openvino.save_model(model, str(folder / "part.xml"), compress_to_fp16=False)
        (folder / "part.bin").replace(folder / "int8.bin")
        (folder / "part.xml").replace(folder / self.file)

    def load(self, folder: Path, threads: int) -> Call:
        """A compiled model."""
        import openvino

        compiled = openvino.Core().compile_model(
            str(folder / self.file),
            "CPU",
            {
                "INFERENCE_NUM_THREADS": threads,
                "NUM_STREAMS": 1,
                "PERFORMANCE_HINT": "LATENCY",
                "ENABLE_CPU_PINNING": False,
                "INFERENCE_PRECISION_HINT": "f32",
            },
        )
        request = compiled.create_infer_request()
        return lambda x: request.infer({0: x}, share_inputs=True, share_outputs=True)[0]

    def size(self, folder: Path) -> int:
        """Bytes on disk, the weights included."""
        return super().size(folder) + (folder / "int8.bin").stat().st_size


class Defakeq(Engine):
    """Our program in a ``.dfq`` file.

    Args:
        plan: "8", "4", "half", or the path of a plan's JSON.
    """

    name, modules = "defakeq", ("defakeq_kernels",)

    def __init__(self, plan: str = "8"):
        named = plan in ("8", "4", "half")
        self.plan = plan
        self.bits = 8 if plan == "8" else 4
        self.file = f"program-{plan}.dfq" if named else f"program-{Path(plan).stem}.dfq"

    def ready(self, folder: Path) -> bool:
        """Never: it is converted anew, since the converter changes from version to version."""
        return False

    def prepare(self, network: str, folder: Path) -> None:
        """Converts with the plan."""
        from defakeq.conversion import convert, save
        from defakeq.plan import QuantPlan

        model, images = _network(network)
        if self.plan in ("8", "4"):
            plan = QuantPlan.uniform(model, int(self.plan))
        elif self.plan == "half":
            plan = _half_plan(model, images[0])
        else:
            plan = QuantPlan.from_json(Path(self.plan).read_text())
        converted = convert(model, images[0], plan, images, backend="program")
        save(converted, folder / self.file)

    def load(self, folder: Path, threads: int) -> Call:
        """The program, without torch."""
        runtime = importlib.import_module("defakeq_kernels.runtime")
        program: Call = runtime.load(folder / self.file, threads=threads)
        return program


def _half_plan(model: Any, image: Any) -> Any:
    module = importlib.import_module("defakeq.prunable")
    return module.half_plan(model, image)


ENGINES: dict[str, type[Engine]] = {
    engine.name: engine for engine in (Defakeq, Torch, TorchInt8, Onnxruntime, Openvino)
}


def resident_bytes() -> int:
    """Resident memory of this process."""
    fields = Path("/proc/self/statm").read_text().split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")


def _fresh(name: str, file: str, folder: Path, threads: int, shape: tuple[int, ...]) -> None:
    engine = ENGINES[name]()
    engine.file = file
    for module in engine.modules:
        importlib.import_module(module)
    x = np.zeros(shape, np.float32)
    begin = time.perf_counter()
    engine.load(folder, threads)(x)
    first = time.perf_counter() - begin
    print(json.dumps({"rss_mb": resident_bytes() / 1e6, "first_ms": first * 1e3}))


if __name__ == "__main__":
    _fresh(
        sys.argv[1],
        sys.argv[2],
        Path(sys.argv[3]),
        int(sys.argv[4]),
        tuple(int(n) for n in sys.argv[5].split(",")),
    )
