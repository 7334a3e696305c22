"""The presets of `compress`: what each stage does."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any

from defakeq.compress.learning import Settings as Reconstruction
from defakeq.compress.veft import Alignment

PRESETS = ("default", "quick", "paper")


@dataclass(frozen=True)
class Preset:
    """What each stage does.

    Attributes:
        widths: of the weights that may be chosen.
        objective: "measured" (sensitivity times rounding error), "score" (S_l 2^-b), or "uniform"
            (the widest width that fits, the same everywhere).
        exact: whether the widths and channels are the integer programme's, or found step by step.
        ends: width of the first and the last layer, where the objective is "uniform"; None: alike.
        prune: whether redundant channels may go.
        speed: what all of the layers' time is worth, as a part of the margin's variance: channels
            go for it that the budget alone would leave.
        act_average: bits of the layers' inputs on average at most, which are then 4 to 8; None: 8.
            Narrower inputs make no smaller file and no faster program.
        reconstruction: of the blocks.
        restored: part of the output channels that stays in half precision in the mixed model.
        choice: how these are chosen: "recovery" or "random".
        alignment: the fine-tuning.
    """

    widths: tuple[int, ...] = (2, 3, 4, 5, 6, 7, 8)
    objective: str = "measured"
    exact: bool = True
    ends: int | None = None
    prune: bool = True
    speed: float = 0.08
    act_average: float | None = None
    reconstruction: Reconstruction = field(default_factory=Reconstruction)
    restored: float = 0.02
    choice: str = "recovery"
    alignment: Alignment = field(default_factory=Alignment)

    def to_dict(self) -> dict[str, Any]:
        """JSON types."""
        return asdict(self)


def preset(name: str) -> Preset:
    """A preset by its name.

    Raises:
        ValueError: an unknown name.
    """
    if name == "default":
        return Preset()
    if name == "quick":  # every stage of the default, with little tuning
        own = Preset()
        return replace(
            own,
            reconstruction=replace(own.reconstruction, steps=2),
            alignment=replace(own.alignment, steps=2),
        )
    if name == "paper":
        return Preset(
            widths=(3, 4, 8),
            objective="score",
            prune=False,
            speed=0.0,
            reconstruction=Reconstruction(
                method="adaround", feedback=False, steps=400, rate=0.1, scale_rate=0.0
            ),
            choice="random",
            alignment=Alignment(codes=0.0),
        )
    raise ValueError(f"preset: found {name!r}; accepted is one of {', '.join(PRESETS)}")
