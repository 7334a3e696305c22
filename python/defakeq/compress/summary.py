"""The summary that a file carries: what `defakeq inspect` cannot tell from the rest of it."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

from defakeq.lower import ProgramModule
from defakeq.lower.module import ProgramStage

KEY = "compression"  # in the network's JSON
_MEASURED = ("auc_float", "auc_model", "margin_error_model")


def carry(program: ProgramModule, document: Mapping[str, Any]) -> None:
    """Puts the summary of a report into a program's file."""
    stage = _stage(program)
    stage.network = {**stage.network, KEY: _of(document)}


def leave(program: ProgramModule) -> None:
    """Takes the summary out of a program's file."""
    stage = _stage(program)
    stage.network = {key: value for key, value in stage.network.items() if key != KEY}


def _of(document: Mapping[str, Any]) -> dict[str, Any]:
    calibration = document["calibration"]
    return _made(
        document["asked"],
        document["checkpoint"],
        document["seed"],
        sum(e["outputs"] - e["kept_outputs"] for e in document["layers"]),
        {k: calibration[k] for k in _MEASURED if k in calibration},
        document["hurt_most"],
    )


def longest(layers: Mapping[str, Any], numbers: random.Random) -> dict[str, Any]:
    """A summary that takes as much as any does.

    Args:
        layers: by name, of the network.
        numbers: where its numbers come from.
    """
    return _made(
        numbers.random(),
        numbers.randrange(10**9, 10**10),
        numbers.randrange(1 << 31, 1 << 32),
        numbers.randrange(10**5, 10**6),
        {key: numbers.uniform(1.0, 10.0) for key in _MEASURED},
        sorted(layers, key=len, reverse=True),
    )


def _made(
    asked: float,
    checkpoint: int,
    seed: int,
    pruned: int,
    measured: Mapping[str, float],
    hurt: list[str],
) -> dict[str, Any]:
    return {
        "asked": asked,
        "checkpoint": checkpoint,
        "seed": seed,
        "pruned": pruned,
        "calibration": {key: round(value, 5) for key, value in measured.items()},
        "hurt": [name[-40:] for name in hurt[:3]],
    }


def _stage(program: ProgramModule) -> ProgramStage:
    (stage,) = program.stages
    assert isinstance(stage, ProgramStage)
    return stage
