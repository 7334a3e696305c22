"""What was wrong with a data set: every problem by name, none dropped in silence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

# The kinds, and what each means for the samples it names.
KINDS: dict[str, str] = {
    "missing file": "skipped",
    "broken image": "skipped",
    "broken video": "skipped",
    "empty video": "skipped",
    "no face": "skipped",
    "unknown label": "skipped",
    "malformed entry": "skipped",
    "duplicate frame": "skipped",
    "unknown split": "skipped",
    "identity in two splits": "kept",
    "video in two splits": "kept",
}


@dataclass(frozen=True, order=True)
class Problem:
    """One problem: its kind (of :data:`KINDS`), the file, video or identity, and what was found."""

    kind: str
    name: str
    detail: str = ""

    def line(self) -> str:
        """Return the problem as one line of text."""
        return f"{self.kind}: {self.name}" + (f" ({self.detail})" if self.detail else "")


@dataclass
class Report:
    """The problems of a data set, each once.

    The order in which they were added leaves no trace: two shards of a data set and the whole of it
    give the same document.
    """

    found: set[Problem] = field(default_factory=set)

    def add(self, kind: str, name: object, detail: object = "") -> None:
        """Note a problem. Raises ``ValueError`` for an unknown kind."""
        if kind not in KINDS:
            raise ValueError(f"kind: found {kind!r}, accepted: {', '.join(KINDS)}")
        text = " ".join(str(detail).split())
        self.found.add(Problem(kind, str(name), text))

    def update(self, problems: Iterable[Problem]) -> None:
        """Note several problems."""
        for problem in problems:
            self.add(problem.kind, problem.name, problem.detail)

    @property
    def problems(self) -> list[Problem]:
        """Return the problems in a fixed order."""
        return sorted(self.found)

    def counts(self) -> dict[str, int]:
        """Return how many problems of each kind there are, for the kinds that occur."""
        counted = Counter(problem.kind for problem in self.found)
        return {kind: counted[kind] for kind in KINDS if counted[kind]}

    @property
    def skipped(self) -> int:
        """Return the number of problems whose samples are left out."""
        return sum(KINDS[problem.kind] == "skipped" for problem in self.found)

    def to_dict(self) -> dict[str, Any]:
        """Return the same as plain values."""
        return {
            "counts": self.counts(),
            "problems": [asdict(problem) for problem in self.problems],
        }

    @classmethod
    def from_dict(cls, document: dict[str, Any]) -> Report:
        """Return the report that :meth:`to_dict` gave."""
        report = cls()
        for row in document["problems"]:
            report.add(row["kind"], row["name"], row.get("detail", ""))
        return report

    def __bool__(self) -> bool:
        return bool(self.found)
