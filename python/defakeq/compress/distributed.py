"""Several processes at one compression, started by ``torchrun``.

Each process looks at its part of the calibration images; sums and gradients are added up. Without
``torchrun`` there is one process, and everything here does nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, overload

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Ranks:
    """This process and how many there are."""

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes."""
        return self.rank == 0


def ranks() -> Ranks:
    """The present group."""
    if dist.is_available() and dist.is_initialized():
        return Ranks(dist.get_rank(), dist.get_world_size())
    return Ranks()


@contextmanager
def group() -> Iterator[Ranks]:
    """Joins the processes that ``torchrun`` started; alone without it."""
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ or dist.is_initialized():
        yield ranks()
        return
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("nccl" if cuda else "gloo")
    try:
        yield ranks()
    finally:
        dist.destroy_process_group()


def add(value: Tensor) -> Tensor:
    """The sum over all processes, in place."""
    if ranks().count > 1:
        dist.all_reduce(value)
    return value


def extreme(value: Tensor, smallest: bool) -> Tensor:
    """The smallest or largest over all processes, in place."""
    if ranks().count > 1:
        dist.all_reduce(value, dist.ReduceOp.MIN if smallest else dist.ReduceOp.MAX)
    return value


def mean(value: float) -> float:
    """The mean over all processes of a number."""
    if ranks().count == 1:
        return value
    held = torch.tensor(value, dtype=torch.float64, device=_device())
    dist.all_reduce(held)
    return float(held) / ranks().count


def shared(make: Callable[[], Any]) -> Any:
    """What `make` returns in the first process, in all of them; an error there is one in all."""
    if ranks().count == 1:
        return make()
    held: list[Any] = [None, None]
    if ranks().first:
        try:
            held[0] = make()
        except Exception as error:  # raised below, in every process
            held[1] = error
    dist.broadcast_object_list(held, 0)
    if held[1] is not None:
        raise held[1]
    return held[0]


@overload
def part(value: Tensor) -> Tensor: ...
@overload
def part(value: None) -> None: ...
def part(value: Tensor | None) -> Tensor | None:
    """This process's part of the images or labels; all parts are equally long.

    Raises:
        ValueError: fewer than two images for a process.
    """
    own = ranks()
    if value is None or own.count == 1:
        return value
    size = len(value) // own.count
    if size < 2:
        raise ValueError(
            f"calibration: found {len(value)} images for {own.count} processes; accepted is at "
            "least two each"
        )
    return value[own.rank :: own.count][:size].contiguous()


def _device() -> str:
    return "cuda" if dist.get_backend() == "nccl" else "cpu"


def average(values: Iterable[Tensor | None]) -> None:
    """The mean over all processes of each tensor, in place; they are sent as one."""
    count = ranks().count
    if count == 1:
        return
    tensors = [value for value in values if value is not None]
    flat = torch.cat([value.reshape(-1) for value in tensors])
    dist.all_reduce(flat)
    flat /= count
    at = 0
    for value in tensors:
        value.copy_(flat[at : at + value.numel()].reshape(value.shape))
        at += value.numel()


def average_gradients(optimizer: torch.optim.Optimizer) -> None:
    """The mean over all processes of the gradients of what the optimizer moves."""
    average([p.grad for own in optimizer.param_groups for p in own["params"]])
