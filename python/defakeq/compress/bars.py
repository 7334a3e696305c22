"""Progress bars of the stages."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class Bars:
    """Shows a bar for each stage while it is entered; nothing when not shown."""

    def __init__(self, shown: bool) -> None:
        self.shown = shown
        self._progress: Any = None

    def __enter__(self) -> Bars:
        if self.shown:
            from rich.console import Console
            from rich.progress import Progress

            self._progress = Progress(console=Console(stderr=True))
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    @contextmanager
    def task(self, name: str, total: int) -> Iterator[Callable[[int], None]]:
        """A bar; call what it gives with the number of things done."""
        if self._progress is None:
            yield lambda count: None
            return
        task = self._progress.add_task(name, total=total)
        yield lambda count: self._progress.advance(task, count)
        self._progress.update(task, completed=total)
