"""Detectors as something that scores pictures: compressed files, float networks, any module."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from defakeq.detectors import Detector
from defakeq.detectors.checkpoint import LoadReport, load_into
from defakeq.embedded.data import resize_input
from defakeq.embedded.network import CHECKPOINT, PACKED, load_float, to_input

ByteImage = NDArray[np.uint8]

EMBEDDED = "embedded"
NO_FLOAT = "none"
CHECKPOINTS = (".bin", ".ckpt", ".pt", ".pth", ".safetensors")
_ACCEPTED = "a .dfq file, a checkpoint and its builder, 'embedded', or 'package.module:function'"
_MODULES = "the name of a detector, or 'package.module:function'"


class Scorer:
    """A detector: a module, its name, the bytes that it takes, and a digest of what it is.

    A module with the methods ``preprocess(image) -> tensor`` (image: uint8 RGB) and ``score(batch)
    -> probabilities of "forged"`` is used through them; any other one gets float32
    (batch, 3, 128, 128), RGB from -1 to 1, and gives the logits of "forged".
    """

    def __init__(self, name: str, module: nn.Module, size: int, digest: str) -> None:
        self.name = name
        self.module = module.eval()
        self.size = size
        self.digest = digest
        self.own = callable(getattr(module, "preprocess", None)) and callable(
            getattr(module, "score", None)
        )

    @property
    def packed(self) -> bool:
        """Whether some of its layers run on packed weights."""
        from defakeq.lower import ProgramModule
        from defakeq_kernels.nn import QuantLayer

        found = self.module.modules()
        return any(isinstance(module, QuantLayer | ProgramModule) for module in found)

    def prepare(self, image: ByteImage) -> NDArray[Any]:
        """Return a picture as the array that :meth:`score` takes a stack of."""
        if not self.own:
            return resize_input(image)
        with _users_code(f"{self.name}: preprocess"):
            made = self.module.preprocess(image)  # type: ignore[operator]
        if not isinstance(made, Tensor) or made.ndim not in (3, 4):
            raise ValueError(
                f"{self.name}: preprocess: found {type(made).__name__}, accepted: a tensor of a "
                "picture"
            )
        array: NDArray[Any] = (made[0] if made.ndim == 4 else made).numpy()
        return array

    def tensor(self, stack: NDArray[Any]) -> Tensor:
        """Return a stack of prepared pictures as the module's input."""
        if self.own:
            return torch.from_numpy(np.ascontiguousarray(stack))
        return to_input(stack).contiguous(memory_format=torch.channels_last)

    def probabilities(self, x: Tensor) -> Tensor:
        """Return the probabilities of "forged" of an input, as the module's own tensor."""
        with _users_code(self.name):
            if self.own:
                return self.module.score(x).flatten()  # type: ignore[operator,no-any-return]
            out = self.module(x)
        if not isinstance(out, Tensor) or out.numel() != len(x):
            found = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
            raise ValueError(
                f"{self.name}: found an output of {found} for {len(x)} pictures, accepted: one "
                "logit each"
            )
        return torch.sigmoid(out.double()).flatten()

    def score(self, stack: NDArray[Any]) -> NDArray[np.float64]:
        """Return the probabilities of "forged" of a stack of prepared pictures.

        Raises ``ValueError`` for another number of them, and for what is no probability.
        """
        with torch.inference_mode():
            found = self.probabilities(self.tensor(stack))
        scores: NDArray[np.float64] = found.double().numpy()
        if scores.shape != (len(stack),) or not ((scores >= 0) & (scores <= 1)).all():
            raise ValueError(
                f"{self.name}: found scores of shape {scores.shape} from {scores.min()} to "
                f"{scores.max()} for {len(stack)} pictures, accepted: one from 0 to 1 each"
            )
        return scores


def _file_digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def state_digest(name: str, module: nn.Module) -> tuple[str, int]:
    """Return a digest of a module's state, and the state's bytes."""
    total, size = hashlib.sha256(name.encode()), 0
    for key, value in sorted(module.state_dict().items()):
        if isinstance(value, Tensor):
            data = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
            total.update(f"{key}{value.dtype}{tuple(value.shape)}".encode())
            total.update(data.tobytes())
            size += data.size
    return total.hexdigest(), size


def build_module(what: str) -> nn.Module:
    """Return a detector by its name in ``defakeq.detectors``, or what ``package.module:function``
    makes. Raises ``ValueError`` that names it."""
    from defakeq import detectors

    if what in detectors.names():
        return detectors.build(what).requires_grad_(False)
    if not _is_builder(what):
        raise ValueError(f"builder: found {what!r}, accepted: {_MODULES}")
    module_name, _, function = what.partition(":")
    if "" not in sys.path:  # a user's module lies where the command is given
        sys.path.insert(0, "")
    try:
        with _users_code(f"model: {module_name}"):
            builder = getattr(importlib.import_module(module_name), function)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"model: found {what!r}, which cannot be imported: {error}") from error
    with _users_code(f"model: {what}", ()):
        built = builder()
    if not isinstance(built, nn.Module):
        raise ValueError(f"model: {what} returned {type(built).__name__}, accepted: a module")
    return built.eval().requires_grad_(False)


@contextlib.contextmanager
def _users_code(
    what: str,
    passed: tuple[type[Exception], ...] = (ValueError, OSError, ImportError, AttributeError),
) -> Iterator[None]:
    """Names what a module that a user wrote raises, and where, in one line."""
    try:
        yield
    except passed:
        raise
    except Exception as error:
        text = " ".join(str(error).split())
        frames = traceback.extract_tb(error.__traceback__)[1:]
        own = [f for f in frames if "site-packages" not in f.filename] or frames
        place = f" ({own[-1].filename}, line {own[-1].lineno})" if own else ""
        raise ValueError(f"{what}: {type(error).__name__}: {text}{place}") from error


def _is_builder(what: str) -> bool:
    module, colon, function = what.partition(":")
    names = [*module.split("."), function]
    return bool(colon) and all(name.isidentifier() for name in names)


def load_weights(module: nn.Module, path: Path) -> LoadReport:
    """Load a checkpoint into a module that `build_module` made.

    Raises ``ValueError`` for a file that is none or does not fit, by name.
    """
    return load_into(module, path, module.unused if isinstance(module, Detector) else ())


def _scorer(what: str) -> Scorer:
    module = build_module(what)
    digest, size = state_digest(what, module)
    return Scorer(what, module, size, digest)


def _checkpoint(path: Path, builder: str) -> Scorer:
    module = build_module(builder)
    load_weights(module, path)
    return Scorer(path.name, module, path.stat().st_size, _file_digest(path))


def open_model(what: str = EMBEDDED, builder: str | None = None) -> Scorer:
    """Return the detector to evaluate.

    ``what`` is the path of a ``.dfq`` file or of a checkpoint, ``embedded``, or
    ``package.module:function`` that returns a module; ``builder`` is such a function or the name of
    a detector, for a checkpoint and for a file that names none. Raises ``ValueError`` that says
    what was found and what is accepted.
    """
    from defakeq.conversion import load

    if _is_builder(what):
        return _scorer(what)
    path = PACKED if what == EMBEDDED else Path(what)
    if not path.is_file():
        raise ValueError(f"model: found {what}, which is no file; accepted: {_ACCEPTED}")
    if path.suffix in CHECKPOINTS:
        if builder is None:
            raise ValueError(f"model: found {what}, accepted with a builder: {_MODULES}")
        return _checkpoint(path, builder)
    try:
        module = load(path, None if builder is None else build_module(builder))
    except ValueError as error:
        raise ValueError(f"model: found {what}, accepted: {_ACCEPTED}; {error}") from error
    name = EMBEDDED if what == EMBEDDED else path.name
    return Scorer(name, module, path.stat().st_size, _file_digest(path))


def open_float(what: str | None, model: str, builder: str | None = None) -> Scorer | None:
    """Return the float detector that ``model`` is compared with, or None for ``none``.

    ``what`` is ``package.module:function``, or a checkpoint for the module that ``builder``
    returns. None is the embedded detector's own float network when ``model`` is it, else ``none``.
    """
    if what == NO_FLOAT or (what is None and model != EMBEDDED):
        return None
    if what is None or what == EMBEDDED:
        size = CHECKPOINT.stat().st_size
        return Scorer("embedded, float32", load_float(), size, _file_digest(CHECKPOINT))
    if _is_builder(what):
        return _scorer(what)
    path = Path(what)
    if not path.is_file():
        raise ValueError(
            f"float-model: found {what}, which is no file; accepted: a checkpoint, 'embedded', "
            "'none', or 'package.module:function'"
        )
    if builder is None:
        raise ValueError(f"float-model: found {what}, accepted with a builder: {_MODULES}")
    return _checkpoint(path, builder)


def latencies(scorers: Sequence[Scorer], picture: ByteImage, repeats: int = 20) -> list[float]:
    """Return each network's median milliseconds for one picture, measured in turns."""
    inputs = [scorer.tensor(scorer.prepare(picture)[None]) for scorer in scorers]
    calls: list[Callable[[], Any]] = [
        lambda scorer=scorer, x=x: scorer.probabilities(x)  # type: ignore[misc]
        for scorer, x in zip(scorers, inputs, strict=True)
    ]
    times: list[list[float]] = [[] for _ in scorers]
    with torch.inference_mode():
        for turn in range(repeats + 2):
            for call, spent in zip(calls, times, strict=True):
                start = time.perf_counter()
                call()
                if turn >= 2:  # the first turns warm up
                    spent.append((time.perf_counter() - start) * 1e3)
    return [statistics.median(spent) for spent in times]


def kinds(scorers: Sequence[Scorer]) -> tuple[str, ...]:
    """What tables call a network and the float one beside it, if there is one."""
    return ("compressed" if scorers[0].packed else "evaluated", "float")[: len(scorers)]
