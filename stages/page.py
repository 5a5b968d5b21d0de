"""Pages for people: one HTML file each, with its style, script and data inside; opened from disk, offline, years later.

What people or models wrote (captions, file names) never becomes markup: text goes in by `text`, numbers and lists as
JSON in a <script> of data, which the page's own script puts in by `textContent`. A policy in the page's head lets it
load nothing, from anywhere. The look is page.css; the live page of `caption --serve` has it too.
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

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


def page(title: str, lead: str, body: str, *, script: str, links: Iterable[tuple[str, str]] = ()) -> str:
    """A whole page. `lead` and `body` are HTML; `title` and `links` (#place, name) are text; `script` runs last but for
    blocks of data that `body` may have at its end.

    Its policy names the script by its hash, so that no other one runs, whatever stood in a caption.
    """
    nav = "".join(f'<a href="{text(place)}">{text(name)}</a>' for place, name in links)
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
<header class="wide"><h1>{text(title)}</h1><p class="lead">{lead}</p>{f"<nav aria-label='Parts of this page'>{nav}</nav>" if nav else ""}</header>
<main id="main" class="wide">
{body}
</main>
<script>{script}</script>
</body>
</html>
"""


def thumbnail(picture: Image.Image, side: int, quality: int) -> bytes:
    """A picture as WebP, its longer side at most `side` pixels: about 5 KB at 192 and 60. The same bytes every time."""
    small = picture.copy()
    small.thumbnail((side, side), Image.Resampling.LANCZOS, reducing_gap=2.0)
    written = io.BytesIO()
    small.save(written, "WEBP", quality=quality, method=4)
    return written.getvalue()


def base64_of(content: bytes) -> str:
    """Bytes as a page holds them."""
    return base64.b64encode(content).decode("ascii")


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
        f"<div class='scroll' tabindex='0' role='region' aria-label='{text(first)}'><table><thead><tr>{named}</tr></thead>"
        f"<tbody>{body}</tbody></table></div>"
    )


def bars(rows: Sequence[tuple[str, float, str]], largest: float | None = None) -> str:
    """Horizontal bars: (name, value, what to write at its end). Read aloud as name and what is written."""
    top = largest or max((value for _, value, _ in rows), default=1) or 1
    lines = (
        f"<span>{text(name)}</span><b style='width:{100 * value / top:.2f}%'></b><em>{text(written)}</em>"
        for name, value, written in rows
    )
    return f"<div class='bars'>{''.join(lines)}</div>"
