"""Finished stages on disk, so that a killed run continues."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from defakeq.compress.distributed import ranks, shared


class WorkDir:
    """A folder of finished stages of one compression.

    Args:
        path: the folder; made when absent. None: nothing is kept.
        key: what the compression is made of; stages of another key are removed.

    Raises:
        OSError: the folder cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str] | None, key: str) -> None:
        self.path = None if path is None else Path(path)
        if self.path is not None and ranks().first:
            self._open(key)

    def _open(self, key: str) -> None:
        assert self.path is not None
        self.path.mkdir(parents=True, exist_ok=True)
        for part in self.path.glob(".*.stage.*.part"):  # of a process that died while writing
            part.unlink(missing_ok=True)
        marker = self.path / "key.json"
        found = None
        if marker.is_file():
            try:
                found = json.loads(marker.read_text()).get("key")
            except (ValueError, AttributeError):
                found = None
        if found != key:
            for old in self.path.glob("*.stage"):
                old.unlink()
            write_whole(marker, json.dumps({"key": key}).encode())

    def load(self, name: str) -> Any:
        """What a stage saved; None: it is not finished."""
        if self.path is None:
            return None
        return shared(lambda: self._read(name))

    def _read(self, name: str) -> Any:
        assert self.path is not None
        file = self.path / f"{name}.stage"
        if not file.is_file():
            return None
        return torch.load(file, weights_only=True)

    def save(self, name: str, value: Any) -> None:
        """Keeps what a stage made: tensors, numbers, strings, lists and dictionaries."""
        if self.path is None or not ranks().first:
            return
        write_whole(self.path / f"{name}.stage", lambda file: torch.save(value, file))

    def stage(self, name: str, make: Callable[[], Any]) -> Any:
        """What the stage saved, or what `make` returns, which is then saved."""
        found = self.load(name)
        if found is None:
            found = make()
            self.save(name, found)
        return found

    def remove(self) -> None:
        """Deletes the folder."""
        if self.path is not None:
            shutil.rmtree(self.path, ignore_errors=True)


def write_whole(path: Path, content: bytes | Callable[[Any], None]) -> None:
    """Writes a file that is complete or absent.

    Raises:
        OSError: it cannot be written; the message names the file, and no part of it stays.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.part")
    try:
        with open(part, "xb") as file:
            if callable(content):
                content(file)
            else:
                file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException as error:
        part.unlink(missing_ok=True)
        # torch reports a full disk as a RuntimeError without the file's name
        if isinstance(error, RuntimeError):
            free = shutil.disk_usage(path.parent).free
            raise OSError(f"{path}: cannot be written; {free} bytes are free there") from error
        if isinstance(error, OSError) and error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


def fingerprint(model: nn.Module, tensors: list[Tensor | None], settings: Any) -> str:
    """A hash of a model's state, tensors and settings of JSON types."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for name, value in model.state_dict().items():
        digest.update(name.encode())
        if isinstance(value, Tensor):
            digest.update(_bytes(value))
    for tensor in tensors:
        digest.update(b"-" if tensor is None else _bytes(tensor))
    return digest.hexdigest()


def _bytes(value: Tensor) -> bytes:
    flat = value.detach().cpu().contiguous().reshape(-1)
    return (
        str((value.dtype, tuple(value.shape))).encode() + flat.view(torch.uint8).numpy().tobytes()
    )
