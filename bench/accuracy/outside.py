"""The 10 % files beside int8 of NNCF in OpenVINO and float32 of torch: AUC and speed.

    python bench/accuracy/outside.py --out DIR --prepare    # hours on a busy machine do no harm
    python bench/accuracy/outside.py --out DIR              # times them, one thread, in rounds

Files are of the preset "quick": widths and pruned channels, and with them the time, are those of
"default"; up to 2 % of the outputs may be in half precision there. NNCF gets the same 256
calibration pictures, all its own defaults but the transformer's scheme for the transformer.
"""

from __future__ import annotations

import argparse
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from compare import PEOPLE, calibration
from paired import Pictures, difference

from defakeq import reference
from defakeq.bench.engines import Openvino
from defakeq.bench.timing import Contender, interleave, pinned, repeated
from defakeq.compress.pipeline import compress
from defakeq.compress.sizes import checkpoint_bytes
from defakeq.compress.workdir import write_whole
from defakeq_kernels import runtime

SIZE, IMAGES, ROUNDS = 0.10, 256, 15


def prepare(name: str, folder: Path) -> dict[str, Any]:
    """Makes both files, and scores NNCF's."""
    import nncf
    import openvino

    model = reference.build(name)
    data = calibration(model, IMAGES, 0)
    compress(model, data, size=SIZE, preset="quick", progress=False).save(folder / "m.dfq")
    engine = Openvino()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model, (data[0][:1],), str(folder / "float.onnx"), opset_version=17, dynamo=False,
            input_names=["x"], output_names=["y"],
        )  # fmt: skip
    network = openvino.convert_model(str(folder / "float.onnx"), input=list(data[0][:1].shape))
    options = {"model_type": nncf.ModelType.TRANSFORMER} if name == "vit" else {}
    pictures = list(data[0].split(1))
    made = nncf.Dataset(pictures, lambda image: image.numpy())
    engine._save(nncf.quantize(network, made, subset_size=IMAGES, **options), folder)
    test = reference.evaluation("test", PEOPLE)
    x = torch.stack([model.preprocess(image) for image in test.images])
    call = engine.load(folder, 1)
    outputs = torch.cat([torch.from_numpy(call(one.numpy()).copy()) for one in x.split(1)])
    with torch.no_grad():
        exact = torch.cat([model.score(part) for part in x.split(64)])
    known = Pictures(test.families, test.videos)
    found = difference(known, [model.interface.probability(outputs).tolist()], [exact.tolist()])
    return {"part": engine.size(folder) / checkpoint_bytes(model), "nncf_less_float": found}


def timed(name: str, folder: Path) -> dict[str, float]:
    """Milliseconds of one picture in each engine."""
    model = reference.build(name)
    x = model.preprocess(np.zeros((64, 64, 3), np.uint8))[None]
    image = np.random.default_rng(0).standard_normal(x.shape).astype(np.float32)
    given = torch.from_numpy(image)
    ours, theirs = runtime.load(folder / "m.dfq", threads=1), Openvino().load(folder, 1)

    def eager() -> torch.Tensor:
        with torch.inference_mode():
            return model(given)

    calls = {"defakeq": lambda: ours(image), "openvino": lambda: theirs(image), "torch": eager}
    contenders = [Contender(name, 8, key, repeated(call, 1)) for key, call in calls.items()]
    interleave(contenders, ROUNDS, lambda: 0.0, 1)
    return {contender.engine: 1e3 * contender.median for contender in contenders}


def main() -> None:
    """Prepares, or times and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--prepare", action="store_true")
    parser.add_argument("--detectors", nargs="+", default=list(reference.NAMES))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if not arguments.prepare:
        print(
            f"{'detector':14}{'ours ms':>9}{'int8 ms':>9}{'float ms':>10}{'int8/ours':>11}", end=""
        )
        print(f"{'float/ours':>12}{'NNCF file':>11}  its AUC less float's")
    for name in arguments.detectors:
        folder = arguments.out / name
        done = folder / "done.json"
        if arguments.prepare:
            folder.mkdir(parents=True, exist_ok=True)
            if not done.exists():
                write_whole(done, (json.dumps(prepare(name, folder)) + "\n").encode())
            continue
        if not done.exists():
            continue
        about = json.loads(done.read_text())
        with pinned(1):
            ms = timed(name, folder)
        own = about["nncf_less_float"]
        low, high = (100 * bound for bound in own["interval"])
        print(
            f"{name:14}{ms['defakeq']:9.3f}{ms['openvino']:9.3f}{ms['torch']:10.3f}"
            f"{ms['openvino'] / ms['defakeq']:11.2f}{ms['torch'] / ms['defakeq']:12.2f}"
            f"{100 * about['part']:10.1f}%  {100 * own['difference']:+.2f} "
            f"[{low:+.2f}, {high:+.2f}]",
            flush=True,
        )


if __name__ == "__main__":
    main()
