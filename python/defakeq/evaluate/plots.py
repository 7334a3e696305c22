"""Plots as inline SVG: ROC curves and histograms of scores."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray

from defakeq import metrics

COLORS = {"compressed": "#2563eb", "evaluated": "#2563eb", "float": "#d97706"}
CLASSES = {"real": "#0d9488", "forged": "#dc2626"}
_SIDE, _LEFT, _BOTTOM, _TOP, _RIGHT = 260, 46, 40, 24, 12


def _frame(title: str, x_label: str, y_label: str, ticks: Sequence[str], body: str) -> str:
    width, height = _LEFT + _SIDE + _RIGHT, _TOP + _SIDE + _BOTTOM
    base = _TOP + _SIDE
    marks = []
    for index, value in enumerate(np.linspace(0, 1, 6)):
        x, y = _LEFT + value * _SIDE, base - value * _SIDE
        marks.append(
            f'<line class="grid" x1="{x:.1f}" y1="{_TOP}" x2="{x:.1f}" y2="{base}"/>'
            f'<line class="grid" x1="{_LEFT}" y1="{y:.1f}" x2="{_LEFT + _SIDE}" y2="{y:.1f}"/>'
            f'<text x="{x:.1f}" y="{base + 14}" text-anchor="middle">{value:.1f}</text>'
            f'<text x="{_LEFT - 5}" y="{y + 3:.1f}" text-anchor="end">{escape(ticks[index])}</text>'
        )
    return (
        f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
        f'aria-label="{escape(title)}"><title>{escape(title)}</title>'
        f'<text x="{_LEFT + _SIDE / 2}" y="14" text-anchor="middle" class="name">{escape(title)}'
        f"</text>{''.join(marks)}{body}"
        f'<text x="{_LEFT + _SIDE / 2}" y="{height - 6}" text-anchor="middle">{escape(x_label)}'
        f'</text><text transform="translate(11 {_TOP + _SIDE / 2}) rotate(-90)" '
        f'text-anchor="middle">{escape(y_label)}</text></svg>'
    )


def _legend(rows: Sequence[tuple[str, str, bool]], x: float, y: float) -> str:
    parts = []
    for index, (text, color, dashed) in enumerate(rows):
        line = y + 15 * index
        dash = ' stroke-dasharray="5 3"' if dashed else ""
        parts.append(
            f'<line x1="{x}" y1="{line}" x2="{x + 20}" y2="{line}" stroke="{color}" '
            f'stroke-width="2.5"{dash}/><text x="{x + 25}" y="{line + 4}">{escape(text)}</text>'
        )
    return "".join(parts)


def roc(labels: NDArray[np.int64], networks: dict[str, NDArray[np.float64]], title: str) -> str:
    """Return the ROC curves of several networks; empty when one of the classes is missing."""
    if not 0 < labels.sum() < len(labels):
        return ""
    base = _TOP + _SIDE
    body = f'<line x1="{_LEFT}" y1="{base}" x2="{_LEFT + _SIDE}" y2="{_TOP}" class="chance"/>'
    legend = []
    for name, scores in networks.items():
        found = metrics.curve(labels, scores)
        x = _LEFT + found.reals / found.negatives * _SIDE
        y = base - found.fakes / found.positives * _SIDE
        keep = _corners(x, y)
        points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x[keep], y[keep], strict=True))
        dash = ' stroke-dasharray="5 3"' if name == "float" else ""
        body += (
            f'<polyline class="curve {escape(name)}" points="{points}" fill="none" '
            f'stroke="{COLORS[name]}" stroke-width="2"{dash}/>'
        )
        legend.append((f"{name}, AUC {metrics.auc_of(found):.3f}", COLORS[name], name == "float"))
    body += _legend(legend, _LEFT + 92, base - 12 - 15 * (len(legend) - 1))
    ticks = [f"{value:.1f}" for value in np.linspace(0, 1, 6)]
    return _frame(
        title,
        "false positive rate (real as forged)",
        "true positive rate (forged found)",
        ticks,
        body,
    )


def _corners(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return which points of a stair are no inner points of a straight line."""
    keep = np.ones(len(x), bool)
    turn = np.diff(x)[:-1] * np.diff(y)[1:] - np.diff(y)[:-1] * np.diff(x)[1:]
    keep[1:-1] = np.abs(turn) > 1e-9
    return keep


def histogram(
    labels: NDArray[np.int64], networks: dict[str, NDArray[np.float64]], title: str, bins: int = 20
) -> str:
    """Return the distribution of scores, by class: bars for the first network, lines for others."""
    base = _TOP + _SIDE
    counted = {
        (name, kind): np.histogram(scores[labels == value], bins, (0, 1))[0]
        / max(1, int((labels == value).sum()))
        for name, scores in networks.items()
        for value, kind in enumerate(CLASSES)
    }
    # Round ticks, and room above the bars for the legend.
    tallest = max(float(row.max()) for row in counted.values()) or 1.0
    room = 1 + (15 * len(counted) + 10) / _SIDE
    steps = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
    top = 5 * next(step for step in steps if 5 * step >= tallest * room)
    body, legend = "", []
    first = next(iter(networks))
    for (name, kind), row in counted.items():
        heights = row / top * _SIDE
        width = _SIDE / bins
        if name == first:
            body += "".join(
                f'<rect class="bar {kind}" x="{_LEFT + i * width:.1f}" y="{base - h:.1f}" '
                f'width="{width:.1f}" height="{h:.1f}" fill="{CLASSES[kind]}" '
                f'fill-opacity="0.45"/>'
                for i, h in enumerate(heights)
                if h > 0
            )
        else:
            edges = np.repeat(_LEFT + np.arange(bins + 1) * width, 2)[1:-1]
            points = " ".join(
                f"{a:.1f},{b:.1f}" for a, b in zip(edges, np.repeat(base - heights, 2), strict=True)
            )
            body += (
                f'<polyline points="{points}" fill="none" stroke="{CLASSES[kind]}" '
                f'stroke-width="1.5" stroke-dasharray="5 3"/>'
            )
        legend.append((f"{kind}, {name}", CLASSES[kind], name != first))
    body += _legend(legend, _LEFT + 8, _TOP + 12)
    ticks = [f"{value * top:.2f}" for value in np.linspace(0, 1, 6)]
    return _frame(
        title, "probability of a forgery", f"share of the class, {bins} bins", ticks, body
    )
