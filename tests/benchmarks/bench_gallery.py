"""A gallery of 5,000 photographs: how large it is, how long it takes to make, and to open in a real browser.

    python tests/benchmarks/bench_gallery.py Flickr8k_Dataset.zip [PICTURES]

Photographs are those of the archive; captions are made up, as long as COCO's, five of the model's and five of people's
a picture, with a 7 x 7 attention per word: what a page of COCO's test part has. Opened from disk, without a network, in
headless Chromium: first paint; the first card's picture on the screen; the page's script idle after everything was
read; then the time between frames while the page is scrolled, and how long a search and a new order take.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from full_size import sentences
from playwright.sync_api import sync_playwright

from stages.evaluate import gallery, scorecard
from stages.fetch.captions import Picture
from stages.fetch.pictures import Pictures
from stages.fetch.thumbnails import thumbnails
from stages.scorers.score import Judge

FRAMES = """() => new Promise((done) => {
  const times = []; let last = performance.now(); const until = last + 4000;
  const frame = (now) => {
    times.push(now - last); last = now;
    window.scrollBy({ top: 60, behavior: "instant" });
    now < until ? requestAnimationFrame(frame) : done(times.slice(1));
  };
  requestAnimationFrame(frame);
})"""
CHANGE = """(what) => new Promise((done) => {
  const began = performance.now();
  const [name, value] = what, control = document.getElementById(name);
  control.value = value;
  control.dispatchEvent(new Event(name === "search" ? "input" : "change"));
  setTimeout(() => requestAnimationFrame(() => done(performance.now() - began)), name === "search" ? 125 : 0);
})"""


def make(archive: Path, count: int) -> str:
    """The page, for pictures of `archive`."""
    archives = Pictures(archive)
    names = list(archives)[:count]
    chance = np.random.default_rng(5000)
    said = sentences(chance, 10 * len(names))
    texts = [[next(said).rstrip(".").lower() for _ in range(10)] for _ in names]
    pictures = [Picture(i, name, 500, 375, tuple(texts[i][5:])) for i, name in enumerate(names)]
    captions = {i: [(text, -0.5 - 0.1 * n) for n, text in enumerate(own[:5])] for i, own in enumerate(texts)}
    best = {i: own[0][0] for i, own in captions.items()}
    references = {picture.id: picture.captions for picture in pictures}
    training = scorecard.Training([own[5:] for own in texts])
    card = scorecard.build(best, references, split="test", training=training, decoding={}, resamples=100)
    looked = {i: chance.dirichlet(np.full(49, 0.3), len(text.split())).astype(np.float32) for i, text in best.items()}
    shown = gallery.show(pictures, captions, Judge(references).score(best, with_meteor=False), training.seen, looked)
    began = time.perf_counter()
    small = thumbnails(archives, names, gallery.SIDE)
    print(
        f"{len(names):,} thumbnails of {np.mean([*map(len, small)]):,.0f} bytes in {time.perf_counter() - began:.1f} s"
    )
    began = time.perf_counter()
    page = gallery.gallery("benchmark", card, shown, small, "Made-up captions.", cropped=False)
    print(f"the page in {time.perf_counter() - began:.1f} s")
    return page


def measure(path: Path) -> None:
    """Opens the page and says how long what took."""
    with sync_playwright() as playwright:
        chromium = os.environ.get("CHROMIUM", "/usr/bin/chromium")
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        size = {"width": 1280, "height": 900}
        # Under the page's own policy Playwright cannot wait for a condition.
        page = browser.new_context(viewport=size, offline=True, bypass_csp=True).new_page()
        began = time.perf_counter()
        page.goto(path.as_uri(), wait_until="commit")
        page.wait_for_function("document.querySelector('.card img')?.naturalWidth > 0")
        print(f"{'first picture on the screen':32}{time.perf_counter() - began:8.2f} s")
        page.wait_for_load_state("load")
        print(f"{'everything read':32}{time.perf_counter() - began:8.2f} s (at most 3 s)")
        paint = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime"
        page.wait_for_function(paint)
        print(f"{'first paint':32}{page.evaluate(paint) / 1000:8.2f} s")
        times = np.array(page.evaluate(FRAMES))
        print(
            f"{'frames while scrolling':32}{np.median(times):8.1f} ms median, {np.quantile(times, 0.95):.1f} ms at 95 %"
        )
        for what in (("order", "worst"), ("search", "w0001")):
            print(f"{' '.join(what):32}{page.evaluate(CHANGE, list(what)):8.1f} ms")
        browser.close()


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "gallery.html"
        path.write_text(make(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 5000), encoding="utf-8")
        print(f"{path.stat().st_size / 1e6:.1f} MB (at most 60 MB); load {os.getloadavg()[0]:.1f}")
        measure(path)


if __name__ == "__main__":
    main()
