"""How fast captions are scored. On one core:

    OMP_NUM_THREADS=1 taskset -c 0 .venv/bin/python tests/benchmarks/bench_scorers.py [captions_val2017.json]

With COCO's captions file the real captions are used, without it made ones of the same number and length, which have
more different n-grams than people write and are a little slower. `--large` adds a reward over 113,287 pictures.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

from stages.scorers import bootstrap
from stages.scorers.cider import CiderD
from stages.scorers.floors import Floors
from stages.scorers.ngrams import References
from stages.scorers.ptb import tokenize
from stages.scorers.score import METRICS, metrics_of, score

Texts = dict[int, list[str]]


def read(path: str) -> Texts:
    texts: Texts = {}
    for annotation in json.loads(Path(path).read_text(encoding="utf-8"))["annotations"]:
        texts.setdefault(annotation["image_id"], []).append(annotation["caption"])
    return texts


def made(pictures: int, seed: int) -> Texts:
    """Captions of 8 to 14 words drawn by Zipf's law from 9,000; a picture's share half of their words."""
    draw = np.random.default_rng(seed)
    words = np.array([f"w{i}" for i in range(9000)])
    weight = 1 / np.arange(1, 9001)
    weight /= weight.sum()
    subject = draw.choice(words, (pictures, 14), p=weight)
    texts = {}
    for picture in range(pictures):
        own = np.where(draw.random((5, 14)) < 0.5, subject[picture], draw.choice(words, (5, 14), p=weight))
        texts[picture] = [" ".join(row[: draw.integers(8, 15)]) + "." for row in own]
    return texts


def seconds(work: Callable[[], Any], times: int = 3) -> float:
    """The best of a few runs: what the work costs, not what else the machine did."""
    best = float("inf")
    for _ in range(times):
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best


def reward(texts: Texts, batch: int = 320, batches: int = 60) -> tuple[float, float]:
    """Seconds to make the reward, and captions/s of batches of sampled captions: 5 a picture, words swapped."""
    tokens = [[tokenize(text) for text in own] for own in texts.values()]
    start = time.perf_counter()
    references = References(tokens)
    scorer = CiderD(references)
    building = time.perf_counter() - start
    draw = np.random.default_rng(0)
    pictures = [draw.integers(len(tokens), size=batch // 5).repeat(5) for _ in range(batches)]
    drawn = []
    for own in pictures:
        ids = references.encode([tokens[picture][draw.integers(5)] for picture in own])
        swap = (draw.random(ids.shape) < 0.2) & (ids >= 0)
        drawn.append(np.where(swap, draw.integers(5000, size=ids.shape), ids))

    def work() -> None:
        for ids, own in zip(drawn, pictures, strict=True):
            scorer.score(ids, own)

    return building, batch * batches / seconds(work)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("captions", nargs="?", help="COCO's captions_val2017.json")
    arguments.add_argument("--large", action="store_true", help="also a reward over as many pictures as COCO trains on")
    given = arguments.parse_args()
    texts = read(given.captions) if given.captions else made(5000, seed=1)
    flat = [text for own in texts.values() for text in own]
    captions = {picture: own[0] for picture, own in texts.items()}
    references = {picture: own[1:] for picture, own in texts.items()}

    rows: list[tuple[str, str]] = []
    spent = seconds(lambda: [tokenize(text) for text in flat])
    rows.append((f"tokenise {len(flat):,} captions", f"{spent:.2f} s, {len(flat) / spent:,.0f} captions/s"))
    ours = seconds(lambda: score(captions, references, with_meteor=False))
    rows.append((f"BLEU, ROUGE-L, CIDEr-D of {len(captions):,} captions, tokenising included", f"{ours:.2f} s"))
    lines = {picture: [" ".join(tokenize(text)) for text in own] for picture, own in references.items()}
    lone = {picture: [" ".join(tokenize(text))] for picture, text in captions.items()}
    theirs = [
        seconds(lambda each=each: each().compute_score(lines, lone), 1) for each in (lambda: Quiet(4), Rouge, Cider)
    ]
    rows.append(("the same by pycocoevalcap, tokens given", f"{sum(theirs):.2f} s"))
    columns = score(captions, references, with_meteor=False).columns()

    def resampled() -> None:
        metrics_of(bootstrap.resampled_sums(columns, 1000, seed=0), len(columns))

    rows.append(
        (f"1,000 resamples of {len(columns):,} pictures, {len(METRICS) - 1} metrics", f"{seconds(resampled):.2f} s")
    )
    building, speed = reward(texts)
    rows.append((f"CIDEr-D reward over {len(texts):,} pictures", f"{speed:,.0f} captions/s, made in {building:.1f} s"))
    rows.append(("the same by pycocoevalcap", f"{len(captions) / theirs[2]:,.0f} captions/s"))
    floors = Floors(list(texts.values()))
    draw = np.random.default_rng(0)
    features = draw.standard_normal((len(texts), 256), np.float32)
    floors.neighbours(features[:1], features)  # vectors are made once
    spent = seconds(lambda: floors.neighbours(features[:200], features), 1)
    rows.append(("consensus of 60 neighbours", f"{200 / spent:,.0f} pictures/s"))
    if given.large:
        building, speed = reward(made(113_287, seed=2))
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        rows.append(
            (
                "CIDEr-D reward over 113,287 pictures",
                f"{speed:,.0f} captions/s, made in {building:.0f} s, {memory:.1f} GiB",
            )
        )
    width = max(len(name) for name, _ in rows)
    print("\n".join(f"{name:{width}}  {value}" for name, value in rows))


class Quiet(Bleu):
    """pycocoevalcap's BLEU prints as it goes."""

    def compute_score(self, gts: Any, res: Any) -> Any:
        return super().compute_score(gts, res, verbose=0)


if __name__ == "__main__":
    main()
