"""The same work in other engines: torch, ONNX Runtime and OpenVINO.

Every engine gets its favourable form: activations as unsigned and weights as signed integers,
channels last where the engine prefers it, and one graph that holds several copies of the operator
with different weights, so that the cost of calling the graph is divided by their number. torch has
no such graph; it is called once an operator, and a call costs it a few microseconds.

An engine that is not installed, or that refuses a work, is named in `Peers.notes` and left out.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable, Iterator

from defakeq.bench.layers import copies_of
from defakeq.bench.peers.given import Builder
from defakeq.bench.peers.with_onnxruntime import OrtEngine
from defakeq.bench.peers.with_openvino import OpenvinoEngine
from defakeq.bench.peers.with_torch import TorchEngine
from defakeq.bench.shapes import Work
from defakeq.bench.timing import Contender, repeated

__all__ = ["Builder", "OpenvinoEngine", "OrtEngine", "Peers", "TorchEngine"]


class Peers:
    """Builds the contenders of the engines that are installed.

    Attributes:
        notes: one line for each engine that is absent and each form that an engine refused.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self.notes: list[str] = []
        self._engines: list[Callable[[Work], Iterator[tuple[str, int, Builder]]]] = []
        for modules, engine in (
            (("torch",), TorchEngine),
            (("onnx", "onnxruntime"), OrtEngine),
            (("openvino",), OpenvinoEngine),
        ):
            missing = [m for m in modules if importlib.util.find_spec(m) is None]
            if missing:
                self.notes.append(
                    f"{modules[-1]}: not compared, {' and '.join(missing)} not installed "
                    "(pip install 'defakeq[torch,peers]')"
                )
                continue
            try:
                self._engines.append(engine(threads).forms)
            except Exception as error:
                self.notes.append(f"{modules[-1]}: not compared: {_line(error)}")

    def contenders(self, work: Work) -> list[Contender]:
        """The dense ``work`` in each engine's forms; nothing for pruned and mixed work."""
        found: list[Contender] = []
        if work.variant or work.kind == "small":
            return found
        for forms in self._engines:
            for name, bits, build in forms(work):
                copies = copies_of(work, bits)
                try:
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore")
                        call, operations = build(copies)
                        call()
                except Exception as error:
                    self.notes.append(f"{work.name}, {name}: refused: {_line(error)}")
                    continue
                found.append(
                    Contender(
                        work=work.name,
                        bits=bits,
                        engine=name,
                        run=repeated(call, operations),
                        macs=work.macs,
                        bytes_moved=work.bytes_moved(bits, 4 if bits == 32 else 1),
                        copies=copies,
                    )
                )
        return found


def _line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:160]}"
