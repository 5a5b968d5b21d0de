"""The gallery, reports/P/gallery.html: every test picture with what the model says of it, what people say, and its own
scores; the score card as a chart; where the model looked.

Shapes: T words of a caption, R regions
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages import page
from stages.evaluate.scorecard import DIAGNOSTICS, ROWS, TITLES, UNKNOWN, repeats
from stages.fetch.captions import Picture
from stages.page import text
from stages.scorers.score import METRICS, Scores
from stages.vocab.vocabulary import BAD_ENDINGS

SIDE = 200  # pixels of a thumbnail's longer side; 5,000 of them make 44 MB
STOCK = 0.01  # share of the pictures that are given the same words, above which these are a stock caption
FAILED = 0.1  # CIDEr-D of a picture, up to which a caption has next to nothing of what people say

FAILURES = {
    "nothing": "nothing people say",
    "stock": "stock caption",
    "unknown": "with <unk>",
    "ending": "bad ending",
    "repeats": "repeats itself",
    "copied": "a training caption",
}


@dataclass(frozen=True)
class Shown:
    """One picture as the page shows it."""

    picture: Picture
    captions: Sequence[tuple[str, float]]  # n best, with the natural logarithm of each one's probability per word
    cider: float  # of this picture's caption; document frequencies are the split's
    bleu_4: float
    failures: Sequence[str]  # keys of FAILURES
    times: int  # how many pictures of the split get the very same caption
    attention: NDArray[np.float32] | None  # (T, R), a row per word of the best caption


def show(
    pictures: Sequence[Picture],
    captions: Mapping[int, Sequence[tuple[str, float]]],
    scores: Scores,
    seen: frozenset[tuple[str, ...]],
    attention: Mapping[int, NDArray[np.float32]],
) -> list[Shown]:
    """Every picture with its captions (best first) and scores; `seen` are the training captions' tokens."""
    own = scores.of_pictures()
    place = {picture: row for row, picture in enumerate(scores.pictures)}
    times = Counter(tuple(tokens) for tokens in scores.tokens)
    shown = []
    for picture in pictures:
        row = place[picture.id]
        tokens = tuple(scores.tokens[row])
        marks = {
            "nothing": own["cider"][row] <= FAILED,
            "stock": times[tokens] > max(2, STOCK * len(pictures)),
            "unknown": UNKNOWN in tokens,
            "ending": not tokens or tokens[-1] in BAD_ENDINGS,
            "repeats": repeats(tokens),
            "copied": tokens in seen,
        }
        shown.append(
            Shown(
                picture,
                captions[picture.id],
                float(own["cider"][row]),
                float(own["bleu_4"][row]),
                [name for name, is_so in marks.items() if is_so],
                times[tokens],
                attention.get(picture.id),
            )
        )
    return shown


def gallery(
    profile: str,
    card: Mapping[str, Any],
    shown: Sequence[Shown],
    thumbnails: Sequence[bytes],
    model: str,
    cropped: bool,
) -> str:
    """The page. `card` is the split's; `thumbnails` are JPEGs in the order of `shown`, empty where there is none;
    `cropped` says that the model sees the middle of a picture only; `model` is one sentence."""
    total, own = card["images"], len(shown)
    part = f"The first {own:,} of {total:,}" if own < total else f"All {total:,}"
    lead = (
        f"{part} test pictures of the profile <b>{text(profile)}</b>, with the model's caption, what people say, and "
        f"the scores of each. {text(model)}"
    )
    rows = [_row(each) for each in shown]
    counts = Counter(name for each in shown for name in each.failures)
    chips = "".join(
        f"<button type='button' class='chip' data-failure='{name}' aria-pressed='false'>{text(title)} "
        f"<span>{counts[name]:,}</span></button>"
        for name, title in FAILURES.items()
        if counts[name]
    )
    regions = next((each.attention.shape[1] for each in shown if each.attention is not None), 0)
    settings = {"failures": FAILURES, "side": math.isqrt(regions), "cropped": cropped}
    body = f"""<section id="card" aria-labelledby="card-title"><h2 id="card-title">Score card</h2>
<p>Of all {total:,} test pictures. Bars are 95% intervals over pictures. People, one against the others, are no ceiling;
a caption for every picture and word salad are what no model should be near.</p>
<div class="columns"><figure class="panel">{score_chart(card)}</figure>
<figure class="panel"><h3>CIDEr-D of {part.lower()} pictures one by one</h3>{_spread(shown)}</figure></div>
{_table(card)}{_diagnostics(card)}</section>
<section id="pictures" aria-labelledby="pictures-title"><h2 id="pictures-title">Pictures</h2>
<p>“Sure” is the model's probability per word of its caption (the geometric mean, guided where decoding is): the most
surprising captions are those that surprised itself. BLEU-4 of one caption is coarse: 0 where no four words in a row
match.</p>
<div class="tools stays"><label>Captions with the words
<input type="search" id="search" autocomplete="off" placeholder="dog running"></label>
<label>Search in <select id="where"><option value="model">the model's caption</option>
<option value="people">people's captions</option><option value="both">both</option></select></label>
<label>Order <select id="order"><option value="split">as in the split</option><option value="best">best first</option>
<option value="worst">worst first</option><option value="longest">longest first</option>
<option value="surprising">most surprising first</option></select></label>
<output id="count" for="search where order"></output></div>
<div class="chips" role="group" aria-label="Only captions that failed in a way">{chips}</div>
<ul class="cards" id="cards"></ul><button type="button" id="more">Show more</button></section>
{page.data("settings", settings)}
{page.data("rows", rows)}"""
    script = Path(__file__).with_name("gallery.js").read_text(encoding="utf-8")
    links = [("#card", "Score card"), ("#pictures", "Pictures")]
    return page.page(f"Gallery of {profile}", lead, body, script=script, links=links, after=page.pictures(thumbnails))


def _row(shown: Shown) -> list[Any]:
    """What the page's script needs of a picture; numbers short, since there are thousands."""
    picture, look = shown.picture, ""
    if shown.attention is not None:
        brightest = np.maximum(shown.attention.max(1, keepdims=True), 1e-9)
        look = page.base64_of(np.round(255 * shown.attention / brightest).astype(np.uint8).tobytes())
    return [
        picture.file_name,
        [[caption, round(100 * math.exp(log_probability), 1)] for caption, log_probability in shown.captions],
        picture.captions,
        round(100 * shown.cider, 1),
        round(100 * shown.bleu_4, 1),
        shown.failures,
        shown.times,
        look,
    ]


# --- the score card ---------------------------------------------------------------------------------------------------
MARKS = {"constant": "a", "word_salad": "b", "neighbours": "c", "human": "d"}


def score_chart(card: Mapping[str, Any]) -> str:
    """A row per metric, from 0 to a little more than its largest value: the model with its interval, people, floors."""
    height, left, width = 46, 84, 640
    drawn = []
    for row, (metric, title) in enumerate(zip(METRICS, TITLES, strict=True)):
        values = {name: other[metric] for name, other in card["rows"].items() if other and other[metric] is not None}
        if card[metric] is None:
            continue
        ends = card["intervals"].get(metric)
        top = 1.08 * max(card[metric], ends["high"] if ends else 0, *values.values(), 1e-9)
        y = 26 + height * row

        def at(value: float, top: float = top) -> float:
            return left + (width - left) * value / top

        drawn.append(f"<text x='0' y='{y + 4}'>{title}</text>")
        drawn.append(f"<line class='axis' x1='{left}' x2='{width}' y1='{y}' y2='{y}'/>")
        for name, value in values.items():
            drawn.append(_mark(MARKS[name], at(value), y, f"{ROWS[name]}: {100 * value:.1f}"))
        if ends:
            x, wide = at(ends["low"]), at(ends["high"]) - at(ends["low"])
            drawn.append(f"<rect class='span' x='{x:.1f}' y='{y - 5}' width='{wide:.1f}' height='10' rx='5'/>")
        drawn.append(_mark("m", at(card[metric]), y, f"this model: {100 * card[metric]:.1f}"))
        place = f"x='{at(card[metric]):.1f}' y='{y - 12}' text-anchor='middle'"
        drawn.append(f"<text {place}>{100 * card[metric]:.1f}</text>")
    tall = 20 + height * len(METRICS)
    key = "".join(
        f"<span><svg width='16' height='14' viewBox='0 0 16 14' class='chart'>{_mark(mark, 8, 7, '')}</svg>"
        f"{text(title)}</span>"
        for mark, title in [("m", "this model"), *((MARKS[name], title) for name, title in ROWS.items())]
    )
    return (
        f"<div class='keys' aria-hidden='true'>{key}</div><svg class='chart scores' viewBox='0 0 {width} {tall}' "
        f"role='img' aria-label='Scores of the model, of people and of floors; the table below has them'>"
        f"{''.join(drawn)}</svg>"
    )


def _mark(kind: str, x: float, y: float, title: str) -> str:
    shapes = {
        "m": f"<circle cx='{x:.1f}' cy='{y}' r='6'/>",
        "a": f"<path d='M{x:.1f} {y - 6}v12'/>",
        "b": f"<path d='M{x - 4:.1f} {y - 4}l8 8m0 -8l-8 8'/>",
        "c": f"<circle cx='{x:.1f}' cy='{y}' r='5'/>",
        "d": f"<path d='M{x:.1f} {y - 6}l6 6l-6 6l-6 -6z'/>",
    }
    return f"<g class='mark {kind}'>{f'<title>{text(title)}</title>' if title else ''}{shapes[kind]}</g>"


def _spread(shown: Sequence[Shown]) -> str:
    steps = np.arange(0, 3.25, 0.25)
    found = np.clip([each.cider for each in shown], 0, steps[-1])
    shares = np.bincount(np.digitize(found, steps) - 1, minlength=len(steps)) / max(len(shown), 1)
    names = [f"{100 * step:.0f}{'+' if step == steps[-1] else ''}" for step in steps]
    return page.columns("Pictures by their CIDEr-D", names, {"pictures": shares.tolist()}, "CIDEr-D, from")


def _table(card: Mapping[str, Any]) -> str:
    def row(title: str, metrics: Mapping[str, Any]) -> list[str]:
        return [title, *("-" if metrics[name] is None else f"{100 * metrics[name]:.1f}" for name in METRICS)]

    rows = [row("this model", card)]
    if card["intervals"]:
        ends = (card["intervals"].get(name) for name in METRICS)
        rows.append(["95% interval", *(f"{100 * e['low']:.1f} - {100 * e['high']:.1f}" if e else "-" for e in ends)])
    rows += [row(title, card["rows"][name]) for name, title in ROWS.items() if card["rows"][name]]
    return page.table(("captions", *TITLES), rows)


def _diagnostics(card: Mapping[str, Any]) -> str:
    def tiles() -> Iterator[tuple[str, str, str]]:
        for name, value in card["diagnostics"].items():
            yield DIAGNOSTICS[name].replace("`", ""), f"{value:,}{' %' if name.endswith('_percent') else ''}", ""

    decoding = json.dumps(card["decoding"]).strip("{}").replace('"', "")
    about = f"<p class='soft'>Decoded with {text(decoding or 'settings that nobody wrote down')}. " + (
        f"METEOR is missing: {text(card['method']['no_meteor'])}. " if card["method"]["no_meteor"] else ""
    )
    constant = f"Best constant caption: “{text(card['method']['constant'])}”.</p>"
    return page.tiles(tiles()) + about + constant
