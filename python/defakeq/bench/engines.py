"""Engines that run whole networks: what each makes of a network once, and how it is called.

`prepare` writes an artefact into a folder, where later runs find it; `load` gives a function from
an image, float32 (1, 3, h, w), to the logits. An engine measures its favourable form: unsigned
activations for ONNX Runtime, all operators quantized, one thread pool of the stated size.

    python -m defakeq.bench.engines ENGINE FILE FOLDER THREADS SHAPE

prints what a fresh process needs: {"rss_mb": ..., "first_ms": ...}.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
import os
import shutil
import sys
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from defakeq.bench.engine import INSTALL, Call, Engine, Image, Network, built, runtime, written

if TYPE_CHECKING:
    from defakeq.plan import QuantPlan


class Torch(Engine):
    """float32, eager."""

    name, bits, file = "torch", 32, "float.pt2"
    modules: tuple[str, ...] = ("torch",)

    def prepare(self, network: Network, folder: Path) -> None:
        """Exports the program."""
        import torch

        model, images = built(network)
        with written(folder / self.file) as part:
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


class TorchInt8(Engine):
    """PT2E quantization for x86, compiled ahead of time by inductor."""

    name, file = "torch-int8", "int8.pt2"
    modules, tools = ("torch",), ("torchao",)

    def prepare(self, network: Network, folder: Path) -> None:
        """Quantizes and compiles, weights packed and folded."""
        import torch
        import torch._inductor.config as inductor
        from torchao.quantization.pt2e import move_exported_model_to_eval
        from torchao.quantization.pt2e.inductor_passes import x86 as passes
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
        from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

        model, images = built(network)
        quantizer = x86.X86InductorQuantizer()
        quantizer.set_global(x86.get_default_x86_inductor_quantization_config())
        with torch.no_grad(), inductor.patch(freezing=True, compile_threads=1):
            module = prepare_pt2e(torch.export.export(model, (images[0],)).module(), quantizer)
            for image in images:
                module(image)
            module = convert_pt2e(module)
            move_exported_model_to_eval(module)
            passes._register_quantization_weight_pack_pass()
            program = torch.export.export(module, (images[0],))
            part = folder / f"part-{self.file}"
            torch._inductor.aoti_compile_and_package(program, package_path=str(part))
        part.replace(folder / self.file)

    def load(self, folder: Path, threads: int) -> Call:
        """The compiled package."""
        import torch

        torch.set_num_threads(threads)
        package = torch._inductor.aoti_load_package(str(folder / self.file))

        def call(x: Image) -> Any:
            with torch.no_grad():
                return package(torch.from_numpy(x)).numpy()

        return call


def _onnx(network: Network, folder: Path) -> tuple[Path, list[Any]]:
    """The float network as ONNX, written once."""
    import torch

    model, images = built(network)
    path = folder / "float.onnx"
    if not path.exists():
        with written(path) as part, torch.no_grad(), warnings.catch_warnings():
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

    def prepare(self, network: Network, folder: Path) -> None:
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

        with written(folder / self.file) as part:
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
    modules: tuple[str, ...] = ("openvino",)
    tools: tuple[str, ...] = ("torch", "onnx", "nncf")

    def prepare(self, network: Network, folder: Path) -> None:
        """Quantizes statically; without SmoothQuant for Swin, which it breaks."""
        import nncf
        import openvino

        source, images = _onnx(network, folder)
        options: dict[str, Any] = {}
        if network.name.startswith(("vit", "deit", "swin", "convnext")):
            options["model_type"] = nncf.ModelType.TRANSFORMER
        if network.name.startswith("swin"):
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
        self._save(model, folder)

    def _save(self, model: Any, folder: Path) -> None:
        import openvino

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
        plan: "8", "4", "half", or the path of a plan's JSON. Not read for a network that is a file.

    Raises:
        ValueError: another plan, and no such file.
    """

    name, file, files, planned = "defakeq", "program.dfq", True, True
    modules, tools = ("defakeq_kernels",), ("torch",)

    def __init__(self, plan: str = "8"):
        if plan not in PLANS and not Path(plan).is_file():
            accepted = ", ".join(PLANS)
            raise ValueError(
                f"plan: found {plan!r}, no such file; accepted is {accepted}, or a plan's JSON file"
            )
        self._plan = plan
        self.bits = 8 if plan == "8" else 4

    @property
    def plan(self) -> str:
        """The plan's name."""
        return self._plan if self._plan in PLANS else Path(self._plan).stem

    def folder(self, network: Network) -> Path:
        """With what the converter is made of, and the plan."""
        if network.program is not None:
            return super().folder(network)
        own = hashlib.sha256(inspect.getsource(type(self)).encode())
        own.update(network.digest("defakeq.lower", *_CONVERTER).encode())
        if self._plan not in PLANS:
            own.update(Path(self._plan).read_bytes())
        return network.cache / network.name / f"{self.name}-{self.plan}-{own.hexdigest()[:12]}"

    def prepare(self, network: Network, folder: Path) -> None:
        """Converts with the plan."""
        if network.program is not None:
            with written(folder / self.file) as part:
                shutil.copyfile(network.program, part)
            return
        from defakeq.conversion import convert, save

        model, images = built(network)
        plan = self._quant_plan(model, images[0])
        save(convert(model, images[0], plan, images, backend="program"), folder / self.file)

    def _quant_plan(self, model: Any, image: Any) -> QuantPlan:
        from defakeq.plan import QuantPlan
        from defakeq.prunable import half_plan

        if self._plan in ("8", "4"):
            # without zero points at 8 bits, as every other engine has it
            bits = int(self._plan)
            return QuantPlan.uniform(model, bits, symmetric=bits == 8)
        if self._plan == "half":
            return half_plan(model, image)
        return QuantPlan.from_json(Path(self._plan).read_text())

    def load(self, folder: Path, threads: int) -> Call:
        """The program, without torch."""
        program: Call = runtime().load(folder / self.file, threads=threads)
        return program


class _Pruned(Defakeq):
    """The plan's channels, all at 8 bits: what an engine without our formats runs of a plan."""

    name, files = "pruned", False

    def __init__(self, plan: str = "8"):
        super().__init__(plan)
        self.bits = 8

    def _quant_plan(self, model: Any, image: Any) -> QuantPlan:
        from defakeq.plan import LayerPlan, QuantPlan

        return QuantPlan(
            {
                name: LayerPlan(keep_out=layer.keep_out, keep_in=layer.keep_in, symmetric=True)
                for name, layer in super()._quant_plan(model, image).layers.items()
            }
        )


PLANS = ("8", "4", "half")
_CONVERTER = (
    "defakeq.calibrate", "defakeq.conversion", "defakeq.fold", "defakeq.model_file", "defakeq.plan",
    "defakeq.prunable", "defakeq_kernels.act", "defakeq_kernels.codes", "defakeq_kernels.compact",
    "defakeq_kernels.dfq", "defakeq_kernels.fit", "defakeq_kernels.packed",
    "defakeq_kernels.quantize",
)  # fmt: skip


class _Export(Engine):
    """Our program as quantized ONNX: the same network, pruned channels gone, in another engine."""

    files, planned = True, True
    sources: tuple[str, ...] = ("defakeq.onnx_export",)
    suits = "any"
    ours = Defakeq

    def __init__(self, plan: str = "8"):
        self._ours = self.ours(plan)
        self.bits = self._ours.bits

    @property
    def plan(self) -> str:
        """Of the program."""
        return self._ours.plan

    def folder(self, network: Network) -> Path:
        """Beside the program's."""
        base = super().folder(network)
        return base.with_name(f"{base.name}-{self._ours.folder(network).name}")

    def _export(self, network: Network, target: Path) -> None:
        from defakeq.onnx_export import export

        source = network.program or prepared(network, self._ours) / self._ours.file
        with written(target) as part:
            export(source, part, engine=self.suits)


class OnnxruntimeExport(_Export, Onnxruntime):
    """Our program in ONNX Runtime."""

    name, suits = "onnxruntime-export", "onnxruntime"

    def prepare(self, network: Network, folder: Path) -> None:
        """Exports."""
        self._export(network, folder / self.file)


class OpenvinoExport(_Export, Openvino):
    """Our program in OpenVINO."""

    name, tools = "openvino-export", ("torch", "onnx")

    def prepare(self, network: Network, folder: Path) -> None:
        """Exports and converts."""
        import openvino

        source = folder / "export.onnx"
        self._export(network, source)
        self._save(openvino.convert_model(str(source)), folder)
        source.unlink()


class OpenvinoPruned(OpenvinoExport):
    """The network with the plan's channels physically gone, at 8 bits throughout, in OpenVINO."""

    name, files, ours = "openvino-pruned", False, _Pruned


ENGINES: dict[str, type[Engine]] = {
    engine.name: engine
    for engine in (
        Defakeq, Torch, TorchInt8, Onnxruntime, Openvino, OnnxruntimeExport, OpenvinoExport,
        OpenvinoPruned,
    )
}  # fmt: skip


def prepared(network: Network, engine: Engine) -> Path:
    """The folder with the engine's artefact, which is made when it is not there.

    Raises:
        ImportError: something is not installed.
        ValueError: a ``.dfq`` file, which the engine does not run.
    """
    if network.program is not None and not engine.files:
        runs = ", ".join(name for name, kind in ENGINES.items() if kind.files)
        raise ValueError(f"network: found a .dfq file; accepted by {runs} only")
    folder = engine.folder(network)
    missing = engine.missing(network, folder)
    if missing:
        raise ImportError(f"{' and '.join(missing)} not installed ({INSTALL})")
    if not engine.ready(folder):
        folder.mkdir(parents=True, exist_ok=True)
        engine.prepare(network, folder)
    return folder


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
