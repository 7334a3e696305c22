"""Runs whole networks from ``.dfq`` files: numpy or DLPack arrays in, numpy out, no torch."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from defakeq_kernels import _core, get_num_threads
from defakeq_kernels.checks import check_range, is_integer, refuse, shown

MAX_THREADS = 1024


def load(path: str | os.PathLike[str], threads: int | None = None) -> Program:
    """Loads the program of a file and packs its layers for this processor.

    Args:
        path: a ``.dfq`` file with a program.
        threads: how many threads run it, 1 to 1024; None: `defakeq_kernels.get_num_threads()`.

    Raises:
        ValueError: a wrong thread count.
        RuntimeError: no valid file; the message names the field or node.
    """
    return Program(_core.Program(os.fspath(path), _count(threads)))


def loads(data: Any, threads: int | None = None) -> Program:
    """Loads the program of a file's content: bytes, or any contiguous buffer of them.

    The buffer is not needed after the call. Arguments and errors otherwise as in `load`.
    """
    count = _count(threads)
    try:
        memoryview(data)
    except TypeError:
        raise ValueError(f"data: found {type(data).__name__}; accepted is bytes") from None
    return Program(_core.Program.of_bytes(data, count))


def _count(threads: int | None) -> int:
    count = get_num_threads() if threads is None else threads
    check_range("threads", count, 1, MAX_THREADS)
    return int(count)


class Program:
    """A whole network. Calls from several threads take turns; a forked child may go on using it.

    `load` and `loads` make it.
    """

    def __init__(self, program: Any) -> None:
        self._program = program

    def __repr__(self) -> str:
        ports = [
            ", ".join(f"{port['name']} {list(port['shape'])}" for port in group)
            for group in (self.inputs, self.outputs)
        ]
        return f"Program({ports[0]} -> {ports[1]}, {len(self.nodes)} nodes, threads={self.threads})"

    @property
    def inputs(self) -> list[dict[str, Any]]:
        """``name`` and ``shape``, without the batch, of each input."""
        return self._program.inputs

    @property
    def outputs(self) -> list[dict[str, Any]]:
        """``name`` and ``shape``, without the batch, of each output."""
        return self._program.outputs

    @property
    def nodes(self) -> list[dict[str, Any]]:
        """Each node's name, op, kernel, output shape, multiply-adds and bytes of weights."""
        return self._program.nodes

    @property
    def info(self) -> dict[str, Any]:
        """Sizes in bytes, multiply-adds an image, seconds that loading took."""
        return self._program.info

    @property
    def threads(self) -> int:
        """How many threads run it; may be set."""
        return self._program.threads

    @threads.setter
    def threads(self, count: int) -> None:
        self._program.threads = _count(count)

    def __call__(self, *inputs: Any) -> Any:
        """Runs a batch.

        Args:
            inputs: one float32 array [N, *shape] for each of `inputs`: numpy, or anything with
                ``__dlpack__`` in main memory. What is not contiguous is copied.

        Returns:
            the array of the one output, or a list in the order of `outputs`.

        Raises:
            ValueError: a wrong number of inputs, type or shape, by the input's name.
        """
        results = self._program.run(self._arrays(inputs))
        return results[0] if len(results) == 1 else results

    def profile(self, *inputs: Any, repeat: int = 10) -> list[dict[str, Any]]:
        """Runs `repeat` times; returns `nodes` with the median ``seconds`` of each added."""
        if not is_integer(repeat) or repeat < 1:
            refuse("repeat", shown(repeat), "an integer from 1 on")
        arrays = self._arrays(inputs)
        times = np.array([self._program.profile(arrays) for _ in range(repeat)])
        medians = np.median(times, axis=0)
        return [{**node, "seconds": float(s)} for node, s in zip(self.nodes, medians, strict=True)]

    def _arrays(self, inputs: tuple[Any, ...]) -> list[NDArray[Any]]:
        ports = self.inputs
        names = [p["name"] for p in ports] + [str(i) for i in range(len(ports), len(inputs))]
        return [_array(name, value) for name, value in zip(names, inputs, strict=False)]


def _array(name: str, value: Any) -> NDArray[Any]:
    if isinstance(value, np.ndarray):
        return value
    if hasattr(value, "__dlpack__"):
        if getattr(value, "requires_grad", False):
            value = value.detach()
        try:
            return np.from_dlpack(value)
        except (TypeError, RuntimeError, BufferError) as error:
            raise ValueError(
                f"input '{name}': found {type(value).__name__} ({error}); accepted is an array in "
                "main memory"
            ) from error
    raise ValueError(
        f"input '{name}': found {type(value).__name__}; accepted is a numpy array or an object "
        "with __dlpack__"
    )


__all__ = ["Program", "load", "loads"]
