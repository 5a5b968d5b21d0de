"""Two sets of captions of the same pictures side by side: `python -m stages.compare A B`.

    python -m stages.compare reports/coco/captions_test.json theirs.json     results files in COCO's format
    python -m stages.compare one.safetensors another.safetensors             captioners
    python -m stages.compare captioner-flickr8k/3 captioner-flickr8k/4       versions of MLflow's registry

Any two kinds go together. Writes reports/P/compare.html (or --out): how much better A is than B, paired over pictures
with its interval, and every picture with both captions, those first that differ most. Nothing else is written.
"""

from __future__ import annotations

import argparse
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stages import page, params, rim
from stages.evaluate.measure import caption, unlike
from stages.evaluate.results import read_results
from stages.evaluate.scorecard import SEED, TITLES
from stages.features.device import choose_device
from stages.features.store import Features
from stages.fetch.captions import Picture, read_captions
from stages.fetch.pictures import Pictures
from stages.fetch.thumbnails import thumbnails
from stages.files import whole
from stages.live.models import fetched
from stages.page import text
from stages.scorers.score import METRICS, Difference, Judge, ScoreError, Scores
from stages.train.artifact import Artifact

SIDE = 200  # pixels of a thumbnail's longer side


def main() -> None:
    options = arguments()
    profile, settings = params.read("evaluate")
    data = Path("data") / profile
    pictures = read_captions(data / f"captions_{options.split}.json")
    found = [captions_of(name, options.split, pictures, data / "features", settings) for name in options.of]
    judge = Judge({picture.id: picture.captions for picture in pictures})
    scores = [scored(judge, name, each) for name, each in zip(options.of, found, strict=True)]
    difference = scores[0].difference(scores[1], settings.resamples, SEED) if settings.resamples else {}
    names = [picture.file_name for picture in pictures]
    archives = data / "pictures"
    small = thumbnails(Pictures(archives), names, SIDE) if archives.is_dir() else [b""] * len(names)
    out = Path(options.out or Path("reports") / profile / "compare.html")
    with whole(out) as partial:
        shown = comparison(profile, options.split, options.of, pictures, found, scores, difference, small)
        partial.write_text(shown, encoding="utf-8")
    cider = difference.get("cider")
    told = f": CIDEr-D {_signed(cider)}" if cider else ""
    print(f"{options.of[0]} against {options.of[1]}{told}: {out}")


def scored(judge: Judge, name: str, captions: Mapping[int, str]) -> Scores:
    """Raises ScoreError that says of which of the two they are."""
    try:
        return judge.score(captions, with_meteor=False)
    except ScoreError as error:
        raise ScoreError(f"{name}: {error}") from None


def arguments() -> argparse.Namespace:
    parser = rim.parser("python -m stages.compare", __doc__)
    for place in ("A", "B"):
        parser.add_argument(
            "of", action="append", metavar=place, help="results file, captioner, NAME/VERSION or NAME@ALIAS"
        )
    parser.add_argument(
        "--split", choices=("val", "test"), default="test", help="the split whose pictures they caption"
    )
    parser.add_argument("--out", metavar="FILE", help="the page (default: reports/P/compare.html)")
    return parser.parse_args()


def captions_of(name: str, split: str, pictures: Sequence[Picture], features: Path, settings: Any) -> dict[int, str]:
    """The captions that a results file holds, or that a captioner gives. Raises ValueError where `name` is neither."""
    if name.endswith(".json"):
        return read_results(name, [picture.id for picture in pictures])
    if name.endswith(".safetensors"):
        return _by_captioner(Path(name), split, pictures, features, settings)
    if not re.fullmatch(r"(models:/)?[^/@]+[/@][^/@]+", name):
        raise ValueError(
            f"{name} is no results file (.json), no captioner (.safetensors) and no NAME/VERSION or NAME@ALIAS"
        )
    with tempfile.TemporaryDirectory() as folder:
        return _by_captioner(fetched(name, Path(folder)).path, split, pictures, features, settings)


def _by_captioner(path: Path, split: str, pictures: Sequence[Picture], features: Path, settings: Any) -> dict[int, str]:
    artifact = Artifact.load(path)
    decoding, device = artifact.decoding.but(**settings.decoding()), choose_device(settings.device)
    seen, own = Features(features), {split: pictures}
    archives = Pictures(features.with_name("pictures")) if unlike(artifact, seen) else None
    return caption([artifact], own, seen, archives, decoding, batch=settings.batch, device=device)[split]


def comparison(
    profile: str,
    split: str,
    names: Sequence[str],
    pictures: Sequence[Picture],
    found: Sequence[Mapping[int, str]],
    scores: Sequence[Scores],
    difference: Mapping[str, Difference],
    small: Sequence[bytes],
) -> str:
    """The page; `names`, `found` and `scores` are A's and B's."""
    ciders = [dict(zip(each.pictures, each.of_pictures()["cider"].tolist(), strict=True)) for each in scores]
    rows = [
        [
            picture.file_name,
            *([each[picture.id], round(100 * cider[picture.id], 1)] for each, cider in zip(found, ciders, strict=True)),
            picture.captions,
        ]
        for picture in pictures
    ]
    apart = [ciders[0][picture.id] - ciders[1][picture.id] for picture in pictures]
    same = sum(found[0][picture.id] == found[1][picture.id] for picture in pictures)
    tiles = [
        ("pictures", f"{len(pictures):,}", f"{split} of {profile}"),
        ("A is better in", f"{sum(each > 1e-9 for each in apart):,}", "pictures, by CIDEr-D"),
        ("B is better in", f"{sum(each < -1e-9 for each in apart):,}", "pictures, by CIDEr-D"),
        ("the same caption", f"{same:,}", "pictures"),
    ]
    lead = (
        f"<b>A</b> is <code>{text(names[0])}</code><br><b>B</b> is <code>{text(names[1])}</code><br>"
        f"{_verdict(difference.get('cider'))}"
    )
    body = f"""<section aria-label="In numbers">{page.tiles(tiles)}</section>
<section id="scores" aria-labelledby="scores-title"><h2 id="scores-title">A less B</h2>
<p>Paired over pictures: the same resamples of the pictures for both. Noise explains a difference whose interval
holds 0.</p>{_table(scores, difference)}</section>
<section id="pictures" aria-labelledby="pictures-title"><h2 id="pictures-title">Pictures</h2>
<p>Words that only one of the two says are <mark>marked</mark>.</p>
<div class="tools stays"><label>Captions with the words
<input type="search" id="search" autocomplete="off" placeholder="dog running"></label>
<label>Order <select id="order"><option value="differ">that differ most</option>
<option value="a">A better first</option><option value="b">B better first</option>
<option value="split">as in the split</option></select></label>
<label><span><input type="checkbox" id="changed" checked> only different captions</span></label>
<output id="count" for="search order changed"></output></div>
<ul class="cards" id="cards"></ul><button type="button" id="more">Show more</button></section>
{page.data("rows", rows)}"""
    script = Path(__file__).with_name("compare.js").read_text(encoding="utf-8")
    links = [("#scores", "Scores"), ("#pictures", "Pictures")]
    return page.page("A against B", lead, body, script=script, links=links, after=page.pictures(small))


def _verdict(cider: Difference | None) -> str:
    if cider is None:
        return "Without resamples (evaluate.resamples) there is no interval."
    holds = "more than noise" if cider.low > 0 or cider.high < 0 else "which noise explains"
    return f"CIDEr-D of A is {_signed(cider)} against B, {holds}."


def _signed(each: Difference) -> str:
    return f"{100 * each.value:+.1f} ({100 * each.low:+.1f} to {100 * each.high:+.1f})"


def _table(scores: Sequence[Scores], difference: Mapping[str, Difference]) -> str:
    own = [each.metrics() for each in scores]
    rows = []
    for metric, title in zip(METRICS, TITLES, strict=True):
        one, other = (each[metric] for each in own)
        if one is None or other is None:
            continue
        found = difference.get(metric)
        paired = (_signed(found), f"{100 * found.better:.0f} %") if found else ("-", "-")
        better = paired[0] if found else f"{100 * (one - other):+.1f}"
        rows.append((title, f"{100 * one:.1f}", f"{100 * other:.1f}", better, paired[1]))
    return page.table(("metric", "A", "B", "A less B (95% interval)", "resamples in which A is better"), rows)


if __name__ == "__main__":
    rim.run(main)
