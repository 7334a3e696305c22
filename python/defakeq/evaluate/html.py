"""The HTML report: one file with everything in it."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from defakeq.metrics import BINS

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 66rem; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; }
h2 { border-top: 1px solid var(--line); padding-top: 1rem; } h3 { font-size: 1rem; }
table { border-collapse: collapse; margin: .7rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .8rem .25rem 0; text-align: right; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child, td.text { text-align: left; } th { font-weight: 600; }
.wide { overflow-x: auto; } .plots, .misses { display: flex; flex-wrap: wrap; gap: 1.2rem; }
svg { font: 10px system-ui, sans-serif; fill: currentColor; max-width: 100%; height: auto; }
svg .name { font-size: 12px; font-weight: 600; } svg .grid { stroke: var(--line); }
svg .chance { stroke: currentColor; stroke-opacity: .35; stroke-dasharray: 2 3; }
figure { margin: 0; background: var(--soft); padding: .6rem; border-radius: 6px; }
figure img { width: 112px; height: 112px; display: inline-block; object-fit: cover; }
small, .note { font-size: .82rem; opacity: .85; max-width: 56rem; }
figcaption { font-size: .82rem; max-width: 30rem; overflow-wrap: anywhere; }
.views { display: flex; gap: .4rem; }
.views div { font-size: .75rem; text-align: center; }
"""


def image(picture: NDArray[np.uint8], alt: str) -> str:
    """Return an ``img`` element that holds a picture, uint8 RGB."""
    ok, code = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 88])
    if not ok:
        raise RuntimeError("html: OpenCV cannot write JPEG")
    text = base64.b64encode(code.tobytes()).decode()
    return f'<img alt="{escape(alt)}" src="data:image/jpeg;base64,{text}">'


def number(value: float | None, digits: int = 3) -> str:
    """Return a number as text, a dash for None."""
    return "–" if value is None else f"{value:.{digits}f}"


def _with_interval(row: dict[str, Any], name: str) -> str:
    text = number(row[name])
    if name in row.get("intervals", {}):
        low, high = row["intervals"][name]
        text += f" <small>{low:.3f} to {high:.3f}</small>"
    return text


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table; the cells are HTML."""
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{c}</td>" for c in row) + "</tr>" for row in rows)
    return (
        f'<div class="wide"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'
    )


_HEAD = ("AUC ↑", "EER ↓", "average precision ↑", "accuracy ↑", "calibration error ↓")
_KEYS = ("auc", "eer", "ap", "accuracy", "calibration_error")


def _metric_rows(found: dict[str, Any], label: str) -> list[list[str]]:
    return [
        [
            f"{escape(label)}{escape(network)}, {level}s",
            str(row["count"]),
            *(_with_interval(row, key) for key in _KEYS),
        ]
        for network, levels in found.items()
        for level, row in levels.items()
    ]


def _problems(report: dict[str, Any]) -> str:
    if not report["problems"]:
        return "<p>Nothing was left out.</p>"
    counts = ", ".join(f"{n} × {escape(kind)}" for kind, n in report["counts"].items())
    shown = report["problems"][:100]
    lines = "".join(
        f"<li>{escape(row['kind'])}: {escape(row['name'])} {escape(row['detail'])}</li>"
        for row in shown
    )
    rest = len(report["problems"]) - len(shown)
    more = f"<li>and {rest} more, all of them in the JSON</li>" if rest else ""
    return f"<details><summary>{counts}</summary><ul>{lines}{more}</ul></details>"


def _agreement(row: dict[str, Any]) -> str:
    found = row.get("difference")
    if found is None:
        return ""
    return (
        f"<p>Scores of the compressed network differ from the float one's by {found['mean']:.4f} "
        f"on average and {found['most']:.3f} at most; {found['changed']} of {row['evaluated']} "
        "decisions at 0.5 changed.</p>"
    )


def _section(name: str, row: dict[str, Any], plots: list[str], misses: list[str]) -> str:
    families = [
        [
            escape(family),
            str(next(iter(found.values()))["frame"]["forged"]),
            *(
                _with_interval(levels[level], "auc")
                for levels in found.values()
                for level in ("frame", "video")
            ),
        ]
        for family, found in row["families"].items()
    ]
    networks = list(row["networks"])
    head = [f"{network}, {level} AUC" for network in networks for level in ("frame", "video")]
    parts = [
        f'<section id="{escape(name)}"><h2>{escape(name)}</h2>',
        f"<p>{row['evaluated']} of {row['samples']} samples scored, {row['forged']} forged and "
        f"{row['real']} real.</p>",
        _problems(row["report"]),
        _agreement(row),
        table(["", "count", *_HEAD], _metric_rows(row["networks"], "")),
        f'<div class="plots">{"".join(plots)}</div>',
    ]
    if families:
        parts.append("<h3>By forgery family</h3>")
        parts.append(
            f'<p class="note">The forged samples of one family beside all {row["real"]} real ones. '
            "An interval that holds 0.5 does not tell the family from chance.</p>"
        )
        parts.append(table(["family", "forged", *head], families))
    if misses:
        parts.append("<h3>Worst misses</h3>")
        parts.append(
            '<p class="note">The samples farthest on the wrong side of 0.5, one of a video. Red '
            'speaks for "forged", blue for "real": the change of the score when that part is '
            "blurred, on one scale for both networks. The gradient is the float network's.</p>"
        )
        parts.append(f'<div class="misses">{"".join(misses)}</div>')
    return "".join(parts) + "</section>"


def miss(views: Sequence[tuple[str, NDArray[np.uint8]]], verdict: str, name: str) -> str:
    """Return a miss: named views of a picture, what went wrong, and the picture's name."""
    shown = "".join(
        f"<div>{image(picture, name)}<br>{escape(name)}</div>" for name, picture in views
    )
    return (
        f'<figure class="miss"><div class="views">{shown}</div>'
        f"<figcaption><b>{escape(verdict)}</b><br>{escape(name)}</figcaption></figure>"
    )


def page(
    document: dict[str, Any],
    timing: dict[str, float],
    plots: dict[str, list[str]],
    misses: dict[str, list[str]],
    machine: str,
) -> str:
    """Return the report of an evaluation as a page that needs nothing else.

    ``machine`` is a line about where and with what it was measured.
    """
    networks = document["networks"]
    rows = []
    for kind, about in networks.items():
        row = [
            escape(f"{kind}: {about['name']}"),
            f"{about['bytes'] / 1024:.0f} KiB",
            f"{timing[kind]:.2f} ms" if kind in timing else "–",
        ]
        row += [
            _with_interval(found["networks"][kind]["video"], "auc")
            for found in document["datasets"].values()
        ]
        rows.append(row)
    head = ["network", "size", "time a face", *(f"{n}, video AUC" for n in document["datasets"])]
    ratio = ""
    first = next(iter(networks))
    if {"compressed", "float"} <= set(networks):
        smaller = networks["float"]["bytes"] / max(1, networks["compressed"]["bytes"])
        ratio = f"<p>The compressed network is {smaller:.1f} times smaller"
        if {"compressed", "float"} <= set(timing):
            ratio += f" and {timing['float'] / timing['compressed']:.2f} times as fast"
        ratio += ".</p>"
    settings = ", ".join(f"{key} {value}" for key, value in document["settings"].items())
    sections = [
        _section(name, row, plots.get(name, []), misses.get(name, []))
        for name, row in document["datasets"].items()
    ]
    return whole(
        "evaluation",
        f"Evaluation of {networks[first]['name']}",
        f"{table(head, rows)}{ratio}"
        f'<p class="note">Settings: {escape(settings)}. A video\'s score is the mean of its '
        "frames'. Intervals: 95 %, from a bootstrap over videos; an AUC of 0.5 is chance. Accuracy "
        f"is at a score of 0.5, the calibration error is of {BINS} bins, and ↑ and ↓ say which way "
        "is better. Scores are probabilities of a forgery; they are no proof about a picture.</p>"
        f'<p class="note">{escape(machine)}</p>'
        f"{''.join(sections)}",
    )


def whole(title: str, heading: str, body: str) -> str:
    """Return a page that needs nothing else; the body is HTML."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>DefakeQ: {escape(title)}</title><style>{_STYLE}</style></head><body>"
        f"<h1>{escape(heading)}</h1>{body}</body></html>\n"
    )
