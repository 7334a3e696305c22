"""What every engine of whole networks has in common: its artefact, where it lies, its call."""

from __future__ import annotations

import abc
import contextlib
import functools
import hashlib
import importlib
import importlib.util
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.float32]
Call = Callable[[Image], Any]

_CALIBRATION = 4
INSTALL = "pip install 'defakeq[torch,peers]'"


@dataclass(frozen=True)
class Network:
    """What is measured.

    Attributes:
        name: of a network or a detector (`network_names`), or of the file.
        cache: folder of the artefacts.
        program: a ``.dfq`` file that holds the network; None: it is built by its name.
    """

    name: str
    cache: Path
    program: Path | None = None

    def shape(self) -> tuple[int, ...]:
        """Of the input, with a batch of one."""
        if self.program is not None:
            return (1, *runtime().load(self.program, threads=1).inputs[0]["shape"])
        return (1, *(int(n) for n in network_named(self.name).input_size))

    def digest(self, *sources: str) -> str:
        """Of the network, and of these modules and packages."""
        found = hashlib.sha256()
        if self.program is not None:
            found.update(self.program.read_bytes())
        else:
            found.update(_definition(self.name))
        for source in sources:
            found.update(_source(source))
        return found.hexdigest()[:12]


@functools.cache
def _definition(name: str) -> bytes:
    """The parameters of a network and the source of the classes that it is made of."""
    model = network_named(name)
    found = hashlib.sha256()
    kinds = {type(module) for module in model.modules()}
    for kind in sorted(kinds, key=lambda kind: (kind.__module__, kind.__qualname__)):
        if kind.__module__.startswith("defakeq."):
            found.update(inspect.getsource(kind).encode())
    for key, tensor in model.state_dict().items():
        found.update(key.encode())
        found.update(tensor.numpy().tobytes())
    return found.digest()


def _source(module: str) -> bytes:
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise ImportError(f"{module}: found no source; accepted is an installed module")
    path = Path(spec.origin)
    files = sorted(path.parent.rglob("*.py")) if path.name == "__init__.py" else [path]
    return b"".join(file.read_bytes() for file in files)


def _version(module: str) -> str:
    try:
        return metadata.version(module)
    except metadata.PackageNotFoundError:
        return "none"


class Engine(abc.ABC):
    """One way to run a network.

    Attributes:
        name: as in results.
        bits: width of the weights, for results.
        modules: what must be installed to run it.
        tools: what must be installed to prepare it, in addition.
        file: the artefact's main file.
        files: whether it runs ``.dfq`` files.
        planned: whether it is made with a plan.
        sources: modules that decide what `prepare` makes, beside the engine's own class.
    """

    name = ""
    bits = 8
    files = False
    planned = False
    sources: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    tools: tuple[str, ...] = ()
    file = ""

    @property
    def plan(self) -> str:
        """What a row says of the weights."""
        return str(self.bits)

    def folder(self, network: Network) -> Path:
        """Where the artefact lies: elsewhere when anything that it is made from changes."""
        own = hashlib.sha256(inspect.getsource(type(self)).encode())
        for module in (*self.modules, *self.tools):
            own.update(f"{module} {_version(module)}".encode())
        own.update(network.digest(*self.sources).encode())
        return network.cache / network.name / f"{self.name}-{own.hexdigest()[:12]}"

    def missing(self, network: Network, folder: Path) -> list[str]:
        """Modules that are needed here and not installed."""
        needed = self.modules if self.ready(folder) else self.modules + self.tools
        if network.program is not None:  # it is made already
            needed = tuple(name for name in needed if name != "torch")
        return [name for name in needed if importlib.util.find_spec(name) is None]

    def ready(self, folder: Path) -> bool:
        """Whether the artefact is there."""
        return (folder / self.file).exists()

    @abc.abstractmethod
    def prepare(self, network: Network, folder: Path) -> None:
        """Writes the artefact of a network."""

    @abc.abstractmethod
    def load(self, folder: Path, threads: int) -> Call:
        """The artefact, ready to be called."""

    def size(self, folder: Path) -> int:
        """Bytes on disk."""
        return (folder / self.file).stat().st_size


def network_names() -> tuple[str, ...]:
    """Of `defakeq.networks`, and of the detectors that are not among them."""
    from defakeq import detectors, networks

    return tuple(dict.fromkeys((*networks.NAMES, *detectors.names())))


def network_named(name: str) -> Any:
    """The float network of a name, its random weights spread as trained ones are."""
    from defakeq import detectors, networks

    return networks.build(name) if name in networks.NAMES else detectors.untrained(name)


def built(network: Network) -> tuple[Any, list[Any]]:
    """The float network and images to calibrate with."""
    from defakeq import networks

    model = network_named(network.name).requires_grad_(False)
    size = int(model.input_size[1])
    return model, list(networks.images(_CALIBRATION, size).split(1))


@contextlib.contextmanager
def written(target: Path) -> Iterator[Path]:
    """A path to write to, which becomes `target` when all went well."""
    part = target.with_name("part-" + target.name)
    yield part
    part.replace(target)


def runtime() -> Any:
    """The module that runs programs."""
    return importlib.import_module("defakeq_kernels.runtime")
