"""The pictures at the head of the README, of drawn scenes, which are free to show: the gallery and the live page.

dvc repro && python tests/screenshots.py        writes reports/gallery.png and reports/live.png
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from random import Random

from browser import opened
from PIL import Image
from playwright.sync_api import expect
from stores import serving

from stages.fetch.drawn import scene
from stages.fetch.scenes import paint

REPOSITORY = Path(__file__).resolve().parent.parent
CAPTION = str(Path(sys.executable).with_name("caption"))
LARGEST = 300_000  # bytes; a clone carries it


def main() -> None:
    gallery(REPOSITORY / "reports/gallery.png")
    live(REPOSITORY / "reports/live.png")


def gallery(path: Path) -> None:
    """Every test picture of the sample profile with its caption, as evaluate has made it."""
    with opened(1200, 760) as page:
        page.goto((REPOSITORY / "reports/sample/gallery.html").as_uri())
        page.wait_for_function("document.querySelector('#cards img')?.naturalWidth > 0")
        page.evaluate("document.querySelector('.stays').scrollIntoView({ behavior: 'instant' })")
        page.wait_for_timeout(500)
        page.screenshot(path=path)
    shrink(path)


def live(path: Path) -> None:
    """`caption --serve` with the sample profile's model, when it has been given four pictures."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = str(REPOSITORY / "models/sample/captioner.safetensors")
        command = (CAPTION, "--serve", "--port", "PORT", "--model", model)
        with serving(folder, *command, ready="/health") as address, opened(1200, 900, offline=False) as page:
            page.goto(address)
            for number in range(4):
                drawn = folder / f"scene-{number}.png"
                paint(scene(7, number), 224, Random(number)).save(drawn)
                page.set_input_files("#file", drawn)
                expect(page.locator("#past li")).to_have_count(number + 1)
            page.screenshot(path=path)
    shrink(path)


def shrink(path: Path) -> None:
    """128 colours are enough for a page."""
    with Image.open(path) as picture:
        picture.convert("RGB").quantize(128, dither=Image.Dither.NONE).save(path, optimize=True)
    if (size := path.stat().st_size) > LARGEST:
        raise SystemExit(f"{path} has {size:,} bytes, more than {LARGEST:,}")
    print(f"{path}: {size:,} bytes")


if __name__ == "__main__":
    main()
