"""Several processes at one compression, started by ``torchrun``.

Each process looks at its part of the calibration images; sums and gradients are added up. Without
``torchrun`` there is one process, and everything here does nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

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
