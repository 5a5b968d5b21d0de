"""Pages for people: one HTML file each, with its style, script and data inside; opened from disk, offline, years later.

What people or models wrote (captions, file names) never becomes markup: text goes in by `text`, numbers and lists as
JSON in a <script> of data, which the page's own script puts in by `textContent`. A policy in the page's head lets it
load nothing, from anywhere. The look is page.css; the live page of `caption --serve` has it too.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__)


def css() -> str:
    """The look that all pages share."""
    return HERE.with_name("page.css").read_text(encoding="utf-8")


def text(value: object) -> str:
    """Any value as HTML text, also within quotes of an attribute."""
    return html.escape(str(value), quote=True)


def data(name: str, value: Any) -> str:
    """A <script> that holds `value` as JSON, for `read("name")` in a page's script. No text in it can end it: every
    `<` is written as \\u003c."""
    written = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return f'<script type="application/json" id="{text(name)}">{written.replace("<", chr(92) + "u003c")}</script>'


def page(
    title: str, lead: str, body: str, *, script: str, links: Iterable[tuple[str, str]] = (), after: str = ""
) -> str:
    """A whole page. `lead` and `body` are HTML; `title` and `links` (#place, name) are text; `script`, begun by
    page.js, runs after `body` and before `after`, which holds data that may come later.

    Its policy names the script by its hash, so that no other one runs, whatever stood in a caption.
    """
    script = HERE.with_name("page.js").read_text(encoding="utf-8") + script
    nav = "".join(f'<a href="{text(place)}">{text(name)}</a>' for place, name in links)
    nav = f"<nav aria-label='Parts of this page'>{nav}</nav>" if nav else ""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>{text(title)}</title>
<style>
{css()}</style>
</head>
<body>
<a class="skip" href="#main">Skip to the content</a>
<header class="wide"><h1>{text(title)}</h1><p class="lead">{lead}</p>{nav}</header>
<main id="main" class="wide">
{body}
</main>
<script>{script}</script>
{after}
</body>
</html>
"""


def base64_of(content: bytes) -> str:
    """Bytes as a page holds them."""
    return base64.b64encode(content).decode("ascii")


BLOCK = 100  # pictures in a block of data; page.js counts on it


def pictures(thumbnails: Sequence[bytes]) -> str:
    """JPEGs as data that a page's script shows by `picture(number, alt)`, for the end of a page: of a page of thousands
    they are the most, and a browser then draws the first cards while it still reads the rest. A line each, BLOCK in a
    <script> that nothing parses before one of its pictures is shown."""
    return "\n".join(
        f'<script type="text/plain" id="block-{start // BLOCK}">'
        + "\n".join(base64.b64encode(each).decode("ascii") for each in thumbnails[start : start + BLOCK])
        + "</script>"
        for start in range(0, len(thumbnails), BLOCK)
    )


def tiles(numbers: Iterable[tuple[str, str, str]]) -> str:
    """A row of numbers worth knowing first: (name, value, what to add), all text."""
    cells = (
        f"<div><dt>{text(name)}</dt><dd>{text(value)}<small>{text(more)}</small></dd></div>"
        for name, value, more in numbers
    )
    return f'<dl class="tiles">{"".join(cells)}</dl>'


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of text: the first column names the row, the others are numbers."""
    first, *others = head
    named = f"<th scope='col'>{text(first)}</th>" + "".join(
        f"<th scope='col' class='number'>{text(each)}</th>" for each in others
    )
    body = "".join(
        f"<tr><th scope='row'>{text(row[0])}</th>"
        + "".join(f"<td class='number'>{text(cell)}</td>" for cell in row[1:])
        + "</tr>"
        for row in rows
    )
    return (
        f"<div class='scroll' tabindex='0' role='region' aria-label='{text(first)}'>"
        f"<table><thead><tr>{named}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def bars(rows: Sequence[tuple[str, float, str]], largest: float | None = None) -> str:
    """Horizontal bars: (name, value, what to write at its end). Read aloud as name and what is written."""
    top = largest or max((value for _, value, _ in rows), default=1) or 1
    lines = (
        f"<span>{text(name)}</span><b style='width:{100 * value / top:.2f}%'></b><em>{text(written)}</em>"
        for name, value, written in rows
    )
    return f"<div class='bars'>{''.join(lines)}</div>"


def columns(title: str, names: Sequence[str], series: Mapping[str, Sequence[float]], axis: str) -> str:
    """Columns side by side for each of `names`, one of every series (shares of 1), and the same as a table that only a
    screen reader reads."""
    width, height, left, bottom = 760, 240, 46, 52
    top = max((value for values in series.values() for value in values), default=1) or 1
    step = (width - left) / max(len(names), 1)
    bar = 0.8 * step / len(series)
    drawn = []
    for share in (0, 0.5, 1):
        y = (height - bottom) * (1 - share) + 8
        drawn.append(f"<line class='axis' x1='{left}' x2='{width}' y1='{y:.1f}' y2='{y:.1f}'/>")
        label = f"{100 * top * share:.0f} %"
        drawn.append(f"<text class='soft' x='{left - 8}' y='{y + 4:.1f}' text-anchor='end'>{label}</text>")
    for s, values in enumerate(series.values()):
        for n, value in enumerate(values):
            tall = (height - bottom) * value / top
            x, y = left + n * step + 0.1 * step + s * bar, height - bottom + 8 - tall
            drawn.append(f"<rect class='s{s}' x='{x:.1f}' y='{y:.1f}' width='{bar:.1f}' height='{tall:.1f}'/>")
    for n, name in enumerate(names):
        x = left + (n + 0.5) * step
        drawn.append(f"<text class='soft' x='{x:.1f}' y='{height - 24}' text-anchor='middle'>{text(name)}</text>")
    drawn.append(
        f"<text class='soft' x='{(left + width) / 2}' y='{height - 4}' text-anchor='middle'>{text(axis)}</text>"
    )
    key = "".join(f"<span class='key s{s}'>{text(name)}</span>" for s, name in enumerate(series))
    rows = [(name, *(f"{100 * values[n]:.1f} %" for values in series.values())) for n, name in enumerate(names)]
    return (
        f"<div class='keys' aria-hidden='true'>{key}</div><svg class='chart' viewBox='0 0 {width} {height}' "
        f"role='img' aria-label='{text(title)}'>{''.join(drawn)}</svg>"
        f"<div class='hidden'>{table((axis, *series), rows)}</div>"
    )
