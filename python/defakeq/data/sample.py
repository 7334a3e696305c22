"""One picture of a data set and what is known of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, order=True)
class Sample:
    """A face crop, or a frame of a video in which the face is still to be found.

    ``name`` is the path as the data set writes it, with forward slashes (unique together with
    ``frame``); ``path`` the file. ``label`` is 1 for forged and 0 for real, ``family`` the subset
    (the label's name in benchmarks), ``video`` the video that it belongs to, unique in a data set.
    ``identities`` are the people in it where the names tell. ``frame`` is the index of the frame
    when the file is a video, else -1.
    """

    name: str
    path: Path
    label: int
    family: str
    video: str
    split: str
    compression: str = ""
    identities: tuple[str, ...] = ()
    frame: int = -1

    @property
    def key(self) -> str:
        """Return the sample's name, with the frame of a video."""
        return self.name if self.frame < 0 else f"{self.name}#{self.frame}"
