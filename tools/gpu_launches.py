"""How many kernels a GPU launches for one image of a network; no GPU needed.

    python tools/gpu_launches.py resnet34 [swin_base ...] [--arch 90] [--plan 4|half]

Our launches are recorded instead of run. Of torch's operators those count that are no views and
allocate nothing only; softmax and the like may be several kernels on a device.
"""

from __future__ import annotations

import argparse
import collections
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from defakeq import QuantPlan, convert, networks, save
from defakeq.prunable import half_plan
from defakeq_kernels import dfq
from defakeq_kernels.triton import config
from defakeq_kernels.triton.program import GpuProgram
from defakeq_kernels.triton.start import Launch, recording

# That run nothing on a device.
_FREE = {
    "_local_scalar_dense", "_unsafe_view", "alias", "as_strided", "detach", "empty", "empty_like",
    "empty_strided", "expand", "new_empty", "permute", "select", "slice", "unsqueeze", "view",
}  # fmt: skip


class Counted(TorchDispatchMode):
    """Counts operators by name."""

    def __init__(self) -> None:
        super().__init__()
        self.names: collections.Counter[str] = collections.Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().split("::")[1].split(".")[0]
        if name not in _FREE:
            self.names[name] += 1
        return func(*args, **(kwargs or {}))


def program_of(name: str, plan: str) -> tuple[GpuProgram, torch.Tensor]:
    """The network's program in main memory and an image for it."""
    model = networks.build(name)
    images = networks.images(2, model.input_size[-1])
    chosen = (
        QuantPlan.uniform(model, 4, act_bits=8) if plan == "4" else half_plan(model, images[:1])
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.dfq"
        save(convert(model, images[:1], chosen, images, backend="program"), path)
        tensors, network = dfq.loads(path.read_bytes())
    return GpuProgram(tensors, network, torch.device("cpu")), images[:1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="+")
    parser.add_argument("--arch", type=int, default=90, choices=sorted(config.DEVICES))
    parser.add_argument("--plan", default="4", choices=("4", "half"))
    arguments = parser.parse_args()
    for name in arguments.networks:
        program, image = program_of(name, arguments.plan)
        launches: list[Launch] = []
        counted = Counted()
        with torch.no_grad(), recording(launches.append, config.DEVICES[arguments.arch]):
            program([image])  # what is made once
            launches.clear()
            with counted:
                program([image])
        ours = collections.Counter(one.kernel.__name__ for one in launches)
        total = len(launches) + counted.names.total()
        print(f"{name} plan {arguments.plan}: {total} launches")
        print("  ours: ", ", ".join(f"{n} {k}" for k, n in ours.most_common()))
        print("  torch:", ", ".join(f"{n} {k}" for k, n in counted.names.most_common()), flush=True)


if __name__ == "__main__":
    main()
